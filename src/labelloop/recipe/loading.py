"""Load a recipe from YAML files that extend each other; say all that is wrong with it at once."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from labelloop.base.classes import Strict
from labelloop.base.documents import found_in, place_of
from labelloop.base.errors import UserError, nearest
from labelloop.base.lookup import find
from labelloop.base.sequences import flat
from labelloop.base.unions import Family, kind_at, why_unknown
from labelloop.inference.external import EXTERNAL_KINDS
from labelloop.inference.settings import SKIPS
from labelloop.inference.steps import INFERENCE_STEPS
from labelloop.labels.settings import CLEANING
from labelloop.networks.nnunet_plan import PLANS
from labelloop.recipe.checks import meaning_errors
from labelloop.recipe.ensembles import ensemble_errors, same_for_all, with_members
from labelloop.recipe.inheritance import merged, with_extended, written_out
from labelloop.recipe.spec import Recipe
from labelloop.recipe.spellings import old_spellings
from labelloop.training.settings import TRAINER_SETTINGS

FAMILIES: tuple[Family, ...] = (TRAINER_SETTINGS, INFERENCE_STEPS, CLEANING, SKIPS, EXTERNAL_KINDS, PLANS)
"""All settings of which there are several kinds."""


def load_recipe(name: str | Path, **overrides: Any) -> Recipe:
    """Load a recipe by name (:func:`labelloop.base.lookup.find`) or path, and check its form and its meaning.

    ``extends: NAME`` takes another recipe and overrides it key by key; ``like: NAME`` does so for a plan, a trainer, a
    model or a label set. Ensembles are written out as their members.

    Raises:
        UserError: with all errors, one a line: file, key, what was found, the nearest valid name.
    """
    path = find("recipes", name)
    raw = merged(with_extended(path), {k: v for k, v in overrides.items() if v is not None})
    raw.setdefault("name", path.stem)
    _refuse(path, old_spellings(raw))
    try:
        recipe = Recipe.model_validate(written_out(raw))
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in form_errors(error, Recipe))) from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    written = with_members(recipe)
    once: dict[str, str] = {}
    for line in (*ensemble_errors(recipe), *meaning_errors(written)):
        once.setdefault(same_for_all(line), line)
    _refuse(path, once.values())
    return written


def _refuse(path: Path, problems: Iterable[str]) -> None:
    lines = [f"{path}: {problem}" for problem in problems]
    if lines:
        raise UserError("\n".join(lines))


def form_errors(error: ValidationError, model: type[Strict]) -> Iterable[str]:
    """Yield one line per error of a pydantic model: key, what was found, the nearest valid key."""
    for item in error.errors():
        place = place_of(item["loc"])
        if item["type"] == "extra_forbidden":
            yield f"{place}: {_why_unknown(model, item['loc'])}"
        elif item["type"] == "no_such_kind" and isinstance(item["input"], dict) and "kind" in item["input"]:
            yield f"{place}.kind: {item['msg']} (found {item['input']['kind']!r})"
        else:
            yield f"{place}: {item['msg']}{found_in(item)}"


def _why_unknown(model: type[Strict], place: tuple[Any, ...]) -> str:
    """Say why there is no such key at a place: it belongs to another kind, or which key may be meant."""
    kind, key = kind_at(place), str(place[-1])
    family = next((family for family in FAMILIES if kind in family), None)
    if kind is None or family is None:  # a form has no name that people write (``unions.by_form``)
        return f"unknown key{nearest(key, _keys_at(model, place[:-1]))}"
    return why_unknown(key, kind, family)


def _keys_at(model: type[Strict], place: tuple[Any, ...]) -> list[str]:
    """Return the keys that are valid at a place of ``model``, by walking the fields of nested models."""
    current: Any = model
    for part in place:
        family = next((family for family in FAMILIES if kind_at((part, "")) in family), None)
        if family is not None:
            current = family[str(kind_at((part, "")))]
            continue
        fields = current.model_fields if isinstance(current, type) and issubclass(current, Strict) else {}
        annotation = fields[part].annotation if part in fields else current
        models = [a for a in _arguments(annotation) if isinstance(a, type) and issubclass(a, Strict)]
        current = models[0] if models else annotation
    return [field.alias or name for name, field in getattr(current, "model_fields", {}).items()]


def _arguments(annotation: Any) -> list[Any]:
    inner = flat(map(_arguments, getattr(annotation, "__args__", ())))
    return inner or [annotation]
