"""Label maps that decisions name: kept by the hash of their content, so that no decision depends on the results."""

import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from labelloop.base.classes import BACKGROUND, IGNORED
from labelloop.base.errors import CaseError
from labelloop.base.files import atomic, sha256
from labelloop.images.scan import check_same_grid, read_label
from labelloop.images.volume import Geometry, Volume, write
from labelloop.review.decisions import EDITED_MAPS, KEPT

ENDING = ".nii.gz"


def read_reviewed(path: str | Path, ids: Collection[int], grid: Geometry | None = None) -> Volume:
    """Return a label map that somebody judged or edited, in class ids, uint8; voxels that nobody knows are 255.

    Args:
        ids: ids of the class scheme.
        grid: what the map must lie on; None: not asked.

    Raises:
        CaseError: the file is no label map (:func:`labelloop.images.scan.read_label`), has ids that the scheme lacks,
            or another grid.
        OSError, MemoryError: when the disk or memory is at fault.
    """
    volume = read_label(path)
    strange = sorted(set(np.unique(volume.array).tolist()) - {BACKGROUND, IGNORED, *ids})
    if strange:
        found = f"label ids {', '.join(map(str, strange[:20]))}, which the class scheme lacks"
        raise CaseError("label_unknown_ids", str(path), found, "Save the map with the ids that it was opened with.")
    if grid is not None:
        check_same_grid(volume.geometry, grid, path)
    return Volume(volume.array.astype(np.uint8, copy=False), volume.geometry)


def keep(folder: str | Path, source: str | Path) -> tuple[str, str]:
    """Keep a copy of a label map among the decisions of a label set; return its sha256 and its name in ``folder``."""
    content = sha256(source)
    name = f"{KEPT}/{content}{ENDING}"
    target = Path(folder) / name
    if not (target.is_file() and sha256(target) == content):
        with atomic(target) as temporary:
            temporary.write_bytes(Path(source).read_bytes())
    return content, name


def keep_edited(folder: str | Path, case: str, source: str | Path, ids: Collection[int], grid: Geometry) -> str:
    """Keep an edited label map, in every way checked, and show it as ``edited/<case>.nii.gz``; return its name.

    Whatever format it was saved in, it is kept as NIfTI.

    Raises:
        CaseError: as :func:`read_reviewed`; then nothing is written.
    """
    volume = read_reviewed(source, ids, grid)
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / f"map{ENDING}"
        write(plain, volume.array, volume.geometry)
        _, name = keep(folder, plain)
    shown = Path(folder) / EDITED_MAPS / f"{case}{ENDING}"
    with atomic(shown) as temporary:  # no link: whoever edits it again must not alter what is kept
        temporary.write_bytes((Path(folder) / name).read_bytes())
    return name
