"""A place that is found on one grid of an image is the same place on any other."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from labelloop.images.boxes import box_text, box_voxels
from labelloop.images.volume import Geometry

SIZE = (20, 30, 40)


@st.composite
def boxes(draw):
    """A box of voxels (z, y, x) on a grid, which is turned by some degrees."""
    ends = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in SIZE[::-1]]
    turned = sitk.Euler3DTransform((0, 0, 0), *(draw(st.floats(-0.4, 0.4)) for _ in range(3))).GetMatrix()
    spacing = tuple(draw(st.floats(0.6, 5.0)) for _ in range(3))
    return tuple(slice(a, b + 1) for a, b in ends), Geometry(SIZE, spacing, (-3.0, 70.5, 12.0), turned)


@given(boxes())
def test_a_box_comes_back_and_is_where_itk_says(drawn):
    box, geometry = drawn
    text = box_text(box, geometry)
    assert box_voxels(text, geometry) == box
    image = sitk.Image(geometry.size, sitk.sitkUInt8)
    image.SetSpacing(geometry.spacing), image.SetOrigin(geometry.origin), image.SetDirection(geometry.direction)
    middle = [(side.start + side.stop - 1) / 2 for side in box[::-1]]
    found = np.array([float(word) for word in text.split()])
    assert found[:3] == pytest.approx(image.TransformContinuousIndexToPhysicalPoint(middle), abs=0.06)
    assert found[3:] == pytest.approx(
        [(b.stop - b.start) * s for b, s in zip(box[::-1], geometry.spacing, strict=True)], abs=0.06
    )


def test_a_box_is_the_same_place_on_a_finer_grid():
    coarse = Geometry(SIZE, (4.0, 4.0, 4.0), (1.5, 1.5, 1.5))
    fine = Geometry(tuple(4 * n for n in SIZE), (1.0, 1.0, 1.0))
    box = (slice(3, 5), slice(7, 9), slice(0, 1))
    assert box_voxels(box_text(box, coarse), fine) == tuple(slice(4 * b.start, 4 * b.stop) for b in box)


def test_a_box_ends_where_the_volume_does():
    geometry = Geometry(SIZE, (2.0, 2.0, 2.0))
    beyond, within = ((slice(38, end), slice(28, end - 10), slice(0, 2)) for end in (42, 40))
    assert box_text(beyond, geometry) == box_text(within, geometry)


def test_no_place_and_no_box():
    geometry = Geometry(SIZE, (1.0, 1.0, 1.0))
    assert box_text(None, geometry) == "" and box_voxels("", geometry) is None
    with pytest.raises(ValueError, match="six numbers"):
        box_voxels("1 2 3", geometry)
    with pytest.raises(ValueError, match="six numbers"):
        box_voxels("nan 2 3 4 5 6", geometry)
    with pytest.raises(ValueError, match="outside of a grid"):
        box_voxels("500 0 0 1 1 1", geometry)
