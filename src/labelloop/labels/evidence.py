"""All that is known of a label, as numbers: one row a case and class, from which its quality is predicted.

Columns are named ``group.measure``; the groups are those of :data:`GROUPS`. NaN means that a measure is not available:
there is no image, a single model labeled, the field of view cuts the organ, a rule does not apply. No number is that
of a voxel count or of a file, so rows of several scanners compare.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from labelloop.base.classes import ClassScheme
from labelloop.labels.check import DOUBT, FAIL, NOT_APPLICABLE, load_rules
from labelloop.labels.position import MEASURES
from labelloop.labels.rules import Evidence, Skip
from labelloop.labels.rules.base import COUNTS
from labelloop.labels.rules.border import surface_of

GROUPS = {
    "rules": "the rules of anatomy",
    "surface": "what the image shows at its surface",
    "shape": "its volume and its parts",
    "position": "its place and size among the organs",
    "agreement": "the agreement of the models",
    "stability": "the change since the last round",
    "confidence": "the confidence of the models",
}
"""Groups of evidence, in words."""
PREDICTED = ("agreement", "stability", "confidence")
"""Groups that only labels from models have."""
SURFACE = ("border", "step", "undersegmented", "flat", "leak", "spread", "rough")
"""Share (%) of the surface that shows a border; median step across it, in the least that is a border; largest patches
that go on, that do so in one plane, and that leak, in % of the surface; standard deviation deep inside, in steps; area
by that of a ball of its volume."""
SHAPE = ("volume", "parts", "largest")
"""Decimal logarithm of ml (and 0.01); connected components; share (%) of the largest."""
FARTHEST = "farthest"
MODELS = {"pairwise_dice": "agreement.dice", "uncertainty": "agreement.uncertainty", "stability": "stability.dice"}
"""Columns of the table of disagreement, and what they are called here."""
CONFIDENCE = "confidence.mean"
BEYOND = 100.0
"""A value that lies farther beyond its threshold, as a share of it, is not more suspicious."""


def columns(scheme: ClassScheme) -> tuple[str, ...]:
    """Return the columns of evidence for a class scheme, whose rules are among them."""
    rules = dict.fromkeys(rule.name for rule in load_rules(scheme))
    return (
        *(f"rules.{name}" for name in (*COUNTS, *rules)),
        *(f"surface.{name}" for name in SURFACE),
        *(f"shape.{name}" for name in SHAPE),
        *(f"position.{name}" for name in (*MEASURES, FARTHEST)),
        *MODELS.values(),
        CONFIDENCE,
    )


def group_of(column: str) -> str:
    """Return the group of a column."""
    return column.split(".", 1)[0]


def evidence(
    case: Evidence,
    verdicts: Iterable[Mapping[str, Any]],
    classes: Sequence[str],
    positions: Mapping[str, Mapping[str, float]],
    models: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Return one row per class, with ``class`` and the :func:`columns` of the scheme.

    Args:
        case: the label map and its image (``check.opened``), and verdicts: its rows of verdicts (``check.verdicts``).
        classes: classes that were asked for, with or without voxels.
        positions: z-scores by class and measure (``position.Positions.z_scores``); none: not known.
        models: what models say, by class (:func:`of_models`); none: nobody predicted the label.
    """
    names, said = columns(case.facts.scheme), list(verdicts)
    rows = []
    for name in classes:
        mine = [row for row in said if row["class"] == name]
        found = {
            **_of_rules(mine),
            **_of_surface(case, name),
            **_of_shape(case, name),
            **of_position(positions.get(name, {})),
            **models.get(name, {}),
        }
        rows.append({"class": name} | {column: float(found.get(column, math.nan)) for column in names})
    return rows


def of_models(
    disagreement: Iterable[Mapping[str, Any]], confidence: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Return what models say of each class of one case.

    Args:
        disagreement: rows of a case in the table of that kind; with one model its scores are NaN.
        confidence: rows of the case in the tables of all models that predicted it; the mean counts.
    """
    said: dict[str, dict[str, float]] = {}
    for row in disagreement:
        said[row["class"]] = {column: row.get(name, math.nan) for name, column in MODELS.items()}
    sure: dict[str, list[float]] = {}
    for row in confidence:
        if not math.isnan(row["confidence"]):
            sure.setdefault(row["class"], []).append(row["confidence"])
    for name, values in sure.items():
        said.setdefault(name, {})[CONFIDENCE] = float(np.mean(values))
    return said


def _of_rules(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return of each rule how far a value lies beyond its threshold, as a share of it: above 0, the rule is broken."""
    applied = [row for row in rows if row["verdict"] != NOT_APPLICABLE]
    counts = [sum(row["verdict"] == verdict for row in applied) for verdict in (FAIL, DOUBT)]
    found = dict(zip((f"rules.{name}" for name in COUNTS), (*counts, len(applied)), strict=True))
    return found | {f"rules.{row['rule']}": _beyond(row) for row in applied}


def _beyond(row: Mapping[str, Any]) -> float:
    """Return the distance of value and threshold, as a share of the latter: negative where the rule holds.

    One that is broken begins at 1, for some are broken by a value that is at its threshold.
    """
    away = abs(row["value"] - row["threshold"]) / max(abs(row["threshold"]), 1.0)
    distance = min(away, BEYOND)
    return 1 + distance if row["verdict"] in (FAIL, DOUBT) else -distance


def _of_surface(case: Evidence, name: str) -> dict[str, float]:
    """Return what the image shows at the surface of a class; nothing where it cannot be told."""
    if not case.facts.voxels(name):
        return {}
    try:
        surface = surface_of(case, name)
    except Skip:
        return {}
    step = surface.step(case.modality)
    if step <= 0:
        return {}
    area, continuing = float(surface.areas.sum()), surface.continuing(step)
    values = (
        surface.share(surface.stepping(step)),
        float(np.median(np.abs(surface.inner - surface.outer))) / step,
        100 * surface.largest_patch(continuing).area / area,
        100 * surface.largest_patch(continuing, flat=True).area / area,
        100 * surface.largest_patch(surface.leaking(step)).area / area,
        surface.spread / step,
        area / float(np.cbrt(36 * math.pi * case.facts.ml(name) ** 2)),
    )
    return dict(zip((f"surface.{name}" for name in SURFACE), values, strict=True))


def _of_shape(case: Evidence, name: str) -> dict[str, float]:
    volume = {"shape.volume": math.log10(case.facts.ml(name) + 0.01)}
    if not case.facts.voxels(name):
        return volume
    voxels = case.facts.components(name).voxels
    return volume | {"shape.parts": len(voxels), "shape.largest": 100 * float(voxels.max() / voxels.sum())}


def of_position(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the columns of a class by its z-scores (``position.Positions.z_scores``)."""
    known = [abs(score) for score in scores.values() if not math.isnan(score)]
    farthest = max(known) if known else math.nan
    return {f"position.{name}": score for name, score in scores.items()} | {f"position.{FARTHEST}": farthest}
