"""Lesion-wise detection: which tumors were found, which findings are none, and false alarms on tumor-free scans.

Own and small rather than ``panoptica``: its release 2.1.7 pins older numpy and pandas (< 3) and connected-components-3d
than labelloop runs on (it installs numpy 2.2.6 and pandas 2.3.3), and brings plotly, rich and typer along.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from scipy.optimize import linear_sum_assignment

CONNECTIVITY = 26
MIN_IOU = 0.1
"""Overlap at which a lesion counts as found: IoU 0.1, the hit criterion of PI-CAI (Saha et al. 2024)."""


@dataclass(frozen=True)
class LesionMatch:
    """Lesions of one case. ``dsc`` has one entry per lesion found; volumes are in ml."""

    found: int
    missed: int
    false_positive: int
    dsc: tuple[float, ...]
    volume_missed_ml: float
    volume_false_positive_ml: float

    @property
    def tumor_free(self) -> bool:
        """Whether the truth has no lesion."""
        return self.found + self.missed == 0


def match_lesions(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: tuple[float, float, float],
    min_iou: float = MIN_IOU,
    min_volume_ml: float = 0.0,
) -> LesionMatch:
    """Match the lesions of two boolean masks [z, y, x] one to one, for the largest sum of IoU.

    A lesion is a component under 26-connectivity. A pair with an IoU below ``min_iou`` is no match.

    Args:
        truth, prediction: boolean masks of the same shape.
        spacing_mm: voxel size in array order (z, y, x).
        min_iou: smallest IoU of a match, above 0.
        min_volume_ml: predicted components below this volume are ignored; those of the truth always count.

    Raises:
        ValueError: when the shapes differ or ``min_iou`` is not above 0.
    """
    if truth.shape != prediction.shape or min_iou <= 0:
        raise ValueError(f"shapes {truth.shape} and {prediction.shape}, min_iou {min_iou}")
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    shared, of_truth, of_prediction = _overlaps(truth, prediction)
    kept = of_prediction * voxel_ml >= min_volume_ml
    shared, of_prediction = shared[:, kept], of_prediction[kept]
    sizes = of_truth[:, None] + of_prediction[None, :]
    iou = shared / (sizes - shared)
    pairs = np.transpose(linear_sum_assignment(np.where(iou >= min_iou, iou, 0.0), maximize=True))
    hits = [(t, p) for t, p in pairs if iou[t, p] >= min_iou]
    missed = np.delete(of_truth, [t for t, _ in hits])
    extra = np.delete(of_prediction, [p for _, p in hits])
    return LesionMatch(
        found=len(hits),
        missed=len(missed),
        false_positive=len(extra),
        dsc=tuple(float(2 * shared[t, p] / sizes[t, p]) for t, p in hits),
        volume_missed_ml=float(missed.sum() * voxel_ml),
        volume_false_positive_ml=float(extra.sum() * voxel_ml),
    )


def _overlaps(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return shared voxels [truth lesions, predicted lesions], and the voxels of each truth and predicted lesion."""
    labels, counts = zip(
        *(cc3d.connected_components(np.ascontiguousarray(m), connectivity=CONNECTIVITY, return_N=True)
          for m in (truth, prediction)), strict=True
    )  # fmt: skip
    width = counts[1] + 1
    seen = (labels[0] != 0) | (labels[1] != 0)
    codes = labels[0][seen].astype(np.int64) * width + labels[1][seen]
    table = np.bincount(codes, minlength=(counts[0] + 1) * width).reshape(counts[0] + 1, width)
    return table[1:, 1:], table[1:].sum(axis=1), table[:, 1:].sum(axis=0)


def detection(cases: Sequence[LesionMatch]) -> dict[str, float]:
    """Pool cases whose tumors are annotated: sensitivity, precision and F1 over lesions, and false alarms.

    ``dsc`` is the mean over found lesions. ``false_positive_rate`` is the share of tumor-free scans with a finding,
    ``false_positive_ml`` its mean volume over those scans. What has no denominator is NaN.
    """
    found, missed = sum(c.found for c in cases), sum(c.missed for c in cases)
    false_positive = sum(c.false_positive for c in cases)
    free = [c for c in cases if c.tumor_free]
    scores = [d for c in cases for d in c.dsc]
    return {
        "lesions": found + missed,
        "sensitivity": _ratio(found, found + missed),
        "precision": _ratio(found, found + false_positive),
        "f1": _ratio(2 * found, 2 * found + missed + false_positive),
        "dsc": _ratio(sum(scores), len(scores)),
        "tumor_free_scans": len(free),
        "false_positive_rate": _ratio(sum(c.false_positive > 0 for c in free), len(free)),
        "false_positive_ml": _ratio(sum(c.volume_false_positive_ml for c in free), len(free)),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
