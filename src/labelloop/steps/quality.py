"""Predicted quality of labels: steps of ``workflow/rules/quality.smk``.

Known errors are put into the truth once a run. What is known of the label maps of a set is measured shard by shard,
beside the rules of anatomy. One job a label set then learns from all that has a true DSC, and judges the rest.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.files import digest
from labelloop.base.shards import Ledger
from labelloop.base.tables import read_table, write_table
from labelloop.base.wording import count
from labelloop.cases.annotation import UNKNOWN, annotated
from labelloop.cases.usable import UsableCase
from labelloop.images.volume import canonical
from labelloop.labels.evidence import of_models
from labelloop.labels.measured import joined, measured, with_errors
from labelloop.labels.settings import HELD_OUT, PSEUDO
from labelloop.steps.common import Files, SurveyTables, read_cases, read_many, table_of
from labelloop.steps.held_out import Labeling, dsc_of, overruled_by, truth_of, unseen
from labelloop.steps.labels import fused_map, predictions_of, speaking_of, volumes_said

log = logging.getLogger(__name__)

COPIES = 8
"""Corrupted copies of each annotated label map."""
SEED = 17


def corrupt(survey: SurveyTables, rules: dict[str, Any], table: Path, manifest: Path, version: int) -> None:
    """Measure the truth of one shard, as it is and with known errors.

    Args:
        rules: the class scheme. Fitted thresholds do not count here, nor in :func:`measure`.
        table, manifest: to write.
    """
    scheme, ledger = ClassScheme.model_validate(rules), Ledger.of(manifest)
    items = [item for item in survey.usable() if annotated(item.states)]
    for item, other in zip(items, [*items[1:], *items[:1]], strict=True):
        mistaken = other if other.case.patient != item.case.patient else None
        content = [version, scheme.model_dump(mode="json"), item.examination_key, item.truth_key]
        key = digest([*content, mistaken.truth_key if mistaken else ""])
        ledger.run(item.id, key, partial(_corrupt_case, item, mistaken, scheme))
    ledger.close()
    write_table(table, table_of(ledger.extras(), "rows"), "evidence")


def _corrupt_case(item: UsableCase, other: UsableCase | None, scheme: ClassScheme) -> tuple[None, dict]:
    image = canonical(item.image())
    known = [name for name in scheme.names if item.states.get(name, UNKNOWN) != UNKNOWN]
    about = (np.array(image.array), image.geometry, item.case.modality, scheme, known, (SEED, item.id, COPIES))
    mistaken = partial(truth_of, other, scheme) if other else None
    return None, {"rows": with_errors(truth_of(item, scheme), *about, item.case.surgery_names, mistaken)}


def measure(
    survey: SurveyTables,
    relatives: Sequence[Path],
    maps: Path,
    provenance: Path,
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
) -> None:
    """Measure what is known of the labels of a set that models made, in the cases of one shard.

    Labeled cases of patients that no model learned from are measured, too, labeled as if they were not: of those the
    true DSC is known.

    Args:
        relatives, learned, learned_from: as :func:`labelloop.steps.held_out.held_out` takes them; of which cases that
            is so.
        maps: manifest of the label maps of the set. provenance: table of the shard: who labeled a class.
        predictions: manifest of each model in ``spec``, in their order.
        transferred, carried: manifest and volumes of labels of other sequences, which take the predictions' place.
        disagreement, reviewed: tables of the shard. volumes: confidence tables of the models.
        spec: ``predict``, ``classes`` and ``clean`` of a label set.
        known: the classes (or class sets) that each model knows.
        rules: the class scheme.
        table, manifest: to write.
    """
    scheme = ClassScheme.model_validate(rules)
    speaking = predictions_of(spec["predict"], predictions, transferred)
    labeling = Labeling(spec | {"fuse": "predictions_only"}, known, scheme, speaking)
    files, ledger, held_out = Files([maps], "label_map"), Ledger.of(manifest), unseen(relatives, learned, learned_from)
    pairs = dict(list(read_table(disagreement, "disagreement").groupby("case")))
    sure = dict(list(volumes_said(volumes, carried).groupby("case")))
    by_models = labeled_by_models(read_table(provenance, "provenance"))
    overruled = overruled_by(read_table(reviewed, "reviewed"))
    for item in survey.usable():
        if item.id not in sure:
            continue
        models = of_models(_rows(pairs.get(item.id)), _rows(sure[item.id]))
        asked = [name for name in labeling.classes if name in set(sure[item.id]["class"])]
        pseudo = [name for name in asked if (item.id, name) in by_models] if item.id in files else []
        truth = [n for n in asked if item.states[n] != UNKNOWN and n not in overruled.get(item.id, ())]
        truth = truth if held_out(item) and labeling.covers(item.id) else []
        keys = [files.key(item.id), *(model.key(item.id) for model in labeling.predictions.values())]
        content = [
            version,
            labeling.spec,
            known,
            scheme.model_dump(mode="json"),
            keys,
            item.examination_key,
            models,
            pseudo,
            truth,
            item.truth_key if truth else "",
        ]
        work = partial(_measure_case, item, files, labeling, models, pseudo, truth)
        ledger.run(item.id, digest(content), work)
    ledger.close()
    write_table(table, table_of(ledger.extras(), "rows"), "evidence")


def labeled_by_models(provenance: pd.DataFrame) -> set[tuple[str, str]]:
    """Return the (case, class) that models labeled, by a table of the kind "provenance"."""
    fused = provenance[(provenance["step"] == "fuse") & ~provenance["source"].isin(["truth", "reviewer", "none"])]
    return set(zip(fused["case"], fused["class"], strict=True))


def _rows(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Return the rows of a table; none without one."""
    rows = [] if table is None else table.to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _measure_case(
    item: UsableCase,
    files: Files,
    labeling: Labeling,
    models: Mapping[str, Mapping[str, float]],
    pseudo: Collection[str],
    truth: Collection[str],
) -> tuple[None, dict]:
    """Return the rows of a case: of its label map for the classes ``pseudo``, of its predictions for ``truth``."""
    rows: list[dict] = []
    if not pseudo and not truth:
        return None, {"rows": rows}
    image = np.array(canonical(item.image()).array)
    if pseudo:
        labels = canonical(item.label(files.path(item.id)))
        about = (labels.geometry, item.case.modality, labeling.scheme, [*pseudo], item.case.surgery_names, models)
        rows += [{"map": PSEUDO, **row} for row in measured(np.array(labels.array), image, *about)]
    if truth:
        speaking = speaking_of(item.id, labeling.predictions)
        label, _, _ = fused_map(item, labeling.spec, labeling.known, labeling.scheme, speaking)
        dsc = {name: value for name, value in dsc_of(item, labeling, label).items() if name in truth}
        about = (label.geometry, item.case.modality, labeling.scheme, [*truth], item.case.surgery_names, models)
        rows += [{"map": HELD_OUT, **row} for row in measured(np.array(label.array), image, *about, dsc)]
    return None, {"rows": rows}


def quality(
    cases: Sequence[Path],
    errors: Sequence[Path],
    evidence: Sequence[Path],
    reviewed: Sequence[Path],
    classes: str,
    table: Path,
) -> None:
    """Learn from labels with a true DSC what the DSC of the others is.

    Args:
        cases: case tables of all shards. errors: tables of known errors in the truth.
        evidence: tables of what is known of the labels of the set.
        reviewed: tables that fusion wrote. Truth that reviewers overruled is no example of a good label.
        table: to write.

    Raises:
        UserError: when there are too few labeled patients.
    """
    from labelloop.labels.quality import judge

    scheme = load_classes(classes)
    patients = {case.case: case.patient for case in read_cases(cases)}
    known = _without(read_many(errors, "evidence"), overruled_by(read_many(reviewed, "reviewed")))
    rows = joined(pd.concat([known, read_many(evidence, "evidence")]), patients, scheme)
    pseudo = rows["source"] == PSEUDO
    learned, asked = (rows[mine].reset_index(drop=True) for mine in (~pseudo, pseudo))
    judged = pd.concat(judge(learned, asked, scheme.names), ignore_index=True)
    held_out = learned["source"] == HELD_OUT
    ids = pd.concat([asked, learned[held_out]], ignore_index=True)[["case", "map", "class"]]
    write_table(table, pd.concat([ids, judged], axis=1), "quality")
    log.info(
        "quality: of %s, learned from %s of %s, %d of them predictions for labeled patients",
        count(len(asked), "label"),
        count(len(learned), "label"),
        count(learned["patient"].nunique(), "patient"),
        held_out.sum(),
    )
    if not held_out.any():
        log.warning(
            "quality: models learned from all labeled patients, so that no prediction of theirs can be held against "
            "its truth; what is learned from known errors alone ranks labels less well. Set validation_fraction above 0"
        )


def _without(evidence: pd.DataFrame, overruled: Mapping[str, Collection[str]]) -> pd.DataFrame:
    """Return the rows of a table of evidence without those of some classes of cases."""
    left_out = {(case, name) for case, names in overruled.items() for name in names}
    return evidence[[key not in left_out for key in zip(evidence["case"], evidence["class"], strict=True)]]
