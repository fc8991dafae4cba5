"""Levels of a case that training does not see (Meng, section 2.1)."""

import numpy as np
import pytest
from tiny_training import CLASSES, IDS, make_job

from labelloop.inference.prepared import open_image, open_label, write_image_array, write_label_array
from labelloop.training.loading import PreparedDataset
from labelloop.training.trainers import TRAINERS

CHANNELS = {IDS["liver"]: 1, IDS["spleen"]: 2}


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(0)
    label = np.zeros((40, 16, 18), np.int16)
    label[12:15, 4:8, 4:8], label[19, 3, 3], label[33, 3, 3] = IDS["liver"], IDS["spleen"], IDS["tumor"]
    write_image_array(tmp_path / "images" / "a.b2nd", rng.normal(size=label.shape))
    write_label_array(tmp_path / "labels" / "a.b2nd", label)
    return tmp_path


def load(case, channels, margin):
    return PreparedDataset(case / "images", case / "labels", {"a": channels}, margin).load_case("a")


@pytest.mark.parametrize(
    ("margin", "levels"), [(None, (0, 40)), (0, (12, 20)), (5, (7, 25)), (15, (0, 35)), (99, (0, 40))]
)
def test_levels_of_the_classes_and_a_margin_are_seen(case, margin, levels):
    image, label, _, properties = load(case, CHANNELS, margin)
    stored = [part.array[0, slice(*levels)] for part in (open_image(case / "images" / "a.b2nd"),
                                                         open_label(case / "labels" / "a.b2nd"))]  # fmt: skip
    assert image.shape == label.shape == (1, levels[1] - levels[0], 16, 18)
    everything = (slice(None),) * 4
    np.testing.assert_array_equal(image[everything][0], stored[0])
    np.testing.assert_array_equal(label[everything][0] == 1, stored[1] == IDS["liver"])
    np.testing.assert_array_equal(image[:, 2:4, 5:9, 1:3][0], stored[0][2:4, 5:9, 1:3])
    for channel, where in properties["class_locations"].items():
        assert all(label[:, z : z + 1, y : y + 1, x : x + 1].item() == channel for _, z, y, x in where)


def test_a_case_without_any_of_the_classes_is_seen_whole(case):
    image, _, _, _ = load(case, {IDS["left_kidney"]: 1}, 2)
    assert image.shape[1] == 40


def test_the_margin_is_mm_of_the_plan(data, tmp_path):
    trainer = TRAINERS["supervised"].of(make_job(data, tmp_path, settings={"crop_z_mm": 4.0}))  # planes of 3 mm
    seen = trainer.get_dataloaders()["train"]._data
    labels = {name: open_label(data / "labels" / f"{name}.b2nd").array[0] for name in seen.identifiers}
    for name, label in labels.items():
        z = np.flatnonzero(np.isin(label, [IDS[c] for c in CLASSES]).any((1, 2)))
        assert seen.load_case(name)[0].shape[1] == min(20, z[-1] + 3) - max(0, z[0] - 2)
    batch = trainer.get_dataloaders()["train"].generate_train_batch()
    assert batch["data"].shape[2:] == (16, 24, 24)
