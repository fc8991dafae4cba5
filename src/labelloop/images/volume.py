"""Read and write volumes: arrays in (z, y, x) order with their place in the patient, atomically.

Every array that leaves this module is indexed ``[z, y, x]`` as stored. :func:`canonical` turns it so that the
three axes run inferior to superior, posterior to anterior and left to right ("RAS+" in nibabel's words), by
permuting and flipping axes only; :func:`restore` is its exact inverse. Nothing else may assume an orientation.

SimpleITK is imported where files are read and written, so that arrays can be segmented where it is not installed.
"""

import errno
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import FULL_BYTES, atomic
from labelloop.base.wording import shown

if TYPE_CHECKING:
    import SimpleITK as sitk

# Rows: world axes x (to the right), y (to the front), z (up), in ITK's LPS millimetre coordinates.
RAS = np.diag([-1.0, -1.0, 1.0])
GRID_TOLERANCE = 1e-3
"""Largest difference of spacing (mm), origin (mm, per voxel of extent) and direction (cosine) of equal grids."""

NIFTI_HEADER = 352
"""Bytes before the voxels of a NIfTI-1 file as ITK writes it."""


@dataclass(frozen=True)
class Geometry:
    """Where a voxel grid lies: all tuples are in ITK's (x, y, z) order and LPS millimetre coordinates."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape (z, y, x)."""
        return self.size[::-1]

    @property
    def spacing_zyx(self) -> tuple[float, float, float]:
        """Voxel size in mm in array order (z, y, x)."""
        return self.spacing[::-1]

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(np.prod(self.spacing)) / 1000.0

    def difference(self, other: "Geometry") -> str | None:
        """Say in words in what two grids differ (size, spacing, direction, origin); None when they agree."""
        found = []
        if self.size != other.size:
            found.append(f"size {self.size} against {other.size}")
        if not np.allclose(self.spacing, other.spacing, atol=GRID_TOLERANCE, rtol=0):
            found.append(f"spacing {_short(self.spacing)} mm against {_short(other.spacing)} mm")
        if not np.allclose(self.direction, other.direction, atol=GRID_TOLERANCE, rtol=0):
            found.append(f"direction {_short(self.direction)} against {_short(other.direction)}")
        if not np.allclose(self.origin, other.origin, atol=GRID_TOLERANCE * max(self.size), rtol=0):
            found.append(f"origin {_short(self.origin)} mm against {_short(other.origin)} mm")
        return ", ".join(found) or None


@dataclass(frozen=True)
class Volume:
    """An array ``[z, y, x]`` and its geometry.

    Of an image with several channels (PET/CT, phases of a CT, T1 and T2), ``array`` is the first; ``more`` are the
    others, which lie on the same grid.
    """

    array: np.ndarray
    geometry: Geometry
    more: tuple[np.ndarray, ...] = ()

    @property
    def channels(self) -> tuple[np.ndarray, ...]:
        """All channels, each [z, y, x]."""
        return (self.array, *self.more)


def _short(values) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)


def geometry_of(image: "sitk.Image | sitk.ImageFileReader") -> Geometry:
    """Return the grid of a SimpleITK image, or of the image whose header a reader has read."""
    return Geometry(
        tuple(image.GetSize()), tuple(image.GetSpacing()), tuple(image.GetOrigin()), tuple(image.GetDirection())
    )


def to_image(volume: Volume) -> "sitk.Image":
    """Return a volume as a SimpleITK image; a mask as uint8."""
    import SimpleITK as sitk

    array, geometry = volume.array, volume.geometry
    image = sitk.GetImageFromArray(array.astype(np.uint8) if array.dtype == bool else array)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    return image


def itk_name(path: str | Path) -> str:
    """Return a path as ITK takes it.

    Raises:
        CaseError: ``file_name`` when it is not UTF-8; ITK would end the process.
    """
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise CaseError(
            "file_name", shown(path), "a name that is not UTF-8", "Rename the file or its folder."
        ) from error
    return name


def read_geometry(path: str | Path) -> Geometry:
    """Read only the header of a 3-D volume that labelloop wrote, or whose header was checked.

    Others are asked for :meth:`labelloop.images.scan.ScanFile.geometry`: ITK ends the process over some headers.

    Raises:
        RuntimeError: when the file is not an image (SimpleITK).
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
    reader.ReadImageInformation()
    return geometry_of(reader)


def read(path: str | Path) -> Volume:
    """Read a label map that labelloop wrote, with the stored data type.

    Raises:
        UserError: when it is damaged.
        OSError, MemoryError: when it is gone, or the disk or memory at fault.
    """
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(itk_name(path))
    except RuntimeError as error:
        blame_machine(path, error)
        raise UserError(f"{path}: damaged. Type the same command again: it is made anew.") from error
    return Volume(sitk.GetArrayFromImage(image), geometry_of(image))


def blame_machine(path: str | Path, error: RuntimeError) -> None:
    """Look at an error of ITK, which knows one kind only: does it say nothing about what is in the file?

    Raises:
        MemoryError: when memory ran out.
        OSError: when the file (or folder) cannot be opened.
    """
    if "Failed to allocate memory" in str(error) or "bad_alloc" in str(error):
        raise MemoryError(f"{path}: no memory left to read it") from error
    os.close(os.open(path, os.O_RDONLY))


def write(path: str | Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write ``array`` [z, y, x] on ``geometry``, compressed, atomically.

    Raises:
        ValueError: when the array's shape is not the geometry's.
    """
    import SimpleITK as sitk

    if array.shape != geometry.shape:
        raise ValueError(f"{path}: array of shape {array.shape} for a grid of shape {geometry.shape} (z, y, x)")
    with atomic(path) as temporary:
        suffixes = temporary.suffixes
        plain = temporary.with_name(
            "volume" + "".join(suffixes[-2:] if suffixes[-1].lower() == ".gz" else suffixes[-1:])
        )
        image = to_image(Volume(array, geometry))
        sitk.WriteImage(image, str(plain), useCompression=True)
        _check_written(plain, sitk.GetArrayViewFromImage(image).nbytes)
        plain.replace(temporary)  # ITK would write "case.nii.nii.gz" and the like under names of its own


def _check_written(path: Path, voxel_bytes: int) -> None:
    """Raise OSError when a NIfTI file ends early: ITK does not say so when the disk is full.

    A gzip file ends in the size of its content, modulo 2^32 (RFC 1952).
    """
    expected, found = NIFTI_HEADER + voxel_bytes, path.stat().st_size
    if path.name.endswith(".nii.gz"):
        with path.open("rb") as handle:
            handle.seek(max(0, found - 4))
            whole = int.from_bytes(handle.read(), "little") == expected % 2**32
    else:
        whole = path.suffix != ".nii" or found == expected
    if not whole:
        full = shutil.disk_usage(path.parent).free < FULL_BYTES
        number = errno.ENOSPC if full else errno.EIO
        raise OSError(number, os.strerror(number), str(path))


Turn = tuple[tuple[int, ...], tuple[int, ...]]
"""A permutation of array axes, then the axes to flip."""


def axes_to_ras(geometry: Geometry) -> Turn:
    """Return the turn from stored order into RAS+ order."""
    cosines = RAS @ np.asarray(geometry.direction).reshape(3, 3)  # world axis x image axis
    left, source = np.abs(cosines).copy(), [0, 0, 0]
    for _ in range(3):
        world, axis = np.unravel_index(np.argmax(left), (3, 3))
        source[world] = int(axis)
        left[world, :], left[:, axis] = -1, -1
    permutation = tuple(2 - source[world] for world in (2, 1, 0))
    flips = tuple(2 - world for world in (2, 1, 0) if cosines[world, source[world]] < 0)
    return permutation, flips


def canonical(volume: Volume) -> Volume:
    """Return the volume with axes inferior-superior, posterior-anterior, left-right: views, no interpolation.

    Oblique grids are turned to the nearest axes and keep their obliquity in the direction matrix.
    """
    return turned(volume, axes_to_ras(volume.geometry))


def turned(volume: Volume, turn: Turn) -> Volume:
    """Return the volume with its axes permuted and flipped: views, no interpolation."""
    permutation, flips = turn
    first, *more = (np.flip(np.transpose(channel, permutation), flips) for channel in volume.channels)
    g = volume.geometry
    direction = np.asarray(g.direction).reshape(3, 3)
    columns = [2 - permutation[2 - world] for world in range(3)]  # image axis now serving as x, y, z
    signs = np.array([-1.0 if (2 - world) in flips else 1.0 for world in range(3)])
    x, y, z = columns
    size = (g.size[x], g.size[y], g.size[z])
    spacing = (g.spacing[x], g.spacing[y], g.spacing[z])
    axes = direction[:, columns] * signs
    corner = np.array([size[i] - 1 if signs[i] < 0 else 0 for i in range(3)], float)
    origin = np.asarray(g.origin) + direction[:, columns] @ (corner * np.asarray(spacing))
    geometry = Geometry(size, spacing, tuple(origin.tolist()), tuple(axes.ravel().tolist()))
    return Volume(first, geometry, tuple(more))


def inverse(turn: Turn) -> Turn:
    """Return the turn that undoes another."""
    permutation, flips = turn
    return tuple(permutation.index(axis) for axis in range(3)), tuple(permutation[axis] for axis in flips)


def upright_volume(volume: Volume) -> Volume:
    """Return a volume whose header takes head for foot with a true one: mirrored in z about the middle of its grid.

    The array stays as it is stored.
    """
    g = volume.geometry
    direction = np.asarray(g.direction).reshape(3, 3)
    middle = np.asarray(g.origin) + direction @ ((np.asarray(g.size) - 1) / 2 * np.asarray(g.spacing))
    mirrored = np.diag([1.0, 1.0, -1.0]) @ direction
    origin = (g.origin[0], g.origin[1], float(2 * middle[2] - g.origin[2]))
    return replace(volume, geometry=Geometry(g.size, g.spacing, origin, tuple(mirrored.ravel().tolist())))


def restore(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Turn a canonical array [z, y, x] back to the stored axes of ``geometry``: the inverse of :func:`canonical`."""
    permutation, flips = axes_to_ras(geometry)
    return np.ascontiguousarray(np.transpose(np.flip(array, flips), np.argsort(permutation)))


def whole_numbers(array: np.ndarray) -> np.ndarray:
    """Return a label array as uint8, or int32 where ids do not fit; floats with whole values are fine.

    Raises:
        ValueError: naming the first fractional values found, or values that are not finite or too large.
    """
    ends = (array.min(initial=0), array.max(initial=0))
    if not (np.isfinite(ends).all() and np.iinfo(np.int32).min <= ends[0] and ends[1] <= np.iinfo(np.int32).max):
        raise ValueError(f"label values from {ends[0]:g} to {ends[1]:g}")
    if np.issubdtype(array.dtype, np.floating):
        rounded = np.rint(array)
        bad = array[~np.isclose(array, rounded, atol=1e-6)]
        if bad.size:
            raise ValueError(f"{bad.size} fractional label values, e.g. {float(bad[0]):g}")
        if array.any() and not rounded.any():  # floats of another byte order, or ids that were scaled away
            raise ValueError(f"label values from {ends[0]:g} to {ends[1]:g}, all of which are 0 as whole numbers")
        array = rounded
    low, high = (int(end) for end in np.rint(ends))
    return array.astype(np.uint8 if 0 <= low and high <= 255 else np.int32)
