"""Rules on where structures lie against each other: sides, heights, distances, the abdomen."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from labelloop.base.classes import Strict
from labelloop.labels.facts import Box, LabelFacts, outside
from labelloop.labels.rules.base import Evidence, Finding, Limit, Skip, kind

DIRECTIONS = {
    "above": (0, 1), "below": (0, -1), "in_front": (1, 1), "behind": (1, -1), "right": (2, 1), "left": (2, -1),
}  # fmt: skip
WORDS = {"right": "to the right", "left": "to the left", "in_front": "in front"}
OPPOSITE = {"above": "below", "in_front": "behind", "right": "left"}
OPPOSITE |= {other: name for name, other in OPPOSITE.items()}
Point = Literal["center", "top", "bottom", "front", "back", "right_end", "left_end"]
ENDS = {"top": (0, 1), "bottom": (0, -1), "front": (1, 1), "back": (1, -1), "right_end": (2, 1), "left_end": (2, -1)}
"""Axis and side of the points that are not the center."""


class Position(Limit):
    """The ``point`` of a class lies at least ``threshold`` mm ``direction`` of the ``of_point`` of the classes ``of``.

    A negative threshold allows that much of the opposite. ``oriented_by: [a, b]``: "right" is the direction from b to
    a, so that mirrored patients and headers are judged by their own liver and spleen. ``shared_slices``: centers are
    taken in the slices where both are. ``at_end_mm``: a ``point`` so near to where the volume ends in its
    direction passes: what lies beyond is not known. An end in the plane (``left_end``, ...) may lie in a part that the
    field of view cuts off: what reaches far enough passes, what does not is not judged.
    """

    direction: Literal["above", "below", "in_front", "behind", "right", "left"]
    of: tuple[str, ...] = Field(min_length=1)
    point: Point = "center"
    of_point: Point = "center"
    oriented_by: tuple[str, str] | None = None
    shared_slices: bool = False
    at_end_mm: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _meaningful(self) -> "Position":
        ends = {self.point, self.of_point} - {"center"}
        odd = sorted(end for end in ends if ENDS[end][0] != DIRECTIONS[self.direction][0])
        if odd:
            raise ValueError(f"{' and '.join(odd)} cannot be compared by {self.direction}")
        if self.at_end_mm is not None and self.point == "center":
            raise ValueError("at_end_mm speaks of an end, not of the center")
        if self.shared_slices and (ends or self.direction in ("above", "below")):
            raise ValueError("shared_slices compares centers side by side")
        return self

    @property
    def compared(self) -> tuple[str, ...]:
        return self.of + (self.oriented_by or ())


@kind("position", Position)
def _position(rule: Position, case: Evidence, name: str) -> Finding:
    facts = case.facts
    of = facts.found(rule.of)
    if not of:
        raise Skip(f"no {' or '.join(rule.of)} to compare with")
    axis, sign = DIRECTIONS[rule.direction]
    points = [(name, rule.point), *((o, rule.of_point) for o in of)]
    cut = [n for n, point in points if _censored(facts, n, point)]
    if axis == 0 and cut and "cut" in rule.exceptions:
        raise Skip(f"{', '.join(cut)} cut by the field of view: its center is not known")
    turned = _orientation(facts, rule.oriented_by) if rule.oriented_by else 1
    if rule.shared_slices:
        value = sign * turned * _offset_in_shared_slices(facts, name, of, axis)
    else:
        ends = [_along(facts, *point, axis, turned) for point in (((name,), rule.point), (of, rule.of_point))]
        value = sign * turned * (ends[0] - ends[1])
    limit, names = rule.limit(name), " + ".join(of)
    ended = [n for n, point in points if axis and point != "center" and facts.cut(n)]
    if value < limit and ended and "cut" in rule.exceptions:
        raise Skip(f"{', '.join(ended)} cut by the field of view: where it ends is not known")
    point, of_point = (p.replace("_", " ") for p in (rule.point, rule.of_point))
    place, asked = _in_words(value, rule.direction), _in_words(limit, rule.direction)
    of_it = " of" if place.split()[-1] in ("right", "left", "front") else ""
    bound = "at least" if limit >= 0 else "at most"
    said = f"its {point} is {place}{of_it} the {of_point} of {names.replace('_', ' ')}; {bound} {asked} expected"
    if rule.at_end_mm is not None:
        said += f", or the volume ends within {rule.at_end_mm:g} mm"
    hidden = rule.at_end_mm is not None and _to_end_mm(facts, name, rule.point) <= rule.at_end_mm
    return Finding(value, limit, value < limit and not hidden, said)


def _in_words(value: float, direction: str) -> str:
    """Return a signed distance in a direction, in mm, as people say it."""
    direction = direction if value >= 0 else OPPOSITE[direction]
    return f"{round(abs(value), 1):g} mm {WORDS.get(direction, direction)}"


def _censored(facts: LabelFacts, name: str, point: str) -> bool:
    """The field of view hides where the point is. A hidden top or bottom is at worst where the volume ends: known."""
    return point == "center" and bool(facts.sides(facts.box(name)) & {"z-", "z+"})


def _to_end_mm(facts: LabelFacts, name: str, point: str) -> float:
    """Return how far (mm) an end of a class is from the end of the volume on its side."""
    axis, side = ENDS[point]
    box = facts.box(name)[axis]
    return float((facts.labels.shape[axis] - box.stop if side > 0 else box.start) * facts.spacing[axis])


def _along(facts: LabelFacts, names: Sequence[str], point: str, axis: int, turned: int) -> float:
    """Return where a point lies on an axis in mm; in mirrored patients (``turned`` -1) right and left change places."""
    if point == "center":
        return float(facts.center_mm(names)[axis])
    box, side = facts.box(names)[axis], ENDS[point][1] * (turned if axis == 2 else 1)
    return float((box.stop - 1 if side > 0 else box.start) * facts.spacing[axis])


def _orientation(facts: LabelFacts, pair: tuple[str, str]) -> int:
    """Return 1 if the pair (right organ, left organ) lies as the header says, -1 if mirrored; 1 when one is missing."""
    if len(facts.found(pair)) < 2:
        return 1
    return 1 if facts.center_mm(pair[0])[2] >= facts.center_mm(pair[1])[2] else -1


def _offset_in_shared_slices(facts: LabelFacts, name: str, of: Sequence[str], axis: int) -> float:
    a, b = facts.box(name), facts.box(of)
    low, high = max(a[0].start, b[0].start), min(a[0].stop, b[0].stop)
    if low >= high:
        raise Skip("they share no slice")
    centers = []
    for names, box in (((name,), a), (of, b)):
        crop = (slice(low, high), box[1], box[2])
        mask = facts.mask(names, crop)
        profile = mask.sum(axis=tuple(i for i in range(3) if i != axis))
        if not profile.any():
            raise Skip("they share no slice")
        centers.append((np.arange(profile.size) @ profile / profile.sum() + crop[axis].start) * facts.spacing[axis])
    return float(centers[0] - centers[1])


class Near(Limit):
    """Each component of at least ``component_ml`` is at most ``threshold`` mm from one of the classes ``of``.

    ``min_found``: of that many classes at least one must be in the map, or the rule does not apply.
    """

    of: tuple[str, ...] = Field(min_length=1)
    component_ml: float = Field(0.0, ge=0)
    min_found: int = Field(1, ge=1)

    @property
    def compared(self) -> tuple[str, ...]:
        return self.of


@kind("near", Near)
def _near(rule: Near, case: Evidence, name: str) -> Finding:
    facts = case.facts
    of = facts.found(n for n in rule.of if n != name)
    if len(of) < rule.min_found:
        raise Skip(f"only {len(of)} of the {rule.min_found} structures needed to compare with")
    parts, limit = facts.components(name), rule.limit(name)
    chosen = [i for i in parts.by_size if parts.voxels[i - 1] * facts.voxel_ml >= rule.component_ml]
    if not chosen:
        raise Skip(f"no part of {rule.component_ml:g} ml or more")
    value = 0.0
    for number, distance in facts.distances_mm(parts, chosen, of, limit).items():
        box = parts.boxes[number - 1]
        if distance > limit and "cut" in rule.exceptions and _nearer_outside(facts, box, of, limit):
            raise Skip("nearer parts may lie outside of the field of view")
        value = max(value, distance)
    said = f"more than {limit:g}" if math.isinf(value) else f"{value:.1f}"
    return Finding(value, limit, value > limit, f"{said} mm from the nearest of {', '.join(of)}; at most {limit:g} mm")


def _nearer_outside(facts: LabelFacts, box: Box, of: Sequence[str], limit: float) -> bool:
    """Say whether one of ``of`` goes on below or above the volume, within ``limit`` mm of a structure in ``box``."""
    within = facts.sides(facts.padded(box, (limit, 0, 0))) & {"z-", "z+"}
    return any(within & facts.sides(facts.box(name)) for name in of)


class Margin(Strict):
    """Margins in mm around the organs' box."""

    above: float = Field(ge=0)
    below: float = Field(ge=0)
    aside: float = Field(ge=0)


class InsideAbdomen(Limit):
    """The box of the classes ``of`` (at least ``min_found`` of them), widened by ``margin_mm``."""

    of: tuple[str, ...] = Field(min_length=1)
    min_found: int = Field(1, ge=1)
    margin_mm: Margin

    @property
    def compared(self) -> tuple[str, ...]:
        return self.of


@kind("inside_abdomen", InsideAbdomen)
def _inside_abdomen(rule: InsideAbdomen, case: Evidence, name: str) -> Finding:
    """Volume in ml outside of the organs' box with a margin (Zhou: tumor outside the box of organs is removed)."""
    facts = case.facts
    of = facts.found(rule.of)
    if len(of) < rule.min_found:
        raise Skip(f"only {len(of)} of the {rule.min_found} structures needed to outline the abdomen")
    margin, box = rule.margin_mm, facts.box(name)
    abdomen = facts.abdomen_box(of, margin.above, margin.below, margin.aside)
    value = float(outside(facts.mask(name, box), box, abdomen).sum() * facts.voxel_ml)
    limit = rule.limit(name)
    return Finding(value, limit, value > limit, f"{value:.2f} ml outside of the abdomen; at most {limit:g} ml expected")


class Expected(Limit):
    """The class has more than ``threshold`` ml where ``min_found`` of the classes ``beside`` lie whole in the scan."""

    beside: tuple[str, ...] = Field(min_length=1)
    min_found: int = Field(1, ge=1)

    @property
    def compared(self) -> tuple[str, ...]:
        return self.beside


@kind("expected", Expected)
def _expected(rule: Expected, case: Evidence, name: str) -> Finding:
    """Volume, in ml, of a class that must be in the field of view, since its neighbors are, from end to end."""
    facts, value, limit = case.facts, case.facts.ml(name), rule.limit(name)
    whole = [n for n in facts.found(rule.beside) if n != name and not facts.sides(facts.box(n)) & {"z-", "z+"}]
    if value <= limit and len(whole) < rule.min_found:
        raise Skip(f"only {len(whole)} of its {rule.min_found} neighbors lie whole in the field of view")
    if value > limit:
        return Finding(value, limit, False, f"{value:.1f} ml; more than {limit:g} ml expected")
    seen = " and ".join(whole[: rule.min_found]).replace("_", " ")
    said = f"it was not found, though {seen} lie whole in the field of view"
    return Finding(value, limit, True, f"{said}; was it removed (`surgery` of the case table)?")
