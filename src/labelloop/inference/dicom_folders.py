"""Folders with DICOM images, at any depth, and what in them is no slice."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from labelloop.images.listing import DEAD_LINK, FORMAT, NAME, OF_THE_SYSTEM, LeftOut, extension, is_dicom, is_utf8
from labelloop.inference.dicom import SUFFIXES, candidates, first_image, looks_like_dicom, no_volume, read_series

SPLIT = "a part of a DICOM series whose other slices lie in another folder: put them into one"
AMONG_SLICES = "a volume among the slices of a DICOM series: give it alone"


def folders_with_images(root: Path, left_out: list[LeftOut]) -> Iterator[Path]:
    """Yield the folders below ``root``, itself included, that hold DICOM images, whatever their depth.

    Args:
        left_out: gets folders that hold no volume or whose names cannot be read, and files beside the slices.
    """
    seen: set[str] = set()
    found: list[tuple[str, Path]] = []
    for place, folders, files in os.walk(root, followlinks=True):
        folder, real = Path(place), os.path.realpath(place)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if real in seen:  # links that lead back
            folders.clear()
            continue
        seen.add(real)
        if not is_utf8(place):
            left_out.append(LeftOut(folder, NAME, lost=any(is_dicom(folder / file) for file in files)))
            continue
        first = first_image(folder)
        left_out += _strangers(folder, files, first is not None, folder == root)
        if first is None:
            continue
        if first.no_volume and all(no_volume(slices) for slices in read_series(folder).values()):
            left_out.append(LeftOut(folder, f"a {first.no_volume} of DICOM, which is no volume"))
        else:
            found.append((first.series, folder))
    split = _split(found)
    left_out += [LeftOut(folder, SPLIT, lost=True) for folder in split]
    yield from (folder for _, folder in found if folder not in split)


def _split(found: Sequence[tuple[str, Path]]) -> set[Path]:
    """Return the folders that hold parts of one series: slices of the same series in other places."""
    series: dict[str, list[Path]] = defaultdict(list)
    for uid, folder in found:
        series[uid].append(folder)
    split: set[Path] = set()
    for uid, folders in series.items():
        if len(folders) > 1 and uid:
            places = [{s.position for s in read_series(folder)[uid]} for folder in folders]
            if sum(map(len, places)) == len(set().union(*places)):
                split.update(folders)
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
