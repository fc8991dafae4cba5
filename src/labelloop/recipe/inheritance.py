"""How recipes inherit: ``extends`` between files, ``like`` between the named things of one recipe."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from labelloop.base.classes import Strict
from labelloop.base.documents import read_yaml, short
from labelloop.base.errors import UserError, nearest
from labelloop.base.lookup import SUFFIXES, find
from labelloop.base.unions import keys_of
from labelloop.inference.nnunet import described_nnunet
from labelloop.inference.settings import SKIPS
from labelloop.training.settings import TRAINER_SETTINGS

NAMED = ("plans", "trainers", "models", "external", "labels")
"""Sections whose entries may be ``like`` one another."""
REMOVABLE = (*NAMED, "groups", "feedback")
"""Sections of which null removes an entry of the recipe that is extended."""
KINDS: dict[str, type[Strict]] = {**TRAINER_SETTINGS, **SKIPS}
"""All that is told by its ``kind``."""
LIST = "clean"
"""Holds a list, also where its only entry stands alone; as other lists, it is replaced as a whole."""
Raw = dict[str, Any]
NOTHING: Mapping[str, Any] = {}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Raw:
    """Return ``base`` overridden key by key.

    What is ``like`` something else is made from that, not from what stands in ``base``. Where the ``kind`` changes,
    keys that only the former kind has are left behind.
    """
    kind = over.get("kind", base.get("kind"))
    left = set(base)
    if isinstance(kind, str) and kind != base.get("kind", kind) and kind in KINDS:
        left &= {"like", *keys_of(KINDS[kind])}
    result = {key: value for key, value in base.items() if key in left}
    for key, value in over.items():
        before = _mapping(result.get(key)) if key == "trainer" else result.get(key)
        anew = key == LIST or (isinstance(value, Mapping) and "like" in value)
        if isinstance(value, Mapping) and isinstance(before, Mapping) and not anew:
            result[key] = merged(before, value)
        else:
            result[key] = value
    return result


def _mapping(trainer: Any) -> Any:
    return {"like": trainer} if isinstance(trainer, str) else trainer


def with_extended(path: Path, seen: tuple[Path, ...] = ()) -> Raw:
    """Return the content of a recipe with that of the recipes that it extends.

    Raises:
        UserError: when a file is no recipe, or recipes extend each other.
    """
    if path in seen:
        raise UserError(f"{path}: extends: a circle of recipes that extend each other")
    content = read_yaml(path) or {}
    for key, found in {"recipe": content, **{s: _get(content, s) for s in REMOVABLE}}.items():
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
    base = with_extended(find("recipes", parent, asked_by=path), (*seen, path))
    base.pop("name", None)
    return merged(base, content)


def _get(content: Any, section: str) -> Any:
    return content.get(section) if isinstance(content, dict) else None


def _beside(recipe: Path, named: Any) -> Any:
    """Return the path of a YAML file that a recipe names, if it lies beside the recipe; else what is named."""
    beside = recipe.parent / str(named)
    return str(beside) if beside.suffix in SUFFIXES and beside.is_file() else named


def written_out(raw: Raw) -> Raw:
    """Return a recipe with nothing left that is ``like`` something, or named to stand for something else.

    What is null, of a recipe that this one extends, is left out.

    Raises:
        UserError: when what is named does not exist, or leads back to where it came from.
    """
    result = dict(raw)
    for section in REMOVABLE:
        if section in raw:
            result[section] = {name: value for name, value in (raw[section] or {}).items() if value is not None}
    result["trainers"] = trainers = _section("trainers", result.get("trainers") or {}, _as_it_is)

    def with_trainer(place: str, spec: Raw) -> Raw:
        return (
            spec | {"trainer": _trainer(f"{place}.trainer", spec["trainer"], trainers)} if "trainer" in spec else spec
        )

    for section in ("external", "plans", "models", "labels"):
        if section in result:
            prepared = with_trainer if section == "models" else _as_it_is
            elsewhere = result.get("external") or {} if section == "plans" else {}
            result[section] = _section(section, result[section], prepared, elsewhere)
    if isinstance(result.get("inference"), list):
        result["inference"] = [_cleaned(step, result.get("labels") or {}) for step in result["inference"]]
    return result


def _as_it_is(place: str, spec: Raw) -> Raw:
    return spec


def _section(
    section: str, entries: Mapping[str, Any], prepared: Callable[[str, Raw], Raw], external: Mapping[str, Any] = NOTHING
) -> Raw:
    """Return the entries of a section with those that they are ``like`` merged in.

    Args:
        external: models that are not trained here; a plan may be like that of one of nnU-Net's.
    """

    def resolve(name: str, seen: tuple[str, ...]) -> Raw:
        place = f"{section}.{name}"
        if not isinstance(entries[name], Mapping):
            raise UserError(f"{place}: found {short(entries[name], 80)}, expected keys with a value each")
        spec = dict(entries[name])
        base = spec.pop("like", None)
        spec = prepared(place, spec)
        if base is None:
            return spec
        if not isinstance(base, str):
            raise UserError(f"{place}.like: found {short(base, 80)}, expected a name under {section}")
        if section == "trainers" and base in TRAINER_SETTINGS and base not in entries:
            return merged({"kind": base}, spec)
        if base in external and (base == name or base not in entries):
            return merged(_plan_of(f"{place}.like", base, external[base]), spec)
        if base in (name, *seen) or base not in entries:
            sections = f"{section} or external" if external else section
            missing = f"no such name {base!r} under {sections}{nearest(base, [*entries, *external])}"
            raise UserError(f"{place}.like: {'a circle' if base in entries else missing}")
        return merged(resolve(base, (*seen, name)), spec)

    return {name: resolve(name, ()) for name in entries}


def _plan_of(place: str, name: str, model: Mapping[str, Any]) -> Raw:
    """Return the plan of an external model, which its files hold."""
    folder = model.get("nnunet")
    if not isinstance(folder, str):
        raise UserError(f"{place}: {name!r} is an external model; of these, nnU-Net's (`nnunet`) alone have a plan")
    try:
        plan = described_nnunet(folder).plan
    except UserError as error:
        raise UserError("\n".join(error.lines(place))) from error
    if plan is None:
        raise UserError(
            f"{place}: {folder}: its name does not say which of nnU-Net's configurations it is; expected a folder "
            "<trainer>__<plans>__<configuration>, as nnU-Net names it"
        )
    return plan.model_dump(mode="json", exclude={"ct", "mr"})


def _trainer(place: str, value: Any, trainers: Mapping[str, Raw]) -> Any:
    """Return the settings of a trainer that a model names, or is ``like``: a named one, or a kind."""
    if isinstance(value, Mapping):
        own = dict(value)
        base = own.pop("like", None)
    else:
        own, base = {}, value
    if base is None:
        return own
    if isinstance(base, str) and base in trainers:
        return merged(trainers[base], own)
    if isinstance(base, str) and base in TRAINER_SETTINGS:
        return merged({"kind": base}, own)
    hint = nearest(str(base), [*trainers, *TRAINER_SETTINGS])
    raise UserError(f"{place}: no such name {short(base, 80)!r} under trainers, and no such kind{hint}")


def _cleaned(step: Any, labels: Mapping[str, Any]) -> Any:
    """Return an inference step with the cleaning of the label set that it names."""
    named = step.get("clean") if isinstance(step, Mapping) else None
    if not isinstance(named, str):
        return step
    if named not in labels:
        raise UserError(f"inference: clean: no label set {named!r}{nearest(named, labels)}")
    return {**step, "clean": labels[named].get("clean") or ()}
