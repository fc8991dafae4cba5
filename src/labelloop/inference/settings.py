"""How a model is run. Apart from the engine, so that a command line can name settings without loading torch."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from labelloop.base.classes import Names, Strict
from labelloop.base.unions import by_kind, tag

Mode = Literal["exact", "fast"]
Device = Literal["auto", "cpu", "cuda"]
ENGINE_VERSION = 6
"""Raised when the answers change, so that Snakemake runs its jobs and ledgers do their cases anew."""


class ProbeFirst(Strict):
    """Zhou's test: look at the middle windows of a level first, skip its others when those see next to nothing.

    A level is all windows at one height. With 3 x 3 windows the probe is the center, with 2 x 2 those on the diagonal.
    All probes must see less than ``min_foreground_ml``: 100 voxels of 2.5 x 1.5 x 1.5 mm (luckieucas/FLARE23;
    another release asks for 1000, 5.6 ml). Volumes of fewer than ``min_levels`` levels are computed whole.
    """

    kind: Literal["probe_first"] = Field("probe_first", description="the middle windows of each level first")
    min_foreground_ml: float = Field(0.5625, ge=0, description="what a probe must see, so that its level is computed")
    min_levels: int = Field(5, ge=1, description="images of fewer levels are computed whole")


class CenterFirst(Strict):
    """The FLARE 2022 winner's test (Ziyan-Huang/FLARE22): 3 x 3 windows around the center, the center first.

    When it sees less than ``min_foreground_ml`` (1000 voxels of 4 x 1.2 x 1.2 mm), the others and the next level are
    skipped. When it sees only ``tubes``, the others are skipped except those before and behind it that a tube enters
    with at least ``edge_mm2`` (10 voxels of 4 x 1.2 mm). In planes wider than twice the patch, what lies outside the
    3 x 3 windows is never looked at.
    """

    kind: Literal["center_first"] = Field("center_first", description="the window in the center of each level first")
    min_foreground_ml: float = Field(5.76, ge=0, description="what the center must see, so that others are computed")
    tubes: Names = Field(
        ("aorta", "inferior_vena_cava", "esophagus"), description="classes that may run on alone out of the center"
    )
    edge_mm2: float = Field(48.0, ge=0, description="area with which a tube enters a window that is then computed")


SKIPS: dict[str, type[Strict]] = {"probe_first": ProbeFirst, "center_first": CenterFirst}
"""Tests for windows that need not be computed, by their kinds."""
Skip = Annotated[
    Annotated[ProbeFirst, tag("probe_first")] | Annotated[CenterFirst, tag("center_first")], by_kind(tuple(SKIPS))
]


Share = Annotated[float, Field(gt=0, le=1)]


def _each_once(axes: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(axes)) < len(axes):
        raise ValueError("an axis stands twice")
    return axes


MirrorAxes = Annotated[tuple[Literal[0, 1, 2], ...], AfterValidator(_each_once)]
"""Axes along which images are mirrored; 0: z, 1: y, 2: x."""


class ManyWindows(Strict):
    """Another distance of windows for large images (He, section 2.5: more than 20 windows)."""

    above: int = Field(20, ge=1, description="windows at the usual step, beyond which this one counts")
    step: tuple[Share, Share, Share] = Field(
        (1.0, 1.0, 0.5), description="distance along z, y, x, as shares of the patch"
    )


class Settings(Strict):
    """How a model is run."""

    mode: Mode = Field(
        "exact",
        description="`exact` decides as nnU-Net's predictor with the same options does; `fast` searches each class "
        "only around the place where it comes close to winning on the network grid",
    )
    step: float = Field(
        0.5, gt=0, le=1, description="distance of windows as a share of the patch (nnU-Net: tile_step_size 0.5)"
    )
    many_windows: ManyWindows | None = Field(None, description="another step for images that need many windows")
    gaussian: bool = Field(True, description="windows count less at their borders (nnU-Net: use_gaussian)")
    mirror_axes: MirrorAxes = Field(
        (), description="axes (0: z, 1: y, 2: x) along which images are mirrored; all combinations are averaged"
    )
    window_batch: int | None = Field(
        None,
        ge=1,
        description="windows per forward pass, at most, as far as memory suffices; none: one on a CPU, on a GPU as "
        "many as keep it busy",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="`auto` is fp16 on CUDA, else fp32; bf16 is faster on CPUs that have units for it, and less exact. "
        "What the device would only emulate becomes fp32",
    )
    skip: Skip | None = Field(
        None,
        description="test for windows that need not be computed; what no window covers is background. Where a model of "
        "nnU-Net's sees another axis than z first, all are computed",
    )


class SliceInput(Strict):
    """What a slice classifier sees of an axial slice: a window of Hounsfield units in a square (Mao, section 2.2)."""

    size: int = Field(256, ge=32, description="pixels a side")
    width_hu: float = Field(400.0, gt=0, description="width of the window")
    level_hu: float = Field(40.0, description="middle of the window")
