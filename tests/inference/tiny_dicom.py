"""DICOM files byte by byte: every header that a scanner or a PACS may write, whether or not it makes sense."""

import struct
from pathlib import Path

import numpy as np

CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
SHAPE = (30, 16, 20)
"""Shape (z, y, x) of every volume."""


def _element(group: int, element: int, kind: str, value: str | bytes, implicit: bool = False) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    raw += (b"\0" if kind in ("UI", "OB", "OW") else b" ") * (len(raw) % 2)
    if implicit:
        return struct.pack("<HHI", group, element, len(raw)) + raw
    long = kind in ("OB", "OW", "UN")
    length = b"\0\0" + struct.pack("<I", len(raw)) if long else struct.pack("<H", len(raw))
    return struct.pack("<HH", group, element) + kind.encode() + length + raw


def _short(number: int) -> bytes:
    return struct.pack("<H", number)


def write_slice(path: Path, hu: np.ndarray, position, number: int, **other) -> Path:
    """Write one slice [y, x] of HU. ``other``: orientation, spacing, thickness, series, description, kind,
    implicit (no value representations), meta (whether the file begins as PS3.10 asks), more."""
    given = {"orientation": (1, 0, 0, 0, 1, 0), "spacing": 4.0, "thickness": 5.0, "series": "1.2.3.5",
             "description": "", "kind": "ORIGINAL\\PRIMARY\\AXIAL", "modality": "CT",
             "implicit": False, "meta": True, "more": {}} | other  # fmt: skip
    instance = f"{given['series']}.{number}"
    tags = {
        (8, 8): ("CS", given["kind"]), (8, 0x16): ("UI", CT_STORAGE), (8, 0x18): ("UI", instance),
        (8, 0x60): ("CS", given["modality"]), (8, 0x103E): ("LO", given["description"]), (0x10, 0x10): ("PN", "Doe^J"),
        (0x18, 0x50): ("DS", f"{given['thickness']:g}"), (0x20, 0xD): ("UI", "1.2.3"),
        (0x20, 0xE): ("UI", given["series"]), (0x20, 0x13): ("IS", str(number)),
        (0x20, 0x32): ("DS", "\\".join(f"{v:.4f}" for v in position)),
        (0x20, 0x37): ("DS", "\\".join(f"{v:.6f}" for v in given["orientation"])),
        (0x28, 2): ("US", _short(1)), (0x28, 4): ("CS", "MONOCHROME2"), (0x28, 0x10): ("US", _short(hu.shape[0])),
        (0x28, 0x11): ("US", _short(hu.shape[1])), (0x28, 0x30): ("DS", f"{given['spacing']:g}\\{given['spacing']:g}"),
        (0x28, 0x100): ("US", _short(16)), (0x28, 0x101): ("US", _short(16)), (0x28, 0x102): ("US", _short(15)),
        (0x28, 0x103): ("US", _short(1)), (0x28, 0x1052): ("DS", "-1024"), (0x28, 0x1053): ("DS", "1"),
        (0x7FE0, 0x10): ("OW", (hu + 1024).astype("<i2").tobytes()), **given["more"],
    }  # fmt: skip
    body = b"".join(_element(*tag, *value, given["implicit"]) for tag, value in sorted(tags.items()))
    syntax = "1.2.840.10008.1.2" if given["implicit"] else "1.2.840.10008.1.2.1"
    meta = b"".join(
        _element(2, tag, kind, value)
        for tag, kind, value in ((1, "OB", b"\0\1"), (2, "UI", CT_STORAGE), (3, "UI", instance),
                                 (16, "UI", syntax), (18, "UI", "1.2.9.9"))
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = b"\0" * 128 + b"DICM" + _element(2, 0, "UL", struct.pack("<I", len(meta))) + meta
    path.write_bytes(begin + body if given["meta"] else body)
    return path


def body_hu(soft_tissue: float = 40, slices: int = SHAPE[0]) -> np.ndarray:
    """Return a cone of soft tissue in air [z, y, x]: neighbors are more alike than slices farther apart."""
    z, y, x = np.ogrid[:slices, : SHAPE[1], : SHAPE[2]]
    inside = ((y - 8) / 6) ** 2 + ((x - 10) / 8) ** 2 < 1 - 0.6 * z / slices
    return np.where(inside, soft_tissue, -1000)


def write_series(
    folder: Path, hu: np.ndarray | None = None, *, start: int = 0, step: float = 5, first: float = -300, **other
) -> Path:
    """Write a series of slices stacked along z; ``start`` counts before the first instance number."""
    hu = body_hu() if hu is None else hu
    for k, plane in enumerate(hu):
        name = f"{other.get('series', '1.2.3.5')}_{start + k:03d}.dcm"
        write_slice(folder / name, plane, (-90, -60, first + step * k), start + k + 1, **other)
    return folder
