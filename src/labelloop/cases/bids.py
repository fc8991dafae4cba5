"""BIDS data sets: images below ``sub-*/[ses-*/]``, and their label maps below ``derivatives`` (bids-specification)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from labelloop.base.errors import UserError
from labelloop.base.sequences import flat
from labelloop.base.wording import shown
from labelloop.cases.folders import Pair
from labelloop.images.listing import LeftOut, Listing, list_folder, tell, tell_left_out

DESCRIPTION = "dataset_description.json"
MODALITIES = {"anat": "MR", "ct": "CT"}
"""Folders of images that are read, and the modality of what lies in them."""
NO_IMAGES = ("defacemask", "dseg", "seg", "mask")
"""Suffixes of what lies among images and is none."""
OF_LABELS = ("dseg", "seg")
"""Suffixes of label maps: that of BIDS, and the one of before."""
NO_IMAGE = "no image, by its suffix"
SEVERAL = "label maps of one image: move all but one out of derivatives"


def bids_folder(path: Path) -> bool:
    """Say whether a folder is a data set in BIDS."""
    return (path / DESCRIPTION).is_file() and any(path.glob("sub-*/"))


def bids_pairs(folder: Path, role: str, lost: list[LeftOut]) -> tuple[list[Pair], dict[str, dict[str, str]]]:
    """Return the cases of a data set, an image each, and what their names say: modality, sequence and patient, by case.

    The label map of ``<image>.nii.gz`` is the one file ``<image>_*dseg`` or ``<image>_*seg`` in the same folder below
    ``derivatives/<any>``; where that folder holds one image alone, its name may lack the image's suffix.

    Args:
        lost: gets what is named like an image or label map and cannot be read, and label maps of which an image has
            several; their cases are left out.

    Raises:
        UserError: when there is no image.
    """
    pairs: list[Pair] = []
    known: dict[str, dict[str, str]] = {}
    for place in _places(folder):
        listing = list_folder(place)
        images = {name: path for name, path in listing.volumes.items() if _suffix(name) not in NO_IMAGES}
        listing = listing.without(listing.volumes.keys() - images.keys(), NO_IMAGE)
        labels, unread = _label_maps(folder, place)
        lost += [*listing.lost, *unread]
        for name, path in images.items():
            found = _labels_of(name, labels, alone=len(images) == 1)
            if len(found) > 1:
                gone = [LeftOut(file, SEVERAL, lost=True) for file in found]
                tell_left_out(gone, folder)
                lost += gone
                continue
            pairs.append((role, name, (path,), found[0] if found else None))
            subject = name.split("_")[0].removeprefix("sub-")
            known[name] = {"modality": MODALITIES[place.name], "sequence": _suffix(name).lower(), "patient": subject}
        tell(listing, len(images), "image")
    if not pairs:
        expected = f"sub-*/{{{','.join(MODALITIES)}}}/*.nii.gz"
        raise UserError(f"{shown(folder)}: a BIDS folder without an image {expected} that can be used")
    return pairs, known


def _places(folder: Path) -> Iterator[Path]:
    """Yield the folders with images, of one subject and session each."""
    for subject in sorted(folder.glob("sub-*/")):
        for session in [subject, *sorted(subject.glob("ses-*/"))]:
            yield from (session / name for name in MODALITIES if (session / name).is_dir())


def _label_maps(folder: Path, place: Path) -> tuple[dict[str, list[Path]], list[LeftOut]]:
    """Return the label maps below ``derivatives`` of a folder of images by name, and what cannot be read there."""
    found: dict[str, list[Path]] = {}
    unread: list[LeftOut] = []
    for pipeline in sorted((folder / "derivatives").glob("*/")):
        below = pipeline / place.relative_to(folder)
        listing = list_folder(below) if below.is_dir() else Listing(below, {})
        unread += [entry for entry in listing.lost if _suffix(entry.case) in OF_LABELS]
        for name, path in listing.volumes.items():
            if _suffix(name) in OF_LABELS:
                found.setdefault(name, []).append(path)
    return found, unread


def _labels_of(image: str, labels: Mapping[str, list[Path]], alone: bool) -> list[Path]:
    """Return the label maps of an image: all that are named so.

    Args:
        alone: whether no other image could be meant by a name without the image's suffix.
    """
    start = image.rpartition("_")[0] if alone else image
    mine = [name for name in labels if name.startswith((f"{image}_", f"{start}_"))]
    return flat(labels[name] for name in mine)


def _suffix(name: str) -> str:
    return name.rpartition("_")[2]
