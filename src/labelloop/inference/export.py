"""From scores on the network grid to a label map on the stored grid, without classes x full volume in memory.

The label of a voxel is the class with the largest linearly resampled score: nnU-Net's decision, taken as a running
maximum over the classes, slab by slab. A class is computed only in the rectangle of each slab where it can win:

* ``exact``: proven from the scores (an interpolated score lies between the smallest and the largest of its corners),
* ``fast``: assumed to be where the class comes :data:`CLOSE` to winning on the network grid, plus :data:`MARGIN`.

Scores may come in blocks of planes, as the sliding window finishes them; only what the next slab needs is held.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from labelloop.base.errors import CaseError
from labelloop.inference.budget import SLAB_VOXELS
from labelloop.inference.prepare import Frame
from labelloop.inference.resample import AxisMap, Range, Resampling
from labelloop.inference.settings import Mode
from labelloop.inference.stages import stage

CLOSE = 0.1
"""Share of the best class's probability with which a class may win between the voxels of the network grid."""
MARGIN = 1
"""Network voxels around the place where a class comes close that ``fast`` searches."""
PLANES_AT_ONCE = 16
"""Planes of which ``exact`` looks for the largest and smallest scores at a time: it copies them."""
TILE = 4
"""Side (network voxels) of the squares for which ``exact`` decides which classes can win; larger ones save less."""
SLACK = 1e-4
"""Part of a score that rounding is granted in that decision."""


@dataclass(frozen=True)
class Prediction:
    """A label map (uint8 class ids) on the stored grid, and per class ``{class, volume_ml, confidence}``."""

    labels: np.ndarray
    rows: list[dict]


def to_prediction(
    scores: torch.Tensor | Iterable[torch.Tensor],
    frame: Frame,
    classes: Sequence[str],
    class_ids: Mapping[str, int],
    mode: Mode = "exact",
    probabilities: bool = False,
    slab_voxels: int = SLAB_VOXELS,
) -> Prediction:
    """Return the prediction of logits (or ``probabilities``) [1 + classes, z, y, x] on the network grid.

    Args:
        scores: all at once, or blocks of consecutive planes.

    Raises:
        RuntimeError: when the scores are not finite.
    """
    blocks = [scores] if isinstance(scores, torch.Tensor) else scores
    tally = Tally(len(classes) + 1, probabilities)
    ids = [0, *(class_ids[c] for c in classes)]
    with stage("export"):
        labels = export_labels(blocks, frame, ids, mode, slab_voxels, tally)
    rows = []
    for name, sure, voxels in zip(classes, tally.confidence()[1:], tally.voxels[1:], strict=True):
        volume = float(voxels * frame.stored.voxel_ml)
        rows.append({"class": name, "volume_ml": volume, "confidence": sure if volume else None})
    return Prediction(labels, rows)


class Tally:
    """What is counted on the way, per channel: stored voxels, and confidence, gathered plane by plane.

    Confidence is the mean softmax probability of a class over the *network* voxels where it wins; for a class that
    wins nowhere there, its largest probability.
    """

    def __init__(self, channels: int, probabilities: bool = False):
        self.voxels = np.zeros(channels, np.int64)
        self.probabilities = probabilities
        self._total, self._count, self._largest = (np.zeros(channels) for _ in range(3))

    def add(self, scores: torch.Tensor) -> None:
        """Take note of a block [channel, z, y, x].

        Raises:
            CaseError: when the scores are not finite.
        """
        gather = _gather if scores.device.type == "cpu" else _gather_on_gpu
        total, count, largest = gather(scores, self.probabilities)
        self._total, self._count = self._total + total, self._count + count
        self._largest = np.maximum(self._largest, largest)
        if not np.isfinite(self._total).all():
            action = "Look at the intensities of the image, or set the engine's precision to fp32."
            raise CaseError("output_not_finite", "", "the network's output is not finite", action)

    def confidence(self) -> list[float]:
        """Return the confidence of each channel."""
        numbers = zip(self._total, self._count, self._largest, strict=True)
        return [float(min(1.0, t / n)) if n else float(m) for t, n, m in numbers]


def _gather(scores: torch.Tensor, probabilities: bool) -> np.ndarray:
    """Return [3, channel]: the sum of the winner's probability, voxels that are won, the largest probability."""
    channels, depth = scores.shape[:2]
    total, count, largest = (np.zeros(channels) for _ in range(3))
    for z in range(depth):  # one plane at a time: the softmax of a plane fits the cache
        plane = scores[:, z].float()
        plane = plane if probabilities else plane.softmax(0)
        sure, best = plane.max(0)
        winner = best.to(torch.uint8).numpy().ravel()
        total += np.bincount(winner, sure.double().numpy().ravel(), channels)
        count += np.bincount(winner, minlength=channels)
        largest = np.maximum(largest, plane.amax((1, 2)).numpy())
    return np.stack([total, count, largest])


def _gather_on_gpu(scores: torch.Tensor, probabilities: bool) -> np.ndarray:
    """Return what :func:`_gather` does; waits for the GPU once, and adds up in the same order each time."""
    channels, depth = scores.shape[:2]
    result = torch.zeros((3, channels), dtype=torch.float64, device=scores.device)
    numbers = torch.arange(channels, device=scores.device).view(-1, 1, 1)
    for z in range(depth):
        plane = scores[:, z].float()
        plane = plane if probabilities else plane.softmax(0)
        sure, best = plane.max(0)
        won = best == numbers
        result[0] += (won * sure).sum((1, 2), dtype=torch.float64)
        result[1] += won.sum((1, 2))
        result[2] = torch.maximum(result[2], plane.amax((1, 2)).double())
    return result.cpu().numpy()


class _Held:
    """The planes of a stream of blocks that are still needed: scores, and what tells where a class can win.

    ``guide`` has what :func:`_close` tells of a plane for ``fast``, and its :func:`_tiles` for ``exact``.
    """

    def __init__(self, blocks: Iterable[torch.Tensor], tally: Tally, mode: Mode):
        self._blocks, self._tally, self._mode = iter(blocks), tally, mode
        self.first = self.end = 0
        self.scores: torch.Tensor | None = None
        self.guide: np.ndarray | None = None

    def load(self, first: int, last: int) -> tuple[torch.Tensor, np.ndarray]:
        """Drop the planes before ``first``, then take blocks until plane ``last - 1`` is there, or the last of all.

        Returns:
            Scores and guide of the planes from ``self.first`` on.

        Raises:
            RuntimeError: when there is no block at all.
        """
        if self.scores is not None and self.guide is not None and first > self.first:
            drop = min(first, self.end) - self.first
            self.scores, self.guide = self.scores[:, drop:], self.guide[drop:]
            self.first += drop
        while self.end < last and (block := next(self._blocks, None)) is not None:
            self._tally.add(block)
            guide = _close(block, self._tally.probabilities) if self._mode == "fast" else _tiles(block)
            if self.scores is None or self.guide is None or self.first == self.end:
                self.scores, self.guide = block, guide
            else:
                self.scores = torch.cat([self.scores, block], 1)
                self.guide = np.concatenate([self.guide, guide])
            self.end += block.shape[1]
        if self.scores is None or self.guide is None:
            raise RuntimeError("no scores to export")
        return self.scores, self.guide


def export_labels(
    blocks: Iterable[torch.Tensor],
    frame: Frame,
    ids: Sequence[int],
    mode: Mode = "exact",
    slab_voxels: int = SLAB_VOXELS,
    tally: Tally | None = None,
) -> np.ndarray:
    """Return the label map on the stored grid: channel ``i`` of the scores becomes ``ids[i]``.

    Args:
        blocks: scores [channel, z, y, x] on the network grid, in blocks of consecutive planes.
        slab_voxels: stored voxels that are worked on at a time.
        tally: takes note of all scores and voxels, if the caller wants to know.
    """
    spacing = frame.oriented.spacing_zyx
    resampling = Resampling.between(frame.shape, frame.cropped_shape, frame.spacing_mm, spacing, frame.separate_z)
    table = np.asarray(ids, np.uint8)
    labels, cropped = frame.zeros()
    tally = tally or Tally(len(ids))
    held = _Held(blocks, tally, mode)
    margin = MARGIN if mode == "fast" else 0
    for slab in resampling.slabs(slab_voxels):
        first, last = resampling.axes[0].needs(*slab)
        scores, guide = held.load(max(0, first - margin), min(last + margin, frame.shape[0]))
        local = resampling.planes(slab, held.first)
        where = _where_it_is_close(guide, local, frame.shape[1]) if mode == "fast" else _where_it_can_win(guide, local)
        if where:
            y, x = _around(where.values())
            on_cpu = scores.device.type == "cpu"
            winner = (_largest if on_cpu else _largest_at_once)(scores, local, where, (y, x))
            tally.voxels += torch.bincount(winner.ravel(), minlength=len(ids)).cpu().numpy()
            cropped[slice(*slab), slice(*y), slice(*x)] = _as_ids(winner, table)
    held.load(frame.shape[0], frame.shape[0])  # planes that no voxel draws on count for the confidence all the same
    return labels


def _as_ids(winner: torch.Tensor, table: np.ndarray) -> np.ndarray:
    """Return the id in ``table`` of each channel number; looked up where the numbers are."""
    if winner.device.type == "cpu":
        return table[winner.numpy()]
    return torch.from_numpy(table).to(winner.device)[winner.int()].cpu().numpy()


Rectangle = tuple[Range, Range]


def _largest(
    scores: torch.Tensor, resampling: Resampling, where: Mapping[int, Rectangle], around: Rectangle
) -> torch.Tensor:
    """Return the best channel of each voxel of a slab inside ``around``; ties go to the lower channel.

    Plane by plane, because a plane of all that is compared fits the cache.
    """
    z = resampling.axes[0]
    planes = z.needs(0, len(z))
    whole = resampling.sections(scores[0], planes, around)
    winner = torch.zeros((len(z), *whole.shape[1:]), dtype=torch.uint8, device=whole.device)
    parts = []
    for channel, rectangle in sorted(where.items()):
        inner = tuple(slice(a - o[0], b - o[0]) for (a, b), o in zip(rectangle, around, strict=True))
        sections = resampling.sections(scores[channel], planes, rectangle)
        parts.append((channel, inner, sections, torch.empty_like(sections[0])))
    best = torch.empty_like(whole[0])
    for plane, won in enumerate(winner):
        z.blend(whole, plane, planes[0], best)
        for channel, inner, sections, score in parts:
            z.blend(sections, plane, planes[0], score)
            so_far = best[inner]
            wins = (score > so_far).view(torch.uint8).mul_(channel)  # channels ascend, so the largest is the last
            torch.maximum(won[inner], wins, out=won[inner])
            torch.maximum(so_far, score, out=so_far)
    return winner


def _largest_at_once(
    scores: torch.Tensor, resampling: Resampling, where: Mapping[int, Rectangle], around: Rectangle
) -> torch.Tensor:
    """Return what :func:`_largest` does, of all planes at once: on a GPU, each plane costs the launch of a kernel."""
    z = resampling.axes[0]
    first, last = z.needs(0, len(z))

    def score(channel: int, rectangle: Rectangle) -> torch.Tensor:
        sections = resampling.sections(scores[channel], (first, last), rectangle)
        return z.apply(sections, 0, 0, len(z), first)

    best = score(0, around)
    winner = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for channel, rectangle in sorted(where.items()):
        y, x = (slice(a - o[0], b - o[0]) for (a, b), o in zip(rectangle, around, strict=True))
        so_far, new = best[:, y, x], score(channel, rectangle)
        winner[:, y, x].masked_fill_(new > so_far, channel)
        torch.maximum(so_far, new, out=so_far)
    return winner


def _around(rectangles: Iterable[Rectangle]) -> Rectangle:
    """Return the smallest rectangle around all ``rectangles``."""
    sides = zip(*rectangles, strict=True)
    y, x = ((min(start for start, _ in parts), max(stop for _, stop in parts)) for parts in sides)
    return y, x


def _close(scores: torch.Tensor, probabilities: bool) -> np.ndarray:
    """Return [z, channel, y + x]: the rows, then the columns, where a channel comes :data:`CLOSE` to winning."""
    planes = []
    for plane in scores.unbind(1):  # one at a time, as in Tally: no other array as large as the scores
        best = plane.amax(0)
        near = plane >= (best * CLOSE if probabilities else best + math.log(CLOSE))
        planes.append(torch.cat([near.any(2), near.any(1)], 1))
    return torch.stack(planes).cpu().numpy()


def _where_it_is_close(close: np.ndarray, slab: Resampling, rows: int) -> dict[int, Rectangle]:
    """Return, per foreground channel that is :func:`_close` to winning near ``slab``, its rectangle plus a margin."""
    first, last = slab.axes[0].needs(0, len(slab.axes[0]))
    seen = np.any(close[max(0, first - MARGIN) : last + MARGIN], 0)
    result = {}
    for channel in range(1, len(seen)):
        parts = zip(slab.axes[1:], (seen[channel, :rows], seen[channel, rows:]), strict=True)
        y, x = (_touched(axis, along.nonzero()[0], len(along)) for axis, along in parts)
        if y[0] < y[1] and x[0] < x[1]:
            result[channel] = (y, x)
    return result


def _touched(axis: AxisMap, places: np.ndarray, size: int) -> Range:
    """Return the outputs that source voxels from the first to the last of ``places``, and a margin, can touch."""
    if not len(places):
        return 0, 0
    return axis.reach(max(0, int(places[0]) - MARGIN), min(size, int(places[-1]) + 1 + MARGIN))


def _where_it_can_win(tiles: np.ndarray, slab: Resampling) -> dict[int, Rectangle]:
    """Return, per foreground channel, the rectangle outside which it provably loses everywhere in ``slab``.

    In each square, a channel whose largest score is below another channel's smallest score cannot win.
    """
    first, last = slab.axes[0].needs(0, len(slab.axes[0]))
    highest, lowest = tiles[first:last, 0].max(0), tiles[first:last, 1].min(0)
    floor = lowest.max(0)
    possible = highest >= floor - SLACK * np.maximum(1, np.abs(floor))
    result = {}
    for channel in range(1, len(possible)):
        rows, columns = possible[channel].any(1).nonzero()[0], possible[channel].any(0).nonzero()[0]
        if len(rows):
            y, x = (
                _starting_in(axis.low, int(t[0]) * TILE, (int(t[-1]) + 1) * TILE)
                for axis, t in zip(slab.axes[1:], (rows, columns), strict=True)
            )
            if y[0] < y[1] and x[0] < x[1]:
                result[channel] = (y, x)
    return result


def _tiles(scores: torch.Tensor) -> np.ndarray:
    """Return [z, 2, channel, y, x]: largest and smallest of scores [channel, z, y, x] in squares of :data:`TILE`.

    Each square is seen with a rim of one voxel.
    """
    parts = []
    for some in scores.split(PLANES_AT_ONCE, 1):
        planes = some.float().movedim(1, 0)
        both = [s * functional.max_pool2d(s * planes, TILE + 2, TILE, 1, ceil_mode=True) for s in (1, -1)]
        parts.append(torch.stack(both, 1))
    return torch.cat(parts).cpu().numpy()


def _starting_in(low: np.ndarray, start: int, stop: int) -> Range:
    """Return the outputs whose lower source voxel lies in ``start:stop``."""
    first, last = np.searchsorted(low, (start, stop), "left")
    return int(first), int(last)
