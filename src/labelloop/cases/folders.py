"""Folders of images and labels in nnU-Net's and FLARE's naming: find the files, pair them, write a case table."""

import logging
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from labelloop.base.errors import CaseError, UserError
from labelloop.base.lookup import SUFFIXES, find
from labelloop.base.outputs import is_table, refuse_overwriting
from labelloop.base.sequences import flat
from labelloop.base.wording import count, named
from labelloop.cases.table import MODALITIES, NONE, REASONS, ROLES, SAFE_ID, Case, write_cases
from labelloop.images.datasets import Dataset, label_counts, read_dataset
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
from labelloop.images.mask_folders import Masks, find_masks, merge, refuse_merged

log = logging.getLogger(__name__)

Pair = tuple[str, str, Path, Path | None]
"""Role, case, image and label."""


def pair_folders(
    images: str | Path, labels: str | Path | Listing | None = None, lost: list[LeftOut] | None = None
) -> dict[str, tuple[Path, Path | None]]:
    """Return ``{case: (image, label or None)}`` of folders in nnU-Net / FLARE naming, and say what is left out.

    Images are ``<case>_0000.nii.gz`` or ``<case>.nii.gz``, labels ``<case>.nii.gz`` (any of
    :data:`labelloop.images.listing.EXTENSIONS`). Both may lie in one folder when the images carry ``_0000``. Images may
    lie in a folder each, too (:func:`labelloop.images.listing.list_images`).

    Args:
        labels: folder of labels, or what is known to lie in it.
        lost: gets what is named like an image or label and cannot be read. Such a case is left out: without its label
            it would pass for an unlabeled one.

    Raises:
        UserError: for images of several channels, ambiguous names, folders without an image or label map, and labels
            none of which has an image.
    """
    pictures = list_images(images)
    targets: Listing | None = None
    if isinstance(labels, Listing):
        targets = labels
    elif labels is not None and Path(labels).resolve() == Path(images).resolve():
        if mask_folders(Path(images)):
            raise UserError(nothing_in(list_folder(images), "label map"))
        pictures, targets = _of_one_folder(pictures)
    else:
        _refuse_labels_among(pictures)
        targets = None if labels is None else list_labels(labels)
    found = image_cases(pictures, targets.volumes if targets else ())
    if not found:
        raise UserError(nothing_in(pictures, "image"))
    maps = targets.volumes if targets else {}
    place = targets.folder if targets else labels
    without = sorted(set(maps) - set(found))
    if without and len(without) == len(maps):
        raise UserError(
            f"{place}: no label has an image; a label is named as its case, so {maps[without[0]].name} belongs to "
            f"{without[0]}_0000 or {without[0]}, but the images are of cases such as {min(found)}"
        )
    gone = [*pictures.lost, *(targets.lost if targets else ())]
    unread = set(flat((stem(entry.path), entry.case) for entry in gone))
    pairs = {case: (image, maps.get(case)) for case, image in sorted(found.items()) if case not in unread}
    tell(pictures, len(pairs), "image")
    if targets:
        tell(targets, sum(label is not None for _, label in pairs.values()), "label map")
    if without:
        log.warning("%s: %d left out, no image of theirs: %s", place, len(without), named(without))
    aside = sorted(unread & set(found))
    if aside:
        log.warning("%s: %d left out, their label cannot be read: %s", images, len(aside), named(aside))
    if not pairs:
        raise UserError(f"{images}: no case is left")
    if lost is not None:
        lost += gone
    return pairs


def _of_one_folder(listing: Listing) -> tuple[Listing, Listing]:
    """Return the images (``X_0000``) and the label maps (``X``) of a folder that holds both."""
    named_alike = {*listing.volumes, *(stem(entry.path) for entry in listing.lost)}
    beside = {name for name in listing.volumes if f"{name}{CHANNEL}" in named_alike}
    pictures = {name: path for name, path in listing.volumes.items() if name not in beside}
    image_cases(Listing(listing.folder, pictures), beside)  # refuses channels
    orphans = [name for name in pictures if not name.endswith(CHANNEL)]
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


def _refuse_labels_among(pictures: Listing) -> None:
    beside = [name for name in pictures.volumes if f"{name}{CHANNEL}" in pictures.volumes]
    if beside:
        raise UserError(
            f"{pictures.folder}: holds {beside[0]} and {beside[0]}_0000; if the first is a label, name this folder as "
            "the labels' folder too, else keep one of the two"
        )


def table_from_folders(
    images: str | Path,
    labels: str | Path | None,
    dataset: str,
    out: str | Path,
    *,
    role: str = "train",
    modality: str = "",
    sequence: str = "",
    test_images: str | Path | None = None,
    test_labels: str | Path | None = None,
    test_fraction: float = 0.0,
    seed: int = 0,
    annotated_from_ids: bool = False,
    overwrite: bool = False,
    merged: str | Path | None = None,
    lost: list[LeftOut] | None = None,
) -> list[Case]:
    """Write the case table of a folder of images (see :func:`pair_folders`) and return its cases.

    Args:
        images: folder of images.
        labels: folder of labels, the same folder, or None.
        dataset: data set that explains the label ids: a name or the path of a data set file.
        out: the table to write.
        role: role of the cases in ``images``.
        modality: CT or MR; empty: the data set's.
        sequence: MR sequence or CT phase of all cases.
        test_images: folder of test cases; ``test_labels`` is their labels' folder.
        test_fraction: share of the labeled cases (0 to 1) to draw for testing, with ``seed``; at least one.
        annotated_from_ids: note as annotated, case by case, the classes that occur in the label. It is how the
            FLARE23 papers read their data, and it cannot know that an organ was looked for and is absent.
        overwrite: write over an existing table.
        merged: folder to write label maps to, where the labels are masks (:mod:`labelloop.images.mask_folders`). The
            column ``annotated`` then names the classes that have a mask.
        lost: see :func:`pair_folders`.

    Raises:
        UserError: see :func:`pair_folders`; also when ``out`` exists and is no case table, or must not be overwritten,
            and for unsafe ids or contradicting options.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists; name another file, or overwrite it (--overwrite)")
    _check_options(role, modality, test_images, test_fraction)
    masks = _MaskLabels(read_dataset(dataset), None if merged is None else Path(merged))
    lost = [] if lost is None else lost
    pairs: list[Pair] = [
        (role, case, *files) for case, files in pair_folders(images, masks.listed(labels), lost).items()
    ]
    if test_images is not None:
        tested = pair_folders(test_images, masks.listed(test_labels), lost)
        pairs += [("test", case, *files) for case, files in tested.items()]
    _check_ids([case for _, case, _, _ in pairs])
    inputs = [find("datasets", dataset), *filter(None, flat(files for _, _, *files in pairs))]
    refuse_overwriting([out], inputs, is_table("cases"))
    pairs = masks.write(pairs, lost)
    annotated = masks.annotated | {
        case: _occurring(label, dataset) for _, case, _, label in pairs if annotated_from_ids and label
    }
    labeled = [case for _, case, _, label in pairs if label and annotated.get(case) != NONE]
    drawn = _draw(labeled, test_fraction, seed)
    given = {"dataset": dataset, "modality": modality, "sequence": sequence}
    cases = [_row(pair, pair[1] in drawn, annotated.get(pair[1], ""), given) for pair in pairs]
    write_cases(out, cases)
    return cases


def _row(pair: Pair, drawn: bool, annotated: str, given: Mapping[str, str]) -> Case:
    role, case, image, label = pair
    dataset = given["dataset"]
    return Case(
        case=case,
        image=str(image.absolute()),
        label=str(label.absolute()) if label else "",
        dataset=str(Path(dataset).absolute()) if dataset.endswith(SUFFIXES) else dataset,
        modality=given["modality"],
        sequence=given["sequence"],
        role="test" if drawn else role,
        annotated=annotated,
    )


class _MaskLabels:
    """Labels that are a mask an organ: listed as the label maps that are made of them, and made."""

    def __init__(self, dataset: Dataset, merged: Path | None):
        self._dataset, self._merged, self._masks = dataset, merged, dict[str, Masks]()

    @property
    def annotated(self) -> dict[str, str]:
        """The column ``annotated`` by case: a class without a mask is unknown."""
        return {case: masks.annotated for case, masks in self._masks.items()}

    def listed(self, labels: str | Path | None) -> str | Path | Listing | None:
        """Return what to pair images with: the labels as they are, or the label maps to be made of their masks."""
        if labels is None or self._merged is None:
            return labels
        found, left_out = find_masks(Path(labels), self._dataset)
        twice = sorted(set(found) & set(self._masks))
        if twice:
            raise UserError(f"{labels}: masks of {named(twice)} are in the train and in the test folder")
        self._masks |= found
        maps = {case: self._merged / f"{case}.nii.gz" for case in found}
        return Listing(Path(labels), maps, tuple(left_out))

    def write(self, pairs: list[Pair], lost: list[LeftOut]) -> list[Pair]:
        """Write the label maps of ``pairs``; return those whose masks can be used, the others are in ``lost``."""
        if self._merged is None:
            return pairs
        labeled = {case: self._masks[case] for _, case, _, label in pairs if label}
        refuse_merged(self._merged, labeled, [image for _, _, image, _ in pairs])
        failed = set()
        for case, masks in labeled.items():
            out = self._merged / f"{case}.nii.gz"
            try:
                merge(case, masks, self._dataset, out)
            except (CaseError, OSError) as error:
                log.error("%s: left out: %s", case, error)
                lost.append(LeftOut(out, str(error), lost=True))
                failed.add(case)
        if len(failed) == len(pairs):
            raise UserError(f"{self._merged}: no case is left")
        return [pair for pair in pairs if pair[1] not in failed]


def _check_options(role: str, modality: str, test_images: str | Path | None, test_fraction: float) -> None:
    lines = [f"role {role!r}: write train or test"] if role not in ROLES else []
    lines += [f"modality {modality!r}: write CT or MR"] if modality not in ("", *MODALITIES) else []
    lines += [f"test fraction {test_fraction}: a number from 0 to below 1"] if not 0 <= test_fraction < 1 else []
    if test_fraction and test_images is not None:
        lines.append("give a test folder or a test fraction, not both")
    if lines:
        raise UserError("\n".join(lines))


def _check_ids(ids: list[str]) -> None:
    lines = [f"case id {i!r} from its file name: {REASONS['case_id_unsafe']}" for i in ids if not SAFE_ID.fullmatch(i)]
    lines += [f"case {i!r} is in the train and in the test folder" for i, n in Counter(ids).items() if n > 1]
    if lines:
        raise UserError("\n".join(lines))


def _draw(labeled: list[str], fraction: float, seed: int) -> set[str]:
    if not fraction:
        return set()
    if len(labeled) < 2:
        raise UserError(f"{count(len(labeled), 'labeled case')}: too few to set some of them aside for testing")
    drawn = min(max(1, round(fraction * len(labeled))), len(labeled) - 1)
    return set(random.Random(seed).sample(sorted(labeled), drawn))


def _occurring(label: Path, dataset: str) -> str:
    """Return the classes that occur in a label, as the column ``annotated`` has them; ``none`` when no class does."""
    from labelloop.images.scan import read_label  # numpy is slow to import

    known = read_dataset(dataset).named
    try:
        found = label_counts(read_label(label).array, str(label))
    except CaseError as error:
        log.warning("%s; its column 'annotated' is set to none", error)
        return NONE
    occurring = dict.fromkeys(name for i, name in known.items() if i in found)
    if not occurring:
        log.warning("%s: holds no class of the data set; column 'annotated' is set to none", label)
    return ";".join(occurring) or NONE
