"""What a recipe may set for a training. Imports nothing heavy: the Snakefile validates recipes with it.

Each kind of training has a class of settings, with the keys that this kind reads and no others.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from labelloop.base.classes import Idle, Names, Seed, Strict
from labelloop.base.unions import by_kind, tag
from labelloop.inference.settings import SliceInput
from labelloop.labels.settings import CutSettings
from labelloop.networks.settings import TranslatorSettings

Wanted = TypeVar("Wanted", bound=Strict)
TRAINING_VERSION, SLICE_VERSION, TRANSLATOR_VERSION = 7, 8, 3
"""Raised whenever the same training would lead to other weights: of a segmenter, a slice classifier, a translator."""
Determinism = Literal["auto"] | bool
"""Whether equal jobs give equal bytes; ``auto``: on a CPU, where it costs nothing, not on a GPU."""
Axis = Literal["z", "y", "x"]
AXES: tuple[Axis, ...] = ("z", "y", "x")
"""Axes of a canonical array: inferior-superior, posterior-anterior, left-right."""
SEMI_SUPERVISED = ("mean_teacher", "cross_pseudo")
"""Trainers that also learn from cases of which nothing is known."""
SLICE_CLASSIFIER = "slice_classifier"
TRANSLATOR = "translator"


class BatchTypes(Strict):
    """Batches whose patches all come from cases with the same annotated classes (Zhou, section 2.2).

    A type is drawn with a probability proportional to its number of cases. Cases of the groups ``full`` make a second
    stream, from which the training begins.
    """

    idle = (Idle(("full_first_epochs", "alternate"), lambda s: not s.full, "without `full`, groups of full labels"),)
    full: Names = Field((), description="groups of cases with full labels; none: one stream of all cases")
    full_first_epochs: int = Field(0, ge=0, description="epochs on the full labels alone (Zhou: 150 of 1200)")
    alternate: bool = Field(True, description="afterwards every other batch is of full labels; else of any type")
    min_cases: int = Field(1, ge=1, description="types with fewer cases are left out (Zhou: the batch size, 4)")


class Sampling(Strict):
    """How often cases and classes are drawn: the truth is not diluted by what models labeled.

    Where annotators looked, a case is drawn the more often, the more classes they looked for, and each of its classes
    alike. Where models labeled, a class is drawn as often as that, then a case in which it was found. ``favor`` counts
    for the draw of cases, too. ``sampling: uniform`` draws all cases alike, as the papers do.
    """

    truth_alone: float = Field(0.5, ge=0, le=1, description="share of the epochs, at first, on what annotators labeled")
    truth_share: float = Field(0.5, ge=0, le=1, description="afterwards, the probability that a patch is drawn from it")


class Favor(Strict):
    """Patches centered on ``name`` more often than on the other classes (Zhou's code: tumor, 0.8, within its case)."""

    name: str = Field(description="the class")
    drop_others: float = Field(ge=0, le=1, description="probability that each other class is passed over")


class CutMix(CutSettings):
    """Tumor objects pasted into patches of cases whose tumor is absent or unknown (Zhou, section 2.2).

    The objects are cut from the labels that the model learns from, where their class is present: by default those that
    annotators drew, with the surroundings that the labels give them.
    """

    probability: float = Field(1.0, ge=0, le=1, description="share of such patches that get objects (Zhou: all)")
    objects_per_patch: int = Field(1, ge=1, le=8, description="objects pasted into one patch (Zhou: 1)")
    placement: Literal["organs", "body"] = Field(
        "organs", description="in the body: inside the box of the labeled organs in the patch, or anywhere"
    )

    @property
    def cut(self) -> CutSettings:
        """How the objects are cut."""
        return CutSettings(**{name: getattr(self, name) for name in CutSettings.model_fields})


class RandomIntensity(Strict):
    """Patches get other intensities by a shallow network with random weights, and keep their shapes.

    Ouyang et al. 2022. For images that look unlike those with labels: another modality, sequence or scanner.
    """

    probability: float = Field(1.0, ge=0, le=1, description="share of patches that are altered (Ouyang: all)")
    layers: int = Field(4, ge=2, le=8, description="convolutions of the random network (Ouyang: 4)")
    channels: int = Field(2, ge=1, le=16, description="channels between them (Ouyang: 2)")


class Unlabeled(Strict):
    """How much of a batch is unlabeled, from when on it counts, and what of it (mean_teacher and cross_pseudo)."""

    idle = (
        Idle(("balanced",), lambda s: not s.confidence_threshold, "where `confidence_threshold` is 0, which it lowers"),
    )
    share: float = Field(0.5, gt=0, lt=1, description="of a batch, rounded down, at least one sample")
    burn_in: float = Field(
        0.0, ge=0, lt=1, description="share of the epochs on labels alone, before unlabeled cases count"
    )
    confidence_threshold: float = Field(
        0.0, ge=0, le=1, description="voxels teach where the other network is at least so sure; 0: everywhere"
    )
    balanced: bool = Field(
        False, description="lower the threshold for classes of which the network is less sure, e.g. small organs"
    )
    strong_augmentation: bool = Field(
        False, description="the network that learns sees other contrast, brightness, gamma and noise than the other one"
    )


class TrainingSettings(Strict):
    """What all trainings of networks by labels may set. The defaults are nnU-Net's (Isensee et al. 2021)."""

    kind: str
    epochs: int = Field(1000, ge=1, description="epochs of `iterations_per_epoch` updates each")
    iterations_per_epoch: int = Field(250, ge=1, description="updates in an epoch")
    validation_iterations: int = Field(50, ge=0, description="batches that are validated after each epoch; 0: none")
    learning_rate: float = Field(1e-2, gt=0, description="at the start")
    weight_decay: float = Field(3e-5, ge=0, description="L2 penalty on the weights")
    poly_exponent: float = Field(
        0.9, ge=0, description="exponent of the polynomial decay of the learning rate; 0: it stays as it is"
    )
    save_every: int = Field(
        10, ge=1, description="epochs between checkpoints (nnU-Net: 50); a kill loses no more than these"
    )
    seed: Seed = Field(0, description="of weights, order of cases and augmentation")


class SegmenterSettings(TrainingSettings):
    """What all trainings of networks that segment may set: nnU-Net's, except where a description says so."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(("momentum",), lambda s: s.optimizer == "adamw", "with optimizer: adamw, which has torch's betas"),
    )
    momentum: float = Field(0.99, ge=0, lt=1, description="Nesterov momentum of SGD; 0: plain SGD")
    foreground_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="probability that a patch is centered on an annotated class of its case. nnU-Net says 0.33, which "
        "in its batches of two is one",
    )
    mirror_axes: tuple[Axis, ...] = Field(
        (),
        description="axes along which patches are mirrored at random. nnU-Net mirrors all three; that makes left and "
        "right organs look alike",
    )
    augmentation: Literal["nnunet", "none"] = Field("nnunet", description="nnU-Net's augmentation of patches, or none")
    deep_supervision: bool | Literal["all_outputs"] = Field(
        True,
        description="outputs at lower resolutions are trained, too; `all_outputs` counts the coarsest, which nnU-Net "
        "leaves out",
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto",
        description="`auto` is fp16 with gradient scaling on a GPU, bf16 on a CPU that has units for it, else fp32. "
        "What the device would only emulate becomes fp32",
    )
    export: Literal["final", "best"] = Field(
        "final", description="weights of the final epoch, or of the best by moving average of the validation Dice"
    )
    # What is None is no part of a training's fingerprint.
    optimizer: Literal["adamw"] | None = Field(
        None, description="AdamW (torch's betas, no `momentum`); none: SGD with `momentum`, as nnU-Net"
    )
    class_weights: dict[str, float] | None = Field(
        None, description="weights of classes in the cross-entropy; 1 for those not named"
    )
    sampling: Sampling | Literal["uniform"] = Field(
        Sampling(), description="how often cases and classes are drawn; `uniform` draws all cases alike"
    )
    favor: Favor | None = Field(None, description="a class on which patches are centered more often")
    random_intensity: RandomIntensity | None = Field(
        None, description="patches of other intensities and the same shapes, beside `augmentation`"
    )
    new_class_bias: float | None = Field(
        None, description="with `init_from`, the first bias of classes that the other model lacks; none: 0 (Mao)"
    )
    crop_z_mm: float | None = Field(
        None,
        ge=0,
        description="patches come from the slices of a case that hold a class of the model, and so much above and "
        "below (Meng, section 2.1); none: from the whole case",
    )

    @model_validator(mode="after")
    def _fits(self) -> "SegmenterSettings":
        if len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise ValueError("mirror_axes names an axis twice")
        if self.export == "best" and not self.validation_iterations:
            raise ValueError("export: best needs validation_iterations above 0")
        return self


class SupervisedSettings(SegmenterSettings):
    """Learn from cases in which every class of the model is annotated."""

    kind: Literal["supervised"] = Field("supervised", description="learns from cases with all classes annotated")
    unknown: Literal["exclude", "background"] = Field(
        "exclude", description="cases with an unknown class are left out, or their unknown classes are background"
    )


class MergingSettings(SegmenterSettings):
    """Learn also from cases in which some classes are unknown, by merging those into the background."""

    merge: Literal["logsumexp", "max"] = Field(
        "logsumexp", description="the exact probability of the merged classes, or their maximum (Zhou)"
    )


class PartialSettings(MergingSettings):
    """Learn also from cases in which some classes are unknown, by merging those into the background."""

    idle = (
        Idle(
            ("sampling",),
            lambda s: s.batches is not None and s.sampling != "uniform",
            "with `batches`, which draw a type, then its cases alike",
        ),
    )
    kind: Literal["partial"] = Field("partial", description="learns from what is annotated of each case")
    batches: BatchTypes | None = Field(None, description="batches of one annotation type")
    cutmix: CutMix | None = Field(None, description="tumor objects pasted into patches")


class SemiSupervisedSettings(MergingSettings):
    """Learn also from cases of which nothing is known; half of each batch is unlabeled."""

    unlabeled: Unlabeled = Field(Unlabeled(), description="how much of a batch is unlabeled, and what it teaches")


class MeanTeacherSettings(SemiSupervisedSettings):
    """A teacher that is the moving average of the student and that the student agrees with (He, section 2.3)."""

    idle = (
        Idle(
            ("consistency_on", "consistency_weight", "consistency_ramp", "noise", "noise_limit", "unlabeled"),
            lambda s: not s.consistency,
            "with consistency: false, where labels alone teach",
        ),
        Idle(("noise_limit",), lambda s: not s.noise, "where `noise` is 0"),
    )
    kind: Literal["mean_teacher"] = Field("mean_teacher", description="agrees with the moving average of its weights")
    consistency: bool = Field(True, description="false: the student learns from labels alone, as in He's code")
    consistency_on: Literal["unlabeled", "all"] = Field(
        "unlabeled", description="samples on which student and teacher are to agree"
    )
    consistency_weight: float = Field(0.1, ge=0, description="largest weight of the consistency loss")
    consistency_ramp: float = Field(
        1.0, ge=0, le=1, description="share of the epochs in which the weight grows; 0: full at once"
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="largest share of the past in the moving average")
    noise: float = Field(0.1, ge=0, description="standard deviation of the noise on the teacher's input")
    noise_limit: float = Field(0.2, ge=0, description="largest noise, either way")


class CrossPseudoSettings(SemiSupervisedSettings):
    """Two networks that learn from each other's predictions (Jia, section 2.3; Chen et al. 2021)."""

    kind: Literal["cross_pseudo"] = Field("cross_pseudo", description="two networks that teach each other")
    cross_weight: float = Field(1.0, ge=0, description="weight of the cross supervision")
    cross_on: Literal["unlabeled", "all"] = Field(
        "all", description="samples on which each learns from the other network (Jia: all)"
    )
    cross_ramp: float = Field(
        0.0, ge=0, le=1, description="share of the epochs in which the weight grows; 0: full at once"
    )
    partly_labeled: Literal["labeled", "unlabeled"] = Field(
        "labeled", description="cases with unknown classes teach what is known of them, or count as unlabeled (Jia)"
    )


class SliceClassifierSettings(TrainingSettings, SliceInput):
    """Learn by Adam which axial slices show a class of the model, in cases in which every class is annotated.

    What it sees, and how its slices are augmented: Mao, section 2.2, gives no ranges.
    """

    kind: Literal["slice_classifier"] = Field("slice_classifier", description="tells which axial slices show a class")
    batch_size: int = Field(32, ge=2, description="slices in a batch")
    rotate_degrees: float = Field(15.0, ge=0, description="largest rotation, either way")
    shift: float = Field(0.1, ge=0, lt=1, description="largest shift, as a share of the slice's side")
    zoom: float = Field(0.1, ge=0, lt=1, description="largest change of scale, either way")


TRAINER_SETTINGS: dict[str, type[Strict]] = {
    "supervised": SupervisedSettings,
    "partial": PartialSettings,
    "mean_teacher": MeanTeacherSettings,
    "cross_pseudo": CrossPseudoSettings,
    SLICE_CLASSIFIER: SliceClassifierSettings,
    TRANSLATOR: TranslatorSettings,
}
"""Settings of each kind of training, by its name."""
_Settings = Annotated[
    Annotated[SupervisedSettings, tag("supervised")]
    | Annotated[PartialSettings, tag("partial")]
    | Annotated[MeanTeacherSettings, tag("mean_teacher")]
    | Annotated[CrossPseudoSettings, tag("cross_pseudo")]
    | Annotated[SliceClassifierSettings, tag(SLICE_CLASSIFIER)]
    | Annotated[TranslatorSettings, tag(TRANSLATOR)],
    by_kind(tuple(TRAINER_SETTINGS), default="supervised"),
]
TrainerSettings = Annotated[
    _Settings,
    BeforeValidator(
        lambda value: {"kind": value} if isinstance(value, str) else value, json_schema_input_type=_Settings | str
    ),
]
"""How a model is trained; the kind may stand alone."""


def trainer_settings(content: Mapping[str, Any] | str) -> TrainerSettings:
    """Return the settings of this content. Raises pydantic's ValidationError."""
    return TypeAdapter(TrainerSettings).validate_python(content)


def settings_of(settings: Strict, kind: type[Wanted]) -> Wanted:
    """Return settings that are known to be of a kind. Raises TypeError when they are of another."""
    if not isinstance(settings, kind):
        raise TypeError(f"found {type(settings).__name__}, expected {kind.__name__}")
    return settings


def version_of(settings: Strict) -> int:
    """Return the version of a training that learns from labels."""
    return SLICE_VERSION if isinstance(settings, SliceClassifierSettings) else TRAINING_VERSION


def optimizer_buffers(settings: Strict) -> int:
    """Return how many numbers an optimizer keeps of each weight: AdamW and Adam two moments, SGD its momentum."""
    if not isinstance(settings, SegmenterSettings) or settings.optimizer == "adamw":
        return 2
    return 1 if settings.momentum else 0


def cutmix_of(settings: Strict) -> CutMix | None:
    """Return which tumor objects a training pastes, and how; None where it pastes none."""
    return settings.cutmix if isinstance(settings, PartialSettings) else None
