"""The images to segment: find them in a file or a folder, give them the names of cases, and say what is left out."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from labelloop.base.errors import UserError
from labelloop.base.outputs import alike_but_for_capitals
from labelloop.base.wording import count, named, shown
from labelloop.cases.nnunet_folder import nnunet_folder
from labelloop.images.listing import (
    CHANNEL,
    FORMAT,
    LABEL,
    NAME,
    SUBFOLDER,
    LeftOut,
    Listing,
    image_cases,
    is_dicom,
    is_utf8,
    list_folder,
    list_images,
    nothing_in,
    stem,
    tell_left_out,
)
from labelloop.inference import dicom
from labelloop.inference.dicom_folders import SeriesFolder, folders_with_images
from labelloop.inference.dicom_headers import read_header
from labelloop.inference.reading import InputImage

log = logging.getLogger(__name__)


def find_cases(
    inputs: Path,
    modality: str = "CT",
    series: str = "",
    lost: list[LeftOut] | None = None,
    several: Callable[[], bool] = lambda: False,
) -> list[InputImage]:
    """Return the cases of a file, or of a folder: its files, and DICOM folders at any depth; say what is left out.

    Where there are neither: the one image of each folder in it (``<case>/ct.nii.gz``), as TotalSegmentator has them.

    Where a folder holds both ``NAME`` and ``NAME_0000``, the latter is the image (nnU-Net's and FLARE's naming) and
    the former, usually its label, is left out. A DICOM folder goes by the names of the folders that lead to it; where
    it holds several series that may be volumes, each is a case, ``<folder>_series<number>``.

    Args:
        series: number or UID of the DICOM series to take, where folders hold several.
        lost: gets what is named like an image and cannot be read.
        several: see :func:`labelloop.images.listing.image_cases`.

    Raises:
        UserError: when there is nothing to segment, or two inputs would give the same case.
    """
    inputs = Path(inputs)
    if inputs.is_file():
        return [InputImage(case_name(inputs), _checked(inputs), modality)]
    if not inputs.is_dir():
        link = ", but a dead link" if inputs.is_symlink() else ""
        raise UserError(f"{shown(inputs)}: no such file or folder{link}")
    if nnunet_folder(inputs) is not None:
        raise UserError(
            f"{shown(inputs)}: nnU-Net's data set folder; give the images in it that are meant, imagesTs or imagesTr"
        )
    files, folders, left_out = _inside(inputs, several)
    if not files and not folders:
        listing = Listing(inputs, {}, tuple(left_out))
        raise UserError(nothing_in(listing, "image, and no DICOM series at any depth; looked for"))
    cases = [InputImage(case, image, modality, more=tuple(more)) for case, (image, *more) in files.items()]
    for folder, number, uid in _with_series(folders, inputs, series, left_out) if series else _each_series(folders):
        suffix = f"_series{number}" if number else ""
        cases.append(InputImage(_folder_name(folder, inputs) + suffix, folder, modality, series=uid))
    log.info("%s: %s", shown(inputs), count(len(cases), "image"))
    tell_left_out(left_out, inputs)
    if lost is not None:
        lost += [entry for entry in left_out if entry.lost]
    doubled = sorted(name for name, number in Counter(case.case for case in cases).items() if number > 1)
    if doubled:
        raise UserError(f"{inputs}: several inputs for {named(doubled)}; rename them or move them apart")
    for earlier, name in alike_but_for_capitals(case.case for case in cases):
        log.warning("%s and %s: names that differ in capitals alone, which not all disks tell apart", earlier, name)
    return cases


def _inside(
    folder: Path, several: Callable[[], bool]
) -> tuple[dict[str, tuple[Path, ...]], list[SeriesFolder], list[LeftOut]]:
    """Return the image files (of each channel) of a folder by case, its DICOM folders at any depth, and the rest."""
    strange: list[LeftOut] = []
    series = folders_with_images(folder, strange)
    listing = list_folder(folder) if series else list_images(folder)
    labels = [name for name in listing.volumes if f"{name}{CHANNEL}" in listing.volumes]
    listing = listing.without(labels, LABEL)
    told = {entry.path for entry in strange}
    places = [entry.path for entry in series]
    left_out = [entry for entry in listing.left_out if _unused(entry, places) and entry.path not in told]
    return image_cases(listing, labels, several), series, [*left_out, *strange]


def _checked(file: Path) -> Path:
    """Refuse a single file that is a slice of many, or that ITK cannot be given."""
    if not is_utf8(file):
        raise UserError(f"{shown(file)}: {NAME}")
    alone = read_header(file) if is_dicom(file) else None
    if alone is None:
        return file
    slices = dicom.read_series(file.absolute().parent).get(alone.series, [])
    if len(slices) > 1:
        raise UserError(
            f"{shown(file)}: one of {len(slices)} slices of a DICOM series; give its folder {shown(file.parent)}"
            f" (and --series {alone.series} where it holds several)"
        )
    if alone.frames < dicom.LEAST_SLICES:
        raise UserError(f"{shown(file)}: a single DICOM slice; give the folder with the whole series")
    return file


def _each_series(folders: Sequence[SeriesFolder]) -> Iterator[tuple[Path, int, str]]:
    """Yield folder, number and UID of each series that may be a volume; no number where it is the only one."""
    for folder in folders:
        for uid in folder.volumes:
            number = folder.series.index(uid) + 1
            yield folder.path, number if len(folder.volumes) > 1 else 0, _wanted(folder, uid)


def _wanted(folder: SeriesFolder, uid: str) -> str:
    """Return what names a series of a folder; nothing where it is the only one."""
    return (uid or str(folder.series.index(uid) + 1)) if len(folder.series) > 1 else ""


def _with_series(
    folders: Sequence[SeriesFolder], inputs: Path, series: str, left_out: list[LeftOut]
) -> list[tuple[Path, int, str]]:
    """Return folder and number of a series that is given by its number or UID.

    Raises:
        UserError: when no folder holds it, or several do.
    """
    numbers = {folder.path: _number_of(folder, series) for folder in folders}
    found = [(folder, number, series) for folder, number in numbers.items() if number]
    if len(found) != 1:
        raise UserError(
            f"{shown(inputs)}: --series {series} is in {len(found)} folders; give the folder of the series, or a UID "
            "that stands in one"
        )
    left_out += [LeftOut(folder, f"no DICOM series {series} in it") for folder in numbers if not numbers[folder]]
    return found


def _number_of(folder: SeriesFolder, wanted: str) -> int:
    """Return the number of a series that is given by number or UID; 0 when it is not there."""
    if wanted in folder.series:
        return folder.series.index(wanted) + 1
    return int(wanted) if wanted.isdecimal() and 1 <= int(wanted) <= len(folder.series) else 0


def _folder_name(folder: Path, inputs: Path) -> str:
    """Return the name of the case in a DICOM folder below ``inputs``: that of the folders that lead to it."""
    return "_".join(folder.relative_to(inputs).parts) or case_name(folder)


def _unused(entry: LeftOut, series: Sequence[Path]) -> bool:
    """Say whether an entry of a folder that is no volume is no slice and leads to no DICOM folder either."""
    if entry.reason == SUBFOLDER:
        return not any(folder.is_relative_to(entry.path) for folder in series)
    return entry.reason != FORMAT or entry.path.parent not in series


def case_name(path: Path) -> str:
    """Return the name of a file without suffix and channel number, or the name of a folder."""
    path = Path(path) if Path(path).name else Path(path).resolve()
    return path.name if path.is_dir() else stem(path).removesuffix(CHANNEL)
