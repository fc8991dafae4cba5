"""What trainings of a recipe cannot do: checked before any job starts, as they would fail after days, or in silence."""

from collections.abc import Iterable

from labelloop.networks.plans import Plan
from labelloop.recipe.rounds import ancestors
from labelloop.recipe.spec import ModelSpec, Recipe
from labelloop.training.settings import SEMI_SUPERVISED, SLICE_CLASSIFIER, TRANSLATOR, SegmenterSettings

NETWORK = {
    "features": "features", "strides": "stage_strides", "kernels": "stage_kernels",
    "residual": "residual", "convs_per_stage": "encoder_counts", "convs_per_stage_decoder": "decoder_counts",
}  # fmt: skip
"""Keys of a plan that decide what its network is, and where their values stand, also those that follow from others."""


def training_errors(chain: Recipe) -> Iterable[str]:
    """Yield a line for each training of an unrolled recipe, all of whose names exist, that cannot be done as asked."""
    for name, spec in chain.models.items():
        if spec.trainer.kind == TRANSLATOR:
            continue
        place, plan = f"models.{name}", chain.plans[spec.plan]
        if spec.init_from:
            yield from _network_errors(f"{place}.init_from", spec, chain)
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
    other = chain.models[spec.init_from or ""].plan
    ours, theirs = chain.plans[spec.plan], chain.plans[other]
    wrong = [key for key, where in NETWORK.items() if getattr(ours, where) != getattr(theirs, where)]
    if wrong:
        found = "; ".join(f"{name} {_shown(ours, name)}, not {_shown(theirs, name)}" for name in wrong)
        yield (
            f"{key}: the plans {spec.plan} and {other} have different networks ({found}), and weights of "
            f"{spec.init_from} do not fit. Write plan: {other}, or leave init_from out"
        )


def _shown(plan: Plan, key: str) -> str:
    value = getattr(plan, NETWORK[key])
    return str(list(map(list, value)) if key in ("strides", "kernels") else value)


def _behind(chain: Recipe, labels: str) -> dict[str, ModelSpec]:
    """Return the models behind a label set that are validated."""
    found = ancestors(chain, labels)
    unasked = (SLICE_CLASSIFIER, TRANSLATOR)
    return {name: spec for name, spec in chain.models.items() if name in found and spec.trainer.kind not in unasked}


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
