"""Connected parts of masks: as scipy finds them, whatever the shape of the mask."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from labelloop.base.components import connected_components, largest_component

MASKS = arrays(bool, st.tuples(*[st.integers(1, 6)] * 3))


@pytest.mark.parametrize(("connectivity", "rank"), [(6, 1), (26, 3)])
@given(mask=MASKS)
def test_parts_are_those_of_scipy(connectivity, rank, mask):
    found = connected_components(mask, connectivity)
    expected, number = ndimage.label(mask, ndimage.generate_binary_structure(3, rank))
    assert found.max() == number
    assert len(np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1).T) == len(np.unique(expected))


@given(mask=MASKS)
def test_the_largest_part_is_one_and_none_is_larger(mask):
    largest = largest_component(mask)
    sizes = np.bincount(connected_components(mask).ravel())[1:]
    assert largest.sum() == max(sizes, default=0)
    assert connected_components(largest).max() <= 1 and not (largest & ~mask).any()


@pytest.mark.parametrize("axis", range(3))
def test_single_voxels_in_a_line_are_parts(axis):
    line = np.moveaxis(np.array([[[True, False, True]]]), 2, axis)
    assert connected_components(line).max() == 2
    assert largest_component(line[::1]).sum() == 1


def test_a_view_that_is_not_contiguous_is_taken():
    mask = np.zeros((6, 6, 6), bool)
    mask[::2] = True
    assert connected_components(mask[:, ::3, ::-1]).max() == 3
