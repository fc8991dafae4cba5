"""Dice, volume and the exact normalized surface Dice (NSD) of two masks, in mm and ml.

NSD follows Nikolov et al. 2018 (arXiv:1809.04430): surfaces are made of marching-cubes elements at the corners between
voxels, each weighted by its area, and an element counts when the other surface has an element within the tolerance.
The numbers equal those of DeepMind's ``surface-distance``, which the official FLARE scripts use.
"""

from functools import lru_cache
from itertools import product

import edt
import numpy as np

Box = tuple[slice, slice, slice]
CORNERS = tuple(product((0, 1), repeat=3))
"""Corners of a 2x2x2 neighborhood; corner ``i`` is bit ``i`` of a neighbor code."""
FULL = 255
EDT_ERROR = 1e-3
"""Relative error granted to the single-precision squared distances of ``edt``; nearer calls are settled exactly."""


def dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the Dice similarity coefficient of two boolean masks; NaN when both are empty."""
    total = np.count_nonzero(truth) + np.count_nonzero(prediction)
    return 2.0 * np.count_nonzero(truth & prediction) / total if total else float("nan")


def volume_ml(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """Return the volume of a boolean mask in ml."""
    return np.count_nonzero(mask) * float(np.prod(spacing_mm)) / 1000.0


def surface_dice(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
    ignored: np.ndarray | None = None,
) -> float:
    """Return the area-weighted NSD of two boolean masks of the same shape [z, y, x].

    Where a mask ends at ignored voxels, nobody drew a surface: such elements do not count. They may be what an element
    that counts is near to, because nobody knows whether the true surface goes on from there.

    Args:
        truth, prediction: boolean masks; their order does not matter.
        spacing_mm: voxel size in array order (z, y, x).
        tolerance_mm: an element at exactly this distance still counts.
        ignored: boolean mask of voxels that are in neither mask because nobody knows the truth; None: there are none.

    Returns:
        NSD in 0..1; NaN when both masks are empty or no element counts, 0 when one mask is empty.

    Raises:
        ValueError: when the shapes differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"masks of shape {truth.shape} and {prediction.shape}")
    first, second = (_Surface.of(mask, spacing_mm, ignored) for mask in (truth, prediction))
    if first is None or second is None:
        return float("nan") if first is second else 0.0
    if not first.area_mm2 + second.area_mm2:
        return float("nan")
    reach = [int(tolerance_mm / s) + 1 for s in spacing_mm]
    low = np.maximum(first.low, second.low) - reach
    high = np.minimum(first.high, second.high) + reach
    if (low >= high).any():  # the two boxes are farther apart than the tolerance
        return 0.0
    # An element within the tolerance and the element that it is near to both lie in this region.
    areas, counted, borders = zip(*(s.window(low, high) for s in (first, second)), strict=True)
    close = sum(
        areas[i][_near(counted[i], borders[1 - i], tuple(spacing_mm), float(tolerance_mm))].sum() for i in (0, 1)
    )
    return float(close / (first.area_mm2 + second.area_mm2))


class _Surface:
    """Neighbor codes of a mask on its bounding box; ``low`` and ``high`` bound the box of corner points.

    ``border`` is where the surface is, ``counted`` the part of it that is not cut by ignored voxels.
    """

    def __init__(self, codes: np.ndarray, low: np.ndarray, areas: np.ndarray, cut: np.ndarray | None):
        self.codes, self.low, self.areas = codes, low, areas
        self.high = low + codes.shape
        self.border = (codes != 0) & (codes != FULL)
        self.counted = self.border if cut is None else self.border & ~cut
        self.area_mm2 = float(areas[codes[self.counted]].sum())

    @classmethod
    def of(
        cls, mask: np.ndarray, spacing_mm: tuple[float, float, float], ignored: np.ndarray | None
    ) -> "_Surface | None":
        box = bounding_box(mask)
        if box is None:
            return None
        low, areas = np.array([s.start for s in box]), surfel_areas(tuple(map(float, spacing_mm)))
        if ignored is None:
            return cls(neighbor_codes(mask[box]), low, areas, None)
        wide = np.pad(ignored, 1)[tuple(slice(s.start, s.stop + 2) for s in box)]  # the box and a voxel around it
        return cls(neighbor_codes(mask[box]), low, areas, neighbor_codes(wide)[1:-1, 1:-1, 1:-1] != 0)

    def window(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the elements between ``low`` and ``high``: areas of those that count, their places, and all places.

        Places are boolean arrays of the region.
        """
        start, stop = np.maximum(low, self.low), np.minimum(high, self.high)
        counted, border = np.zeros(high - low, bool), np.zeros(high - low, bool)
        if (start >= stop).any():
            return np.zeros(0), counted, border
        mine = tuple(slice(a, b) for a, b in zip(start - self.low, stop - self.low, strict=True))
        there = tuple(slice(a, b) for a, b in zip(start - low, stop - low, strict=True))
        counted[there], border[there] = self.counted[mine], self.border[mine]
        return self.areas[self.codes[mine][self.counted[mine]]], counted, border


def bounding_box(mask: np.ndarray) -> Box | None:
    """Return the slices of the smallest box that holds a boolean mask; None when it is empty."""
    box: list[slice] = []
    for axis in range(3):
        # Each axis looks only at what the former ones left: masks are small in large volumes.
        seen = np.any(mask[(*box,)], axis=tuple(a for a in range(3) if a != axis))
        if not seen.any():
            return None
        box.append(slice(int(seen.argmax()), len(seen) - int(seen[::-1].argmax())))
    z, y, x = box
    return z, y, x


def neighbor_codes(mask: np.ndarray) -> np.ndarray:
    """Return the 2x2x2 neighbor code (uint8) at every voxel corner of a mask: one more than voxels along each axis.

    What lies outside the mask's array is empty, so that a mask is closed where the array ends.
    """
    codes: np.ndarray = np.pad(mask, 1).astype(np.uint8)
    for axis, shift in ((2, 1), (1, 2), (0, 4)):  # bits 0-1 along x, 0-3 with y, 0-7 with z: the order of CORNERS
        here, next_ = (np.moveaxis(codes, axis, 0)[s] for s in (slice(None, -1), slice(1, None)))
        codes = np.moveaxis(here | (next_ << shift), 0, axis)
    return np.ascontiguousarray(codes)


def _near(here: np.ndarray, there: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> np.ndarray:
    """Say for each True of ``here`` (in array order) whether a True of ``there`` is within ``tolerance`` mm."""
    squared = edt.edtsq(~there, anisotropy=spacing, black_border=False, parallel=1)[here]
    limit, margin = tolerance**2, EDT_ERROR * max(tolerance**2, 1e-6)
    near = squared <= limit - margin
    offsets = _offsets_at(spacing, tolerance, 2 * margin)
    unsure = np.flatnonzero(~near & (squared <= limit + margin)) if len(offsets) else ()
    if len(unsure):
        reach = np.abs(offsets).max(axis=0)
        padded = np.pad(there, [(r, r) for r in reach])
        points = np.argwhere(here)[unsure] + reach
        for offset in offsets:
            near[unsure] |= padded[tuple((points + offset).T)]
    return near


@lru_cache(maxsize=64)
def _offsets_at(spacing: tuple[float, ...], tolerance: float, margin: float) -> np.ndarray:
    """Return the grid offsets [n, 3] not farther than ``tolerance`` but so close to it that float32 cannot tell.

    Distances are computed as scipy does on an array in x, y, z order, in double precision, for the same verdict.
    """
    grids = np.meshgrid(*(np.arange(-r, r + 1) for r in (int(tolerance / s) + 1 for s in spacing)), indexing="ij")
    z, y, x = ((grid * s) ** 2 for grid, s in zip(grids, spacing, strict=True))
    squared = x + y + z
    chosen = (np.sqrt(squared) <= tolerance) & (np.abs(squared - tolerance**2) <= margin)
    return np.argwhere(chosen) - np.array([g.shape[i] // 2 for i, g in enumerate(grids)])


@lru_cache(maxsize=64)
def surfel_areas(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return the surface area (mm², float64 [256]) that belongs to each neighbor code on a grid of ``spacing_mm``."""
    z, y, x = spacing_mm
    stretch = np.array([y * x, z * x, z * y])  # of an area vector, when its axes are stretched
    return np.array([np.linalg.norm(normals * stretch, axis=1).sum() for normals in _surfel_normals()])


@lru_cache(maxsize=1)
def _surfel_normals() -> tuple[np.ndarray, ...]:
    """Return for each code the area vectors [n, 3] of its marching-cubes triangles in a unit cube.

    The minority of corners is cut off, each edge-connected group by one polygon through the middles of the edges that
    leave it (so corners that only share a face's diagonal stay apart). A polygon that is not flat is cut into the
    triangle fan of largest area. These rules give the areas of DeepMind's table for every code and spacing.
    """
    return tuple(_normals_of_code(code) for code in range(FULL + 1))


def _normals_of_code(code: int) -> np.ndarray:
    inside = {corner for bit, corner in enumerate(CORNERS) if code >> bit & 1}
    if len(inside) > 4:
        inside = set(CORNERS) - inside
    fans = [_largest_fan(_polygon(group)) for group in _groups(inside)]
    return np.concatenate(fans) if fans else np.zeros((0, 3))


def _adjacent(corner: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tuple(c ^ (axis == a) for axis, c in enumerate(corner)) for a in range(3)]


def _groups(corners: set[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Split corners into groups connected along edges."""
    left, groups = sorted(corners), []
    while left:
        group = [left.pop()]
        for corner in group:  # grows while it is walked
            group += [c for c in _adjacent(corner) if c in left]
            left = [c for c in left if c not in group]
        groups.append(group)
    return groups


def _polygon(group: list[tuple[int, ...]]) -> np.ndarray:
    """Return the middles of the edges that leave a group, in order around it: neighbors share a face of the cube."""
    left = []
    for inside in group:
        left += [(np.array(inside) + outside) / 2 for outside in _adjacent(inside) if outside not in group]
    polygon = [left.pop()]
    while left:
        on_same_face = [((p == polygon[-1]) & (p != 0.5)).any() for p in left]
        polygon.append(left.pop(on_same_face.index(True)))
    return np.array(polygon)


def _largest_fan(polygon: np.ndarray) -> np.ndarray:
    """Return the area vectors of the triangle fan, from any vertex, of largest total area."""
    turns = [np.roll(polygon, i, axis=0) for i in range(len(polygon))]
    fans = [np.cross(p[1:-1] - p[0], p[2:] - p[0]) / 2 for p in turns]
    return max(fans, key=lambda fan: np.linalg.norm(fan, axis=1).sum())
