"""What a recipe asks of images of several channels that cannot be done: checked before any job starts."""

from collections.abc import Iterable

from labelloop.base.errors import UserError
from labelloop.inference.external import CommandModel, NnunetModel
from labelloop.recipe.spec import Recipe
from labelloop.training.settings import SegmenterSettings, cutmix_of

ONE = "one channel"


def listed(channels: Iterable[str]) -> str:
    """Return names of channels in words."""
    return ", ".join(channels) or ONE


def channel_errors(chain: Recipe) -> Iterable[str]:
    """Yield a line for each part of an unrolled recipe, all of whose names exist, that takes other channels."""
    plans = {spec.plan: chain.plans[spec.plan].channels for spec in chain.models.values()}
    asked = next(filter(None, plans.values()), ())
    wrong = [name for name, channels in plans.items() if channels != asked]
    if wrong:
        found = "; ".join(f"{name}: {listed(channels)}" for name, channels in plans.items())
        yield f"plans: all models of a run see the same images, and plans have other channels ({found}). Write one list"
    yield from _external_errors(chain, asked, bool(plans))
    if not asked:
        return
    for name, spec in chain.models.items():
        if not isinstance(spec.trainer, SegmenterSettings):
            kind = spec.trainer.kind.replace("_", " ")
            yield f"models.{name}.trainer: a {kind} sees one channel, and plan {spec.plan} has {listed(asked)}"
        if cutmix_of(spec.trainer):
            yield f"models.{name}.trainer.cutmix: pastes into images of one channel, and there are {listed(asked)}"
    for name, labels in chain.labels.items():
        if labels.transfer:
            yield f"labels.{name}.transfer: aligns images of one channel, and there are {listed(asked)}"


def _external_errors(chain: Recipe, asked: tuple[str, ...], trained: bool) -> Iterable[str]:
    """Yield a line for each external model that takes other channels than the models that are trained."""
    for name, model in chain.external.items():
        if isinstance(model, CommandModel) and asked:
            yield f"external.{name}.command: is given one file an image, and there are {listed(asked)}"
        if not isinstance(model, NnunetModel):
            continue
        try:
            plan = model.described.plan
        except UserError:  # told when a run starts
            continue
        if plan is None or not trained:
            continue
        both = f"takes {listed(plan.channels)}, and the plans of the recipe have {listed(asked)}"
        if plan.inputs != (len(asked) or 1):
            yield f"external.{name}: {both}"
        elif _in_other_order(plan.channels, asked):
            yield f"external.{name}: {both}. Write them, and the files of the case table, in the order of the model"


def _in_other_order(channels: Iterable[str], others: Iterable[str]) -> bool:
    """Say whether channels are the same, by their names, in another order; other names may be of the same channels."""
    ours, theirs = ([name.casefold() for name in names] for names in (channels, others))
    return ours != theirs and sorted(ours) == sorted(theirs)
