"""Volumes of two files: a header (``.mhd``, ``.nhdr``) that names the file with the voxels.

Whoever asks whether a volume has changed must look at both. No image library is imported: the start of a run asks.
"""

import re
from pathlib import Path

from labelloop.base.files import stamp

HEADERS = (".mhd", ".nhdr")
TEXT_HEADERS = (*HEADERS, ".mha", ".nrrd")
"""Formats whose header can name another file, though that of the last two usually does not."""
LARGEST_HEADER = 1 << 16
_DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", re.MULTILINE | re.IGNORECASE)


def parts(path: str | Path) -> list[Path]:
    """Return the files of a volume, header first; a volume of one file, or a header that names none, is alone.

    Raises:
        ValueError: when a header names several files, or one that is not in its folder.
        OSError: when the header cannot be read.
    """
    path = Path(path)
    if not path.name.endswith(TEXT_HEADERS):
        return [path]
    with path.open("rb") as handle:
        header = re.split(rb"\r?\n\r?\n", handle.read(LARGEST_HEADER), maxsplit=1)[0]  # where that of an NRRD ends
    found = _DATA_FILE.search(header)
    name = found[1].decode("utf-8", "surrogateescape") if found else "LOCAL"
    if name.upper() == "LOCAL":
        return [path]
    if name.upper().startswith("LIST") or "%" in name:
        raise ValueError(f"voxels in several files ({name[:40]!r})")
    data = Path(name)
    if data.is_absolute() or ".." in data.parts:
        raise ValueError(f"voxels in a file outside of its folder ({name[:80]!r})")
    return [path, path.parent / data]


def known_parts(path: str | Path) -> list[Path]:
    """Return :func:`parts`, or the file alone where its header cannot be read: whoever reads it will say why."""
    try:
        return parts(path)
    except (OSError, ValueError):
        return [Path(path)]


def stamps(path: str | Path) -> list[list[int] | None]:
    """Return size (bytes) and modification time (ns) of each file of a volume; None for one that is not there."""
    return [stamp(part) for part in known_parts(path)]
