"""Anatomy verdicts: rules are data (``rules:`` of ``config/classes/*.yaml``), each kind of rule is a small function.

A verdict says for one class and one rule what was measured, what it was held against, in which unit, and why. A rule
that cannot be applied says so (``not_applicable``) instead of guessing: an organ may be cut by the field of view or by
ignored voxels, annotated absent, absent in every model, or removed by surgery. All measures are in mm, ml, HU or %.
A rule of which a scheme says `verdict: doubt` refuses nothing: what breaks it is worth a look (the review queue).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import UserError
from labelloop.cases.annotation import ABSENT, UNKNOWN, States
from labelloop.images.boxes import box_text
from labelloop.images.volume import Geometry
from labelloop.labels.facts import LabelFacts
from labelloop.labels.rules import KINDS, RENAMED, Evidence, Rule, Skip
from labelloop.labels.rules.image import HU_KINDS, air_around

PASS, DOUBT, FAIL, NOT_APPLICABLE = "pass", "doubt", "fail", "not_applicable"
HOLD_FOR_PARTS = (*HU_KINDS, "extent", "volume")
"""Kinds of rules that what is known of a structure can break, though other voxels of it may be ignored."""


def load_rules(scheme: ClassScheme) -> tuple[Rule, ...]:
    """Return the scheme's rules, validated, with class sets resolved.

    Raises:
        UserError: naming every rule at fault and what is wrong with it.
    """
    rules, errors, seen = [], [], set()
    for number, raw in enumerate(scheme.rules, start=1):
        label = f"class scheme {scheme.name}: rule {raw.get('name', f'number {number}')!r}"
        old = [word for word in (raw.get("kind"), *raw) if word in RENAMED]
        if old:
            renamed = ", ".join(f"{word} is now called {RENAMED[word]}" for word in old)
            errors.append(f"{label}: {renamed}. Write that; if the scheme is of a run, finish it with this version")
            continue
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
    overlap: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Return one verdict row (without ``case``) per rule and class of the scheme.

    Args:
        labels: canonical uint8 class ids [z, y, x]; some voxels may be ignored.
        geometry: canonical geometry (mm).
        states: annotation state of each class; classes not named are unknown.
        image: canonical intensities (HU for CT) of the same shape, for the rules that need them.
        surgery: classes that were operated on or removed.
        models_absent: classes that no model found.
        classes: classes that somebody or some model was asked for; an empty one among them fails its volume rule.
            Default: those annotated present and those with voxels.
        overlap: voxels of each class that fusion gave to another organ (rows "overlap" of the provenance).

    Raises:
        UserError: when a rule is wrong. ValueError: when shapes differ.
    """
    case = opened(labels, geometry, states, scheme, image, modality, overlap)
    return verdicts(case, surgery, models_absent, classes)


def opened(
    labels: np.ndarray,
    geometry: Geometry,
    states: States,
    scheme: ClassScheme,
    image: np.ndarray | None = None,
    modality: str = "CT",
    overlap: Mapping[str, int] | None = None,
) -> Evidence:
    """Return what rules may look at, as :func:`check` takes it: what is measured on it once serves all who ask.

    Raises:
        ValueError: when shapes differ.
    """
    if image is not None and image.shape != labels.shape:
        raise ValueError(f"image of shape {image.shape} for labels of shape {labels.shape} (z, y, x)")
    facts = LabelFacts(labels, geometry, scheme)
    return Evidence(facts, states, image, _once(lambda: _body(facts, image, modality)), overlap, modality)


def verdicts(
    case: Evidence,
    surgery: Sequence[str] = (),
    models_absent: Sequence[str] = (),
    classes: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return the verdict rows of an opened case, as :func:`check` does. Raises UserError when a rule is wrong."""
    scheme = case.facts.scheme
    asked = set(scheme.select(list(classes))) if classes is not None else set()
    circumstances = _Circumstances(case.facts, case.states, case.modality, set(surgery), set(models_absent), asked)
    rows = []
    for rule in load_rules(scheme):
        for name in rule.classes:
            verdict = _verdict(rule, case, name, circumstances)
            rows.append({"class": name, "rule": rule.name, "unit": rule.unit, **verdict})
    return rows


def _verdict(rule: Rule, case: Evidence, name: str, circumstances: "_Circumstances") -> dict[str, Any]:
    try:
        circumstances.step_back(rule, name)
        value, threshold, failed, reason, box = KINDS[rule.kind][1](rule, case, name)
    except Skip as skip:
        return {"verdict": NOT_APPLICABLE, "value": math.nan, "threshold": math.nan, "reason": str(skip), "box": ""}
    found = {"value": value, "threshold": threshold, "reason": reason}
    where = box_text(box, case.facts.geometry) if failed else ""
    return {"verdict": rule.verdict if failed else PASS, **found, "box": where}


@dataclass(frozen=True)
class _Circumstances:
    """Why a rule may not be asked, before anything is measured."""

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
        if self.modality != "CT" and rule.kind in HU_KINDS:
            raise Skip(f"measures HU, which {self.modality} does not have")
        if rule.kind == "annotation":
            return
        if "surgery" in rule.exceptions and operated:
            raise Skip(f"surgery: {', '.join(operated)}")
        if "absent" in rule.exceptions and state == ABSENT:
            raise Skip("annotated absent")
        if empty and "models" in rule.exceptions and name in self.models_absent and state == UNKNOWN:
            raise Skip("nothing shows it: it may be absent")
        if empty and state == UNKNOWN and name not in self.asked:
            raise Skip("nobody labeled it")
        if empty and rule.kind not in ("volume", "expected"):
            raise Skip("it has no voxel")
        if empty and self.facts.ignores:
            raise Skip("it may lie under ignored voxels")
        partly = self.facts.beside_ignored([name, *rule.compared]) if rule.kind not in HOLD_FOR_PARTS else ()
        if partly:
            raise Skip(f"ignored voxels may belong to {', '.join(partly)}")


def _body(facts: LabelFacts, image: np.ndarray | None, modality: str) -> np.ndarray | None:
    return air_around(facts, image) if image is not None and modality == "CT" else None


def _once(function: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``function``, called at most once and only if asked."""
    answers: list[Any] = []

    def answer() -> Any:
        if not answers:
            answers.append(function())
        return answers[0]

    return answer
