"""Masks beside label maps: those of the models that made the map, and no others."""

import numpy as np

from labelloop.images.volume import Geometry, read, write
from labelloop.inference.masks import Masks
from labelloop.inference.reading import InputImage

GRID = Geometry((6, 5, 4), (2.0, 2.0, 3.0))


def test_masks_of_another_model_do_not_stay(tmp_path):
    case, place = InputImage("a", tmp_path / "a.mha"), tmp_path / "masks" / "a" / "segmentations"
    for classes in ({"liver": 1, "spleen": 2}, {"tumor": 1, "liver": 2}):
        labels = np.zeros(GRID.shape, np.uint8)
        labels[1], labels[2] = 1, 2
        write(tmp_path / "a.nii.gz", labels, GRID)
        masks = Masks(tmp_path)
        masks.begin([case], classes)
        masks.write(case, read(tmp_path / "a.nii.gz"))
        (place / "notes.txt").write_text("mine")
    assert sorted(path.name for path in place.iterdir()) == ["liver.nii.gz", "notes.txt", "tumor.nii.gz"]
    assert read(place / "liver.nii.gz").array[2].all() and not masks.lacks(case)
