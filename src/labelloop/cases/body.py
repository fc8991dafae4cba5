"""Where the body is, and which end of it is up."""

from dataclasses import dataclass

import numpy as np

from labelloop.base.components import largest_component
from labelloop.images.volume import Volume, canonical
from labelloop.networks.grey import to_grey

BINS = 256
HOT_PERCENTILE = 99.5
AIR_AGAINST_TISSUE = 0.25
"""Air is darker than this share of the median tissue. Less contrast: the image shows no air at all."""
AIR_AT_BORDER = 0.25
"""Share of an image's border in plane that air takes at least."""
END_MM = 30.0
"""Height of the two ends that are compared; He's released code looks at 10 slices of 3 mm."""
DARK = {"CT": 0.1, "MR": 1.0}
"""What counts as dark, as a share of the way from black to the threshold of the body: on the window of a CT, air and
lung are black and fat is not; in MR lungs are as bright as noise."""


def otsu(values: np.ndarray) -> float:
    """Return the threshold that separates two classes with the largest variance between them (Otsu 1979).

    Values above it are the bright class. For values that are all equal, that value is returned.
    """
    counts, edges = np.histogram(values, bins=BINS)
    if edges[-1] <= edges[0] or np.ptp(values) == 0:
        return float(np.max(values))
    middles = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    sums = np.cumsum(counts * middles)
    mean_below = sums[:-1] / np.maximum(below[:-1], 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above[1:], 1)
    between = below[:-1] * above[1:].astype(float) * (mean_below - mean_above) ** 2
    return float(edges[1:-1][between == between.max()].mean())


def body_threshold(array: np.ndarray) -> float | None:
    """Return the grey value that separates air and body; None for an image without air around the body.

    Otsu's threshold of a saturated image, or of one with bright fat, lies within the body. The values are therefore
    clipped at it and divided once more, which leaves the threshold of a plain image between air and body. A few hot
    voxels do not count.
    """
    clipped = np.minimum(array, np.percentile(array, HOT_PERCENTILE))
    threshold = otsu(np.minimum(clipped, otsu(clipped)))
    dark = array <= threshold
    low = min(0.0, float(array.min()))
    if dark.all() or not dark.any():
        return None
    contrast = (np.median(array[dark]) - low) / max(float(np.median(array[~dark])) - low, 1e-6)
    rim = np.concatenate([dark[:, 0], dark[:, -1], dark[:, :, 0], dark[:, :, -1]], axis=1)
    return threshold if contrast < AIR_AGAINST_TISSUE and rim.mean() >= AIR_AT_BORDER else None


def body_mask(volume: Volume) -> np.ndarray:
    """Return the body as a mask [z, y, x], as stored: the largest part above the threshold of :func:`body_threshold`.

    Lungs and gas stay holes: they show where the body lies in z.

    Args:
        volume: any orientation; CT on the grey scale (``grey.to_grey``), where all kinds of padding are black.
    """
    oriented = canonical(volume).array
    threshold = body_threshold(oriented)
    if threshold is None:
        return np.ones(volume.array.shape, bool)
    return largest_component(volume.array > threshold, connectivity=6)


@dataclass(frozen=True)
class Upright:
    """Whether a volume is upside down, and on what grounds: the dark share of the body at either end."""

    upside_down: bool
    dark_low: float
    dark_high: float


def judge_upright(volume: Volume, modality: str) -> Upright:
    """Tell whether a volume is stored upside down: its lungs, dark, then lie at its lower end (He, section 2.1).

    The released code counts dark pixels of one slice at either end, in the box around the body, and was made for
    in-phase images. On other MR and on CT a single slice errs; here all slices of the outer 30 mm are taken, and the
    body is all that has body to its left and to its right, whether or not the chest wall is closed in the mask.

    Args:
        volume: any orientation, on the grey scale.
        modality: CT or MR.
    """
    oriented = canonical(volume)
    threshold = body_threshold(oriented.array)
    if threshold is None:
        return Upright(False, 0.0, 0.0)
    mask = canonical(Volume(body_mask(volume), volume.geometry)).array
    low = float(oriented.array.min())
    dark = oriented.array <= low + DARK[modality] * (threshold - low)
    slices = max(1, round(END_MM / oriented.geometry.spacing_zyx[0]))
    shares = [_dark_share(dark[part], mask[part]) for part in (slice(slices), slice(-slices, None))]
    return Upright(shares[0] > shares[1], *shares)


def stored_upside_down(volume: Volume, modality: str) -> bool:
    """Tell whether an image, with the intensities of its file, is upside down, when it is all that is known."""
    return judge_upright(Volume(to_grey(volume.array, modality), volume.geometry), modality).upside_down


def _dark_share(dark: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean over slices of the share of the body that is dark."""
    inside = np.logical_or.accumulate(mask, axis=2)
    inside &= np.logical_or.accumulate(mask[:, :, ::-1], axis=2)[:, :, ::-1]
    return float(np.mean((dark & inside).sum((1, 2)) / np.maximum(inside.sum((1, 2)), 1)))
