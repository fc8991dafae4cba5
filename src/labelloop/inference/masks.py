"""One mask a class beside the label maps, in TotalSegmentator's layout: ``labelloop infer --masks``."""

import re
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

import numpy as np

from labelloop.base.errors import UserError
from labelloop.base.outputs import alike_but_for_capitals, claim, claims, refuse_overwriting
from labelloop.images.volume import Volume, write
from labelloop.inference.reading import InputImage

FOLDER = "masks"
OF_A_CASE = "segmentations"


class Masks:
    """Writes ``masks/<case>/segmentations/<class>.nii.gz``, 1 where a voxel is of the class, beside the label maps.

    A class that the models know and that was not found has an empty mask; one that they do not know has none. Masks
    that are newer than their label map are kept.
    """

    def __init__(self, out: Path):
        self._out, self._files = out, dict[str, int]()

    def begin(self, cases: Iterable[InputImage], class_ids: Mapping[str, int]) -> None:
        """Take note of the classes, and of the files that will be written as labelloop's own.

        Raises:
            UserError: when two classes would share a file, or a file is not labelloop's.
        """
        self._files = {file_name(name): value for name, value in class_ids.items()}
        if len(self._files) < len(class_ids) or alike_but_for_capitals(self._files):
            found = ", ".join(sorted(class_ids))
            raise UserError(f"--masks: names of classes that are alike as names of files: {found}")
        names = [f"{FOLDER}/{case.case}/{OF_A_CASE}/{file}" for case, file in product(cases, self._files)]
        refuse_overwriting([self._out / name for name in names], [], claims(self._out).__contains__)
        claim(self._out, names)

    def lacks(self, case: InputImage) -> bool:
        """Say whether masks of a finished case are not there, or older than its label map."""
        return bool(self._missing(case.case))

    def write(self, case: InputImage, labels: Volume) -> None:
        """Write the masks of a case that are missing, from its label map."""
        for path, value in self._missing(case.case).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, (labels.array == value).astype(np.uint8), labels.geometry)

    def _missing(self, case: str) -> dict[Path, int]:
        changed = (self._out / f"{case}.nii.gz").stat().st_mtime_ns
        place = self._out / FOLDER / case / OF_A_CASE
        wanted = {place / file: value for file, value in self._files.items()}
        return {p: value for p, value in wanted.items() if not p.is_file() or p.stat().st_mtime_ns < changed}


def file_name(name: str) -> str:
    """Return the name of the file of a class; whatever the class is called, it leads to no other folder."""
    return re.sub(r"[^\w-]+", "_", name) + ".nii.gz"
