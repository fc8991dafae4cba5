"""What a recipe is: plans, models and label sets, and the chains that they form."""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from labelloop.adapt.settings import TransferSettings
from labelloop.classes import ClassScheme, Names, Strict, load_classes
from labelloop.groups import Group
from labelloop.inference.settings import Settings
from labelloop.inference.steps import InferenceStep
from labelloop.labels.settings import CleanStep, SelectSettings, TumorVoxels
from labelloop.plans import Plan
from labelloop.training.settings import TrainerSettings

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
    cases: Names = Field(("all",), min_length=1, description="groups of cases; a case in any of them is used")
    classes: Names = Field(("all",), min_length=1, description="classes or class sets that the model outputs")
    init_from: str | None = Field(None, description="model to start from; classes keep their output rows by name")
    trainer: Trainer = TrainerSettings()
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of the cases kept for validation, all of a patient's or none"
    )
    validate_on: Literal["truth", "labels"] = Field(
        "truth",
        description="what annotators gave, of patients that no model it starts from learned from; or the label set",
    )
    validation_seed: int = Field(
        0,
        ge=0,
        description="models with equal seeds keep the same patients, which calibration can then ask; folds differ",
    )


class LabelSetSpec(Strict):
    """A label set: predictions of one or more models, fused with the truth, checked, cleaned and selected."""

    predict: Names = Field(min_length=1, description="models whose predictions are used, the leading one first")
    cases: Names = Field(("all",), min_length=1)
    classes: Names = Field(("all",), min_length=1)
    fuse: Literal["truth_first", "predictions_only"] = "truth_first"
    predict_for: Names | None = Field(
        None, description="groups of cases that get predictions; the others keep what annotators gave. None: all cases"
    )
    transfer: TransferSettings | None = Field(
        None,
        description="predictions on one MR sequence serve the patient's others, where the kidneys say that they fit",
    )
    tumor_voxels: TumorVoxels | None = Field(
        None,
        description="in a label set of organs, where voxels of a true tumor go to; none: predicted_organ",
    )
    clean: tuple[CleanStep, ...] = ()
    check: Literal["anatomy"] | None = "anatomy"
    thresholds: str | None = Field(None, description="thresholds of anatomy rules fitted by `labelloop check --fit`")
    select: SelectSettings = SelectSettings()


class EvaluationSpec(Strict):
    """What is scored against the truth of the test cases, besides the final label maps, and how these are checked."""

    models: Names = ()
    check: bool = Field(False, description="hold the final label maps against the rules of anatomy")
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
    rounds: int = Field(1, ge=1, le=100, description="how often the loop is gone through")
    feedback: dict[str, str] = Field({}, description="from round 2 on, this model is replaced by that one's last round")

    @cached_property
    def scheme(self) -> ClassScheme:
        """The class scheme that the recipe names."""
        return load_classes(self.classes)


def parents(recipe: Recipe, name: str) -> tuple[str, ...]:
    """Return the models and label sets that ``name`` is made from."""
    if name in recipe.models:
        spec = recipe.models[name]
        plan = recipe.plans.get(spec.plan)
        made_from = (None if spec.labels == TRUTH else spec.labels, spec.init_from, plan.translate if plan else None)
        return tuple(name for name in made_from if name)
    return recipe.labels[name].predict if name in recipe.labels else ()
