"""Linear resampling with nnU-Net's decisions (``resample_torch_fornnunet``, nnunetv2 2.8.1), without nnunetv2.

Trilinear with aligned voxel edges (``align_corners=False``), except where one of the two grids is strongly
anisotropic along one axis: then linear within the plane and nearest along that axis.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from labelloop.inference.budget import SLAB_VOXELS
from labelloop.inference.labelmaps import class_boxes

SEPARATE_ABOVE = 3.0
"""A grid whose coarsest voxel side is more than this many times its finest is resampled axis by axis (nnU-Net)."""
Shape = tuple[int, int, int]
Spacing = Sequence[float]


def target_shape(shape: Sequence[int], spacing: Spacing, target: Spacing) -> Shape:
    """Return round(size * spacing / target) per axis (``compute_new_shape``), but never less than one voxel."""
    z, y, x = (max(1, round(s / t * n)) for n, s, t in zip(shape, spacing, target, strict=True))
    return z, y, x


def separate_axis(spacing: Spacing, target: Spacing, separate: bool | None = None) -> int | None:
    """Return the axis to resample by nearest neighbor, or None for trilinear (``determine_do_sep_z_and_axis``).

    Args:
        separate: whether the coarse axis of ``spacing`` is; None: where a grid is strongly anisotropic.
    """
    if separate is False:
        return None
    for grid in (spacing, target):
        if separate or max(grid) / min(grid) > SEPARATE_ABOVE:
            coarse = [axis for axis, side in enumerate(grid) if max(grid) / side == 1]
            return coarse[0] if len(coarse) == 1 else None
    return None


def nearest_indices(size: int, new: int) -> torch.Tensor:
    """Return the source index of each of ``new`` voxels over the same extent as ``size`` voxels."""
    return functional.interpolate(torch.arange(size, dtype=torch.float32)[None, None], new, mode="nearest-exact")[
        0, 0
    ].long()


@dataclass(frozen=True)
class AxisMap:
    """Resampling of one axis: output i is ``(1 - weight[i]) * source[low[i]] + weight[i] * source[high[i]]``."""

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray

    @classmethod
    def linear(cls, size: int, new: int) -> "AxisMap":
        """Linear, voxel edges aligned, clamped at the ends: torch's formula, rounded to float32 where torch rounds."""
        position = float(np.float32(size / new)) * (np.arange(new) + 0.5) - 0.5
        position = np.maximum(position, 0).astype(np.float32)
        low = np.minimum(position.astype(np.int64), size - 1)
        weight = np.clip(position - low.astype(np.float32), 0, 1).astype(np.float32)
        return cls(low, np.minimum(low + 1, size - 1), np.zeros(new, np.float32) if size == new else weight)

    @classmethod
    def nearest(cls, size: int, new: int) -> "AxisMap":
        """Nearest neighbor."""
        index = nearest_indices(size, new).numpy()
        return cls(index, index, np.zeros(new, np.float32))

    def __len__(self) -> int:
        return len(self.low)

    def part(self, start: int, stop: int) -> "AxisMap":
        """Return the resampling of outputs ``start:stop``."""
        return AxisMap(self.low[start:stop], self.high[start:stop], self.weight[start:stop])

    def sources(self) -> tuple[np.ndarray, "AxisMap"]:
        """Return the source voxels that are drawn on, ascending, and the same resampling of those alone."""
        used = np.union1d(self.low, self.high)
        return used, AxisMap(np.searchsorted(used, self.low), np.searchsorted(used, self.high), self.weight)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of source voxels that outputs ``start:stop`` draw on."""
        return int(self.low[start]), int(self.high[stop - 1]) + 1

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of outputs that source voxels ``start:stop`` can touch (empty when none)."""
        first, last = np.searchsorted(self.high, start, "left"), np.searchsorted(self.low, stop, "left")
        return int(first), max(int(first), int(last))

    def apply(self, source: torch.Tensor, dim: int, start: int, stop: int, offset: int) -> torch.Tensor:
        """Return outputs ``start:stop`` along ``dim`` of a source that begins at source voxel ``offset``."""
        weight = self.weight[start:stop]
        low = torch.from_numpy(self.low[start:stop] - offset).to(source.device)
        if not weight.any():
            return source.index_select(dim, low)
        high = torch.from_numpy(self.high[start:stop] - offset).to(source.device)
        shape = [-1 if d == dim else 1 for d in range(source.ndim)]
        part = torch.from_numpy(weight).to(source.device).view(shape)
        return source.index_select(dim, low).mul_(1 - part).addcmul_(source.index_select(dim, high), part)

    def blend(self, planes: torch.Tensor, output: int, offset: int, out: torch.Tensor) -> torch.Tensor:
        """Write output ``output`` along the first axis, of ``planes`` that begin at source voxel ``offset``."""
        low, high, weight = self.low[output] - offset, self.high[output] - offset, self.weight[output]
        torch.mul(planes[low], float(1 - weight), out=out)
        return out.add_(planes[high], alpha=float(weight)) if weight else out


Range = tuple[int, int]


@dataclass(frozen=True)
class Resampling:
    """Resampling between two grids over the same box, computable region by region.

    Every region equals that part of the whole resampled volume up to rounding of the last bit.
    """

    axes: tuple[AxisMap, AxisMap, AxisMap]

    @classmethod
    def between(
        cls,
        shape: Sequence[int],
        new: Sequence[int],
        spacing: Spacing,
        target: Spacing,
        separate_z: bool | None = None,
    ) -> "Resampling":
        """Return the resampling from ``shape`` voxels of ``spacing`` (mm) to ``new`` voxels of ``target``.

        Args:
            separate_z: see :func:`separate_axis`.
        """
        separate = separate_axis(spacing, target, separate_z)
        z, y, x = (
            (AxisMap.nearest if axis == separate else AxisMap.linear)(size, wanted)
            for axis, (size, wanted) in enumerate(zip(shape, new, strict=True))
        )
        return cls((z, y, x))

    @property
    def shape(self) -> Shape:
        """Shape of the output."""
        z, y, x = map(len, self.axes)
        return z, y, x

    def region(self, source: torch.Tensor, box: Sequence[Range]) -> torch.Tensor:
        """Return the part ``box`` (ranges of output voxels) of the resampled ``source`` [z, y, x], float32."""
        z, y, x = box
        first, last = self.axes[0].needs(*z)
        return self.axes[0].apply(self.sections(source, (first, last), (y, x)), 0, *z, first)

    def sections(self, source: torch.Tensor, planes: Range, box: Sequence[Range]) -> torch.Tensor:
        """Return source ``planes`` resampled to ``box`` (y, x) within the plane, not yet between planes, float32."""
        needs = [axis.needs(*part) for axis, part in zip(self.axes[1:], box, strict=True)]
        part = source[(slice(*planes), *(slice(*need) for need in needs))].float()
        for dim in (2, 1):  # x first, as torch does, while the volume is small
            part = self.axes[dim].apply(part, dim, *box[dim - 1], needs[dim - 1][0])
        return part

    def planes(self, slab: Range, first: int) -> "Resampling":
        """Return the resampling of the output planes ``slab``, from a source that begins at plane ``first``."""
        z, y, x = self.axes
        part = z.part(*slab)
        return Resampling((AxisMap(part.low - first, part.high - first, part.weight), y, x))

    def slabs(self, voxels: int = SLAB_VOXELS) -> Iterator[Range]:
        """Yield ranges of output planes of at most about ``voxels`` voxels each."""
        z, y, x = self.shape
        thick = max(1, voxels // (y * x))
        for start in range(0, z, thick):
            yield start, min(z, start + thick)


def resample_labels(labels: np.ndarray, shape: Shape, spacing: Spacing, target: Spacing) -> np.ndarray:
    """Resample a label map [z, y, x]: argmax of its linearly resampled one-hot channels; ties go to the lower id.

    One channel of one slab exists at a time, and each class is computed only where it can be above zero.
    """
    if labels.shape == tuple(shape):
        return np.ascontiguousarray(labels)
    resampling = Resampling.between(labels.shape, shape, spacing, target)
    result = np.zeros(shape, labels.dtype)
    boxes = {  # per class, the output voxels it can touch
        value: [a.reach(s.start, s.stop) for a, s in zip(resampling.axes, box, strict=True)]
        for value, box in class_boxes(labels).items()
    }
    boxes = {value: box for value, box in boxes.items() if all(start < stop for start, stop in box)}
    if not boxes:
        return result
    around = [(min(b[d][0] for b in boxes.values()), max(b[d][1] for b in boxes.values())) for d in range(3)]
    for start, stop in resampling.slabs():
        slab = (max(start, around[0][0]), min(stop, around[0][1]))
        if slab[0] >= slab[1]:
            continue
        first, last = resampling.axes[0].needs(*slab)
        planes = torch.from_numpy(np.ascontiguousarray(labels[first:last]).astype(np.int32, copy=False))
        local = resampling.planes(slab, first)
        best = local.region(planes == 0, [(0, slab[1] - slab[0]), *around[1:]])
        winner = torch.zeros(best.shape, dtype=torch.int32)
        for value in sorted(boxes):
            z, *plane = boxes[value]
            z = (max(z[0], slab[0]), min(z[1], slab[1]))
            if z[0] >= z[1]:
                continue
            score = local.region(planes == value, [(z[0] - slab[0], z[1] - slab[0]), *plane])
            here = (slice(z[0] - slab[0], z[1] - slab[0]),
                    *(slice(p[0] - a[0], p[1] - a[0]) for p, a in zip(plane, around[1:], strict=True)))  # fmt: skip
            better = score > best[here]
            best[here] = torch.where(better, score, best[here])
            winner[here] = torch.where(better, value, winner[here])
        result[slice(*slab), slice(*around[1]), slice(*around[2])] = winner.numpy().astype(labels.dtype)
    return result
