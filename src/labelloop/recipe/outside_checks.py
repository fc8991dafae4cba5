"""What models that are not trained here cannot be: checked before any job starts; their files, when a run starts."""

from collections.abc import Iterable

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import UserError, nearest
from labelloop.images.datasets import Dataset, load_dataset, read_dataset
from labelloop.inference.outside import Outside
from labelloop.recipe.spec import Recipe


def not_trained_here(name: str) -> str:
    """Say what a model from outside is good for, where something else is asked of it."""
    return (
        f"{name!r} is a model from outside, which labels the cases of label sets (`predict`) and can be scored "
        "(`evaluate`); here, a model that this recipe trains is needed"
    )


def outside_errors(recipe: Recipe) -> Iterable[str]:
    """Yield a line for each key of a model from outside that names what there is not, or nothing of use."""
    for name, model in recipe.outside.items():
        place = f"outside.{name}"
        try:
            dataset = load_dataset(model.dataset, recipe.scheme)
        except UserError as error:
            yield from (f"{place}.dataset: {line}" for line in str(error).splitlines())
        else:
            yield from _class_errors(f"{place}.classes", model, dataset, recipe.scheme)
        for seen in model.saw or ():
            try:
                read_dataset(seen)
            except UserError as error:
                yield from (f"{place}.saw: {line}" for line in str(error).splitlines())


def _class_errors(key: str, model: Outside, dataset: Dataset, scheme: ClassScheme) -> Iterable[str]:
    known = [*scheme.names, *scheme.sets]
    wrong = [name for name in model.classes if name != "all" and name not in known]
    yield from (f"{key}: no class or set {name!r}{nearest(name, known)}" for name in wrong)
    if wrong:
        return
    named = {dataset.class_of(own) for own in dataset.labels}
    for asked in model.classes:
        if named.isdisjoint(scheme.select([asked])):
            found = ", ".join(name for name in scheme.names if name in named) or "none"
            yield f"{key}: data set {dataset.name} names no {asked!r}; its classes in {scheme.name}: {found}"
