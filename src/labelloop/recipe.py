"""Recipes: YAML files that chain label sets and models, checked for form and for meaning before any job starts."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from labelloop.adapt.settings import KIDNEYS, TransferSettings
from labelloop.classes import CONFIG, ClassScheme, Names, Strict, load_classes
from labelloop.errors import UserError, nearest
from labelloop.groups import Group, built_in, check_groups
from labelloop.inference.settings import Settings
from labelloop.inference.steps import InferenceStep
from labelloop.labels.clean import CleanStep
from labelloop.labels.fuse import TumorVoxels
from labelloop.labels.select import SelectSettings
from labelloop.plans import Plan
from labelloop.training.settings import SLICE_CLASSIFIER, TRANSLATOR, TrainerSettings

TRUTH = "truth"
RESERVED = (TRUTH, "final", "predictions")
"""Names that a run's own folders and scores have."""


Trainer = Annotated[
    TrainerSettings,
    BeforeValidator(
        lambda value: {"kind": value} if isinstance(value, str) else value,
        json_schema_input_type=TrainerSettings | str,
    ),
]
"""How a model is trained; the kind may stand alone."""


class ModelSpec(Strict):
    """A model: what it learns (classes), from which labels and cases, on which plan, by which trainer."""

    plan: str
    labels: str = Field(TRUTH, description="label set to learn from; `truth` is what annotators gave")
    cases: Names = Field(("all",), description="groups of cases; a case in any of them is used")
    classes: Names = Field(("all",), description="classes or class sets that the model outputs")
    init_from: str | None = Field(None, description="model to start from; classes keep their output rows by name")
    trainer: Trainer = TrainerSettings()
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of the cases kept for validation")
    validation_seed: int = Field(
        0, ge=0, description="models with equal seeds keep the same cases, which calibration can then ask; folds differ"
    )


class LabelSetSpec(Strict):
    """A label set: predictions of one or more models, fused with the truth, checked, cleaned and selected."""

    predict: Names = Field(description="models whose predictions are used, the leading one first")
    cases: Names = ("all",)
    classes: Names = ("all",)
    fuse: Literal["truth_first", "predictions_only"] = "truth_first"
    predict_for: Names | None = Field(
        None, description="groups of cases that get predictions; the others keep what annotators gave. None: all cases"
    )
    transfer: TransferSettings | None = Field(
        None,
        description="predictions on one MR sequence serve the patient's others, where the kidneys say that they fit",
    )
    tumor_voxels: TumorVoxels | None = Field(
        None, description="in a label set of organs, the organ that voxels of a true tumor are given to"
    )
    clean: tuple[CleanStep, ...] = ()
    check: Literal["anatomy"] | None = "anatomy"
    thresholds: str | None = Field(None, description="thresholds of anatomy rules fitted by `labelloop check --fit`")
    select: SelectSettings = SelectSettings()


class EvaluationSpec(Strict):
    """What is scored against the truth of the test cases, besides the final label maps."""

    models: Names = ()
    rules: Literal["official-2022", "official-2023", "official-2024", "corrected"] = "official-2024"


class Recipe(Strict):
    """A chain of label sets and models. See docs/recipes.md."""

    name: str
    description: str = ""
    classes: str = "flare"
    groups: dict[str, Group] = Field({})
    plans: dict[str, Plan]
    models: dict[str, ModelSpec]
    labels: dict[str, LabelSetSpec] = Field({})
    inference: tuple[InferenceStep, ...]
    engine: Settings = Field(Settings(), description="how models are run, for pseudo-labels and final label maps")
    evaluate: EvaluationSpec = EvaluationSpec()
    rounds: int = Field(1, ge=1, description="how often the loop is gone through")
    feedback: dict[str, str] = Field({}, description="from round 2 on, this model is replaced by that one's last round")

    @property
    def scheme(self) -> ClassScheme:
        """The class scheme that the recipe names."""
        return load_classes(self.classes)


def recipe_path(name: str | Path) -> Path:
    """Return the file of a recipe given by name (``config/recipes/NAME.yaml``) or by path."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIG / "recipes" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in (CONFIG / "recipes").glob("*.yaml"))
        raise UserError(f"recipe {name!r}: no file {path}{nearest(str(name), known)}")
    return path


def load_recipe(name: str | Path, **overrides: Any) -> Recipe:
    """Load a recipe and check its form and its meaning.

    ``extends: NAME`` takes another recipe and overrides it key by key; ``like: NAME`` does so for one model.

    Raises:
        UserError: with all errors, one a line: file, key, what was found, the nearest valid name.
    """
    path = recipe_path(name)
    raw = _merge(_raw(path, ()), {k: v for k, v in overrides.items() if v is not None})
    raw.setdefault("name", path.stem)
    try:
        raw["models"] = _resolve_like(raw.get("models") or {})
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in form_errors(error, Recipe))) from None
    problems = list(_meaning_errors(recipe))
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return recipe


def _raw(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise UserError(f"{path}: extends: a circle of recipes that extend each other")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    for key, found in {"recipe": content, "models": isinstance(content, dict) and content.get("models")}.items():
        if found and not isinstance(found, dict):
            raise UserError(f"{path}: {key}: found a {type(found).__name__}, expected names with a value each")
    for key in ("extends", "classes"):
        if key in content:
            content[key] = _beside(path, content[key])
    parent = content.pop("extends", None)
    if parent is None:
        return content
    base = _raw(recipe_path(parent), (*seen, path))
    base.pop("name", None)
    return _merge(base, content)


def _beside(recipe: Path, named: Any) -> Any:
    """Return the path of a YAML file that a recipe names, if it lies beside the recipe; else what is named."""
    beside = recipe.parent / str(named)
    return str(beside) if beside.suffix in (".yaml", ".yml") and beside.is_file() else named


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _resolve_like(models: Mapping[str, Any]) -> dict[str, Any]:
    def resolve(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
        spec = dict(models[name] or {})
        base = spec.pop("like", None)
        if base is None:
            return spec
        if base in seen or base not in models:
            found = "a circle" if base in seen else f"no model {base!r}{nearest(base, models)}"
            raise UserError(f"models.{name}.like: {found}")
        return _merge(resolve(base, (*seen, name)), spec)

    return {name: resolve(name, ()) for name in models}


def form_errors(error: ValidationError, model: type[Strict]) -> Iterable[str]:
    """Yield one line per error of a pydantic model: key, what was found, the nearest valid key."""
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        found = f" (found {item['input']!r})" if not isinstance(item["input"], dict) else ""
        hint = ""
        if item["type"] == "extra_forbidden":
            hint = nearest(str(item["loc"][-1]), _keys_at(model, item["loc"][:-1]))
            yield f"{place}: unknown key{hint}"
        else:
            yield f"{place}: {item['msg']}{found}"


def _keys_at(model: type[Strict], place: tuple[Any, ...]) -> list[str]:
    """Return the keys that are valid at a place of ``model``, by walking the fields of nested models."""
    current: Any = model
    for part in place:
        annotation = current.model_fields[part].annotation if isinstance(current, type) and part in getattr(
            current, "model_fields", {}
        ) else current  # fmt: skip
        models = [a for a in _arguments(annotation) if isinstance(a, type) and issubclass(a, Strict)]
        current = models[0] if models else annotation
    return [field.alias or name for name, field in getattr(current, "model_fields", {}).items()]


def _arguments(annotation: Any) -> list[Any]:
    inner = [a for argument in getattr(annotation, "__args__", ()) for a in _arguments(argument)]
    return inner or [annotation]


def _meaning_errors(recipe: Recipe) -> Iterable[str]:
    yield from _name_errors(recipe)
    scheme = recipe.scheme
    yield from check_groups(recipe.groups, scheme)
    known_groups = {*built_in(scheme), *recipe.groups}
    for key, names in _class_references(recipe):
        for name in names:
            if name != "all" and name not in scheme.names and name not in scheme.sets:
                yield f"{key}: no class or set {name!r}{nearest(name, [*scheme.names, *scheme.sets])}"
    for kind, specs in (("models", recipe.models), ("labels", recipe.labels)):
        for name, spec in specs.items():
            yield from _group_errors(f"{kind}.{name}.cases", spec.cases, known_groups)
    yield from _trainer_errors(recipe, scheme, known_groups)
    for name, labels in recipe.labels.items():
        yield from _selection_errors(f"labels.{name}", labels, scheme)
    yield from _transfer_errors(recipe, scheme)
    cycle = _cycle(recipe)
    if cycle:
        yield f"models/labels: a circle: {' -> '.join(cycle)}; a model cannot learn from its own predictions"
    if recipe.rounds > 1 and not recipe.feedback:
        yield "rounds: more than one needs `feedback: {teacher: student}`, which model takes whose place in round 2"
    if not any(step.segment for step in recipe.inference):
        yield "inference: no step segments anything; add {segment: MODEL}"
    yield from _segmenter_errors(recipe)
    yield from _adaptation_errors(recipe)


def _group_errors(key: str, names: Iterable[str], known: set[str]) -> Iterable[str]:
    for name in names:
        if name not in known and not name.startswith("type:"):
            yield f"{key}: no group {name!r}{nearest(name, known)}"


def _trainer_errors(recipe: Recipe, scheme: ClassScheme, groups: set[str]) -> Iterable[str]:
    """Names inside the settings of trainers and label sets."""
    known = {*scheme.names, *scheme.sets, "all"}
    for name, spec in recipe.models.items():
        place = f"models.{name}.trainer"
        if spec.trainer.batches:
            yield from _group_errors(f"{place}.batches.full", spec.trainer.batches.full, groups)
        if not set(spec.classes) <= known:
            continue  # said elsewhere
        outputs = scheme.select(spec.classes)
        asked = [(f"{key}.name", getattr(getattr(spec.trainer, key), "name", None)) for key in ("favor", "cutmix")]
        asked += [("class_weights", weighted) for weighted in spec.trainer.class_weights or ()]
        for key, wanted in asked:
            if wanted and wanted not in outputs:
                yield f"{place}.{key}: the model has no class {wanted!r}{nearest(wanted, outputs)}"
    for name, spec in recipe.labels.items():
        yield from _group_errors(f"labels.{name}.predict_for", spec.predict_for or (), groups)
        for absent in spec.select.absence:
            if absent not in known:
                yield f"labels.{name}.select.absence: no class or set {absent!r}{nearest(absent, known)}"
        tumors = set(scheme.sets.get("tumor", ()))
        if spec.tumor_voxels and set(spec.classes) <= known and tumors & set(scheme.select(spec.classes)):
            yield f"labels.{name}.tumor_voxels: the label set has the tumor itself; leave it out of `classes`"


def _selection_errors(place: str, labels: LabelSetSpec, scheme: ClassScheme) -> Iterable[str]:
    """Yield a line for each name in ``select`` that nothing has, and each criterion that one model cannot meet."""
    select = labels.select
    rules = dict.fromkeys(rule["name"] for rule in scheme.rules if "name" in rule)
    for rule in () if select.verdicts == "all" else select.verdicts:
        if rule not in rules:
            yield f"{place}.select.verdicts: no anatomy rule {rule!r}{nearest(rule, rules)}"
    for key in ("min_pairwise_dice", "max_uncertainty", "keep_least_uncertain", "demote"):
        value = getattr(select, key)
        for name in value if isinstance(value, dict) else ():
            if name != "all" and name not in scheme.names:
                yield f"{place}.select.{key}: no class {name!r}{nearest(name, ['all', *scheme.names])}"
    if len(labels.predict) > 1:
        return
    asked = ("min_pairwise_dice", "target_dsc", "max_uncertainty", "keep_least_uncertain", "drop_most_uncertain")
    for key in (key for key in asked if getattr(select, key)):
        yield (
            f"{place}.select.{key}: asks how far models agree, and `predict` names one: every label would be refused. "
            f"Name two or more, or write {key}: {0 if key == 'drop_most_uncertain' else 'null'}"
        )


def _name_errors(recipe: Recipe) -> Iterable[str]:
    references: list[tuple[str, str, Mapping[str, Any]]] = []
    references += [(f"plans.{n}.translate", p.translate, recipe.models) for n, p in recipe.plans.items() if p.translate]
    for name, spec in recipe.models.items():
        references.append((f"models.{name}.plan", spec.plan, recipe.plans))
        references.append((f"models.{name}.labels", spec.labels, {TRUTH: None, **recipe.labels}))
        if spec.init_from:
            references.append((f"models.{name}.init_from", spec.init_from, recipe.models))
    for name, spec in recipe.labels.items():
        references += [(f"labels.{name}.predict", model, recipe.models) for model in spec.predict]
    for number, step in enumerate(recipe.inference):
        references += [(f"inference.{number}.{step.verb}", model, recipe.models) for model in step.models]
        found = dict.fromkeys(_results_before(recipe, number))
        references += [(f"inference.{number}.compose", result, found) for result in (step.compose or {}).values()]
    references += [("evaluate.models", model, recipe.models) for model in recipe.evaluate.models]
    for model, replacement in recipe.feedback.items():
        references += [("feedback", model, recipe.models), (f"feedback.{model}", replacement, recipe.models)]
    for key, name, known in references:
        if name not in known:
            yield f"{key}: no such name {name!r}{nearest(name, known)}"
    for name in set(recipe.models) & set(recipe.labels):
        yield f"labels.{name}: a model has the same name"
    for name in [*recipe.models, *recipe.labels]:
        if not name.replace("_", "").isalnum() or "_round" in name:
            yield f"{name!r}: names are letters, digits and '_', without '_round'"
        if name in RESERVED:
            yield f"{name!r}: this name is taken by a folder or score of every run; take another"


def _transfer_errors(recipe: Recipe, scheme: ClassScheme) -> Iterable[str]:
    """Yield a line for each label set that carries labels of several models, or of one that knows no kidneys."""
    for name, spec in recipe.labels.items():
        if spec.transfer is None:
            continue
        key, leading = f"labels.{name}.transfer", spec.predict[0]
        if len(spec.predict) > 1:
            yield f"{key}: carries the predictions of one model; `predict` names {len(spec.predict)}"
        classes = recipe.models[leading].classes if leading in recipe.models else ("all",)
        if set(classes) <= {*scheme.names, *scheme.sets, "all"}:
            missing = [kidney for kidney in KIDNEYS if kidney not in scheme.select(classes)]
            if missing:
                yield f"{key}: the kidneys decide whether labels fit; {leading!r} has no {' and no '.join(missing)}"


WHAT_ELSE = {
    SLICE_CLASSIFIER: "a slice classifier, which labels no voxels; it can only locate",
    TRANSLATOR: "a translator, which labels no voxels; it can only serve a plan's `translate`",
}
"""What models are that do not segment, and what they are good for."""


def _segmenter_errors(recipe: Recipe) -> Iterable[str]:
    """Yield a line for each place where a model that labels no voxels is asked to."""
    places = {f"labels.{name}.predict": spec.predict for name, spec in recipe.labels.items()}
    places |= {f"inference.{n}.segment": step.segment or () for n, step in enumerate(recipe.inference)}
    places |= {f"inference.{n}.compose": (step.compose or {}).values() for n, step in enumerate(recipe.inference)}
    places |= {f"models.{name}.init_from": (spec.init_from,) for name, spec in recipe.models.items()}
    places["evaluate.models"] = recipe.evaluate.models
    for key, names in places.items():
        for name in names:
            if name in recipe.models and (what := WHAT_ELSE.get(recipe.models[name].trainer.kind)):
                yield f"{key}: {name!r} is {what}"
    for number, step in enumerate(recipe.inference):
        if step.locate in recipe.models and recipe.models[step.locate].trainer.kind == TRANSLATOR:
            yield f"inference.{number}.locate: {step.locate!r} is {WHAT_ELSE[TRANSLATOR]}"
    for name, spec in recipe.models.items():
        if spec.trainer.kind in WHAT_ELSE and spec.init_from:
            yield f"models.{name}.init_from: a {spec.trainer.kind.replace('_', ' ')} starts from random weights"
        if spec.trainer.kind == TRANSLATOR and spec.labels != TRUTH:
            yield f"models.{name}.labels: a translator learns from images alone"


def _adaptation_errors(recipe: Recipe) -> Iterable[str]:
    """Yield a line for each plan or model whose grey scale, translator or uprightness does not fit the others."""
    plans, models = recipe.plans, recipe.models
    for name, plan in plans.items():
        translator = models.get(plan.translate or "")
        if translator is None or translator.plan not in plans:
            continue  # said elsewhere
        if translator.trainer.kind != TRANSLATOR:
            yield f"plans.{name}.translate: {plan.translate!r} is no translator (trainer: {{kind: translator}})"
        elif plan.images | {"translate": None} != plans[translator.plan].images | {"translate": None}:
            yield f"plans.{name}: spacing_mm, grey, upright must be those of {translator.plan} ({plan.translate})"
    for name, spec in models.items():
        plan = plans.get(spec.plan)
        if plan and spec.trainer.kind == TRANSLATOR and (plan.grey is None or plan.translate):
            yield f"models.{name}.plan: {spec.plan} must have `grey` and no `translate`: a translator sees CT as it is"
        if plan and spec.trainer.kind == SLICE_CLASSIFIER and plan.grey:
            yield f"models.{name}.plan: a slice classifier windows Hounsfield units; {spec.plan} has a grey scale"
    upright = {spec.plan: plans[spec.plan].upright for spec in models.values() if spec.plan in plans}
    if len(set(upright.values())) > 1:
        wrong = ", ".join(name for name, value in upright.items() if not value)
        yield f"plans: some ask for upright, but not {wrong}; a run puts volumes on their feet for all or for none"


def _results_before(recipe: Recipe, number: int) -> Iterable[str]:
    """Names under which earlier inference steps filed what they segmented."""
    for step in recipe.inference[:number]:
        yield from (*step.models, *([step.result] if step.result else ()))


def _class_references(recipe: Recipe) -> Iterable[tuple[str, Iterable[str]]]:
    yield from ((f"models.{name}.classes", spec.classes) for name, spec in recipe.models.items())
    for name, labels in recipe.labels.items():
        yield f"labels.{name}.classes", labels.classes
        yield f"labels.{name}.clean", _cleaned(labels.clean)
    for number, step in enumerate(recipe.inference):
        named = (*step.classes, *step.merge, *(step.compose or {}), *(step.keep_largest or ()), *_cleaned(step.clean))
        yield f"inference.{number}", (*named, step.near) if step.near else named


def _cleaned(steps: Iterable[CleanStep] | None) -> Iterable[str]:
    return (name for step in steps or () for name in (*step.classes, *(getattr(step, "of", None) or ())))


def parents(recipe: Recipe, name: str) -> tuple[str, ...]:
    """Return the models and label sets that ``name`` is made from."""
    if name in recipe.models:
        spec = recipe.models[name]
        plan = recipe.plans.get(spec.plan)
        made_from = (None if spec.labels == TRUTH else spec.labels, spec.init_from, plan.translate if plan else None)
        return tuple(name for name in made_from if name)
    return recipe.labels[name].predict if name in recipe.labels else ()


def _cycle(recipe: Recipe) -> list[str]:
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for parent in parents(recipe, name):
            if found := visit(parent, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((c for name in [*recipe.models, *recipe.labels] if (c := visit(name, []))), [])
