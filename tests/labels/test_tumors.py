import numpy as np
import pytest

from labelloop.labels.settings import CutSettings
from labelloop.labels.tumors import cut_tumors, read_contents, read_object, write_objects

SPACING = (5.0, 2.0, 2.0)
TUMOR = 14


@pytest.fixture
def scan():
    """A liver with a tumor of 4 x 5 x 6 voxels in its middle, and a speck of one voxel at the volume's corner."""
    image = np.random.default_rng(0).normal(size=(60, 80, 90)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[20:40, 20:60, 20:70] = 1
    label[28:32, 35:40, 40:46] = TUMOR
    label[0, 0, 0] = TUMOR
    return image, label


def cut(scan, case="a", **settings):
    return cut_tumors(case, *scan, SPACING, TUMOR, CutSettings(**settings))


def test_each_connected_tumor_becomes_an_object_the_largest_first(scan):
    objects = cut(scan)
    assert [int((label == TUMOR).sum()) for _, label in objects] == [4 * 5 * 6, 1]
    assert all(image.shape == label.shape for image, label in objects)


def test_objects_are_pieces_of_the_scan(scan):
    image, label = cut(scan, margin_mm=((10, 10), (8, 8), (6, 6)))[0]
    around = (slice(26, 34), slice(31, 44), slice(37, 49))  # 10 mm are 2 slices, 8 and 6 mm are 4 and 3 pixels
    assert np.array_equal(image, scan[0][around])
    assert np.array_equal(label, scan[1][around])
    assert (label == 1).any()  # surroundings keep their labels


def test_margins_lie_within_their_bounds_in_mm_and_vary(scan):
    found = []
    for case in map(str, range(30)):
        shape = np.array(cut(scan, case)[0][1].shape)
        found.append((shape - (4, 5, 6)) / 2 * SPACING)
    low, high = np.min(found, 0), np.max(found, 0)
    assert (low >= np.array([20, 36, 36]) - np.array(SPACING) / 2).all()
    assert (high <= np.array([40, 48, 48]) + np.array(SPACING) / 2).all()
    assert (high > low).all()


def test_objects_end_where_the_volume_ends(scan):
    _, label = cut(scan, margin_mm=((10, 10), (8, 8), (6, 6)))[1]
    assert label.shape == (3, 5, 4)
    assert label[0, 0, 0] == TUMOR


def test_diagonal_neighbors_are_one_tumor():
    label = np.zeros((8, 8, 8), np.uint8)
    label[2, 2, 2] = label[3, 3, 3] = TUMOR
    label[6, 6, 6] = TUMOR
    objects = cut_tumors("a", label.astype(np.float32), label, (1, 1, 1), TUMOR, CutSettings(margin_mm=((0, 0),) * 3))
    assert [int((part == TUMOR).sum()) for _, part in objects] == [2, 1]


def test_small_tumors_are_passed_over_by_volume_not_by_voxels(scan):
    ml = 4 * 5 * 6 * 5 * 2 * 2 / 1000
    assert len(cut(scan, min_ml=ml * 0.99)) == 1
    assert len(cut(scan, min_ml=ml * 1.01)) == 0
    assert len(cut_tumors("a", *scan, (10, 4, 4), TUMOR, CutSettings(min_ml=ml * 1.01))) == 1


def test_no_tumor_no_object(scan):
    assert cut_tumors("a", *scan, SPACING, 13, CutSettings()) == []


def test_equal_calls_give_equal_objects(scan):
    first, again, other = cut(scan), cut(scan), cut(scan, seed=1)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert first[0][1].shape != other[0][1].shape


def test_round_trip(scan, tmp_path):
    states = {"liver": "present", "tumor": "present", "spleen": "unknown"}
    objects = cut(scan)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_objects(tmp_path / folder / "a.npz", objects, states)
    assert read_contents(tmp_path / "one/a.npz") == (2, states)
    for number, (image, label) in enumerate(objects):
        stored = read_object(tmp_path / "one/a.npz", number)
        assert np.array_equal(stored[0], image)
        assert np.array_equal(stored[1], label)
        assert stored[0].dtype == np.float32
    assert (tmp_path / "one/a.npz").read_bytes() == (tmp_path / "two/a.npz").read_bytes()
    write_objects(tmp_path / "none.npz", [], {})
    assert read_contents(tmp_path / "none.npz") == (0, {})


def test_image_and_label_must_be_on_one_grid(scan):
    with pytest.raises(ValueError, match=r"a: image .* and label .* differ"):
        cut((scan[0][1:], scan[1]))
