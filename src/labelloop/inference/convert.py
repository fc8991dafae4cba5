"""DICOM to NIfTI, for what reads files only: ``labelloop convert``."""

import logging
from pathlib import Path

from labelloop.base.errors import CaseError, UserError
from labelloop.base.outputs import refuse_folder_of_inputs, refuse_overwriting
from labelloop.base.wording import count, named, shown
from labelloop.images.listing import CHANNEL, LeftOut
from labelloop.images.volume import write
from labelloop.inference.dicom import read_dicom
from labelloop.inference.finding import find_cases

log = logging.getLogger(__name__)


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
    cases = [case for case in find_cases(inputs, series=series, lost=lost) if case.image.is_dir()]
    if not cases:
        raise UserError(f"{shown(inputs)}: no DICOM series to convert; its files can be used as they are")
    refuse_folder_of_inputs(out, {inputs, *(case.image for case in cases)})
    files = {case.case: out / f"{case.case}{CHANNEL}.nii.gz" for case in cases}
    refuse_overwriting(files.values(), [], Path.is_file)
    kept = [name for name, file in files.items() if file.is_file()]
    failed = 0
    for case in cases:
        if case.case in kept:
            continue
        try:
            volume = read_dicom(case.image, case.series)
            write(files[case.case], volume.array, volume.geometry)
        except (CaseError, OSError, RuntimeError, ValueError) as error:
            failed += 1
            log.error("%s: %s", case.case, str(error).strip().splitlines()[-1])
        else:
            log.info("%s: %s", files[case.case], " x ".join(map(str, volume.geometry.size)))
    if kept:
        log.info("%s there before and kept: %s", count(len(kept), "file"), named(kept))
    log.info("%d of %s in %s", len(cases) - failed, count(len(cases), "DICOM image"), out)
    if failed == len(cases):
        return 2
    return int(bool(failed or lost))
