"""How labels are cleaned, selected, fused and cut, as it stands in a recipe."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from labelloop.base.classes import Idle, Names, Seed, Strict
from labelloop.base.unions import Verb, by_verb, tag

TumorVoxels = Literal["predicted_organ", "nearest_organ"]
"""Which organ a voxel of a true tumor belongs to: see :func:`labelloop.labels.fuse.give_tumor_to_organs`."""
Demotion = Literal["unknown", "background", "drop"]
Dice = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]
UNALTERED, CORRUPTED, HELD_OUT, PSEUDO = "unaltered", "corrupted", "held_out", "pseudo"
"""Sources of labels: the truth; the truth with known errors; predictions for labeled cases that no model learned from;
those whose quality is to be predicted."""
CRITERIA = (
    "agreement", "uncertainty", "quality", "calibration", "rank", "reviewer", "reviewers_differ", "whole_case",
    "nothing_known", "not_predicted", "not_found",
)  # fmt: skip
"""What speaks against a label besides rules of anatomy, as selection writes it."""
LEAST_PATIENTS = 10
"""Labeled patients that the quality of labels can be learned from; fewer are no basis for what holds of others."""


class Cleaning(Verb):
    """A step that takes voxels of some classes away; its verb names the classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, or class sets, of which voxels are taken away."""
        named: tuple[str, ...] = getattr(self, self.verb)
        return named

    @property
    def named(self) -> tuple[str, ...]:
        """All classes and class sets that the step names."""
        return (*self.classes, *(getattr(self, "of", None) or ()))


class RemoveIslands(Cleaning):
    """Remove components smaller than ``below_ml``, except the largest of a class (unless ``also_largest``)."""

    verb = "remove_islands"
    remove_islands: Names = Field(description="classes of which small components go")
    below_ml: float = Field(gt=0, description="components smaller than this go")
    also_largest: bool = Field(False, description="the largest component of a class goes, too, where it is as small")


class InSlices(Cleaning):
    """Slices (z) from the lowest to the highest of the classes ``of``, of each its largest component, widened in mm.

    Where a class of ``of`` is not found, there are no such slices.
    """

    above_mm: float | None = Field(None, ge=0, description="beyond the highest slice of `of`; none: without end")
    below_mm: float | None = Field(None, ge=0, description="beyond the lowest slice of `of`; none: without end")
    taller_than_mm: float | None = Field(
        None, ge=0, description="images that are not taller than this are left as they are"
    )


class KeepLargest(InSlices):
    """Keep one component of each class: the largest, or the one with most voxels in the slices of ``of``."""

    verb = "keep_largest"
    idle = (Idle(("above_mm", "below_mm"), lambda s: s.of is None, "without `of`, in whose slices"),)
    keep_largest: Names = Field(description="classes of which one component stays")
    of: Names | None = Field(None, description="classes in whose slices voxels count; none: all count")


class KeepSlices(InSlices):
    """Remove what lies outside of the slices of other classes (He, section 2.6: 24 mm above and below the liver)."""

    verb = "keep_slices"
    keep_slices: Names = Field(description="classes that are cut off outside of the slices")
    of: Names = Field(description="classes whose slices are kept")

    @model_validator(mode="after")
    def _bounded(self) -> "KeepSlices":
        if self.above_mm is None and self.below_mm is None:
            raise ValueError("above_mm, below_mm or both say where to cut")
        return self


class RemoveDistantIslands(Cleaning):
    """Remove islands whose centroid is farther above or below that of ``of`` than ``beyond_z_mm`` (Meng's code).

    An island is a component of all the classes together. Of ``of``, the largest component counts, of several classes
    that of all together; where it is not found, everything stays.
    """

    verb = "remove_distant_islands"
    remove_distant_islands: Names = Field(description="classes whose islands go; `all` for every class")
    of: Names = Field(description="classes from which the distance counts")
    beyond_z_mm: float = Field(gt=0, description="islands whose centroid is farther along z go")


class RemoveOutsideAbdomen(Cleaning):
    """Remove voxels outside the box of the classes ``of``, widened in mm (Zhou: the box of organs, no margin)."""

    verb = "remove_outside_abdomen"
    remove_outside_abdomen: Names = Field(description="classes of which voxels outside the box go, e.g. tumor")
    of: Names = Field(("organs",), description="classes that the box is drawn around")
    above_mm: float = Field(0.0, ge=0, description="the box is so much higher than its classes")
    below_mm: float = Field(0.0, ge=0, description="the box reaches so much lower than its classes")
    aside_mm: float = Field(0.0, ge=0, description="the box is so much wider than its classes on each of four sides")


class RemoveFarFromOrgans(Cleaning):
    """Remove components farther than ``beyond_mm`` from every class ``of`` (Zhou gives no number)."""

    verb = "remove_far_from_organs"
    remove_far_from_organs: Names = Field(description="classes of which distant components go, e.g. tumor")
    of: Names = Field(("organs",), description="classes from which the distance counts")
    beyond_mm: float = Field(gt=0, description="components farther than this go")


CLEANING: dict[str, type[Cleaning]] = {
    kind.verb: kind
    for kind in (
        RemoveIslands,
        KeepLargest,
        KeepSlices,
        RemoveDistantIslands,
        RemoveOutsideAbdomen,
        RemoveFarFromOrgans,
    )
}
"""Cleaning steps by their verbs."""
CleanStep = Annotated[
    Annotated[RemoveIslands, tag("remove_islands")]
    | Annotated[KeepLargest, tag("keep_largest")]
    | Annotated[KeepSlices, tag("keep_slices")]
    | Annotated[RemoveDistantIslands, tag("remove_distant_islands")]
    | Annotated[RemoveOutsideAbdomen, tag("remove_outside_abdomen")]
    | Annotated[RemoveFarFromOrgans, tag("remove_far_from_organs")],
    by_verb(tuple(CLEANING)),
]
"""One cleaning step, as it stands in a recipe."""
CleanSteps = Annotated[
    tuple[CleanStep, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, Mapping | Cleaning) else value,
        json_schema_input_type=tuple[CleanStep, ...] | CleanStep,
    ),
]
"""Cleaning steps in their order; one may stand alone."""


class SelectSettings(Strict):
    """Which pseudo-labels are accepted, and what happens to the refused ones.

    Thresholds are one number for every class, or one per class (classes not named are not held against it; "all" is
    the case as a whole). With ``target_dsc``, thresholds of a score are calibrated on held-out truth
    (``labels.calibrate``): by the run itself, on labeled cases that no model behind the label set learned from, or
    elsewhere, in the table ``calibration``. A class that no threshold can be certified for is refused. ``min_quality``
    and ``score: quality`` ask for the predicted DSC (``labels.quality``), which the run learns from its labeled cases:
    ten patients or more. With ``voxels: agreed``, trainings ignore the voxels on which the models differ about an
    accepted class; what people drew stays.
    """

    idle = (
        Idle(("calibration", "confidence"), lambda s: s.target_dsc is None, "without `target_dsc`, which they are for"),
        Idle(
            ("rank",),
            lambda s: s.keep_least_uncertain is None and not s.drop_most_uncertain,
            "without keep_least_uncertain or drop_most_uncertain, which ask for ranks",
        ),
    )
    verdicts: Literal["all"] | Names = Field("all", description="anatomy rules whose failure refuses a class")
    min_pairwise_dice: Dice | dict[str, Dice] | None = Field(None, description="smallest mean pairwise Dice")
    min_quality: Dice | dict[str, Dice] | None = Field(
        None, description="smallest predicted DSC; 0 refuses nothing, and has it predicted for the queue and the report"
    )
    target_dsc: float | None = Field(
        None, gt=0, lt=1, description="mean DSC that accepted labels of a class must reach"
    )
    confidence: float | None = Field(
        0.9, gt=0, lt=1, description="probability with which `target_dsc` is reached; null: on average over such runs"
    )
    score: Literal["agreement", "quality"] = Field(
        "agreement", description="what the threshold for `target_dsc` is of: pairwise Dice, or the predicted DSC"
    )
    calibration: str | None = Field(
        None, description="calibration table made elsewhere for `target_dsc`; default: the run makes its own"
    )
    max_uncertainty: float | dict[str, float] | None = Field(None, description="largest FLARE22 uncertainty")
    keep_least_uncertain: int | dict[str, int] | None = Field(
        None, description="per class, the number of cases kept that have it; 'all' ranks and keeps whole cases first"
    )
    rank: Literal["all", "unlabeled"] = Field(
        "all", description="cases that are ranked as a whole: all with pseudo-labels, or those without any truth (Zhou)"
    )
    drop_most_uncertain: int = Field(0, ge=0, description="whole cases dropped, the most uncertain first (FLARE22)")
    if_refused: Demotion | dict[str, Demotion] = Field(
        "unknown", description="a refused class becomes unknown (partial losses) or background, or its case is dropped"
    )
    voxels: Literal["all", "agreed"] = Field(
        "all", description="of an accepted label all voxels are learned, or those alone on which the models agree"
    )
    absent_if_not_found: Names = Field(
        (), description="classes that count as absent where no model finds them; other classes are unknown there"
    )

    @model_validator(mode="after")
    def _calibrated(self) -> "SelectSettings":
        if self.score == "quality" and (self.target_dsc is None or self.calibration is not None):
            raise ValueError("score: quality needs target_dsc, and thresholds that the run finds itself")
        if self.min_quality is not None and self.target_dsc is not None:
            raise ValueError("min_quality and target_dsc are two ways to ask for good labels; leave one out")
        return self

    @property
    def asks_quality(self) -> bool:
        """Whether the DSC of labels is to be predicted."""
        return self.min_quality is not None or self.score == "quality"

    def without_threshold(self) -> "SelectSettings":
        """Return what is asked of a label besides what held-out labels are to find, and its rank among all cases."""
        found = {"target_dsc": None, "calibration": None, "min_quality": None, "score": "agreement"}
        return self.model_copy(update=found | {"keep_least_uncertain": None, "drop_most_uncertain": 0})

    def demotion(self, name: str) -> Demotion:
        """What happens to a refused class."""
        return self.if_refused.get(name, "unknown") if isinstance(self.if_refused, dict) else self.if_refused


class CutSettings(Strict):
    """How tumor objects are cut. Zhou's 8-16 slices of 2.5 mm and 24-32 pixels of 1.5 mm are the default margins."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: str = Field("tumor", description="class of the objects")
    source: Literal["truth", "labels"] = Field(
        "truth",
        alias="from",
        description="objects that annotators drew (Zhou), or also those that the label set takes from models",
    )
    margin_mm: tuple[Range, Range, Range] = Field(
        ((20.0, 40.0), (36.0, 48.0), (36.0, 48.0)),
        description="surroundings on each side, drawn for each object between these bounds (z, y, x)",
    )
    min_ml: float = Field(0.0, ge=0, description="smaller tumors are passed over (Zhou: 100 voxels, 0.56 ml)")
    seed: Seed = Field(0, description="of the margins that are drawn")
