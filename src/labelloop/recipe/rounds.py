"""Rounds of a recipe written out: each becomes plain models and label sets, each with what it is made from."""

from labelloop.inference.steps import InferenceStep
from labelloop.recipe.spec import ModelSpec, Recipe, parents

ROUND = "_round"


def unroll(recipe: Recipe) -> Recipe:
    """Return the recipe with its rounds written out: models and label sets ``NAME_round2``, ``NAME_round3``, ...

    The loop's body is what lies between a model of ``feedback`` and its replacement. Round 1 keeps the plain names,
    so that more rounds continue from fewer. What follows the loop reads its last round; every round is evaluated.
    """
    if recipe.rounds == 1:
        return recipe
    body = _body(recipe)
    in_order = [name for name in (*recipe.models, *recipe.labels) if name in body]  # every process names banks alike
    models, labels = dict(recipe.models), dict(recipe.labels)
    for number in range(2, recipe.rounds + 1):
        for name in in_order:
            if name in recipe.models:
                model = recipe.models[name]
                update = {key: _renamed(recipe, value, body, number) for key, value in origins(model).items()}
                models[f"{name}{ROUND}{number}"] = model.model_copy(update=update)
            else:
                label_set = recipe.labels[name]
                predict = tuple(dict.fromkeys(_renamed(recipe, source, body, number) for source in label_set.predict))
                labels[f"{name}{ROUND}{number}"] = label_set.model_copy(update={"predict": predict})
    for name in set(recipe.models) - body:
        update = {key: _last(recipe, value, body) for key, value in origins(models[name]).items()}
        models[name] = models[name].model_copy(update=update)
    for name in set(recipe.labels) - body:
        predict = tuple(_last(recipe, source, body) for source in labels[name].predict)
        labels[name] = labels[name].model_copy(update={"predict": predict})
    return recipe.model_copy(
        update={
            "models": models,
            "labels": labels,
            "inference": tuple(_last_inference(recipe, step, body) for step in recipe.inference),
            "evaluate": recipe.evaluate.model_copy(update={"models": _all_rounds(recipe, body)}),
            "rounds": 1,
            "feedback": {},
        }
    )


def round_before(name: str) -> str | None:
    """Return the name that an unrolled model or label set had one round earlier; None in round 1."""
    plain, _, number = name.partition(ROUND)
    if not number:
        return None
    return f"{plain}{ROUND}{int(number) - 1}" if int(number) > 2 else plain


def origins(spec: ModelSpec) -> dict[str, str]:
    """The fields of a model that name a label set or another model."""
    return {key: value for key in ("labels", "init_from") if (value := getattr(spec, key))}


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


def _body(recipe: Recipe) -> set[str]:
    """Models and label sets that come after a replaced model and lead to (or are) its replacement."""
    body: set[str] = set()
    for teacher, student in recipe.feedback.items():
        candidates = ancestors(recipe, student) | {student}
        body |= {name for name in candidates if teacher in ancestors(recipe, name)}
    return body


def _renamed(recipe: Recipe, name: str, body: set[str], number: int) -> str:
    if name in recipe.feedback:
        student = recipe.feedback[name]
        return student if number == 2 else f"{student}{ROUND}{number - 1}"
    return f"{name}{ROUND}{number}" if name in body else name


def _last(recipe: Recipe, name: str, body: set[str]) -> str:
    return f"{name}{ROUND}{recipe.rounds}" if name in body else name


def _last_inference(recipe: Recipe, step: InferenceStep, body: set[str]) -> InferenceStep:
    locate = _last(recipe, step.locate, body) if step.locate else None
    segment = tuple(_last(recipe, m, body) for m in step.segment) if step.segment else None
    compose = {k: _last(recipe, m, body) for k, m in step.compose.items()} if step.compose else None
    return step.model_copy(update={"locate": locate, "segment": segment, "compose": compose})


def _all_rounds(recipe: Recipe, body: set[str]) -> tuple[str, ...]:
    names: list[str] = []
    for name in recipe.evaluate.models:
        names.append(name)
        if name in body:
            names += [f"{name}{ROUND}{number}" for number in range(2, recipe.rounds + 1)]
    return tuple(names)
