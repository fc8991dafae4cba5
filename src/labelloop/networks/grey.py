"""Intensities as the translator and all that follows see them: one grey scale from 0 to 255 for CT and MR.

Networks see the same scale from -1 to 1, ``(v - 127.5) / 127.5``: plans with ``grey`` prepare images so, and the
translator learns from, and is used on, images of such a plan. The released code of He et al. windows CT once more in
training, and z-scores it in use.
"""

import numpy as np

from labelloop.base.errors import CaseError
from labelloop.networks.settings import GreySettings

WHITE = 255.0
SMALLEST_RANGE = 1e-3


def to_grey(array: np.ndarray, modality: str, settings: GreySettings | None = None) -> np.ndarray:
    """Return intensities [z, y, x] on the scale from 0 to 255, float32 (He, section 2.1).

    CT (HU) is windowed at level 40 and width 400; MR goes from its lowest to its highest percentile.

    Raises:
        CaseError: for an array that is not finite.
        ValueError: for a modality other than CT and MR.
    """
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        found = f"{int((~np.isfinite(array)).sum())} voxels are not finite"
        raise CaseError("image_not_finite", "", found, "Write numbers there.")
    low, high = black_and_white(array, modality, settings or GreySettings())
    return np.clip((array - np.float32(low)) * np.float32(WHITE / (high - low)), 0, np.float32(WHITE))


def black_and_white(array: np.ndarray, modality: str, settings: GreySettings) -> tuple[float, float]:
    """Return the intensities of ``array`` that become 0 and 255.

    Raises:
        ValueError: for a modality other than CT and MR.
    """
    if modality == "CT":
        low = settings.ct_level_hu - settings.ct_width_hu / 2
        return low, low + settings.ct_width_hu
    if modality != "MR":
        raise ValueError(f"modality {modality!r}; known: CT, MR")
    low, high = (float(v) for v in np.percentile(array, settings.mr_percentiles))
    return low, max(high, low + SMALLEST_RANGE)


def from_network(seen: np.ndarray) -> np.ndarray:
    """Return what a network sees, or a translator says, on the scale from 0 to 255."""
    return (seen + 1) * np.float32(WHITE / 2)
