"""What a recipe means is checked before any job starts: every name, and what cannot go together."""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from labelloop.base.classes import ClassScheme, Strict
from labelloop.base.documents import short
from labelloop.base.errors import nearest
from labelloop.base.outputs import alike_but_for_capitals
from labelloop.cases.groups import built_in, check_groups, name_problem
from labelloop.inference.steps import Compose, InferenceStep, Locate, Segment
from labelloop.labels.settings import CleanStep
from labelloop.networks.nnunet_plan import NnunetPlan
from labelloop.networks.settings import KIDNEYS
from labelloop.recipe.channel_checks import channel_errors
from labelloop.recipe.external_checks import external_errors, not_trained_here
from labelloop.recipe.inference_checks import inference_errors
from labelloop.recipe.rounds import ROUND, ancestors, looped, unroll
from labelloop.recipe.spec import RESERVED, TRUTH, LabelSetSpec, Recipe, parents
from labelloop.recipe.training_checks import training_errors
from labelloop.training.settings import (
    SLICE_CLASSIFIER,
    TRAINER_SETTINGS,
    TRANSLATOR,
    PartialSettings,
    SegmenterSettings,
    cutmix_of,
)

LONGEST_NAME = 64
"""Names of models, label sets and plans become names of folders."""


def meaning_errors(recipe: Recipe) -> Iterable[str]:
    """Yield a line for everything in a recipe of valid form that makes no sense: key, what was found, what is known."""
    scheme = recipe.scheme
    unknown = [*_name_errors(recipe), *external_errors(recipe), *_class_errors(recipe, scheme), *_circles(recipe)]
    yield from unknown
    yield from check_groups(recipe.groups, scheme)
    known_groups = {*built_in(scheme), *recipe.groups}
    for kind, specs in (("models", recipe.models), ("labels", recipe.labels)):
        for name, spec in specs.items():
            yield from _group_errors(f"{kind}.{name}.cases", spec.cases, known_groups)
    yield from _trainer_errors(recipe, scheme, known_groups)
    yield from _adaptation_errors(recipe)
    if not any(isinstance(step, Segment) for step in recipe.inference):
        yield "inference: no step segments anything; add {segment: MODEL}"
    yield from _chain_errors(recipe, all_known=not unknown)


def _chain_errors(recipe: Recipe, all_known: bool) -> Iterable[str]:
    """Yield what cannot go together in the chain with its rounds written out; what each round repeats, once."""
    chain = unroll(recipe) if all_known else recipe
    lines = [*_segmenter_errors(chain), *_transfer_errors(chain, chain.scheme)]
    for name, labels in chain.labels.items():
        lines += _selection_errors(f"labels.{name}", labels, chain.scheme)
    if all_known:
        lines += [*training_errors(chain), *channel_errors(chain), *inference_errors(chain)]
    once: dict[str, str] = {}
    for line in lines:
        once.setdefault(re.sub(rf"{ROUND}\d+", "", line), line)
    last = looped(recipe) if recipe.rounds > 1 else ()
    for line in once.values():
        named = line.partition(":")[0].split(".")
        yield f"{line} (in round {recipe.rounds})" if len(named) > 1 and named[1] in last else line


def _class_errors(recipe: Recipe, scheme: ClassScheme) -> Iterable[str]:
    for key, names in _class_references(recipe):
        for name in names:
            if name != "all" and name not in scheme.names and name not in scheme.sets:
                yield f"{key}: no class or set {name!r}{nearest(name, [*scheme.names, *scheme.sets])}"


def _circles(recipe: Recipe) -> Iterable[str]:
    """Yield a line for a model that learns from itself, and for rounds that would repeat nothing."""
    cycle = _cycle(recipe)
    if cycle:
        yield f"models/labels: a circle: {' -> '.join(cycle)}; a model cannot learn from its own predictions"
    if recipe.rounds > 1 and not recipe.feedback:
        yield "rounds: more than one needs `feedback: {teacher: student}`, which model takes whose place in round 2"
    for teacher, student in recipe.feedback.items() if recipe.rounds > 1 else ():
        known = teacher in {**recipe.models, **recipe.external} and student in recipe.models
        if known and not cycle and teacher not in ancestors(recipe, student):
            yield f"feedback.{teacher}: {student!r} does not learn from {teacher!r}, so no round would differ"


def _group_errors(key: str, names: Iterable[str], known: set[str]) -> Iterable[str]:
    for name in names:
        yield from (f"{key}: {line}" for line in name_problem(name, known))


def _trainer_errors(recipe: Recipe, scheme: ClassScheme, groups: set[str]) -> Iterable[str]:
    """Names inside the settings of trainers and label sets."""
    known = {*scheme.names, *scheme.sets, "all"}
    for name, spec in recipe.models.items():
        place = f"models.{name}.trainer"
        if isinstance(spec.trainer, PartialSettings) and spec.trainer.batches:
            yield from _group_errors(f"{place}.batches.full", spec.trainer.batches.full, groups)
        if not set(spec.classes) <= known:
            continue  # said elsewhere
        outputs = scheme.select(spec.classes)
        for key, wanted in _classes_in(spec.trainer):
            if wanted not in outputs:
                yield f"{place}.{key}: the model has no class {wanted!r}{nearest(wanted, outputs)}"
    for name, labels in recipe.labels.items():
        yield from _group_errors(f"labels.{name}.predict_for", labels.predict_for or (), groups)
        for absent in labels.select.absent_if_not_found:
            if absent not in known:
                yield f"labels.{name}.select.absent_if_not_found: no class or set {absent!r}{nearest(absent, known)}"
        tumors = set(scheme.sets.get("tumor", ()))
        if labels.tumor_voxels and set(labels.classes) <= known and tumors & set(scheme.select(labels.classes)):
            yield f"labels.{name}.tumor_voxels: the label set has the tumor itself; leave it out of `classes`"


def _classes_in(trainer: Strict) -> Iterable[tuple[str, str]]:
    """Yield the classes that the settings of a training name, each with its key."""
    if not isinstance(trainer, SegmenterSettings):
        return
    if trainer.favor:
        yield "favor.name", trainer.favor.name
    cutmix = cutmix_of(trainer)
    if cutmix:
        yield "cutmix.name", cutmix.name
    yield from (("class_weights", weighted) for weighted in trainer.class_weights or ())


OF_WHOLE_CASES = ("min_pairwise_dice", "max_uncertainty", "keep_least_uncertain")
"""Criteria of selection that ask for a case as a whole (`all`), too."""


def _selection_errors(place: str, labels: LabelSetSpec, scheme: ClassScheme) -> Iterable[str]:
    """Yield a line for each name in ``select`` that nothing has, and each criterion that one model cannot meet."""
    select = labels.select
    rules = dict.fromkeys(rule["name"] for rule in scheme.rules if "name" in rule)
    for rule in () if select.verdicts == "all" else select.verdicts:
        if rule not in rules:
            yield f"{place}.select.verdicts: no anatomy rule {rule!r}{nearest(rule, rules)}"
    for key in ("min_pairwise_dice", "min_quality", "max_uncertainty", "keep_least_uncertain", "if_refused"):
        value = getattr(select, key)
        for name in value if isinstance(value, dict) else ():
            known = (*(["all"] if key in OF_WHOLE_CASES else []), *scheme.names)
            if name not in known:
                yield f"{place}.select.{key}: no class {name!r}{nearest(name, known)}"
    asks_rules = {"thresholds": labels.thresholds, "select.verdicts": select.verdicts not in ("all", ())}
    for key in (key for key, asks in asks_rules.items() if asks and labels.check is None):
        yield f"{place}.{key}: asks the rules of anatomy, and check is null. Write check: anatomy, or leave it out"
    if len(labels.predict) > 1:
        return
    asked = ["min_pairwise_dice", "max_uncertainty", "keep_least_uncertain", "drop_most_uncertain"]
    if select.score == "agreement":
        asked.append("target_dsc")
    if select.voxels == "agreed":
        yield f"{place}.select.voxels: asks on which voxels models agree, and `predict` names one. Name two or more"
    for key in (key for key in asked if getattr(select, key)):
        yield (
            f"{place}.select.{key}: asks how far models agree, and `predict` names one: every label would be refused. "
            f"Name two or more, or write {key}: {0 if key == 'drop_most_uncertain' else 'null'}"
        )


def _name_errors(recipe: Recipe) -> Iterable[str]:
    references: list[tuple[str, str, Mapping[str, Any]]] = []
    labeling = {**recipe.models, **recipe.external}
    references += [(f"plans.{n}.translate", p.translate, recipe.models) for n, p in recipe.plans.items() if p.translate]
    for name, spec in recipe.models.items():
        references.append((f"models.{name}.plan", spec.plan, recipe.plans))
        references.append((f"models.{name}.labels", spec.labels, {TRUTH: None, **recipe.labels}))
        if spec.init_from:
            references.append((f"models.{name}.init_from", spec.init_from, labeling))
    for name, labels in recipe.labels.items():
        references += [(f"labels.{name}.predict", model, labeling) for model in labels.predict]
    for number, step in enumerate(recipe.inference):
        references += [(f"inference.{number}.{step.verb}", model, recipe.models) for model in step.models]
        found = dict.fromkeys(_results_before(recipe, number))
        references += [(f"inference.{number}.compose", result, found) for result in _composed(step)]
    references += [("evaluate.models", model, labeling) for model in recipe.evaluate.models]
    for model, replacement in recipe.feedback.items():
        references += [("feedback", model, labeling), (f"feedback.{model}", replacement, recipe.models)]
    for key, name, known in references:
        if name not in known:
            external = not_trained_here(name) if name in recipe.external else ""
            yield f"{key}: {external or f'no such name {name!r}{nearest(name, known)}'}"
    lists = {f"labels.{name}.predict": labels.predict for name, labels in recipe.labels.items()}
    lists |= {f"inference.{number}.segment": _segmented(step) for number, step in enumerate(recipe.inference)}
    lists |= {"evaluate.models": recipe.evaluate.models}
    for key, names in lists.items():
        for name in {name for name in names if names.count(name) > 1}:
            yield f"{key}: names {name!r} twice; keep one"
    for name in set(recipe.models) & set(recipe.labels):
        yield f"labels.{name}: a model has the same name"
    for name in recipe.external.keys() & {**recipe.models, **recipe.labels}.keys():
        yield f"external.{name}: a model or label set has the same name"
    for name in recipe.trainers.keys() & TRAINER_SETTINGS.keys():
        yield f"trainers.{name}: this is a kind of trainer; take another name"
    for name in [*recipe.models, *recipe.external, *recipe.labels, *recipe.plans]:
        if not name.replace("_", "").isalnum() or "_round" in name or len(name) > LONGEST_NAME:
            yield f"{short(name, 80)!r}: names are at most {LONGEST_NAME} letters, digits and '_', without '_round'"
        if name in RESERVED:
            yield f"{name!r}: this name is taken by a folder or score of every run; take another"
    alike = alike_but_for_capitals([*recipe.models, *recipe.external, *recipe.labels, *RESERVED])
    for earlier, name in (*alike, *alike_but_for_capitals(recipe.plans)):
        yield f"{name!r}: differs from {earlier!r} in capitals alone, which not all disks tell apart; rename it"


def _transfer_errors(recipe: Recipe, scheme: ClassScheme) -> Iterable[str]:
    """Yield a line for each label set that carries labels of several models, or of one that knows no kidneys."""
    for name, spec in recipe.labels.items():
        if spec.transfer is None:
            continue
        key, leading = f"labels.{name}.transfer", spec.predict[0]
        if len(spec.predict) > 1:
            yield f"{key}: carries the predictions of one model; `predict` names {len(spec.predict)}"
        known = leading in {**recipe.models, **recipe.external}
        classes = recipe.classes_of(leading) if known else ("all",)
        if set(classes) <= {*scheme.names, *scheme.sets, "all"}:
            missing = [kidney for kidney in KIDNEYS if kidney not in scheme.select(classes)]
            if missing:
                yield f"{key}: the kidneys decide whether labels fit; {leading!r} has no {' and no '.join(missing)}"


WHAT_ELSE = {
    SLICE_CLASSIFIER: "a slice classifier, which labels no voxels; it can only locate",
    TRANSLATOR: "a translator, which labels no voxels; it can only serve a plan's `translate`",
}
"""What models are that do not segment, and what they are good for."""


def _segmenter_errors(recipe: Recipe) -> Iterable[str]:
    """Yield a line for each place where a model that labels no voxels is asked to."""
    places: dict[str, Iterable[str | None]]
    places = {f"labels.{name}.predict": spec.predict for name, spec in recipe.labels.items()}
    places |= {f"inference.{n}.segment": _segmented(step) for n, step in enumerate(recipe.inference)}
    places |= {f"inference.{n}.compose": _composed(step) for n, step in enumerate(recipe.inference)}
    places |= {f"models.{name}.init_from": (spec.init_from,) for name, spec in recipe.models.items()}
    places["evaluate.models"] = recipe.evaluate.models
    for key, names in places.items():
        for name in names:
            if name in recipe.models and (what := WHAT_ELSE.get(recipe.models[name].trainer.kind)):
                yield f"{key}: {name!r} is {what}"
    for number, step in enumerate(recipe.inference):
        for name in step.models if isinstance(step, Locate) else ():
            if name in recipe.models and recipe.models[name].trainer.kind == TRANSLATOR:
                yield f"inference.{number}.locate: {name!r} is {WHAT_ELSE[TRANSLATOR]}"
    for name, spec in recipe.models.items():
        if spec.trainer.kind in WHAT_ELSE and spec.init_from:
            yield f"models.{name}.init_from: a {spec.trainer.kind.replace('_', ' ')} starts from random weights"
        if spec.trainer.kind == TRANSLATOR and spec.labels != TRUTH:
            yield f"models.{name}.labels: a translator learns from images alone"


def _adaptation_errors(recipe: Recipe) -> Iterable[str]:
    """Yield a line for each plan or model whose grey scale, translator or uprightness does not fit the others."""
    plans, models = recipe.plans, recipe.models
    for name, translated in plans.items():
        translator = models.get(translated.translate or "")
        if translator is None or translator.plan not in plans:
            continue  # said elsewhere
        if translator.trainer.kind != TRANSLATOR:
            yield f"plans.{name}.translate: {translated.translate!r} is no translator (trainer: {{kind: translator}})"
        elif translated.images | {"translate": None} != plans[translator.plan].images | {"translate": None}:
            yield f"plans.{name}: spacing_mm, grey, upright must be those of {translator.plan} ({translated.translate})"
    for name, spec in models.items():
        plan = plans.get(spec.plan)
        if plan and spec.trainer.kind == TRANSLATOR and (plan.grey is None or plan.translate):
            yield f"models.{name}.plan: {spec.plan} must have `grey` and no `translate`: a translator sees CT as it is"
        if plan and spec.trainer.kind == SLICE_CLASSIFIER and (plan.grey or isinstance(plan, NnunetPlan)):
            scale = "a grey scale" if plan.grey else "the intensities of nnU-Net's model"
            yield f"models.{name}.plan: a slice classifier windows Hounsfield units; {spec.plan} has {scale}"
    upright = {spec.plan: plans[spec.plan].upright for spec in models.values() if spec.plan in plans}
    if len(set(upright.values())) > 1:
        wrong = ", ".join(name for name, value in upright.items() if not value)
        yield f"plans: some ask for upright, but not {wrong}; a run turns volumes upright for all or for none"


def _results_before(recipe: Recipe, number: int) -> Iterable[str]:
    """Names under which earlier inference steps filed what they segmented."""
    for step in recipe.inference[:number]:
        yield from step.results


def _segmented(step: InferenceStep) -> tuple[str, ...]:
    return step.segment if isinstance(step, Segment) else ()


def _composed(step: InferenceStep) -> tuple[str, ...]:
    """Return the results that a step composes."""
    return tuple(step.compose.values()) if isinstance(step, Compose) else ()


def _class_references(recipe: Recipe) -> Iterable[tuple[str, Iterable[str]]]:
    yield from ((f"models.{name}.classes", spec.classes) for name, spec in recipe.models.items())
    for name, labels in recipe.labels.items():
        yield f"labels.{name}.classes", labels.classes
        yield f"labels.{name}.clean", _cleaned(labels.clean)
    for number, step in enumerate(recipe.inference):
        yield f"inference.{number}", _classes_of_step(step)


def _classes_of_step(step: InferenceStep) -> Iterable[str]:
    if isinstance(step, Locate):
        return step.classes
    if isinstance(step, Segment):
        return step.merge
    return step.compose if isinstance(step, Compose) else _cleaned(step.clean)


def _cleaned(steps: Iterable[CleanStep]) -> Iterable[str]:
    return itertools.chain.from_iterable(step.named for step in steps)


def _cycle(recipe: Recipe) -> list[str]:
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for parent in parents(recipe, name):
            found = visit(parent, [*trail, name])
            if found:
                return found
        done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in [*recipe.models, *recipe.labels])), [])
