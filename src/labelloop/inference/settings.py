"""How a model is run. Apart from the engine, so that a command line can name settings without loading torch."""

from typing import Annotated, Literal

from pydantic import Field

from labelloop.classes import Names, Strict

Mode = Literal["exact", "fast"]
Device = Literal["auto", "cpu", "cuda"]
ENGINE_VERSION = 6
"""Raised when the answers change, so that Snakemake runs its jobs and ledgers do their cases anew."""


class ProbeFirst(Strict):
    """Zhou's test: look at the middle windows of a level first, skip its others when those see next to nothing.

    A level is all windows at one height. With 3 x 3 windows the probe is the center, with 2 x 2 those on the diagonal.
    All probes must see less than ``min_foreground_ml``: 100 voxels of 2.5 x 1.5 x 1.5 mm (luckieucas/FLARE23;
    another release asks for 1000, 5.6 ml). Volumes of fewer than ``from_levels`` levels are computed whole.
    """

    kind: Literal["probe_first"] = "probe_first"
    min_foreground_ml: float = Field(0.5625, ge=0)
    from_levels: int = Field(5, ge=1)


class CenterFirst(Strict):
    """The FLARE 2022 winner's test (Ziyan-Huang/FLARE22): 3 x 3 windows around the center, the center first.

    When it sees less than ``min_foreground_ml`` (1000 voxels of 4 x 1.2 x 1.2 mm), the others and the next level are
    skipped. When it sees only ``tubes``, the others are skipped except those before and behind it that a tube enters
    with at least ``edge_mm2`` (10 voxels of 4 x 1.2 mm). In planes wider than twice the patch, what lies outside the
    3 x 3 windows is never looked at.
    """

    kind: Literal["center_first"] = "center_first"
    min_foreground_ml: float = Field(5.76, ge=0)
    tubes: Names = ("aorta", "inferior_vena_cava", "esophagus")
    edge_mm2: float = Field(48.0, ge=0)


Skip = Annotated[ProbeFirst | CenterFirst, Field(discriminator="kind")]


Share = Annotated[float, Field(gt=0, le=1)]


class ManyWindows(Strict):
    """Another distance of windows for large images (He, section 2.5: more than 20 windows)."""

    above: int = Field(20, ge=1, description="windows at the usual step, beyond which this one counts")
    step: tuple[Share, Share, Share] = Field(
        (1.0, 1.0, 0.5), description="distance along z, y, x, as shares of the patch"
    )


class Settings(Strict):
    """How a model is run.

    ``mode``: ``exact`` decides as nnU-Net's predictor with the same options does; ``fast`` searches each class only
    around the place where it comes close to winning on the network grid.
    ``step``: distance of windows as a share of the patch; nnU-Net's default is 0.5.
    ``many_windows``: another step for images that need many windows.
    ``precision``: ``auto`` is fp16 on CUDA, else fp32; ``bf16`` is faster on CPUs that have units for it, and less
    exact. What the device would only emulate becomes fp32.
    ``window_batch``: windows per forward pass, at most, as far as memory suffices. None: one on a CPU; on a GPU as many
    as keep it busy.
    ``skip``: windows that need not be computed; what no window covers is background.
    """

    mode: Mode = "exact"
    step: float = Field(0.5, gt=0, le=1)
    many_windows: ManyWindows | None = None
    gaussian: bool = True
    mirror_axes: tuple[Literal[0, 1, 2], ...] = ()
    window_batch: int | None = Field(None, ge=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    skip: Skip | None = None


class SliceInput(Strict):
    """What a slice classifier sees of an axial slice: a window of Hounsfield units in a square (Mao, section 2.2)."""

    size: int = Field(256, ge=32, description="pixels a side")
    width_hu: float = Field(400.0, gt=0, description="width of the window")
    level_hu: float = Field(40.0, description="middle of the window")
