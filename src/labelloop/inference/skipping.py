"""Which windows need not be computed, decided from what others saw; see the models in ``settings``."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from labelloop.base.sequences import flat
from labelloop.inference.resample import Shape
from labelloop.inference.settings import CenterFirst, ProbeFirst
from labelloop.inference.windows import Position, Step, Walk, every_window, window_starts


def skipping_walk(
    skip: ProbeFirst | CenterFirst | None,
    shape: Shape,
    patch: Shape,
    step: Step,
    spacing_mm: Sequence[float],
    classes: Sequence[str],
) -> Walk:
    """Return the walk through a padded image of ``shape`` voxels (z, y, x) of ``spacing_mm``.

    Args:
        skip: the test, or None for all windows.
        classes: names of the network's channels, background left out.
    """
    starts = window_starts(shape, patch, step)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    if isinstance(skip, ProbeFirst):
        return _probe_first(skip, starts, voxel_ml)
    if isinstance(skip, CenterFirst):
        plane = [_around_center(n, p) for n, p in zip(shape[1:], patch[1:], strict=True)]
        tubes = [i for i, name in enumerate(classes, start=1) if name in skip.tubes]
        return _center_first(skip, [starts[0], *plane], voxel_ml, spacing_mm[0] * spacing_mm[2], tubes)
    return every_window(starts)


def _probe_first(skip: ProbeFirst, starts: Sequence[Sequence[int]], voxel_ml: float) -> Walk:
    z_starts, y_starts, x_starts = starts
    if len(z_starts) < skip.min_levels or len(y_starts) * len(x_starts) == 1:
        yield from every_window(starts)
        return
    probes = set(zip(_middle(y_starts), _middle(x_starts), strict=True))
    for z in z_starts:
        seen = yield _level(z, probes), True
        if any(_foreground_ml(view, voxel_ml) >= skip.min_foreground_ml for view in seen):
            others = set(itertools.product(y_starts, x_starts)) - probes
            if others:
                yield _level(z, others), False


def _center_first(
    skip: CenterFirst, starts: Sequence[Sequence[int]], voxel_ml: float, face_mm2: float, tubes: Sequence[int]
) -> Walk:
    z_starts, y_starts, x_starts = starts
    center = (_middle(y_starts)[0], _middle(x_starts)[0])
    others = set(itertools.product(y_starts, x_starts)) - {center}
    levels = iter(z_starts)
    for z in levels:
        (view,) = yield _level(z, {center}), True
        if _foreground_ml(view, voxel_ml) < skip.min_foreground_ml:
            next(levels, None)
            continue
        chosen = others
        if np.isin(view.unique().cpu().numpy(), [0, *tubes]).all():
            chosen = _entered(view, y_starts, center, skip.edge_mm2 / face_mm2)
        if chosen:
            yield _level(z, chosen), False


def _entered(view: torch.Tensor, y_starts: Sequence[int], center: tuple[int, int], faces: float) -> set:
    """Return the windows before and behind the center that foreground enters through at least ``faces`` voxel faces."""
    y, x = center
    before, behind = [s for s in y_starts if s < y], [s for s in y_starts if s > y]
    edges = ((before[-1:], view[:, 0]), (behind[:1], view[:, -1]))
    reached = [starts for starts, edge in edges if int((edge > 0).sum()) >= faces]
    return {(start, x) for start in flat(reached)}


def _around_center(size: int, patch: int) -> list[int]:
    """Return up to three starts: the center and half a patch to both sides, or evenly spread where that is too wide."""
    if size <= patch:
        return [0]
    center = (size - patch) // 2
    return [center - patch // 2, center, center + patch // 2] if size > 2 * patch else [0, center, size - patch]


def _middle(starts: Sequence[int]) -> tuple[int, int]:
    """Return the two middle starts; the same one twice when their number is odd."""
    return starts[(len(starts) - 1) // 2], starts[len(starts) // 2]


def _level(z: int, plane: set[tuple[int, int]]) -> list[Position]:
    return [(z, y, x) for y, x in sorted(plane)]


def _foreground_ml(view: torch.Tensor, voxel_ml: float) -> float:
    return int((view > 0).sum()) * voxel_ml
