"""Class schemes: ids, names, colors and tolerances of what is segmented, from ``config/classes/*.yaml``."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from labelloop.errors import UserError
from labelloop.files import digest, read_yaml

Names = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=tuple[str, ...] | str
    ),
]
"""Names of classes, groups, models and the like; one may stand alone."""
CONFIG = Path(__file__).resolve().parents[2] / "config"
BACKGROUND = 0


class Strict(BaseModel):
    """A model that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassInfo(Strict):
    """One class: its id in every label map, its NSD tolerance (mm) and the color it is drawn in."""

    name: str
    id: int
    tolerance_mm: float
    color: str
    tube: bool = False


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
        if any(c.id <= BACKGROUND or c.id > 254 for c in self.classes):
            raise ValueError("class ids run from 1 to 254; 0 is background")
        unknown = {n for names in self.sets.values() for n in names} - set(self.names)
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
        """Return class names for a class, a set, "all", or a list of these, in the order of the scheme."""
        wanted: set[str] = set()
        for name in [names] if isinstance(names, str) else names:
            wanted |= set(self.names if name == "all" else self.sets.get(name, (name,)))
        unknown = wanted - set(self.names)
        if unknown:
            raise UserError(f"class scheme {self.name}: no class or set named {', '.join(sorted(unknown))}")
        return tuple(n for n in self.names if n in wanted)


def load_classes(name: str | Path) -> ClassScheme:
    """Load a class scheme by name (``config/classes/NAME.yaml``) or by path. Raises UserError if it is no good."""
    path = Path(name) if str(name).endswith(".yaml") else CONFIG / "classes" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (CONFIG / "classes").glob("*.yaml")))
        raise UserError(f"no class scheme {name!r} at {path}; known: {known}")
    try:
        return ClassScheme.model_validate(read_yaml(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise UserError("\n".join(lines)) from error
