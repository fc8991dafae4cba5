"""Tumor CutMix: objects of one case pasted into patches of others, with what is known of their surroundings.

What a pasted box holds was annotated in another case, so other classes are unknown inside it than around it. A patch
therefore remembers which voxel came from where: its label is ``region * width + channel``, region 0 being the case
itself and region n the n-th object; ``width`` counts the channels and, after them, what ignored voxels are. One number
for both survives rotation and scaling without coming apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from labelloop.labels.tumors import read_object
from labelloop.training.loading import Channels
from labelloop.training.settings import CutMix


class Stored(NamedTuple):
    """An object in a bank: the case it was cut from, its file, its number there."""

    case: str
    file: Path
    number: int


class Paster:
    """Pastes objects into patches, as ``settings`` say.

    Args:
        objects: what may be pasted.
        channels: class id to output channel, for each case that objects come from.
        width: output channels, background included, and one for ignored voxels, the last.
        cases: cases into which to paste.
        patch: voxels (z, y, x) of a patch that augmentation leaves over; objects are centered inside these.
    """

    def __init__(
        self,
        settings: CutMix,
        objects: Sequence[Stored],
        channels: Mapping[str, Channels],
        width: int,
        cases: frozenset[str],
        patch: Sequence[int],
    ):
        self._settings, self._objects, self._channels = settings, objects, dict(channels)
        self._width, self._cases, self._patch = width, cases, np.asarray(patch)

    def __call__(self, case: str, image: np.ndarray, label: np.ndarray) -> list[str]:
        """Paste into a patch of ``case``, in place, by numpy's global generator.

        Args:
            image: float32 [z, y, x], normalized.
            label: int16 [z, y, x] of channels, -1 outside the volume.

        Returns:
            the case that each region, from 1, comes from; empty when nothing was pasted.
        """
        if case not in self._cases or np.random.uniform() >= self._settings.probability:
            return []
        spots = self._spots(image, label)
        if not len(spots):
            return []
        sources = []
        for _ in range(self._settings.objects_per_patch):
            stored = self._objects[np.random.randint(len(self._objects))]
            sources.append(stored.case)
            center = spots[np.random.randint(len(spots))]
            self._paste(stored, len(sources), center, image, label)
        return sources

    def _spots(self, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Return where an object's center may lie: positions [n, 3] in the part that augmentation leaves over.

        The body is what is brighter than the patch's mean: tissue beside air or in front of lung, in CT and MR alike.
        A box of organs may reach into the lungs or out of the body, so it is that part of it that counts.
        """
        margin = np.maximum((np.array(label.shape) - self._patch) // 2, 0)
        inner = tuple(slice(m, n - m) for m, n in zip(margin, label.shape, strict=True))
        inside = label[inner] >= 0
        allowed = inside & (image[inner] > image[label >= 0].mean() if inside.any() else False)
        organ = (label[inner] > 0) & (label[inner] < self._width - 1)
        organs = np.argwhere(organ) if self._settings.placement == "organs" else np.empty((0, 3), int)
        if len(organs):
            low, high = organs.min(0), organs.max(0) + 1
            box = np.zeros_like(allowed)
            box[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
            allowed = allowed & box if (allowed & box).any() else inside & box
        return np.argwhere(allowed) + margin

    def _paste(self, stored: Stored, region: int, center: np.ndarray, image: np.ndarray, label: np.ndarray) -> None:
        pixels, ids = read_object(stored.file, stored.number)
        table = np.zeros(256, np.int16)
        channels = self._channels[stored.case]
        table[list(channels)] = list(channels.values())
        start = center - np.array(ids.shape) // 2
        low, high = np.maximum(start, 0), np.minimum(start + ids.shape, label.shape)
        window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        part = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
        inside = label[window] >= 0
        image[window][inside] = pixels[part][inside]
        label[window][inside] = (table[ids[part]] + region * self._width)[inside]


def split_regions(target: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Return the channels of a target with regions, and the channels unknown at each voxel.

    Args:
        target: ``region * (channels + 1) + channel`` [batch, 1, z, y, x].
        unknown: bool [batch, regions, channels].

    Returns:
        target of channels [batch, 1, z, y, x], where ignored voxels are the one after the last; unknown, bool
        [batch, channels, z, y, x].
    """
    width = unknown.shape[2] + 1
    region = torch.div(target[:, 0], width, rounding_mode="floor").long()
    sample = torch.arange(len(target), device=target.device).view(-1, 1, 1, 1)
    return target % width, unknown[sample, region].movedim(-1, 1)
