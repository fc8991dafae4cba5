"""Rounds of a recipe written out: each becomes plain models and label sets, each with what it is made from."""

from labelloop.recipe.spec import LabelSetSpec, ModelSpec, Recipe, parents

ROUND = "_round"


def unroll(recipe: Recipe) -> Recipe:
    """Return the recipe with its rounds written out: ``NAME_round1``, ``NAME_round2``, ..., and NAME in the last.

    The loop's body is what lies between a model of ``feedback`` and its replacement. The plain names are those of the
    last round, so that whoever names a model, as the inference does, gets the best one. Every round is evaluated.
    """
    if recipe.rounds == 1:
        return recipe
    body = looped(recipe)
    models: dict[str, ModelSpec] = {}
    labels: dict[str, LabelSetSpec] = {}
    for name, model in recipe.models.items():  # in the order of the file, so that every process names banks alike
        models |= {in_round(recipe, name, 1): _model(recipe, model, body, 1)} if name in body else {name: model}
    for name, spec in recipe.labels.items():
        labels |= {in_round(recipe, name, 1): _labels(recipe, spec, body, 1)} if name in body else {name: spec}
    for number in range(2, recipe.rounds + 1):
        for name in [name for name in recipe.models if name in body]:
            models[in_round(recipe, name, number)] = _model(recipe, recipe.models[name], body, number)
        for name in [name for name in recipe.labels if name in body]:
            labels[in_round(recipe, name, number)] = _labels(recipe, recipe.labels[name], body, number)
    return recipe.model_copy(
        update={
            "models": models,
            "labels": labels,
            "evaluate": recipe.evaluate.model_copy(update={"models": _all_rounds(recipe, body)}),
            "rounds": 1,
            "feedback": {},
        }
    )


def in_round(recipe: Recipe, name: str, number: int) -> str:
    """Return the name that a model or label set of the loop has in a round."""
    return name if number == recipe.rounds else f"{name}{ROUND}{number}"


def plain_name(recipe: Recipe, name: str) -> str:
    """Return the name that a model or label set has in the recipe, whichever round it is of."""
    plain = name.partition(ROUND)[0]
    return plain if plain in looped(recipe) else name


def round_before(recipe: Recipe, name: str) -> str | None:
    """Return the name that a model or label set had one round earlier; None in round 1 and outside of the loop."""
    plain, _, written = name.partition(ROUND)
    number = int(written) if written else recipe.rounds
    return in_round(recipe, plain, number - 1) if number > 1 and plain in looped(recipe) else None


def origins(spec: ModelSpec) -> dict[str, str]:
    """The fields of a model that name a label set or another model."""
    fields = {key: getattr(spec, key) for key in ("labels", "init_from")}
    return {key: value for key, value in fields.items() if value}


def ancestors(recipe: Recipe, name: str) -> set[str]:
    """Return all models and label sets that lead to a model or label set."""
    found: set[str] = set()
    todo = list(parents(recipe, name))
    while todo:
        parent = todo.pop()
        if parent not in found:
            found.add(parent)
            todo += parents(recipe, parent)
    return found


def looped(recipe: Recipe) -> set[str]:
    """Return the models and label sets that each round makes anew.

    They come after a replaced model and lead to its replacement, or are it.
    """
    body: set[str] = set()
    for teacher, student in recipe.feedback.items():
        candidates = ancestors(recipe, student) | {student}
        body |= {name for name in candidates if teacher in ancestors(recipe, name)}
    return body


def _model(recipe: Recipe, model: ModelSpec, body: set[str], number: int) -> ModelSpec:
    update = {key: _source(recipe, value, body, number) for key, value in origins(model).items()}
    return model.model_copy(update=update)


def _labels(recipe: Recipe, spec: LabelSetSpec, body: set[str], number: int) -> LabelSetSpec:
    predict = tuple(dict.fromkeys(_source(recipe, source, body, number) for source in spec.predict))
    return spec.model_copy(update={"predict": predict})


def _source(recipe: Recipe, name: str, body: set[str], number: int) -> str:
    """Return what ``name`` stands for in a round."""
    if name in recipe.feedback and number > 1:
        return in_round(recipe, recipe.feedback[name], number - 1)
    return in_round(recipe, name, number) if name in body else name


def _all_rounds(recipe: Recipe, body: set[str]) -> tuple[str, ...]:
    names: list[str] = []
    for name in recipe.evaluate.models:
        rounds = range(1, recipe.rounds + 1)
        names += [in_round(recipe, name, number) for number in rounds] if name in body else [name]
    return tuple(names)
