import blosc2
import numpy as np
import pytest

from labelloop.base.classes import IGNORED
from labelloop.base.errors import UserError
from labelloop.inference import prepared
from labelloop.inference.prepared import open_image, open_label, write_image_array, write_label_array


def test_image_round_trip(tmp_path):
    array = np.random.default_rng(0).normal(size=(40, 70, 65)).astype(np.float32)
    write_image_array(tmp_path / "a.b2nd", array, {"spacing_mm": [2.5, 1.5, 1.5], "crop": [[0, 40]]})
    image = open_image(tmp_path / "a.b2nd")
    assert image.array.shape == (1, 40, 70, 65)
    assert np.array_equal(image.array[:, 30:40, 60:70, 0:5], array[None, 30:40, 60:70, 0:5])
    assert image.frame == {"spacing_mm": [2.5, 1.5, 1.5], "crop": [[0, 40]]}


def test_label_round_trip_with_locations(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "LOCATIONS_AT_LEAST", 50)
    array = np.zeros((20, 30, 40), np.uint8)
    array[5:15, 5:25, 5:35] = 13
    array[0, 0, :7] = 254
    write_label_array(tmp_path / "a.b2nd", array)
    label = open_label(tmp_path / "a.b2nd")
    assert np.array_equal(label.array[0], array)
    assert {i: len(where) for i, where in label.locations.items()} == {13: 60, 254: 7}  # 60: 1 % of 6000
    for class_id, where in label.locations.items():
        assert (array[tuple(where[:, 1:].T)] == class_id).all()
        assert (where[:, 0] == 0).all()


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_bytes_do_not_tell_the_cores_of_the_machine(tmp_path, monkeypatch, cores):
    """Trainings are told apart by the content hash of these files, and another machine may prepare some of them."""
    here, there = tmp_path / "here.b2nd", tmp_path / "there.b2nd"
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4) % 5
    write_label_array(here, array)
    monkeypatch.setitem(blosc2.dparams_dflts, "nthreads", cores)
    monkeypatch.setitem(blosc2.cparams_dflts, "nthreads", cores)
    threads = blosc2.set_nthreads(cores)
    monkeypatch.setattr(blosc2, "nthreads", cores)
    write_label_array(there, array)
    blosc2.set_nthreads(threads)
    assert here.read_bytes() == there.read_bytes()


def test_empty_label_has_no_locations(tmp_path):
    write_label_array(tmp_path / "a.b2nd", np.zeros((8, 8, 8), np.uint8))
    assert open_label(tmp_path / "a.b2nd").locations == {}


def test_ignored_voxels_are_no_class_and_some_others_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "LOCATIONS_AT_LEAST", 50)
    array = np.zeros((20, 30, 40), np.uint8)
    array[5:15], array[5:15, :2] = IGNORED, 13
    write_label_array(tmp_path / "a.b2nd", array)
    label = open_label(tmp_path / "a.b2nd")
    assert label.ignores and set(label.locations) == {13}
    assert np.array_equal(label.array[0], array)
    assert len(label.known) == 50 and (array[tuple(label.known[:, 1:].T)] != IGNORED).all()
    write_label_array(tmp_path / "b.b2nd", np.full((4, 4, 4), IGNORED, np.uint8))
    assert open_label(tmp_path / "b.b2nd").known.shape == (0, 4)
    write_label_array(tmp_path / "c.b2nd", np.ones((4, 4, 4), np.uint8))
    assert not open_label(tmp_path / "c.b2nd").ignores


@pytest.mark.parametrize("wrong", [-1, 256, 300])
def test_ids_out_of_range_are_refused_and_leave_no_file(tmp_path, wrong):
    with pytest.raises(ValueError, match="label ids"):
        write_label_array(tmp_path / "a.b2nd", np.full((4, 4, 4), wrong, np.int32))
    assert list(tmp_path.iterdir()) == []


def test_missing_array_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="run the prepare step"):
        open_image(tmp_path / "nowhere.b2nd")
