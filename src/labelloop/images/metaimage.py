"""MetaImage headers (``.mha``, ``.mhd``), looked at before ITK does, which ends the process over some of them.

Format: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

import math

import numpy as np

from labelloop.images.detached import LARGEST_HEADER
from labelloop.images.layout import Layout
from labelloop.images.nifti import RefusedError, check_shape, check_spacing

LONGEST_NAME, LONGEST_LINE = 80, 1000
DIMENSIONS = (3, 4)
_PER_AXIS = ("DimSize", "ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "CenterOfRotation")
_PER_PAIR = ("TransformMatrix", "Rotation", "Orientation")
_SIZES = ("ElementNumberOfChannels", "CompressedDataSize", "HeaderSize")
_SPACING = ("ElementSpacing", "ElementSize", "spacings")
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip


def read_layout(content: bytes, size: int) -> Layout:
    """Return how the voxels of a file lie, once its header says all that it must.

    Args:
        content: the file from its start.
        size: bytes of header and voxels together.

    Raises:
        RefusedError: naming the field at fault.
    """
    fields, length = _fields(content[:LARGEST_HEADER])
    axes = numbers_of("NDims", fields.get("NDims", ""), 1, whole=True)[0]
    if axes not in DIMENSIONS:
        raise RefusedError("not_3d", f"NDims = {axes:g}")
    for names, count in ((_PER_AXIS, axes), (_PER_PAIR, axes**2), (_SIZES, 1)):
        for name in names:
            if name in fields:
                numbers_of(name, fields[name], int(count), whole=name == "DimSize" or name in _SIZES)
    if "DimSize" not in fields:
        raise RefusedError("not_an_image", "a header without DimSize")
    shape = [int(float(n)) for n in fields["DimSize"].split()]
    check_shape(shape[:3] if shape[3:] == [1] else shape)
    _check_voxel_size(fields)
    dtype = _dtype(fields)
    channels = int(float(fields.get("ElementNumberOfChannels", 1)))
    layout = Layout(
        length,
        dtype,
        packed=_says(fields, "CompressedData"),
        size=math.prod(shape) * channels * dtype.itemsize,
        start=int(float(fields.get("HeaderSize", 0))),
        oriented=any(name in fields for name in _PER_PAIR),
    )
    _check_size(fields, layout, size - length)
    return layout


def _says(fields: dict[str, str], name: str) -> bool:
    """Say whether a field is true; MetaIO looks at its first letter."""
    return fields.get(name, "")[:1].lower() in ("t", "1")


def _dtype(fields: dict[str, str]) -> np.dtype:
    """Return the type of a voxel, in the file's byte order."""
    kind = fields.get("ElementType", "")
    if kind not in _TYPES:
        raise RefusedError("not_an_image", f"ElementType = {kind[:40]}, where one of {', '.join(_TYPES)} is expected")
    if not _says(fields, "BinaryData"):
        raise RefusedError("not_an_image", "voxels that are written as text, without BinaryData = True")
    big = _says(fields, "BinaryDataByteOrderMSB") or _says(fields, "ElementByteOrderMSB")
    return np.dtype(_TYPES[kind]).newbyteorder(">" if big else "<")


def _check_voxel_size(fields: dict[str, str]) -> None:
    """Refuse a voxel size that is not there or not positive; ITK would put 1 mm or drop the sign."""
    given = fields.get("ElementSpacing", fields.get("ElementSize"))
    if given is None:
        raise RefusedError("spacing_invalid", "a header without ElementSpacing")
    check_spacing(np.array([float(side) for side in given.split()]))


def _check_size(fields: dict[str, str], layout: Layout, found: int) -> None:
    """Refuse a file that holds fewer bytes behind its header than the header says."""
    expected = int(float(fields.get("CompressedDataSize", 0))) if layout.packed else (layout.start or 0) + layout.size
    if found < expected:
        raise RefusedError("truncated", f"{found} bytes of voxels instead of {expected}")


def _fields(start: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header, and its length in bytes."""
    fields: dict[str, str] = {}
    length = 0
    for line in start.split(b"\n"):
        length += len(line) + 1
        name, equal, value = (part.strip() for part in line.decode("utf-8", "replace").partition("="))
        if length > len(start) and "NDims" in fields and name != "ElementDataFile":
            raise RefusedError("truncated", f"{len(start)} bytes, which end within the header")
        if not equal or len(name) > LONGEST_NAME or len(line) > LONGEST_LINE or name in fields:
            raise RefusedError("not_an_image", f"a header with the line {line[:40]!r}")
        fields[name] = value
        if name == "ElementDataFile":
            return fields, min(length, len(start))
    raise RefusedError("not_an_image", "a header without ElementDataFile")


def numbers_of(name: str, value: str, count: int, whole: bool) -> list[float]:
    """Return the numbers that a field of a header holds. Raises RefusedError unless it holds as many as ``count``."""
    try:
        numbers = [float(part) for part in value.split()]
    except ValueError:
        numbers = []
    odd = [n for n in numbers if not math.isfinite(n) or (whole and not (n >= 0 and n.is_integer()))]
    if len(numbers) != count or odd:
        code = "spacing_invalid" if name in _SPACING else "not_an_image"
        kind = "whole numbers" if whole else "numbers"
        raise RefusedError(code, f"{name} = {value[:60]}, where {count} {kind} are expected")
    return numbers
