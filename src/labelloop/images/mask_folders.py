"""A folder a case with a mask an organ, as TotalSegmentator and many challenges give them: joined into one label map.

A voxel of several masks goes to the class that the data set file lists last, so that a tumor stays within its organ. A
class without a mask is one that nobody annotated in that case: unknown, not absent.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import CaseError, UserError, nearest
from labelloop.base.outputs import claim, claims, refuse_overwriting
from labelloop.base.sequences import flat
from labelloop.base.wording import named, shown
from labelloop.images.datasets import Dataset, of_scheme, words_of
from labelloop.images.listing import SUBFOLDER, LeftOut, Listing, closed, list_folder, list_labels, mask_folders, stem

if TYPE_CHECKING:
    from labelloop.images.volume import Volume

log = logging.getLogger(__name__)

ACTION = "Write a mask with 0 outside of the organ and one other number within, all masks of a case on one grid."
NO_MASKS = "no masks in it"
NO_CLASS = "no mask of a class of the data set"


@dataclass(frozen=True)
class Masks:
    """The masks of one case by class name, in the order in which they are written, and what is no class."""

    files: dict[str, Path]
    others: tuple[Path, ...]

    @property
    def annotated(self) -> str:
        """Classes that somebody looked for, as the column ``annotated`` has them."""
        return ";".join(self.files)


def find_masks(folder: Path, dataset: Dataset) -> tuple[dict[str, Masks], list[LeftOut]]:
    """Return the masks of each case below ``folder`` whose classes the data set names, and say what is left out.

    ``<case>/segmentations/<organ>.nii.gz`` or ``<case>/<organ>.nii.gz``. The order of an organ's words is free:
    ``kidney_left`` is left_kidney. A case with a file that cannot be read, without a mask of a class, or with two masks
    of one is left out.

    Raises:
        UserError: when the folder holds no masks.
    """
    places = mask_folders(folder)
    if not places:
        raise UserError(
            f"{shown(folder)}: no folder <case>/segmentations with a mask an organ, nor <case> with a file that is "
            "named as a class of a class scheme (<case>/liver.nii.gz)"
        )
    classes = _by_words(dataset)
    found: dict[str, Masks] = {}
    left_out = [_without_masks(entry) for entry in list_folder(folder).left_out if entry.path.name not in places]
    for case, place in places.items():
        try:
            listing, found[case] = _masks_in(place, classes)
        except UserError as error:
            left_out.append(LeftOut(folder / case, str(error), lost=True))
        else:
            left_out += [entry for entry in listing.left_out if not entry.lost]
    _tell_others(folder, flat(masks.others for masks in found.values()), dataset)
    return found, left_out


def _without_masks(entry: LeftOut) -> LeftOut:
    """Return what to say of an entry of a folder of cases that holds no masks."""
    if entry.reason != SUBFOLDER:
        return entry
    shut = closed(entry.path) or closed(entry.path / "segmentations")
    return LeftOut(entry.path, shut.reason if shut else NO_MASKS, lost=shut is not None)


def _masks_in(place: Path, classes: Mapping[tuple[str, ...], str]) -> tuple[Listing, Masks]:
    """Return what lies in the folder of a case, and its masks. Raises UserError when they cannot be used."""
    listing = list_folder(place)
    masks = _of_classes(listing, classes)
    if listing.lost or not masks.files:
        raise UserError(listing.lost[0].reason if listing.lost else NO_CLASS)
    return listing, masks


def masks_of(place: Path, dataset: Dataset) -> Masks:
    """Return the masks of one case.

    Raises:
        CaseError: ``mask_unusable`` when one cannot be read, there is none of a class of the data set, or two of one.
    """
    try:
        return _masks_in(place, _by_words(dataset))[1]
    except UserError as error:
        raise CaseError("mask_unusable", shown(place), str(error), ACTION) from error


def list_label_maps(folder: str | Path, dataset: Dataset) -> Listing:
    """List the label maps of a folder by case; where there are none, its folders with a mask an organ of ``dataset``.

    Raises:
        UserError: see :func:`labelloop.images.listing.list_labels`.
    """
    folder = Path(folder)
    places = {} if list_folder(folder).volumes else mask_folders(folder)
    if not places:
        return list_labels(folder)
    found, left_out = find_masks(folder, dataset)
    if not found:
        raise UserError(f"{shown(folder)}: no case has masks of classes of {dataset.name} that can be read")
    return Listing(folder, {case: places[case] for case in found}, tuple(left_out))


def read_label_map(path: Path, scheme: ClassScheme, dataset: Dataset | None = None, action: str = "") -> "Volume":
    """Return a label map that is a file, or a folder with a mask an organ, in the class ids of ``scheme``, uint8.

    Args:
        dataset: data set (of the scheme) whose ids the file carries, or whose classes the masks are named as; default:
            those of the scheme.
        action: what to do about ids that the scheme lacks.

    Raises:
        CaseError: see :func:`labelloop.images.scan.read_classes`, :func:`masks_of` and :func:`join`.
    """
    from labelloop.images.scan import NAME_THE_DATASET, read_classes
    from labelloop.images.volume import Volume

    if not path.is_dir():
        return read_classes(path, scheme, dataset, action or NAME_THE_DATASET)
    known = dataset or of_scheme(scheme)
    joined = join(masks_of(path, known), known, shown(path))
    return Volume(known.to_classes(joined.array, shown(path)), joined.geometry)


def _by_words(dataset: Dataset) -> dict[tuple[str, ...], str]:
    return {words_of(name): name for name in dataset.named.values()}


def _of_classes(listing: Listing, classes: Mapping[tuple[str, ...], str]) -> Masks:
    by_class: dict[str, Path] = {}
    for name, path in listing.volumes.items():
        known = classes.get(words_of(name))
        if known in by_class:
            raise UserError(f"{shown(path)}: class {known} has a mask already, {by_class[known].name}; keep one")
        if known is not None:
            by_class[known] = path
    order = [name for name in dict.fromkeys(classes.values()) if name in by_class]
    others = tuple(path for name, path in listing.volumes.items() if words_of(name) not in classes)
    return Masks({name: by_class[name] for name in order}, others)


def _tell_others(folder: Path, others: list[Path], dataset: Dataset) -> None:
    """Say which names of masks are no class of the data set, and what may be meant."""
    names = sorted({stem(path) for path in others})
    if not names:
        return
    guesses = {name: nearest(name, set(dataset.named.values())) for name in names}
    meant = [f"{name}{guess}" for name, guess in guesses.items() if guess.startswith("; did you mean")]
    unlike = [name for name, guess in guesses.items() if not guess.startswith("; did you mean")]
    line = "%s: %d names of masks are no class of data set %s: %s"
    log.warning(line, shown(folder), len(names), dataset.name, named([*meant, *unlike]))


def refuse_merged(merged: Path, cases: Mapping[str, Masks], others: list[Path]) -> None:
    """Check the label maps that :func:`merge` will write, and note them as labelloop's own.

    Raises:
        UserError: when one is an input or a file that labelloop did not write.
    """
    names = [f"{case}.nii.gz" for case in cases]
    inputs = [*others, *flat(masks.files.values() for masks in cases.values())]
    refuse_overwriting([merged / name for name in names], inputs, claims(merged).__contains__)
    claim(merged, names)


def merge(case: str, masks: Masks, dataset: Dataset, out: Path) -> None:
    """Write the label map of a case's masks; see :func:`join`."""
    from labelloop.images.volume import write

    joined = join(masks, dataset, case)
    write(out, joined.array, joined.geometry)


def join(masks: Masks, dataset: Dataset, case: str) -> "Volume":
    """Return the label map of a case's masks, in the ids of the data set, and say how much lies in several masks.

    Raises:
        CaseError: when a mask cannot be read, has several numbers (``mask_values``) or another grid (``mask_grid``).
    """
    import numpy as np

    from labelloop.images.datasets import label_counts
    from labelloop.images.scan import read_label
    from labelloop.images.volume import Volume

    own = {name: own_id for own_id, name in reversed(dataset.named.items())}
    first, *_ = masks.files.values()
    grid = read_label(first).geometry
    labels, times = (np.zeros(grid.size[::-1], kind) for kind in (np.uint16, np.uint8))
    for name, path in masks.files.items():
        mask = read_label(path)
        differs = mask.geometry.difference(grid)
        if differs:
            raise CaseError("mask_grid", shown(path), f"another grid than {first.name}: {differs}", ACTION)
        values = set(label_counts(mask.array, str(path))) - {0}
        if len(values) > 1:
            raise CaseError("mask_values", shown(path), f"{len(values)} numbers beside 0", ACTION)
        inside = mask.array != 0
        labels[inside] = own[name]
        times += inside
    shared = float(np.count_nonzero(times > 1)) * grid.voxel_ml
    if shared:
        log.warning(
            "%s: %.2f ml lie in several masks: given to the class that the data set file lists last", case, shared
        )
    return Volume(labels if labels.max() > 255 else labels.astype(np.uint8), grid)
