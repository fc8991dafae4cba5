"""From a stored volume to what the network sees: orient, crop, normalize, resample.

The same decisions as nnU-Net's ``DefaultPreprocessor`` with ``resample_torch_fornnunet`` on the canonical
orientation. Training and inference both go through here, so they cannot drift apart.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from labelloop.base.errors import CaseError
from labelloop.base.wording import count
from labelloop.images.volume import Geometry, Turn, Volume, axes_to_ras, turned, whole_numbers
from labelloop.inference.budget import SLAB_VOXELS
from labelloop.inference.resample import Resampling, Shape, resample_labels, separate_axis, target_shape
from labelloop.inference.splines import spline_resampled
from labelloop.networks.grey import black_and_white
from labelloop.networks.nnunet_plan import NnunetPlan, Normalization
from labelloop.networks.plans import Plan

SMALLEST_STD = 1e-8
LARGEST_PREPARED = 1 << 29
"""Voxels of a prepared image, at most (2 GiB of float32); a whole adult at 1 mm in each direction has less."""


@dataclass(frozen=True)
class Frame:
    """Where a prepared array came from: all that is needed to bring labels to the network grid and back.

    ``stored`` is the grid of the file, ``oriented`` the same grid in canonical orientation, ``crop`` the part of
    ``oriented`` that was used, as ``(start, stop)`` per axis z, y, x, and ``spacing_mm`` the network's voxel size.
    For models of nnU-Net's, ``oriented`` is the stored grid after another ``turn``, and ``separate_z`` says how scores
    are resampled (see :func:`~labelloop.inference.resample.separate_axis`).
    """

    stored: Geometry
    oriented: Geometry
    crop: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    spacing_mm: tuple[float, float, float]
    turn: Turn | None = None
    separate_z: bool | None = None

    @classmethod
    def whole(cls, grid: Geometry) -> "Frame":
        """Return the frame of an image that is neither turned, nor cropped, nor resampled."""
        depth, height, width = grid.shape
        return cls(grid, grid, ((0, depth), (0, height), (0, width)), grid.spacing_zyx)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The crop as an index into a canonical array."""
        z, y, x = (slice(*part) for part in self.crop)
        return z, y, x

    @property
    def cropped_shape(self) -> Shape:
        """Shape (z, y, x) of the canonical crop before resampling."""
        z, y, x = (stop - start for start, stop in self.crop)
        return z, y, x

    @property
    def shape(self) -> Shape:
        """Shape (z, y, x) on the network grid."""
        return target_shape(self.cropped_shape, self.oriented.spacing_zyx, self.spacing_mm)

    @property
    def height_axis(self) -> int:
        """The axis of the network grid that is nearest to inferior-superior, 0 to 2."""
        return axes_to_ras(self.oriented)[0][0]

    def zeros(self) -> tuple[np.ndarray, np.ndarray]:
        """Return a label map of zeros on the stored grid, uint8, and the part that is the canonical crop: a view."""
        labels = np.zeros(self.stored.shape, np.uint8)
        return labels, self.turned(Volume(labels, self.stored)).array[self.slices]

    def as_dict(self) -> dict[str, Any]:
        """Return the frame as plain JSON-able data."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Frame":
        """Return the frame that :meth:`as_dict` described, also after a round trip through JSON."""
        stored, oriented = (Geometry(**{k: tuple(v) for k, v in content[g].items()}) for g in ("stored", "oriented"))
        z, y, x = (tuple(part) for part in content["crop"])
        turn = content.get("turn")
        kept = (tuple(turn[0]), tuple(turn[1])) if turn else None
        return cls(stored, oriented, (z, y, x), tuple(content["spacing_mm"]), kept, content.get("separate_z"))

    def turned(self, volume: Volume) -> Volume:
        """Return a volume on the stored grid in the orientation in which the network sees it."""
        return turned(volume, self.turn or axes_to_ras(self.stored))


@dataclass(frozen=True)
class Prepared:
    """A float32 array [channel, z, y, x] on the network grid, and where it came from.

    ``stored_bytes`` is the size of a voxel of the image as stored, all channels together; it counts in a memory budget.
    """

    array: np.ndarray
    frame: Frame
    stored_bytes: int = 2


def prepare_image(volume: Volume, plan: Plan, modality: str) -> Prepared:
    """Bring an image as stored to the network grid of ``plan``.

    Args:
        volume: any orientation and spacing, any numeric type (HU for CT).
        modality: ``CT`` (clip, shift and scale by ``plan.ct``) or ``MR`` (z-score over the crop). With ``plan.grey``,
            both come to one scale from -1 to 1. A plan's ``upright`` and ``translate`` are others' affair. Where the
            plan has ``channels``, their names say it for each.

    Raises:
        CaseError: when the volume is empty, not 3-D or not finite; ``channels_differ``, when it has not the channels of
            the plan; ``prepared_too_large``, when there would be more than :data:`LARGEST_PREPARED` voxels.
        ValueError: when the modality is unknown.
    """
    if volume.array.ndim != 3 or not volume.array.size:
        raise CaseError("image_not_3d", "", f"array of shape {volume.array.shape}", "Give one 3-D image.")
    _check_channels(volume, plan)
    turn = nnunet_turn(volume.geometry, plan) if isinstance(plan, NnunetPlan) else axes_to_ras(volume.geometry)
    oriented = turned(volume, turn)
    frame = Frame(volume.geometry, oriented.geometry, nonzero_box(*oriented.channels), plan.spacing_mm)
    if isinstance(plan, NnunetPlan):
        frame = replace(frame, turn=turn, separate_z=plan.separate_z_back)
    _refuse_too_large(frame)
    cropped = [channel[frame.slices] for channel in oriented.channels]
    for channel in cropped:
        _check_finite(channel)
    if isinstance(plan, NnunetPlan):
        made = _as_nnunet(cropped, frame, plan)
    else:
        kinds = plan.modalities(modality)
        made = [
            _network_grid(channel, frame, scaling(channel, plan, kind, number))
            for number, (channel, kind) in enumerate(zip(cropped, kinds, strict=True))
        ]
    array = made[0][None] if len(made) == 1 else np.stack(made)  # a view of one channel, which may be large
    return Prepared(array, frame, sum(channel.itemsize for channel in volume.channels))


def _check_channels(volume: Volume, plan: Plan) -> None:
    if len(volume.channels) == plan.inputs:
        return
    takes = f"the model takes {count(plan.inputs, 'channel')}"
    takes += f" ({', '.join(plan.channels)})" if plan.channels else ""
    found = f"an image of {count(len(volume.channels), 'channel')}, and {takes}"
    action = "Give a folder with its channels, <case>_0000, <case>_0001, ..., in this order, or take another model."
    raise CaseError("channels_differ", "image", found, action, common=True)


def _check_finite(array: np.ndarray) -> None:
    if not np.issubdtype(array.dtype, np.floating):
        return
    bad = sum(int((~np.isfinite(plane)).sum()) for plane in array)
    if bad:
        raise CaseError("image_not_finite", "", f"{bad} voxels are not finite", "Write numbers there.")


def nnunet_turn(stored: Geometry, plan: NnunetPlan) -> Turn:
    """Return the turn from stored order to that in which a model of nnU-Net's sees the axes."""
    permutation, flips = axes_to_ras(stored) if plan.orientation == "canonical" else ((0, 1, 2), ())
    flipped = tuple(place for place, axis in enumerate(plan.transpose) if axis in flips)
    return tuple(permutation[axis] for axis in plan.transpose), flipped


def _as_nnunet(cropped: Sequence[np.ndarray], frame: Frame, plan: NnunetPlan) -> list[np.ndarray]:
    """Normalize and resample the channels of a crop as nnU-Net's ``DefaultPreprocessor`` does by its plans."""
    inside = None
    if any(how.kind == "zscore_inside" for how in plan.normalizations):
        inside = _body(cropped)
    separate = separate_axis(frame.oriented.spacing_zyx, frame.spacing_mm, plan.separate_z)
    made = []
    for channel, how in zip(cropped, plan.normalizations, strict=True):
        if how.kind == "zscore_inside" and inside is not None:
            channel, normalization = _zscore_inside(channel, inside), Scaling(None, 0.0, 1.0)
        else:
            normalization = _nnunet_scaling(channel, how)
        if plan.spline is None:
            made.append(_network_grid(channel, frame, normalization, plan.separate_z))
        else:
            made.append(spline_resampled(channel, frame.shape, plan.spline, separate, normalization.apply))
    return made


def _body(channels: Sequence[np.ndarray]) -> np.ndarray:
    """Return where any channel is not zero, holes included: what nnU-Net takes for the body."""
    seen = channels[0] != 0
    for channel in channels[1:]:
        seen |= channel != 0
    return ndimage.binary_fill_holes(seen)


def _nnunet_scaling(array: np.ndarray, normalization: Normalization) -> "Scaling":
    if normalization.kind == "ct":
        return Scaling(normalization.clip, normalization.mean, normalization.std)
    if normalization.kind == "zscore":
        return _zscore(array)
    if normalization.kind == "range":
        return Scaling(None, float(array.min()), float(array.max()) - float(array.min()))
    return Scaling(None, 0.0, 1.0)


def _zscore_inside(array: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return a float32 image, z-scored over its voxels ``inside`` of a mask; 0 elsewhere."""
    values = array[inside].astype(np.float64)
    result = np.zeros(array.shape, np.float32)
    result[inside] = (values - values.mean()) / max(float(values.std()), SMALLEST_STD)
    return result


def _refuse_too_large(frame: Frame) -> None:
    voxels = math.prod(frame.shape)
    if voxels > LARGEST_PREPARED:
        sizes = " x ".join(f"{s:.4g}" for s in frame.oriented.spacing_zyx[::-1])
        found = f"{voxels} voxels at {' x '.join(f'{s:g}' for s in frame.spacing_mm[::-1])} mm, of a grid of {sizes} mm"
        action = (
            f"At most {LARGEST_PREPARED} are prepared: check the voxel size in the header, crop the scan, or take a "
        )
        raise CaseError("prepared_too_large", "image", found, action + "coarser plan.", common=True)


def _network_grid(
    cropped: np.ndarray, frame: Frame, normalization: "Scaling", separate_z: bool | None = None
) -> np.ndarray:
    """Normalize and resample a crop linearly, slab by slab, so that no float copy of the whole crop exists.

    Planes, rows and columns that no voxel of the network grid draws on are left out: on a coarse grid, most.
    """
    spacing = frame.oriented.spacing_zyx
    resampling = Resampling.between(frame.cropped_shape, frame.shape, spacing, frame.spacing_mm, separate_z)
    result = np.empty(frame.shape, np.float32)
    z, *plane = resampling.axes
    (rows, y), (columns, x) = (axis.sources() for axis in plane)
    for start, stop in resampling.slabs(max(1, SLAB_VOXELS * len(y) * len(x) // max(1, len(rows) * len(columns)))):
        planes, there = z.part(start, stop).sources()
        drawn_on = cropped[np.ix_(planes, rows)]
        drawn_on = drawn_on.take(columns, 2) if len(columns) < drawn_on.shape[2] else drawn_on
        values = np.array(drawn_on, dtype=np.float32, order="C")
        normalization.apply(values)
        box = [(0, n) for n in (stop - start, len(y), len(x))]
        result[start:stop] = Resampling((there, y, x)).region(torch.from_numpy(values), box).numpy()
    return result


def prepare_label(label: Volume, frame: Frame) -> np.ndarray:
    """Bring a label map as stored to the network grid of its image.

    The result equals the argmax of the linearly resampled one-hot channels (ties: the lower id), uint8 or int32 as
    the ids require. It is the same on every run.

    Raises:
        CaseError: when the label map is not on the grid of the image, or holds fractional or negative values.
    """
    if difference := label.geometry.difference(frame.stored):
        raise CaseError("label_grid", "", f"image and label map differ in {difference}", "Draw it on its image.")
    try:
        cropped = whole_numbers(frame.turned(label).array[frame.slices])
    except ValueError as error:
        raise CaseError("label_fractional", "", str(error), "Write whole numbers.") from error
    if cropped.size and cropped.min() < 0:
        raise CaseError("label_values", "", f"negative values, e.g. {int(cropped.min())}", "Write class ids.")
    return resample_labels(cropped, frame.shape, frame.oriented.spacing_zyx, frame.spacing_mm)


@dataclass(frozen=True)
class Scaling:
    """A normalization of intensities: clip, subtract ``mean``, divide by ``std``."""

    clip: tuple[float, float] | None
    mean: float
    std: float

    def apply(self, array: np.ndarray) -> None:
        """Normalize a float32 array in place."""
        if self.clip is not None:
            np.clip(array, *self.clip, out=array)
        array -= np.float32(self.mean)
        array /= np.float32(max(self.std, SMALLEST_STD))


def scaling(array: np.ndarray, plan: Plan, modality: str, channel: int = 0) -> Scaling:
    """Return nnU-Net's CTNormalization, or its ZScoreNormalization of ``array`` (without a mask).

    With ``plan.grey``: the grey scale of :mod:`labelloop.networks.grey`, from -1 to 1.

    Args:
        modality: of the channel, which is counted from 0.

    Raises:
        ValueError: for a modality other than CT and MR.
    """
    if plan.grey is not None:
        low, high = black_and_white(array, modality, plan.grey)
        return Scaling((low, high), (low + high) / 2, (high - low) / 2)
    if modality == "CT":
        how = plan.ct_of(channel)
        return Scaling(how.clip_hu, how.mean, how.std)
    if modality != "MR":
        raise ValueError(f"modality {modality!r}; known: CT, MR")
    return _zscore(array)


def _zscore(array: np.ndarray) -> Scaling:
    mean = sum(float(plane.sum(dtype=np.float64)) for plane in array) / array.size
    variance = sum(float(np.square(plane - mean, dtype=np.float64).sum()) for plane in array) / array.size
    return Scaling(None, mean, variance**0.5)


Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def nonzero_box(*channels: np.ndarray) -> Box:
    """Return ``(start, stop)`` per axis of the box around all nonzero voxels; the whole volume if there are none.

    Planes are looked at from the outside in, so that a CT, whose air is not zero, costs six planes. Of several channels
    [z, y, x], voxels count that are nonzero in any.
    """
    found = [box for box in map(_nonzero_box, channels) if box is not None]
    if not found:
        return _whole(channels[0])
    z, y, x = ((min(start for start, _ in side), max(stop for _, stop in side)) for side in zip(*found, strict=True))
    return z, y, x


def _whole(array: np.ndarray) -> Box:
    return (0, array.shape[0]), (0, array.shape[1]), (0, array.shape[2])


def _nonzero_box(array: np.ndarray) -> Box | None:
    box = [(0, n) for n in array.shape]
    for axis in range(3):
        inner = array[tuple(slice(*part) for part in box)]
        planes = np.moveaxis(inner, axis, 0)
        start = next((i for i in range(len(planes)) if planes[i].any()), None)
        if start is None:
            return None
        stop = next(i for i in range(len(planes), 0, -1) if planes[i - 1].any())
        box[axis] = (start, stop)
    z, y, x = box
    return z, y, x
