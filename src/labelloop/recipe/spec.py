"""What a recipe is: plans, trainers, models and label sets, and the chains that they form."""

from functools import cached_property
from typing import Literal

from pydantic import Field, field_validator

from labelloop.base.classes import ClassScheme, Idle, Names, Seed, Strict, load_classes
from labelloop.base.errors import UserError
from labelloop.cases.groups import Group
from labelloop.inference.external import ExternalModel, classes_of
from labelloop.inference.settings import Settings
from labelloop.inference.steps import InferenceStep
from labelloop.labels.settings import CleanSteps, SelectSettings, TumorVoxels
from labelloop.networks.nnunet_plan import AnyPlan
from labelloop.networks.settings import TransferSettings
from labelloop.training.settings import TRANSLATOR, SupervisedSettings, TrainerSettings

TRUTH = "truth"
RESERVED = (TRUTH, "final", "predictions")
"""Names that a run's own folders and scores have."""


class ModelSpec(Strict):
    """A model: what it learns (classes), from which labels and cases, on which plan, by which trainer."""

    idle = (
        Idle(
            ("validate_on", "validation_seed"),
            lambda s: not s.validation_fraction,
            "where validation_fraction is 0: no case is kept",
        ),
        Idle(
            ("classes", "validation_fraction", "validate_on", "validation_seed"),
            lambda s: s.trainer.kind == TRANSLATOR,
            "for a translator, which learns from images alone and is not validated",
        ),
    )
    plan: str = Field(description="plan: what the network is, and what it sees")
    labels: str = Field(TRUTH, description="label set to learn from; `truth` is what annotators gave")
    cases: Names = Field(("all",), min_length=1, description="groups of cases; a case in any of them is used")
    classes: Names = Field(("all",), min_length=1, description="classes or class sets that the model outputs")
    init_from: str | None = Field(
        None,
        description="model to start from, of the recipe or of nnU-Net's (`external`); classes keep their output rows "
        "by name. Ensembles: member by member, or all from one model",
    )
    trainer: TrainerSettings = Field(
        SupervisedSettings(),
        description="settings of the training, a name of `trainers`, or a kind; `like` starts from either",
    )
    seeds: tuple[Seed, ...] | None = Field(
        None,
        min_length=2,
        description="makes an ensemble: a model with each of these seeds, in place of the trainer's. Its members are "
        "MODEL_seed1, ...; the name of the model means all of them",
    )
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of the cases kept for validation, all of a patient's or none"
    )
    validate_on: Literal["truth", "labels"] = Field(
        "truth",
        description="what annotators gave, of patients that no model it starts from learned from; or the label set",
    )
    validation_seed: Seed = Field(
        0,
        description="models with equal seeds keep the same patients, which calibration can then ask; folds differ",
    )

    @field_validator("seeds")
    @classmethod
    def _all_different(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if seeds and len(set(seeds)) < len(seeds):
            raise ValueError("seeds stand each once")
        return seeds


class LabelSetSpec(Strict):
    """A label set: predictions of one or more models, fused with the truth, checked, cleaned and selected."""

    idle = (
        Idle(
            ("tumor_voxels",), lambda s: s.fuse != "truth_first", "with fuse: predictions_only, where truth has no say"
        ),
    )
    predict: Names = Field(min_length=1, description="models whose predictions are used, the leading one first")
    cases: Names = Field(("all",), min_length=1, description="groups of cases that the label set holds")
    classes: Names = Field(("all",), min_length=1, description="classes or class sets that the label set holds")
    fuse: Literal["truth_first", "predictions_only"] = Field(
        "truth_first",
        description="what annotators gave is kept, class by class; or predictions count as if nobody had annotated",
    )
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
    clean: CleanSteps = Field((), description="cleaning steps, which take voxels away; one may stand alone")
    check: Literal["anatomy"] | None = Field(
        "anatomy", description="rules that labels are held against; none: no check"
    )
    thresholds: str | None = Field(None, description="thresholds of anatomy rules fitted by `labelloop check --fit`")
    select: SelectSettings = Field(
        SelectSettings(), description="which labels are accepted, and what refused ones become"
    )
    review: Literal["wait"] | None = Field(
        None, description="wait: the run ends, without an error, until somebody has answered the review queue"
    )


class EvaluationSpec(Strict):
    """What is scored against the truth of the test cases, besides the final label maps, and how these are checked."""

    models: Names = Field((), description="models that are scored, each by itself; of an ensemble, each member")
    check: bool = Field(False, description="hold the final label maps against the rules of anatomy")
    protocol: Literal["official-2022", "official-2023", "official-2024", "corrected"] = Field(
        "official-2024",
        description="FLARE challenge whose rules scores are computed by, or its rules with errors corrected",
    )


class Recipe(Strict):
    """A chain of label sets and models. See docs/recipes.md."""

    name: str = Field(description="name of the recipe; none: that of its file")
    description: str = Field("", description="what the recipe does, in a few sentences")
    classes: str = Field("flare", description="class scheme: a name (`config/classes`), or a file")
    groups: dict[str, Group] = Field({}, description="groups of cases, besides the built-in ones")
    plans: dict[str, AnyPlan] = Field(description="networks and what they see, by name")
    trainers: dict[str, TrainerSettings] = Field(
        {}, description="settings of trainings that several models use, by name"
    )
    models: dict[str, ModelSpec] = Field(description="models, by name")
    external: dict[str, ExternalModel] = Field(
        {}, description="models that are not trained here, by name: they can label cases, and be scored"
    )
    labels: dict[str, LabelSetSpec] = Field({}, description="label sets, by name")
    inference: tuple[InferenceStep, ...] = Field(description="steps that make the final label maps, in their order")
    engine: Settings = Field(Settings(), description="how models are run, for pseudo-labels and final label maps")
    evaluate: EvaluationSpec = Field(EvaluationSpec(), description="what is scored")
    rounds: int = Field(1, ge=1, le=100, description="how often the loop is gone through")
    feedback: dict[str, str] = Field({}, description="from round 2 on, this model is replaced by that one's last round")

    @cached_property
    def scheme(self) -> ClassScheme:
        """The class scheme that the recipe names."""
        return load_classes(self.classes)

    def classes_of(self, model: str) -> tuple[str, ...]:
        """Return the classes (or class sets) that a model labels, whether or not it is trained here."""
        return self.models[model].classes if model in self.models else self._external_classes[model]

    @cached_property
    def _external_classes(self) -> dict[str, tuple[str, ...]]:
        """The classes of the external models; none where the data set file is at fault, which the checks tell."""
        found: dict[str, tuple[str, ...]] = {}
        for name, model in self.external.items():
            try:
                found[name] = classes_of(model, self.scheme)
            except UserError:
                found[name] = ()
        return found


def parents(recipe: Recipe, name: str) -> tuple[str, ...]:
    """Return the models and label sets that ``name`` is made from."""
    if name in recipe.models:
        spec = recipe.models[name]
        plan = recipe.plans.get(spec.plan)
        made_from = (None if spec.labels == TRUTH else spec.labels, spec.init_from, plan.translate if plan else None)
        return tuple(name for name in made_from if name)
    return recipe.labels[name].predict if name in recipe.labels else ()
