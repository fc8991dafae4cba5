"""The images to segment: find them, and read each file once for both its hash and its voxels."""

import gzip
import hashlib
import importlib
import logging
import math
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelloop.errors import CaseError, UserError
from labelloop.files import sha256
from labelloop.inference.dicom import (
    LEAST_SLICES,
    fingerprint,
    folders_with_images,
    number_of,
    read_dicom,
    read_header,
    read_series,
)  # fmt: skip
from labelloop.listing import (
    CHANNEL,
    FORMAT,
    LABEL,
    NAME,
    SUBFOLDER,
    LeftOut,
    image_cases,
    is_dicom,
    is_utf8,
    list_folder,
    nothing_in,
    stem,
    tell_left_out,
)  # fmt: skip
from labelloop.volume import Volume, blame_machine, read, read_geometry
from labelloop.wording import count, named, shown

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


def find_cases(inputs: Path, modality: str = "CT", series: str = "", lost: list[LeftOut] | None = None) -> list[Case]:
    """Return the cases of a file, or of a folder: its files, and DICOM folders at any depth; say what is left out.

    Where a folder holds both ``NAME`` and ``NAME_0000``, the latter is the image (nnU-Net's and FLARE's naming) and
    the former, usually its label, is left out. A DICOM folder goes by the names of the folders that lead to it.

    Args:
        series: number or UID of the DICOM series to take, where folders hold several.
        lost: gets what is named like an image and cannot be read.

    Raises:
        UserError: when there is nothing to segment, or two inputs would give the same case.
    """
    inputs = Path(inputs)
    if inputs.is_file():
        return [Case(case_name(inputs), _checked(inputs), modality)]
    if not inputs.is_dir():
        link = ", but a dead link" if inputs.is_symlink() else ""
        raise UserError(f"{shown(inputs)}: no such file or folder{link}")
    listing = list_folder(inputs)
    labels = [name for name in listing.volumes if f"{name}{CHANNEL}" in listing.volumes]
    listing = listing.without(labels, LABEL)
    files = image_cases(listing, labels)
    left_out = [entry for entry in listing.left_out if entry.reason not in (SUBFOLDER, FORMAT)]
    folders = list(folders_with_images(inputs, left_out))
    if not files and not folders:
        raise UserError(nothing_in(listing, "image, and no DICOM series at any depth; looked for"))
    cases = [Case(case, path, modality) for case, path in files.items()]
    cases += [Case(name, folder, modality, series=series) for name, folder in _named(folders, inputs, series)]
    left_out += [entry for entry in listing.left_out if _unused(entry, folders)]
    log.info("%s: %s", shown(inputs), count(len(cases), "image"))
    tell_left_out(left_out, inputs)
    if lost is not None:
        lost += [entry for entry in left_out if entry.lost]
    doubled = sorted(name for name, number in Counter(case.case for case in cases).items() if number > 1)
    if doubled:
        raise UserError(f"{inputs}: several inputs for {named(doubled)}; rename them or move them apart")
    return cases


def _checked(file: Path) -> Path:
    """Refuse a single file that is a slice of many, or that ITK cannot be given."""
    if not is_utf8(file):
        raise UserError(f"{shown(file)}: {NAME}")
    alone = read_header(file) if is_dicom(file) else None
    slices = read_series(file.absolute().parent).get(alone.series, []) if alone else []
    if len(slices) > 1:
        raise UserError(
            f"{shown(file)}: one of {len(slices)} slices of a DICOM series; give its folder {shown(file.parent)}"
            f" (and --series {alone.series} where it holds several)"
        )
    if alone and (alone.size[2] if len(alone.size) > 2 else 1) < LEAST_SLICES:
        raise UserError(f"{shown(file)}: a single DICOM slice; give the folder with the whole series")
    return file


def _named(folders: Sequence[Path], inputs: Path, series: str) -> Iterator[tuple[str, Path]]:
    """Yield the DICOM folders to take with the names of their cases.

    Raises:
        UserError: when no folder holds the ``series``, or several have one of that number.
    """
    numbers = {folder: number_of(folder, series) if series else None for folder in folders}
    if series:
        folders = [folder for folder in folders if numbers[folder]]
        if len(folders) != 1:
            raise UserError(
                f"{shown(inputs)}: --series {series} is in {len(folders)} folders; give the folder of the series, or a "
                "UID that stands in one"
            )
    for folder in folders:
        parts = folder.relative_to(inputs).parts or (case_name(folder),)
        yield "_".join(parts) + (f"_series{numbers[folder]}" if series else ""), folder


def _unused(entry: LeftOut, folders: Sequence[Path]) -> bool:
    """Say whether an entry of the folder that is no volume is no DICOM either."""
    if entry.reason == SUBFOLDER:
        return not any(folder.is_relative_to(entry.path) for folder in folders)
    return entry.reason == FORMAT and entry.path.parent not in folders


def case_name(path: Path) -> str:
    """Return the name of a file without suffix and channel number, or the name of a folder."""
    path = Path(path) if Path(path).name else Path(path).resolve()
    return path.name if path.is_dir() else stem(path).removesuffix(CHANNEL)
