"""Orientation is turned and restored without loss; files keep their place in the patient."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from labelloop.images.volume import (
    Geometry,
    Volume,
    canonical,
    read,
    read_geometry,
    restore,
    upright_volume,
    whole_numbers,
    write,
)
from strategies import ORIENTATIONS, few, millimeters, orientations, spacings

places = st.tuples(*[millimeters(-400, 400)] * 3)
shapes = st.tuples(*[st.integers(1, 6)] * 3)


def itk_image(shape, spacing, origin):
    image = sitk.GetImageFromArray(np.arange(np.prod(shape), dtype=np.int16).reshape(shape))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def stored(image, permutation, flips):
    """Store an image with other axes: nothing moves in the patient."""
    return sitk.Flip(sitk.PermuteAxes(image, permutation), [axis in flips for axis in range(3)])


def as_volume(image):
    geometry = Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return Volume(sitk.GetArrayFromImage(image), geometry)


@few(2)
@given(shape=shapes, spacing=spacings, origin=places)
def test_canonical_agrees_with_itk_and_is_undone_exactly_in_every_orientation(shape, spacing, origin):
    plain = itk_image(shape, spacing, origin)
    for orientation in ORIENTATIONS:
        image = stored(plain, *orientation)
        volume = as_volume(image)
        turned = canonical(volume)
        reference = sitk.DICOMOrient(image, "RAS")
        np.testing.assert_array_equal(turned.array, sitk.GetArrayFromImage(reference))
        np.testing.assert_allclose(turned.geometry.origin, reference.GetOrigin())
        np.testing.assert_allclose(turned.geometry.direction, reference.GetDirection())
        np.testing.assert_allclose(turned.geometry.spacing, reference.GetSpacing())
        np.testing.assert_array_equal(restore(turned.array, volume.geometry), volume.array)


def test_oblique_grids_turn_to_the_nearest_axes():
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    volume = Volume(np.zeros((4, 5, 6)), Geometry((6, 5, 4), (1, 1, 1), direction=tuple(turn.ravel())))
    direction = np.array(canonical(volume).geometry.direction).reshape(3, 3)
    assert (np.diag(direction) * [-1, -1, 1] > 0.9).all()
    np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@few(2)
@given(shape=shapes, spacing=spacings, origin=places, orientation=orientations)
def test_write_then_read_keeps_array_and_place(tmp_path, suffix, shape, spacing, origin, orientation):
    volume = as_volume(stored(itk_image(shape, spacing, origin), *orientation))
    write(tmp_path / f"label{suffix}", volume.array, volume.geometry)
    again = read(tmp_path / f"label{suffix}")
    np.testing.assert_array_equal(again.array, volume.array)
    assert again.geometry.difference(volume.geometry) is None
    assert read_geometry(tmp_path / f"label{suffix}") == again.geometry
    assert [path.name for path in tmp_path.iterdir()] == [f"label{suffix}"]


def test_equal_arrays_give_equal_bytes(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.nii.gz", np.ones((3, 4, 5), np.uint8), Geometry((5, 4, 3), (1, 1, 2)))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("size", (5, 5, 6), "size"),
        ("spacing", (1.0, 1.0, 1.1), "spacing"),
        ("origin", (0.0, 0.0, 1.0), "origin"),
        ("direction", (-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), "direction"),
    ],
)
def test_different_grids_are_told_apart_in_words(field, value, word):
    grid = Geometry((5, 5, 5), (1.0, 1.0, 1.0))
    other = Geometry(**{**grid.__dict__, field: value})
    assert word in grid.difference(other)
    assert grid.difference(Geometry(**grid.__dict__)) is None


@given(shape=shapes, spacing=spacings, origin=places, orientation=orientations)
def test_a_volume_upright_volume_covers_the_same_place_the_other_way_up(shape, spacing, origin, orientation):
    volume = as_volume(stored(itk_image(shape, spacing, origin), *orientation))
    turned, before = upright_volume(volume), canonical(volume)
    after = canonical(turned)
    assert turned.array is volume.array
    np.testing.assert_array_equal(after.array, before.array[::-1])
    assert after.geometry.difference(before.geometry) is None
    assert upright_volume(turned).geometry.difference(volume.geometry) is None


def test_fractional_labels_are_refused_and_whole_floats_kept():
    np.testing.assert_array_equal(whole_numbers(np.array([0.0, 3.0])), np.array([0, 3]))
    with pytest.raises(ValueError, match=r"1 fractional label values, e\.g\. 2\.5"):
        whole_numbers(np.array([0.0, 2.5]))


def test_labels_whose_ids_all_vanish_are_refused_not_empty():
    """Floats in the other byte order are denormal numbers; ids times a tiny slope are near 0 as well."""
    ids = np.array([0, 1, 2, 13], "<f4")
    for vanishing in (ids.view(">f4").astype("<f4"), ids * np.float32(1e-8)):
        with pytest.raises(ValueError, match="all of which are 0"):
            whole_numbers(vanishing)
    np.testing.assert_array_equal(whole_numbers(ids + np.float32(1e-9)), ids)


@pytest.mark.parametrize("value", [np.inf, np.nan, 2.0**32 + 5, -(2.0**40)])
def test_label_values_that_no_integer_holds_are_refused(value):
    with pytest.raises(ValueError, match="label values from"):
        whole_numbers(np.array([0.0, value]))
