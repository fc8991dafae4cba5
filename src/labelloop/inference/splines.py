"""Spline resampling of images as nnU-Net's default does (``resample_data_or_seg_to_shape``), without skimage.

``skimage.transform.resize`` is a spline interpolation of ``scipy.ndimage`` with aligned voxel edges and repeated
borders, clipped to the range of its input. That is the same linear map along every line of an axis, so it is computed
as a product with a matrix per axis, which takes a fraction of the time.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from labelloop.inference.budget import SLAB_VOXELS
from labelloop.inference.resample import Shape


def spline_matrix(size: int, new: int, order: int) -> np.ndarray:
    """Return the float32 matrix [new, size] that resamples a line of ``size`` voxels to ``new``."""
    if size == new:
        return np.eye(size, dtype=np.float32)
    lines = np.eye(size)
    return np.stack(
        [ndimage.zoom(line, new / size, order=order, mode="nearest", grid_mode=True) for line in lines], axis=1
    ).astype(np.float32)


def nearest_planes(size: int, new: int) -> np.ndarray:
    """Return the source plane of each of ``new`` planes, as ``map_coordinates`` of order 0 finds them."""
    places = size / new * (np.arange(new) + 0.5) - 0.5
    return ndimage.map_coordinates(np.arange(size), [places], order=0, mode="nearest")


def spline_resampled(
    image: np.ndarray, shape: Shape, order: int, separate: int | None, normalize: Callable[[np.ndarray], None]
) -> np.ndarray:
    """Return a normalized image [z, y, x] resampled to ``shape``, float32.

    Args:
        image: any numeric type.
        order: of the splines, 0 to 5.
        separate: axis that is resampled by nearest neighbor, and the others plane by plane; None: all alike.
        normalize: normalizes a float32 array in place.
    """
    front = separate or 0
    planes = np.moveaxis(image, front, 0)
    depth, *wanted = np.moveaxis(np.empty(shape, np.uint8), front, 0).shape
    if planes.shape == (depth, *wanted):
        same = np.array(image, dtype=np.float32, order="C")
        normalize(same)
        return same
    rows, columns = (spline_matrix(size, new, order) for size, new in zip(planes.shape[1:], wanted, strict=True))
    flat, low, high = _in_plane(planes, rows, columns, normalize)
    if separate is None:
        result = (spline_matrix(len(flat), depth, order) @ flat.reshape(len(flat), -1)).reshape(depth, *wanted)
        np.clip(result, low.min(), high.max(), out=result)
    else:
        np.clip(flat, low, high, out=flat)
        result = flat[nearest_planes(len(flat), depth)]
    return np.ascontiguousarray(np.moveaxis(result, 0, front))


def _in_plane(
    planes: np.ndarray, rows: np.ndarray, columns: np.ndarray, normalize: Callable[[np.ndarray], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return planes normalized and resampled in the plane, and the lowest and highest value each had [plane, 1, 1]."""
    depth = len(planes)
    result = np.empty((depth, len(rows), len(columns)), np.float32)
    low, high = (np.empty((depth, 1, 1), np.float32) for _ in range(2))
    for slab in _slabs(planes.shape):
        values = np.array(planes[slab], dtype=np.float32, order="C")
        normalize(values)
        low[slab], high[slab] = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
        result[slab] = rows @ (values @ columns.T)
    return result, low, high


def _slabs(shape: Sequence[int]) -> list[slice]:
    depth, height, width = shape
    thick = max(1, SLAB_VOXELS // (height * width))
    return [slice(start, start + thick) for start in range(0, depth, thick)]
