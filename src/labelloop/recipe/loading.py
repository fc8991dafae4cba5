"""Load a recipe from YAML files that extend each other; say all that is wrong with it at once."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from labelloop.classes import Strict
from labelloop.documents import found_in, read_yaml, short
from labelloop.errors import UserError, nearest
from labelloop.lookup import find
from labelloop.recipe.checks import meaning_errors
from labelloop.recipe.spec import Recipe


def load_recipe(name: str | Path, **overrides: Any) -> Recipe:
    """Load a recipe by name (:func:`labelloop.lookup.find`) or path, and check its form and its meaning.

    ``extends: NAME`` takes another recipe and overrides it key by key; ``like: NAME`` does so for one model.

    Raises:
        UserError: with all errors, one a line: file, key, what was found, the nearest valid name.
    """
    path = find("recipes", name)
    raw = _merge(_raw(path, ()), {k: v for k, v in overrides.items() if v is not None})
    raw.setdefault("name", path.stem)
    try:
        raw["models"] = _resolve_like(raw.get("models") or {}, path)
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in form_errors(error, Recipe))) from None
    problems = list(meaning_errors(recipe))
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return recipe


def _raw(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise UserError(f"{path}: extends: a circle of recipes that extend each other")
    content = read_yaml(path) or {}
    for key, found in {"recipe": content, "models": isinstance(content, dict) and content.get("models")}.items():
        if found and not isinstance(found, dict):
            raise UserError(f"{path}: {key}: found a {type(found).__name__}, expected names with a value each")
    for key in ("extends", "classes"):
        if key in content and not isinstance(content[key], str):
            raise UserError(f"{path}: {key}: found {short(content[key], 80)}, expected a name or a file")
        if key in content:
            content[key] = _beside(path, content[key])
    parent = content.pop("extends", None)
    if parent is None:
        return content
    base = _raw(find("recipes", parent, asked_by=path), (*seen, path))
    base.pop("name", None)
    return _merge(base, content)


def _beside(recipe: Path, named: Any) -> Any:
    """Return the path of a YAML file that a recipe names, if it lies beside the recipe; else what is named."""
    beside = recipe.parent / str(named)
    return str(beside) if beside.suffix in (".yaml", ".yml") and beside.is_file() else named


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _resolve_like(models: Mapping[str, Any], path: Path) -> dict[str, Any]:
    def resolve(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
        found = models[name] or {}
        if not isinstance(found, Mapping):
            raise UserError(f"{path}: models.{name}: found {short(found, 80)}, expected keys with a value each")
        spec = dict(found)
        base = spec.pop("like", None)
        if base is None:
            return spec
        if not isinstance(base, str):
            raise UserError(f"{path}: models.{name}.like: found {short(base, 80)}, expected the name of a model")
        if base in seen or base not in models:
            found = "a circle" if base in seen else f"no model {base!r}{nearest(base, models)}"
            raise UserError(f"{path}: models.{name}.like: {found}")
        return _merge(resolve(base, (*seen, name)), spec)

    return {name: resolve(name, ()) for name in models}


def form_errors(error: ValidationError, model: type[Strict]) -> Iterable[str]:
    """Yield one line per error of a pydantic model: key, what was found, the nearest valid key."""
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        hint = ""
        if item["type"] == "extra_forbidden":
            hint = nearest(str(item["loc"][-1]), _keys_at(model, item["loc"][:-1]))
            yield f"{place}: unknown key{hint}"
        else:
            yield f"{place}: {item['msg']}{found_in(item)}"


def _keys_at(model: type[Strict], place: tuple[Any, ...]) -> list[str]:
    """Return the keys that are valid at a place of ``model``, by walking the fields of nested models."""
    current: Any = model
    for part in place:
        fields = current.model_fields if isinstance(current, type) and issubclass(current, Strict) else {}
        annotation = fields[part].annotation if part in fields else current
        models = [a for a in _arguments(annotation) if isinstance(a, type) and issubclass(a, Strict)]
        current = models[0] if models else annotation
    return [field.alias or name for name, field in getattr(current, "model_fields", {}).items()]


def _arguments(annotation: Any) -> list[Any]:
    inner = [a for argument in getattr(annotation, "__args__", ()) for a in _arguments(argument)]
    return inner or [annotation]
