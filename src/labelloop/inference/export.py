"""From scores on the network grid to a label map on the stored grid, without classes x full volume in memory.

The label of a voxel is the class with the largest linearly resampled score: nnU-Net's decision, taken as a running
maximum over the classes, slab by slab. A class is computed only in the rectangle of each slab where it can win:

* ``exact``: proven from the scores (an interpolated score lies between the smallest and the largest of its corners),
* ``fast``: assumed to be where the class wins on the network grid, plus :data:`MARGIN` voxels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from labelloop.inference.prepare import Frame
from labelloop.inference.resample import Range, Resampling, class_boxes
from labelloop.inference.settings import Mode

MARGIN = 3
"""Network voxels around the place where a class wins that ``fast`` searches (TotalSegmentator's margin)."""
TILE = 16
"""Side (network voxels) of the squares for which ``exact`` decides which classes can win."""
SLACK = 1e-4
"""Part of a score that rounding is granted in that decision."""


@dataclass(frozen=True)
class Prediction:
    """A label map (uint8 class ids) on the stored grid, and per class ``{class, volume_ml, confidence}``."""

    labels: np.ndarray
    rows: list[dict]


def to_prediction(
    scores: torch.Tensor,
    frame: Frame,
    classes: Sequence[str],
    class_ids: Mapping[str, int],
    mode: Mode = "exact",
    probabilities: bool = False,
) -> Prediction:
    """Return the prediction of logits (or ``probabilities``) [1 + classes, z, y, x] on the network grid.

    Raises:
        RuntimeError: when the scores are not finite.
    """
    winners, confidence = winners_and_confidence(scores, probabilities)
    labels = export_labels(scores, frame, [0, *(class_ids[c] for c in classes)], mode, winners)
    volumes = np.bincount(labels.ravel(), minlength=256) * frame.stored.voxel_ml
    rows = []
    for name, sure in zip(classes, confidence[1:], strict=True):
        volume = float(volumes[class_ids[name]])
        rows.append({"class": name, "volume_ml": volume, "confidence": sure if volume else None})
    return Prediction(labels, rows)


def winners_and_confidence(scores: torch.Tensor, probabilities: bool = False) -> tuple[np.ndarray, list[float]]:
    """Return the best channel per network voxel (uint8) and the confidence of each channel.

    Confidence is the mean softmax probability of a class over the *network* voxels where it wins; for a class that
    wins nowhere there, its largest probability.
    """
    channels, depth = scores.shape[:2]
    winners = np.empty(scores.shape[1:], np.uint8)
    total, count, largest = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    for z in range(depth):  # one plane at a time: the softmax of a plane fits the cache
        plane = scores[:, z].float()
        plane = plane if probabilities else plane.softmax(0)
        sure, winner = plane.max(0)
        winners[z] = winner.to(torch.uint8).cpu().numpy()
        total += np.bincount(winners[z].ravel(), sure.double().cpu().numpy().ravel(), channels)
        count += np.bincount(winners[z].ravel(), minlength=channels)
        largest = np.maximum(largest, plane.amax((1, 2)).cpu().numpy())
    if not np.isfinite(total).all():
        raise RuntimeError("the network's output is not finite")
    return winners, [float(min(1.0, t / n)) if n else float(m) for t, n, m in zip(total, count, largest, strict=True)]


def export_labels(
    scores: torch.Tensor, frame: Frame, ids: Sequence[int], mode: Mode = "exact", winners: np.ndarray | None = None
) -> np.ndarray:
    """Return the label map on the stored grid: channel ``i`` of ``scores`` becomes ``ids[i]``.

    Args:
        winners: best channel per network voxel, if the caller has it; only ``fast`` uses it.
    """
    if mode == "fast" and winners is None:
        winners, _ = winners_and_confidence(scores)
    spacing = frame.oriented.spacing_zyx
    resampling = Resampling.between(scores.shape[1:], frame.cropped_shape, frame.spacing_mm, spacing)
    table = np.asarray(ids, np.uint8)
    cropped = np.zeros(frame.cropped_shape, np.uint8)
    for slab in resampling.slabs():
        if mode == "fast":
            where = _where_it_wins(winners, resampling, slab)
        else:
            where = _where_it_can_win(scores, resampling, slab)
        if where:
            y, x = _around(where.values())
            winner = _largest(scores, resampling, slab, where, (y, x))
            cropped[slice(*slab), slice(*y), slice(*x)] = table[winner.cpu().numpy()]
    return frame.restore(cropped)


Rectangle = tuple[Range, Range]


def _largest(
    scores: torch.Tensor, resampling: Resampling, slab: Range, where: Mapping[int, Rectangle], around: Rectangle
) -> torch.Tensor:
    """Return the best channel of each voxel of ``slab`` inside ``around``; ties go to the lower channel."""
    best = resampling.region(scores[0], [slab, *around])
    winner = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for channel, rectangle in sorted(where.items()):
        inner = (slice(None), *(slice(a - o[0], b - o[0]) for (a, b), o in zip(rectangle, around, strict=True)))
        score = resampling.region(scores[channel], [slab, *rectangle])
        winner[inner].masked_fill_(score > best[inner], channel)
        best[inner] = torch.maximum(best[inner], score)
    return winner


def _around(rectangles: Iterable[Rectangle]) -> Rectangle:
    """Return the smallest rectangle around all ``rectangles``."""
    y, x = zip(*rectangles, strict=True)
    return tuple((min(start for start, _ in parts), max(stop for _, stop in parts)) for parts in (y, x))


def _where_it_wins(winners: np.ndarray, resampling: Resampling, slab: Range) -> dict[int, Rectangle]:
    """Return, per foreground channel that wins near the slab on the network grid, its rectangle plus a margin."""
    first, last = resampling.axes[0].needs(*slab)
    planes = winners[max(0, first - MARGIN) : last + MARGIN]
    result = {}
    for channel, (_, *box) in class_boxes(planes).items():
        y, x = (
            axis.reach(max(0, s.start - MARGIN), min(size, s.stop + MARGIN))
            for axis, s, size in zip(resampling.axes[1:], box, planes.shape[1:], strict=True)
        )
        if y[0] < y[1] and x[0] < x[1]:
            result[channel] = (y, x)
    return result


def _where_it_can_win(scores: torch.Tensor, resampling: Resampling, slab: Range) -> dict[int, Rectangle]:
    """Return, per foreground channel, the rectangle outside which it provably loses everywhere in the slab.

    In each square, a channel whose largest score is below another channel's smallest score cannot win.
    """
    first, last = resampling.axes[0].needs(*slab)
    planes = scores[:, first:last].float()
    highest = _tiles(planes.amax(1))
    floor = (-_tiles(-planes.amin(1))).amax(0)
    possible = (highest >= floor - SLACK * floor.abs().clamp(min=1)).cpu().numpy()
    result = {}
    for channel in range(1, len(possible)):
        rows, columns = possible[channel].any(1).nonzero()[0], possible[channel].any(0).nonzero()[0]
        if len(rows):
            y, x = (
                _starting_in(axis.low, int(t[0]) * TILE, (int(t[-1]) + 1) * TILE)
                for axis, t in zip(resampling.axes[1:], (rows, columns), strict=True)
            )
            if y[0] < y[1] and x[0] < x[1]:
                result[channel] = (y, x)
    return result


def _tiles(plane: torch.Tensor) -> torch.Tensor:
    """Return the maximum of [c, y, x] in squares of :data:`TILE`, each seen with a rim of one voxel."""
    grown = functional.max_pool2d(plane[None], 3, stride=1, padding=1)
    return functional.max_pool2d(grown, TILE, ceil_mode=True)[0]


def _starting_in(low: np.ndarray, start: int, stop: int) -> Range:
    """Return the outputs whose lower source voxel lies in ``start:stop``."""
    first, last = np.searchsorted(low, (start, stop), "left")
    return int(first), int(last)
