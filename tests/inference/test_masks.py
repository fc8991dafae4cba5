"""Masks beside label maps: those of the models that made the map, and no others."""

import numpy as np
from test_prepare import random_volume
from tiny_models import save_model

from labelloop.images.volume import read, write
from labelloop.inference.infer import infer


def test_masks_of_another_model_do_not_stay(tmp_path, rng):
    volume, place = random_volume(rng, (8, 10, 12)), tmp_path / "out" / "masks" / "a" / "segmentations"
    write(tmp_path / "a.mha", volume.array, volume.geometry)
    for number, ids in enumerate(({"liver": 1, "spleen": 2}, {"tumor": 1, "liver": 2})):
        model = save_model(tmp_path / f"model_{number}", classes=tuple(ids), ids=ids)
        assert infer(tmp_path / "a.mha", model, tmp_path / "out", device="cpu", masks=True) == 0
        (place / "notes.txt").write_text("mine")
    assert sorted(path.name for path in place.iterdir()) == ["liver.nii.gz", "notes.txt", "tumor.nii.gz"]
    np.testing.assert_array_equal(read(place / "liver.nii.gz").array, read(tmp_path / "out" / "a.nii.gz").array == 2)
