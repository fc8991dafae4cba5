"""What lies in a folder of images or label maps: the volumes that are used, and all that is left out, with the reason.

Every command that is given a folder lists it here, so that all of them read the same formats, take the same file for
the image of the same case, and leave nothing out without a word.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from labelloop.base.errors import CaseError, UserError
from labelloop.base.sequences import flat
from labelloop.base.wording import count, named, shown
from labelloop.images.detached import HEADERS, known_parts

if TYPE_CHECKING:
    from labelloop.images.volume import Geometry

log = logging.getLogger(__name__)

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Formats of images and label maps: one volume a file (``.nhdr`` and ``.mhd`` with their voxels beside)."""
CHANNEL = "_0000"
"""nnU-Net's and FLARE's suffix of an image's name."""
MOST_CHANNELS = 8
"""Examinations do not have more channels; more files that are alike but for a number are numbered scans."""
MOST_FOLDERS = 300
"""Folders that are looked into for DICOM files, to say what a folder without volumes holds."""
OF_THE_SYSTEM = re.compile(
    r"\._.*|\.DS_Store|\.directory|\.git.*|\.datalad|Thumbs\.db|desktop\.ini|__MACOSX|lost\+found|\$RECYCLE\.BIN|"
    "System Volume Information",
    re.I,
)
"""What operating systems and version control leave behind; the one thing that is passed over in silence."""

DEAD_LINK = "a dead link: fetch its file (datalad get, git annex get) or mount its disk"
FOLDER = "a folder that is named like a file: move the file out of it"
NAME = "a name that is not UTF-8: rename it"
SPECIAL = "no regular file"
CAPITALS = "an extension in capital letters, which ITK does not read: write it in small ones"
HIDDEN = "a hidden file: rename it if it is meant"
FORMAT = f"no format that is read ({', '.join(EXTENSIONS)})"
CLOSED = "a folder that cannot be looked into"
SUBFOLDER = "a folder in the folder: give it alone, or move its files up"
SEVERAL = "several volumes in the folder of a case: leave its image alone there"
LABEL = f"taken for the label of the image {CHANNEL} that stands beside it"
IMAGE = f"taken for the image of the label map without {CHANNEL} that stands beside it"


@dataclass(frozen=True)
class LeftOut:
    """What is not used. ``lost``: it is named like a volume, so it was meant, but nothing in it can be read."""

    path: Path
    reason: str
    lost: bool = False

    @property
    def case(self) -> str:
        """Name without extension and channel."""
        return stem(self.path).removesuffix(CHANNEL)


@dataclass(frozen=True)
class Listing:
    """Volumes of a folder by file name without extension, sorted; and what was left out."""

    folder: Path
    volumes: dict[str, Path]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def lost(self) -> tuple[LeftOut, ...]:
        """What was meant to be used and cannot be."""
        return tuple(entry for entry in self.left_out if entry.lost)

    def without(self, stems: Iterable[str], reason: str) -> "Listing":
        """Return the listing with some volumes left out for ``reason``."""
        gone = set(stems)
        more = tuple(LeftOut(path, reason) for name, path in self.volumes.items() if name in gone)
        return Listing(self.folder, {n: p for n, p in self.volumes.items() if n not in gone}, (*self.left_out, *more))


def stem(path: Path) -> str:
    """Return a file's name without the extension of a volume."""
    return path.name[: len(path.name) - len(extension(path.name) or "")]


def extension(name: str) -> str | None:
    """Return which of :data:`EXTENSIONS` a name ends in, in whatever case; None for others."""
    return next((e for e in EXTENSIONS if name.lower().endswith(e)), None)


def is_utf8(path: str | Path) -> bool:
    """Say whether a path can be handed to ITK, which ends the process at a name that is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def list_folder(folder: str | Path) -> Listing:
    """List a folder, its subfolders aside.

    Raises:
        UserError: when there is no such folder, its name is not UTF-8, or two volumes differ in their extension alone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{shown(folder)}: no such folder")
    if not is_utf8(folder.absolute()):
        raise UserError(f"{shown(folder.absolute())}: {NAME}")
    volumes: dict[str, Path] = {}
    left_out: list[LeftOut] = []
    twice: list[str] = []
    with os.scandir(folder) as entries:
        found = sorted((entry for entry in entries if not OF_THE_SYSTEM.fullmatch(entry.name)), key=lambda e: e.name)
    for entry in found:
        path = folder / entry.name
        why = _why_not(entry)
        if why:
            left_out.append(why)
            continue
        name = stem(path)
        if name in volumes:
            twice.append(f"{path}: stands beside {volumes[name].name}; keep one")
        volumes[name] = path
    if twice:
        raise UserError("\n".join(twice))
    headers = [path for path in volumes.values() if path.suffix in HEADERS]
    voxels = set(flat(map(known_parts, headers)))
    return Listing(folder, volumes, tuple(entry for entry in left_out if entry.path not in voxels))


def _why_not(entry: os.DirEntry) -> LeftOut | None:
    """Say why an entry of a folder is no volume; None when it is one."""
    like_a_volume = extension(entry.name) is not None
    reason, lost = "", like_a_volume
    try:
        file, folder = entry.is_file(), entry.is_dir()
    except OSError as error:
        return LeftOut(Path(entry.path), f"cannot be looked at: {error.strerror}", lost)
    if not file and not folder:
        reason = DEAD_LINK if entry.is_symlink() else SPECIAL
    elif not is_utf8(entry.name):
        reason = NAME
    elif entry.name.startswith("."):
        reason, lost = HIDDEN, False
    elif folder:
        reason = FOLDER if like_a_volume else SUBFOLDER
    elif not like_a_volume:
        reason = FORMAT
    elif not entry.name.endswith(EXTENSIONS):
        reason = CAPITALS
    return LeftOut(Path(entry.path), reason, lost) if reason else None


def list_images(folder: str | Path) -> Listing:
    """List the images of a folder; where it holds none, the one image of each folder in it, named as that folder.

    ``<case>/ct.nii.gz``, as TotalSegmentator's data set has it. A folder with several volumes is lost.

    Raises:
        UserError: see :func:`list_folder`.
    """
    listing = list_folder(folder)
    if listing.volumes or listing.lost:
        return listing
    inside = {entry.path: _look_into(entry.path) for entry in listing.left_out if entry.reason == SUBFOLDER}
    volumes = {p.name: next(iter(i.volumes.values())) for p, i in inside.items() if len(i.volumes) == 1 and not i.lost}
    several = [LeftOut(p, SEVERAL, lost=True) for p, found in inside.items() if volumes and len(found.volumes) > 1]
    unread = [
        LeftOut(place, i.lost[0].reason, lost=True) for place, i in inside.items() if len(i.volumes) < 2 and i.lost
    ]
    told = {*volumes, *(entry.path.name for entry in (*several, *unread))}
    others = [entry for entry in listing.left_out if entry.path.name not in told]
    return Listing(listing.folder, volumes, (*others, *several, *unread))


def _look_into(folder: Path) -> Listing:
    """List a folder in a folder; one that is closed is lost, and nothing else is known of it."""
    shut = closed(folder)
    return Listing(folder, {}, (shut,)) if shut else list_folder(folder)


def closed(folder: Path) -> LeftOut | None:
    """Return a folder that cannot be looked into, as lost; None for one that can, and where there is none."""
    try:
        with os.scandir(folder):
            return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return LeftOut(folder, f"{CLOSED}: {error.strerror}", lost=True)


def mask_folders(folder: Path) -> dict[str, Path]:
    """Return the folders below ``folder`` with a mask an organ, by case: ``<case>/segmentations``, or ``<case>``."""
    cases = [entry.path for entry in list_folder(folder).left_out if entry.reason == SUBFOLDER]
    choices = {case.name: [case / "segmentations", case] for case in cases}
    masks = {case: [place for place in places if _are_masks(place)] for case, places in choices.items()}
    return {case: places[0] for case, places in masks.items() if places}


def list_labels(folder: str | Path) -> Listing:
    """List the label maps of a folder by case. ``X_0000`` is passed over as an image only where ``X`` stands beside it.

    Raises:
        UserError: when there is no such folder or no label map in it; see :func:`list_folder`.
    """
    listing = list_folder(folder)
    images = [
        name for name in listing.volumes if name.endswith(CHANNEL) and name.removesuffix(CHANNEL) in listing.volumes
    ]
    listing = listing.without(images, IMAGE)
    if not listing.volumes:
        raise UserError(nothing_in(listing, "label map"))
    return listing


def image_cases(
    listing: Listing, labels: Container[str] = (), several: Callable[[], bool] = lambda: False
) -> dict[str, tuple[Path, ...]]:
    """Return the images of a listing by case: ``<case>_0000`` (nnU-Net, FLARE) or ``<case>``; a file for each channel.

    Files that are alike but for a number, ``a_0000``, ``a_0001``, ..., are channels of one examination, in this order.
    What stands behind a gap in the numbers is a case of its own, so that no channel is taken for that before it.
    They are cases of their own, with their whole name, when ``labels``, ids of cases, says so; or when all that is
    numbered is alike, and there are too many for channels, or grids differ.

    Args:
        several: says whether images are known to have several channels, by a data set or a model; asked only where
            grids differ. Channels on other grids are then one case, which whoever reads it sets aside.

    Raises:
        UserError: when two files are images of one case.
    """
    cases: dict[str, tuple[Path, ...]] = {}
    families = _families(listing.volumes)
    with_second = [prefix for prefix, names in families.items() if f"{prefix}_0001" in names]
    numbered = {
        prefix
        for prefix, names in families.items()
        if _are_numbered(names, listing.volumes, labels, with_second == [prefix], several)
    }
    channels = {prefix: _without_gap(families[prefix]) for prefix in with_second if prefix not in numbered}
    further = set(flat(names[1:] for names in channels.values()))
    for name, path in listing.volumes.items():
        prefix = name.removesuffix(CHANNEL)
        case = name if prefix in numbered or not prefix else prefix
        if name in further:
            continue
        if case in cases:
            raise UserError(f"{listing.folder}: several inputs for {case}; rename them or move them apart")
        cases[case] = (path, *(listing.volumes[other] for other in channels.get(prefix, [])[1:]))
    return cases


def _without_gap(names: Sequence[str]) -> list[str]:
    """Return the names up to the first number that is missing."""
    return [name for number, name in enumerate(sorted(names)) if name.endswith(f"_{number:04d}")]


def _families(volumes: Mapping[str, Path]) -> dict[str, list[str]]:
    """Return the names that are alike but for a number of four digits, where one of them is 0000."""
    families: dict[str, list[str]] = defaultdict(list)
    for name in volumes:
        if re.search(r"._\d{4}$", name):
            families[name[:-5]].append(name)
    return {prefix: names for prefix, names in families.items() if prefix + CHANNEL in names}


def _are_numbered(
    names: list[str], volumes: Mapping[str, Path], labels: Container[str], alone: bool, several: Callable[[], bool]
) -> bool:
    """Say whether files that are alike but for a number are scans of their own, not channels of one examination.

    Args:
        alone: whether no other files are. several: see :func:`image_cases`.
    """
    prefix = names[0][:-5]
    if prefix in volumes or prefix in labels:  # the label of one examination
        return False
    if any(name in labels for name in names):
        return True
    if len(names) == 1 or f"{prefix}_0001" not in names:
        return len(names) > 1
    if not alone or len(names) > MOST_CHANNELS:
        return alone
    grids = [grid for grid in (_grid(volumes[name]) for name in names) if grid is not None]
    return any(grids[0].difference(other) for other in grids[1:]) and not several()


def _grid(path: Path) -> "Geometry | None":
    """Return the grid of a volume; None where it cannot be read: whoever wants its voxels says why."""
    from labelloop.images.scan import ScanFile  # numpy is slow to import

    try:
        return ScanFile(path, "image").geometry()
    except (CaseError, OSError):
        return None


def tell(listing: Listing, used: int, what: str) -> None:
    """Say in the log how many volumes of a folder are used, and what is not and why."""
    log.info("%s: %s", shown(listing.folder), count(used, what))
    tell_left_out(listing.left_out, listing.folder)


def tell_left_out(left_out: Iterable[LeftOut], folder: Path) -> None:
    """Say in the log what is left out and why, a line a reason."""
    for entries, line in _lines(left_out, folder):
        level = logging.WARNING if any(entry.lost for entry in entries) else logging.INFO
        log.log(level, "%s: %s", shown(folder), line)


def _lines(left_out: Iterable[LeftOut], folder: Path) -> Iterator[tuple[list[LeftOut], str]]:
    """Yield what is left out for one reason, and the line that says so."""
    for reason, entries in _by_reason(left_out).items():
        names = named([shown(_below(entry.path, folder)) for entry in entries])
        yield entries, f"{len(entries)} left out, {reason}: {names}"


def _by_reason(left_out: Iterable[LeftOut]) -> dict[str, list[LeftOut]]:
    groups: dict[str, list[LeftOut]] = defaultdict(list)
    for entry in left_out:
        groups[entry.reason].append(entry)
    return groups


def _below(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def nothing_in(listing: Listing, what: str) -> str:
    """Return the message for a folder in which nothing was found: what lies there instead, and what to do."""
    first = f"{shown(listing.folder)}: no {what} <case>{', <case>'.join(EXTENSIONS)}"
    lines = [f"  {line}" for _, line in _lines(listing.left_out, listing.folder)]
    return "\n".join([first, *lines, *_layout(listing.folder, what)])


def _layout(folder: Path, what: str) -> Iterator[str]:
    """Yield what to do about a folder whose volumes lie deeper, or are DICOM files."""
    deeper = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_dir())[:5]
    inside = {place: _volumes_in(place) for place in (*deeper, *(p / "segmentations" for p in deeper))}
    masks = [volumes[0] for place, volumes in inside.items() if volumes and _are_masks(place)]
    if masks and what == "label map":
        yield (
            f"  It holds a folder a case with a file an organ ({shown(masks[0].relative_to(folder))}), as "
            "TotalSegmentator's data set does. Join the files of a case into one label map: labelloop cases --merged "
            "FOLDER writes them"
        )
        return
    holding = [inside[place] for place in deeper if inside[place]]
    if holding:
        example = shown(holding[0][0].relative_to(folder))
        if all(len(volumes) == 1 for volumes in holding):
            yield f"  It holds a folder a case ({example}). Copy or link the files into one folder, as <case>.nii.gz"
        else:
            yield f"  {count(len(holding), 'folder')} in it with volumes ({example}): give the one that is meant"
        return
    place = _first_dicom(folder)
    if place is not None:
        yield (
            f"  {shown(place)} holds DICOM files. Write them as files of one volume each: labelloop convert "
            f"{shown(folder)} --out images, or labelloop cases --convert FOLDER"
        )


def _first_dicom(folder: Path) -> Path | None:
    """Return the first folder, at any depth, that begins with a DICOM file; not of more than some hundred."""
    places = ((Path(place), sorted(files)[:5]) for place, _, files in islice(os.walk(folder), MOST_FOLDERS))
    return next((place for place, files in places if any(is_dicom(place / file) for file in files)), None)


def _volumes_in(place: Path) -> list[Path]:
    return [Path(entry.path) for entry in _named_as_volumes(place) if entry.is_file()]


def _named_as_volumes(place: Path) -> list[os.DirEntry]:
    """Return what is named as a volume in a folder; nothing where there is no folder, or it is closed."""
    try:
        with os.scandir(place) as entries:
            return sorted((entry for entry in entries if extension(entry.name)), key=lambda entry: entry.name)
    except OSError:
        return []


def _are_masks(place: Path) -> bool:
    """Say whether what a folder holds is a mask an organ of one case: by the folder's name, or by the files' names."""
    from labelloop.images.datasets import all_class_names, words_of  # numpy

    names = {words_of(stem(Path(entry.path))) for entry in _named_as_volumes(place)}
    return bool(names) and (place.name == "segmentations" or not names.isdisjoint(map(words_of, all_class_names())))


def is_dicom(path: Path) -> bool:
    """Say whether a file begins as DICOM files do."""
    try:
        with path.open("rb") as handle:
            return path.is_file() and handle.read(132)[128:] == b"DICM"
    except OSError:
        return False
