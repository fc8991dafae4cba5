"""The images to segment: each file is read once for both its hash and its voxels."""

import gzip
import hashlib
import importlib
import logging
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelloop.errors import CaseError
from labelloop.files import sha256
from labelloop.inference.dicom import fingerprint, read_dicom
from labelloop.volume import Volume, blame_machine, read, read_geometry

log = logging.getLogger(__name__)
GZIP = 31
"""zlib's code for a gzip stream of any window size."""
GZIP_START = b"\x1f\x8b"
DEFLATE_LIMIT = 1032
"""Deflate cannot shrink data by more than this factor."""
HEADER, HEADER_SAYS = 352, 348
NIFTI_INTEGERS = {2: "u1", 4: "<i2", 8: "<i4", 256: "i1", 512: "<u2", 768: "<u4"}


@dataclass(frozen=True)
class Case:
    """An image to segment. ``image`` is a file, or a folder with a DICOM series.

    ``series``: number or UID of the series to take of a folder; empty: the only one.
    ``upside_down``: whether it is stored so; None: nobody knows, and models that want upright images let CT, and MR
    of a ``sequence`` that can tell, be judged.
    """

    case: str
    image: Path
    modality: str = "CT"
    image_sha256: str = ""
    upside_down: bool | None = None
    sequence: str = ""
    series: str = ""


class Image:
    """An image file, or a folder with a DICOM series. A gzipped NIfTI file is read from disk once."""

    def __init__(self, path: str | Path, series: str = ""):
        self.path = Path(path)
        self._series = series
        self._content: bytes | None = None

    @property
    def _gzipped(self) -> bool:
        return self.path.name.lower().endswith(".nii.gz") and self.path.is_file()

    def sha256(self) -> str:
        """Return the sha256 of the file, or a fingerprint of the series of a folder."""
        if self._gzipped:
            return hashlib.sha256(self._bytes()).hexdigest()
        if self.path.is_dir():
            return fingerprint(self.path, self._series)
        return sha256(self.path)

    def volume(self) -> Volume:
        """Return the volume. Forgets the bytes, so that it can be asked for once.

        Raises:
            CaseError: when the file, or what is in it, is no 3-D image.
            OSError, MemoryError: when the disk or memory is at fault.
        """
        content = self._bytes() if self._gzipped else None
        self._content = None
        try:
            volume = decode_nifti(content, self.path) if content is not None else None
            return volume or read_image(self.path, self._series)
        except RuntimeError as error:  # ITK's only one; its last line says what happened
            blame_machine(self.path, error)
            found = str(error).strip().splitlines()[-1]
            raise CaseError("image_unreadable", str(self.path), found, "Copy or export it again.") from error

    def _bytes(self) -> bytes:
        if self._content is None:
            self._content = self.path.read_bytes()
        return self._content


def gunzip(content: bytes) -> bytes:
    """Decompress a gzip file of one member, with ISA-L (package ``isal``, 2-3 times as fast) where it is installed.

    Raises:
        Exception: that of the library, when the content is damaged.
    """
    try:
        library = importlib.import_module("isal.isal_zlib")
    except ImportError:
        library = zlib
    size = int.from_bytes(content[-4:], "little")  # of the last member, modulo 2**32
    return library.decompress(content, GZIP, max(1, min(size, DEFLATE_LIMIT * len(content))))


def decode_nifti(content: bytes, path: Path) -> Volume | None:
    """Return the volume of a gzipped NIfTI file of integers, without a second copy of it.

    None when the file is in any way unusual: then ITK must read it. The geometry is ITK's in any case.

    Raises:
        CaseError: when the file is damaged or ends early. ITK would silently fill what is missing with zeros.
        RuntimeError: when ITK does not take its geometry.
    """
    if not content.startswith(GZIP_START):
        return None
    try:
        raw = gunzip(content)
        if len(raw) < HEADER or struct.unpack_from("<i", raw)[0] != HEADER_SAYS or raw[344:348] != b"n+1\0":
            return None
        axes, *size = struct.unpack_from("<8h", raw, 40)
        code, bits = struct.unpack_from("<2h", raw, 70)
        offset, slope, shift = struct.unpack_from("<3f", raw, 108)
        stored = math.prod(max(1, n) for n in size) * bits // 8
        if math.isfinite(offset) and len(raw) < offset + stored:
            raw = gzip.decompress(content)  # of several members
            if len(raw) < offset + stored:
                raise EOFError(f"{len(raw)} bytes instead of {offset + stored:.0f}")
    except MemoryError:
        raise
    except Exception as error:  # each library has errors of its own
        raise CaseError("image_corrupt", str(path), str(error), "Copy or download it again.") from error
    plain = axes == 3 and code in NIFTI_INTEGERS and slope in (0, 1) and shift == 0 and offset >= HEADER
    geometry = read_geometry(path) if plain else None
    if geometry is None or geometry.shape != (size[2], size[1], size[0]):
        return None
    dtype = np.dtype(NIFTI_INTEGERS[code])
    return Volume(np.frombuffer(raw, dtype, math.prod(geometry.shape), int(offset)).reshape(geometry.shape), geometry)


def read_image(path: Path, series: str = "") -> Volume:
    """Read a 3-D image from a file or from a folder with a DICOM series.

    Args:
        series: number or UID of the series to take of a folder; empty: the only one.

    Raises:
        CaseError: when the image is not 3-D, or the folder does not hold a series that is a volume.
    """
    volume = read_dicom(path, series) if path.is_dir() else read(path)
    if volume.array.ndim != 3 or not volume.array.size:
        raise CaseError("image_not_3d", str(path), f"array of shape {volume.array.shape}", "Give one 3-D image.")
    return volume
