"""Where organs lie in a patient, and how large they are, against the labeled cases of a run.

Of each class that lies whole in the field of view are measured: its center, its extent on the three axes, and the
logarithm of its volume. Lengths are in units of the body's size, the square root of its cross-section, so that children
and large people compare. Centers and volumes are compared pair by pair: with each other class of the case and, in the
plane, with the middle of the body. The median over the pairs of a class counts, so that one wrong neighbor, or one that
was removed, changes little.

What is usual is the median over labeled cases, and how much it varies their median absolute deviation (MAD): a few sick
or operated people change neither (robust z-scores: Iglewicz and Hoaglin, "How to detect and handle outliers", 1993).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labelloop.cases.body import body_mask
from labelloop.images.volume import Geometry, Volume
from labelloop.labels.facts import LabelFacts
from labelloop.networks.grey import to_grey

MEASURES = ("z", "y", "x", "height", "depth", "width", "volume")
"""Center (z upwards, y to the front, x to the right), extent on the same axes, and volume."""
PAIRED = ("z", "y", "x", "volume")
"""Measures that are compared with those of other classes."""
BODY = "(body)"
"""The middle of the body in the plane, which centers are compared with as with a class; a class may be called body."""
GRID_MM = 4.0
LEAST_CASES = 8
"""A median of fewer cases says nothing."""
LARGEST_Z = 8.0
"""Farther from the median is not more suspicious."""
LEAST_SPREAD = {"z": 0.02, "y": 0.02, "x": 0.02, "height": 0.1, "depth": 0.1, "width": 0.1, "volume": 0.1}
"""Least standard deviation: 0.02 of a body's size are 5 to 6 mm, 0.1 of a logarithm 10 %. Few cases may lie closer."""
NORMAL_MAD = 1.4826
"""Standard deviation of a normal distribution by its MAD."""

Places = Mapping[str, np.ndarray]
"""Of one case, the measures of each class that has any, in the order of :data:`MEASURES`; NaN where not known."""


@dataclass(frozen=True)
class Frame:
    """The body in the plane: its size (square root of its cross-section, mm) and its middle (y, x) in mm."""

    size_mm: float
    middle_mm: tuple[float, float]


def body_frame(image: np.ndarray, geometry: Geometry, modality: str) -> Frame:
    """Return the frame of a body: medians over the slices that show any of it.

    Args:
        image: canonical intensities [z, y, x] on the canonical ``geometry`` (mm).
    """
    steps = [max(1, int(GRID_MM / s)) for s in geometry.spacing_zyx]
    coarse = image[tuple(slice(None, None, step) for step in steps)]
    spacing = np.multiply(geometry.spacing_zyx, steps)
    z, y, x = coarse.shape
    grid = Geometry((x, y, z), (float(spacing[2]), float(spacing[1]), float(spacing[0])))
    mask = body_mask(Volume(to_grey(coarse, modality), grid))
    mask = mask[mask.any(axis=(1, 2))]
    if not len(mask):
        raise ValueError(f"no body in an image of shape {image.shape}")
    areas = mask.sum(axis=(1, 2))
    middles = [float(np.median(_centers(mask, axis, areas))) * spacing[axis] for axis in (1, 2)]
    return Frame(float(np.sqrt(np.median(areas) * spacing[1] * spacing[2])), (middles[0], middles[1]))


def _centers(mask: np.ndarray, axis: int, areas: np.ndarray) -> np.ndarray:
    """Return the center of each slice of a mask on an axis, in voxels."""
    return mask.sum(axis=3 - axis) @ np.arange(mask.shape[axis]) / areas


def places(facts: LabelFacts, frame: Frame | None) -> dict[str, np.ndarray]:
    """Return the measures of the classes of a label map that lie whole in it.

    A class that the field of view cuts, or of which voxels may be ignored, is left out.

    Args:
        frame: of the body; None without an image: lengths are then compared in mm / 300, and with classes alone.
    """
    size = frame.size_mm if frame else 300.0
    found: dict[str, np.ndarray] = {}
    for name in facts.found(facts.scheme.names):
        if facts.cut(name) or facts.beside_ignored([name]):
            continue
        box = facts.box(name)
        extent = [(side.stop - side.start) * s for side, s in zip(box, facts.spacing, strict=True)]
        center = facts.center_mm(name) / size
        volume = np.log(facts.ml(name) * 1000 / size**3)
        found[name] = np.array([*center, *np.log(np.divide(extent, size)), volume])
    if frame:
        middle = np.full(len(MEASURES), np.nan)
        middle[[1, 2]] = np.divide(frame.middle_mm, size)
        found[BODY] = middle
    return found


class Positions:
    """What is usual, learned from labeled cases.

    Args:
        cases: the places of each labeled case, right labels only.
        classes: classes of which positions are learned.
    """

    def __init__(self, cases: Mapping[str, Places], classes: Sequence[str]):
        self.classes, self._names = tuple(classes), (*classes, BODY)
        self._rows = {case: row for row, case in enumerate(cases)}
        tables = [self._table(case) for case in cases.values()] or [self._table({})]
        self._single = np.stack(tables, axis=-1)
        self._pairs = np.stack([_differences(table) for table in tables], axis=-1)
        self._usual: dict[frozenset[str], _Usual] = {}

    def _table(self, found: Places) -> np.ndarray:
        """Return measures [class, measure]; NaN where not known."""
        unknown = np.full(len(MEASURES), np.nan)
        return np.stack([np.asarray(found.get(name, unknown)) for name in self._names])

    def z_scores(self, found: Places, without: Collection[str] = ()) -> dict[str, dict[str, float]]:
        """Return of each class the robust z-score of each measure, between -8 and 8; NaN where it cannot be told.

        A score is NaN where the class was not measured, or less than :data:`LEAST_CASES` cases tell what is usual.

        Args:
            without: cases that must not count: the case itself and others of its patient, whose labels were altered.
        """
        usual = self._usual_without(frozenset(without) & set(self._rows))
        own = self._table(found)
        scores = usual.single.scores(own)
        paired = [MEASURES.index(name) for name in PAIRED]
        scores[:, paired] = _median(_both_ways(usual.pairs.scores(_differences(own)), len(own)))
        clipped = np.clip(scores, -LARGEST_Z, LARGEST_Z)
        return {
            name: {measure: float(z) for measure, z in zip(MEASURES, row, strict=True)}
            for name, row in zip(self.classes, clipped[:-1], strict=True)
        }

    def _usual_without(self, left_out: frozenset[str]) -> "_Usual":
        """Return what is usual without some cases. The last answer is kept: a case is asked for many times."""
        if left_out not in self._usual:
            rows = [row for case, row in self._rows.items() if case not in left_out]
            spreads = [np.array([LEAST_SPREAD[name] for name in names]) for names in (MEASURES, PAIRED)]
            both = zip((self._single[..., rows], self._pairs[..., rows]), spreads, strict=True)
            self._usual = {left_out: _Usual(*(_Spread.of(values, least) for values, least in both))}
        return self._usual[left_out]


@dataclass(frozen=True)
class _Spread:
    """Median and standard deviation (by the MAD) of measures over cases; NaN where too few cases tell."""

    middle: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, least: np.ndarray) -> "_Spread":
        """Return the spread of values [..., measure, case]; ``least`` deviation of each measure."""
        few = np.isfinite(values).sum(axis=-1) < LEAST_CASES
        middle = _median(values)
        deviation = np.maximum(NORMAL_MAD * _median(np.abs(values - middle[..., None])), least)
        return cls(np.where(few, np.nan, middle), deviation)

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Return how many standard deviations values lie from the median."""
        return (values - self.middle) / self.deviation


@dataclass(frozen=True)
class _Usual:
    single: _Spread
    pairs: _Spread


def _differences(table: np.ndarray) -> np.ndarray:
    """Return of measures [class, measure] those that are paired, minus those of each later class [pair, 4]."""
    paired = table[:, [MEASURES.index(name) for name in PAIRED]]
    one, other = np.triu_indices(len(table), 1)
    return paired[one] - paired[other]


def _both_ways(pairs: np.ndarray, classes: int) -> np.ndarray:
    """Return scores of pairs [pair, 4] of each class with each other one [class, 4, other]: one is minus the other."""
    found = np.full((classes, len(PAIRED), classes), np.nan)
    one, other = np.triu_indices(classes, 1)
    found[one, :, other], found[other, :, one] = pairs, -pairs
    return found


def _median(values: np.ndarray) -> np.ndarray:
    """Return the median of what is known along the last axis; NaN where nothing is."""
    number, size = np.isfinite(values).sum(axis=-1), values.shape[-1]
    if not size:
        return np.full(number.shape, np.nan)
    ordered = np.sort(values, axis=-1)  # what is not known comes last
    ends = [np.clip(at, 0, size - 1)[..., None] for at in ((number - 1) // 2, number // 2)]
    low, high = (np.take_along_axis(ordered, at, axis=-1)[..., 0] for at in ends)
    return np.where(number > 0, (low + high) / 2, np.nan)
