"""Intensities as the translator and all that follows see them: one grey scale from 0 to 255 for CT and MR.

The released code of He et al. windows CT once more in training, and z-scores it in use. Here training and use take the
same array, which :func:`to_grey` made, through the same two functions below.
"""

import numpy as np

from labelloop.adapt.settings import GreySettings

WHITE = 255.0


def to_grey(array: np.ndarray, modality: str, settings: GreySettings | None = None) -> np.ndarray:
    """Return intensities [z, y, x] on the scale from 0 to 255, float32 (He, section 2.1).

    CT (HU) is windowed at level 40 and width 400; MR goes from its lowest to its highest percentile.

    Raises:
        ValueError: for a modality other than CT and MR, or an array that is not finite.
    """
    settings = settings or GreySettings()
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} voxels are not finite (NaN or infinite)")
    if modality == "CT":
        low = settings.ct_level_hu - settings.ct_width_hu / 2
        high = low + settings.ct_width_hu
    elif modality == "MR":
        low, high = np.percentile(array, settings.mr_percentiles)
    else:
        raise ValueError(f"modality {modality!r}; known: CT, MR")
    return np.clip((array - np.float32(low)) * np.float32(WHITE / max(high - low, 1e-6)), 0, np.float32(WHITE))


def to_network(grey: np.ndarray) -> np.ndarray:
    """Return a grey-scale array as the translator sees it: from -1 to 1, ``(v - 127.5) / 127.5``."""
    return grey.astype(np.float32) / np.float32(WHITE / 2) - 1


def from_network(output: np.ndarray) -> np.ndarray:
    """Return what the translator says on the grey scale: the inverse of :func:`to_network`, within 0 and 255."""
    return np.clip((output + 1) * np.float32(WHITE / 2), 0, np.float32(WHITE))
