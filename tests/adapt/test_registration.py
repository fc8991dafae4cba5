"""Transforms: found whatever the storage, exact in both directions, applied in one resampling."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_body import GRID, draw, stored

from labelloop.adapt.body import body_mask
from labelloop.adapt.registration import Transform, align, apply, check_reference, grid_like, register, upside_down
from labelloop.errors import UserError
from labelloop.phantom.shapes import turn
from labelloop.volume import Volume

POINTS = np.random.default_rng(0).uniform(-90, 90, (20, 3)) + np.array([0, 0, 140])


def rigid() -> Transform:
    return Transform.of(turn(3, -2, 5), np.array([4.0, -7.0, 9.0]))


def masked(volume: Volume) -> Volume:
    return Volume(body_mask(volume), volume.geometry)


def test_there_and_back_again():
    there = rigid()
    assert np.allclose(there.inverse()(there(POINTS)), POINTS)
    assert np.allclose(there.then(upside_down(GRID))(POINTS), upside_down(GRID)(there(POINTS)))
    assert there.then(there.inverse()).degrees == pytest.approx(0, abs=1e-4)
    assert Transform.of(turn(z=12), np.zeros(3)).degrees == pytest.approx(12)


def test_a_saved_transform_is_the_same_to_the_last_bit(tmp_path):
    rigid().save(tmp_path / "t.json", reference="case_1")
    assert Transform.load(tmp_path / "t.json") == rigid()
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UserError, match=r"t\.json"):
        Transform.load(tmp_path / "t.json")


def test_labels_come_back_from_a_round_trip():
    label = draw()[1]
    there = apply(rigid().inverse(), label, GRID, labels=True)
    back = apply(rigid(), Volume(there, GRID), GRID, labels=True)
    for value in np.unique(label.array)[1:]:
        a, b = back == value, label.array == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.93


def test_nothing_changes_where_nothing_is_to_be_done():
    image, label = draw()
    assert np.array_equal(apply(Transform(), label, GRID, labels=True), label.array)
    assert np.allclose(apply(Transform(), image, GRID), image.array, atol=1e-2)


def test_turning_an_upside_down_volume_undoes_it():
    label = draw()[1]
    wrong = Volume(label.array[::-1].copy(), GRID)
    assert np.array_equal(apply(upside_down(GRID), wrong, GRID, labels=True), label.array)


def test_a_shift_between_patients_is_found():
    found = register(masked(draw()[0]), masked(draw((9, -6, 0), seed=1)[0]), "translation", "masks")
    assert found.degrees == 0
    assert np.allclose(found(POINTS) - POINTS, (9, -6, 0), atol=1.5)


@pytest.mark.parametrize("on", ["masks", "images"])
def test_a_rigid_motion_is_found(on):
    fixed = draw()[0]
    # Five slices at either end would show what the fixed image does not see: they are cut off.
    origin = (*GRID.origin[:2], GRID.origin[2] + 5 * GRID.spacing[2])
    grid = replace(GRID, size=(*GRID.size[:2], GRID.size[2] - 10), origin=origin)
    moving = Volume(apply(rigid().inverse(), fixed, grid), grid)
    volumes = [masked(v) if on == "masks" else v for v in (fixed, moving)]
    found = register(*volumes, "rigid", on)
    still = np.linalg.norm(rigid()(POINTS) - POINTS, axis=1).mean()
    assert np.linalg.norm(found(POINTS) - rigid()(POINTS), axis=1).mean() < min(3.0, still / 4)


def test_the_answer_does_not_depend_on_how_files_are_stored():
    fixed, moving = (masked(draw(s)[0]) for s in ((0, 0, 0), (8, 5, 0)))
    answers = [
        register(stored(fixed, a), stored(moving, b), "rigid", "masks") for a, b in (("LPS", "LPS"), ("RAS", "LAI"))
    ]
    assert answers[0] == answers[1]


def test_a_mask_without_contour_is_refused():
    everything = Volume(np.ones(GRID.shape, bool), GRID)
    with pytest.raises(ValueError, match="moving mask"):
        register(masked(draw()[0]), everything, "rigid", "masks")


def test_the_reference_is_named():
    assert check_reference("mr_2", ["mr_1", "mr_2"]) == "mr_2"
    with pytest.raises(UserError, match="Did you mean 'mr_2'"):
        check_reference("mr2", ["ct_1", "mr_2"])


@pytest.mark.parametrize("orientation", ["LPS", "RAS"])
def test_a_grid_covers_what_the_volume_covers(orientation):
    geometry = stored(draw()[0], orientation).geometry
    grid = grid_like(geometry, (1.2, 1.2, 3.0))
    assert grid.spacing == (1.2, 1.2, 3.0) and np.reshape(grid.direction, (3, 3)).trace() == 3
    extent = np.array(grid.size) * grid.spacing
    assert np.allclose(extent, np.array(geometry.size) * geometry.spacing, atol=3)
    middle = np.array(grid.origin) + (np.array(grid.size) - 1) / 2 * grid.spacing
    assert np.allclose(middle, np.array(GRID.origin) + (np.array(GRID.size) - 1) / 2 * GRID.spacing, atol=1e-6)


@pytest.mark.parametrize("turned", [False, True])
def test_a_case_comes_to_its_reference_in_one_resampling(turned, tmp_path):
    reference, truth = draw()
    image, label = (Volume(v.array[::-1].copy() if turned else v.array, GRID) for v in draw((10, 6, 0), seed=2))
    align(masked(image), masked(reference), turned).save(tmp_path / "case.json", reference="draw")
    saved = Transform.load(tmp_path / "case.json")
    grid = grid_like(GRID, (4.0, 4.0, 6.0))
    assert np.abs(apply(saved, image, grid) - apply(Transform(), reference, grid)).mean() < 8
    liver, expected = (apply(t, v, grid, labels=True) == 1 for t, v in ((saved, label), (Transform(), truth)))
    assert 2 * (liver & expected).sum() / (liver.sum() + expected.sum()) > 0.9
