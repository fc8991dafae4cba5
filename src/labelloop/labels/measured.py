"""Evidence of many label maps: measured map by map, in any order and on any machine, then put together.

What is measured of a map stands in a table of the kind "evidence", a row a number. All maps are measured alike, as if
nobody had labeled them: what is measured of one source of maps only would tell sources apart, not good from bad.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from labelloop.base.classes import BACKGROUND, IGNORED, ClassScheme
from labelloop.images.volume import Geometry
from labelloop.labels.agree import disagreement
from labelloop.labels.check import opened, verdicts
from labelloop.labels.corrupt import corrupted
from labelloop.labels.evidence import columns, evidence, of_position
from labelloop.labels.position import MEASURES, Frame, Positions, body_frame, places
from labelloop.labels.settings import CORRUPTED, UNALTERED

DSC = "dsc"
"""Measure that is no evidence: the true DSC, where it is known."""
PLACE = "place."
"""Measures that are no evidence yet: where a class lies, which becomes evidence once all labeled cases are known."""
ASKED = "shape.volume"
"""Each class that was asked for has it; of others it is only known where they lie."""
KEYS = ["case", "map", "class"]


def measured(
    labels: np.ndarray,
    image: np.ndarray,
    geometry: Geometry,
    modality: str,
    scheme: ClassScheme,
    classes: Sequence[str],
    surgery: Sequence[str] = (),
    models: Mapping[str, Mapping[str, float]] | None = None,
    dsc: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Return what is known of a label map: rows with ``class``, ``measure`` and ``value``; what is not known has none.

    Args:
        labels, image: canonical arrays [z, y, x]; geometry: canonical, in mm.
        classes: classes that the map should have, found or not.
        surgery: classes that were operated on or removed.
        models: what models say of classes (``evidence.of_models``).
        dsc: the true DSC of classes.
    """
    case = opened(labels, geometry, {}, scheme, image, modality)
    numbers = {
        row.pop("class"): row for row in evidence(case, verdicts(case, surgery, (), classes), classes, {}, models or {})
    }
    for name, value in (dsc or {}).items():
        numbers[name][DSC] = value
    for name, place in places(case.facts, _frame(image, geometry, modality)).items():
        found = {PLACE + measure: float(value) for measure, value in zip(MEASURES, place, strict=True)}
        numbers[name] = numbers.get(name, {}) | found
    return [
        {"class": name, "measure": measure, "value": value}
        for name, found in numbers.items()
        for measure, value in found.items()
        if not math.isnan(value)
    ]


def _frame(image: np.ndarray, geometry: Geometry, modality: str) -> Frame | None:
    try:
        return body_frame(image, geometry, modality)
    except ValueError:
        return None


def with_errors(
    labels: np.ndarray,
    image: np.ndarray,
    geometry: Geometry,
    modality: str,
    scheme: ClassScheme,
    classes: Sequence[str],
    drawn_by: tuple[int, str, int],
    surgery: Sequence[str] = (),
    other: Callable[[], np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """Return what is known of the truth of a case, and of corrupted copies: rows of :func:`measured`, with ``map``.

    Args:
        labels: expert labels; the others as in :func:`measured`.
        classes: the classes that are annotated.
        drawn_by: seed, case, and number of corrupted copies.
        other: returns canonical labels of another patient, to be mistaken for this one's.
    """
    seed, case, copies = drawn_by
    about = (image, geometry, modality, scheme, classes, surgery, None)
    rows = [{"map": UNALTERED, **row} for row in measured(labels, *about, dict.fromkeys(classes, 1.0))]
    ids = {name: scheme.ids[name] for name in classes}
    mistaken = other() if other else None
    for number in range(copies):
        spoiled, _ = corrupted(labels, image, geometry.spacing_zyx, ids, (seed, case, number), mistaken)
        dsc = true_dsc(spoiled, labels, scheme, classes)
        rows += [{"map": f"{CORRUPTED}-{number}", **row} for row in measured(spoiled, *about, dsc)]
    return rows


def true_dsc(labels: np.ndarray, truth: np.ndarray, scheme: ClassScheme, classes: Sequence[str]) -> dict[str, float]:
    """Return the DSC of each class; 1 where neither map has it. Voxels that the truth ignores are left out."""
    pair = [np.where(truth == IGNORED, BACKGROUND, array) for array in (truth, labels)]
    rows = disagreement(pair, scheme, classes)
    return {row["class"]: row["pairwise_dice"] for row in rows if row["class"] in classes}


def joined(table: pd.DataFrame, patients: Mapping[str, str], scheme: ClassScheme) -> pd.DataFrame:
    """Return a row a map and class, as ``quality.fit`` and ``Quality.predict`` take it.

    Positions are compared with those of all unaltered labels, a patient's own left out.

    Args:
        table: rows of :func:`measured` of many cases, with ``case`` and ``map``.
        patients: patient of each case.
    """
    wide = table.pivot(index=KEYS, columns="measure", values="value")
    rows = wide.reindex(columns=[DSC, *columns(scheme)]).reset_index()
    rows = rows[rows[ASKED].notna()].reset_index(drop=True)
    rows.insert(2, "source", rows["map"].str.partition("-")[0])
    rows.insert(3, "patient", rows["case"].map(patients))
    scores = _positions(wide.reindex(columns=[PLACE + name for name in MEASURES]), patients, scheme)
    keys = zip(rows["case"], rows["map"], rows["class"], strict=True)
    filled = pd.DataFrame([scores.get(key, {}) for key in keys], index=rows.index)
    rows[list(filled.columns)] = filled
    return rows


def _positions(
    table: pd.DataFrame, patients: Mapping[str, str], scheme: ClassScheme
) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return the evidence that places give, by case, map and class.

    Args:
        table: places, with an index of case, map and class; NaN where not known.
    """
    located: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    known = table.dropna(how="all")
    for (case, which, name), place in zip(known.index, known.to_numpy(float), strict=True):
        located.setdefault((case, which), {})[name] = place
    usual = {case: place for (case, which), place in located.items() if which == UNALTERED}
    relatives: dict[str, list[str]] = {}
    for case in usual:
        relatives.setdefault(patients[case], []).append(case)
    positions = Positions(usual, scheme.names)
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    without = {case: relatives.get(patients[case], []) for case, _ in located}
    for case, which in sorted(located, key=lambda key: without[key[0]]):  # what is usual is learned once a patient
        scores = positions.z_scores(located[case, which], without[case])
        found |= {(case, which, name): of_position(own) for name, own in scores.items()}
    return found
