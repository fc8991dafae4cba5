"""What an image shows on the two sides of a label's surface, voxel by voxel, measured once for each class.

Labels and image are looked at on a grid of about ``GRID_MM``, on which the image is the mean of the voxels that each
one takes in. At each voxel of the surface stand the mean intensity just inside and just outside, within ``REACH_MM``.
The voxels that touch the surface hardly count: they hold partial volume, and what is left to the annotator's taste.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import cc3d
import edt
import numpy as np
from scipy.ndimage import uniform_filter

from labelloop.labels.facts import Box, LabelFacts

GRID_MM = 2.0
REACH_MM = 4.0
TOUCHING = 0.02
"""Weight of the voxels that touch the surface: they count where there are no others, as in thin structures."""
LEAST_VOXELS = 30
"""Fewer voxels of the grid (0.24 ml at 2 mm) have no inside to compare with."""
STEP_HU, STEP_SHARE = 20.0, 0.2
"""The least difference in intensity that is a border: in HU on CT, on MR as a share of the organ's median above air."""
DARK = 0.01
"""Quantile of an image that is its zero on MR: air. A few voxels may be darker, where an image was resampled."""


class Patch(NamedTuple):
    """A connected part of a surface.

    Args:
        area: in cm2.
        box: the voxels (z, y, x) of the label map that it takes in; None: there is none.
    """

    area: float
    box: Box | None = None


@dataclass(frozen=True)
class Surface:
    """The surface of a class, one entry a voxel of the grid.

    Args:
        places: index [n, 3] (z, y, x) in the grid.
        areas: area in cm2 of the voxel's faces that look outside [n, 6]: down, up, back, front, left, right.
        inner, outer: mean intensity just inside and just outside, [n].
        beside: mean intensity of the unlabeled voxels just outside, [n]; NaN where there are none.
        free: share of the voxels just outside that are unlabeled, [n].
        middle, low, high: median, 10 % and 90 % quantile of the intensity deep inside.
        dark: what the darkest of the image measures, air on MR.
        first: index (z, y, x) of the label map's voxel where the grid of ``places`` begins.
        steps: voxels of the label map that one of the grid takes in (z, y, x).
    """

    places: np.ndarray
    areas: np.ndarray
    inner: np.ndarray
    outer: np.ndarray
    beside: np.ndarray
    free: np.ndarray
    middle: float
    low: float
    high: float
    dark: float
    first: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def spread(self) -> float:
        """Standard deviation of the intensity inside, by its quantiles (those of a normal distribution: 2.563)."""
        return (self.high - self.low) / 2.563

    def step(self, modality: str, hu: float = STEP_HU, share: float = STEP_SHARE) -> float:
        """Return the least difference in intensity that is a border of this class; 0 where there is no scale.

        On MR it neither depends on the unit of the intensities nor on where they begin.
        """
        return hu if modality == "CT" else share * (self.middle - self.dark)

    def continuing(self, step: float) -> np.ndarray:
        """Return where [n] what lies beyond without a label looks like the inside, with no step in between."""
        alike = np.abs(self.beside - self.middle) <= max(step, 2 * self.spread)
        return (self.free > 0.5) & alike & (np.abs(self.beside - self.inner) <= step)

    def leaking(self, step: float) -> np.ndarray:
        """Return where [n] the inside looks like the outside, and unlike the organ."""
        unlike = np.abs(self.inner - self.middle) > max(1.5 * step, 3 * self.spread)
        return unlike & (np.abs(self.inner - self.outer) < step)

    def stepping(self, step: float) -> np.ndarray:
        """Return where [n] the two sides differ by more than a step in intensity: a border in the image."""
        return np.abs(self.inner - self.outer) > step

    def share(self, chosen: np.ndarray) -> float:
        """Return the share of the surface, in %, that the ``chosen`` voxels [n] take."""
        area = self.areas.sum(axis=1)
        return 100.0 * float(area[chosen].sum() / area.sum())

    def largest_patch(self, chosen: np.ndarray, flat: bool = False, areas: np.ndarray | None = None) -> Patch:
        """Return the largest connected patch of ``chosen`` voxels; one of no area where there are none.

        With ``flat``, only patches in one plane of the grid count, by the faces that look in its direction: a surface
        that was cut, or a label that ends where a window ended. ``areas``: what of the voxels' areas counts [n].
        """
        if not flat:
            return self._patch(chosen, self.areas.sum(axis=1) if areas is None else areas)
        sides = (self._patch(chosen & (self.areas[:, side] > 0), self.areas[:, side], side // 2) for side in range(6))
        return max(sides, key=lambda patch: patch.area)

    def _patch(self, chosen: np.ndarray, areas: np.ndarray, axis: int | None = None) -> Patch:
        found = self.places[chosen]
        if not len(found):
            return Patch(0.0)
        places = found - found.min(axis=0)
        marked = np.zeros(places.max(axis=0) + 1, np.uint8)
        # Planes side by side get different marks: cc3d joins equal ones only.
        marked[tuple(places.T)] = 1 if axis is None else 1 + places[:, axis] % 2
        parts = cc3d.connected_components(marked, connectivity=26)[tuple(places.T)]
        sizes = np.bincount(parts, weights=areas[chosen])
        largest = found[parts == sizes.argmax()]
        z, y, x = (
            slice(int(f + s * low), int(f + s * (high + 1)))
            for f, s, low, high in zip(self.first, self.steps, largest.min(axis=0), largest.max(axis=0), strict=True)
        )
        return Patch(float(sizes.max()), (z, y, x))


class Surfaces:
    """The surfaces of the classes of a label map on its image.

    Args:
        image: canonical intensities [z, y, x] on the grid of the labels.
    """

    def __init__(self, facts: LabelFacts, image: np.ndarray):
        self.steps = [max(1, round(GRID_MM / s)) for s in facts.spacing]
        self.spacing = facts.spacing * self.steps
        self.ids = facts.scheme.ids
        middles = tuple(slice((k - 1) // 2, n // k * k, k) for n, k in zip(image.shape, self.steps, strict=True))
        self.labels = np.ascontiguousarray(facts.labels[middles])
        self.image = _block_means(image, self.steps)
        self._boxes = {name: self._box(facts, name) for name in facts.found(facts.scheme.names)}
        self.of = cache(self._of)  # bound to this object, so that the measurements go when it goes

    @cached_property
    def _dark(self) -> float:
        return float(np.quantile(self.image[:, ::2, ::2], DARK))

    def _box(self, facts: LabelFacts, name: str) -> Box:
        pads = np.ceil((2 * REACH_MM + 2) / self.spacing).astype(int)
        z, y, x = (
            slice(max(0, b.start // k - int(p)), min(n, b.stop // k + 1 + int(p)))
            for b, k, p, n in zip(facts.box(name), self.steps, pads, self.labels.shape, strict=True)
        )
        return z, y, x

    def crop(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the mask of a class and the image in a box around it, on the grid."""
        box = self._boxes[name]
        return self.labels[box] == self.ids[name], self.image[box]

    def touched(self, name: str, low: float, high: float) -> np.ndarray:
        """Return the area (cm2) of each voxel of a class's surface that unlabeled voxels from low to high HU touch."""
        surface, box = self.of(name), self._boxes[name]
        if surface is None:
            return np.zeros(0)
        image = self.image[box]
        chosen = np.pad((self.labels[box] == 0) & (image >= low) & (image <= high), 1)
        area = np.zeros(len(surface.places))
        for axis in range(3):
            for side, step in enumerate((-1, 1)):
                beyond = surface.places + 1
                beyond[:, axis] += step
                area += surface.areas[:, 2 * axis + side] * chosen[tuple(beyond.T)]
        return area

    def _of(self, name: str) -> Surface | None:
        """Return the surface of a class; None where the class has too few voxels on the grid to have an inside."""
        mask, image = self.crop(name)
        labels = self.labels[self._boxes[name]]
        if np.count_nonzero(mask) < LEAST_VOXELS:
            return None
        depth = self._depth(mask)
        inside, outside = self._weights(depth), self._weights(self._depth(~mask))
        areas = self._areas(mask)
        places = np.argwhere(areas.any(axis=-1))
        at = tuple(places.T)
        (inner, near), (outer, far), (beside, free) = (
            self._means(image, weights, at) for weights in (inside, outside, outside * (labels == 0))
        )
        seen = (near > 0) & (far > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = free / far
        low, middle, high = self._quantiles(image, mask, depth)
        return Surface(
            places[seen], areas[at][seen], inner[seen], outer[seen], beside[seen], shares[seen], middle, low, high,
            self._dark, self.first_voxel(name), tuple(self.steps),
        )  # fmt: skip

    def voxels(self, name: str, box: Box) -> Box:
        """Return the voxels (z, y, x) of the label map that a box in the crop of a class takes in."""
        z, y, x = (
            slice(first + step * side.start, first + step * side.stop)
            for first, step, side in zip(self.first_voxel(name), self.steps, box, strict=True)
        )
        return z, y, x

    def first_voxel(self, name: str) -> tuple[int, ...]:
        """Return the index (z, y, x) of the label map's voxel where the crop of a class begins."""
        return tuple(side.start * step for side, step in zip(self._boxes[name], self.steps, strict=True))

    def _depth(self, mask: np.ndarray) -> np.ndarray:
        """Return the distance (mm) of each voxel of ``mask`` to what is not in it."""
        return edt.edt(mask, anisotropy=tuple(self.spacing), black_border=False, parallel=1)

    def _weights(self, depth: np.ndarray) -> np.ndarray:
        """Return the weights of voxels by their depth below the surface: none beyond its reach."""
        weights = np.where(depth > 1.45 * self.spacing[1], np.float32(1), np.float32(TOUCHING))
        weights[(depth == 0) | (depth > REACH_MM + 1)] = 0
        return weights

    def _areas(self, mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1, mode="edge")  # where the volume ends, nothing looks outside
        areas = np.zeros((*mask.shape, 6), np.float32)
        for axis in range(3):
            face = np.float32(self.spacing.prod() / self.spacing[axis] / 100)
            for side, shift in enumerate((1, -1)):
                beyond = np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1]
                areas[..., 2 * axis + side] = (mask & ~beyond) * face
        return areas

    def _means(self, image: np.ndarray, weights: np.ndarray, at: tuple) -> tuple[np.ndarray, np.ndarray]:
        """Return the weighted mean of the image around the voxels ``at``, NaN without weight, and the weight."""
        size = self._window()
        weight = uniform_filter(weights, size, mode="constant")[at]
        total = uniform_filter(weights * image, size, mode="constant")[at]
        weight[weight < 1e-5] = 0  # what uniform_filter's running sums leave of nothing
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(weight > 0, total / weight, np.nan), weight

    def _window(self) -> tuple[int, ...]:
        return tuple(2 * int(REACH_MM / s) + 1 for s in self.spacing)

    def _quantiles(self, image: np.ndarray, mask: np.ndarray, depth: np.ndarray) -> np.ndarray:
        depths = np.minimum(depth[mask], depth.size)  # mm; a class that fills its crop is endlessly deep
        deep = mask & (depth >= min(5.0, float(np.quantile(depths, 0.6))))
        means, _ = self._means(image, mask.astype(np.float32), np.nonzero(deep))
        return np.quantile(means, [0.1, 0.5, 0.9])


def _block_means(image: np.ndarray, steps: list[int]) -> np.ndarray:
    """Return the mean of each block of ``steps`` voxels (float32); what does not fill a block is left out."""
    shape = tuple(n // k for n, k in zip(image.shape, steps, strict=True))
    total = np.zeros(shape, np.float32)
    for start in np.ndindex(*steps):
        total += image[tuple(slice(s, n * k, k) for s, n, k in zip(start, shape, steps, strict=True))]
    return total / math.prod(steps)
