"""Anatomy verdicts: rules are data (``rules:`` of ``config/classes/*.yaml``), each kind of rule is a small function.

A verdict says for one class and one rule what was measured, what it was held against, in which unit, and why. A rule
that cannot be applied says so (``not_applicable``) instead of guessing: an organ may be cut by the field of view,
annotated absent, absent in every model, or removed by surgery. All measures are in mm, ml, HU or %.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cc3d
import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from labelloop.annotation import ABSENT, UNKNOWN, States
from labelloop.classes import ClassScheme, Strict
from labelloop.errors import UserError
from labelloop.labels.facts import LabelFacts, outside
from labelloop.volume import Geometry

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not_applicable"
Exceptions = tuple[Literal["absent", "models", "surgery", "cut"], ...]


class Rule(Strict):
    """What every rule says of itself.

    ``classes`` may name sets; where ``threshold`` is given per class, they default to its keys. ``exceptions`` are
    the circumstances in which the rule steps back: ``absent`` (annotated absent), ``models`` (absent in every model),
    ``surgery`` (the class, or one it is compared with, was operated on) and ``cut`` (by the field of view).
    """

    name: str
    kind: str
    classes: tuple[str, ...] = ()
    unit: str
    source: str
    modality: tuple[Literal["CT", "MR"], ...] = ("CT", "MR")
    exceptions: Exceptions = ("absent", "models", "surgery", "cut")

    @property
    def compared(self) -> tuple[str, ...]:
        """Classes other than its own that the rule looks at."""
        return ()


class Limit(Rule):
    """A rule with one threshold, or one per class."""

    threshold: float | dict[str, float]

    def limit(self, name: str) -> float:
        """Threshold of a class."""
        return self.threshold[name] if isinstance(self.threshold, dict) else self.threshold


class Range(Rule):
    """A rule with a lowest and a highest value per class."""

    threshold: dict[str, tuple[float, float]]

    @field_validator("threshold")
    @classmethod
    def _ordered(cls, limits: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        wrong = [name for name, (low, high) in limits.items() if low > high]
        if wrong:
            raise ValueError(f"lowest value above the highest for {', '.join(wrong)}")
        return limits


class Finding(NamedTuple):
    """What a rule found: ``failed`` with the measured value, the threshold it was held against, and the reason."""

    value: float
    threshold: float
    failed: bool
    reason: str


class Skip(Exception):  # noqa: N818 - not an error: the rule does not apply, and the message says why
    """Raised by a rule that does not apply."""


@dataclass(frozen=True)
class Case:
    """What a rule may look at."""

    facts: LabelFacts
    states: States
    image: np.ndarray | None
    body: Callable[[], "np.ndarray | None"]


KINDS: dict[str, tuple[type[Rule], Callable[[Any, Case, str], Finding]]] = {}
"""Rule kinds by name: the model of their parameters and the function (rule, case, class) -> Finding."""


def _kind(name: str, model: type[Rule]) -> Callable:
    def register(function: Callable[[Any, Case, str], Finding]) -> Callable:
        KINDS[name] = (model, function)
        return function

    return register


# ------------------------------------------------------------------------------------------------ kinds of rules


@_kind("annotation", Limit)
def _annotation(rule: Limit, case: Case, name: str) -> Finding:
    """The map agrees with the annotation: present has voxels, absent has none."""
    state, value, limit = case.states.get(name, UNKNOWN), case.facts.ml(name), rule.limit(name)
    if state == UNKNOWN:
        raise Skip("nobody annotated it")
    failed = value > limit if state == ABSENT else value <= limit
    return Finding(value, limit, failed, f"annotated {state}; the map has {value:.3g} ml")


@_kind("volume", Range)
def _volume(rule: Range, case: Case, name: str) -> Finding:
    """Volume in ml within a range; the lower bound is not held against an organ that the field of view cuts."""
    value, (low, high) = case.facts.ml(name), rule.threshold[name]
    if value > high:
        return Finding(value, high, True, f"{value:.1f} ml is more than {high:g} ml")
    if value and "cut" in rule.exceptions and case.facts.cut(name):
        return Finding(value, high, False, f"{value:.1f} ml, at most {high:g} ml; cut by the field of view")
    return Finding(value, low, value < low, f"{value:.1f} ml; {low:g} to {high:g} ml expected")


class OneComponent(Limit):
    """Components are found with ``connectivity`` 6, 18 or 26."""

    connectivity: Literal[6, 18, 26] = 26


@_kind("one_component", OneComponent)
def _one_component(rule: OneComponent, case: Case, name: str) -> Finding:
    """The second component is smaller than a volume in ml."""
    parts = case.facts.components(name, rule.connectivity)
    value = max((int(parts.voxels[i - 1]) for i in _detached(case, parts, rule)), default=0) * case.facts.voxel_ml
    limit = rule.limit(name)
    return Finding(value, limit, value >= limit, f"largest detached part {value:.2f} ml; below {limit:g} ml expected")


def _detached(case: Case, parts, rule: Rule) -> list[int]:
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


@_kind("joined", Joined)
def _joined(rule: Joined, case: Case, name: str) -> Finding:
    """Classes form one component together: what a class has in a detached component stays below a volume in ml."""
    members = case.facts.found(rule.classes)
    if rule.through not in members:
        raise Skip(f"no {rule.through} to be joined with")
    if len(members) < 2:
        raise Skip("no other part of the chain")
    parts = case.facts.joint_components(members, rule.connectivity)
    own = np.bincount(parts.labels[case.facts.mask(name, parts.box)], minlength=len(parts.voxels) + 1)
    value = max((int(own[i]) for i in _detached(case, parts, rule)), default=0) * case.facts.voxel_ml
    limit = rule.limit(name)
    chain = " + ".join(members)
    return Finding(value, limit, value >= limit, f"{value:.2f} ml lie apart from {chain}; below {limit:g} ml expected")


DIRECTIONS = {
    "above": (0, 1), "below": (0, -1), "in_front": (1, 1), "behind": (1, -1), "right": (2, 1), "left": (2, -1),
}  # fmt: skip
WORDS = {"right": "to the right of", "left": "to the left of", "in_front": "in front of"}
Point = Literal["center", "top", "bottom"]


class Position(Limit):
    """The ``point`` of a class lies at least ``threshold`` mm ``direction`` of the ``of_point`` of the classes ``of``.

    A negative threshold allows that much of the opposite. ``oriented_by: [a, b]``: "right" is the direction from b to
    a, so that mirrored patients and headers are judged by their own liver and spleen. ``shared_slices``: centers are
    taken in the slices where both are.
    """

    direction: Literal["above", "below", "in_front", "behind", "right", "left"]
    of: tuple[str, ...] = Field(min_length=1)
    point: Point = "center"
    of_point: Point = "center"
    oriented_by: tuple[str, str] | None = None
    shared_slices: bool = False

    @model_validator(mode="after")
    def _meaningful(self) -> "Position":
        ends = {self.point, self.of_point} & {"top", "bottom"}
        if ends and self.direction not in ("above", "below"):
            raise ValueError(f"top and bottom go with above and below, not with {self.direction}")
        if self.shared_slices and (ends or self.direction in ("above", "below")):
            raise ValueError("shared_slices compares centers side by side")
        return self

    @property
    def compared(self) -> tuple[str, ...]:
        return self.of + (self.oriented_by or ())


@_kind("position", Position)
def _position(rule: Position, case: Case, name: str) -> Finding:
    facts = case.facts
    of = facts.found(rule.of)
    if not of:
        raise Skip(f"no {' or '.join(rule.of)} to compare with")
    axis, sign = DIRECTIONS[rule.direction]
    cut = [n for n, point in [(name, rule.point), *((o, rule.of_point) for o in of)] if _censored(facts, n, point)]
    if axis == 0 and cut and "cut" in rule.exceptions:
        raise Skip(f"{', '.join(cut)} cut by the field of view: its center is not known")
    if rule.oriented_by:
        sign *= _orientation(facts, rule.oriented_by)
    if rule.shared_slices:
        value = sign * _offset_in_shared_slices(facts, name, of, axis)
    else:
        value = sign * (_along(facts, (name,), rule.point, axis) - _along(facts, of, rule.of_point, axis))
    limit, names = rule.limit(name), " + ".join(of)
    where = WORDS.get(rule.direction, rule.direction)
    said = f"its {rule.point} is {value:.1f} mm {where} the {rule.of_point} of {names}; at least {limit:g} mm expected"
    return Finding(value, limit, value < limit, said)


def _censored(facts: LabelFacts, name: str, point: str) -> bool:
    """The field of view hides where the point is. A hidden top or bottom is at worst where the volume ends: known."""
    return point == "center" and bool(facts.sides(facts.box(name)) & {"z-", "z+"})


def _along(facts: LabelFacts, names: Sequence[str], point: str, axis: int) -> float:
    if point == "center":
        return float(facts.center_mm(names)[axis])
    box = facts.box(names)[axis]
    return float((box.stop - 1 if point == "top" else box.start) * facts.spacing[axis])


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

    ``least``: of that many classes at least one must be in the map, or the rule does not apply.
    """

    of: tuple[str, ...] = Field(min_length=1)
    component_ml: float = Field(0.0, ge=0)
    least: int = Field(1, ge=1)

    @property
    def compared(self) -> tuple[str, ...]:
        return self.of


@_kind("near", Near)
def _near(rule: Near, case: Case, name: str) -> Finding:
    facts = case.facts
    of = facts.found(n for n in rule.of if n != name)
    if len(of) < rule.least:
        raise Skip(f"only {len(of)} of the {rule.least} structures needed to compare with")
    parts, limit = facts.components(name), rule.limit(name)
    chosen = [i for i in parts.by_size if parts.voxels[i - 1] * facts.voxel_ml >= rule.component_ml]
    if not chosen:
        raise Skip(f"no part of {rule.component_ml:g} ml or more")
    value = 0.0
    for i in chosen:
        box = parts.boxes[i - 1]
        inner = tuple(slice(b.start - o.start, b.stop - o.start) for b, o in zip(box, parts.box, strict=True))
        value = max(value, facts.distance_mm(parts.labels[inner] == i, box, of, limit))
    said = f"more than {limit:g}" if math.isinf(value) else f"{value:.1f}"
    return Finding(value, limit, value > limit, f"{said} mm from the nearest of {', '.join(of)}; at most {limit:g} mm")


@_kind("continuous", Limit)
def _continuous(rule: Limit, case: Case, name: str) -> Finding:
    """No stretch of slices is missing between the lowest and the highest slice."""
    filled = np.flatnonzero(case.facts.mask(name).any(axis=(1, 2)))
    value = float((np.diff(filled).max(initial=1) - 1) * case.facts.spacing[0])
    limit = rule.limit(name)
    return Finding(value, limit, value > limit, f"longest gap along z {value:.1f} mm; at most {limit:g} mm expected")


AIR_HU = -300
BODY_MM = 4.0
"""Grid on which the body is found: fine enough for whole organs, a hundred times fewer voxels than the image."""


@_kind("inside_body", Limit)
def _inside_body(rule: Limit, case: Case, name: str) -> Finding:
    """Share of a class in the air around the patient, in %."""
    around = case.body()
    if around is None:
        raise Skip("no image, or an image without air around the body: the body cannot be outlined")
    mask = case.facts.labels[_grid(case.facts)] == case.facts.scheme.ids[name]
    if mask.sum() < 8:
        raise Skip(f"too small to judge on a grid of {BODY_MM:g} mm")
    value, limit = 100.0 * float(around[mask].mean()), rule.limit(name)
    return Finding(value, limit, value > limit, f"{value:.1f} % lie outside of the body; at most {limit:g} % expected")


def _grid(facts: LabelFacts) -> tuple[slice, ...]:
    return tuple(slice(None, None, max(1, int(BODY_MM / s))) for s in facts.spacing)


def _air_around(facts: LabelFacts, image: np.ndarray) -> np.ndarray | None:
    """Return the air around the patient on the coarse grid; None when there is none (saturated or cropped images).

    It is the air that reaches a lateral border of the volume; lungs and bowel gas do not. A body that fills the field
    of view, or intensities cut off above air (BTCV: [-125, 275] HU), leave none.
    """
    air = image[_grid(facts)] < AIR_HU
    if not air.any():
        return None
    parts = cc3d.connected_components(air, connectivity=6)
    border = np.unique(np.concatenate([parts[:, [0, -1], :].ravel(), parts[:, :, [0, -1]].ravel()]))
    around = np.isin(parts, border[border > 0])
    return around if around.mean() > 0.01 else None


SAMPLES = 200_000


@_kind("intensity", Range)
def _intensity(rule: Range, case: Case, name: str) -> Finding:
    """Median HU within a plausible range (CT only)."""
    if case.image is None:
        raise Skip("no image")
    box = case.facts.box(name)
    values = case.image[box][case.facts.mask(name, box)]
    value = float(np.median(values[:: max(1, values.size // SAMPLES)]))
    low, high = rule.threshold[name]
    limit = high if value > high else low
    return Finding(value, limit, not low <= value <= high, f"median {value:.0f} HU; {low:g} to {high:g} HU expected")


class Margin(Strict):
    """Margins in mm around the organs' box."""

    above: float = Field(ge=0)
    below: float = Field(ge=0)
    aside: float = Field(ge=0)


class InsideAbdomen(Limit):
    """The box of the classes ``of`` (at least ``least`` of them), widened by ``margin_mm``."""

    of: tuple[str, ...] = Field(min_length=1)
    least: int = Field(1, ge=1)
    margin_mm: Margin

    @property
    def compared(self) -> tuple[str, ...]:
        return self.of


@_kind("inside_abdomen", InsideAbdomen)
def _inside_abdomen(rule: InsideAbdomen, case: Case, name: str) -> Finding:
    """Volume in ml outside of the organs' box with a margin (Zhou: tumor outside the box of organs is removed)."""
    facts = case.facts
    of = facts.found(rule.of)
    if len(of) < rule.least:
        raise Skip(f"only {len(of)} of the {rule.least} structures needed to outline the abdomen")
    margin, box = rule.margin_mm, facts.box(name)
    abdomen = facts.abdomen_box(of, margin.above, margin.below, margin.aside)
    value = float(outside(facts.mask(name, box), box, abdomen).sum() * facts.voxel_ml)
    limit = rule.limit(name)
    return Finding(value, limit, value > limit, f"{value:.2f} ml outside of the abdomen; at most {limit:g} ml expected")


# ------------------------------------------------------------------------------------------------ the engine


def load_rules(scheme: ClassScheme) -> tuple[Rule, ...]:
    """Return the scheme's rules, validated, with class sets resolved.

    Raises:
        UserError: naming every rule at fault and what is wrong with it.
    """
    rules, errors, seen = [], [], set()
    for number, raw in enumerate(scheme.rules, start=1):
        label = f"class scheme {scheme.name}: rule {raw.get('name', f'number {number}')!r}"
        if raw.get("kind") not in KINDS:
            errors.append(f"{label}: kind: {raw.get('kind')!r} is none of {', '.join(sorted(KINDS))}")
            continue
        try:
            rule = _resolved(KINDS[raw["kind"]][0].model_validate(raw), scheme)
        except ValidationError as error:
            errors += [f"{label}: {'.'.join(map(str, e['loc'])) or 'rule'}: {e['msg']}" for e in error.errors()]
            continue
        except UserError as error:
            errors.append(f"{label}: {error}")
            continue
        twice = [name for name in rule.classes if (rule.name, name) in seen]
        if twice:
            errors.append(f"{label}: given twice for {', '.join(twice)}")
        seen |= {(rule.name, name) for name in rule.classes}
        rules.append(rule)
    if errors:
        raise UserError("\n".join(errors))
    return tuple(rules)


def _resolved(rule: Rule, scheme: ClassScheme) -> Rule:
    """Return ``rule`` with sets replaced by classes. Raises UserError for names that do not exist."""
    threshold = getattr(rule, "threshold", None)
    per_class = tuple(threshold) if isinstance(threshold, dict) else ()
    classes = scheme.select(rule.classes or per_class)
    if not classes:
        raise UserError("classes: none given")
    changes: dict[str, Any] = {"classes": classes}
    if hasattr(rule, "of"):
        changes["of"] = scheme.select(rule.of)
    scheme.select(list(rule.compared))
    missing, odd = set(classes) - set(per_class), set(per_class) - set(classes)
    if per_class and (missing or odd):
        raise UserError(f"threshold: given for {sorted(per_class)}, the classes are {sorted(classes)}")
    return rule.model_copy(update=changes)


def check(
    labels: np.ndarray,
    geometry: Geometry,
    states: States,
    scheme: ClassScheme,
    image: np.ndarray | None = None,
    modality: str = "CT",
    surgery: Sequence[str] = (),
    models_absent: Sequence[str] = (),
    classes: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return one verdict row (without ``case``) per rule and class of the scheme.

    Args:
        labels: canonical uint8 class ids [z, y, x].
        geometry: canonical geometry (mm).
        states: annotation state of each class; classes not named are unknown.
        image: canonical intensities (HU for CT) of the same shape, for the rules that need them.
        surgery: classes that were operated on or removed.
        models_absent: classes that no model found (``fuse.absent_in_all``).
        classes: classes that somebody or some model was asked for; an empty one among them fails its volume rule.
            Default: those annotated present and those with voxels.

    Raises:
        UserError: when a rule is wrong. ValueError: when shapes differ.
    """
    if image is not None and image.shape != labels.shape:
        raise ValueError(f"image of shape {image.shape} for labels of shape {labels.shape} (z, y, x)")
    facts = LabelFacts(labels, geometry, scheme)
    asked = set(scheme.select(list(classes))) if classes is not None else set()
    circumstances = _Circumstances(facts, states, modality, set(surgery), set(models_absent), asked)
    case = Case(facts, states, image if modality == "CT" else None, _once(lambda: _body(facts, image, modality)))
    rows = []
    for rule in load_rules(scheme):
        for name in rule.classes:
            rows.append(
                {"class": name, "rule": rule.name, "unit": rule.unit, **_verdict(rule, case, name, circumstances)}
            )
    return rows


def _verdict(rule: Rule, case: Case, name: str, circumstances: "_Circumstances") -> dict[str, Any]:
    try:
        circumstances.step_back(rule, name)
        value, threshold, failed, reason = KINDS[rule.kind][1](rule, case, name)
    except Skip as skip:
        return {"verdict": NOT_APPLICABLE, "value": math.nan, "threshold": math.nan, "reason": str(skip)}
    return {"verdict": FAIL if failed else PASS, "value": value, "threshold": threshold, "reason": reason}


@dataclass(frozen=True)
class _Circumstances:
    """Why a rule may step back before anything is measured."""

    facts: LabelFacts
    states: States
    modality: str
    surgery: set[str]
    models_absent: set[str]
    asked: set[str]

    def step_back(self, rule: Rule, name: str) -> None:
        """Raise Skip when the rule does not apply to the class."""
        state, empty = self.states.get(name, UNKNOWN), not self.facts.voxels(name)
        operated = [n for n in (name, *rule.compared) if n in self.surgery]
        if self.modality not in rule.modality:
            raise Skip(f"not for {self.modality}")
        if rule.kind == "annotation":
            return
        if "surgery" in rule.exceptions and operated:
            raise Skip(f"surgery: {', '.join(operated)}")
        if "absent" in rule.exceptions and state == ABSENT:
            raise Skip("annotated absent")
        if empty and "models" in rule.exceptions and name in self.models_absent and state == UNKNOWN:
            raise Skip("absent in every model")
        if empty and state == UNKNOWN and name not in self.asked:
            raise Skip("nobody labeled it")
        if empty and rule.kind != "volume":
            raise Skip("it has no voxel")


def _body(facts: LabelFacts, image: np.ndarray | None, modality: str) -> np.ndarray | None:
    return _air_around(facts, image) if image is not None and modality == "CT" else None


def _once(function: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``function``, called at most once and only if asked."""
    answers: list[Any] = []

    def answer() -> Any:
        if not answers:
            answers.append(function())
        return answers[0]

    return answer
