"""Transforms: found whatever the storage, exact in both directions, applied in one resampling."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_body import GRID, draw, stored

from labelloop.base.errors import CaseError, UserError
from labelloop.cases.body import body_mask
from labelloop.images.volume import Volume, canonical
from labelloop.labels.registration import Transform, apply, check_reference, part_within, register
from labelloop.phantom.shapes import turn

POINTS = np.random.default_rng(0).uniform(-90, 90, (20, 3)) + np.array([0, 0, 140])


def rigid() -> Transform:
    return Transform.of(turn(3, -2, 5), np.array([4.0, -7.0, 9.0]))


def masked(volume: Volume) -> Volume:
    return Volume(body_mask(volume), volume.geometry)


def test_there_and_back_again():
    there = rigid()
    assert np.allclose(there.inverse()(there(POINTS)), POINTS)
    again = Transform.of(turn(x=5), np.array([1.0, -2.0, 3.0]))
    assert np.allclose(there.then(again)(POINTS), again(there(POINTS)))
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
    with pytest.raises(CaseError, match="moving mask"):
        register(masked(draw()[0]), everything, "rigid", "masks")


def test_the_reference_is_named():
    assert check_reference("mr_2", ["mr_1", "mr_2"]) == "mr_2"
    with pytest.raises(UserError, match="did you mean 'mr_2'"):
        check_reference("mr2", ["ct_1", "mr_2"])


@pytest.mark.parametrize("orientation", ["LPS", "RAS"])
def test_patches_of_a_taller_case_come_from_what_the_reference_shows(orientation):
    image = canonical(stored(draw()[0], orientation))
    tall, start = image.array, 9
    low = Volume(tall[start : start + 24], replace(image.geometry, size=(*image.geometry.size[:2], 24)))
    box = part_within(register(masked(low), masked(image), "translation", "masks"), image.geometry, low.geometry)
    assert abs(box[0][0] - start) <= 1 and abs(box[0][1] - start - 24) <= 1
    assert all(b - a >= n - 1 for (a, b), n in zip(box[1:], image.array.shape[1:], strict=True))
    with pytest.raises(CaseError, match="outside"):
        part_within(Transform(shift=(0, 0, 999.0)), image.geometry, low.geometry)
