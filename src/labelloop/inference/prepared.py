"""Prepared arrays: images and labels on the network grid, stored so that a patch is read without the whole volume.

One Blosc2 file a case (``<case>.b2nd``), with what belongs to the array inside it: the image carries its ``frame``, the
label the places where its classes are. Images are written once per plan, labels once per label set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelloop.base.classes import BACKGROUND, IGNORED
from labelloop.base.errors import UserError
from labelloop.base.files import atomic

if TYPE_CHECKING:
    from labelloop.inference.prepare import Prepared

SUFFIX = ".b2nd"
CHUNK, BLOCK = (32, 64, 64), (8, 32, 32)
"""Voxels compressed together and voxels decompressed together: 32 KB of float32, what a level-1 cache holds."""
LOCATIONS_AT_LEAST, LOCATIONS_SHARE = 10_000, 0.01
"""Voxels remembered per class: at least so many, or so large a share (nnU-Net, DefaultPreprocessor)."""
LOCATIONS_SEED = 1234


@dataclass(frozen=True)
class PreparedImage:
    """An opened image: ``array`` is a read-only Blosc2 array float32 [channel, z, y, x]; slice it before all else."""

    array: Any
    frame: dict[str, Any]


@dataclass(frozen=True)
class PreparedLabel:
    """An opened label map: ``array`` is a read-only Blosc2 array int16 [1, z, y, x] of class ids, or ignored."""

    array: Any

    @property
    def ignores(self) -> bool:
        """Whether there are voxels of which nobody knows the class."""
        return "known" in self.array.schunk.vlmeta

    @cached_property
    def known(self) -> np.ndarray:
        """Positions [n, 4], as in ``locations``, of some voxels that are not ignored; of a map that ``ignores``."""
        return _with_channel(np.frombuffer(self.array.schunk.vlmeta["known"], np.uint16).reshape(-1, 3))

    @cached_property
    def locations(self) -> dict[int, np.ndarray]:
        """Class id to voxel positions [n, 4] as (channel, z, y, x): a random subset where the class is large."""
        stored = self.array.schunk.vlmeta["locations"]
        places = np.frombuffer(stored["places"], np.uint16).reshape(-1, 3)
        parts = np.split(places, np.cumsum(stored["counts"])[:-1]) if stored["ids"] else []
        return dict(zip(stored["ids"], map(_with_channel, parts), strict=True))


def _with_channel(places: np.ndarray) -> np.ndarray:
    return np.pad(places, ((0, 0), (1, 0))).astype(np.int64)


def write_image_array(path: str | Path, array: np.ndarray, frame: Mapping[str, Any] | None = None) -> None:
    """Write a prepared image atomically to ``path`` (``<folder>/<case>.b2nd``).

    Args:
        array: float32 [channel, z, y, x], or [z, y, x] of one channel.
        frame: JSON-able description of where the array came from; comes back as ``PreparedImage.frame``.
    """
    whole = np.asarray(array, np.float32)
    _write(path, whole if whole.ndim == 4 else whole[None], {"frame": dict(frame or {})})


def write_label_array(path: str | Path, array: np.ndarray) -> None:
    """Write a prepared label map of class ids [z, y, x], atomically to ``path`` (``<folder>/<case>.b2nd``).

    Raises:
        ValueError: when an id is not in 0..255, of which 255 is :data:`~labelloop.base.classes.IGNORED`.
    """
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    if low < BACKGROUND or high > IGNORED:
        raise ValueError(f"{path}: label ids run from {low} to {high}; prepared labels hold 0 to {IGNORED}")
    content: dict[str, Any] = {"locations": _locations(array)}
    if high == IGNORED:
        known = np.flatnonzero(array != IGNORED)
        content["known"] = _drawn(known, min(len(known), LOCATIONS_AT_LEAST), IGNORED, array.shape).tobytes()
    _write(path, np.asarray(array, np.int16)[None], content)


def open_image(path: str | Path) -> PreparedImage:
    """Open a prepared image without reading it. Raises UserError when it is not there."""
    array = _open(path)
    return PreparedImage(array, array.schunk.vlmeta["frame"])


def read_image(path: str | Path) -> "Prepared":
    """Read a prepared image whole, as :func:`~labelloop.inference.prepare.prepare_image` made it, bit by bit.

    Raises:
        UserError: when it is not there.
    """
    from labelloop.inference.prepare import Frame, Prepared

    image = open_image(path)
    return Prepared(np.ascontiguousarray(image.array[:]), Frame.from_dict(image.frame))


def open_label(path: str | Path) -> PreparedLabel:
    """Open a prepared label map without reading it. Raises UserError when it is not there."""
    return PreparedLabel(_open(path))


def _open(path: str | Path) -> Any:
    import blosc2

    if not Path(path).is_file():
        raise UserError(f"{path}: no such prepared array; run the prepare step for this case")
    return blosc2.open(urlpath=str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})


def _write(path: str | Path, array: np.ndarray, content: dict[str, Any]) -> None:
    import blosc2

    if array.ndim != 4 or not array.size:
        raise ValueError(f"{path}: a prepared array is [channel, z, y, x], found shape {array.shape}")
    if Path(path).suffix != SUFFIX:
        raise ValueError(f"{path}: prepared arrays end in {SUFFIX}")
    compression = {
        "codec": blosc2.Codec.LZ4HC,
        "clevel": 5,
        "nthreads": 1,
        "filters": [blosc2.Filter.SHUFFLE],
    }
    sides = [(1, *(min(side, n) for side, n in zip(shape, array.shape[1:], strict=True))) for shape in (CHUNK, BLOCK)]
    with atomic(path) as temporary:
        stored = blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(temporary),
            chunks=sides[0],
            blocks=sides[1],
            cparams=compression,
            dparams={"nthreads": 1},  # written down in the file, too
        )
        for name, value in content.items():
            stored.schunk.vlmeta[name] = value
        del stored  # closes the file


def _locations(array: np.ndarray) -> dict[str, Any]:
    """Return ids, counts and positions of the classes in ``array``, always the same for the same array."""
    flat = np.flatnonzero((array != BACKGROUND) & (array != IGNORED))
    values = array.reshape(-1)[flat]
    ids, counts, parts = [], [], []
    for label in np.unique(values):
        where = flat[values == label]
        keep = min(len(where), max(LOCATIONS_AT_LEAST, int(np.ceil(LOCATIONS_SHARE * len(where)))))
        parts.append(_drawn(where, keep, int(label), array.shape))
        ids.append(int(label))
        counts.append(keep)
    places = np.concatenate(parts) if parts else np.empty((0, 3), np.uint16)
    return {"ids": ids, "counts": counts, "places": places.tobytes()}


def _drawn(where: np.ndarray, number: int, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draw ``number`` of the flat indices ``where``; return their positions [n, 3], uint16, in order."""
    chosen = np.random.default_rng((LOCATIONS_SEED, seed)).permutation(where)[:number]
    return np.stack(np.unravel_index(np.sort(chosen), shape), axis=1).astype(np.uint16)
