import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import ndimage

from labelloop.metrics.surface import (
    CORNERS,
    bounding_box,
    dice,
    neighbor_codes,
    surface_dice,
    surfel_areas,
    volume_ml,
)
from strategies import seeds, spacings

SPACINGS = [(1.0, 1.0, 1.0), (2.5, 0.8, 0.8), (7.7, 1.25, 1.25), (0.4, 0.4, 0.4), (0.5, 1.5, 2.0)]


def brute_force(truth, prediction, spacing, tolerance, ignored=None):
    """The definition: codes voxel by voxel, full-volume double-precision distance transforms, no cropping."""
    areas, maps = surfel_areas(spacing), []
    for mask in (truth, prediction):
        padded = np.pad(mask, 1)
        size = tuple(n + 1 for n in mask.shape)
        codes = np.zeros(size, int)
        for bit, (dz, dy, dx) in enumerate(CORNERS):
            codes += padded[dz : dz + size[0], dy : dy + size[1], dx : dx + size[2]].astype(int) << bit
        border = (codes > 0) & (codes < 255)
        # in x, y, z order, as the official scripts
        distance = ndimage.distance_transform_edt(~border.T, sampling=spacing[::-1]).T
        maps.append((areas[codes], border, distance))
    (area_t, border_t, distance_t), (area_p, border_p, distance_p) = maps
    if ignored is not None:
        padded = np.pad(ignored, 1)
        for dz, dy, dx in CORNERS:
            uncut = ~padded[dz : dz + size[0], dy : dy + size[1], dx : dx + size[2]]
            border_t, border_p = border_t & uncut, border_p & uncut
    close = area_t[border_t & (distance_p <= tolerance)].sum() + area_p[border_p & (distance_t <= tolerance)].sum()
    whole = area_t[border_t].sum() + area_p[border_p].sum()
    return close / whole if whole else float("nan")


def blobs(rng, shape):
    return ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 3)) > rng.normal() * 0.05


@given(
    spacing=st.sampled_from(SPACINGS) | spacings,
    shape=st.tuples(*[st.integers(3, 20)] * 3),
    rolled=st.none() | st.tuples(*[st.integers(-3, 3)] * 3),
    seed=seeds,
)
def test_nsd_is_its_definition(spacing, shape, rolled, seed):
    rng = np.random.default_rng(seed)
    truth = blobs(rng, shape)
    prediction = np.roll(truth, rolled, (0, 1, 2)) if rolled else blobs(rng, shape)
    assume(truth.any() and prediction.any())
    for tolerance in (1, 3, 4 * spacing[0], 5 * spacing[2]):  # ties at multiples of the spacing
        expected = brute_force(truth, prediction, spacing, tolerance)
        assert surface_dice(truth, prediction, spacing, tolerance) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("spacing", [(0.4, 0.4, 0.4), (0.1, 0.2, 0.3), tuple(map(float, np.float32([0.8, 0.8, 2.5])))])
def test_distances_equal_to_the_tolerance_are_settled_in_double_precision(spacing):
    truth = np.zeros((22, 22, 22), bool)
    truth[2:10, 2:10, 2:10] = True
    for axis in range(3):
        for step in range(1, 9):
            prediction = np.roll(truth, step, axis)
            for tolerance in (step * spacing[axis], round(step * spacing[axis], 1)):
                expected = brute_force(truth, prediction, spacing, tolerance)
                assert surface_dice(truth, prediction, spacing, tolerance) == pytest.approx(expected, abs=1e-12)


def test_a_stray_voxel_far_away_changes_only_the_total_area():
    truth = np.zeros((30, 30, 80), bool)
    truth[10:20, 10:20, 5:15] = True
    prediction = truth.copy()
    prediction[25, 25, 75] = True
    assert surface_dice(truth, prediction, (1, 1, 1), 2) == pytest.approx(
        brute_force(truth, prediction, (1.0, 1.0, 1.0), 2), abs=1e-12
    )
    assert surface_dice(truth, np.roll(truth, 60, 2), (1, 1, 1), 2) == 0


def test_surface_dice_is_symmetric_and_refuses_other_shapes():
    rng = np.random.default_rng(2)
    first, second = blobs(rng, (20, 21, 22)), blobs(rng, (20, 21, 22))
    forward = surface_dice(first, second, (2, 1, 1), 1)
    assert 0 < forward < 1
    assert forward == pytest.approx(surface_dice(second, first, (2, 1, 1), 1), abs=1e-14)
    assert surface_dice(first, first, (2, 1, 1), 0) == 1
    with pytest.raises(ValueError, match="shape"):
        surface_dice(first, second[1:], (2, 1, 1), 1)


def test_empty_masks():
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    assert math.isnan(surface_dice(empty, empty, (1, 1, 1), 1)) and math.isnan(dice(empty, empty))
    assert surface_dice(empty, full, (1, 1, 1), 1) == surface_dice(full, empty, (1, 1, 1), 1) == 0
    assert dice(empty, full) == 0
    assert bounding_box(empty) is None


def area_of(*corners, spacing=(1.0, 1.0, 1.0)):
    return surfel_areas(spacing)[sum(1 << CORNERS.index(c) for c in corners)]


def test_surfel_areas_of_codes_known_by_hand():
    assert surfel_areas((1.0, 1.0, 1.0))[[0, 255]].tolist() == [0, 0]
    assert area_of((0, 0, 0)) == pytest.approx(math.sqrt(3) / 8)  # a corner
    assert area_of((0, 0, 0), (0, 0, 1)) == pytest.approx(math.sqrt(2) / 2)  # an edge
    assert area_of((0, 0, 0), (0, 1, 1)) == pytest.approx(math.sqrt(3) / 4)  # a face's diagonal: two corners
    assert area_of((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), spacing=(9.0, 2.0, 3.0)) == pytest.approx(6)  # a face
    assert area_of((0, 0, 0), (0, 0, 1), (0, 1, 0)) == pytest.approx(0.5 + 3 * math.sqrt(3) / 8)  # an L
    chain = [(0, 0, 1), (0, 0, 0), (0, 1, 0), (1, 1, 0)]
    assert area_of(*chain) == pytest.approx(math.sqrt(3) / 2 + 2 * math.sqrt(2) / 4)  # four in a twisted row


def test_surfel_areas_do_not_depend_on_which_side_is_inside_or_on_mirroring():
    areas = surfel_areas((2.5, 0.7, 1.1))
    assert np.allclose(areas, areas[::-1])
    for axis in range(3):
        mirrored = [CORNERS.index(tuple(c ^ (a == axis) for a, c in enumerate(corner))) for corner in CORNERS]
        codes = [sum((code >> bit & 1) << mirrored[bit] for bit in range(8)) for code in range(256)]
        assert np.allclose(areas, areas[codes])


def test_neighbor_codes_close_the_mask_at_the_border_of_the_array():
    codes = neighbor_codes(np.ones((2, 3, 4), bool))
    assert codes.shape == (3, 4, 5) and codes.dtype == np.uint8
    assert (codes == 255).sum() == 1 * 2 * 3
    spacing = (2.0, 1.0, 3.0)
    flat = surfel_areas(spacing)[codes].sum()
    assert flat < 2 * (2 * 3 * 2 + 2 * 4 * 6 + 3 * 4 * 3)  # edges and corners are cut off


def test_volume():
    assert volume_ml(np.ones((10, 10, 10), bool), (1, 2, 3)) == pytest.approx(6.0)


@given(spacing=st.sampled_from(SPACINGS), shape=st.tuples(*[st.integers(3, 16)] * 3), seed=seeds)
def test_a_surface_that_ignored_voxels_cut_does_not_count(spacing, shape, seed):
    rng = np.random.default_rng(seed)
    ignored = blobs(rng, shape) & blobs(rng, shape)
    truth, prediction = (blobs(rng, shape) & ~ignored for _ in range(2))
    assume(truth.any() and prediction.any())
    for tolerance in (1, 4 * spacing[0]):
        expected = brute_force(truth, prediction, spacing, tolerance, ignored)
        found = surface_dice(truth, prediction, spacing, tolerance, ignored)
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_what_is_cut_alike_does_not_hide_that_the_rest_differs():
    """Two blocks that differ by 3 mm at one end, and end alike at ignored voxels on all other sides."""
    truth, prediction = np.zeros((2, 20, 12, 12), bool)
    truth[5:15, 2:10, 2:10], prediction[8:15, 2:10, 2:10] = True, True
    ignored = np.zeros_like(truth)
    ignored[2:18] = True
    ignored[2:15, 2:10, 2:10] = False
    ignored[:5] = False
    spacing = (1.0, 1.0, 1.0)
    assert surface_dice(truth, prediction, spacing, 1.0) > 0.7
    assert surface_dice(truth, prediction, spacing, 1.0, ignored) < 0.3  # the rim of the end is near to the cut
    assert math.isnan(surface_dice(truth, truth, spacing, 1.0, ~truth))
