"""What a chain of inference steps cannot do: checked before any job starts, as inference comes last of all."""

from collections.abc import Iterable

from labelloop.base.sequences import flat
from labelloop.inference.steps import Clean, Compose, InferenceStep, Locate, Segment
from labelloop.labels.settings import RemoveDistantIslands
from labelloop.recipe.spec import Recipe
from labelloop.training.settings import TRANSLATOR, SegmenterSettings


def inference_errors(chain: Recipe) -> Iterable[str]:
    """Yield a line for each step of a recipe, all of whose names exist, that has nothing to work on."""
    known = {model: labeled_by(chain, model) for model in flat(step.models for step in chain.inference)}
    if any(chain.models[model].trainer.kind == TRANSLATOR for model in known):
        return  # said elsewhere
    everything = set(flat(known.values()))
    results: dict[str, set[str]] = {}
    segmented = False
    for number, step in enumerate(chain.inference):
        key = f"inference.{number}.{step.verb}"
        if isinstance(step, Clean) and not segmented:
            yield f"{key}: nothing has been segmented before; put a step {{segment: MODEL}} first"
        for place, names in _asked(step).items():
            if not set(chain.scheme.select(names)) & everything:
                models = ", ".join(known)
                yield f"inference.{number}.{place}: no model of the chain ({models}) knows {', '.join(names)}"
        for classes, result in step.compose.items() if isinstance(step, Compose) else ():
            if result in results and not set(chain.scheme.select(classes)) & results[result]:
                yield f"{key}: {result!r} knows nothing of {classes!r}; it holds {', '.join(sorted(results[result]))}"
        found = set(flat(known[model] for model in step.models))
        results |= dict.fromkeys(step.results, found)
        segmented |= isinstance(step, Segment)


def labeled_by(chain: Recipe, model: str) -> set[str]:
    """Return the classes that a model labels; none for one that labels no voxels."""
    spec = chain.models[model]
    return set(chain.scheme.select(spec.classes)) if isinstance(spec.trainer, SegmenterSettings) else set()


def _asked(step: InferenceStep) -> dict[str, tuple[str, ...]]:
    """Return what a step names of which some model must know something, by key."""
    asked: dict[str, tuple[str, ...]] = {}
    if isinstance(step, Locate):
        asked["classes"] = step.classes
    elif isinstance(step, Segment):
        asked["merge"] = tuple(step.merge)
    elif isinstance(step, Clean):
        for number, cleaning in enumerate(step.clean):
            asked[f"clean.{number}.{cleaning.verb}"] = cleaning.classes
            if isinstance(cleaning, RemoveDistantIslands):
                asked[f"clean.{number}.of"] = cleaning.of
    return {key: names for key, names in asked.items() if names}
