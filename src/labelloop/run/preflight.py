"""What a case table and a recipe tell before any image is opened: cases set aside, groups, classes without labels."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from labelloop.base.classes import ClassScheme
from labelloop.base.sequences import flat
from labelloop.base.wording import count, named
from labelloop.cases.groups import canonical_name
from labelloop.cases.table import Case
from labelloop.inference.steps import Compose, InferenceStep, Locate, Segment
from labelloop.labels.settings import CleanStep, RemoveDistantIslands
from labelloop.networks.nnunet_plan import unfit_for
from labelloop.recipe import Recipe
from labelloop.recipe.inference_checks import labeled_by
from labelloop.run.chain import needed, ordered
from labelloop.run.expected import Expected, expected_states
from labelloop.training.settings import PartialSettings, SegmenterSettings


def warnings(cases: Sequence[Case], rejected: Sequence[Mapping[str, str]], scheme: ClassScheme) -> Iterable[str]:
    """Yield a line for each kind of rows that are set aside, or will be, and of those that are kept and doubtful."""
    codes = Counter(row["code"] for row in rejected)
    for code, number in codes.items():
        first = next(row for row in rejected if row["code"] == code)
        what = "set aside" if first["severity"] == "error" else "doubtful"
        yield f"{count(number, 'row')} {what}: {code}, as {first['case']}: {first['found']}. {first['action']}"
    images = {case.case: case.images for case in cases}
    labels = {case.case: (case.label,) if case.label else () for case in cases}
    for what, files_of in (("image", images), ("label", labels)):
        missing = {case: [file for file in files if not Path(file).is_file()] for case, files in files_of.items()}
        without = [case for case in cases if missing[case.case]]
        if without:
            yield _some(f"no such {what}", without) + f"; first: {missing[without[0].case][0]}"
    known = expected_states(cases, scheme)
    if wrong := [case for case in cases if case.case not in known]:
        known_names = ", ".join((*scheme.names, *scheme.sets))
        yield _some("annotated or surgery names no class", wrong) + f"; known: {known_names}"


def _some(what: str, cases: Sequence[Case]) -> str:
    return f"{count(len(cases), 'case')} will be set aside: {what}: {named([case.case for case in cases])}"


def unfit_plans(expected: Expected) -> Iterator[str]:
    """Yield a line for each plan of nnU-Net's that takes images of one modality for those of the other."""
    recipe, used = expected.chain, needed(expected.chain)
    modalities = {case.modality for case in expected.cases.values() if case.modality}
    for name in dict.fromkeys(spec.plan for model, spec in recipe.models.items() if model in used):
        yield from (f"plans.{name}: {words}" for words in unfit_for(recipe.plans[name], modalities))


def group_sizes(expected: Expected) -> dict[str, int]:
    """Return the number of train cases that are expected in each group that the recipe names."""
    recipe, counts = expected.chain, Counter(flat(expected.groups.values()))
    named = [spec.cases for spec in recipe.models.values()] + [spec.cases for spec in recipe.labels.values()]
    return {group: counts[canonical_name(group)] for group in dict.fromkeys(flat(named))}


def fit(expected: Expected) -> list[str]:
    """Take classes that nobody annotated or predicts from the models of the chain that were to learn them.

    Nothing tells such a class from the background: a partial loss is content with either everywhere. Inference steps no
    longer name what all models have lost.

    Returns:
        A line for classes that were taken from models.
    """
    recipe, scheme = expected.chain, expected.scheme
    without: dict[tuple[str, ...], list[str]] = {}
    for model in (name for name in ordered(recipe) if name in recipe.models):
        spec, outputs = recipe.models[model], scheme.select(recipe.models[model].classes)
        if not isinstance(spec.trainer, SegmenterSettings):
            continue
        known = frozenset().union(*set(expected.known(model).values()))
        kept, lost = [name for name in outputs if name in known], [name for name in outputs if name not in known]
        if kept and lost:
            without.setdefault(tuple(lost), []).append(model)
            changes = {"classes": tuple(_short(kept, scheme)), "trainer": _without(spec.trainer, lost)}
            models = expected.chain.models | {model: spec.model_copy(update=changes)}
            expected.chain = expected.chain.model_copy(update={"models": models})
    notes = [
        f"nobody annotated or predicts {', '.join(lost)}; trained without: {', '.join(some)}"
        for lost, some in without.items()
    ]
    if without:
        steps = tuple(_fitting(recipe.inference, expected.chain))
        expected.chain = expected.chain.model_copy(update={"inference": steps})
    return notes


def _fitting(steps: Sequence[InferenceStep], recipe: Recipe) -> Iterator[InferenceStep]:
    """Yield the inference steps without what asks for classes that no model of theirs knows any more."""
    everything = set(flat(labeled_by(recipe, model) for model in flat(step.models for step in steps)))
    held: dict[str, set[str]] = {}

    def lost(names: Iterable[str], known: set[str] = everything) -> bool:
        asked = recipe.scheme.select(list(names))
        return bool(asked) and known.isdisjoint(asked)

    for step in steps:
        fitted = _fitted(step, lost, held, everything)
        found = set(flat(labeled_by(recipe, model) for model in step.models))
        held |= dict.fromkeys(step.results, found)
        if fitted is not None:
            yield fitted


def _fitted(
    step: InferenceStep, lost: Callable[..., bool], held: Mapping[str, set[str]], everything: set[str]
) -> InferenceStep | None:
    """Return a step without what is lost; None where nothing is left of it to do.

    Args:
        lost: says whether nothing is known of the classes that it is given.
        held: the classes that each result holds.
        everything: the classes that any result may hold.
    """
    if isinstance(step, Locate):
        return None if lost(step.classes) else step
    if isinstance(step, Segment):
        return step.model_copy(update={"merge": {}}) if lost(step.merge) else step
    if isinstance(step, Compose):
        kept = {name: found for name, found in step.compose.items() if not lost([name], held.get(found, everything))}
        return step.model_copy(update={"compose": kept}) if kept else None
    cleaning = tuple(one for one in step.clean if not lost(one.classes) and not _distance_lost(one, lost))
    return step.model_copy(update={"clean": cleaning}) if cleaning else None


def _distance_lost(cleaning: CleanStep, lost: Callable[..., bool]) -> bool:
    """Say whether that from which a step measures distances is known no more."""
    return isinstance(cleaning, RemoveDistantIslands) and lost(cleaning.of)


def _without(trainer: SegmenterSettings, lost: Sequence[str]) -> SegmenterSettings:
    """Return settings that no longer name ``lost`` classes."""
    weights = {name: weight for name, weight in (trainer.class_weights or {}).items() if name not in lost}
    changes: dict[str, Any] = {"class_weights": weights or None}
    if trainer.favor and trainer.favor.name in lost:
        changes["favor"] = None
    if isinstance(trainer, PartialSettings) and trainer.cutmix and trainer.cutmix.name in lost:
        changes["cutmix"] = None
    return trainer.model_copy(update=changes)


def _short(names: Sequence[str], scheme: ClassScheme) -> list[str]:
    """Return ``names``, with class sets for their members."""
    short, left = [], list(names)
    for name, members in scheme.sets.items():
        if len(members) > 1 and set(members) <= set(left):
            short.append(name)
            left = [n for n in left if n not in members]
    return short + left
