"""Ensembles: a model with several seeds becomes as many models, and its name means all of them.

Where a line takes several models, the name stands for all members: ``predict``, ``evaluate.models`` and ``segment``.
``init_from`` and ``feedback`` pair ensembles of equal length, member by member. Elsewhere one model is needed.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from labelloop.base.sequences import flat
from labelloop.inference.steps import Compose, InferenceStep, Locate, Segment
from labelloop.recipe.spec import ModelSpec, Recipe

MEMBER = "_seed"
Members = Mapping[str, tuple[str, ...]]
"""Names of the members of each ensemble."""


def members_of(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Return the names of the members of each ensemble of a recipe as it is written."""
    ensembles = {name: spec.seeds for name, spec in recipe.models.items() if spec.seeds}
    return {name: tuple(f"{name}{MEMBER}{seed}" for seed in seeds) for name, seeds in ensembles.items()}


def with_members(recipe: Recipe) -> Recipe:
    """Return the recipe with each ensemble written out as its members.

    What :func:`ensemble_errors` complains of is left to the first member.
    """
    groups = members_of(recipe)
    if not groups:
        return recipe
    models: dict[str, ModelSpec] = {}
    for name, spec in recipe.models.items():
        for number, member in enumerate(groups.get(name, (name,))):
            models[member] = _member(spec, number, groups)
    labels = {
        name: spec.model_copy(update={"predict": _all(spec.predict, groups)}) for name, spec in recipe.labels.items()
    }
    plans = {
        name: plan.model_copy(update={"translate": _one(plan.translate, groups)}) for name, plan in recipe.plans.items()
    }
    changes: dict[str, Any] = {"plans": plans, "models": models, "labels": labels}
    changes["inference"] = tuple(_step(step, groups) for step in recipe.inference)
    changes["evaluate"] = recipe.evaluate.model_copy(update={"models": _all(recipe.evaluate.models, groups)})
    pairs = [
        zip(groups.get(teacher, (teacher,)), groups.get(student, (student,)), strict=False)
        for teacher, student in recipe.feedback.items()
    ]
    changes["feedback"] = dict(flat(pairs))
    return recipe.model_copy(update=changes)


def _member(spec: ModelSpec, number: int, groups: Members) -> ModelSpec:
    """Return the model of one seed, which starts from the member of the same place."""
    before = groups.get(spec.init_from or "", (spec.init_from,))
    changes: dict[str, Any] = {"seeds": None, "init_from": before[min(number, len(before) - 1)]}
    if spec.seeds:
        changes["trainer"] = spec.trainer.model_copy(update={"seed": spec.seeds[number]})
    return spec.model_copy(update=changes)


def _step(step: InferenceStep, groups: Members) -> InferenceStep:
    if isinstance(step, Segment):
        return step.model_copy(update={"segment": _all(step.segment, groups)})
    if isinstance(step, Compose):  # a result of an ensemble is filed under the name of each member
        return step.model_copy(update={"compose": {name: _one(found, groups) for name, found in step.compose.items()}})
    if isinstance(step, Locate):
        return step.model_copy(update={"locate": _one(step.locate, groups)})
    return step


def _all(names: Iterable[str], groups: Members) -> tuple[str, ...]:
    return tuple(flat(groups.get(name, (name,)) for name in names))


def _one(name: str | None, groups: Members) -> str | None:
    return groups[name][0] if name is not None and name in groups else name


def ensemble_errors(recipe: Recipe) -> Iterable[str]:
    """Yield a line for each place of a recipe as it is written where an ensemble makes no sense."""
    groups = members_of(recipe)
    taken = {*recipe.models, *recipe.external, *recipe.labels, *recipe.plans}
    for name, members in groups.items():
        for member in taken.intersection(members):
            yield f"models.{name}.seeds: its member {member!r} has the name of another thing; rename one of them"
    for name, spec in recipe.models.items():
        before = groups.get(spec.init_from or "")
        if before and len(before) != len(groups.get(name, ())):
            found = f"{name!r} has {len(groups[name])} seeds" if name in groups else f"{name!r} is one model"
            yield (
                f"models.{name}.init_from: {spec.init_from!r} is an ensemble of {len(before)}, and {found}; "
                f"name one member, e.g. {before[0]}, or give both equally many seeds"
            )
    for teacher, student in recipe.feedback.items():
        sizes = [len(groups.get(name, (name,))) for name in (teacher, student)]
        if sizes[0] != sizes[1]:
            yield (
                f"feedback.{teacher}: {teacher!r} has {sizes[0]} members and {student!r} {sizes[1]}; a model is "
                "replaced by one model, an ensemble by one of equally many seeds"
            )
    for key, named in _places_of_one(recipe):
        if named in groups:
            yield f"{key}: {named!r} is an ensemble, and one model is needed; name a member, e.g. {groups[named][0]}"
    yield from _composed(recipe, groups)


def _places_of_one(recipe: Recipe) -> Iterable[tuple[str, str | None]]:
    """Yield the keys that name one model, and what they name."""
    yield from ((f"plans.{name}.translate", plan.translate) for name, plan in recipe.plans.items())
    for number, step in enumerate(recipe.inference):
        if isinstance(step, Locate):
            yield f"inference.{number}.locate", step.locate


def _composed(recipe: Recipe, groups: Members) -> Iterable[str]:
    """Yield a line for each part of a composition that names an ensemble which was not segmented as a whole."""
    segmented: set[str] = set()
    for number, step in enumerate(recipe.inference):
        if isinstance(step, Segment):
            segmented |= set(step.segment)
        if isinstance(step, Compose):
            for name in sorted(set(step.compose.values()) & (groups.keys() - segmented)):
                yield f"inference.{number}.compose: no step before segments the ensemble {name!r}"


def same_for_all(line: str) -> str:
    """Return what is the same in the lines that say one thing of each member of an ensemble."""
    return re.sub(rf"{MEMBER}\d+", "", line)
