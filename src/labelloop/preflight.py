"""What a case table and a recipe tell before any image is opened: cases set aside, groups, classes without labels."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from labelloop.annotation import PRESENT, States
from labelloop.cases import Case
from labelloop.chain import ordered
from labelloop.classes import ClassScheme
from labelloop.datasets import load_dataset
from labelloop.errors import UserError
from labelloop.groups import canonical_name, memberships
from labelloop.recipe import TRUTH, ModelSpec, Recipe
from labelloop.training.settings import SLICE_CLASSIFIER, TRANSLATOR, TrainerSettings
from labelloop.wording import count

NAMED = 3
"""Cases that a message names."""


def expected_states(cases: Sequence[Case], scheme: ClassScheme) -> dict[str, States]:
    """Return the classes that are said to be annotated in each case; ``present`` stands for either.

    Cases whose row names unknown classes are left out: the survey will set them aside.

    Raises:
        UserError: when a data set file cannot be used.
    """
    by_default = {name: load_dataset(name, scheme).annotated for name in {case.dataset for case in cases}}
    states: dict[str, States] = {}
    for case in cases:
        try:
            scheme.select(case.surgery_names)
            named = scheme.select(case.annotated_names(by_default[case.dataset]))
        except UserError:
            continue
        states[case.case] = dict.fromkeys(named if case.label else (), PRESENT)
    return states


def warnings(cases: Sequence[Case], rejected: Sequence[Mapping[str, str]], scheme: ClassScheme) -> Iterable[str]:
    """Yield a line for each kind of rows that are set aside, or will be."""
    codes = Counter(row["code"] for row in rejected if row["severity"] == "error")
    for code, number in codes.items():
        first = next(row for row in rejected if row["code"] == code)
        yield f"{count(number, 'row')} set aside: {code}, as {first['case']}: {first['found']}. {first['action']}"
    for column in ("image", "label"):
        missing = [case for case in cases if getattr(case, column) and not Path(getattr(case, column)).is_file()]
        if missing:
            yield _some(f"no such {column}", missing) + f"; first: {getattr(missing[0], column)}"
    known = expected_states(cases, scheme)
    if wrong := [case for case in cases if case.case not in known]:
        known_names = ", ".join((*scheme.names, *scheme.sets))
        yield _some("annotated or surgery names no class", wrong) + f"; known: {known_names}"


def _some(what: str, cases: Sequence[Case]) -> str:
    names = ", ".join(case.case for case in cases[:NAMED]) + (", ..." if len(cases) > NAMED else "")
    return f"{count(len(cases), 'case')} will be set aside: {what}: {names}"


def group_sizes(cases: Sequence[Case], recipe: Recipe) -> dict[str, int]:
    """Return the number of train cases that are expected in each group that the recipe names."""
    _, groups = _training(cases, recipe)
    counts = Counter(group for names in groups.values() for group in names)
    named = [spec.cases for spec in recipe.models.values()] + [spec.cases for spec in recipe.labels.values()]
    return {group: counts[canonical_name(group)] for group in dict.fromkeys(chain.from_iterable(named))}


def fit(cases: Sequence[Case], recipe: Recipe) -> tuple[Recipe, list[str], list[str]]:
    """Take classes that nobody annotated or predicts from the models that were to learn them.

    Nothing tells such a class from the background: a partial loss is content with either everywhere.

    Returns:
        The recipe; a line for classes that were taken from models; a line for each model with nothing to learn from.
    """
    scheme = recipe.scheme
    states, groups = _training(cases, recipe)
    everywhere = {name for known in states.values() for name in known}
    models, problems = dict(recipe.models), []
    without: dict[tuple[str, ...], list[str]] = {}
    for model in ordered(recipe):
        if model not in models or models[model].trainer.kind in (SLICE_CLASSIFIER, TRANSLATOR):
            continue
        spec = models[model]
        outputs = scheme.select(spec.classes)
        wanted = set(map(canonical_name, spec.cases))
        mine = [case for case, names in groups.items() if names & wanted]
        known = {name for case in mine for name in states[case]}
        if spec.labels != TRUTH:
            labels = recipe.labels[spec.labels]
            annotated = everywhere if labels.fuse == "truth_first" else set()
            known = annotated.union(*(scheme.select(models[name].classes) for name in labels.predict))
        kept = [name for name in outputs if name in known]
        lost = [name for name in outputs if name not in known]
        if not mine or not kept:
            problems.append(_nothing(model, spec, len(groups), [name for name in outputs if name not in everywhere]))
        elif lost:
            without.setdefault(tuple(lost), []).append(model)
            trainer = _without(spec.trainer, lost)
            models[model] = spec.model_copy(update={"classes": tuple(_short(kept, scheme)), "trainer": trainer})
    notes = [
        f"nobody annotated or predicts {', '.join(lost)}; trained without: {', '.join(some)}"
        for lost, some in without.items()
    ]
    return recipe.model_copy(update={"models": models}), notes, problems


def _nothing(model: str, spec: ModelSpec, cases: int, missing: Sequence[str]) -> str:
    found = f"; in no case is annotated: {', '.join(missing)}" if missing else ""
    return (
        f"models.{model}.cases: none of {cases} train cases is in {' or '.join(spec.cases)}{found}. Choose "
        "another group or fewer classes (as the recipe btcv does), or correct what the case table or the data set "
        "file says is annotated"
    )


def _without(trainer: TrainerSettings, lost: Sequence[str]) -> TrainerSettings:
    """Return settings that no longer name ``lost`` classes."""
    weights = {name: weight for name, weight in (trainer.class_weights or {}).items() if name not in lost}
    named = {key: getattr(trainer, key) for key in ("favor", "cutmix")}
    kept = {key: value for key, value in named.items() if value is None or value.name not in lost}
    return trainer.model_copy(update={**dict.fromkeys(named), **kept, "class_weights": weights or None})


def _training(cases: Sequence[Case], recipe: Recipe) -> tuple[dict[str, States], dict[str, set[str]]]:
    """Return annotated classes and groups of each train case."""
    training = {case.case: case for case in cases if case.role == "train"}
    states = expected_states([*training.values()], recipe.scheme)
    return states, memberships(states, training, recipe.scheme, recipe.groups)


def _short(names: Sequence[str], scheme: ClassScheme) -> list[str]:
    """Return ``names``, with class sets for their members."""
    short, left = [], list(names)
    for name, members in scheme.sets.items():
        if len(members) > 1 and set(members) <= set(left):
            short.append(name)
            left = [n for n in left if n not in members]
    return short + left
