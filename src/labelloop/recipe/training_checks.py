"""What trainings of a recipe cannot do: checked before any job starts, as they would fail after days, or in silence."""

from collections.abc import Iterable
from typing import Any

from labelloop.base.errors import UserError
from labelloop.inference.external import NnunetModel
from labelloop.networks.nnunet_plan import NnunetPlan
from labelloop.networks.plans import Plan
from labelloop.recipe.external_checks import start_errors
from labelloop.recipe.rounds import ancestors
from labelloop.recipe.spec import ModelSpec, Recipe
from labelloop.training.settings import AXES, SEMI_SUPERVISED, TRANSLATOR, SegmenterSettings

NETWORK = {
    "channels": "inputs", "features": "features", "strides": "stage_strides", "kernels": "stage_kernels",
    "residual": "residual", "convs_per_stage": "encoder_counts", "convs_per_stage_decoder": "decoder_counts",
}  # fmt: skip
"""Keys of a plan that decide what its network is, and where their values stand, also those that follow from others."""
PARTS = {"conv_bias": "conv_bias", "norm": "norm_op_kwargs", "nonlinearity": "nonlin_kwargs"}
"""Keys of plans of nnU-Net's that decide it besides, and what they are in its words: other plans all have the same."""


def training_errors(chain: Recipe) -> Iterable[str]:
    """Yield a line for each training of an unrolled recipe, all of whose names exist, that cannot be done as asked."""
    for name, spec in chain.models.items():
        if spec.trainer.kind == TRANSLATOR:
            continue
        place, plan = f"models.{name}", chain.plans[spec.plan]
        if spec.init_from in chain.external:
            yield from start_errors(f"{place}.init_from", spec.init_from, chain.external[spec.init_from])
        if spec.init_from:
            yield from _network_errors(f"{place}.init_from", spec, chain)
        if isinstance(plan, NnunetPlan) and plan.folds > 1:
            yield f"plans.{spec.plan}.folds: {plan.folds}, and a training is of one network. Leave it out"
        axes = spec.trainer.mirror_axes if isinstance(spec.trainer, SegmenterSettings) else ()
        if isinstance(plan, NnunetPlan) and plan.orientation == "stored" and 0 < len(axes) < len(AXES):
            yield (
                f"{place}.trainer.mirror_axes: {', '.join(axes)} are axes of the patient, and plans.{spec.plan} "
                "(orientation: stored) takes those of each file, in which they may be others. "
                f"Write all, [{', '.join(AXES)}], or none"
            )
        if getattr(spec.trainer, "new_class_bias", None) is not None and not spec.init_from:
            yield f"{place}.trainer.new_class_bias: without effect without init_from. Leave it out"
        if spec.trainer.kind in SEMI_SUPERVISED and plan.batch_size < 2:
            yield (
                f"{place}.trainer.kind: {spec.trainer.kind} needs room for labeled and unlabeled samples in a batch; "
                f"plans.{spec.plan}.batch_size is 1. Set 2 or more"
            )
        if exports_best(spec) and not spec.validation_fraction:
            yield (
                f"{place}.trainer.export: best needs validation cases, and validation_fraction is 0. "
                "Set a fraction, or export: final"
            )
    for name, labels in chain.labels.items():
        if labels.select.target_dsc is not None and not labels.select.calibration:
            yield from _promise_errors(f"labels.{name}.select.target_dsc", _behind(chain, name))


def exports_best(spec: ModelSpec) -> bool:
    """Say whether the validation chooses the weights of a model."""
    return isinstance(spec.trainer, SegmenterSettings) and spec.trainer.export == "best"


def _network_errors(key: str, spec: ModelSpec, chain: Recipe) -> Iterable[str]:
    """Yield a line when the weights of the model to start from do not fit the network."""
    start = spec.init_from or ""
    other = f"of {start}" if start in chain.external else chain.models[start].plan
    ours, theirs = chain.plans[spec.plan], _plan_of(start, chain)
    wrong = _differences(ours, theirs) if theirs else []
    if wrong:
        instead = f"plans.{spec.plan}: {{like: {start}}}" if start in chain.external else f"plan: {other}"
        yield (
            f"{key}: the plans {spec.plan} and {other} have different networks ({'; '.join(wrong)}), and weights of "
            f"{start} do not fit. Write {instead}, or leave init_from out"
        )


def _plan_of(model: str, chain: Recipe) -> Plan | None:
    """Return the plan of a model, trained here or not; None where its files do not tell it."""
    if model in chain.models:
        return chain.plans[chain.models[model].plan]
    external = chain.external[model]
    try:
        return external.described.plan if isinstance(external, NnunetModel) else None
    except UserError:  # told when a run starts
        return None


def _differences(ours: Plan, theirs: Plan) -> list[str]:
    """Return in what the networks of two plans differ, in words."""
    keys = [key for key, where in NETWORK.items() if getattr(ours, where) != getattr(theirs, where)]
    found = [f"{key} {_shown(ours, key)}, not {_shown(theirs, key)}" for key in keys]
    parts = [_part(plan) for plan in (ours, theirs)]
    return found + [f"{key} {parts[0][key]}, not {parts[1][key]}" for key in PARTS if parts[0][key] != parts[1][key]]


def _part(plan: Plan) -> dict[str, Any]:
    """Return what a plan's network is made of; whether it computes in place decides nothing."""
    given = plan.architecture()["arch_kwargs"]
    found = {key: given[where] for key, where in PARTS.items()}
    return found | {"nonlinearity": {key: value for key, value in found["nonlinearity"].items() if key != "inplace"}}


def _shown(plan: Plan, key: str) -> str:
    value = getattr(plan, NETWORK[key])
    return str(list(map(list, value)) if key in ("strides", "kernels") else value)


def _behind(chain: Recipe, labels: str) -> dict[str, ModelSpec]:
    """Return the models behind a label set that are validated."""
    found = ancestors(chain, labels)
    behind = {name: spec for name, spec in chain.models.items() if name in found}
    return {name: spec for name, spec in behind.items() if isinstance(spec.trainer, SegmenterSettings)}


def _promise_errors(key: str, behind: dict[str, ModelSpec]) -> Iterable[str]:
    """Yield a line for what makes held-out cases worth nothing: they may not have had a say in any training."""
    steered = [name for name, spec in behind.items() if exports_best(spec)]
    if steered:
        yield (
            f"{key}: is promised by cases that steered no training, but export: best chose the weights of "
            f"{', '.join(steered)} by them. Set export: final there, or name a calibration table made elsewhere"
        )
    seeds = {name: spec.validation_seed for name, spec in behind.items()}
    if len(set(seeds.values())) > 1:
        found = ", ".join(f"{name} {seed}" for name, seed in seeds.items())
        yield (
            f"{key}: asks patients that no model behind the label set learned from, but the models keep different "
            f"ones: validation_seed is {found}. Give them one"
        )
