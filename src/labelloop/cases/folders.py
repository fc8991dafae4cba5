"""Folders of images and labels in nnU-Net's and FLARE's naming: find the files and pair them."""

import logging
from collections.abc import Callable
from pathlib import Path

from labelloop.base.errors import UserError
from labelloop.base.sequences import flat
from labelloop.base.wording import named
from labelloop.images.listing import (
    CHANNEL,
    LeftOut,
    Listing,
    image_cases,
    list_folder,
    list_images,
    list_labels,
    mask_folders,
    nothing_in,
    stem,
    tell,
)

log = logging.getLogger(__name__)

Pair = tuple[str, str, tuple[Path, ...], Path | None]
"""Role, case, image (a file for each channel) and label."""


def pair_folders(
    images: str | Path | Listing,
    labels: str | Path | Listing | None = None,
    lost: list[LeftOut] | None = None,
    several: Callable[[], bool] = lambda: False,
) -> dict[str, tuple[tuple[Path, ...], Path | None]]:
    """Return ``{case: (images, label or None)}`` of folders in nnU-Net / FLARE naming, and say what is left out.

    Images are ``<case>_0000.nii.gz`` (and ``<case>_0001.nii.gz``, ..., their other channels) or ``<case>.nii.gz``,
    labels ``<case>.nii.gz`` (any of :data:`labelloop.images.listing.EXTENSIONS`). Both may lie in one folder when
    images carry ``_0000``. Images may lie in a folder each, too (:func:`labelloop.images.listing.list_images`).

    Args:
        images, labels: folders, or what is known to lie in them.
        lost: gets what is named like an image or label and cannot be read. Such a case is left out: without its label
            it would pass for an unlabeled one.
        several: see :func:`labelloop.images.listing.image_cases`.

    Raises:
        UserError: for ambiguous names, folders without an image or label map, and labels
            none of which has an image.
    """
    pictures = images if isinstance(images, Listing) else list_images(images)
    place = pictures.folder
    targets: Listing | None = None
    if isinstance(labels, Listing):
        targets = labels
    elif labels is not None and Path(labels).resolve() == place.resolve():
        if mask_folders(place):
            raise UserError(nothing_in(list_folder(place), "label map"))
        pictures, targets = _of_one_folder(pictures)
    else:
        _refuse_labels_among(pictures)
        targets = None if labels is None else list_labels(labels)
    found = image_cases(pictures, targets.volumes if targets else (), several)
    if not found:
        raise UserError(nothing_in(pictures, "image"))
    maps = targets.volumes if targets else {}
    beside = targets.folder if targets else labels
    without = sorted(set(maps) - set(found))
    if without and len(without) == len(maps):
        raise UserError(
            f"{beside}: no label has an image; a label is named as its case, so {maps[without[0]].name} belongs to "
            f"{without[0]}_0000 or {without[0]}, but the images are of cases such as {min(found)}"
        )
    gone = [*pictures.lost, *(targets.lost if targets else ())]
    unread = set(flat((stem(entry.path), entry.case) for entry in gone))
    pairs = {case: (image, maps.get(case)) for case, image in sorted(found.items()) if case not in unread}
    tell(pictures, len(pairs), "image")
    if targets:
        tell(targets, sum(label is not None for _, label in pairs.values()), "label map")
    if without:
        log.warning("%s: %d left out, no image of theirs: %s", beside, len(without), named(without))
    aside = sorted(unread & set(found))
    if aside:
        log.warning("%s: %d left out, their label cannot be read: %s", place, len(aside), named(aside))
    if not pairs:
        raise UserError(f"{place}: no case is left")
    if lost is not None:
        lost += gone
    return pairs


def _of_one_folder(listing: Listing) -> tuple[Listing, Listing]:
    """Return the images (``X_0000``) and the label maps (``X``) of a folder that holds both."""
    named_alike = {*listing.volumes, *(stem(entry.path) for entry in listing.lost)}
    beside = {name for name in listing.volumes if f"{name}{CHANNEL}" in named_alike}
    pictures = {name: path for name, path in listing.volumes.items() if name not in beside}
    orphans = [case for case, files in image_cases(Listing(listing.folder, pictures), beside).items() if _alone(files)]
    if orphans:
        raise UserError(
            f"{listing.folder}: images and labels share this folder, but {named(orphans)} could be either; name "
            "images <case>_0000 and labels <case>, or use two folders"
        )
    if pictures and not beside:
        raise UserError(
            f"{listing.folder}: named as the labels' folder, too, but no image <case>_0000 has a label <case>"
        )
    targets = {name: listing.volumes[name] for name in sorted(beside)}
    return Listing(listing.folder, pictures, listing.left_out), Listing(listing.folder, targets)


def _alone(files: tuple[Path, ...]) -> bool:
    """Say whether an image is no channel ``_0000``, so that it could be a label map."""
    return not stem(files[0]).endswith(CHANNEL)


def _refuse_labels_among(pictures: Listing) -> None:
    beside = [name for name in pictures.volumes if f"{name}{CHANNEL}" in pictures.volumes]
    if beside:
        raise UserError(
            f"{pictures.folder}: holds {beside[0]} and {beside[0]}_0000; if the first is a label, name this folder as "
            "the labels' folder too, else keep one of the two"
        )
