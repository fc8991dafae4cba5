"""Scans: one image or label file from outside, read whole, with every reason not to trust it. The one door to them.

What the survey refuses here can be neither segmented, scored, checked nor learned from. :func:`read_image` and
:func:`read_label` are for whoever wants voxels, :func:`read_scan` for whoever wants to know more of the file. Label
maps that labelloop wrote itself are read with :func:`labelloop.images.volume.read`.
"""

import hashlib
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from labelloop.base.classes import BACKGROUND, ClassScheme
from labelloop.base.errors import CaseError
from labelloop.base.files import digest
from labelloop.images import metaimage, nifti, nrrd
from labelloop.images.datasets import REASONS as LABEL_REASONS
from labelloop.images.datasets import Dataset, whole_ids
from labelloop.images.detached import LARGEST_HEADER, parts
from labelloop.images.hounsfield import misplaced_fat, not_hu
from labelloop.images.layout import Layout
from labelloop.images.listing import CAPITALS, DEAD_LINK, EXTENSIONS, FOLDER, extension
from labelloop.images.nifti import RefusedError
from labelloop.images.volume import RAS, Geometry, Volume, blame_machine, geometry_of, itk_name, read_geometry

log = logging.getLogger(__name__)

PLAUSIBLE_SPACING_MM = (0.1, 20.0)
PLAUSIBLE_EXTENT_MM = (10.0, 2500.0)
"""The longest side of a scan of a patient, in mm. What is outside has lost its unit, or is no scan."""

LARGE, MOST_LONGER = 1 << 28, 1.01
"""Bytes of a file from which its header is asked first, and how many times as long as it says a file may be: packing
adds little to what cannot be packed."""

_FILE_REASONS = {
    "missing": "There is no such file: correct the path, in the case table too, or restore the file.",
    "unreadable": "The file cannot be read: check the permissions, or write it anew with the tool it came from.",
    "file_empty": "The file has no content: copy or download it again.",
    "truncated": "The file ends early: copy or download it again.",
    "corrupt": "The content is damaged or is not what the header says: copy or download it again.",
    "not_an_image": "Convert it to one NIfTI, NRRD or MHA file a volume.",
    "nifti_2": "Write it as NIfTI-1 (.nii.gz), which ITK and labelloop read.",
    "parts": "Write header and voxels as one file (NIfTI, NRRD, MHA), or both into one folder.",
    "not_3d": "Give one 3-D volume a case; make each volume of a series a case of its own.",
    "too_large": "No scan of a patient has so many voxels: correct the header, or crop or resample the scan.",
    "not_scalar": "Give one number a voxel, not colors, vectors or complex numbers.",
    "spacing_invalid": "Write the true voxel size (mm) into the header; ITK would silently put 1 mm or drop the sign.",
    "spacing_ambiguous": "pixdim and sform give different voxel sizes: find out which is true and write both alike.",
    "spacing_implausible": "Check the unit of the voxel size; it is read as mm.",
    "extent_implausible": "No scan of a patient is so large or so small: write the voxel size in mm into the header.",
    "direction_not_orthonormal": "The axes are sheared (gantry tilt?) or singular: resample the scan to a right-angled "
    "grid.",
    "orientation_ambiguous": "qform and sform disagree on the axes, so left cannot be told from right: find out which "
    "is true and write both alike.",
    "placement_ambiguous": "qform and sform place the scan differently. One is used everywhere, the one that ITK "
    "takes: sform where its code is 1 (scanner), else qform; other tools may take the other. Write both alike.",
    "orientation_unknown": "The header does not say which way the axes run (in NIfTI, qform and sform codes of 0; in "
    "NRRD, no space), so left cannot be told from right: check the scan once and write it.",
}
REASONS = {
    **{f"image_{code}": action for code, action in _FILE_REASONS.items()},
    **{f"label_{code}": action for code, action in _FILE_REASONS.items()},
    **LABEL_REASONS,
    "image_not_finite": "Replace NaN and infinite values, e.g. by the value of air, in the tool the scan came from.",
    "image_constant": "Every voxel has the same value: export the scan again. Of several channels, the first is what "
    "rules, pictures and people see of a case.",
    "channel_constant": "Every voxel has the same value, so a network sees nothing there: right where nothing was to "
    "be seen, as in a PET without uptake; else export this channel again.",
    "image_not_hu": "A CT must be in Hounsfield units: export it with rescale slope and intercept, unwindowed; or, if "
    "it is an MR, set the modality.",
    "image_hu_doubtful": "Its Hounsfield units may be shifted or scaled: look at the values of air (-1000) and fat "
    "(-100) in a viewer, and at rescale slope and intercept in the headers.",
    **dict.fromkeys(
        (f"channel_{what}_differs" for what in ("size", "spacing", "direction", "origin")),
        "All channels of a case lie on the grid of the first: resample this one to it, e.g. with SimpleITK's Resample, "
        "once you have seen that both show the same place in the patient.",
    ),
    "label_size_differs": "Write the label on the image's grid.",
    "label_spacing_differs": "Write the label on the image's grid.",
    "label_direction_differs": "Write the label on the image's grid; a flipped axis swaps left and right.",
    "label_origin_differs": "Write the label on the image's grid.",
}
"""What to do about each reason code of this module."""


def _error(code: str, file: str | Path, found: str) -> CaseError:
    return CaseError(code, str(file), found, REASONS[code])


@dataclass(frozen=True)
class Scan:
    """One file as read: where its grid lies, its stored values [z, y, x], and how to scale them.

    ``warnings`` are (reason code, what was found).
    """

    file: str
    geometry: Geometry
    stored: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0
    warnings: tuple[tuple[str, str], ...] = ()

    def values(self) -> np.ndarray:
        """Return the values: as stored or, where they are scaled, as float32 (of float64: float64), as ITK does."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return self.stored
        scaled = np.empty(self.stored.shape, np.float64 if self.stored.dtype == np.float64 else np.float32)
        with np.errstate(over="ignore"):  # infinite values are refused
            for plane, result in zip(self.stored, scaled, strict=True):
                result[...] = plane.astype(np.float64) * self.slope + self.intercept
        return scaled

    def range(self) -> tuple[float, float]:
        """Return smallest and largest value; NaN when any value is NaN."""
        ends = [float(v) * self.slope + self.intercept for v in (self.stored.min(), self.stored.max())]
        return min(ends), max(ends)

    def volume(self) -> Volume:
        """Return the values and their geometry."""
        return Volume(self.values(), self.geometry)


class ScanFile:
    """A file with one volume, read from disk once.

    Args:
        kind: image or label, which begins the reason codes.
        surveyed: whether the survey found it good. That it is away now may pass, and is an OSError; of any other file
            it is a fault.
    """

    def __init__(self, path: str | Path, kind: str, surveyed: bool = False):
        self.path, self.kind, self._surveyed = Path(path), kind, surveyed
        self._content: list[bytes] | None = None

    def sha256(self) -> str:
        """Return the sha256 of the file: of header and voxels, where they are two files.

        Raises:
            CaseError: ``<kind>_missing``, ``<kind>_unreadable``, or ``<kind>_parts`` when a header's voxels are not in
                one file beside it.
            OSError: when the disk is at fault.
        """
        fingerprint = hashlib.sha256()
        for part in self._parts():
            fingerprint.update(part)
        return fingerprint.hexdigest()

    def scan(self) -> Scan:
        """Return what is in the file, checked. Forgets its bytes, so that it can be asked for once.

        Raises:
            CaseError: ``<kind>_missing``, ``<kind>_truncated`` and the other codes of :data:`REASONS`.
            OSError, MemoryError: when the disk or memory is at fault; that says nothing of the file.
        """
        name = self.path.name
        if not name.endswith(EXTENSIONS):
            found = CAPITALS if extension(name) else f"a file name that ends in none of {EXTENSIONS}"
            raise _error(f"{self.kind}_not_an_image", self.path, found)
        content, self._content = self._parts(), None
        if not all(content):
            raise _error(f"{self.kind}_file_empty", self.path, "0 bytes")
        with self._reasons():
            if name.endswith((".nii", ".nii.gz")):
                return _read_nifti(self.path, content[0], self.kind)
            return _read_text(self.path, content, self.kind)

    def geometry(self) -> Geometry:
        """Return the grid that the header tells; the voxels are not looked at.

        Raises:
            CaseError: as :meth:`scan`, for what is wrong with the header.
            OSError, MemoryError: when the disk or memory is at fault.
        """
        with self._reasons():
            self._promised(self._files())
            geometry = in_itk(self.path, self.kind, lambda: read_geometry(self.path))
            nifti.check_shape(geometry.size)
        return geometry

    @contextmanager
    def _reasons(self) -> Iterator[None]:
        """Turn what is wrong with the file into reason codes."""
        try:
            yield
        except RefusedError as error:
            raise _error(f"{self.kind}_{error.code}", self.path, error.found) from error
        except PermissionError as error:
            raise _error(f"{self.kind}_unreadable", self.path, str(error)) from error

    def _parts(self) -> list[bytes]:
        if self._content is None:
            with self._reasons():
                files = self._files()
                self._check_length(files)
                self._content = [part.read_bytes() for part in files]
        return self._content

    def _check_length(self, files: list[Path]) -> None:
        """Refuse files far longer than their header says, before they are read; most are too short to ask."""
        size = sum(file.stat().st_size for file in files)
        expected = self._promised(files) if size > LARGE else size
        if size > MOST_LONGER * expected + LARGE:
            raise RefusedError("corrupt", f"{size} bytes, where the header says {expected}")

    def _promised(self, files: list[Path]) -> int:
        """Return how many bytes, unpacked, the header says that there are. Raises RefusedError for a wrong header."""
        with files[0].open("rb") as handle:
            start = handle.read(LARGEST_HEADER)
        if self.path.name.endswith((".nii", ".nii.gz")):
            header = nifti.read_header(nifti.begin(start))
            return header.start + math.prod(header.shape) * header.dtype.itemsize
        layout = _layout(self.path, start, sum(file.stat().st_size for file in files))
        return layout.length + (layout.start or 0) + layout.size

    def _files(self) -> list[Path]:
        """Return header and voxels, or the one file that holds both, once they are there."""
        if not self._surveyed and not self.path.is_file():
            place = FOLDER if self.path.is_dir() else "no such file"
            found = DEAD_LINK if self.path.is_symlink() and not self.path.exists() else place
            raise _error(f"{self.kind}_missing", self.path, found)
        try:
            files = parts(self.path)
        except ValueError as error:
            raise RefusedError("parts", str(error)) from error
        missing = [] if self._surveyed else [part for part in files if not part.is_file()]
        if missing:
            raise _error(f"{self.kind}_missing", self.path, f"a header without its voxels, {missing[0]}")
        return files


def content_key(hashes: Sequence[str]) -> str:
    """Return the sha256 of an image's file, or, of several channels, one fingerprint of theirs."""
    return hashes[0] if len(hashes) == 1 else digest(list(hashes))


def read_scan(path: str | Path, kind: str) -> Scan:
    """Read one volume whole and check the file itself; ``kind`` is image or label and begins the reason codes.

    Raises:
        CaseError: ``<kind>_missing``, ``<kind>_truncated`` and the other codes of :data:`REASONS`.
        OSError, MemoryError: when the disk or memory is at fault; that says nothing of the file.
    """
    return ScanFile(path, kind).scan()


def read_image(path: str | Path, modality: str) -> Volume:
    """Return an image from outside, in every way checked; what is doubtful but usable is told in the log.

    Raises:
        CaseError: see :func:`read_scan` and :func:`check_values`.
        OSError, MemoryError: when the disk or memory is at fault.
    """
    return checked_image(read_scan(path, "image"), modality)


def read_surveyed(path: str | Path, *more: str | Path) -> Volume:
    """Return an image that the survey has found good; its intensities are not looked at again.

    Args:
        path, more: the file, or one for each channel.

    Raises:
        CaseError: see :func:`read_scan`, when the file has changed since.
        OSError, MemoryError: when the file is away, or the disk or memory at fault.
    """
    first, *others = ((file, ScanFile(file, "image", surveyed=True).scan().volume()) for file in (path, *more))
    return joined(first, others)


def checked_image(scan: Scan, modality: str, first: bool = True) -> Volume:
    """Return a scan's volume once its values are checked (:func:`check_values`); tell its warnings in the log."""
    tell_warnings(scan.file, scan.warnings)
    volume = scan.volume()
    tell_warnings(scan.file, check_values(volume.array, modality, scan.file, first))
    return volume


def tell_warnings(file: str | Path, warnings: Iterable[tuple[str, str]]) -> None:
    """Tell in the log what is doubtful but usable of a file: reason codes, and what was found."""
    for code, found in warnings:
        log.warning("%s: %s: %s. %s", file, code, found, REASONS[code])


def check_values(values: np.ndarray, modality: str, file: str | Path, first: bool = True) -> list[tuple[str, str]]:
    """Refuse intensities that cannot be used; return warnings, as :class:`Scan` has them.

    Args:
        first: whether it is the only channel of an image, or the first. Another one may be constant: it is warned of.

    Raises:
        CaseError: ``image_not_finite``, ``image_constant`` or, of CT, ``image_not_hu``.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise _error("image_not_finite", file, f"values from {low:g} to {high:g}")
    if low == high and not first:
        return [("channel_constant", f"every value is {low:g}")]
    if low == high:
        raise _error("image_constant", file, f"every value is {low:g}")
    found = not_hu(values, low, high) if modality == "CT" else None
    if found:
        raise _error("image_not_hu", file, found)
    doubtful = misplaced_fat(values) if modality == "CT" else None
    return [("image_hu_doubtful", doubtful)] if doubtful else []


def read_label(path: str | Path) -> Volume:
    """Return a label map from outside, in every way checked, with whole numbers: in the ids of the file.

    Raises:
        CaseError: see :func:`read_scan`; also ``label_not_finite``, ``label_fractional``, ``label_unknown_ids``.
        OSError, MemoryError: when the disk or memory is at fault.
    """
    scan = read_scan(path, "label")
    tell_warnings(scan.file, scan.warnings)
    return Volume(whole_ids(scan.values(), scan.file), scan.geometry)


NAME_THE_DATASET = "Name the data set whose ids they are (--dataset)."


def read_classes(
    path: str | Path, scheme: ClassScheme, dataset: Dataset | None = None, action: str = NAME_THE_DATASET
) -> Volume:
    """Return a label map from outside in the class ids of ``scheme``, uint8; ignored voxels of a data set are 255.

    Args:
        dataset: data set (of the scheme) whose ids the file carries; default: those of the scheme.
        action: what to do about ids that the scheme lacks.

    Raises:
        CaseError: see :func:`read_label`; ``label_unknown_ids`` for ids that neither has.
    """
    volume = read_label(path)
    if dataset is not None:
        return Volume(dataset.to_classes(volume.array, str(path)), volume.geometry)
    strange = sorted(set(np.unique(volume.array).tolist()) - {BACKGROUND, *scheme.ids.values()})
    if strange:
        found = f"label ids {', '.join(map(str, strange[:20]))}; scheme {scheme.name} has none of them"
        raise CaseError("label_unknown_ids", str(path), found, action)
    return Volume(volume.array.astype(np.uint8, copy=False), volume.geometry)


def check_same_grid(label: Geometry, image: Geometry, file: str | Path, first: str | Path | None = None) -> None:
    """Raise CaseError ``label_size_differs``, ``..spacing..``, ``..direction..`` or ``..origin..`` for another grid.

    Args:
        first: file of the first channel, whose grid ``image`` is; ``file`` is another channel then, and no label.
    """
    difference = label.difference(image)
    if difference:
        kind = "channel" if first else "label"
        than = f"first channel ({Path(first).name})" if first else "image"
        raise _error(f"{kind}_{difference.split()[0]}_differs", file, f"{kind} against {than}: {difference}")


def joined(first: tuple[str | Path, Volume], others: Iterable[tuple[str | Path, Volume]]) -> Volume:
    """Return an image of several channels, each with its file.

    Raises:
        CaseError: ``channel_size_differs`` and the like, when one lies on another grid.
    """
    path, whole = first
    more = []
    for file, volume in others:
        check_same_grid(volume.geometry, whole.geometry, file, path)
        more.append(volume.array)
    return replace(whole, more=tuple(more))


def _plausible(geometry: Geometry, kind: str) -> list[tuple[str, str]]:
    """Return a warning about the voxel size. Raises RefusedError for an extent that no patient has."""
    extent = max(n * side for n, side in zip(geometry.size, geometry.spacing, strict=True))
    if not PLAUSIBLE_EXTENT_MM[0] <= extent <= PLAUSIBLE_EXTENT_MM[1]:
        found = f"{nifti.numbers(geometry.size)} voxels of {nifti.numbers(geometry.spacing)} mm"
        raise RefusedError("extent_implausible", f"{found}: {extent:.4g} mm along its longest side")
    sides = geometry.spacing
    if min(sides) < PLAUSIBLE_SPACING_MM[0] or max(sides) > PLAUSIBLE_SPACING_MM[1]:
        return [(f"{kind}_spacing_implausible", f"voxel size {nifti.numbers(sides)} mm")]
    return []


def _read_nifti(path: Path, content: bytes, kind: str) -> Scan:
    header = nifti.read_header(nifti.begin(content))
    _ = header.dtype, header.start
    warnings = nifti.check_frame(header)
    stored = nifti.voxels(content, header)
    geometry = in_itk(path, kind, lambda: read_geometry(path))
    if geometry.size != header.shape:
        raise RefusedError("corrupt", f"size {header.shape} in the header, {geometry.size} for ITK")
    nifti.check_direction(np.asarray(geometry.direction).reshape(3, 3))
    warnings += nifti.check_placement(header, ras_affine(geometry))
    named = [(f"{kind}_{code}", found) for code, found in warnings]
    return Scan(str(path), geometry, stored, *header.scaling, (*named, *_plausible(geometry, kind)))


def _layout(path: Path, start: bytes, size: int) -> Layout:
    """Return how the voxels lie in a NRRD or MetaImage file of ``size`` bytes, by its beginning."""
    meta = path.name.endswith((".mha", ".mhd"))
    return metaimage.read_layout(start, size) if meta else nrrd.read_layout(start)


def ras_affine(geometry: Geometry) -> np.ndarray:
    """Return the affine 4 x 4 from voxels (x, y, z) to millimeters in RAS+."""
    affine = np.eye(4)
    affine[:3, :3] = RAS @ np.asarray(geometry.direction).reshape(3, 3) * geometry.spacing
    affine[:3, 3] = RAS @ geometry.origin
    return affine


def _read_text(path: Path, content: list[bytes], kind: str) -> Scan:
    """Read an NRRD or MetaImage file: voxels from its checked bytes, where the grid lies from ITK."""
    layout = _layout(path, content[0], sum(map(len, content)))
    geometry, channels, pixel = in_itk(path, kind, lambda: _information(path))
    nifti.check_shape(geometry.size)
    warnings = _plausible(geometry, kind)
    if channels > 1 or "complex" in pixel:
        raise RefusedError("not_scalar", pixel)
    nifti.check_direction(np.asarray(geometry.direction).reshape(3, 3))
    if not layout.oriented:
        warnings.append((f"{kind}_orientation_unknown", "a header that does not say which way the axes run"))
    return Scan(str(path), geometry, layout.voxels(content, geometry.size), warnings=tuple(warnings))


def _information(path: Path) -> tuple[Geometry, int, str]:
    """Return grid, numbers a voxel, and type in words, as ITK reads them from the header alone."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
    reader.ReadImageInformation()
    channels = reader.GetNumberOfComponents()
    return geometry_of(reader), channels, f"{channels} of {sitk.GetPixelIDValueAsString(reader.GetPixelID())}"


_ITK_SAYS = (
    ("orthonormal", "direction_not_orthonormal"),
    ("determinant is 0", "direction_not_orthonormal"),
    ("Zero-valued spacing", "spacing_invalid"),
    ("Negative spacing", "spacing_invalid"),
    ("Unable to determine ImageIO", "not_an_image"),
)


def in_itk(path: str | Path, kind: str, work: Callable[[], Any]) -> Any:
    """Do ``work`` with ITK, in silence, and turn its errors into reason codes.

    Raises:
        CaseError: when the file cannot be read because of what is in it.
        OSError, MemoryError: when the disk or memory is at fault.
    """
    try:
        with _quiet():
            return work()
    except RuntimeError as error:
        blame_machine(path, error)
        message = " ".join(str(error).split())
        code = next((code for part, code in _ITK_SAYS if part in message), "unreadable")
        told = re.sub(r"\(0x[0-9a-f]+\)", "", message.rpartition("ERROR: ")[2])  # addresses differ from run to run
        raise _error(f"{kind}_{code}", path, told[:200]) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what ITK and its C libraries print out of the log, where no other thread may have something to say."""
    if threading.active_count() > 1:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in kept:
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)
