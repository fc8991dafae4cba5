"""Levels of a case that training does not see (Meng, section 2.1)."""

import numpy as np
import pytest
from tiny_training import CLASSES, IDS, frame_of, make_job

from labelloop.base.classes import IGNORED
from labelloop.inference.prepared import open_image, open_label, write_image_array, write_label_array
from labelloop.training.loading import KNOWN, PreparedDataset
from labelloop.training.trainers import TRAINERS

CORONAL = (1.0, 0, 0, 0, 0, -1.0, 0, 1.0, 0)
"""Directions of the axes x, y, z of an array, in columns: y goes up the patient."""
SAGITTAL = (0.0, 0, -1.0, 0, 1.0, 0, 1.0, 0, 0)
"""x goes up the patient."""
CHANNELS = {IDS["liver"]: 1, IDS["spleen"]: 2}


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(0)
    label = np.zeros((40, 16, 18), np.int16)
    label[12:15, 4:8, 4:8], label[19, 3, 3], label[33, 3, 3] = IDS["liver"], IDS["spleen"], IDS["tumor"]
    write_image_array(tmp_path / "images" / "a.b2nd", rng.normal(size=label.shape), frame_of(label.shape))
    write_label_array(tmp_path / "labels" / "a.b2nd", label)
    return tmp_path


def load(case, channels, margin):
    margins = None if margin is None else (margin, 99, 99)
    return PreparedDataset(case / "images", case / "labels", {"a": channels}, margins).load_case("a")


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


@pytest.mark.parametrize(("direction", "axis"), [(CORONAL, 1), (SAGITTAL, 2)])
def test_axial_slices_are_those_of_the_patient_however_the_array_lies(tmp_path, direction, axis):
    """A plan of nnU-Net's may see the axes as the file stores them."""
    label = np.zeros((20, 30, 40), np.int16)
    label[4:6, 12:15, 22:26] = IDS["liver"]
    label[0, 0, 0] = IGNORED
    write_image_array(tmp_path / "images" / "a.b2nd", np.zeros(label.shape), frame_of(label.shape, direction))
    write_label_array(tmp_path / "labels" / "a.b2nd", label)
    margins = [99, 99, 99]
    margins[axis] = 2
    seen = PreparedDataset(tmp_path / "images", tmp_path / "labels", {"a": CHANNELS | {IGNORED: 3}}, margins)
    image, mapped, _, properties = seen.load_case("a")
    shape = [20, 30, 40]
    shape[axis] = 4 + {1: 3, 2: 4}[axis]
    assert list(image.shape[1:]) == list(mapped.shape[1:]) == shape
    everything = (slice(None),) * 4
    assert image[everything].shape == image.shape and (mapped[everything] == 1).sum() == 2 * 3 * 4
    for _, z, y, x in properties["class_locations"][1]:
        assert mapped[:, z : z + 1, y : y + 1, x : x + 1].item() == 1
    known = properties["class_locations"][KNOWN]
    assert (known >= 0).all() and (known < [1, *shape]).all()


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
