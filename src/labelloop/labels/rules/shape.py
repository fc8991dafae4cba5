"""Rules on the shape of one structure: volume, components, gaps, ends, length, and what fusion took from it."""

from typing import Literal

import numpy as np

from labelloop.base.components import connected_components
from labelloop.cases.annotation import ABSENT, UNKNOWN
from labelloop.labels.facts import AXES, largest_box, shifted, unshifted
from labelloop.labels.rules.base import Evidence, Finding, Limit, Range, Rule, Skip, kind


@kind("annotation", Limit)
def _annotation(rule: Limit, case: Evidence, name: str) -> Finding:
    """The map agrees with the annotation: present has voxels, absent has none."""
    state, value, limit = case.states.get(name, UNKNOWN), case.facts.ml(name), rule.limit(name)
    if state == UNKNOWN:
        raise Skip("nobody annotated it")
    failed = value > limit if state == ABSENT else value <= limit
    return Finding(value, limit, failed, f"annotated {state}; the map has {value:.3g} ml")


@kind("volume", Range)
def _volume(rule: Range, case: Evidence, name: str) -> Finding:
    """Volume in ml within a range; the lower bound is not held against an organ that is cut.

    It may be so by the field of view, or by ignored voxels.
    """
    value, (low, high) = case.facts.ml(name), rule.threshold[name]
    if value > high:
        return Finding(value, high, True, f"{value:.1f} ml is more than {high:g} ml")
    if value and "cut" in rule.exceptions and case.facts.cut(name):
        return Finding(value, high, False, f"{value:.1f} ml, at most {high:g} ml; cut by the field of view")
    if case.facts.beside_ignored([name]):
        return Finding(value, high, False, f"{value:.1f} ml, at most {high:g} ml; ignored voxels may belong to it")
    return Finding(value, low, value < low, f"{value:.1f} ml; {low:g} to {high:g} ml expected")


class OneComponent(Limit):
    """Components are found with ``connectivity`` 6, 18 or 26."""

    connectivity: Literal[6, 18, 26] = 26


@kind("one_component", OneComponent)
def _one_component(rule: OneComponent, case: Evidence, name: str) -> Finding:
    """The second component is smaller than a volume in ml."""
    parts = case.facts.components(name, rule.connectivity)
    detached = _detached(case, parts, rule)  # the largest first
    value = int(parts.voxels[detached[0] - 1]) * case.facts.voxel_ml if detached else 0.0
    limit, box = _resolved(rule.limit(name), case), parts.boxes[detached[0] - 1] if detached else None
    said = f"largest detached part {value:.2f} ml; below {limit:g} ml expected"
    return Finding(value, limit, value >= limit, said, box)


RESOLVED_VOXELS = 8


def _resolved(limit_ml: float, case: Evidence) -> float:
    """Return the limit, or the volume of 2 x 2 x 2 voxels where that is more: smaller parts are noise of the grid.

    He's 0.276 ml are 64 voxels on his grid, but not even two of 5.5 mm, where a thin bridge breaks by rounding alone.
    """
    return max(limit_ml, RESOLVED_VOXELS * case.facts.voxel_ml)


def _detached(case: Evidence, parts, rule: Rule) -> list[int]:
    """Components beside the largest; not those that may be joined to it outside of the field of view."""
    main, *others = parts.by_size
    if "cut" not in rule.exceptions or not case.facts.sides(parts.boxes[main - 1]):
        return others
    return [i for i in others if not case.facts.sides(parts.boxes[i - 1])]


class Joined(OneComponent):
    """``classes`` hang together through the class ``through``."""

    through: str

    @property
    def compared(self) -> tuple[str, ...]:
        return (self.through,)


@kind("joined", Joined)
def _joined(rule: Joined, case: Evidence, name: str) -> Finding:
    """Classes form one component together: what a class has in a detached component stays below a volume in ml."""
    members = case.facts.found(rule.classes)
    if rule.through not in members:
        raise Skip(f"no {rule.through} to be joined with")
    if len(members) < 2:
        raise Skip("no other part of the chain")
    parts = case.facts.joint_components(members, rule.connectivity)
    own = np.bincount(parts.labels[case.facts.mask(name, parts.box)], minlength=len(parts.voxels) + 1)
    apart = max(_detached(case, parts, rule), key=lambda i: int(own[i]), default=None)
    value = 0.0 if apart is None else int(own[apart]) * case.facts.voxel_ml
    limit, box = _resolved(rule.limit(name), case), None if apart is None else parts.boxes[apart - 1]
    said = f"{value:.2f} ml lie apart from {' + '.join(members)}; below {limit:g} ml expected"
    return Finding(value, limit, value >= limit, said, box)


@kind("continuous", Limit)
def _continuous(rule: Limit, case: Evidence, name: str) -> Finding:
    """No stretch of slices is missing between the lowest and the highest slice."""
    whole = case.facts.box(name)
    filled = np.flatnonzero(case.facts.mask(name).any(axis=(1, 2)))
    gaps = np.diff(filled, append=filled[-1] + 1)
    widest = int(gaps.argmax())
    value, limit = float((gaps[widest] - 1) * case.facts.spacing[0]), rule.limit(name)
    first = whole[0].start + int(filled[widest]) + 1
    gap = (slice(first, first + int(gaps[widest]) - 1), *whole[1:]) if value else None
    said = f"longest gap along z {value:.1f} mm; at most {limit:g} mm expected"
    return Finding(value, limit, value > limit, said, gap)


SECTIONS = 4


@kind("flat_end", Limit)
def _flat_end(rule: Limit, case: Evidence, name: str) -> Finding:
    """Section at an end of the structure in % of its largest section on that axis; the worst of the six ends.

    Organs end rounded or tapered; what ends with (nearly) a full section was cut off by a missing block of slices or a
    missing window. Not judged: an axis on which the field of view cuts the structure, or which it crosses in fewer than
    ``SECTIONS`` voxels; nor a sliver, no thicker than that where it is cut. Only the largest component is looked at.
    """
    facts, parts = case.facts, case.facts.components(name)
    main = parts.by_size[0]
    box = parts.boxes[main - 1]
    mask = parts.labels[unshifted(box, parts.box)] == main
    hidden = {side[0] for side in facts.sides(box)} if "cut" in rule.exceptions else set()
    sheet = mask.sum(axis=2, dtype=np.uint16)
    profiles = {"z": sheet.sum(axis=1), "y": sheet.sum(axis=0), "x": mask.sum(axis=0, dtype=np.uint16).sum(axis=0)}
    if any(len(profiles[axis]) < SECTIONS for axis in hidden):
        raise Skip("cut by the field of view, but for a sliver")
    ends: dict[str, float] = {}
    for axis, profile in profiles.items():
        if axis not in hidden and len(profile) >= SECTIONS:
            shares = 100.0 * profile / profile.max()
            ends |= {f"{axis}-": float(shares[0]), f"{axis}+": float(shares[-1])}
    if not ends:
        raise Skip("cut by the field of view, or too small to have ends")
    side = max(ends, key=ends.__getitem__)
    value, limit, end = ends[side], rule.limit(name), list(box)
    cut = AXES[side[0]]
    end[cut] = slice(box[cut].start, box[cut].start + 1) if side[1] == "-" else slice(box[cut].stop - 1, box[cut].stop)
    said = f"the section at its {ENDS[side]} end is {value:.0f} % of the largest; at most {limit:g} % expected"
    return Finding(value, limit, value > limit, said, (end[0], end[1], end[2]))


ENDS = {"z-": "lower", "z+": "upper", "y-": "rear", "y+": "front", "x-": "left", "x+": "right"}


@kind("extent", Limit)
def _extent(rule: Limit, case: Evidence, name: str) -> Finding:
    """Longest side, in mm, of the box around all that carries the class."""
    box = case.facts.box(name)
    sides = {axis: (box[number].stop - box[number].start) * case.facts.spacing[number] for axis, number in AXES.items()}
    axis = max(sides, key=sides.__getitem__)
    value, limit = float(sides[axis]), rule.limit(name)
    return Finding(value, limit, value > limit, f"{value:.0f} mm long along {axis}; at most {limit:g} mm expected")


@kind("holes", Limit)
def _holes(rule: Limit, case: Evidence, name: str) -> Finding:
    """Share, in %, of a class and what it encloses that carries no label."""
    facts, box = case.facts, case.facts.box(name)
    mask = np.pad(facts.mask(name, box), 1)
    parts = connected_components(~mask, connectivity=6)
    enclosed = (~mask & (parts != parts[0, 0, 0]))[1:-1, 1:-1, 1:-1] & (facts.labels[box] == 0)
    missing = int(np.count_nonzero(enclosed))
    value, limit = 100.0 * missing / (missing + facts.voxels(name)), rule.limit(name)
    hole = shifted(largest_box(enclosed, 6), box) if missing else None
    said = f"{value:.1f} % of what it encloses carry no label ({missing * facts.voxel_ml:.1f} ml); at most {limit:g} %"
    return Finding(value, limit, value > limit, f"{said} expected", hole)


@kind("overlap", Limit)
def _overlap(rule: Limit, case: Evidence, name: str) -> Finding:
    """Share, in %, of the voxels predicted for a class that fusion gave to another organ (truth, or other models).

    What is left of an organ that two sources drew over each other is no whole organ (AbdomenAtlas looks at overlap for
    the same reason). Voxels given to a tumor do not count: a tumor lies in its organ.
    """
    if case.overlap is None:
        raise Skip("what fusion took is not known")
    lost, kept = case.overlap.get(name, 0), case.facts.voxels(name)
    value, limit = 100.0 * lost / (lost + kept), rule.limit(name)
    said = f"fusion gave {value:.1f} % of it to another organ; at most {limit:g} % expected"
    return Finding(value, limit, value > limit, said)
