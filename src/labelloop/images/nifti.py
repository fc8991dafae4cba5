"""NIfTI-1 files: voxels from the very bytes whose header was checked, and never more of them than the header says.

ITK and its C library read much in silence: a file cut in half comes back filled up with zeros, NaN becomes 0, a voxel
size of zero becomes 1 mm, a sheared sform is replaced by the qform, and voxels of ``a.nii.gz`` are taken from
``a.nii`` when that lies beside it. The header is read here without nibabel, which takes longer to import than a scan
to read. Layout: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

import importlib
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

DIRECTION_TOLERANCE = 1e-3
"""Largest departure of the axes from orthonormal (entries of DᵀD - I), as in ``volume.GRID_TOLERANCE``."""
SPACING_TOLERANCE = 1e-3
"""Largest relative difference of the voxel sizes that two header fields give."""
QUATERNION_TOLERANCE = 1e-6
LARGEST_VOXELS = 1 << 31
"""More voxels are no scan of a patient: 2,896 slices of 860 x 860."""
LARGEST_EXTENSION = 1 << 26
"""Bytes between header and voxels; the largest extensions met in the field hold some kB of text."""
BLOCK_PADDING = 4096
"""So many zeros may follow the voxels: some writers fill a block."""
ZLIB, GZIP, GZIP_START = 15, 31, b"\x1f\x8b"
"""zlib's codes for streams of its own and of gzip, of any window size, and how one of gzip begins."""
STEP, PIECE = 1 << 18, 1 << 22
"""Packed bytes that are looked at and unpacked bytes that are asked for at once."""
DEFLATE_LIMIT = 1032
"""Deflate cannot shrink data by more than this factor."""

HEADER_BYTES, NIFTI_2_BYTES = 348, 540
FIRST_VOXEL = 352
"""Header and the four bytes that announce extensions; ITK takes voxels to begin before, if a header says so."""
_HEADER = np.dtype(
    {
        "names": ["dim", "datatype", "pixdim", "vox_offset", "scl_slope", "scl_inter", "qform_code", "sform_code",
                  "quaternion", "qoffset", "sform", "magic"],
        "formats": ["8i2", "i2", "8f4", "f4", "f4", "f4", "i2", "i2", "3f4", "3f4", "(3,4)f4", "S4"],
        "offsets": [40, 70, 76, 108, 112, 116, 252, 254, 256, 268, 280, 344],
        "itemsize": HEADER_BYTES,
    }
)  # fmt: skip
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_NOT_SCALAR = {32: "complex64", 128: "RGB", 1792: "complex128", 2048: "complex256", 2304: "RGBA"}


class RefusedError(Exception):
    """A file cannot be used: a code of :data:`labelloop.images.scan.REASONS` without its kind, and what was found."""

    def __init__(self, code: str, found: str):
        super().__init__(f"{code}: {found}")
        self.code, self.found = code, found


@dataclass(frozen=True)
class Header:
    """A NIfTI-1 header. ``fields`` are as stored; ``shape`` is (x, y, z)."""

    fields: np.void
    order: Literal["<", ">"]
    shape: tuple[int, int, int]

    @cached_property
    def dtype(self) -> np.dtype:
        """Data type of the voxels, in the file's byte order. Raises RefusedError when they are not numbers."""
        code = int(self.fields["datatype"])
        if code in _NOT_SCALAR:
            raise RefusedError("not_scalar", f"values of type {_NOT_SCALAR[code]}")
        if code not in _TYPES:
            raise RefusedError("not_an_image", f"an unknown data type code, {code}")
        return np.dtype(_TYPES[code]).newbyteorder(self.order)

    @cached_property
    def start(self) -> int:
        """Byte at which the voxels begin. Raises RefusedError when it makes no sense."""
        offset = float(self.fields["vox_offset"])
        if not (FIRST_VOXEL <= offset <= LARGEST_EXTENSION and offset.is_integer()):
            raise RefusedError("corrupt", f"voxels that begin at byte {offset:g}, not at {FIRST_VOXEL} or behind it")
        return int(offset)

    @property
    def scaling(self) -> tuple[float, float]:
        """Slope and intercept; a slope of 0 and what is not finite mean none."""
        slope, intercept = float(self.fields["scl_slope"]), float(self.fields["scl_inter"])
        return (slope, intercept) if np.isfinite([slope, intercept]).all() and slope else (1.0, 0.0)

    @cached_property
    def sform(self) -> np.ndarray:
        """Affine 4 x 4 (RAS) of the sform."""
        return np.vstack([np.asarray(self.fields["sform"], float), [0, 0, 0, 1]])

    @cached_property
    def qform(self) -> np.ndarray:
        """Affine 4 x 4 (RAS) of the qform. Raises RefusedError when its quaternion is none."""
        b, c, d = np.asarray(self.fields["quaternion"], float)
        rest = 1.0 - (b * b + c * c + d * d)
        if not rest >= -QUATERNION_TOLERANCE:
            raise RefusedError("direction_not_orthonormal", f"qform: a quaternion whose square is {1 - rest:.6g}")
        if not np.isfinite(np.asarray(self.fields["qoffset"], float)).all():
            raise RefusedError("direction_not_orthonormal", "a qform that is not finite")
        a = math.sqrt(max(rest, 0.0))
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        sizes = np.asarray(self.fields["pixdim"][1:4], float) * [1, 1, -1 if self.fields["pixdim"][0] < 0 else 1]
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = rotation * sizes, self.fields["qoffset"]
        return affine


def read_header(start: bytes) -> Header:
    """Return the header that a file's first (unpacked) bytes hold.

    Raises:
        RefusedError: when it is none, or not that of one 3-D volume.
    """
    sizes: dict[int, Literal["<", ">"]]
    sizes = {int.from_bytes(start[:4], "little"): "<", int.from_bytes(start[:4], "big"): ">"}
    if NIFTI_2_BYTES in sizes:
        raise RefusedError("nifti_2", "a NIfTI-2 header")
    if HEADER_BYTES not in sizes:
        raise RefusedError("not_an_image", "no NIfTI header at its beginning")
    if len(start) < HEADER_BYTES:
        raise RefusedError("truncated", f"{len(start)} bytes, less than a header")
    order = sizes[HEADER_BYTES]
    fields = np.frombuffer(start, _HEADER.newbyteorder(order), 1)[0]
    if fields["magic"] != b"n+1":
        raise RefusedError("not_an_image", f"a header with the magic {bytes(fields['magic'])!r} instead of b'n+1'")
    axes, *sizes_of = (int(n) for n in fields["dim"])
    if not 1 <= axes <= 7:
        raise RefusedError("not_3d", f"an array of {axes} axes")
    shape = sizes_of[:axes]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    check_shape(shape)
    x, y, z = shape
    return Header(fields, order, (x, y, z))


def check_shape(shape: Sequence[int]) -> None:
    """Raise RefusedError unless ``shape`` is that of a 3-D volume of at most :data:`LARGEST_VOXELS` voxels."""
    size = " x ".join(map(str, shape))
    if len(shape) != 3 or min(shape) < 2:
        raise RefusedError("not_3d", f"an array of size {size}")
    if math.prod(shape) > LARGEST_VOXELS:
        raise RefusedError("too_large", f"an array of size {size}, more than {LARGEST_VOXELS} voxels")


def check_frame(header: Header) -> list[tuple[str, str]]:
    """Check voxel size, sform and qform as they are stored; return warnings (reason code, what was found).

    Raises:
        RefusedError: when voxel size or axes are in doubt.
    """
    spacing = np.asarray(header.fields["pixdim"][1:4], float)
    check_spacing(spacing)
    has_sform, has_qform = header.fields["sform_code"] > 0, header.fields["qform_code"] > 0
    if not has_sform:
        _ = header.qform if has_qform else None
        return [] if has_qform else [("orientation_unknown", "qform_code 0 and sform_code 0")]
    sides = np.linalg.norm(header.sform[:3, :3], axis=0)
    if not np.isfinite(header.sform).all() or not sides.all():
        raise RefusedError("direction_not_orthonormal", "a singular or non-finite sform")
    check_direction(header.sform[:3, :3] / sides)
    if np.abs(sides / spacing - 1).max() > SPACING_TOLERANCE:
        raise RefusedError("spacing_ambiguous", f"pixdim {numbers(spacing)} mm against sform {numbers(sides)} mm")
    if has_qform:
        codes = [_axis_codes(form) for form in (header.qform, header.sform)]
        if codes[0] != codes[1]:
            raise RefusedError("orientation_ambiguous", f"qform says {codes[0]}, sform {codes[1]}")
    return []


def check_placement(header: Header, affine: np.ndarray) -> list[tuple[str, str]]:
    """Return a warning where sform and qform place the corners more than half a voxel apart, and say which is used.

    Args:
        affine: 4 x 4 (RAS) that the scan is read with.
    """
    if not (header.fields["sform_code"] > 0 and header.fields["qform_code"] > 0):
        return []
    corners = np.array([[*c, 1] for c in np.ndindex(2, 2, 2)]) * [*(np.asarray(header.shape) - 1), 1]

    def apart(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max())

    distance = apart(header.qform, header.sform)
    if distance <= 0.5 * float(np.linalg.norm(header.sform[:3, :3], axis=0).min()):
        return []
    used = "sform" if apart(affine, header.sform) <= apart(affine, header.qform) else "qform"
    return [("placement_ambiguous", f"corners of the scan up to {distance:.3g} mm apart; the {used} is used")]


def check_spacing(spacing: np.ndarray) -> None:
    """Raise RefusedError unless all voxel sizes (mm) are positive numbers."""
    if not np.isfinite(spacing).all() or min(spacing) <= 0:
        raise RefusedError("spacing_invalid", f"voxel size {numbers(spacing)} mm in the header")


def check_direction(direction: np.ndarray) -> None:
    """Raise RefusedError unless the columns of a 3 x 3 matrix are at right angles and of length 1."""
    departure = float(np.abs(direction.T @ direction - np.eye(3)).max())
    if not departure <= DIRECTION_TOLERANCE:
        raise RefusedError("direction_not_orthonormal", f"axes that depart from right angles by {departure:.3g}")


def _axis_codes(affine: np.ndarray) -> str:
    import SimpleITK as sitk

    cosines = np.diag([-1, -1, 1]) @ (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(cosines.ravel().tolist())


def numbers(values: Sequence[float] | np.ndarray) -> str:
    """Return numbers as ``1.5 x 1.5 x 3``."""
    return " x ".join(f"{float(v):.4g}" for v in values)


def begin(content: bytes) -> bytes:
    """Return the first unpacked bytes of a file, plain or gzipped: as many as a header has, or fewer.

    Raises:
        RefusedError: when a gzip stream is damaged or ends within its first bytes.
    """
    if not content.startswith(GZIP_START):
        return content[:NIFTI_2_BYTES]
    start = b""
    with _gzip_errors(len(content)):
        for piece in _pieces(content, NIFTI_2_BYTES):
            start += piece
            if len(start) >= NIFTI_2_BYTES:
                break
    return start


def voxels(content: bytes, header: Header) -> np.ndarray:
    """Return the voxels [z, y, x] of a file, plain or gzipped, in the machine's byte order.

    Raises:
        RefusedError: see :func:`unpacked`.
    """
    return unpacked(content, content.startswith(GZIP_START), header.start, header.dtype, header.shape)


def unpacked(
    content: bytes | memoryview, packed: bool, start: int, dtype: np.dtype, shape: tuple[int, int, int]
) -> np.ndarray:
    """Return voxels [z, y, x] in the machine's byte order.

    Unpacked is as much as the header says and not a byte more, whatever the content holds.

    Args:
        packed: whether ``content`` is a stream of gzip or zlib.
        start: byte, of what is unpacked, at which the voxels begin.
        dtype: type of the voxels, in the file's byte order.
        shape: (x, y, z).

    Raises:
        RefusedError: when the content is damaged, or there is less or more of it than the header says.
    """
    size = math.prod(shape) * dtype.itemsize
    end = start + size
    data = _inflated(content, end) if packed else np.frombuffer(content, np.uint8)
    if len(data) < end:
        raise RefusedError("truncated", f"{max(0, len(data) - start)} bytes of voxels instead of {size}")
    if len(data) > end and (len(data) - end > BLOCK_PADDING or data[end:].any()):
        raise RefusedError("corrupt", f"{size} bytes of voxels in the header, and more in the file")
    return np.require(data[start:end].view(dtype).reshape(shape[::-1]), dtype.newbyteorder("="), "A")


def _inflated(content: bytes | memoryview, end: int) -> np.ndarray:
    """Return what a gzip file holds, up to ``end`` bytes and the padding that may follow."""
    if len(content) * DEFLATE_LIMIT < end - HEADER_BYTES:
        raise RefusedError("truncated", f"{len(content)} gzipped bytes cannot hold {end} bytes")
    data, filled = np.empty(end + BLOCK_PADDING + 1, np.uint8), 0
    with _gzip_errors(len(content)):
        for piece in _pieces(content, PIECE):
            taken = min(len(piece), len(data) - filled)
            data[filled : filled + taken] = np.frombuffer(piece, np.uint8, taken)
            filled += taken
            if filled == len(data):
                break
    return data[:filled]


def _pieces(content: bytes | memoryview, largest: int) -> Iterator[bytes]:
    """Yield what a stream of gzip or zlib holds, of one member or several, in pieces of at most ``largest`` bytes.

    ISA-L (package ``isal``) does it 2-3 times as fast, where it is installed. Zeros may follow the last member.

    Raises:
        EOFError: when a member ends early. Exception: that of the library, when the content is damaged.
    """
    try:
        library = importlib.import_module("isal.isal_zlib")
    except ImportError:
        library = zlib
    packed, position = memoryview(content), 0
    kind = GZIP if packed[:2] == GZIP_START else ZLIB
    while position < len(packed):
        decoder = library.decompressobj(kind)
        waiting: bytes | memoryview = b""
        while not decoder.eof:
            if not waiting:
                waiting = packed[position : position + STEP]
                position += len(waiting)
            piece = decoder.decompress(waiting, largest)
            waiting = decoder.unconsumed_tail
            if piece:
                yield piece
            elif not waiting and position == len(packed) and not decoder.eof:
                raise EOFError
        position -= len(decoder.unused_data)
        while position < len(packed) and not packed[position]:
            position += 1


@contextmanager
def _gzip_errors(size: int) -> Iterator[None]:
    """Turn errors of unpacking ``size`` bytes into reasons; each library has errors of its own."""
    try:
        yield
    except (RefusedError, MemoryError):
        raise
    except EOFError as error:
        raise RefusedError("truncated", f"{size} bytes, cut off inside the gzip stream") from error
    except Exception as error:
        raise RefusedError("corrupt", str(error)) from error
