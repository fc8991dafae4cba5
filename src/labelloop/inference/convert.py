"""DICOM to NIfTI, for what reads files only: ``labelloop convert`` and ``labelloop cases --convert``."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import digest
from labelloop.base.outputs import refuse_folder_of_inputs, refuse_overwriting
from labelloop.base.wording import count, named, shown
from labelloop.cases.table import safe_id, tell_renamed
from labelloop.images.listing import CHANNEL, LeftOut
from labelloop.images.scan import ScanFile
from labelloop.images.volume import write
from labelloop.inference.dicom import NO_MODALITY, REASONS, choose, in_order, read_dicom
from labelloop.inference.find_cases import find_cases
from labelloop.inference.reading import InputImage

log = logging.getLogger(__name__)

READ = ("CT", "MR")
SAME_GRID_MM = 0.1
"""Largest difference of a file that was written before from its series, in the size and the place of voxels."""


@dataclass(frozen=True)
class Converted:
    """A series that is a file now. ``modality``: CT, MR, or empty; ``patient``: a name for the patient, or empty."""

    case: str
    file: Path
    modality: str
    patient: str


def convert(inputs: Path, out: Path, series: str = "") -> int:
    """Write every DICOM series of a folder, at any depth, as ``<out>/<case>_0000.nii.gz``.

    Files that are there stay as they are, so that a conversion that was ended goes on.

    Args:
        series: number or UID of the series to take, where a folder holds several.

    Returns:
        Exit code: 0 all series are there, 1 some cannot be read as a volume (the log says why), 2 none can.

    Raises:
        UserError: when there is no series, or a place to write to is one that is read.
    """
    lost: list[LeftOut] = []
    if not convert_series(_series_of(inputs, series, lost), inputs, out, lost):
        return 2
    return int(bool(lost))


def convert_for_table(inputs: Path, out: Path, modality: str, lost: list[LeftOut]) -> list[Converted]:
    """Write the DICOM series below a folder that a case table can hold, CT and MR, and say what they are.

    Args:
        modality: CT or MR, to leave out all others; empty: both.
        lost: gets the series that cannot be read as a volume.

    Raises:
        UserError: see :func:`convert`; also when no series is left.
    """
    wanted = (modality,) if modality else READ
    cases = []
    for case in _series_of(inputs, "", lost):
        try:
            found = choose(case.image, case.series)[0].modality
        except CaseError as error:
            log.error("%s: %s", case.case, error)
            lost.append(LeftOut(case.image, str(error), lost=True))
            continue
        if found in (*NO_MODALITY, *wanted):
            cases.append(case)
        else:
            log.info("%s: left out, %s, not %s", case.case, found, " or ".join(wanted))
    converted = convert_series(cases, inputs, out, lost)
    if not converted:
        raise UserError(f"{shown(inputs)}: no DICOM series of {' or '.join(wanted)} can be used; see above")
    return converted


def _series_of(inputs: Path, series: str, lost: list[LeftOut]) -> list[InputImage]:
    found = find_cases(inputs, series=series, lost=lost)
    cases = _with_safe_ids([case for case in found if case.image.is_dir()], inputs)
    files = [shown(case.image.name) for case in found if not case.image.is_dir()]
    if files:
        log.warning("%s: %d left out, no DICOM: %s", shown(inputs), len(files), named(files))
    if not cases:
        raise UserError(f"{shown(inputs)}: no DICOM series to convert; its files can be used as they are")
    return cases


def _with_safe_ids(cases: list[InputImage], inputs: Path) -> list[InputImage]:
    """Return cases whose ids a case table can hold; names of folders may have spaces and any letters.

    Raises:
        UserError: when two would have one id.
    """
    safe = [replace(case, case=safe_id(case.case)) for case in cases]
    tell_renamed([case.case for case in cases], [case.case for case in safe])
    doubled = [name for name, times in Counter(case.case for case in safe).items() if times > 1]
    if doubled:
        raise UserError(f"{shown(inputs)}: several inputs for {named(doubled)}; rename them or move them apart")
    return safe


def convert_series(cases: Sequence[InputImage], inputs: Path, out: Path, lost: list[LeftOut]) -> list[Converted]:
    """Write DICOM series as ``<out>/<case>_0000.nii.gz``, and return those that are there; the others are in ``lost``.

    Raises:
        UserError: when a place to write to is one that is read.
    """
    refuse_folder_of_inputs(out, {inputs, *(case.image for case in cases)})
    files = {case.case: out / f"{case.case}{CHANNEL}.nii.gz" for case in cases}
    refuse_overwriting(files.values(), [], Path.is_file)
    kept = [name for name, file in files.items() if file.is_file()]
    converted = []
    for case in cases:
        file = files[case.case]
        try:
            if case.case in kept:
                _check_kept(case, file)
            else:
                volume = read_dicom(case.image, case.series)
                write(file, volume.array, volume.geometry)
                log.info("%s: %s", file, " x ".join(map(str, volume.geometry.size)))
            converted.append(_described(case, file))
        except (CaseError, OSError, RuntimeError, ValueError) as error:
            found = str(error).strip().splitlines()[-1]
            lost.append(LeftOut(case.image, found, lost=True))
            log.error("%s: %s", case.case, found)
    if kept:
        log.info("%s there before and kept: %s", count(len(kept), "file"), named(kept))
    log.info("%d of %s in %s", len(converted), count(len(cases), "DICOM image"), out)
    return converted


def _check_kept(case: InputImage, file: Path) -> None:
    """Refuse a file that was there before and is not of this series, as where folders of two exports have one name.

    Raises:
        CaseError: ``dicom_converted``.
    """
    slices = in_order(case.image, choose(case.image, case.series))
    first, found = slices[0], ScanFile(file, "image").geometry()
    size = (*first.size[:2], sum(slice_.frames for slice_ in slices))
    sides = np.subtract(first.spacing[:2], found.spacing[:2])
    if found.size != size or np.abs([*sides, *np.subtract(first.position, found.origin)]).max() > SAME_GRID_MM:
        told = f"there before with {found.size} voxels at {_rounded(found.origin)} mm; the series has {size} at "
        told += f"{_rounded(first.position)} mm"
        raise CaseError("dicom_converted", shown(file), told, REASONS["dicom_converted"])


def _rounded(place: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 1) for value in place)


def _described(case: InputImage, file: Path) -> Converted:
    """Return what the headers say of a series. The patient's id itself does not leave them."""
    first = choose(case.image, case.series)[0]
    patient = first.alike.get("PatientID", "")
    modality = first.modality if first.modality in READ else ""
    return Converted(case.case, file, modality, f"p{digest(patient)[:12]}" if patient else "")
