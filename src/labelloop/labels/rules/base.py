"""What every kind of rule shares: its parameters, what it may look at, what it answers, and the list of kinds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import field_validator

from labelloop.base.classes import Strict
from labelloop.cases.annotation import States
from labelloop.images.hounsfield import clipping_limits
from labelloop.labels.facts import Box, LabelFacts
from labelloop.labels.settings import CRITERIA
from labelloop.labels.surface import Surfaces

COUNTS = ("failed", "doubted", "applied")
"""How many rules fail, doubt, and were applied at all: they stand beside the rules in tables of evidence."""
Exceptions = tuple[Literal["absent", "models", "surgery", "cut"], ...]


class Rule(Strict):
    """What every rule says of itself.

    ``classes`` may name sets; where ``threshold`` is given per class, they default to its keys. ``exceptions`` are
    the circumstances in which the rule is not asked: ``absent`` (annotated absent), ``models`` (absent in every model),
    ``surgery`` (the class, or one it is compared with, was operated on) and ``cut`` (by the field of view).
    ``verdict``: what it means to break the rule: ``fail``, or ``doubt``, which is a reason to look and none to refuse.
    """

    name: str
    kind: str
    classes: tuple[str, ...] = ()
    unit: str
    source: str
    modality: tuple[Literal["CT", "MR"], ...] = ("CT", "MR")
    verdict: Literal["fail", "doubt"] = "fail"
    exceptions: Exceptions = ("absent", "models", "surgery", "cut")

    @field_validator("name")
    @classmethod
    def _its_own(cls, name: str) -> str:
        if name in (*COUNTS, *CRITERIA) or ";" in name:
            raise ValueError("tables name something else so, or part names by ';' in it; give the rule another name")
        return name

    @property
    def compared(self) -> tuple[str, ...]:
        """Classes other than its own that the rule looks at."""
        return ()


class Limit(Rule):
    """A rule with one threshold, or one per class."""

    threshold: float | dict[str, float]

    @field_validator("threshold")
    @classmethod
    def _a_number(cls, limits: float | dict[str, float]) -> float | dict[str, float]:
        if any(math.isnan(limit) for limit in (limits.values() if isinstance(limits, dict) else (limits,))):
            raise ValueError("NaN is no limit")
        return limits

    def limit(self, name: str) -> float:
        """Threshold of a class."""
        return self.threshold[name] if isinstance(self.threshold, dict) else self.threshold


class Range(Rule):
    """A rule with a lowest and a highest value per class."""

    threshold: dict[str, tuple[float, float]]

    @field_validator("threshold")
    @classmethod
    def _ordered(cls, limits: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        wrong = [name for name, (low, high) in limits.items() if not low <= high]  # NaN, too
        if wrong:
            raise ValueError(f"lowest value above the highest, or NaN, for {', '.join(wrong)}")
        return limits


class Finding(NamedTuple):
    """What a rule found: whether it is broken, with the measured value, its threshold, and the reason.

    ``box``: the voxels (z, y, x) where it was found, if that is a part of the class or beside it.
    """

    value: float
    threshold: float
    failed: bool
    reason: str
    box: Box | None = None


class Skip(Exception):  # noqa: N818 - not an error: the rule does not apply, and the message says why
    """Raised by a rule that does not apply."""


@dataclass(frozen=True)
class Evidence:
    """What a rule may look at.

    ``body`` gives the air around the patient on a coarse grid, ``overlap`` the voxels of each class that fusion gave
    to another organ; both None where not known. ``image`` is in HU for CT; rules on HU are never asked on MR.
    """

    facts: LabelFacts
    states: States
    image: np.ndarray | None
    body: Callable[[], "np.ndarray | None"]
    overlap: Mapping[str, int] | None = None
    modality: str = "CT"

    @cached_property
    def surfaces(self) -> Surfaces | None:
        """The surfaces of the classes on the image; None without an image."""
        return None if self.image is None else Surfaces(self.facts, self.image)

    @cached_property
    def clipped_at(self) -> tuple[float, ...]:
        """Intensities at which the image was clipped: there it does not tell tissues apart."""
        if self.image is None:
            return ()
        ends = clipping_limits(self.image, float(self.image.min()), float(self.image.max()))
        return tuple(end for end in ends if end is not None)


RENAMED = {
    "goes_on": "undersegmented",
    "uneven": "heterogeneous",
    "foreign": "inclusion_like",
    "unlike_hu": "muscle_hu",
    "least": "min_found",
}
"""Former names of kinds and of keys of rules, and what they are called."""

KINDS: dict[str, tuple[type[Rule], Callable[[Any, Evidence, str], Finding]]] = {}
"""Rule kinds by name: the model of their parameters and the function (rule, case, class) -> Finding."""


def kind(name: str, model: type[Rule]) -> Callable:
    """Register a function (rule, case, class) -> Finding as a kind of rules with the parameters ``model``."""

    def register(function: Callable[[Any, Evidence, str], Finding]) -> Callable:
        KINDS[name] = (model, function)
        return function

    return register
