"""What models that are not trained here cannot be: checked before any job starts; their files, when a run starts."""

from collections.abc import Iterable

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import UserError, nearest
from labelloop.images.datasets import Dataset, load_dataset, read_dataset
from labelloop.inference.external import External, NnunetModel
from labelloop.recipe.spec import Recipe


def not_trained_here(name: str) -> str:
    """Say what an external model is good for, where something else is asked of it."""
    return (
        f"{name!r} is an external model, which labels the cases of label sets (`predict`), can be scored "
        "(`evaluate`) and, where nnU-Net trained it, be started from (`init_from`); here, a model that this recipe "
        "trains is needed"
    )


def start_errors(key: str, name: str, model: External) -> Iterable[str]:
    """Yield a line for what keeps a training from starting from the weights of an external model.

    Args:
        key: where the recipe names it.
        name: of the model.
    """
    if not isinstance(model, NnunetModel):
        yield f"{key}: {name!r} is an external model, `{model.verb}`; of these, nnU-Net's alone have weights here"
        return
    try:
        folds = [fold.removeprefix("fold_") for fold in model.described.folds]
    except UserError:  # told when a run starts
        return
    if len(folds) > 1:
        yield (
            f"{key}: {name!r} is the mean of folds {', '.join(folds)}, and a training starts from one network; write "
            f"external.{name}.folds: [{folds[0]}], or name its folder once more, with that fold alone"
        )


def external_errors(recipe: Recipe) -> Iterable[str]:
    """Yield a line for each key of an external model that names what there is not, or nothing of use."""
    for name, model in recipe.external.items():
        place = f"external.{name}"
        try:
            dataset = load_dataset(model.dataset, recipe.scheme)
        except UserError as error:
            yield from error.lines(f"{place}.dataset")
        else:
            yield from _class_errors(f"{place}.classes", model, dataset, recipe.scheme)
        for seen in model.learned_from or ():
            try:
                read_dataset(seen)
            except UserError as error:
                yield from error.lines(f"{place}.learned_from")


def _class_errors(key: str, model: External, dataset: Dataset, scheme: ClassScheme) -> Iterable[str]:
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
