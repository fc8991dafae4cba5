"""How labels are cleaned, selected, fused and cut, as it stands in a recipe."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from labelloop.classes import Names, Strict

TumorVoxels = Literal["predicted_organ", "nearest_organ"]
"""Which organ a voxel of a true tumor belongs to: see :func:`labelloop.labels.fuse.give_tumor_to_organs`."""
Demotion = Literal["unknown", "background", "drop"]
Dice = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]


class Islands(Strict):
    """Remove components smaller than ``below_ml``, except the largest of a class (unless ``also_largest``)."""

    step: Literal["islands"]
    classes: Names
    below_ml: float = Field(gt=0)
    also_largest: bool = False


class Levels(Strict):
    """Levels (z) from the lowest to the highest of the classes ``of``, of each its largest component, widened in mm.

    Where a class of ``of`` is not found, or the image is not taller than ``from_mm``, there are no such levels.
    """

    above_mm: float | None = Field(None, ge=0, description="beyond the highest level of `of`; none: without end")
    below_mm: float | None = Field(None, ge=0, description="beyond the lowest level of `of`; none: without end")
    from_mm: float | None = Field(None, ge=0, description="images that are not taller than this are left as they are")


class KeepLargest(Levels):
    """Keep one component of each class: the largest, or the one with most voxels in the levels of ``of``."""

    step: Literal["keep_largest"]
    classes: Names
    of: Names | None = Field(None, description="classes in whose levels voxels count; none: all count")


class KeepLevels(Levels):
    """Remove what lies outside of the levels of other classes (He, section 2.6: 24 mm above and below the liver)."""

    step: Literal["keep_levels"]
    classes: Names
    of: Names

    @model_validator(mode="after")
    def _bounded(self) -> "KeepLevels":
        if self.above_mm is None and self.below_mm is None:
            raise ValueError("above_mm, below_mm or both say where to cut")
        return self


class TumorOutsideAbdomen(Strict):
    """Remove tumor voxels outside the box of the classes ``of``, widened in mm (Zhou: the box of organs, no margin)."""

    step: Literal["tumor_outside_abdomen"]
    classes: Names = ("tumor",)
    of: Names = ("organs",)
    above_mm: float = Field(0.0, ge=0)
    below_mm: float = Field(0.0, ge=0)
    aside_mm: float = Field(0.0, ge=0)


class TumorFarFromOrgans(Strict):
    """Remove tumor components farther than ``beyond_mm`` from every class ``of`` (Zhou gives no number)."""

    step: Literal["tumor_far_from_organs"]
    classes: Names = ("tumor",)
    of: Names = ("organs",)
    beyond_mm: float = Field(gt=0)


CleanStep = Annotated[
    Islands | KeepLargest | KeepLevels | TumorOutsideAbdomen | TumorFarFromOrgans, Field(discriminator="step")
]
"""One cleaning step, as it stands in a recipe."""


class SelectSettings(Strict):
    """Which pseudo-labels are accepted, and what happens to the refused ones.

    Thresholds are one number for every class, or one per class (classes not named are not held against it; "all" is
    the case as a whole). With ``target_dsc``, thresholds of pairwise Dice are calibrated on held-out truth
    (``labels.calibrate``): by the run itself, on labeled cases that no model behind the label set learned from, or
    elsewhere, in the table ``calibration``. A class that no threshold can be certified for is refused.
    """

    verdicts: Literal["all"] | Names = Field("all", description="anatomy rules whose failure refuses a class")
    min_pairwise_dice: Dice | dict[str, Dice] | None = Field(None, description="smallest mean pairwise Dice")
    target_dsc: float | None = Field(
        None, gt=0, lt=1, description="mean DSC that accepted labels of a class must reach"
    )
    confidence: float = Field(0.9, gt=0, lt=1, description="probability with which `target_dsc` is reached")
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
    demote: Demotion | dict[str, Demotion] = Field(
        "unknown", description="a refused class becomes unknown (partial losses) or background, or its case is dropped"
    )
    absence: Names = Field(
        (), description="classes that count as absent where no model finds them; of others, silence proves nothing"
    )

    @model_validator(mode="after")
    def _calibrated(self) -> "SelectSettings":
        if self.calibration is not None and self.target_dsc is None:
            raise ValueError("calibration needs target_dsc, for which the table was made")
        return self

    def without_threshold(self) -> "SelectSettings":
        """Return what is asked of a label besides its calibrated threshold and its rank among all cases."""
        others = {"target_dsc": None, "calibration": None, "keep_least_uncertain": None, "drop_most_uncertain": 0}
        return self.model_copy(update=others)

    def demotion(self, name: str) -> Demotion:
        """What happens to a refused class."""
        return self.demote.get(name, "unknown") if isinstance(self.demote, dict) else self.demote


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
    at_least_ml: float = Field(0.0, ge=0, description="smaller tumors are passed over (Zhou: 100 voxels, 0.56 ml)")
    seed: int = Field(0, ge=0)
