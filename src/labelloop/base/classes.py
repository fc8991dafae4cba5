"""Class schemes: ids, names, colors and tolerances of what is segmented, from ``config/classes/*.yaml``."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from labelloop.base.documents import read_yaml, validated
from labelloop.base.errors import UserError
from labelloop.base.files import digest
from labelloop.base.lookup import find
from labelloop.base.sequences import flat

Names = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=tuple[str, ...] | str
    ),
]
"""Names of classes, groups, models and the like; one may stand alone."""
BACKGROUND = 0
IGNORED = 255
"""In label maps of class ids: a voxel of which nobody knows the class, as nnU-Net's ignore label."""
IGNORE = "ignore"
"""What data set files call such voxels; no class has this name."""


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Where random numbers begin: what numpy and torch take."""


class Idle(NamedTuple):
    """Settings that count for nothing in some combination: ``when`` says so of a model, ``why`` in words."""

    keys: tuple[str, ...]
    when: Callable[[Any], bool]
    why: str


class Strict(BaseModel):
    """A model that refuses keys it does not know, and values (other than defaults) that count for nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    idle: ClassVar[tuple[Idle, ...]] = ()

    @model_validator(mode="after")
    def _all_count(self) -> Self:
        fields = type(self).model_fields
        for keys, when, why in flat(vars(one).get("idle", ()) for one in type(self).__mro__):
            given = [key for key in keys if getattr(self, key) != fields[key].get_default(call_default_factory=True)]
            if given and when(self):
                raise ValueError(f"{', '.join(given)}: without effect {why}. Leave it out")
        return self


class Code(Strict):
    """What a class is, in SNOMED CT: concept id and meaning, on which side; whether it is a disease, not an organ."""

    sct: int = Field(gt=0)
    meaning: str = Field(min_length=1, max_length=64)
    side: Literal["left", "right"] | None = None
    abnormal: bool = False


class ClassInfo(Strict):
    """One class: its id in every label map, NSD tolerance (mm), the color it is drawn in, and its code for DICOM."""

    name: str
    id: int
    tolerance_mm: float
    color: str
    tube: bool = False
    code: Code | None = None


class ClassScheme(Strict):
    """A scheme of classes. ``sets`` names groups of classes; ``rules`` are the anatomy rules (``labels.check``)."""

    name: str
    classes: tuple[ClassInfo, ...]
    sets: dict[str, tuple[str, ...]] = {}
    rules: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "ClassScheme":
        if len({c.id for c in self.classes}) != len(self.classes) or len(set(self.names)) != len(self.classes):
            raise ValueError("class ids and names must be unique")
        if any(not BACKGROUND < c.id < IGNORED for c in self.classes):
            raise ValueError("class ids run from 1 to 254; 0 is background, and 255 what nobody knows")
        if IGNORE in self.names:
            raise ValueError(f"no class is named {IGNORE!r}: data set files call so what nobody knows")
        unknown = set(flat(self.sets.values())) - set(self.names)
        if unknown:
            raise ValueError(f"sets name unknown classes: {sorted(unknown)}")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of the file."""
        return tuple(c.name for c in self.classes)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each class name."""
        return {c.name: c.id for c in self.classes}

    def fingerprint(self, *fields: str) -> str:
        """Fingerprint of ids and sets, which every step goes by, and of more ``fields`` of the classes, e.g. colors."""
        return digest([[c.model_dump(include={"name", "id", *fields}) for c in self.classes], self.sets])

    def __getitem__(self, name: str) -> ClassInfo:
        return next(c for c in self.classes if c.name == name)

    def select(self, names: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
        """Return class names for a class, a set, "all", or a list of these, in the order of the scheme.

        Raises:
            UserError: for names that the scheme does not have.
        """
        key = (names,) if isinstance(names, str) else tuple(names)
        if key not in self._selected:  # the same few are asked for of each of many cases
            self._selected[key] = self._select(key)
        return self._selected[key]

    @cached_property
    def _selected(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        return {}

    def _select(self, names: tuple[str, ...]) -> tuple[str, ...]:
        wanted: set[str] = set()
        for name in names:
            wanted |= set(self.names if name == "all" else self.sets.get(name, (name,)))
        unknown = wanted - set(self.names)
        if unknown:
            raise UserError(f"class scheme {self.name}: no class or set named {', '.join(sorted(unknown))}")
        return tuple(n for n in self.names if n in wanted)


def load_classes(name: str | Path) -> ClassScheme:
    """Load a class scheme by name (``config/classes/NAME.yaml``) or by path. Raises UserError if it is no good."""
    path = find("classes", name)
    return validated(ClassScheme, read_yaml(path), path)
