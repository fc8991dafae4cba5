"""A case whose labels are spoiled, and what kinds of errors (:mod:`labelloop.labels.corrupt`) measure on it.

All is on canonical arrays [z, y, x] (z upwards, y to the front, x to the patient's right); lengths are in mm.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cc3d
import edt
import numpy as np

REACH_MM = 60.0
"""What a class takes in lies within this distance of one point."""


class Impossible(Exception):  # noqa: N818 - no fault: the patient lacks what the error takes
    """Raised by a kind of error that the patient cannot have."""


@dataclass
class Draft:
    """A case being spoiled.

    Args:
        labels, image: canonical arrays [z, y, x]; labels are altered in place or replaced, the image is not.
        spacing: voxel size in mm (z, y, x).
        ids: class ids by name.
        other: canonical labels of another patient.
    """

    labels: np.ndarray
    image: np.ndarray
    spacing: np.ndarray
    ids: Mapping[str, int]
    random: np.random.Generator
    other: np.ndarray | None = None

    def mask(self, name: str) -> np.ndarray:
        """Return the voxels of a class [z, y, x]. Raises Impossible for a class that the patient's map lacks."""
        if name not in self.ids:
            raise Impossible(f"no {name}")
        return self.labels == self.ids[name]

    def ml(self, name: str) -> float:
        """Return the volume of a class."""
        return float(np.count_nonzero(self.mask(name)) * self.spacing.prod() / 1000)

    def paint(self, name: str, where: np.ndarray) -> None:
        """Give voxels to a class."""
        self.labels[where] = self.ids[name]

    def erase(self, name: str, where: np.ndarray | None = None) -> None:
        """Take voxels from a class, by default all."""
        mask = self.mask(name)
        self.labels[mask if where is None else mask & where] = 0

    def pick(self, where: np.ndarray) -> np.ndarray:
        """Return a random voxel of a mask."""
        places = np.flatnonzero(where)
        return np.array(np.unravel_index(places[self.random.integers(len(places))], where.shape))

    def ball(self, center: Sequence[int] | np.ndarray, radius_mm: float) -> np.ndarray:
        """Return the mask of a ball around a voxel."""
        return squared_mm(tuple(slice(0, n) for n in self.labels.shape), center, self.spacing) <= radius_mm**2

    def one_of(self, names: Sequence[str]) -> str:
        """Return one of the classes that have voxels, drawn. Raises Impossible where none has."""
        found = [name for name in names if name in self.ids and self.mask(name).any()]
        if not found:
            raise Impossible(f"no {' or '.join(names)}")
        return str(self.random.choice(found))

    def move(self, name: str, by_mm: Sequence[float] | np.ndarray) -> None:
        """Move a class, over whatever lies there; what leaves the volume is lost."""
        mask, steps = self.mask(name), np.rint(np.asarray(by_mm) / self.spacing).astype(int)
        self.erase(name)
        places = np.argwhere(mask) + steps
        inside = ((places >= 0) & (places < self.labels.shape)).all(axis=1)
        self.labels[tuple(places[inside].T)] = self.ids[name]

    def drawn(self, low: float, high: float) -> float:
        """Return a number between two bounds; nothing is drawn where they are equal."""
        return low if low == high else float(self.random.uniform(low, high))


Kind = Callable[[Draft], None]
"""A kind of error: it spoils a draft, or raises Impossible."""


def draft_of(
    labels: np.ndarray,
    image: np.ndarray,
    spacing: Sequence[float],
    ids: Mapping[str, int],
    drawn_by: tuple[int, str, str],
    other: np.ndarray | None = None,
) -> Draft:
    """Return a draft with a copy of the labels; what is drawn follows from (seed, case, kind of error) alone."""
    seed, case, kind = drawn_by
    random = np.random.default_rng([seed, zlib.crc32(case.encode()), zlib.crc32(kind.encode())])
    return Draft(labels.copy(), image, np.asarray(spacing, float), ids, random, other)


def there(draft: Draft, *names: str) -> None:
    """Raise Impossible unless all classes have voxels."""
    missing = [name for name in names if name not in draft.ids or not draft.mask(name).any()]
    if missing:
        raise Impossible(f"no {', '.join(missing)}")


def nearest(draft: Draft, name: str) -> str:
    """Return the class whose center is nearest to that of a class. Raises Impossible where there is no other."""
    there(draft, name)
    found = cc3d.statistics(np.ascontiguousarray(draft.labels))
    counts, centers = found["voxel_counts"], np.asarray(found["centroids"]) * draft.spacing
    others = {n: i for n, i in draft.ids.items() if n != name and i < len(counts) and counts[i]}
    if not others:
        raise Impossible(f"no class beside {name}")
    own = centers[draft.ids[name]]
    return min(others, key=lambda n: (float(np.linalg.norm(centers[others[n]] - own)), n))


def distance(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the distance (mm) of each voxel of a mask to what is not in it; the volume's border counts as inside."""
    found = np.zeros(mask.shape, np.float32)
    if mask.any():
        box = around(mask, spacing, 0.0)  # with a voxel to all sides, beyond which nothing is nearer
        crop = np.ascontiguousarray(mask[box])
        found[box] = edt.edt(crop, anisotropy=tuple(spacing), black_border=False, parallel=1)
    return found


def around(mask: np.ndarray, spacing: np.ndarray, margin_mm: float) -> tuple[slice, ...]:
    """Return the box of a mask that is not empty, ``margin_mm`` and a voxel wider."""
    pads = np.ceil(margin_mm / spacing).astype(int) + 1
    box = []
    for axis, (pad, size) in enumerate(zip(pads, mask.shape, strict=True)):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(int(filled[0]) - int(pad), 0), min(int(filled[-1]) + 1 + int(pad), size)))
    return tuple(box)


def box_around(center: np.ndarray, reach_mm: float, spacing: np.ndarray, shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the box of all voxels within ``reach_mm`` of a voxel, inside a volume of a shape."""
    reach = np.ceil(reach_mm / spacing).astype(int)
    low, high = np.maximum(center - reach, 0), np.minimum(center + reach + 1, shape)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def squared_mm(box: Sequence[slice], center: Sequence[int] | np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the squared distance (mm2) of each voxel of a box to a voxel."""
    grid = np.ogrid[tuple(box)]
    z, y, x = (((g - c) * s) ** 2 for g, c, s in zip(grid, center, spacing, strict=True))
    return z + y + x


def ball_of(draft: Draft, center: np.ndarray, ml: float, where: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the ``ml`` of ``where`` that lie nearest to a voxel, within 60 mm; and whether there is that much."""
    box = box_around(center, REACH_MM, draft.spacing, where.shape)
    squares = np.where(where[box], squared_mm(box, center, draft.spacing), np.inf).astype(np.float32)
    number = round(ml * 1000 / float(np.prod(draft.spacing)))
    if number >= squares.size:
        return np.zeros(where.shape, bool), False
    farthest = min(float(np.partition(squares, number, axis=None)[number]), float(np.finfo(np.float32).max))
    chosen = np.zeros(where.shape, bool)
    chosen[box] = squares <= farthest
    return chosen, farthest <= REACH_MM**2
