"""Folders with DICOM images, at any depth, and what in them is no slice."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labelloop.images.listing import (
    CLOSED,
    DEAD_LINK,
    FORMAT,
    NAME,
    OF_THE_SYSTEM,
    LeftOut,
    extension,
    is_dicom,
    is_utf8,
)
from labelloop.inference.dicom import (
    SUFFIXES,
    candidates,
    describe,
    looks_like_dicom,
    no_volume,
    read_series,
    volumes_among,
)
from labelloop.inference.dicom_elements import is_whole
from labelloop.inference.dicom_headers import Slice

SPLIT = "a part of a DICOM series whose other slices lie in another folder: put them into one"
NO_VOLUME = "DICOM series that are no volume"
DAMAGED = "a DICOM file that is cut or damaged: copy or export the series again"
NO_IMAGE = "a DICOM file without an image that can be read"
AMONG_SLICES = "a volume among the slices of a DICOM series: give it alone"


@dataclass(frozen=True)
class SeriesFolder:
    """A folder with DICOM images: the UIDs of its series, in order, and of those that may be volumes."""

    path: Path
    series: tuple[str, ...]
    volumes: tuple[str, ...]


def folders_with_images(root: Path, left_out: list[LeftOut]) -> list[SeriesFolder]:
    """Return the folders below ``root``, itself included, that hold DICOM images, whatever their depth.

    Args:
        left_out: gets folders that hold no volume or whose names cannot be read, and files beside the slices.
    """
    seen: set[str] = set()
    found: list[SeriesFolder] = []

    def shut(error: OSError) -> None:
        left_out.append(LeftOut(Path(error.filename), f"{CLOSED}: {error.strerror}", lost=True))

    for place, folders, files in os.walk(root, onerror=shut, followlinks=True):
        folder, real = Path(place), os.path.realpath(place)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not OF_THE_SYSTEM.fullmatch(f))
        if real in seen:  # links that lead back
            folders.clear()
            continue
        seen.add(real)
        if not is_utf8(place):
            left_out.append(LeftOut(folder, NAME, lost=any(is_dicom(folder / file) for file in files)))
            continue
        unread: list[Path] = []
        series = read_series(folder, unread)
        left_out += _strangers(folder, files, bool(series), folder == root)
        volumes = volumes_among(series)
        if volumes:
            found.append(SeriesFolder(folder, tuple(series), tuple(volumes)))
            left_out += _no_volumes(folder, {uid: some for uid, some in series.items() if uid not in volumes})
            continue  # whoever reads the volume looks at what lies beside its slices
        left_out += [_unread(file) for file in unread]
        if series:
            what = no_volume(next(iter(series.values())))
            left_out.append(LeftOut(folder, f"a {what} of DICOM, which is no volume"))
    split = _split(found)
    left_out += [LeftOut(f.path, SPLIT, lost=True) for f in found if split.intersection(f.volumes)]
    whole = [replace(f, volumes=tuple(uid for uid in f.volumes if uid not in split)) for f in found]
    return [folder for folder in whole if folder.volumes]


def _unread(file: Path) -> LeftOut:
    """Return what to say of a DICOM file, by its content or its suffix, whose header tells of no image."""
    damaged = not is_dicom(file) or not is_whole(file)
    return LeftOut(file, DAMAGED if damaged else NO_IMAGE, lost=damaged)


def _no_volumes(folder: Path, others: Mapping[str, list[Slice]]) -> list[LeftOut]:
    """Return what to say of the series of a folder that are no volumes beside those that are."""
    return [LeftOut(folder, f"{NO_VOLUME}, beside others that are ({describe(dict(others))})")] if others else []


def _split(found: Sequence[SeriesFolder]) -> set[str]:
    """Return the series of which folders hold parts: slices of the same series in other places."""
    folders: dict[str, list[Path]] = defaultdict(list)
    for entry in found:
        for uid in entry.volumes:
            folders[uid].append(entry.path)
    split: set[str] = set()
    for uid, some in folders.items():
        if len(some) > 1 and uid:
            places = [{s.position for s in read_series(folder)[uid]} for folder in some]
            if sum(map(len, places)) == len(set().union(*places)):
                split.add(uid)
    return split


def _strangers(folder: Path, files: Sequence[str], among_slices: bool, top: bool) -> Iterator[LeftOut]:
    """Yield the files of a folder that may be meant as slices and cannot be read, and what else lies among slices.

    Args:
        top: whether it is the folder that was given, whose volumes are used.
    """
    slices = {file.name for file in candidates(folder) if looks_like_dicom(file)} if among_slices else set()
    for name in sorted(files):
        path = folder / name
        if name in slices or OF_THE_SYSTEM.fullmatch(name) or (extension(name) and (top or not among_slices)):
            continue
        if path.is_symlink() and not path.exists() and (among_slices or path.suffix.lower() in SUFFIXES):
            yield LeftOut(path, DEAD_LINK, lost=True)
        elif not is_utf8(name):
            yield LeftOut(path, NAME, lost=is_dicom(path))
        elif among_slices:
            yield LeftOut(path, AMONG_SLICES if extension(name) else FORMAT)
