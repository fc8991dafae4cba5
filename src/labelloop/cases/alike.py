"""Scans that are the same, or nearly, in other bytes: LiTS holds the scans of 3D-IRCADb under another header.

What is trained on must not be tested on, and the bytes of files do not tell: the same voxels come recompressed, in
another format, with other axes or another header. :func:`voxel_fingerprint` sees through all of these. A scan that was
resampled or cropped has other voxels; :func:`profile` follows the body from foot to head, and :func:`find_alike` finds
scans along which it runs alike.
"""

import base64
import hashlib
from collections.abc import Mapping

import numpy as np

from labelloop.images.volume import Volume, canonical

FRACTION = 16
"""Intensities are compared in steps of 1/16."""
LARGEST_VALUE = 2.0**40

SLAB_MM, IN_PLANE_MM = 5.0, 2.0
BODY_HU, SHOWN_HU = -300.0, (-150.0, 250.0)
MR_BODY, MR_SHOWN = 0.2, (0.2, 1.0)
"""Shares of an MR's 90th percentile: above the first is body, and between both gray values are told apart."""
ROWS, COLUMNS = 8, 8
REACH = 1.7
"""The grid of a slab's hash reaches so many standard deviations of the body from its center."""
SLABS, LEAST_SLABS = 12, 6
"""So many slabs in a row (60 mm) must agree; all of a scan of fewer, tested or learned, if it has at least 30 mm."""
AREA_TOLERANCE = 0.12
"""Largest difference of the logarithms of two slabs' areas of body."""
MOST_BITS = 0.1
"""Largest share of bits in which runs of slabs differ. Met: at most 0.07 between a scan and what was resampled or
cropped of it, at least 0.15 between scans of different people (28 scans, CT and MR). Runs of six slabs are told apart
less widely; a part of an MR scan with thick slices may be missed."""
SCALE = 2000.0
"""Logarithms of areas are stored as whole numbers of 1/2000."""
_SLAB = np.dtype([("area", "<i2"), ("bits", "<u8")])


def voxel_fingerprint(values: np.ndarray) -> str:
    """Return a fingerprint of an image's voxels, whatever the order and direction of its axes, data type and header.

    It is made of the exact sums of every slice along every axis, to a sixteenth.
    """
    sums = [np.zeros(n, np.int64) for n in values.shape]
    for z, plane in enumerate(values):
        whole = np.rint(np.clip(plane * float(FRACTION), -LARGEST_VALUE, LARGEST_VALUE)).astype(np.int64)
        rows = whole.sum(1)
        sums[0][z] = rows.sum()
        sums[1] += rows
        sums[2] += whole.sum(0)
    either_way = sorted(min(line.tobytes(), line[::-1].tobytes()) for line in sums)
    return hashlib.sha256(b"|".join(either_way)).hexdigest()[:32]


def profile(image: Volume, modality: str) -> str:
    """Return a perceptual hash of the body of every 5 mm from foot to head, with its area, as text.

    The hash of a slab says where the image becomes brighter from left to right (dHash, Krawetz 2013), on a grid that
    the body's center and spread place. Air around the body does not count, so that a scan and a part of it, or the
    same on another grid, run alike.
    """
    oriented = canonical(image)
    spacing = oriented.geometry.spacing_zyx
    steps = [max(1, round(IN_PLANE_MM / s)) for s in spacing[1:]]
    array = oriented.array[:, :: steps[0], :: steps[1]]
    low, high, body = _levels(array, modality)
    pixel_cm2 = spacing[1] * spacing[2] * steps[0] * steps[1] / 100
    planes = np.array([_measured(np.clip(plane, low, high), plane > body, pixel_cm2) for plane in array])
    width = min(len(planes), max(1, round(SLAB_MM / spacing[0])))
    smooth = np.apply_along_axis(np.convolve, 0, planes, np.full(width, 1 / width), "valid")
    heights = (np.arange(len(smooth)) + (width - 1) / 2) * spacing[0]
    wanted = np.arange(heights[0], heights[-1] + 1e-6, SLAB_MM)
    slabs = np.stack([np.interp(wanted, heights, column) for column in smooth.T], axis=1)
    packed = np.empty(len(slabs), _SLAB)
    packed["area"] = np.rint(np.log(np.maximum(slabs[:, 0], 1e-3)) * SCALE)
    brighter = np.diff(slabs[:, 1:].reshape(-1, ROWS, COLUMNS + 1), axis=2) > 0
    packed["bits"] = np.packbits(brighter.reshape(len(slabs), -1), axis=1).view("<u8")[:, 0]
    return base64.b85encode(packed.tobytes()).decode()


def _levels(array: np.ndarray, modality: str) -> tuple[float, float, float]:
    """Return the intensities between which a hash tells apart, and the one that separates air from body."""
    if modality == "CT":
        return *SHOWN_HU, max(BODY_HU, float(array.min()))
    bright = float(np.percentile(array, 90))
    return MR_SHOWN[0] * bright, MR_SHOWN[1] * bright, MR_BODY * bright


def _measured(plane: np.ndarray, body: np.ndarray, pixel_cm2: float) -> np.ndarray:
    """Return the body's area in a plane (cm2) and the mean brightness of the cells of the grid that it places."""
    rows, columns = np.nonzero(body)
    cells = ROWS * (COLUMNS + 1)
    if rows.size < 10:
        return np.zeros(1 + cells)
    place = []
    for found, length, number in ((rows, plane.shape[0], ROWS), (columns, plane.shape[1], COLUMNS + 1)):
        away = (np.arange(length) - found.mean()) / max(float(found.std()), 1e-6)
        place.append(np.clip(np.floor((away / REACH + 1) / 2 * number), 0, number - 1).astype(int))
    cell = (place[0][:, None] * (COLUMNS + 1) + place[1]).ravel()
    sums, counts = np.bincount(cell, plane.ravel(), cells), np.bincount(cell, minlength=cells)
    return np.concatenate([[rows.size * pixel_cm2], sums / np.maximum(counts, 1)])


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b85decode(text), _SLAB)


def find_alike(tested: Mapping[str, str], learned: Mapping[str, str]) -> dict[str, str]:
    """Return, for each case of ``learned`` that runs along a case of ``tested``, the latter: ``{case: tested case}``.

    Runs of the tested cases are looked for along the learned ones; a learned case that is shorter than a run is looked
    for along the tested ones.

    Args:
        tested, learned: :func:`profile` of each case.
    """
    found: dict[str, str] = {}
    all_learned, all_tested = _Table(learned), _Table(tested)
    for case in sorted(tested):
        for name in all_learned.along(_unpacked(tested[case])):
            found.setdefault(name, case)
    for name in sorted(learned):
        own = _unpacked(learned[name])
        for case in all_tested.along(own) if len(own) < SLABS else ():
            found.setdefault(name, case)
    return found


class _Table:
    """The slabs of all cases, one case after the other, to look for runs in them.

    Args:
        profiles: :func:`profile` of each case.
    """

    def __init__(self, profiles: Mapping[str, str]):
        self._names = sorted(profiles)
        slabs = [_unpacked(profiles[name]) for name in self._names]
        self._slabs = np.concatenate([np.empty(0, _SLAB), *slabs])
        self._owner = np.repeat(np.arange(len(slabs)), [len(some) for some in slabs])
        self._by_area = np.argsort(self._slabs["area"], kind="stable")
        self._areas = self._slabs["area"][self._by_area]

    def along(self, own: np.ndarray) -> list[str]:
        """Return the cases, sorted, with a run of slabs that agrees with one of ``own``, which are all of a case."""
        found: set[int] = set()
        length = min(SLABS, len(own))
        for start in range(0, len(own) - length + 1, max(1, length // 2)) if length >= LEAST_SLABS else ():
            found.update(self._owners(own[start : start + length]))
        return [self._names[number] for number in sorted(found)]

    def _owners(self, run: np.ndarray) -> list[int]:
        """Return the numbers of the cases in which a run of slabs agrees with ``run``."""
        length, reach = len(run), AREA_TOLERANCE * SCALE
        low, high = np.searchsorted(self._areas, int(run["area"][0]) + np.array([-reach, reach]))
        rows = self._by_area[low:high]
        rows = rows[rows + length <= len(self._slabs)]
        rows = rows[self._owner[rows] == self._owner[rows + length - 1]]
        differing = np.zeros(len(rows), int)
        for step in range(length):
            there = self._slabs[rows + step]
            differing += np.bitwise_count(there["bits"] ^ run["bits"][step])
            near = np.abs(there["area"].astype(int) - int(run["area"][step])) <= reach
            near &= differing <= MOST_BITS * 64 * length
            rows, differing = rows[near], differing[near]
        return self._owner[rows].tolist()
