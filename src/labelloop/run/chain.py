"""The chain of a recipe: what its models and label sets are made from, in which order, and how it is told."""

from collections.abc import Iterable
from typing import Any, Literal

from labelloop.base.sequences import flat
from labelloop.inference.external import External
from labelloop.inference.steps import Clean, InferenceStep
from labelloop.recipe import TRUTH, LabelSetSpec, ModelSpec, Recipe, ancestors, origins, parents, unroll
from labelloop.training.settings import TRANSLATOR, cutmix_of

Arrays = Literal["labels", "organs"]
"""Prepared label arrays, by folder: as they are, or voxels of tumors given to organs, for models of organs."""
MERMAID = {"truth": '[("{}")]', "model": '(["{}"])', "labels": '[/"{}"/]', "predictions": '[["{}"]]'}
"""How a mermaid flowchart writes a box, by its kind."""


def ordered(recipe: Recipe) -> list[str]:
    """Return all models and label sets, each after what it is made from, else in the order of the file."""
    result: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in result:  # else the ways through ensembles double with each round
            return
        for parent in parents(recipe, name):
            visit(parent)
        result[name] = None

    for name in [*recipe.models, *recipe.labels]:
        visit(name)
    return list(result)


def images_of(recipe: Recipe, plan: str) -> str:
    """Return the plan under whose name the prepared images lie: the first that prepares images in the same way."""
    return next(name for name, other in recipe.plans.items() if other.images == recipe.plans[plan].images)


def arrays_of(recipe: Recipe, model: str) -> Arrays:
    """Return the kind of label arrays that a model learns from: without tumor classes, tumors count as organs."""
    outputs, tumors = recipe.scheme.select(recipe.models[model].classes), recipe.scheme.sets.get("tumor", ())
    return "labels" if set(outputs) & set(tumors) else "organs"


def bank_of(recipe: Recipe, model: str) -> str:
    """Return the first model that pastes the same tumor objects as ``model``; under its name they lie."""

    def source(spec: ModelSpec) -> tuple | None:
        cutmix = cutmix_of(spec.trainer)
        return (images_of(recipe, spec.plan), spec.labels, cutmix.cut) if cutmix else None

    return next(name for name, spec in recipe.models.items() if source(spec) == source(recipe.models[model]))


def needed(recipe: Recipe) -> set[str]:
    """Return the models and label sets that the inference and the evaluation lead back to."""
    ends = {*flat(step.models for step in recipe.inference), *recipe.evaluate.models}
    return ends | set(flat(ancestors(recipe, end) for end in ends))


def lineage(recipe: Recipe, model: str) -> list[str]:
    """Return the models whose weights a model starts from, the nearest first; the last may be an external one."""
    before = recipe.models[model].init_from if model in recipe.models else None
    return [before, *lineage(recipe, before)] if before else []


def updates(recipe: Recipe, model: str) -> int:
    """Return the updates behind a model's weights: its own, and those of the models that it started from.

    0 for an external model, of which nobody knows, and for what starts from one.
    """
    behind = (model, *lineage(recipe, model))
    return 0 if behind[-1] in recipe.external else sum(own_updates(recipe, name) for name in behind)


def own_updates(recipe: Recipe, model: str) -> int:
    """Return the updates of a model's training."""
    trainer = recipe.models[model].trainer
    return trainer.epochs * trainer.iterations_per_epoch


def describe(recipe: Recipe) -> str:
    """Return the unrolled chain as text, one line a step."""
    chain = unroll(recipe)
    lines = [f"{recipe.name}: {recipe.description.strip()}", ""]
    for name in ordered(chain):
        spec = chain.models.get(name) or chain.external.get(name) or chain.labels[name]
        lines.append(_line(chain, name, spec))
    lines += [f"inference: {_step_text(step)}" for step in chain.inference]
    lines.append(
        f"evaluate: {', '.join([*chain.evaluate.models, 'the final label maps'])} by {chain.evaluate.protocol}"
    )
    return "\n".join(lines) + "\n"


def _line(chain: Recipe, name: str, spec: ModelSpec | External | LabelSetSpec) -> str:
    if isinstance(spec, ModelSpec):
        return _model_line(chain, name, spec)
    return _external_line(chain, name, spec) if isinstance(spec, External) else _labels_line(name, spec)


def _external_line(chain: Recipe, name: str, spec: External) -> str:
    known = ", ".join(chain.classes_of(name)) or "none"
    about = f", license {spec.license}" if spec.license else ""
    return (
        f"model {name}: not trained here, {spec.verb} {getattr(spec, spec.verb)}, ids of {spec.dataset}, "
        f"classes {known}{about}"
    )


def _model_line(chain: Recipe, name: str, spec: ModelSpec) -> str:
    plan = chain.plans[spec.plan]
    spacing = " x ".join(f"{s:g}" for s in plan.spacing_mm)
    trainer, cutmix = spec.trainer, cutmix_of(spec.trainer)
    updates = trainer.epochs * trainer.iterations_per_epoch
    if trainer.kind == TRANSLATOR:
        return (
            f"model {name}: translator from CT to MR, cases {' or '.join(spec.cases)}, plan {spec.plan} "
            f"({spacing} mm), {updates} updates, seed {trainer.seed}"
        )
    return (
        f"model {name}: {trainer.kind} on {spec.labels}, cases {' or '.join(spec.cases)}, "
        f"classes {', '.join(spec.classes)}, plan {spec.plan} ({spacing} mm), {updates} updates, "
        f"{f'CT translated by {plan.translate}, ' if plan.translate else ''}"
        f"seed {trainer.seed}{f', starting from {spec.init_from}' if spec.init_from else ''}"
        f"{f', {cutmix.name} objects pasted' if cutmix else ''}"
    )


def _labels_line(name: str, spec: LabelSetSpec) -> str:
    asked = f" for {' or '.join(spec.predict_for)}" if spec.predict_for else ""
    steps = [f"predict by {', '.join(spec.predict)}{asked}"]
    steps += [f"transfer from {spec.transfer.source}"] if spec.transfer else []
    steps += [f"fuse {spec.fuse}"]
    steps += [f"tumor voxels to the {spec.tumor_voxels.replace('_', ' ')}"] if spec.tumor_voxels else []
    steps += ["agree"] if len(spec.predict) > 1 else []
    steps += [f"clean ({len(spec.clean)} steps)"] if spec.clean else []
    steps += [f"check {spec.check}"] if spec.check else []
    return f"labels {name}: {' -> '.join([*steps, 'select'])}, cases {' or '.join(spec.cases)}"


def _step_text(step: InferenceStep) -> str:
    given = step.model_dump(exclude_defaults=True, exclude_none=True, by_alias=True)
    given |= {"clean": ", ".join(cleaning.verb for cleaning in step.clean)} if isinstance(step, Clean) else {}
    merged = [f"{how} of {name}" for name, how in given.pop("merge", {}).items()]
    return ", ".join([*(f"{key} {_plain(value)}" for key, value in given.items()), *merged])


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return " and ".join(f"{k} from {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def graph(recipe: Recipe) -> list[dict[str, Any]]:
    """Return the boxes of the unrolled chain as plain data, each after those that it is made from.

    A box has a ``name``, a ``title``, a ``kind`` (truth, model, labels or predictions) and its ``parents``, by name.
    """
    chain = unroll(recipe)
    boxes: list[dict[str, Any]] = [{"name": TRUTH, "title": "truth", "kind": "truth", "parents": []}]
    for name in ordered(chain):
        kind = "labels" if name in chain.labels else "model"
        title = _titled(chain, name)
        boxes.append({"name": name, "title": title, "kind": kind, "parents": list(_drawn_parents(chain, name))})
    models = list(dict.fromkeys(flat(step.models for step in chain.inference)))
    boxes.append({"name": "predictions", "title": "predictions", "kind": "predictions", "parents": models})
    return boxes


def mermaid(recipe: Recipe) -> str:
    """Return the unrolled chain as a mermaid flowchart."""
    lines = ["flowchart TD"]
    for box in graph(recipe):
        lines.append(f"    {box['name']}{MERMAID[box['kind']].format(box['title'])}")
        lines += [f"    {parent} --> {box['name']}" for parent in box["parents"]]
    return "\n".join(lines) + "\n"


def _titled(chain: Recipe, name: str) -> str:
    if name not in chain.labels:
        return f"model {name}" if name in chain.models else f"model {name}, not trained here"
    transfer = chain.labels[name].transfer
    return f"labels {name} from {transfer.source}" if transfer else f"labels {name}"


def _drawn_parents(chain: Recipe, name: str) -> Iterable[str]:
    if name in chain.models:
        spec = chain.models[name]
        translator = chain.plans[spec.plan].translate
        named = () if spec.trainer.kind == TRANSLATOR else tuple(origins(spec).values())
        return (*named, translator) if translator else named
    if name in chain.external:
        return ()
    truth = (TRUTH,) if chain.labels[name].fuse == "truth_first" else ()
    return (*truth, *chain.labels[name].predict)
