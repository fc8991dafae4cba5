"""Rules that hold the surface of a label against the image: what lies just inside of it, and just outside.

A border that is drawn where an organ ends has a step in intensity across it. Where there is none, and both sides look
like the inside, a part was left out; where both look unlike the inside, the label has leaked. On CT a step is given in
HU, on MR, which has no scale of its own, as a share of the organ's own median intensity above that of air.
"""

import edt
import numpy as np
from pydantic import Field, model_validator

from labelloop.labels.facts import Box, largest_box
from labelloop.labels.rules.base import Evidence, Finding, Limit, Skip, kind
from labelloop.labels.surface import STEP_HU, STEP_SHARE, Surface, Surfaces

COARSEST_MM = 4.0
SATURATED_HU = 4.0
"""Voxels of the grid so near to where an image was clipped hold nothing else."""
LEAST_FREE = 15.0
"""Least share of a surface, in %, by which the whole is judged."""


class Border(Limit):
    """``step_hu``: the least difference in HU that is a border (CT); ``step_share``: the same on MR, in medians.

    ``muscle_hu``: where the organ's median lies in this range, as that of muscle, the rule does not apply (CT).
    """

    step_hu: float = Field(STEP_HU, gt=0)
    step_share: float = Field(STEP_SHARE, gt=0)
    muscle_hu: tuple[float, float] | None = None


def _surface(rule: Border, case: Evidence, name: str) -> tuple[Surface, float]:
    """Return the surface of a class and the least difference in intensity that is a border.

    Raises:
        Skip: as :func:`surface_of`; also where the same lies beside the class.
    """
    surface = surface_of(case, name)
    if case.modality == "CT" and rule.muscle_hu and rule.muscle_hu[0] <= surface.middle <= rule.muscle_hu[1]:
        raise Skip(f"its median, {surface.middle:.0f} HU, is also that of tissue beside it")
    step = surface.step(case.modality, rule.step_hu, rule.step_share)
    if step <= 0:
        raise Skip("its median intensity is that of air: there is no scale to judge by")
    return surface, step


def surface_of(case: Evidence, name: str) -> Surface:
    """Return the surface of a class that has voxels.

    Raises:
        Skip: where there is no image, no inside to compare with, or nothing but saturated voxels.
    """
    surface = _surfaces(case).of(name)
    if surface is None or not len(surface.inner):
        raise Skip("too small to tell its inside from its border")
    if surface.middle in case.clipped_at:
        raise Skip("the image is clipped throughout: there is no intensity to judge by")
    return surface


def _surfaces(case: Evidence) -> Surfaces:
    if case.surfaces is None:
        raise Skip("no image")
    size = float(case.surfaces.spacing[1:].max())
    if size > COARSEST_MM:
        raise Skip(f"voxels of {size:.1f} mm in the plane: all that touch a surface hold partial volume")
    return case.surfaces


class Contrast(Border):
    """``labeled``: the surface towards other labels counts, too. Two organs may well be alike."""

    labeled: bool = False


@kind("contrast", Contrast)
def _contrast(rule: Contrast, case: Evidence, name: str) -> Finding:
    """Share, in %, of the surface (where no label lies beyond) at which the two sides differ by a step in intensity."""
    surface, step = _surface(rule, case, name)
    counted = np.ones_like(surface.free, bool) if rule.labeled else surface.free > 0.5
    all_of_it = surface.share(counted)
    if all_of_it < LEAST_FREE:
        raise Skip(f"{all_of_it:.0f} % of its surface are free of other labels, too little to judge by")
    found = surface.share(counted & surface.stepping(step))
    value, limit = 100 * found / all_of_it, rule.limit(name)
    said = f"{value:.0f} % of its surface show a border in the image; at least {limit:g} % expected"
    return Finding(value, limit, value < limit, said)


def _continuing(rule: Border, case: Evidence, name: str) -> tuple[Surface, np.ndarray]:
    """Return the surface of a class, and where what lies beyond it without a label looks like the inside.

    There is no step in between. Raises Skip, as ``_surface``.
    """
    surface, step = _surface(rule, case, name)
    return surface, surface.continuing(step)


@kind("undersegmented", Border)
def _undersegmented(rule: Border, case: Evidence, name: str) -> Finding:
    """Area, in cm2, of the largest patch of surface beyond which unlabeled tissue looks like the inside."""
    surface, continuing = _continuing(rule, case, name)
    (value, box), limit = surface.largest_patch(continuing), rule.limit(name)
    said = f"beyond {value:.1f} cm2 of its surface the same tissue continues unlabeled; at most {limit:g} cm2 expected"
    return Finding(value, limit, value > limit, said, box)


@kind("cut_flat", Border)
def _cut_flat(rule: Border, case: Evidence, name: str) -> Finding:
    """The same in one plane of voxels: a label that was cut, by a window, a slice, or a hand."""
    surface, continuing = _continuing(rule, case, name)
    (value, box), limit = surface.largest_patch(continuing, flat=True), rule.limit(name)
    said = f"it ends flat, on {value:.1f} cm2, in tissue that continues without a label; at most {limit:g} cm2 expected"
    return Finding(value, limit, value > limit, said, box)


@kind("leak", Border)
def _leak(rule: Border, case: Evidence, name: str) -> Finding:
    """Area, in cm2, of the largest patch of surface at which the inside looks like the outside, not like the organ."""
    surface, step = _surface(rule, case, name)
    (value, box), limit = surface.largest_patch(surface.leaking(step)), rule.limit(name)
    said = f"at {value:.1f} cm2 of its surface it holds what lies outside of it, too; at most {limit:g} cm2 expected"
    return Finding(value, limit, value > limit, said, box)


@kind("heterogeneous", Limit)
def _heterogeneous(rule: Limit, case: Evidence, name: str) -> Finding:
    """Standard deviation, in HU, of the intensity deep inside, by quantiles of local means: noise counts little."""
    surface = _surfaces(case).of(name)
    if surface is None:
        raise Skip("too small to tell its inside from its border")
    value, limit = surface.spread, rule.limit(name)
    said = f"from {surface.low:.0f} to {surface.high:.0f} HU deep inside, a standard deviation of {value:.0f} HU"
    return Finding(value, limit, value > limit, f"{said}; at most {limit:g} HU expected")


class Beside(Limit):
    """``hu``: lowest and highest intensity of what should not lie without a label beside the class."""

    hu: tuple[float, float]


@kind("beside", Beside)
def _beside(rule: Beside, case: Evidence, name: str) -> Finding:
    """Area, in cm2, of the largest patch of surface that unlabeled gas (or another tissue) touches.

    Where an image is clipped above gas, gas is what has the lowest value that there is.
    """
    surfaces = _surfaces(case)
    surface = surfaces.of(name)
    if surface is None:
        raise Skip("too small to have a surface")
    low, high = rule.hu
    high = max([high, *(end + SATURATED_HU for end in case.clipped_at if high < end < 0)])
    touched = surfaces.touched(name, low, high)
    (value, box), limit = surface.largest_patch(touched > 0, areas=touched), rule.limit(name)
    said = f"{value:.1f} cm2 of its surface touch what has {low:.0f} to {high:.0f} HU and no label"
    return Finding(value, limit, value > limit, f"{said}; at most {limit:g} cm2 expected", box)


class InclusionLike(Border):
    """``of``: organs whose intensity, as it is in this image, must not fill lumps of more than ``threshold`` ml.

    ``hu``: the same for what is no class, or may have no voxel, by its name. Only what is at least ``thick_mm`` thick
    counts: vessels are thinner.
    """

    of: tuple[str, ...] = ()
    hu: dict[str, float] = Field(default_factory=dict)
    thick_mm: float = Field(16.0, gt=0)

    @model_validator(mode="after")
    def _names_a_tissue(self) -> "InclusionLike":
        if not (self.of or self.hu):
            raise ValueError("neither of nor hu: nothing to look for")
        return self

    @property
    def compared(self) -> tuple[str, ...]:
        return self.of


@kind("inclusion_like", InclusionLike)
def _inclusion_like(rule: InclusionLike, case: Evidence, name: str) -> Finding:
    """Volume, in ml, of the lumps inside a class that look like another organ of this patient."""
    own, step = _surface(rule, case, name)
    surfaces = _surfaces(case)
    others = {n: surfaces.of(n) for n in case.facts.found(n for n in rule.of if n != name)}
    middles = {n: o.middle for n, o in others.items() if o is not None} | rule.hu
    apart = {n: middle for n, middle in middles.items() if abs(middle - own.middle) > 2 * step}
    if not apart:
        raise Skip(f"none of {', '.join((*rule.of, *rule.hu))} is there whose intensity differs from its own")
    found = {n: _lumps(surfaces, name, own.middle, middle, rule.thick_mm) for n, middle in apart.items()}
    other = max(found, key=lambda n: (found[n][0], n))
    (value, box), limit, other = found[other], rule.limit(name), other.replace("_", " ")
    said = f"{value:.1f} ml in lumps inside of it look like {other}; at most {limit:g} ml expected"
    return Finding(value, limit, value > limit, said, box)


def _lumps(surfaces: Surfaces, name: str, own: float, other: float, thick_mm: float) -> tuple[float, Box | None]:
    """Return the ml of thick lumps whose intensity is that of ``other``, up to half of how far ``own`` is from it.

    And the voxels of the label map that the largest lump takes in.
    """
    mask, image = surfaces.crop(name)
    lumps = mask & (np.abs(image - other) < abs(other - own) / 2)
    depth = edt.edt(lumps, anisotropy=tuple(surfaces.spacing), black_border=True, parallel=1)
    core = depth >= thick_mm / 2
    if not core.any():
        return 0.0, None
    near = edt.edt(~core, anisotropy=tuple(surfaces.spacing), black_border=False, parallel=1) <= thick_mm / 2
    thick = near & lumps
    return float(np.count_nonzero(thick) * surfaces.spacing.prod() / 1000), surfaces.voxels(name, largest_box(thick))
