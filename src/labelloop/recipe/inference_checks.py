"""What a chain of inference steps cannot do: checked before any job starts, as inference comes last of all."""

from collections.abc import Iterable

from labelloop.inference.steps import InferenceStep
from labelloop.recipe.spec import Recipe
from labelloop.training.settings import SLICE_CLASSIFIER, TRANSLATOR


def inference_errors(chain: Recipe) -> Iterable[str]:
    """Yield a line for each step of a recipe, all of whose names exist, that has nothing to work on."""
    known = {model: labeled_by(chain, model) for step in chain.inference for model in step.models}
    if any(chain.models[model].trainer.kind == TRANSLATOR for model in known):
        return  # said elsewhere
    everything = {name for names in known.values() for name in names}
    results: dict[str, set[str]] = {}
    segmented = False
    for number, step in enumerate(chain.inference):
        key = f"inference.{number}.{step.verb}"
        if step.verb in ("keep_largest", "clean") and not segmented:
            yield f"{key}: nothing has been segmented before; put a step {{segment: MODEL}} first"
        for place, names in _asked(step).items():
            if not set(chain.scheme.select(names)) & everything:
                models = ", ".join(known)
                yield f"inference.{number}.{place}: no model of the chain ({models}) knows {', '.join(names)}"
        for classes, result in (step.compose or {}).items():
            if result in results and not set(chain.scheme.select(classes)) & results[result]:
                yield f"{key}: {result!r} knows nothing of {classes!r}; it holds {', '.join(sorted(results[result]))}"
        found = {name for model in step.models for name in known[model]}
        results |= dict.fromkeys(results_of(step), found)
        segmented |= bool(step.segment)


def results_of(step: InferenceStep) -> tuple[str, ...]:
    """Return the names under which a step files what it segments, of every image."""
    if step.from_mm:  # locate, which passes over low images
        return ()
    return (*step.models, *([step.result] if step.result else []))


def labeled_by(chain: Recipe, model: str) -> set[str]:
    """Return the classes that a model labels; none for one that labels no voxels."""
    spec = chain.models[model]
    return set() if spec.trainer.kind in (SLICE_CLASSIFIER, TRANSLATOR) else set(chain.scheme.select(spec.classes))


def _asked(step: InferenceStep) -> dict[str, tuple[str, ...]]:
    """Return what a step names of which some model must know something, by key."""
    asked = {"classes": step.classes, "merge": tuple(step.merge), "keep_largest": step.keep_largest or ()}
    return {key: names for key, names in (asked | {"near": (step.near,) if step.near else ()}).items() if names}
