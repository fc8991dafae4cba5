"""Is a CT in Hounsfield units, and is it clipped? Both are read off the histogram of its intensities.

Two voxels tell nothing: with padding of -2000 and one voxel of bone, values without the rescale intercept pass for HU.
What does tell is where the body lies: fat at about -100, organs and muscle from 0 to 200, little bone above 500, and
air that is darker than all of them.
"""

import math

import numpy as np

SAMPLES = 250_000
HOT_PERCENTILE = 99.5
"""Metal is no reason to look for the body among the brightest voxels."""
TISSUE_HU, LEAST_TISSUE = (-200.0, 300.0), 0.6
"""Range of soft tissue, and the share of the body that lies in it at least. Met: 0.77 and more, also where scans are
cropped to the spine; without rescale intercept, inverted or times ten at most 0.47."""
DENSE_HU, MOST_DENSE = 500.0, 0.05
"""Dense bone, and the share of all voxels but padding that it takes at most. Met: 0.009; in wrong units from 0.08."""
MOST_WHITE = 0.15
"""Share of voxels at the highest value, at most, of a CT that shows no air. Met: 0.05; inverted, air is: from 0.2."""
HIGHEST_MINIMUM, LOWEST_MAXIMUM = -20.0, 30.0
"""A CT of the abdomen in HU holds fat and, unless it is saturated, air (-1000), and organs. Gray values of 0 to 255,
stored values without the rescale intercept, z-scores and data scaled to [0, 1] or [-1, 1] hold no value below -20."""
BINS = 512
FLOOR_HU, CEILING_HU = (-900.0, -20.0), (100.0, 1000.0)
"""Where an image can be clipped such that tissues become alike: above air, and below dense bone."""
FLOOR_SHARE, CEILING_SHARE = 0.005, 0.0002
"""Shares of voxels at the lowest, or highest, value from which an image counts as clipped there: bone is rare, and
takes less than :data:`MOST_WHITE`."""

FAT_HU, HIGHEST_FAT = (-140.0, -62.0), 35.0
"""Where the peak of fat lies, and from where on a lowest peak is no longer one of fat. Met in 21 scans: -112 to -72; in
the same times 0.5: -52 to -32; plus 100: -12 to 28; minus 100 or times 2: -232 to -162."""
PEAKS_HU, PEAK_BIN_HU, LEAST_PEAK = (-400.0, 500.0), 5.0, 0.25
"""Soft tissue, the bins in which its peaks are sought, and the height of a peak as a share of the highest one."""
FEWEST_VOXELS = 50_000
"""In fewer, peaks are chance, or of voxels so large that tissue and gas share them."""


def not_hu(values: np.ndarray, low: float, high: float) -> str | None:
    """Say why a CT cannot be in Hounsfield units; None when it can.

    Args:
        values: the whole image, any shape and orientation; ``low`` and ``high`` are its smallest and largest value.
    """
    ends = f"a CT with values from {low:g} to {high:g}"
    if low > HIGHEST_MINIMUM or high < LOWEST_MAXIMUM:
        return ends
    if values.dtype.itemsize == 1:
        return f"{ends}, stored in 8 bits, which do not hold air and bone"
    sample = _sample(values)
    sample = sample[sample > sample.min()]  # the lowest value pads what was not reconstructed, or is air
    if not sample.size:
        return None
    body = _bright(sample)
    tissue = float(((body >= TISSUE_HU[0]) & (body <= TISSUE_HU[1])).mean())
    if tissue < LEAST_TISSUE:
        where = f"where soft tissue is, {TISSUE_HU[0]:g} to {TISSUE_HU[1]:g} HU"
        return f"{ends}: {100 * tissue:.0f} % of the body, median {np.median(body):.0f}, lies {where}"
    dense = float((sample > DENSE_HU).mean())
    if dense > MOST_DENSE:
        return f"{ends}: {100 * dense:.0f} % of the voxels are brighter than {DENSE_HU:g} HU, as bone alone is"
    white = float((sample == sample.max()).mean())
    if low > FLOOR_HU[0] and white > MOST_WHITE:
        return f"{ends}: {100 * white:.0f} % of the voxels have the highest value; is it inverted?"
    return None


def _bright(values: np.ndarray) -> np.ndarray:
    """Return the bright class by Otsu's threshold (1979): the body, if air is dark; the brightest are cut off."""
    values = np.minimum(values, np.percentile(values, HOT_PERCENTILE))
    counts, edges = np.histogram(values, BINS)
    middles = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below
    means = sums / np.maximum(below, 1), (sums[-1] - sums) / np.maximum(above, 1)
    between = below * above.astype(float) * (means[0] - means[1]) ** 2
    bright = values[values > edges[1:][int(np.argmax(between))]]
    return bright if bright.size else values


def clipping_limits(values: np.ndarray, low: float, high: float) -> tuple[float | None, float | None]:
    """Return the values below and above which a CT was clipped; None at an end where it was not.

    BTCV's images, for one, are saturated to [-125, 275] HU: gas reads as fat there, and bone as contrast agent.

    Args:
        values, low, high: as in :func:`not_hu`.
    """
    sample = _sample(values)
    shares = [float((sample == end).mean()) for end in (low, high)]
    floor = FLOOR_HU[0] < low < FLOOR_HU[1] and FLOOR_SHARE <= shares[0] < 1
    ceiling = CEILING_HU[0] < high < CEILING_HU[1] and CEILING_SHARE <= shares[1] <= MOST_WHITE
    return low if floor else None, high if ceiling else None


def misplaced_fat(values: np.ndarray) -> str | None:
    """Say where the fat of a CT seems to lie, when that is not at about -100 HU: values shifted, or times 0.5.

    Of the peaks of soft tissue in the histogram, fat's is the lowest. None where it lies in its place, and where there
    is too little of it to be seen: a peak above :data:`HIGHEST_FAT` is one of muscle.
    """
    sample = _sample(values)
    low, high = max(float(sample.min()), PEAKS_HU[0]), min(float(sample.max()), PEAKS_HU[1])
    inner = sample[(sample > low) & (sample < high)]  # without what was clipped
    if inner.size < FEWEST_VOXELS:
        return None
    counts, edges = np.histogram(inner, np.arange(PEAKS_HU[0], PEAKS_HU[1] + PEAK_BIN_HU, PEAK_BIN_HU))
    kernel = np.exp(-0.5 * (np.arange(-12, 13) / 3) ** 2)
    smooth = np.convolve(counts, kernel, "same")
    inside = smooth[1:-1]
    tops = (inside >= smooth[:-2]) & (inside > smooth[2:]) & (inside > LEAST_PEAK * smooth.max())
    peaks = ((edges[1:] + edges[:-1]) / 2)[1:-1][tops]
    if not peaks.size or FAT_HU[0] <= peaks[0] <= FAT_HU[1] or peaks[0] > HIGHEST_FAT:
        return None
    others = "".join(f", others at {peak:.0f}" for peak in peaks[1:2])
    return f"a CT whose lowest peak of soft tissue lies at {peaks[0]:.0f} HU{others}; fat lies at about -100 HU"


def _sample(values: np.ndarray) -> np.ndarray:
    """Return about :data:`SAMPLES` voxels, evenly spread."""
    step = max(1, math.floor((values.size / SAMPLES) ** (1 / 3)))
    return values[(slice(None, None, step),) * values.ndim].ravel()
