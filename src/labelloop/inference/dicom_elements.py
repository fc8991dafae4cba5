"""Lengths of DICOM elements, looked at before GDCM does: it takes as much memory as a header says, up to 4 GiB.

Source: DICOM PS3.5, sections 7.1 (elements), 7.5 (sequences), A.4 (pixel data in fragments).
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

PREAMBLE = 132
"""Bytes before the first element where a file begins as PS3.10 asks."""
PIXELS, ITEMS, TRANSFER_SYNTAX = (0x7FE0, 0x0010), 0xFFFE, (0x0002, 0x0010)
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Value representations whose length has four bytes, two bytes further on."""
UNDEFINED, FIRST_ITEM = 0xFFFFFFFF, b"\xfe\xff\x00\xe0"
OTHERS = (b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99")
"""Transfer syntaxes that are read otherwise, and rare: big endian, deflated."""


def is_whole(file: Path) -> bool:
    """Say whether no element up to the pixels claims more bytes than the file has."""
    with file.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        begin = handle.read(PREAMBLE)
        handle.seek(PREAMBLE if begin.endswith(b"DICM") else 0)
        for start in iter(lambda: handle.read(8), b""):
            if len(start) < 8:
                return True
            tag, length = _element(handle, start)
            if length == UNDEFINED:
                if tag == PIXELS:
                    return True
                continue
            if handle.tell() + length > size:
                return False
            if tag == PIXELS or (tag == TRANSFER_SYNTAX and handle.read(length).rstrip(b"\0 ") in OTHERS):
                return True
            if tag != TRANSFER_SYNTAX:
                _pass_over(handle, tag, length)
    return True


def _element(handle: BinaryIO, start: bytes) -> tuple[tuple[int, int], int]:
    """Return tag and length of an element that begins with eight bytes; read on to where its value begins."""
    group, element = struct.unpack("<HH", start[:4])
    kind = start[4:6]
    if group == ITEMS or not (kind.isalpha() and kind.isupper()):
        return (group, element), struct.unpack("<I", start[4:])[0]
    if kind not in LONG:
        return (group, element), struct.unpack("<H", start[6:])[0]
    length = handle.read(4)
    return (group, element), struct.unpack("<I", length)[0] if len(length) == 4 else UNDEFINED


def _pass_over(handle: BinaryIO, tag: tuple[int, int], length: int) -> None:
    """Go to the next element: the first inside of an item or a sequence, else the one behind."""
    if tag[0] == ITEMS:
        return
    begin = handle.read(4) if length >= 4 else b""
    handle.seek(-len(begin) if begin == FIRST_ITEM else length - len(begin), os.SEEK_CUR)


def values_of(file: Path, wanted: tuple[int, int]) -> list[str]:
    """Return the texts of an element of a whole file, wherever it stands before the pixels: in sequences, too."""
    found = []
    with file.open("rb") as handle:
        begin = handle.read(PREAMBLE)
        handle.seek(PREAMBLE if begin.endswith(b"DICM") else 0)
        for start in iter(lambda: handle.read(8), b""):
            if len(start) < 8:
                break
            tag, length = _element(handle, start)
            if tag == PIXELS:
                break
            if length == UNDEFINED:
                continue
            if tag == wanted:
                found.append(handle.read(length).decode("ascii", "replace").strip("\0 "))
            else:
                _pass_over(handle, tag, length)
    return found
