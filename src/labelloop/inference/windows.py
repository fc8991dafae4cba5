"""Sliding window: positions, weights and the accumulation of nnU-Net's predictor, with batches of windows.

Windows are computed level by level, a level being all windows at one height. Planes that no later window reaches are
handed out at once, so that only one patch's height of logits is ever held.
"""

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from labelloop.base.sequences import flat
from labelloop.inference.resample import Shape
from labelloop.inference.settings import ManyWindows

SIGMA = 1 / 8
"""Standard deviation of the Gaussian weights as a part of the patch (nnU-Net)."""
Position = tuple[int, int, int]
Network = Callable[[torch.Tensor], torch.Tensor]
Walk = Generator[tuple[list[Position], bool], list[torch.Tensor], None]
"""The order of the windows: yields positions of one level and whether it wants to see what wins in these windows.

If so, it is sent the best channel of each voxel of each window ([z, y, x], integers), and can choose what comes next.
Levels must not descend.
"""


Step = float | tuple[float, float, float]
"""Distance of windows as a share of the patch: one for all axes, or one for each (z, y, x)."""


def window_starts(shape: Sequence[int], patch: Sequence[int], step: Step) -> list[list[int]]:
    """Return the starts of the windows along each axis (``compute_steps_for_sliding_window``).

    Windows lie evenly, at most ``step`` of a patch apart, and the last one ends with the volume.

    Raises:
        ValueError: when the volume is smaller than the patch, or ``step`` is not above 0 and at most 1.
    """
    steps = np.broadcast_to(step, len(shape)).tolist()
    if not all(0 < s <= 1 for s in steps) or any(n < p for n, p in zip(shape, patch, strict=True)):
        raise ValueError(f"volume {tuple(shape)}, patch {tuple(patch)}, step {step}: step in (0, 1], volume >= patch")
    starts = []
    for n, p, share in zip(shape, patch, steps, strict=True):
        count = int(np.ceil((n - p) / (p * share))) + 1
        stride = (n - p) / (count - 1) if count > 1 else 0
        starts.append([int(np.round(stride * i)) for i in range(count)])
    return starts


def step_for(shape: Sequence[int], patch: Sequence[int], step: float, many: ManyWindows | None) -> Step:
    """Return ``step``, or that of ``many`` where it takes more windows than those to cover a padded image."""
    if many is None or math.prod(map(len, window_starts(shape, patch, step))) <= many.above:
        return step
    return many.step


def gaussian_weights(patch: Sequence[int]) -> torch.Tensor:
    """Return float32 weights [z, y, x] of a window: a Gaussian of sigma patch/8 around the center, 1 at its top."""
    sides = []
    for p in patch:
        distance = (np.arange(p) - p // 2) / (p * SIGMA)
        sides.append(np.exp(-0.5 * distance**2))
    return torch.from_numpy((sides[0][:, None, None] * sides[1][:, None] * sides[2]).astype(np.float32))


def padding(shape: Sequence[int], patch: Sequence[int]) -> list[tuple[int, int]]:
    """Return voxels to add before and after each axis so that one window fits (``pad_nd_image``)."""
    missing = [max(0, p - n) for n, p in zip(shape, patch, strict=True)]
    return [(m // 2, m - m // 2) for m in missing]


def every_window(starts: Sequence[Sequence[int]]) -> Walk:
    """Walk through all windows of a grid of ``starts`` (z, y, x)."""
    z_starts, *plane = starts
    for z in z_starts:
        yield [(z, y, x) for y, x in itertools.product(*plane)], False


@dataclass(frozen=True)
class Window:
    """How windows are computed and added up.

    Args:
        patch: size (z, y, x).
        outputs: channels of the network.
        step: distance of windows, as a share of the patch.
        gaussian: weigh voxels by a Gaussian around the window's center, or all alike.
        mirror_axes: axes of the image; the mean over all combinations of flips along them is taken.
        batch: windows per forward pass, at most.
        dtype: what the network takes; its weights may be of lower precision than the sums, which are float32.
        device: of the network; default: the image's.
    """

    patch: Shape
    outputs: int
    step: Step = 0.5
    gaussian: bool = True
    mirror_axes: tuple[int, ...] = ()
    batch: int = 1
    dtype: torch.dtype = torch.float32
    device: torch.device | None = None


def slide_blocks(
    network: Network, image: torch.Tensor, window: Window, walk: Walk | None = None
) -> Iterator[torch.Tensor]:
    """Yield the logits [outputs, planes, y, x] of ``image`` [channel, z, y, x] from the first plane to the last.

    Args:
        walk: which windows to compute, as positions in the padded image; default all. Voxels that no window covers
            are background: channel 0 is 1, the others 0.
    """
    pad = padding(image.shape[1:], window.patch)
    padded = functional.pad(image, flat(reversed(pad)))
    shape = padded.shape[1:]
    walk = walk or every_window(window_starts(shape, window.patch, window.step))
    planes = _Planes(shape, window, image.device)
    inner = tuple(slice(before, before + n) for (before, _), n in zip(pad, image.shape[1:], strict=True))
    positions, wanted = next(walk)
    while positions:
        for block in planes.until(positions[0][0]):
            yield from _inside(block, inner)
        views = [planes.add(*part, wanted) for part in _logits(network, padded, window, positions)]
        positions, wanted = _send(walk, views)
    for block in planes.until(shape[0]):
        yield from _inside(block, inner)


def _send(walk: Walk, views: list[torch.Tensor]) -> tuple[list[Position], bool]:
    try:
        return walk.send(views)
    except StopIteration:
        return [], False


def _inside(block: tuple[int, torch.Tensor], inner: tuple[slice, ...]) -> Iterator[torch.Tensor]:
    """Yield what of a block of the padded image lies in the image, if anything."""
    start, logits = block
    z, y, x = inner
    first, last = max(z.start - start, 0), min(z.stop - start, logits.shape[1])
    if first < last:
        yield logits[:, first:last, y, x]


class _Planes:
    """Weighted sums of logits for the planes that windows still add to: ``patch[0]`` planes from ``start`` on."""

    def __init__(self, shape: Sequence[int], window: Window, device: torch.device):
        self.start, self.end = 0, shape[0]
        size = (window.patch[0], *shape[1:])
        self._total = torch.zeros((window.outputs, *size), device=device)
        self._weights = torch.zeros(size, device=device)
        weight = gaussian_weights(window.patch) if window.gaussian else torch.ones(window.patch)
        self._weight = weight.to(device)
        self._landing: torch.Tensor | None = None

    def add(self, position: Position, logits: torch.Tensor, wanted: bool) -> torch.Tensor:
        """Add a window's logits [outputs, z, y, x]; return its best channels if they are wanted, else nothing."""
        _, y, x = position
        depth, height, width = logits.shape[1:]
        where = (slice(depth), slice(y, y + height), slice(x, x + width))
        part = self._fetched(logits).float()
        self._total[(slice(None), *where)].addcmul_(part, self._weight)
        self._weights[where] += self._weight
        return logits.argmax(0) if wanted else logits.new_empty(0)

    def _fetched(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits where the sums are; from a GPU to RAM by way of pinned memory, several times as fast."""
        if logits.device.type != "cuda" or self._total.device.type == "cuda":
            return logits.to(self._total.device)
        if self._landing is None:
            self._landing = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
        return self._landing.copy_(logits)

    def until(self, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first plane, logits) up to plane ``stop``, and make room for the planes after it."""
        depth = len(self._weights)
        while self.start < stop:
            count = min(stop - self.start, depth)
            yield self.start, self._mean(count)
            for held in (self._total.movedim(1, 0), self._weights):
                held[: depth - count] = held[count:].clone()
                held[depth - count :] = 0
            self.start += count

    def _mean(self, count: int) -> torch.Tensor:
        weights = self._weights[:count]
        mean = self._total[:, :count] / weights.clamp(min=torch.finfo(torch.float32).tiny)
        mean[0].masked_fill_(weights == 0, 1.0)
        return mean


def _logits(
    network: Network, padded: torch.Tensor, window: Window, positions: Sequence[Position]
) -> Iterator[tuple[Position, torch.Tensor]]:
    """Yield positions and logits [outputs, z, y, x] of windows."""
    device = window.device or padded.device
    for some in _chunks(positions, window.batch):
        boxes = [tuple(slice(s, s + p) for s, p in zip(at, window.patch, strict=True)) for at in some]
        windows = _sent(torch.stack([padded[(slice(None), *box)] for box in boxes]).to(window.dtype), device)
        if device.type == "cpu":  # see inference.cpu
            windows = windows.contiguous(memory_format=torch.channels_last_3d)
        with torch.inference_mode():
            logits = _mirrored(network, windows, window.mirror_axes)
        yield from zip(some, logits, strict=True)


def _mirrored(network: Network, windows: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    logits = network(windows)
    some = flat(itertools.combinations(axes, n + 1) for n in range(len(axes)))
    flips = [tuple(axis + 2 for axis in chosen) for chosen in some]
    for flip in flips:
        logits = logits + network(windows.flip(flip)).flip(flip)
    return logits / (len(flips) + 1) if flips else logits


def _sent(windows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return windows on the device of the network; Python goes on while a GPU still receives them."""
    if device.type == "cuda" and windows.device.type == "cpu":
        return windows.pin_memory().to(device, non_blocking=True)
    return windows.to(device)


def _chunks(positions: Sequence[Position], size: int) -> Iterator[Sequence[Position]]:
    """Yield parts of at most ``size``, as equal as can be: cuDNN looks for the fastest algorithm anew for each size."""
    number = -(-len(positions) // size)
    bounds = [len(positions) * i // number for i in range(number + 1)]
    for start, stop in itertools.pairwise(bounds):
        yield positions[start:stop]
