"""NRRD headers (``.nrrd``, ``.nhdr``), looked at before ITK does, which ends the process over some of them.

Format: https://teem.sourceforge.net/nrrd/format.html
"""

import math
import re

import numpy as np

from labelloop.images.detached import LARGEST_HEADER
from labelloop.images.layout import Layout
from labelloop.images.metaimage import DIMENSIONS, LONGEST_LINE, numbers_of
from labelloop.images.nifti import RefusedError, check_spacing

LONGEST_WORD = 40
_NUMBER = {"dimension": 1, "space dimension": 1, "line skip": 1, "byte skip": 1, "block size": 1}
_PER_AXIS = ("sizes", "spacings", "thicknesses", "axis mins", "axis maxs")
_WHOLE = ("dimension", "space dimension", "line skip", "byte skip", "block size", "sizes")
_VECTORS = ("space directions", "space origin", "measurement frame")
_WORDS = ("kinds", "centers", "centerings", "labels", "units", "space", "space units", "type", "encoding", "endian")
_FIELD = re.compile(r"([^:]+):(.*)")
_VECTOR = re.compile(r"\([^()]*\)|none")
_END = re.compile(rb"\r?\n\r?\n")
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_ORIENTED = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las")
"""Spaces that ITK turns to its own; it takes any other for its own without a word."""


def read_layout(content: bytes) -> Layout:
    """Return how the voxels of a file lie, once its header says all that it must.

    Args:
        content: the file from its start.

    Raises:
        RefusedError: naming the field at fault.
    """
    fields = check_header(content)
    encoding, skip = fields.get("encoding", ""), int(float(fields.get("byte skip", 0)))
    if encoding not in ("raw", "gzip", "gz"):
        raise RefusedError("not_an_image", f"encoding: {encoding[:40]}, where raw or gzip is expected")
    if float(fields.get("line skip", 0)) or (skip < 0 and encoding != "raw"):
        raise RefusedError("not_an_image", "lines or bytes of another program in front of the voxels")
    if "sizes" not in fields:
        raise RefusedError("not_an_image", "a header without sizes")
    _check_voxel_size(fields)
    end = _END.search(content[:LARGEST_HEADER])
    oriented = fields.get("space", "").lower() in _ORIENTED and "space directions" in fields
    dtype = _dtype(fields)
    return Layout(
        end.end() if end else len(content),
        dtype,
        packed=encoding != "raw",
        size=math.prod(int(float(n)) for n in fields["sizes"].split()) * dtype.itemsize,
        start=None if skip < 0 else skip,
        oriented=oriented,
    )


def _dtype(fields: dict[str, str]) -> np.dtype:
    """Return the type of a voxel, in the file's byte order."""
    kind, endian = fields.get("type", "").lower(), fields.get("endian", "").lower()
    code = next((code for code, names in _TYPES.items() if kind in names), None)
    if code is None:
        raise RefusedError("not_an_image", f"type: {kind[:40]}, where a type of numbers is expected")
    if endian not in ("little", "big") and np.dtype(code).itemsize > 1:
        raise RefusedError("not_an_image", f"endian: {endian[:40]}, where little or big is expected")
    return np.dtype(code).newbyteorder(">" if endian == "big" else "<")


def _check_voxel_size(fields: dict[str, str]) -> None:
    """Refuse a voxel size that is not there or not positive; ITK would put 1 mm."""
    vectors = [v for v in _VECTOR.findall(fields.get("space directions", "")) if v != "none"]
    sides = [float(np.linalg.norm([float(n) for n in v[1:-1].split(",")])) for v in vectors]
    spacings = fields.get("spacings", "").split()
    sides = sides or [float(side) for side in spacings[-3:]]  # an axis of one volume, in front, has none
    if len(sides) < 3:
        raise RefusedError("spacing_invalid", f"a voxel size of {len(sides)} of 3 axes in the header")
    check_spacing(np.array(sides))


def check_header(content: bytes) -> dict[str, str]:
    """Return the fields of a header, if it is written as the format asks: of numbers, vectors or short words.

    Args:
        content: the file from its start.

    Raises:
        RefusedError: naming the field at fault.
    """
    fields = _fields(content)
    axes = int(numbers_of("dimension", fields.get("dimension", ""), 1, whole=True)[0])
    if axes not in DIMENSIONS:
        raise RefusedError("not_3d", f"dimension: {axes}")
    for name, value in fields.items():
        if name in _NUMBER or name in _PER_AXIS:
            without = value.replace("-1", "0", 1) if name == "byte skip" else value  # from the end of the file
            without = re.sub(r"\bnan\b", "0", without, flags=re.I) if name in _PER_AXIS[1:] else without
            numbers_of(name, without, _NUMBER.get(name, axes), whole=name in _WHOLE)
        elif name in _VECTORS:
            _check_vectors(name, value, axes)
        elif name in _WORDS and any(len(word) > LONGEST_WORD for word in value.split()):
            raise RefusedError("not_an_image", f"{name}: {value[:60]}, where short words are expected")
    return fields


def _check_vectors(name: str, value: str, axes: int) -> None:
    vectors = _VECTOR.findall(value)
    if not 1 <= len(vectors) <= axes or _VECTOR.sub("", value).strip():
        raise RefusedError("not_an_image", f"{name}: {value[:60]}, where vectors are expected")
    for vector in vectors:
        if vector != "none":
            inside = vector[1:-1].split(",")
            numbers_of(name, " ".join(inside), 3, whole=False)


def _fields(content: bytes) -> dict[str, str]:
    """Return the fields of a header; comments and keys of programs' own (``key:=value``) are passed over."""
    start = _END.split(content[:LARGEST_HEADER], maxsplit=1)[0]
    first, *lines = (line.rstrip("\r") for line in start.decode("utf-8", "replace").strip().split("\n"))
    if not re.fullmatch(r"NRRD000\d", first.strip()):
        raise RefusedError("not_an_image", f"{first[:40]!r} at its beginning, not NRRD0004 or the like")
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith("#") or re.match(r"[^:]+:=", line):
            continue
        field = _FIELD.fullmatch(line)
        if field is None or len(line) > LONGEST_LINE or field[1].lower() in fields or not line.isprintable():
            raise RefusedError("not_an_image", f"a header with the line {line[:40]!r}")
        fields[field[1].lower()] = field[2].strip()
    return fields
