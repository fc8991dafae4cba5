"""What rules and cleaning steps measure on a label map: boxes, centers, components and distances, computed once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import cc3d
import edt
import numpy as np
from scipy.ndimage import minimum

from labelloop.base.classes import IGNORED, ClassScheme
from labelloop.base.components import Connectivity, connected_components
from labelloop.images.boxes import Box
from labelloop.images.volume import Geometry

FOV_MARGIN_MM = 6.0
"""A structure that ends this close to the first or last slice, or one slice before it, counts as cut by the field of
view: annotators often leave out the outermost slice (all 16 BTCV aortas stop one slice, 3 or 5 mm, before the last;
without the margin the ascending aorta of five of them, joined above the volume, counts as a detached part)."""
AXES = {"z": 0, "y": 1, "x": 2}


@dataclass(frozen=True)
class Components:
    """Connected components of a structure, in the crop ``box``: ``labels`` numbers them from 1.

    ``centers_z`` are their centroids along z, in voxels of the whole label map.
    """

    labels: np.ndarray
    box: Box
    voxels: np.ndarray
    boxes: tuple[Box, ...]
    centers_z: tuple[float, ...]

    @cached_property
    def by_size(self) -> list[int]:
        """Component numbers, the largest first."""
        return [int(i) + 1 for i in np.argsort(-self.voxels, kind="stable")]


class LabelFacts:
    """A canonical label map [z, y, x] and what has been measured on it.

    Args:
        labels: uint8 class ids; some voxels may be ignored.
        geometry: canonical geometry of ``labels`` (mm).
    """

    def __init__(self, labels: np.ndarray, geometry: Geometry, scheme: ClassScheme):
        if labels.shape != geometry.shape:
            raise ValueError(f"labels of shape {labels.shape} on a grid of shape {geometry.shape} (z, y, x)")
        self.labels, self.geometry, self.scheme = np.ascontiguousarray(labels), geometry, scheme
        self.spacing = np.asarray(geometry.spacing_zyx)
        self.voxel_ml = geometry.voxel_ml
        self._statistics = cc3d.statistics(self.labels)
        # Bound to this object, so that the measurements go when it goes.
        self.components = cache(self._components)
        self.joint_components = cache(self._joint_components)

    @property
    def height_mm(self) -> float:
        """How far the image reaches along z, in mm."""
        return float(self.labels.shape[0] * self.spacing[0])

    def voxels(self, name: str) -> int:
        """Voxels of a class."""
        counts, index = self._statistics["voxel_counts"], self.scheme.ids[name]
        return int(counts[index]) if index < len(counts) else 0

    def ml(self, name: str) -> float:
        """Volume of a class in ml."""
        return self.voxels(name) * self.voxel_ml

    def found(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of ``names`` that have voxels."""
        return tuple(name for name in names if self.voxels(name))

    def box(self, names: str | Sequence[str]) -> Box:
        """Bounding box of one or several classes (at least one must have voxels)."""
        names = self.found([names] if isinstance(names, str) else names)
        return hull([self._statistics["bounding_boxes"][self.scheme.ids[name]] for name in names])

    def center_mm(self, names: str | Sequence[str]) -> np.ndarray:
        """Center of mass (z, y, x) in mm from the first voxel's center, of one class or several together."""
        names = self.found([names] if isinstance(names, str) else names)
        weights = [self.voxels(name) for name in names]
        centers = [self._statistics["centroids"][self.scheme.ids[name]] for name in names]
        return np.average(centers, axis=0, weights=weights) * self.spacing

    def mask(self, names: str | Sequence[str], box: Box | None = None) -> np.ndarray:
        """Boolean mask of one or several classes in ``box`` (default: their own box)."""
        names = (names,) if isinstance(names, str) else tuple(names)
        crop = self.labels[box or self.box(names)]
        if len(names) == 1:
            return crop == self.scheme.ids[names[0]]
        table = np.zeros(256, bool)
        table[[self.scheme.ids[name] for name in names]] = True
        return table[crop]

    def sides(self, box: Box) -> frozenset[str]:
        """Sides of the field of view that ``box`` touches ("z-", "z+", "y-", ...); see ``FOV_MARGIN_MM``."""
        touched = set()
        for axis, number in AXES.items():
            margin = max(1, int(FOV_MARGIN_MM // self.spacing[number])) if axis == "z" else 0
            if box[number].start <= margin:
                touched.add(f"{axis}-")
            if box[number].stop >= self.labels.shape[number] - margin:
                touched.add(f"{axis}+")
        return frozenset(touched)

    def cut(self, names: str | Sequence[str]) -> bool:
        """Say whether the field of view may cut a class, or one of several."""
        names = self.found([names] if isinstance(names, str) else names)
        return any(self.sides(self.box(name)) for name in names)

    @property
    def ignores(self) -> bool:
        """Whether there are voxels of which nobody knows the class."""
        return len(self._statistics["voxel_counts"]) > IGNORED

    def beside_ignored(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of ``names`` of which voxels may be ignored: some are in their box or beside it, or nothing is seen."""
        if not self.ignores:
            return ()
        return tuple(name for name in names if not self.voxels(name) or self._ignores_in(self.box(name)))

    def _ignores_in(self, box: Box) -> bool:
        """Whether voxels in a box, or beside it, are ignored."""
        return bool((self.labels[self.padded(box, self.geometry.spacing_zyx)] == IGNORED).any())

    def _components(self, name: str, connectivity: Connectivity = 26) -> Components:
        return self._joint_components((name,), connectivity)

    def _joint_components(self, names: tuple[str, ...], connectivity: Connectivity = 26) -> Components:
        box = self.box(names)
        labels = connected_components(self.mask(names, box), connectivity)
        statistics = cc3d.statistics(labels)
        boxes = tuple(shifted(b, box) for b in statistics["bounding_boxes"][1:])
        centers = tuple(float(center[0]) + box[0].start for center in statistics["centroids"][1:])
        return Components(labels, box, np.asarray(statistics["voxel_counts"][1:]).astype(np.int64), boxes, centers)

    def distances_mm(
        self, parts: Components, numbers: Sequence[int], names: Sequence[str], reach_mm: float
    ) -> dict[int, float]:
        """Smallest distance (mm, between voxel centers) of each of some ``parts``, by number, to the classes ``names``.

        Distances up to ``reach_mm`` are exact; beyond it the answer is infinity. Only as much of the volume is
        looked at as it takes: most structures touch their neighbors. All parts are looked at together, for a bad label
        may have thousands.
        """
        found = dict.fromkeys(numbers, float("inf"))
        for reach in sorted({r for r in (6.0, 25.0) if r < reach_mm} | {reach_mm}):
            left = [number for number in numbers if np.isinf(found[number])]
            if not left:
                break
            box = hull([parts.boxes[number - 1] for number in left])
            wide = self.padded(box, reach)
            reference = self.mask(names, wide)
            if not reference.any():
                continue
            distances = edt.edt(~reference, anisotropy=tuple(self.spacing), black_border=False, parallel=1)
            near = distances[unshifted(box, wide)]
            nearest = minimum(near, parts.labels[unshifted(box, parts.box)], left)
            found |= {n: float(mm) for n, mm in zip(left, nearest, strict=True) if mm <= reach}
        return found

    def padded(self, box: Box, margin_mm: float | Sequence[float]) -> Box:
        """Return ``box`` widened by ``margin_mm`` (one number, or one per axis) inside the volume."""
        pads = np.ceil(np.broadcast_to(margin_mm, 3) / self.spacing).astype(int)
        sizes = self.labels.shape
        z, y, x = (
            slice(max(0, b.start - int(p)), min(n, b.stop + int(p))) for b, p, n in zip(box, pads, sizes, strict=True)
        )
        return z, y, x

    def abdomen_box(self, names: Sequence[str], above_mm: float, below_mm: float, aside_mm: float) -> Box:
        """Return the box of the classes ``names``, widened in mm upwards, downwards and to all four sides."""
        box = self.padded(self.box(names), (0.0, aside_mm, aside_mm))
        low, high = np.ceil(np.array([below_mm, above_mm]) / self.spacing[0]).astype(int)
        z = slice(max(0, box[0].start - int(low)), min(self.labels.shape[0], box[0].stop + int(high)))
        return (z, box[1], box[2])


def hull(boxes: Sequence[Box]) -> Box:
    """Return the smallest box that holds all of several boxes."""
    z, y, x = (slice(min(b[a].start for b in boxes), max(b[a].stop for b in boxes)) for a in range(3))
    return z, y, x


def largest_box(mask: np.ndarray, connectivity: Connectivity = 26) -> Box:
    """Return the box of the largest connected part of a mask [z, y, x] that is not empty."""
    found = cc3d.statistics(connected_components(mask, connectivity))
    z, y, x = found["bounding_boxes"][1 + int(found["voxel_counts"][1:].argmax())]
    return z, y, x


def shifted(box: Box, by: Box) -> Box:
    """Return a box that is counted from the first voxel of the box ``by``, counted as ``by`` is."""
    z, y, x = (slice(b.start + o.start, b.stop + o.start) for b, o in zip(box, by, strict=True))
    return z, y, x


def unshifted(box: Box, by: Box) -> Box:
    """Return a box, counted as the box ``by`` is, as it is counted from the first voxel of that."""
    z, y, x = (slice(b.start - o.start, b.stop - o.start) for b, o in zip(box, by, strict=True))
    return z, y, x


def outside(mask: np.ndarray, box: Box, allowed: Box) -> np.ndarray:
    """Return ``mask`` (a crop at ``box``) without its voxels inside the box ``allowed``."""
    left = mask.copy()
    left[
        tuple(slice(max(a.start - b.start, 0), max(a.stop - b.start, 0)) for a, b in zip(allowed, box, strict=True))
    ] = False
    return left
