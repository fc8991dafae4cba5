"""BIDS data sets: images below ``sub-*/[ses-*/]``, and their label maps below ``derivatives`` (bids-specification)."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from labelloop.base.errors import UserError
from labelloop.base.sequences import flat
from labelloop.base.wording import count, shown
from labelloop.cases.folders import Pair
from labelloop.images.listing import CLOSED, LeftOut, Listing, closed, extension, list_folder, stem, tell_left_out

log = logging.getLogger(__name__)

DESCRIPTION = "dataset_description.json"
MODALITIES = {"anat": "MR", "ct": "CT"}
"""Folders of images that are read, and the modality of what lies in them."""
NO_IMAGES = ("defacemask", "dseg", "seg", "mask")
"""Suffixes of what lies among images and is none."""
OF_LABELS = ("dseg", "seg")
"""Suffixes of label maps: that of BIDS, and the one of before."""
OF_DERIVATIVES = ("space", "res", "den", "hemi", "atlas", "seg", "scale", "label", "desc")
"""Entities that the names of derivatives have beside those of their image."""
OWN_SPACES = ("orig", "native", "scanner", "individual")
"""What ``space`` is called where a label map lies on its image; the image's suffix is another such name."""
NO_IMAGE = "no image, by its suffix"
ONE_CASE = "images of one case, by their names and folders: rename all but one, or move them out of the data set"
SEVERAL = "label maps of one image: move all but one out of derivatives"
OTHER_SPACE = "a label map in another space than its image"
NO_LABEL = (
    "label maps that are of no image, or may be of several: name them <image>_dseg, in the folder of the image below "
    "derivatives/<any>/"
)


def bids_folder(path: Path) -> bool:
    """Say whether a folder is a data set in BIDS."""
    return (path / DESCRIPTION).is_file() and any(path.glob("sub-*/"))


def bids_pairs(folder: Path, role: str, lost: list[LeftOut]) -> tuple[list[Pair], dict[str, dict[str, str]]]:
    """Return the cases of a data set, an image each, and what their names say: modality, sequence and patient, by case.

    A case is named as its image; subject and session that the name lacks are those of its folder. The label map of
    ``<image>.nii.gz`` is the one file ``<image>_*dseg`` or ``<image>_*seg`` in the same folder below
    ``derivatives/<any>``. Its name may lack the image's suffix, as BIDS has it, where no other image has these
    entities. A label map in another ``space`` is none. What is of no image is told.

    Args:
        lost: gets what is named like an image or label map and cannot be read, and label maps of which an image has
            several; their cases are left out: without its label, a case would pass for an unlabeled one. So are
            images of one name.

    Raises:
        UserError: when there is no image.
    """
    pairs: list[Pair] = []
    known: dict[str, dict[str, str]] = {}
    told: set[Path] = set()
    left_out: list[LeftOut] = []
    for place in _places(folder, left_out):
        listing = list_folder(place)
        images = {name: path for name, path in listing.volumes.items() if _suffix(name) not in NO_IMAGES}
        listing = listing.without(listing.volumes.keys() - images.keys(), NO_IMAGE)
        labels, unread = _label_maps(folder, place)
        lost += [*listing.lost, *unread]
        gone = {entry.path for entry in unread}
        below = place.relative_to(folder)
        found, elsewhere = _by_image(images, [*labels, *gone], below)
        several = [LeftOut(file, SEVERAL, lost=True) for file in flat(f for f in found.values() if len(f) > 1)]
        lost += several
        told |= {*gone, *flat(found.values()), *(entry.path for entry in elsewhere)}
        left_out += [*listing.left_out, *unread, *several, *elsewhere]
        used = {name: path for name, path in images.items() if len(found[name]) < 2 and gone.isdisjoint(found[name])}
        pairs += [
            (role, _whole_name(name, below), (path,), found[name][0] if found[name] else None)
            for name, path in used.items()
        ]
        known |= {_whole_name(name, below): _said_by(name, below) for name in used}
    lost += [entry for entry in left_out if entry.reason.startswith(CLOSED)]
    pairs, alike = _without_alike(pairs)
    lost += alike
    left_out += alike
    left_out += [LeftOut(path, NO_LABEL) for path in _all_label_maps(folder) if path not in told]
    log.info("%s: %s", shown(folder), count(len(pairs), "image"))
    tell_left_out(left_out, folder)
    if not pairs:
        expected = f"sub-*/{{{','.join(MODALITIES)}}}/*.nii.gz"
        raise UserError(f"{shown(folder)}: a BIDS folder without an image {expected} that can be used")
    return pairs, known


def _without_alike(pairs: list[Pair]) -> tuple[list[Pair], list[LeftOut]]:
    """Return the cases whose names are theirs alone, and the images of the others."""
    times = Counter(case for _, case, *_ in pairs)
    alike = [LeftOut(images[0], ONE_CASE, lost=True) for _, case, images, _ in pairs if times[case] > 1]
    return [pair for pair in pairs if times[pair[1]] == 1], alike


def _whole_name(name: str, place: Path) -> str:
    """Return a name with the subject and the session of its folder ``sub-01/ses-1/anat``, where it lacks them."""
    before: list[str] = []
    others = name.split("_")
    for folder in place.parts[:-1]:
        own = [part for part in others if part.startswith(folder[: folder.index("-") + 1])]
        before += own or [folder]
        others = [part for part in others if part not in own]
    return "_".join([*before, *others])


def _said_by(name: str, place: Path) -> dict[str, str]:
    """Return modality, sequence and patient of an image, by its name and its folder ``sub-<patient>/.../anat``."""
    sequence = _suffix(name).lower()
    modality = "CT" if sequence == "ct" else MODALITIES[place.name]
    return {"modality": modality, "sequence": sequence, "patient": place.parts[0].removeprefix("sub-")}


def _places(folder: Path, left_out: list[LeftOut]) -> Iterator[Path]:
    """Yield the folders with images, of one subject and session each.

    Args:
        left_out: gets folders that cannot be looked into. Images whose label maps may lie in one are not yielded.
    """
    for subject in sorted(folder.glob("sub-*/")):
        for session in [subject, *sorted(subject.glob("ses-*/"))]:
            shut = closed(session)
            left_out += [shut] if shut else []
            for place in [] if shut else [session / name for name in MODALITIES if (session / name).is_dir()]:
                found = [entry for entry in map(closed, [place, *_beside(folder, place)]) if entry is not None]
                left_out += found
                if not found:
                    yield place


def _beside(folder: Path, place: Path) -> list[Path]:
    """Return where label maps of a folder of images may lie, below ``derivatives``."""
    return [pipeline / place.relative_to(folder) for pipeline in sorted((folder / "derivatives").glob("*/"))]


def _label_maps(folder: Path, place: Path) -> tuple[list[Path], list[LeftOut]]:
    """Return the label maps below ``derivatives`` of a folder of images, and what cannot be read there."""
    found: list[Path] = []
    unread: list[LeftOut] = []
    for below in _beside(folder, place):
        listing = list_folder(below) if below.is_dir() else Listing(below, {})
        unread += [entry for entry in listing.lost if _suffix(entry.case) in OF_LABELS]
        found += [path for name, path in listing.volumes.items() if _suffix(name) in OF_LABELS]
    return found, unread


def _all_label_maps(folder: Path) -> list[Path]:
    """Return all that is named like a label map below ``derivatives``, at any depth."""
    files = sorted((folder / "derivatives").rglob("*"))
    return [path for path in files if extension(path.name) and _suffix(stem(path)) in OF_LABELS]


def _by_image(names: Iterable[str], labels: Sequence[Path], place: Path) -> tuple[dict[str, list[Path]], list[LeftOut]]:
    """Return the label maps of each image of a folder, by its name, and those of an image that lie in another space."""
    found: dict[str, list[Path]] = {name: [] for name in names}
    whole = {name: _whole_name(name, place) for name in found}
    elsewhere: list[LeftOut] = []
    for path in labels:
        label = _whole_name(stem(path), place)
        mine = [name for name, image in whole.items() if label.startswith(f"{image}_")]
        mine = sorted(mine, key=len)[-1:] or [name for name, image in whole.items() if _is_of(label, image)]
        if len(mine) != 1:
            continue
        if _in_other_space(label, mine[0]):
            elsewhere.append(LeftOut(path, OTHER_SPACE))
        else:
            found[mine[0]].append(path)
    return found, elsewhere


def _is_of(label: str, image: str) -> bool:
    """Say whether a label map has the entities of an image, without its suffix, and else only those of derivatives."""
    start = f"{image.rpartition('_')[0]}_"
    entities = label.removeprefix(start).split("_")[:-1]
    return label.startswith(start) and all(entity.partition("-")[0] in OF_DERIVATIVES for entity in entities)


def _in_other_space(label: str, image: str) -> bool:
    """Say whether a label map is of a space that its image does not name."""
    own = {*OWN_SPACES, _suffix(image).lower()}
    more = set(label.split("_")) - set(image.split("_"))
    return any(part.startswith("space-") and part.removeprefix("space-").lower() not in own for part in more)


def _suffix(name: str) -> str:
    return name.rpartition("_")[2]
