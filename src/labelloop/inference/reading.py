"""The images to segment: find them, and read each file once for both its hash and its voxels."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from labelloop.errors import CaseError, UserError
from labelloop.files import digest, sha256
from labelloop.scan import ScanFile, check_values, checked_image
from labelloop.volume import Volume, blame_machine, geometry_of

log = logging.getLogger(__name__)
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
CHANNEL = "_0000"
"""nnU-Net's and FLARE's suffix of an image's name; left out of the case's name."""
SLICE_TOLERANCE = 0.05
"""Largest deviation of a DICOM slice distance from their median, as a part of it."""


@dataclass(frozen=True)
class Case:
    """An image to segment. ``image`` is a file, or a folder with one DICOM series.

    ``upside_down``: whether it is stored so; None: nobody knows, and models that want upright images let CT, and MR
    of a ``sequence`` that can tell, be judged.
    """

    case: str
    image: Path
    modality: str = "CT"
    image_sha256: str = ""
    upside_down: bool | None = None
    sequence: str = ""


class Image:
    """An image file, or a folder with one DICOM series. A file is read from disk once."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = None if self.path.is_dir() else ScanFile(self.path, "image")

    def sha256(self) -> str:
        """Return the sha256 of the file (of header and voxels), or a fingerprint of the files of a folder."""
        if self._file is not None:
            return self._file.sha256()
        return digest([(p.name, sha256(p)) for p in sorted(self.path.iterdir()) if p.is_file()])

    def volume(self, modality: str) -> Volume:
        """Return the volume, once it is checked as the survey does. Forgets the bytes, so ask for it once.

        Raises:
            CaseError: when the file, or what is in it, is no 3-D image that can be used.
            OSError, MemoryError: when the disk or memory is at fault.
        """
        if self._file is not None:
            return checked_image(self._file.scan(), modality)
        try:
            volume = _read_dicom(self.path)
        except RuntimeError as error:  # ITK's only one; its last line says what happened
            blame_machine(self.path, error)
            found = str(error).strip().splitlines()[-1]
            raise CaseError("image_unreadable", str(self.path), found, "Copy or export it again.") from error
        check_values(volume.array, modality, self.path)
        return volume


def _read_dicom(folder: Path) -> Volume:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise CaseError("dicom_series", str(folder), f"{len(series)} DICOM series", "Give a folder with one series.")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    _check_slices(folder, files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    image = reader.Execute()
    return Volume(sitk.GetArrayFromImage(image), geometry_of(image))


def _check_slices(folder: Path, files: Sequence[str]) -> None:
    """Refuse a series with missing or uneven slices, which SimpleITK would stack as if they were even."""
    if len(files) < 3:
        return
    centers = []
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(file)
        reader.ReadImageInformation()
        centers.append(reader.GetOrigin())
    steps = np.linalg.norm(np.diff(np.asarray(centers), axis=0), axis=1)
    usual = float(np.median(steps))
    if np.abs(steps - usual).max() > SLICE_TOLERANCE * usual:
        found = f"slice distances from {steps.min():.3f} to {steps.max():.3f} mm"
        raise CaseError("dicom_slices", str(folder), found, "Slices are missing or uneven; export the series again.")


def find_cases(inputs: Path, modality: str = "CT") -> list[Case]:
    """Return the cases of a file, a folder of files and DICOM folders, or a folder with one DICOM series.

    Where a folder holds both ``NAME`` and ``NAME_0000``, the latter is the image (nnU-Net's and FLARE's naming) and
    the former, usually its label, is left out.

    Raises:
        UserError: when there is nothing to segment, or two inputs would give the same case.
    """
    inputs = Path(inputs)
    if inputs.is_file():
        return [Case(case_name(inputs), inputs, modality)]
    if not inputs.is_dir():
        raise UserError(f"{inputs}: no such file or folder")
    entries = sorted(p for p in inputs.iterdir() if not p.name.startswith("."))
    files = [p for p in entries if p.is_file() and p.name.lower().endswith(SUFFIXES)]
    channels = {case_name(p) for p in files if _stem(p).endswith(CHANNEL)}
    images = [p for p in files if _stem(p).endswith(CHANNEL) or _stem(p) not in channels]
    if len(images) < len(files):
        log.info("%d files left out, because a %s image stands beside them", len(files) - len(images), CHANNEL)
    images += [p for p in entries if p.is_dir() and _has_dicom(p)]
    if not images and _has_dicom(inputs):
        images = [inputs]
    if not images:
        raise UserError(f"{inputs}: no image ({', '.join(SUFFIXES)}) and no DICOM series in it")
    cases = [Case(case_name(p), p, modality) for p in images]
    names = [c.case for c in cases]
    if doubled := sorted({n for n in names if names.count(n) > 1}):
        raise UserError(f"{inputs}: several inputs for {', '.join(doubled[:5])}; rename them or move them apart")
    return cases


def _has_dicom(folder: Path) -> bool:
    return bool(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def _stem(path: Path) -> str:
    name = path.name
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "") if not path.is_dir() else ""
    return name[: len(name) - len(suffix)]


def case_name(path: Path) -> str:
    """Return the name of a file without suffix and channel number, or the name of a folder."""
    return _stem(Path(path).resolve() if not Path(path).name else Path(path)).removesuffix(CHANNEL)
