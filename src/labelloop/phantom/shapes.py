"""Solids and smooth random fields that can be evaluated at any point, so that a patient has no resolution.

Points are three arrays (x, y, z) of one shape in mm, RAS: x to the right, y to the front, z up. A distance is
negative inside, in mm, exact for tubes and close to exact near the surface of the others. Only elementwise
arithmetic is used (no BLAS), so that the same arguments give the same bytes with any number of threads.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import numpy as np

Points = tuple[np.ndarray, np.ndarray, np.ndarray]
REACH_MM = 320.0
"""How far from the origin a field varies."""


class Shape(Protocol):
    """A solid: its distance, and the box (low and high corner, mm) outside which it does not reach."""

    def distance(self, points: Points) -> np.ndarray:
        """Return the signed distance (mm) at ``points``."""
        ...

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high corner, (x, y, z) in mm."""
        ...


def turn(x: float = 0, y: float = 0, z: float = 0) -> np.ndarray:
    """Return the 3 x 3 matrix of turns by degrees around the x, then y, then z axis."""
    matrix = np.eye(3)
    for axis, degrees in enumerate((x, y, z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = [a for a in range(3) if a != axis]
        step = np.eye(3)
        step[i, i], step[j, j], step[i, j], step[j, i] = c, c, -s, s
        matrix = (step[:, :, None] * matrix[None]).sum(1)
    return matrix


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with its own axes turned by ``turned``."""

    center: np.ndarray
    radii: tuple[float, float, float]
    turned: np.ndarray

    def distance(self, points: Points) -> np.ndarray:
        """First-order distance k0 (k0 - 1) / k1 with k0 = |p/r| and k1 = |p/r^2|."""
        moved = [p - np.float32(c) for p, c in zip(points, self.center, strict=True)]
        k0, k1 = np.float32(0), np.float32(0)
        for row, radius in zip(self.turned.T.astype(np.float32), self.radii, strict=True):
            part = (row[0] * moved[0] + row[1] * moved[1] + row[2] * moved[2]) / np.float32(radius)
            k0 = k0 + part * part
            k1 = k1 + (part / np.float32(radius)) ** 2
        k0 = np.sqrt(k0)
        return k0 * (k0 - 1) / np.sqrt(np.maximum(k1, np.float32(1e-9)))

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        reach = np.sqrt(((self.turned * np.asarray(self.radii)) ** 2).sum(1))
        return self.center - reach, self.center + reach


@dataclass(frozen=True)
class Tube:
    """A tube of varying radius around a polyline: ``line`` (n, 3) and ``radii`` (n,), both in mm."""

    line: np.ndarray
    radii: np.ndarray

    def distance(self, points: Points) -> np.ndarray:
        pieces = zip(self.line[:-1], self.line[1:], self.radii[:-1], self.radii[1:], strict=True)
        distances = (_to_piece(points, *piece) for piece in pieces)
        return reduce(lambda nearest, other: np.minimum(nearest, other, out=nearest), distances)

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        return (self.line - self.radii[:, None]).min(0), (self.line + self.radii[:, None]).max(0)


def _to_piece(points: Points, start: np.ndarray, end: np.ndarray, r0: float, r1: float) -> np.ndarray:
    """Return the distance to one straight piece of a tube, whose radius goes from ``r0`` to ``r1``."""
    step = (end - start).astype(np.float32)
    away = [p - np.float32(s) for p, s in zip(points, start, strict=True)]
    along = sum(a * s for a, s in zip(away, step, strict=True)) / np.float32(max((step**2).sum(), 1e-6))
    np.clip(along, 0, 1, out=along)
    square = sum((a - along * s) ** 2 for a, s in zip(away, step, strict=True))
    return np.sqrt(square) - (np.float32(r0) + along * np.float32(r1 - r0))


def smooth_tube(knots: np.ndarray, radii: list[float], parts: int = 4) -> Tube:
    """Return a tube through ``knots`` (n, 3), rounded by a Catmull-Rom spline with ``parts`` segments a knot."""
    knots = np.asarray(knots, float)
    ends = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    t = (np.arange(parts) / parts)[:, None]
    pieces = [
        (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - 3 * c + d - a) * t**3) / 2
        for a, b, c, d in zip(ends[:-3], ends[1:-2], ends[2:-1], ends[3:], strict=True)
    ]
    place = np.arange(len(knots) * parts - parts + 1) / parts
    return Tube(np.concatenate([*pieces, knots[-1:]]), np.interp(place, np.arange(len(knots)), radii))


@dataclass(frozen=True)
class Union:
    """Several solids as one, their seams rounded over ``blend`` mm (polynomial smooth minimum)."""

    parts: tuple[Shape, ...]
    blend: float = 0.0

    def distance(self, points: Points) -> np.ndarray:
        total = self.parts[0].distance(points)
        for part in self.parts[1:]:
            other = part.distance(points)
            if self.blend:
                h = np.maximum(self.blend - np.abs(total - other), 0) / np.float32(self.blend)
                total = np.minimum(total, other) - h * h * np.float32(self.blend / 4)
            else:
                total = np.minimum(total, other)
        return total

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        lows, highs = zip(*(part.box for part in self.parts), strict=True)
        return np.min(lows, axis=0) - self.blend / 4, np.max(highs, axis=0) + self.blend / 4


@dataclass(frozen=True)
class Without:
    """``shape`` with a hollow taken out of it, e.g. a kidney without its sinus."""

    shape: Shape
    hollow: Shape

    def distance(self, points: Points) -> np.ndarray:
        return np.maximum(self.shape.distance(points), -self.hollow.distance(points))

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        return self.shape.box


@dataclass(frozen=True)
class Field:
    """A smooth random function: uniform cubic B-spline over ``values`` [z, y, x], one every ``step_mm``."""

    values: np.ndarray
    step_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator, step_mm: float, deviation: float) -> "Field":
        """Draw a field of mean 0 and about the given standard deviation over +-:data:`REACH_MM` around the origin."""
        count = int(np.ceil(2 * REACH_MM / step_mm)) + 4
        # Mean of the sum of squared B-spline weights is 0.479 an axis: white values shrink by its 1.5th power.
        return cls(rng.standard_normal((count,) * 3).astype(np.float32) * np.float32(deviation / 0.479**1.5), step_mm)

    def on_grid(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the field on the grid spanned by three coordinate axes (mm), as float32 [z, y, x]."""
        result = self.values
        for axis, places in enumerate((z, y, x)):
            index, weights = self._taps(places, self.values.shape[axis])
            shape = [1, 1, 1]
            shape[axis] = len(places)
            result = sum(np.take(result, index + k, axis=axis) * w.reshape(shape) for k, w in enumerate(weights))
        return result

    def _taps(self, places: np.ndarray, count: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        scaled = places / self.step_mm + count / 2 - 2
        index = np.clip(np.floor(scaled).astype(int), 0, count - 4)
        t = np.clip(scaled - index, 0, 1).astype(np.float32)
        return index, (
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
            t**3 / 6,
        )
