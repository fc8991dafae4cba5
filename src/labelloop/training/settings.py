"""What a recipe may set for a training. Imports nothing heavy: the Snakefile validates recipes with it."""

from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from labelloop.adapt.settings import TranslatorSettings
from labelloop.classes import Names, Strict
from labelloop.inference.settings import SliceInput
from labelloop.labels.settings import CutSettings

Own = TypeVar("Own", bound=Strict)
TRAINING_VERSION, TRANSLATOR_VERSION = 6, 2
"""Raised whenever the same training would lead to other weights: that of a translator, or any other."""
Determinism = Literal["auto"] | bool
"""Whether equal jobs give equal bytes; ``auto``: on a CPU, where it costs nothing, not on a GPU."""
Axis = Literal["z", "y", "x"]
AXES: tuple[Axis, ...] = ("z", "y", "x")
"""Axes of a canonical array: inferior-superior, posterior-anterior, left-right."""

BELONGS_TO: dict[str, tuple[str, ...]] = {
    "merge": ("partial", "mean_teacher", "cross_pseudo"),
    "unknown": ("supervised",),
    "batches": ("partial",),
    "cutmix": ("partial",),
    "mean_teacher": ("mean_teacher",),
    "cross": ("cross_pseudo",),
    "unlabeled": ("mean_teacher", "cross_pseudo"),
    "slices": ("slice_classifier",),
    "translator": ("translator",),
}
"""Settings that only some trainers read. A setting not named here belongs to all."""
SEMI_SUPERVISED = ("mean_teacher", "cross_pseudo")
"""Trainers that also learn from cases of which nothing is known."""
SLICE_CLASSIFIER = "slice_classifier"
TRANSLATOR = "translator"
OWN = {"mean_teacher": "mean_teacher", "cross_pseudo": "cross", SLICE_CLASSIFIER: "slices", TRANSLATOR: "translator"}
"""Trainers with a group of settings of their own, and its name."""
READS_ONLY = {
    SLICE_CLASSIFIER: (
        "kind", "epochs", "iterations_per_epoch", "validation_iterations", "learning_rate", "weight_decay", "schedule",
        "save_every", "seed", "slices",
    ),
    TRANSLATOR: ("kind", "translator"),
}  # fmt: skip
"""Trainers that read few of the settings, and which."""


class BatchTypes(Strict):
    """Batches whose patches all come from cases with the same annotated classes (Zhou, section 2.2).

    A type is drawn with a probability proportional to its number of cases. Cases of the groups ``full`` make a second
    stream, from which the training begins.
    """

    full: Names = Field((), description="groups of cases with full labels; none: one stream of all cases")
    full_first_epochs: int = Field(0, ge=0, description="epochs on the full labels alone (Zhou: 150 of 1200)")
    alternate: bool = Field(True, description="afterwards every other batch is of full labels; else of any type")
    fewest_cases: int = Field(1, ge=1, description="types with fewer cases are left out (Zhou: the batch size, 4)")

    @model_validator(mode="after")
    def _consistent(self) -> "BatchTypes":
        if self.full_first_epochs and not self.full:
            raise ValueError("full_first_epochs needs `full`, the groups of cases with full labels")
        return self


class Sampling(Strict):
    """How often cases and classes are drawn: the truth is not diluted by what models labeled.

    Where annotators looked, a case is drawn the more often, the more classes they looked for, and each of its classes
    alike. Where models labeled, a class is drawn as often as that, then a case in which it was found. ``favor`` counts
    for the draw of cases, too. ``sampling: cases`` draws all cases alike, as the papers do.
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
    number: int = Field(1, ge=1, le=8, description="objects pasted into one patch (Zhou: 1)")
    placement: Literal["organs", "body"] = Field(
        "organs", description="in the body: inside the box of the labeled organs in the patch, or anywhere"
    )

    @property
    def cut(self) -> CutSettings:
        """How the objects are cut."""
        return CutSettings(**{name: getattr(self, name) for name in CutSettings.model_fields})


class MeanTeacher(Strict):
    """A teacher that is the moving average of the student and that the student agrees with (He, section 2.3)."""

    consistency: bool = Field(True, description="false: the student learns from labels alone, as in He's code")
    on: Literal["unlabeled", "all"] = Field("unlabeled", description="samples on which the two are to agree")
    weight: float = Field(0.1, ge=0, description="largest weight of the consistency")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the epochs in which the weight grows; 0: full at once")
    decay: float = Field(0.99, ge=0, lt=1, description="largest share of the past in the moving average")
    noise: float = Field(0.1, ge=0, description="standard deviation of the noise on the teacher's input")
    noise_limit: float = Field(0.2, ge=0, description="largest noise, either way")


class CrossPseudo(Strict):
    """Two networks that learn from each other's predictions (Jia, section 2.3; Chen et al. 2021)."""

    weight: float = Field(1.0, ge=0, description="weight of the cross supervision")
    samples: Literal["all", "unlabeled"] = Field("all", description="which learn from the other network (Jia: all)")
    ramp: float = Field(0.0, ge=0, le=1, description="share of the epochs in which the weight grows; 0: full at once")
    partly_labeled: Literal["labeled", "unlabeled"] = Field(
        "labeled", description="cases with unknown classes teach what is known of them, or count as unlabeled (Jia)"
    )


class RandomIntensity(Strict):
    """Patches get other intensities by a shallow network with random weights, and keep their shapes.

    Ouyang et al. 2022. For images that look unlike those with labels: another modality, sequence or scanner.
    """

    probability: float = Field(1.0, ge=0, le=1, description="share of patches that are altered (Ouyang: all)")
    layers: int = Field(4, ge=2, le=8, description="convolutions of the random network (Ouyang: 4)")
    channels: int = Field(2, ge=1, le=16, description="channels between them (Ouyang: 2)")


class Unlabeled(Strict):
    """How much of a batch is unlabeled, from when on it counts, and what of it (mean_teacher and cross_pseudo)."""

    share: float = Field(0.5, gt=0, lt=1, description="of a batch, rounded down, at least one sample")
    after: float = Field(
        0.0, ge=0, lt=1, description="share of the epochs on labels alone, before unlabeled cases count"
    )
    confidence: float = Field(
        0.0, ge=0, le=1, description="voxels teach where the other network is at least so sure; 0: everywhere"
    )
    balanced: bool = Field(
        False, description="lower the confidence asked for classes of which the network is less sure, e.g. small organs"
    )
    strong_view: bool = Field(
        False, description="the network that learns sees other contrast, brightness, gamma and noise than the other one"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Unlabeled":
        if self.balanced and not self.confidence:
            raise ValueError("balanced lowers `confidence`, which is 0")
        return self


class Slices(SliceInput):
    """What a slice classifier sees, and how its slices are augmented (Mao, section 2.2, gives no ranges)."""

    batch_size: int = Field(32, ge=2, description="slices in a batch")
    rotate_degrees: float = Field(15.0, ge=0, description="largest rotation, either way")
    shift: float = Field(0.1, ge=0, lt=1, description="largest shift, as a share of the slice's side")
    zoom: float = Field(0.1, ge=0, lt=1, description="largest change of scale, either way")


class TrainerSettings(Strict):
    """How a model is trained. The defaults are nnU-Net's (Isensee et al. 2021), except where a comment says so.

    ``kind``: ``supervised`` learns from cases in which every class of the model is annotated; ``partial`` also from
    cases in which some classes are unknown, by merging those into the background (see ``losses``). ``mean_teacher`` and
    ``cross_pseudo`` learn like ``partial`` and also from cases of which nothing is known; half of each batch is
    unlabeled, and ``unlabeled`` says otherwise. ``slice_classifier`` learns by Adam which axial slices show a class of
    the model, in cases in which every class is annotated; of the settings it reads epochs, iterations, learning rate,
    its schedule, weight decay, ``save_every``, ``seed`` and ``slices``. ``translator`` learns to give CT the look of
    MR, from images alone; all its settings are those of ``translator``.
    ``unknown`` (supervised): ``exclude`` cases with an unknown class, or take unknown classes for ``background``.
    ``merge`` (all but supervised): ``logsumexp``, the exact probability of the merged classes, or their ``max``.
    ``foreground_fraction``: probability that a patch is centered on an annotated class of its case.
    ``class_weights``: weights of classes in the cross-entropy; 1 for those not named.
    ``sampling``: how often cases and classes are drawn. ``favor``: a class on which patches are centered more often.
    ``batches`` (partial): batches of one annotation type. ``cutmix`` (partial): tumor objects pasted into patches.
    ``random_intensity``: patches of other intensities and the same shapes, beside ``augmentation``.
    ``deep_supervision``: ``all_outputs`` counts the coarsest output too, which nnU-Net leaves out.
    ``schedule``: exponent of the polynomial decay of the learning rate.
    ``precision``: ``auto`` is fp16 with gradient scaling on a GPU, bf16 on a CPU that has units for it, else fp32. What
    the device would only emulate becomes fp32.
    ``new_class_bias``: with ``init_from``, the first bias of classes that the other model lacks; without, 0 (Mao).
    ``crop_z_mm``: patches come from the levels of a case that hold a class of the model, and so much above and below
    (Meng, section 2.1); none: from the whole case.
    ``export``: the weights of the ``final`` epoch, or of the ``best`` by moving average of the validation Dice.
    """

    kind: Literal["supervised", "partial", "mean_teacher", "cross_pseudo", "slice_classifier", "translator"] = (
        "supervised"
    )
    epochs: int = Field(1000, ge=1)
    iterations_per_epoch: int = Field(250, ge=1)
    validation_iterations: int = Field(50, ge=0)
    learning_rate: float = Field(1e-2, gt=0)
    weight_decay: float = Field(3e-5, ge=0)
    momentum: float = Field(0.99, ge=0, lt=1)
    schedule: float = Field(0.9, ge=0)
    foreground_fraction: float = Field(0.5, ge=0, le=1)  # nnU-Net says 0.33, which in its batches of two is one
    mirror_axes: tuple[Axis, ...] = ()  # nnU-Net mirrors all three; that makes left and right organs look alike
    augmentation: Literal["nnunet", "none"] = "nnunet"
    deep_supervision: bool | Literal["all_outputs"] = True
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    unknown: Literal["exclude", "background"] = "exclude"
    merge: Literal["logsumexp", "max"] = "logsumexp"
    export: Literal["final", "best"] = "final"
    save_every: int = Field(10, ge=1)  # nnU-Net: 50; a kill then loses fewer epochs
    seed: int = Field(0, ge=0)
    # What is None is no part of a training's fingerprint.
    class_weights: dict[str, float] | None = None
    sampling: Sampling | Literal["cases"] = Sampling()
    favor: Favor | None = None
    batches: BatchTypes | None = None
    cutmix: CutMix | None = None
    mean_teacher: MeanTeacher | None = None
    cross: CrossPseudo | None = None
    unlabeled: Unlabeled | None = None
    slices: Slices | None = None
    random_intensity: RandomIntensity | None = None
    translator: TranslatorSettings | None = None
    new_class_bias: float | None = None
    crop_z_mm: float | None = Field(None, ge=0)

    def own(self, kind: type[Own]) -> Own:
        """Return the trainer's own group of settings, which is of this kind."""
        group = getattr(self, OWN.get(self.kind, ""), None)
        if not isinstance(group, kind):
            raise TypeError(f"the trainer {self.kind} has no {kind.__name__}")
        return group

    @model_validator(mode="before")
    @classmethod
    def _own_group(cls, data: Any) -> Any:
        own = OWN.get(data.get("kind", "")) if isinstance(data, dict) else None
        return data | {own: data.get(own) or {}} if own else data

    @model_validator(mode="after")
    def _consistent(self) -> "TrainerSettings":
        for name, trainers in BELONGS_TO.items():
            if self.kind not in trainers and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is read by trainer {' and '.join(trainers)} only, not by {self.kind}")
        if self.kind in READS_ONLY:
            given = [name for name in type(self).model_fields if name not in READS_ONLY[self.kind]]
            if wrong := [name for name in given if getattr(self, name) != type(self).model_fields[name].default]:
                raise ValueError(f"{', '.join(wrong)} is not read by trainer {self.kind}")
        if len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise ValueError("mirror_axes names an axis twice")
        if self.export == "best" and not self.validation_iterations:
            raise ValueError("export: best needs validation_iterations above 0")
        return self
