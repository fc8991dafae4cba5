"""Rules that look at the image: the body around a label, and the intensities inside of it. CT only: MR has no HU."""

import math

import numpy as np
from pydantic import field_validator

from labelloop.base.components import connected_components
from labelloop.labels.facts import Box, LabelFacts, largest_box
from labelloop.labels.rules.base import Evidence, Finding, Limit, Range, Skip, kind

HU_KINDS = ("inside_body", "intensity", "tissue", "inclusion", "beside", "heterogeneous")
"""Kinds of rules that measure HU."""
AIR_HU = -300
BODY_MM = 4.0
"""Grid on which the body is found: fine enough for whole organs, a hundred times fewer voxels than the image."""


@kind("inside_body", Limit)
def _inside_body(rule: Limit, case: Evidence, name: str) -> Finding:
    """Share of a class in the air around the patient, in %."""
    around = case.body()
    if around is None:
        raise Skip("no image, or an image without air around the body: the body cannot be outlined")
    mask = case.facts.labels[_grid(case.facts)] == case.facts.scheme.ids[name]
    if mask.sum() < 8:
        raise Skip(f"too small to judge on a grid of {BODY_MM:g} mm")
    value, limit = 100.0 * float(around[mask].mean()), rule.limit(name)
    return Finding(value, limit, value > limit, f"{value:.1f} % lie outside of the body; at most {limit:g} % expected")


def _grid(facts: LabelFacts) -> tuple[slice, ...]:
    return tuple(slice(None, None, max(1, int(BODY_MM / s))) for s in facts.spacing)


def air_around(facts: LabelFacts, image: np.ndarray) -> np.ndarray | None:
    """Return the air around the patient on the coarse grid; None when there is none (saturated or cropped images).

    It is the air that reaches a lateral border of the volume; lungs and bowel gas do not. A body that fills the field
    of view, or intensities clipped above air (BTCV: [-125, 275] HU), leave none.
    """
    air = image[_grid(facts)] < AIR_HU
    if not air.any():
        return None
    parts = connected_components(air, connectivity=6)
    border = np.unique(np.concatenate([parts[:, [0, -1], :].ravel(), parts[:, :, [0, -1]].ravel()]))
    around = np.isin(parts, border[border > 0])
    return around if around.mean() > 0.01 else None


SAMPLES = 200_000


@kind("intensity", Range)
def _intensity(rule: Range, case: Evidence, name: str) -> Finding:
    """Median HU within a plausible range (CT only)."""
    value = float(np.median(_values(case, name)))
    low, high = rule.threshold[name]
    limit = high if value > high else low
    return Finding(value, limit, not low <= value <= high, f"median {value:.0f} HU; {low:g} to {high:g} HU expected")


class Tissue(Limit):
    """``hu``: lowest and highest intensity of the tissue (or air) that should not be inside."""

    hu: tuple[float, float]

    @field_validator("hu")
    @classmethod
    def _ordered(cls, hu: tuple[float, float]) -> tuple[float, float]:
        if hu[0] > hu[1]:
            raise ValueError("lowest intensity above the highest")
        return hu


@kind("tissue", Tissue)
def _tissue(rule: Tissue, case: Evidence, name: str) -> Finding:
    """Share, in %, of a class whose intensity is that of fat, air or another tissue it does not consist of."""
    values, (low, high) = _values(case, name), rule.hu
    value, limit = 100.0 * float(((values >= low) & (values <= high)).mean()), rule.limit(name)
    said = f"{value:.1f} % lies between {low:g} and {high:g} HU; at most {limit:g} % expected"
    return Finding(value, limit, value > limit, said)


@kind("inclusion", Tissue)
def _inclusion(rule: Tissue, case: Evidence, name: str) -> Finding:
    """Volume, in ml, of another tissue in a class, without the rim that partial volume makes (on the body's grid).

    A leak into fat is a lump of it; a border is a sheet as thin as the voxels.
    """
    if case.image is None:
        raise Skip("no image")
    grid, box = _grid(case.facts), case.facts.box(name)
    coarse = tuple(slice(-(-b.start // g.step), -(-b.stop // g.step)) for b, g in zip(box, grid, strict=True))
    image, labels = case.image[grid][coarse], case.facts.labels[grid][coarse]
    other = (labels == case.facts.scheme.ids[name]) & (image >= rule.hu[0]) & (image <= rule.hu[1])
    for end in case.clipped_at:
        other &= image != end
    voxel_ml = case.facts.voxel_ml * math.prod(g.step for g in grid)
    lumps = _without_rim(other)
    value, limit = float(lumps.sum() * voxel_ml), rule.limit(name)
    said = f"{value:.1f} ml in lumps of {rule.hu[0]:g} to {rule.hu[1]:g} HU; at most {limit:g} ml expected"
    return Finding(value, limit, value > limit, said, _box_on_grid(lumps, coarse, grid) if value else None)


def _box_on_grid(lumps: np.ndarray, crop: tuple[slice, ...], grid: tuple[slice, ...]) -> Box:
    """Return the voxels of the label map that the largest lump takes in, in a crop of a coarse grid."""
    z, y, x = (
        slice((side.start + first.start) * step.step, (side.stop + first.start) * step.step)
        for side, first, step in zip(largest_box(lumps), crop, grid, strict=True)
    )
    return z, y, x


def _without_rim(mask: np.ndarray) -> np.ndarray:
    """Return the voxels of ``mask`` whose six neighbors are all in it."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(3):
        for shift in (-1, 1):
            inner &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1]
    return inner


def _values(case: Evidence, name: str) -> np.ndarray:
    """Return up to ``SAMPLES`` intensities inside a class, evenly spread.

    Voxels at which the image is clipped are left out: where it is saturated to -125 HU, as BTCV, gas reads as fat.

    Raises:
        Skip: without an image, or with one that is saturated throughout the class.
    """
    if case.image is None:
        raise Skip("no image")
    box = case.facts.box(name)
    values = case.image[box][case.facts.mask(name, box)]
    values = values[:: max(1, values.size // SAMPLES)]
    for end in case.clipped_at:
        values = values[values != end]
    if not values.size:
        raise Skip("the image is clipped throughout: there is no intensity to judge by")
    return values
