"""MetaImage headers (``.mha``, ``.mhd``), looked at before ITK does, which ends the process over some of them.

Format: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

import math

from labelloop.detached import LARGEST_HEADER
from labelloop.nifti import RefusedError, check_shape

LONGEST_NAME, LONGEST_LINE = 80, 1000
DIMENSIONS = (3, 4)
_PER_AXIS = ("DimSize", "ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "CenterOfRotation")
_PER_PAIR = ("TransformMatrix", "Rotation", "Orientation")
_SIZES = ("ElementNumberOfChannels", "CompressedDataSize", "HeaderSize")
_SPACING = ("ElementSpacing", "ElementSize", "spacings")
_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4,
    "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
"""Bytes of a number of each type."""


def check_header(content: bytes, size: int) -> None:
    """Refuse a header whose fields do not hold the numbers that its number of axes asks for.

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
    _check_size(fields, shape, size - length)


def _check_size(fields: dict[str, str], shape: list[int], found: int) -> None:
    """Refuse a file that holds fewer bytes behind its header than the header says, which ITK tells in odd words."""
    expected, packed = float(fields.get("CompressedDataSize", 0)), fields.get("CompressedData", "").lower() == "true"
    if not packed and fields.get("HeaderSize", "0") == "0":
        channels = float(fields.get("ElementNumberOfChannels", 1))
        expected = math.prod(shape) * channels * _BYTES.get(fields.get("ElementType", "").upper(), 0)
    if found < expected:
        raise RefusedError("truncated", f"{found} bytes of voxels instead of {expected:.0f}")


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
