"""Held-out labels: a step of ``workflow/rules/labels.smk``.

What is a label worth that nobody checked? Ask the labeled cases of patients that no model behind a label set learned
from: let them go the way of an unlabeled case (predictions fused, cleaned, held against anatomy, selected), then look
at their truth.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import CaseError
from labelloop.base.files import digest
from labelloop.base.shards import Ledger
from labelloop.base.tables import TABLES, read_table, write_table
from labelloop.cases.annotation import UNKNOWN, annotated, to_table
from labelloop.cases.usable import UsableCase
from labelloop.images.volume import Volume, canonical
from labelloop.labels.calibrate import SCORE
from labelloop.labels.check import check as check_labels
from labelloop.labels.fit import load_fitted, with_fitted
from labelloop.labels.measured import true_dsc
from labelloop.labels.select import select as select_classes
from labelloop.steps.common import Files, SurveyTables, learned_patients, read_cases, table_of
from labelloop.steps.labels import empty_table, fused_map, predictions_of, selection, speaking_of, volumes_said


@dataclass(frozen=True)
class Labeling:
    """How pseudo-labels are made: by which label set, class scheme with its rules, and predictions."""

    spec: dict[str, Any]
    known: dict[str, list[str]]
    scheme: ClassScheme
    predictions: dict[str, Files]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.scheme.select(self.spec["classes"])

    def covers(self, case: str) -> bool:
        """Say whether a case gets a label. One whose prediction failed counts, so that its failure is told."""
        files = self.predictions.values()
        return any(case in some for some in files) or not any(some.withheld(case) for some in files)


def held_out(
    survey: SurveyTables,
    relatives: Sequence[Path],
    predictions: Sequence[Path],
    disagreement: Path,
    reviewed: Path,
    volumes: Sequence[Path],
    spec: dict[str, Any],
    known: dict[str, list[str]],
    rules: dict[str, Any],
    table: Path,
    manifest: Path,
    version: int,
    learned: Sequence[Path] = (),
    learned_from: Sequence[str] = (),
    transferred: Path | None = None,
    carried: Path | None = None,
    thresholds: Path | None = None,
) -> None:
    """Judge the pseudo-labels of labeled cases of patients that no model learned from, and measure their true DSC.

    Args:
        relatives: case tables of all shards that hold images of this shard's patients.
        predictions: manifest of each model in ``spec``, in their order.
        disagreement: table of the shard.
        reviewed: table that fusion wrote. Truth that reviewers overruled is not asked. What they added is not either:
            it was looked at because it is doubtful, and calibration needs labels that were not picked.
        volumes: confidence tables of the models.
        spec: ``predict``, ``classes``, ``clean``, ``check`` and ``select`` of a label set. The threshold for
            ``target_dsc`` is left out, because the table serves to find it, and so are ranks among all cases.
        known: the classes (or class sets) that each model knows.
        rules: the class scheme.
        table, manifest: to write.
        learned: tables of the cases that the models, and the models these descend from, were trained with.
        learned_from: data sets that external models may have learned from.
        transferred, carried: manifest and volumes of labels of other sequences, which take the predictions' place.
        thresholds: file of fitted thresholds that take the place of the scheme's.
    """
    scheme = ClassScheme.model_validate(rules)
    if thresholds:
        scheme = with_fitted(scheme, load_fitted(thresholds))
    labeling = Labeling(
        spec | {"fuse": "predictions_only"}, known, scheme, predictions_of(spec["predict"], predictions, transferred)
    )
    is_unseen = unseen(relatives, learned, learned_from)
    pairs = dict(list(read_table(disagreement, "disagreement").groupby("case")))
    predicted = volumes_said(volumes, carried).groupby(["case", "class"])["volume_ml"].max()
    overruled = overruled_by(read_table(reviewed, "reviewed"))
    ledger = Ledger.of(manifest)
    for item in survey.usable():
        if not is_unseen(item) or item.id not in pairs or not labeling.covers(item.id):
            continue
        found = dict(predicted[item.id]) if item.id in predicted else {}
        keys = [files.key(item.id) for files in labeling.predictions.values()]
        made_by = [version, labeling.spec, known, scheme.model_dump(mode="json"), keys]
        content = [*made_by, item.examination_key, item.truth_key]
        left_out = sorted(overruled.get(item.id, ()))
        work = partial(_judge, item, labeling, found, pairs[item.id], left_out)
        ledger.run(item.id, digest([*content, *left_out]), work)
    ledger.close()
    rows, patients = table_of(ledger.extras(), "rows"), {item.id: item.case.patient for item in survey.usable()}
    write_table(table, rows.assign(patient=rows["case"].map(patients)) if len(rows) else rows, "held_out")


def unseen(
    relatives: Sequence[Path], learned: Sequence[Path], learned_from: Sequence[str]
) -> Callable[[UsableCase], bool]:
    """Return what says whether a case is labeled, and of a patient that no model learned from.

    Args:
        relatives, learned, learned_from: as :func:`held_out` takes them.
    """
    seen = learned_patients(read_cases(relatives), learned, learned_from)
    return lambda item: item.case.patient not in seen and bool(annotated(item.states))


def overruled_by(reviewed: pd.DataFrame) -> dict[str, set[str]]:
    """Return the classes of each case of which reviewers say anything else than that a label is right."""
    rows = reviewed[(reviewed["state"] != "") & (reviewed["decision"] != "right")]
    return {str(case): set(part) for case, part in rows.groupby("case")["class"]}


def _judge(
    item: UsableCase, labeling: Labeling, found: dict[str, float], pairs: pd.DataFrame, left_out: Collection[str] = ()
) -> tuple[None, dict]:
    """Return a row for each annotated class: what selection makes of its pseudo-label, and its true DSC.

    Args:
        left_out: classes of which the truth is not asked.
    """
    speaking = speaking_of(item.id, labeling.predictions)
    label, _, provenance = fused_map(item, labeling.spec, labeling.known, labeling.scheme, speaking)
    nobody_looked = dict.fromkeys(labeling.classes, UNKNOWN)
    made = pd.DataFrame([{"case": item.id, **row} for row in provenance])
    checked = bool(labeling.spec["check"])
    verdicts = _verdicts(item, labeling, label, found, provenance) if checked else empty_table("verdicts")
    settings = selection(labeling.spec, labeling.scheme).without_threshold()
    chosen = select_classes(
        to_table({item.id: nobody_looked}, labeling.classes), made, verdicts, pairs, settings, labeling.classes
    ).set_index("class")
    agreement = dict(zip(pairs["class"], pairs[SCORE], strict=True))
    rows = [
        {"class": name, SCORE: agreement.get(name), "quality": None, "dsc": dsc}
        | chosen.loc[name, ["decision", "reason"]].to_dict()
        for name, dsc in dsc_of(item, labeling, label).items()
        if name not in left_out
    ]
    return None, {"rows": rows}


def _verdicts(
    item: UsableCase, labeling: Labeling, label: Volume, found: dict[str, float], provenance: Sequence[dict]
) -> pd.DataFrame:
    image = canonical(item.image()).array
    asked = [name for name in labeling.classes if name in found]
    nowhere = [name for name in asked if not found[name]]
    overlap = {row["class"]: row["voxels_changed"] for row in provenance if row["step"] == "overlap"}
    about = (item.case.modality, item.case.surgery_names, nowhere, asked, overlap)
    rows = check_labels(label.array, label.geometry, {}, labeling.scheme, image, *about)
    return pd.DataFrame([{"case": item.id, **row} for row in rows], columns=list(TABLES["verdicts"]))


def dsc_of(item: UsableCase, labeling: Labeling, label: Volume) -> dict[str, float]:
    """Return the DSC of each class of the label set that is annotated (``labels.measured.true_dsc``)."""
    known = [name for name in labeling.classes if item.states[name] != UNKNOWN]
    return true_dsc(label.array, truth_of(item, labeling.scheme), labeling.scheme, known)


def truth_of(item: UsableCase, scheme: ClassScheme) -> np.ndarray:
    """Return the canonical label map [z, y, x] that annotators drew. Raises CaseError when there is none."""
    truth = item.truth(scheme)
    if truth is None:
        raise CaseError("label_missing", item.case.label, "no label to compare the pseudo-label with", "Give one.")
    return np.array(canonical(truth).array)
