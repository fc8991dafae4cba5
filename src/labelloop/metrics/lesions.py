"""Lesion-wise detection: which tumors were found, which findings are none, and false alarms on tumor-free scans.

Own and small rather than ``panoptica``: its release 2.1.7 pins older numpy and pandas (< 3) and connected-components-3d
than labelloop runs on (it installs numpy 2.2.6 and pandas 2.3.3), and brings plotly, rich and typer along.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from labelloop.base.classes import ClassScheme
from labelloop.base.components import connected_components
from labelloop.cases.annotation import States
from labelloop.images.volume import Volume
from labelloop.metrics.flare import Spacing, annotated_classes, class_masks

TUMORS = "tumor"
"""The set of a class scheme whose classes are scored lesion by lesion."""
CONNECTIVITY: Final = 26
MIN_IOU = 0.1
"""Overlap at which a lesion counts as found: IoU 0.1, the hit criterion of PI-CAI (Saha et al. 2024)."""


@dataclass(frozen=True)
class LesionMatch:
    """Lesions of one case. ``dsc`` has one entry per detected lesion; volumes are in ml."""

    detected: int
    missed: int
    false_positives: int
    dsc: tuple[float, ...]
    missed_ml: float
    false_positive_ml: float


def lesion_rows(
    truth: Volume,
    prediction: Volume,
    scheme: ClassScheme,
    states: States | None = None,
    file: str = "prediction",
) -> list[dict]:
    """Match the lesions of every annotated class of the scheme's set ``tumor`` in one case.

    Args:
        truth, prediction: label maps in the ids of ``scheme``; voxels that the truth ignores are left out of both.
        states: annotation of the case. A class that is ``unknown`` or not named is not scored; None scores all.
        file: how errors name the prediction.

    Returns:
        Rows of a "lesions" table without ``case``.

    Raises:
        CaseError: as :func:`labelloop.metrics.flare.score_case`.
    """
    classes = annotated_classes(scheme, scheme.sets.get(TUMORS, ()), states, truth)
    masks = class_masks(truth, prediction, classes, file) if classes else ()
    return [
        {"class": info.name, **_row(match_lesions(true, predicted, spacing, ignored=ignored))}
        for info, true, predicted, spacing, ignored in masks
    ]


def _row(match: LesionMatch) -> dict:
    lesions = match.detected + match.missed
    return {
        "lesions": lesions,
        "detected": match.detected,
        "false_positives": match.false_positives,
        "sensitivity": _ratio(match.detected, lesions),
        "precision": _ratio(match.detected, match.detected + match.false_positives),
        "dsc": _ratio(sum(match.dsc), match.detected),
        "missed_ml": match.missed_ml,
        "false_positive_ml": match.false_positive_ml,
    }


def match_lesions(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Spacing,
    min_iou: float = MIN_IOU,
    ignored: np.ndarray | None = None,
) -> LesionMatch:
    """Match the lesions of two boolean masks [z, y, x] one to one, for the largest sum of IoU.

    A lesion is a component under 26-connectivity. A pair with an IoU below ``min_iou`` is no match. A predicted lesion
    beside ignored voxels that matches none is no false positive: the true one may lie there.

    Args:
        truth, prediction: boolean masks of the same shape.
        spacing_mm: voxel size in array order (z, y, x).
        min_iou: smallest IoU of a match, above 0.
        ignored: boolean mask of voxels that are in neither mask because nobody knows the truth; None: there are none.

    Raises:
        ValueError: when the shapes differ or ``min_iou`` is not above 0.
    """
    if truth.shape != prediction.shape or min_iou <= 0:
        raise ValueError(f"shapes {truth.shape} and {prediction.shape}, min_iou {min_iou}")
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    shared, of_truth, of_prediction, undecided = _overlaps(truth, prediction, ignored)
    sizes = of_truth[:, None] + of_prediction[None, :]
    iou = shared / (sizes - shared)
    pairs = np.transpose(linear_sum_assignment(np.where(iou >= min_iou, iou, 0.0), maximize=True))
    hits = [(t, p) for t, p in pairs if iou[t, p] >= min_iou]
    missed = np.delete(of_truth, [t for t, _ in hits])
    extra = np.delete(of_prediction, [*(p for _, p in hits), *undecided])
    return LesionMatch(
        detected=len(hits),
        missed=len(missed),
        false_positives=len(extra),
        dsc=tuple(float(2 * shared[t, p] / sizes[t, p]) for t, p in hits),
        missed_ml=float(missed.sum() * voxel_ml),
        false_positive_ml=float(extra.sum() * voxel_ml),
    )


def _overlaps(
    truth: np.ndarray, prediction: np.ndarray, ignored: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Return shared voxels [truth lesions, predicted lesions], and the voxels of each truth and predicted lesion.

    Then the numbers, from 0, of predicted lesions that touch ``ignored`` voxels.
    """
    labels = [connected_components(mask, CONNECTIVITY) for mask in (truth, prediction)]
    counts = [int(parts.max(initial=0)) for parts in labels]
    width = counts[1] + 1
    seen = (labels[0] != 0) | (labels[1] != 0)
    codes = labels[0][seen].astype(np.int64) * width + labels[1][seen]
    table = np.bincount(codes, minlength=(counts[0] + 1) * width).reshape(counts[0] + 1, width)
    undecided: list[int] = []
    if ignored is not None:
        beside = ndimage.binary_dilation(ignored, np.ones((3, 3, 3), bool))
        undecided = [int(number) - 1 for number in np.unique(labels[1][beside]) if number]
    return table[1:, 1:], table[1:].sum(axis=1), table[:, 1:].sum(axis=0), undecided


def detection(table: pd.DataFrame) -> dict[str, float]:
    """Pool a "lesions" table (of one class) over its cases; what has no denominator is NaN.

    ``sensitivity``, ``precision`` and ``f1`` count lesions, ``dsc`` is the mean over detected lesions. On tumor-free
    scans, those without a lesion in the truth: ``false_positive_rate`` is the share with a finding,
    ``findings_per_free_scan`` and ``ml_per_free_scan`` are means.
    """
    lesions, detected, false_positives = (int(table[c].sum()) for c in ("lesions", "detected", "false_positives"))
    free = table[table["lesions"] == 0]
    return {
        "cases": len(table),
        "lesions": lesions,
        "detected": detected,
        "false_positives": false_positives,
        "sensitivity": _ratio(detected, lesions),
        "precision": _ratio(detected, detected + false_positives),
        "f1": _ratio(2 * detected, lesions + detected + false_positives),
        "dsc": _ratio((table["dsc"] * table["detected"]).sum(), detected),
        "free_scans": len(free),
        "free_scans_with_finding": int((free["false_positives"] > 0).sum()),
        "false_positive_rate": _ratio((free["false_positives"] > 0).sum(), len(free)),
        "findings_per_free_scan": _ratio(free["false_positives"].sum(), len(free)),
        "ml_per_free_scan": _ratio(free["false_positive_ml"].sum(), len(free)),
    }


def in_words(table: pd.DataFrame) -> str:
    """Return what a "lesions" table says, two lines a class."""
    lines = []
    for name, mine in table.groupby("class") if len(table) else ():
        d = detection(mine)
        lines.append(
            f"{name}: {d['detected']} of {d['lesions']} lesions found (sensitivity {_percent(d['sensitivity'])}), "
            f"{d['false_positives']} false findings (precision {_percent(d['precision'])}, F1 {_percent(d['f1'])})"
        )
        lines.append(
            f"{name}: {d['free_scans_with_finding']} of {d['free_scans']} tumor-free scans with a false finding "
            f"({_percent(d['false_positive_rate'])}), {d['findings_per_free_scan']:.2f} findings and "
            f"{d['ml_per_free_scan']:.2f} ml a scan"
            if d["free_scans"]
            else f"{name}: no tumor-free scan to count false alarms on"
        )
    return "\n".join(lines)


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f} %"


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
