"""Lengths of DICOM elements, looked at before GDCM does: it takes as much memory as a header says, up to 4 GiB.

Source: DICOM PS3.5, sections 7.1 (elements), 7.5 (sequences), A.4 (pixel data in fragments).
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PREAMBLE = 132
"""Bytes before the first element where a file begins as PS3.10 asks."""
PIXELS, META, ITEMS, TRANSFER_SYNTAX = (0x7FE0, 0x0010), 0x0002, 0xFFFE, (0x0002, 0x0010)
SHORT = {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
}  # fmt: skip
"""Value representations whose length has two bytes."""
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Value representations whose length has four bytes, two bytes further on."""
UNDEFINED, FIRST_ITEM = 0xFFFFFFFF, b"\xfe\xff\x00\xe0"
LONGEST_UID = 64
IMPLICIT = b"1.2.840.10008.1.2"
"""The transfer syntax without value representations. There, a length may begin with two bytes that look like one."""
OTHERS = (b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99")
"""Transfer syntaxes that are read otherwise, and rare: big endian, deflated."""

Tag = tuple[int, int]


def is_whole(file: Path) -> bool:
    """Say whether no element up to the pixels claims more bytes than the file has."""
    with file.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        for _, length in _elements(handle):
            if length != UNDEFINED and handle.tell() + length > size:
                return False
    return True


def values_of(file: Path, wanted: Tag) -> list[str]:
    """Return the texts of an element of a whole file, wherever it stands before the pixels: in sequences, too."""
    with file.open("rb") as handle:
        return [
            handle.read(length).decode("ascii", "replace").strip("\0 ")
            for tag, length in _elements(handle)
            if tag == wanted and length != UNDEFINED
        ]


def _elements(handle: BinaryIO) -> Iterator[tuple[Tag, int]]:
    """Yield tag and length of each element up to the pixels, those of sequences too; the handle is at its value."""
    begin = handle.read(PREAMBLE)
    handle.seek(PREAMBLE if begin.endswith(b"DICM") else 0)
    implicit = None
    for start in iter(lambda: handle.read(8), b""):
        if len(start) < 8:
            return
        group = int.from_bytes(start[:2], "little")
        if implicit is None and group > META:  # no transfer syntax: the first element of the data set tells
            implicit = start[4:6] not in SHORT | LONG
        tag, length = _element(handle, start, group > META and bool(implicit))
        value = handle.tell()
        yield tag, length
        if tag == PIXELS:
            return
        handle.seek(value)
        if tag == TRANSFER_SYNTAX:
            syntax = handle.read(min(length, LONGEST_UID)).rstrip(b"\0 ")
            if syntax in OTHERS:
                return
            implicit = syntax == IMPLICIT
            handle.seek(value + length)
        else:
            _pass_over(handle, tag, length)


def _element(handle: BinaryIO, start: bytes, implicit: bool) -> tuple[Tag, int]:
    """Return tag and length of an element that begins with eight bytes; read on to where its value begins.

    Where value representations are written, sequences of unknown ones (UN) hold elements without.
    """
    group, element = struct.unpack("<HH", start[:4])
    kind = b"" if implicit or group == ITEMS else start[4:6]
    if kind in SHORT:
        return (group, element), struct.unpack("<H", start[6:])[0]
    if kind not in LONG:
        return (group, element), struct.unpack("<I", start[4:])[0]
    length = handle.read(4)
    return (group, element), struct.unpack("<I", length)[0] if len(length) == 4 else UNDEFINED


def _pass_over(handle: BinaryIO, tag: Tag, length: int) -> None:
    """Go to the next element: the first inside of an item or a sequence, else the one behind."""
    if tag[0] == ITEMS or length == UNDEFINED:
        return
    begin = handle.read(4) if length >= 4 else b""
    handle.seek(-len(begin) if begin == FIRST_ITEM else length - len(begin), os.SEEK_CUR)
