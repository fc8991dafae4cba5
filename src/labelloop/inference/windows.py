"""Sliding window: positions, weights and the accumulation of nnU-Net's predictor, with batches of windows."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from labelloop.inference.resample import Shape

SIGMA = 1 / 8
"""Standard deviation of the Gaussian weights as a part of the patch (nnU-Net)."""
Position = tuple[int, int, int]


def window_starts(shape: Sequence[int], patch: Sequence[int], step: float) -> list[list[int]]:
    """Return the starts of the windows along each axis (``compute_steps_for_sliding_window``).

    Windows lie evenly, at most ``step`` of a patch apart, and the last one ends with the volume.

    Raises:
        ValueError: when the volume is smaller than the patch, or ``step`` is not above 0 and at most 1.
    """
    if not 0 < step <= 1 or any(n < p for n, p in zip(shape, patch, strict=True)):
        raise ValueError(f"volume {tuple(shape)}, patch {tuple(patch)}, step {step}: step in (0, 1], volume >= patch")
    starts = []
    for n, p in zip(shape, patch, strict=True):
        count = int(np.ceil((n - p) / (p * step))) + 1
        stride = (n - p) / (count - 1) if count > 1 else 0
        starts.append([int(np.round(stride * i)) for i in range(count)])
    return starts


def window_positions(shape: Sequence[int], patch: Sequence[int], step: float) -> list[Position]:
    """Return the first corner of every window, z slowest."""
    z, y, x = window_starts(shape, patch, step)
    return list(itertools.product(z, y, x))


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


def slide(
    network: nn.Module,
    image: torch.Tensor,
    patch: Shape,
    outputs: int,
    *,
    step: float = 0.5,
    gaussian: bool = True,
    mirror_axes: Sequence[int] = (),
    batch: int = 1,
    autocast: torch.dtype | None = None,
    positions: Iterable[Position] | None = None,
) -> torch.Tensor:
    """Return the logits [outputs, z, y, x] of ``image`` [z, y, x], float32 on the image's device.

    Args:
        mirror_axes: axes of the image; the mean over all combinations of flips along them is taken.
        batch: windows per forward pass.
        autocast: lower precision for the network, or None.
        positions: windows of the padded image to compute, for callers that skip some; default all. Voxels that no
            window covers are background.
    """
    pad = padding(image.shape, patch)
    padded = functional.pad(image, [n for part in reversed(pad) for n in part])
    weight = gaussian_weights(patch).to(image.device) if gaussian else torch.ones(patch, device=image.device)
    total = torch.zeros((outputs, *padded.shape), device=image.device)
    weights = torch.zeros(padded.shape, device=image.device)
    chosen = window_positions(padded.shape, patch, step) if positions is None else positions
    for some in _chunks(chosen, batch):
        windows = [tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True)) for start in some]
        with torch.inference_mode(), _precision(image.device, autocast):
            logits = _mirrored(network, torch.stack([padded[w] for w in windows])[:, None], mirror_axes)
        for window, part in zip(windows, logits, strict=True):
            total[(slice(None), *window)].addcmul_(part.float(), weight)
            weights[window] += weight
    uncovered = weights == 0 if positions is not None else None
    total /= weights.clamp_(min=torch.finfo(torch.float32).tiny)
    if uncovered is not None:
        total[0].masked_fill_(uncovered, 1.0)
    inner = tuple(slice(before, before + n) for (before, _), n in zip(pad, image.shape, strict=True))
    return total[(slice(None), *inner)]


def _mirrored(network: nn.Module, windows: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    logits = network(windows)
    flips = [tuple(a + 2 for a in some) for n in range(len(axes)) for some in itertools.combinations(axes, n + 1)]
    for flip in flips:
        logits = logits + network(windows.flip(flip)).flip(flip)
    return logits / (len(flips) + 1) if flips else logits


def _precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    return torch.autocast(device.type, dtype) if dtype is not None else nullcontext()


def _chunks(positions: Iterable[Position], size: int) -> Iterator[list[Position]]:
    iterator = iter(positions)
    while some := list(itertools.islice(iterator, max(1, size))):
        yield some
