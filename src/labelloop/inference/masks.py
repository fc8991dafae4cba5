"""One mask a class beside the label maps, as TotalSegmentator writes them: ``labelloop infer --masks``."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from labelloop.base.errors import UserError
from labelloop.base.outputs import claim, claims, refuse_overwriting, release
from labelloop.base.sequences import flat
from labelloop.images.volume import read, write

FOLDER = "masks"


def write_masks(out: Path, cases: Iterable[str], class_ids: Mapping[str, int]) -> None:
    """Write ``masks/<case>/<class>.nii.gz``, 1 where a voxel is of the class, for label maps in ``out``.

    A class that the models know and that was not found has an empty mask; one that they do not know has none. Masks
    that are newer than their label map are kept.

    Raises:
        UserError: when two classes would share a file, or a file is not labelloop's.
    """
    files = {file_name(name): value for name, value in class_ids.items()}
    if len(files) < len(class_ids):
        raise UserError(f"--masks: names of classes that are alike as names of files: {', '.join(sorted(class_ids))}")
    wanted = {case: {f"{FOLDER}/{case}/{file}": value for file, value in files.items()} for case in cases}
    names = flat(wanted.values())
    refuse_overwriting([out / name for name in names], [], claims(out).__contains__)
    claim(out, names)
    try:
        for case, masks in wanted.items():
            _write_case(out / f"{case}.nii.gz", {out / name: value for name, value in masks.items()})
    finally:
        release(out)


def file_name(name: str) -> str:
    """Return the name of the file of a class; whatever the class is called, it leads to no other folder."""
    return re.sub(r"[^\w-]+", "_", name) + ".nii.gz"


def _write_case(labels: Path, masks: Mapping[Path, int]) -> None:
    changed = labels.stat().st_mtime_ns
    old = [path for path in masks if not path.is_file() or path.stat().st_mtime_ns < changed]
    if not old:
        return
    volume = read(labels)
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, (volume.array == masks[path]).astype(np.uint8), volume.geometry)
