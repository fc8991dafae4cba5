"""DICOM series: find them below a folder, and read one as a volume, or say why its slices are none.

SimpleITK stacks the slices of a series along their normal, at one distance, with the orientation and pixel size of the
first, whatever the other headers say. So all slices are looked at before: one orientation, one pixel size, one
acquisition, even steps along the normal (a tilted gantry moves the patient along the table instead), no localizer or
projection, and at least a few slices. It also writes all values as the type of the first slice; where slices differ in
their rescaling or bits, another type is asked for, which holds the values of all.
"""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from labelloop.base.errors import CaseError
from labelloop.base.files import digest, sha256
from labelloop.base.wording import count, first_of, named, shown
from labelloop.images.listing import extension, is_dicom, is_utf8
from labelloop.images.volume import Volume, geometry_of
from labelloop.inference.dicom_elements import values_of
from labelloop.inference.dicom_headers import PARTS, Slice, number_in, quiet, read_header
from labelloop.inference.dicom_pixels import unlike_neighbors

log = logging.getLogger(__name__)

MIXED_VERSION = 2
"""Raised when equal files of several rescalings are read as other voxels: their label maps are computed again."""
LEAST_SLICES = 5
"""Fewer slices are no volume: nothing can be measured across them."""
SLICE_TOLERANCE = 0.05
"""Largest deviation of a slice distance from their median, as a part of it."""
DIRECTION_TOLERANCE = 1e-3
"""Largest difference of the direction cosines of two slices."""
PIXEL_TOLERANCE = 1e-3
"""Largest relative difference of the pixel sizes of two slices."""
DRIFT_PIXELS = 0.5
"""So far may the stack of slices leave their normal, from the first to the last, as a part of a pixel."""
MOST_LISTED = 30
"""Series that a message lists."""
OVERLAP = 1.5
"""Slices so many times as thick as their distance come from more than one acquisition, or overlap on purpose."""
GRAY = "MONOCHROME2"
"""The only kind of pixels that is read; ITK inverts the values of MONOCHROME1, and makes gray of colors."""
POSITION = (0x0020, 0x0032)
RESCALING = {"RescaleSlope": (0x0028, 0x1053), "RescaleIntercept": (0x0028, 0x1052)}
NO_MODALITY = ("", "OT")
REASONS = {
    "dicom_series": "Say which with --series and its number or UID.",
    "dicom_localizer": "A localizer (scout) is there for planning; export or give the series that was planned.",
    "dicom_projection": "A projection or rendering (MIP, MinIP) is there to be looked at; give the series that it was "
    "made from.",
    "dicom_few_slices": f"Give the whole series: at least {LEAST_SLICES} slices.",
    "dicom_orientations_differ": "A localizer, or another view? Export the series alone.",
    "dicom_sizes_differ": "These are several reconstructions; export one of them.",
    "dicom_no_geometry": "An anonymizer or export has dropped it; export the series again.",
    "dicom_mixed": "A series is of one patient, in gray values that are all scaled alike; export it again.",
    "dicom_modality": "Give the modality of the images (--modality), or export them as what they are.",
    "dicom_damaged": "Copy or export the series again.",
    "dicom_phases": "These are several phases, echoes or copies; export one of them.",
    "dicom_gantry_tilt": "A gantry tilt? Resample it to a right-angled grid (dcm2niix does), and give that file.",
    "dicom_converted": "Move it away, or convert to another folder.",
    "dicom_irregular_slices": "Slices are missing or irregularly spaced; export the series again.",
}
"""What to do about each reason code of this module."""
SUFFIXES = (".dcm", ".ima", ".dicom")
OTHER_FILES = (".txt", ".csv", ".json", ".xml", ".html", ".pdf", ".png", ".jpg", ".jpeg", ".zip", ".gz", ".md", ".yaml")


def candidates(folder: Path) -> list[Path]:
    """Return the files of a folder that may be DICOM: those whose names do not say otherwise."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and (folder / e.name).is_file())
    return [folder / n for n in names if not n.lower().endswith(OTHER_FILES) and not extension(n) and is_utf8(n)]


def looks_like_dicom(file: Path) -> bool:
    """Say whether it is worth while to read a header; files without the preamble go by their suffix."""
    suffix = file.suffix.lower()
    return is_dicom(file) or suffix in ("", *SUFFIXES) or suffix[1:].isdigit()


def read_series(folder: Path, strange: list[Path] | None = None) -> dict[str, list[Slice]]:
    """Return the image files of a folder by series UID, ordered by series number, then by time, then by UID.

    Args:
        strange: gets the DICOM files that hold no image, or none that can be read.
    """
    found, unread = _read_files(tuple((f, f.stat().st_mtime_ns, f.stat().st_size) for f in candidates(folder)))
    if strange is not None:
        strange += unread
    return {uid: list(slices) for uid, slices in found.items()}


@lru_cache(maxsize=4)  # a case is listed, fingerprinted and read: each asks for the same headers
def _read_files(stamped: tuple[tuple[Path, int, int], ...]) -> tuple[dict[str, list[Slice]], list[Path]]:
    series: dict[str, list[Slice]] = defaultdict(list)
    unread = []
    for file, _, _ in stamped:
        header = read_header(file) if looks_like_dicom(file) else None
        if header is not None:
            series[header.series].append(header)
        elif is_dicom(file) or file.suffix.lower() in SUFFIXES:
            unread.append(file)
    return dict(sorted(series.items(), key=_place_of)), unread


def _place_of(series: tuple[str, list[Slice]]) -> tuple[float, str, str]:
    """Return what series of a folder are ordered by. UIDs, which may be random, come last."""
    uid, slices = series
    numbers = [s.series_number for s in slices if math.isfinite(s.series_number)]
    return min(numbers, default=math.inf), min(s.series_time for s in slices), uid


def _error(code: str, folder: Path, found: str) -> CaseError:
    return CaseError(code, shown(folder), found, REASONS[code])


def describe(series: dict[str, list[Slice]]) -> str:
    """Return number, description, slices and UID of each series, in one line; of very many only the first."""
    lines = [f"{number}: {_what(slices)}, {uid}" for number, (uid, slices) in enumerate(series.items(), start=1)]
    return "; ".join(first_of(lines, MOST_LISTED))


def no_volume(slices: Sequence[Slice]) -> str:
    """Return which of :data:`NO_VOLUMES` all slices of a series are; empty when one is none."""
    return slices[0].no_volume if all(s.no_volume for s in slices) else ""


def _what(slices: Sequence[Slice]) -> str:
    words = [f'"{slices[0].description}"' if slices[0].description else "without a description"]
    words += [count(sum(s.frames for s in slices), "slice"), *filter(None, [no_volume(slices)])]
    return ", ".join(words)


def volumes_among(series: Mapping[str, list[Slice]]) -> dict[str, list[Slice]]:
    """Return the series that may be volumes: no localizers and projections; of several, those with enough slices."""
    volumes = {uid: slices for uid, slices in series.items() if not no_volume(slices)}
    enough = {uid: slices for uid, slices in volumes.items() if sum(s.frames for s in slices) >= LEAST_SLICES}
    return enough or volumes


def choose(folder: Path, wanted: str = "", strange: list[Path] | None = None) -> list[Slice]:
    """Return the slices of the series of a folder that is wanted, or of the only one that is a volume.

    Args:
        wanted: the UID of a series, its number in :func:`describe`, or empty for the only one.
        strange: see :func:`read_series`.

    Raises:
        CaseError: ``dicom_series`` when there is no or more than one that can be meant, ``dicom_localizer`` and
            ``dicom_projection`` when there are only such.
    """
    series = read_series(folder, strange)
    volumes = list(volumes_among(series).values())
    if wanted:
        numbers = {str(number): uid for number, uid in enumerate(series, start=1)}
        uid = wanted if wanted in series else numbers.get(wanted)
        if uid is None:
            raise _error("dicom_series", folder, f"no series {wanted} among {describe(series)}")
        return series[uid]
    if series and not volumes:
        raise _error(f"dicom_{no_volume(next(iter(series.values())))}", folder, describe(series))
    if len(volumes) != 1:
        raise _error("dicom_series", folder, f"{len(series)} DICOM series: {describe(series)}")
    return volumes[0]


def fingerprint(folder: Path, wanted: str = "") -> str:
    """Return a fingerprint of names and hashes of the files of a series, or of the folder where none can be meant."""
    slices: Sequence[Slice] = ()
    try:
        slices = choose(folder, wanted)
        files = [slice_.file for slice_ in slices]
    except CaseError:
        files = candidates(folder)
    version = [MIXED_VERSION] if _are_mixed(slices) else []
    return digest([*version, *((shown(file.name), sha256(file)) for file in sorted(files))])


def _are_mixed(slices: Sequence[Slice]) -> bool:
    """Say whether ITK would cut off values of some slices, which it reads as the type of the first one."""
    return len({slice_.pixel_type for slice_ in slices}) > 1


def read_dicom(folder: Path, wanted: str = "", modality: str = "") -> Volume:
    """Read a series of a folder as a volume.

    Args:
        wanted: see :func:`choose`.
        modality: CT or MR, which the headers must not contradict; empty: any.

    Raises:
        CaseError: one of :data:`REASONS`, with what was found.
        RuntimeError: when ITK cannot read a slice.
    """
    import SimpleITK as sitk

    strange: list[Path] = []
    chosen = choose(folder, wanted, strange)
    _tell(folder, chosen, strange)
    _check_damaged(folder, chosen, strange)
    found = chosen[0].modality
    if modality and found not in (*NO_MODALITY, modality):
        raise _error("dicom_modality", folder, f"the headers say {found}, not {modality}")
    slices = in_order(folder, chosen)
    with quiet():
        if len(slices) == 1:  # many frames in one file
            image = sitk.ReadImage(str(slices[0].file))
        else:
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames([str(s.file) for s in slices])
            if _are_mixed(slices):
                reader.SetOutputPixelType(sitk.sitkFloat32)
            image = reader.Execute()
    volume = Volume(sitk.GetArrayFromImage(image), geometry_of(image))
    if slices[0].modality in ("", "CT"):
        problem = unlike_neighbors(volume.array, [s.file.name for s in slices])
        if problem:
            raise _error(problem[0], folder, problem[1])
    return volume


def _tell(folder: Path, chosen: Sequence[Slice], strange: Sequence[Path]) -> None:
    """Say in the log what of a folder is used, and what is not."""
    log.info("%s: DICOM series %s", shown(folder), _what(chosen))
    others = len(read_series(folder)) - len(volumes_among(read_series(folder)))
    if others:
        log.info("%s: %d other series left out", shown(folder), others)
    if strange:
        names = named([shown(file.name) for file in strange])
        log.warning(
            "%s: %d left out, DICOM files without an image that can be read: %s", shown(folder), len(strange), names
        )


def _check_damaged(folder: Path, chosen: Sequence[Slice], strange: Sequence[Path]) -> None:
    """Refuse a series of which a slice cannot be read: at its end, nothing else would tell."""
    lost = [file.name for file in strange if not is_dicom(file) or _storage(file) == chosen[0].storage != ""]
    if lost:
        found = f"{len(lost)} that may be slices cannot be read: {named([shown(name) for name in lost])}"
        raise _error("dicom_damaged", folder, found)


def _storage(file: Path) -> str:
    """Return what kind of object a DICOM file says it is, by its first element (0002,0002)."""
    with file.open("rb") as handle:
        _, found, rest = handle.read(512).partition(b"\x02\x00\x02\x00UI")
    return rest[2 : 2 + int.from_bytes(rest[:2], "little")].decode("ascii", "replace").strip("\0 ") if found else ""


def in_order(folder: Path, slices: Sequence[Slice]) -> list[Slice]:
    """Return the slices of a series in their order along the normal, if they are one volume.

    Raises:
        CaseError: see :func:`read_dicom`.
    """
    strange = [s for s in slices if s.no_volume]
    if strange:
        what, names = strange[0].no_volume, named([shown(s.file.name) for s in strange])
        raise _error(f"dicom_{what}", folder, f"{len(strange)} of {len(slices)} slices are a {what}: {names}")
    frames = sum(s.frames for s in slices)
    if frames < LEAST_SLICES:
        raise _error("dicom_few_slices", folder, count(frames, "slice"))
    _check_one_kind(folder, slices)
    if len(slices) == 1:
        _check_frames(folder, slices[0])
        return list(slices)
    nowhere = [s for s in slices if s.lacking]
    if nowhere:
        found = f"{len(nowhere)} of {len(slices)} slices do not say their {nowhere[0].lacking}"
        raise _error("dicom_no_geometry", folder, found)
    _check_alike(folder, slices)
    ordered = sorted(slices, key=lambda s: float(np.dot(slices[0].normal, s.position)))
    _check_places(folder, ordered)
    _check_numbers(folder, ordered)
    _check_steps(folder, ordered)
    return ordered


def _check_frames(folder: Path, one: Slice) -> None:
    """Refuse a file of many slices, whose own places and scales ITK does not look at, if they are no volume.

    A file that gives one place for all says how far its slices are apart, and ITK believes it.
    """
    for name, tag in RESCALING.items():
        scales = {number_in(text) for text in values_of(one.file, tag)}
        if len(scales) > 1:
            found = f"a file of many slices of which {name} is {named([f'{scale:g}' for scale in sorted(scales)])}"
            raise _error("dicom_mixed", folder, found)
    places = [tuple(map(number_in, text.split("\\"))) for text in values_of(one.file, POSITION)]
    if not places or any(len(place) != 3 or not all(map(math.isfinite, place)) for place in places):
        raise _error("dicom_no_geometry", folder, "a file of many slices that do not say their ImagePositionPatient")
    if len(places) != one.frames:
        return
    planes = [replace(one, position=place) for place in places]
    ordered = sorted(planes, key=lambda s: float(np.dot(one.normal, s.position)))
    _check_places(folder, ordered)
    _check_steps(folder, ordered)
    along = np.array(places) @ one.normal
    step, read = abs(float(along[1] - along[0])), abs(one.spacing[2])  # ITK counts down by a spacing below 0
    if not _monotone(along) or abs(step - read) > SLICE_TOLERANCE * step:
        found = f"slices in another order than their places, or {step:.3f} mm apart, read as {read:.3f} mm"
        raise _error("dicom_irregular_slices", folder, found)


def _check_one_kind(folder: Path, slices: Sequence[Slice]) -> None:
    """Refuse slices of several patients or ways to write values, and colors."""
    for name in slices[0].alike:
        values = sorted({s.alike[name] for s in slices})
        if len(values) > 1 or (name == "PhotometricInterpretation" and values[0] not in ("", GRAY)):
            raise _error(
                "dicom_mixed", folder, f"{name} is {' and '.join(value or 'not there' for value in values[:3])}"
            )


def _check_alike(folder: Path, slices: Sequence[Slice]) -> None:
    """Refuse slices of several orientations or pixel sizes."""
    directions = np.array([s.direction for s in slices])
    turned = np.abs(directions - np.median(directions, axis=0)).max(axis=1) > DIRECTION_TOLERANCE
    if turned.any():
        names = named([shown(s.file.name) for s, other in zip(slices, turned, strict=True) if other])
        found = f"{turned.sum()} of {len(slices)} slices have another orientation: {names}"
        raise _error("dicom_orientations_differ", folder, found)
    spacings = np.array([s.spacing[:2] for s in slices])
    other = (np.abs(spacings / np.median(spacings, axis=0) - 1) > PIXEL_TOLERANCE).any()
    if other or len({s.size for s in slices}) > 1:
        sizes = sorted({f"{s.size[0]} x {s.size[1]} pixels of {s.spacing[0]:g} x {s.spacing[1]:g} mm" for s in slices})
        raise _error("dicom_sizes_differ", folder, f"slices of {' and of '.join(sizes[:3])}")


def _check_places(folder: Path, ordered: Sequence[Slice]) -> None:
    """Refuse slices that lie where another one does."""
    along = np.diff([float(np.dot(ordered[0].normal, s.position)) for s in ordered])
    same = int((along < SLICE_TOLERANCE * max(float(np.median(along)), float(along.max()), 1e-6)).sum())
    if same:
        found = f"{same} of {len(ordered)} slices lie where another one does{_differing(ordered)}"
        raise _error("dicom_phases", folder, found)


def _check_steps(folder: Path, ordered: Sequence[Slice]) -> None:
    """Refuse slices that are not stacked along their normal, or at irregular distances."""
    normal, pixel = ordered[0].normal, min(ordered[0].spacing[:2])
    away = np.array([s.position for s in ordered]) - np.array(ordered[0].position)
    along = away @ normal
    drift = np.linalg.norm(away - np.outer(along, normal), axis=1)
    if drift.max() > DRIFT_PIXELS * pixel:
        angle = math.degrees(math.atan2(drift[-1], along[-1]))
        found = f"the slices are not stacked at right angles: {angle:.1f} degrees off, {drift.max():.1f} mm to the side"
        raise _error("dicom_gantry_tilt", folder, found)
    steps = np.diff(along)
    usual = float(np.median(steps))
    if np.abs(steps - usual).max() > SLICE_TOLERANCE * usual:
        found = f"slice distances from {steps.min():.3f} to {steps.max():.3f} mm"
        raise _error("dicom_irregular_slices", folder, found)


def _differing(slices: Sequence[Slice]) -> str:
    """Return in words which tags take several values."""
    for name in PARTS.values():
        values = sorted({s.parts[name] for s in slices if name in s.parts})
        if len(values) > 1:
            return f"; {name} is {named(values)}"
    return ""


def _check_numbers(folder: Path, ordered: Sequence[Slice]) -> None:
    """Refuse a series in which two or more acquisitions take turns along the axis, by their tags or numbers."""
    for name in PARTS.values():
        values = [s.parts.get(name, "") for s in ordered]
        changes = sum(a != b for a, b in pairwise(values))
        if changes > len(set(values)) - 1 and (name != "AcquisitionNumber" or ordered[0].modality != "MR"):
            found = f"{name} changes {changes} times between {len(set(values))} values from slice to slice"
            raise _error("dicom_phases", folder, found)
    apart = ordered[0].modality == "MR" and _overlap(ordered) < OVERLAP  # MR is often acquired every second slice first
    if apart or not all(s.number.isdigit() for s in ordered):
        return
    numbers = np.array([int(s.number) for s in ordered])
    if _monotone(numbers):
        return
    for phases in range(2, len(ordered) // LEAST_SLICES + 1):
        if all(_monotone(numbers[start::phases]) for start in range(phases)):
            found = f"the instance numbers of {phases} acquisitions take turns: {named([s.number for s in ordered])}"
            raise _error("dicom_phases", folder, found)


def _monotone(numbers: np.ndarray) -> bool:
    steps = np.diff(numbers)
    return bool((steps > 0).all() or (steps < 0).all())


def _overlap(ordered: Sequence[Slice]) -> float:
    """Return the thickness of a slice by the distance of slices."""
    distance = float(np.linalg.norm(np.subtract(ordered[1].position, ordered[0].position)))
    return ordered[0].thickness / distance if ordered[0].thickness > 0 else 1.0
