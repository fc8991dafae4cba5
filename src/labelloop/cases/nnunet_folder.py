"""Data set folders of nnU-Net and of the Medical Segmentation Decathlon: imagesTr, labelsTr, imagesTs, dataset.json."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from labelloop.base.documents import read_json
from labelloop.base.errors import UserError
from labelloop.cases.folders import Pair, pair_folders
from labelloop.images.listing import FORMAT, LeftOut, list_folder, tell_left_out
from labelloop.images.nnunet_json import NAME

TRAIN, TEST = ("imagesTr", "labelsTr"), ("imagesTs", "labelsTs")
NO_PART = "no part of the data set that is read; images to test on can be named with --test-images"


def nnunet_folder(path: Path) -> Path | None:
    """Return the data set folder that a path is, or whose ``dataset.json`` it is; None for other paths."""
    folder = path.parent if path.name == NAME else path
    return folder if (folder / NAME).is_file() and (folder / TRAIN[0]).is_dir() else None


def nnunet_pairs(
    folder: Path, role: str, lost: list[LeftOut], several: Callable[[], bool] = lambda: False
) -> list[Pair]:
    """Return the cases of a data set folder: those in imagesTr have ``role``, those in imagesTs are for testing.

    Args:
        lost, several: see :func:`labelloop.cases.folders.pair_folders`.

    Raises:
        UserError: when the file keeps cases for validation, as a datalist does; see also
            :func:`labelloop.cases.folders.pair_folders`.
    """
    _refuse_validation(folder / NAME, read_json(folder / NAME))
    pairs: list[Pair] = []
    for (images, labels), its_role in ((TRAIN, role), (TEST, "test")):
        if images == TEST[0] and not _holds_volumes(folder / images):
            continue
        place = folder / labels if _holds_volumes(folder / labels) else None
        found = pair_folders(folder / images, place, lost, several)
        pairs += [(its_role, case, *files) for case, files in found.items()]
    used = {NAME, *TRAIN, *TEST}
    others = [LeftOut(path, NO_PART) for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in used]
    files = [entry for entry in list_folder(folder).left_out if entry.reason == FORMAT and entry.path.name not in used]
    tell_left_out([*others, *files], folder)
    return pairs


def _refuse_validation(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a file that keeps cases of imagesTr for validation: read as a folder, they would be trained on."""
    if content.get("validation"):
        raise UserError(
            f"{path}: keeps cases for validation, as MONAI's datalists do, and lies beside {TRAIN[0]}, where nnU-Net's "
            "file says nothing of single cases. Give a copy of another name (datalist.json) to have its lists read"
        )


def _holds_volumes(folder: Path) -> bool:
    """Say whether a folder is there and holds something that was meant as a volume; nnU-Net leaves empty ones."""
    if not folder.is_dir():
        return False
    listing = list_folder(folder)
    return bool(listing.volumes or listing.lost)
