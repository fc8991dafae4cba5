"""NRRD headers (``.nrrd``, ``.nhdr``), looked at before ITK does, which ends the process over some of them.

Format: https://teem.sourceforge.net/nrrd/format.html
"""

import re

from labelloop.detached import LARGEST_HEADER
from labelloop.metaimage import DIMENSIONS, LONGEST_LINE, numbers_of
from labelloop.nifti import RefusedError

LONGEST_WORD = 40
_NUMBER = {"dimension": 1, "space dimension": 1, "line skip": 1, "byte skip": 1, "block size": 1}
_PER_AXIS = ("sizes", "spacings", "thicknesses", "axis mins", "axis maxs")
_WHOLE = ("dimension", "space dimension", "line skip", "byte skip", "block size", "sizes")
_VECTORS = ("space directions", "space origin", "measurement frame")
_WORDS = ("kinds", "centers", "centerings", "labels", "units", "space", "space units", "type", "encoding", "endian")
_FIELD = re.compile(r"([^:]+):(.*)")
_VECTOR = re.compile(r"\([^()]*\)|none")


def check_header(content: bytes) -> None:
    """Refuse a header that is not written as the format asks: fields of numbers, vectors or short words.

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
    start = re.split(rb"\r?\n\r?\n", content[:LARGEST_HEADER], maxsplit=1)[0]
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
