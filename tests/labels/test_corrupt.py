"""Errors that are put into right labels: of all sizes, drawn alike again, and said by class."""

import numpy as np
import pytest

from labelloop.base.classes import IGNORED
from labelloop.images.volume import Geometry
from labelloop.labels.agree import disagreement
from labelloop.labels.corrupt import OF_ALL, OF_CLASS, WHOLE_EVERY, all_moved, corrupted
from labelloop.labels.draft import Impossible, draft_of, nearest
from labelloop.labels.facts import LabelFacts


def draft(anatomy, kind, other=None):
    return draft_of(anatomy.labels, anatomy.image, anatomy.geometry.spacing_zyx, anatomy.ids, (7, "a", kind), other)


def dsc(one, other, scheme, name):
    rows = disagreement([one, other], scheme, [name])
    return next(row["pairwise_dice"] for row in rows if row["class"] == name)


def maps(anatomy, case, numbers, ids=None):
    spacing, ids = anatomy.geometry.spacing_zyx, ids or anatomy.ids
    return [corrupted(anatomy.labels, anatomy.image, spacing, ids, (7, case, number)) for number in numbers]


@pytest.mark.parametrize("kind", OF_CLASS)
def test_an_error_alters_its_class_alike_again_and_nothing_else_of_the_case(kind, anatomy):
    before = anatomy.labels.copy()
    drafts = [draft(anatomy, kind) for _ in range(2)]
    for one in drafts:
        OF_CLASS[kind]("spleen")(one)
    assert np.array_equal(drafts[0].labels, drafts[1].labels)
    assert not np.array_equal(drafts[0].mask("spleen"), before == anatomy.ids["spleen"])
    assert np.array_equal(anatomy.labels, before)


@pytest.mark.parametrize("kind", OF_ALL)
def test_an_error_of_the_whole_map_alters_several_classes(kind, anatomy):
    other = np.roll(anatomy.labels, 12, 0)[:, :90]
    one = draft(anatomy, kind, other)
    OF_ALL[kind](one)
    changed = one.labels != anatomy.labels
    assert one.labels.shape == anatomy.labels.shape
    assert len(np.unique(anatomy.labels[changed])) > 3


def test_what_a_patient_lacks_is_impossible(anatomy):
    anatomy.labels[anatomy.labels == anatomy.ids["spleen"]] = 0
    for kind, of in OF_CLASS.items():
        with pytest.raises(Impossible):
            of("spleen")(draft(anatomy, kind))
    with pytest.raises(Impossible, match="no other patient"):
        OF_ALL["another patient's"](draft(anatomy, "none"))


def test_the_nearest_class_is_the_one_whose_center_is_nearest(anatomy):
    assert nearest(draft(anatomy, "none"), "liver") == "tumor"
    assert nearest(draft(anatomy, "none"), "right_adrenal_gland") == "inferior_vena_cava"


def test_maps_follow_from_seed_case_and_number_and_errors_are_of_all_sizes(anatomy, scheme):
    ids = {name: anatomy.ids[name] for name in ("spleen", "stomach", "left_kidney")}
    numbers = range(WHOLE_EVERY - 1)
    found, again = maps(anatomy, "a", numbers, ids), maps(anatomy, "a", numbers, ids)
    assert all(np.array_equal(a, b) and x == y for (a, x), (b, y) in zip(found, again, strict=True))
    assert any(not np.array_equal(a, b) for (a, _), (b, _) in zip(found, maps(anatomy, "b", numbers, ids), strict=True))
    assert set().union(*(done for _, done in found)) <= set(ids)
    both = found + maps(anatomy, "b", range(4))
    sizes = np.array([dsc(labels, anatomy.labels, scheme, name) for labels, done in both for name in done])
    assert len(sizes) >= 20
    assert min((sizes < 0.4).sum(), (sizes > 0.4).sum(), (sizes > 0.7).sum()) >= 3


def test_ignored_voxels_stay_ignored_and_no_others_become_so(anatomy):
    anatomy.labels[40:60, 40:60, 40:60] = IGNORED
    ignored = anatomy.labels == IGNORED
    found = maps(anatomy, "a", (0, *range(WHOLE_EVERY - 1, 8 * WHOLE_EVERY, WHOLE_EVERY)))
    assert all(np.array_equal(labels == IGNORED, ignored) for labels, _ in found)


def test_what_is_moved_out_of_a_small_volume_does_not_come_back():
    for case in "abcdef":
        ones = np.ones((2, 2, 2), np.uint8)
        one = draft_of(ones, ones, (5.0, 5.0, 5.0), {"liver": 1}, (7, case, "moved"))
        all_moved(30)(one)
        assert not one.labels.any()


def test_every_so_often_the_whole_map_is_wrong(anatomy):
    ((labels, done),) = maps(anatomy, "a", [WHOLE_EVERY - 1])
    assert list(done) == [""]
    assert done[""] in OF_ALL
    assert not np.array_equal(labels, anatomy.labels)


def test_single_voxels_in_a_line_are_parts(scheme):
    labels = np.array([[[scheme.ids["liver"], 0, scheme.ids["liver"]]]], np.uint8)
    facts = LabelFacts(labels, Geometry((3, 1, 1), (9.0, 9.0, 9.0)), scheme)
    assert list(facts.components("liver").voxels) == [1, 1]
