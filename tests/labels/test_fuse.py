import numpy as np
import pytest
from hypothesis import given

from labelloop.base.classes import IGNORED
from labelloop.labels.fuse import fuse, give_tumor_to_organs, leave_ignored, tumor_as_organs, vote
from strategies import seeds

SHAPE = (4, 5, 6)


def row(rows, name):
    return next(r for r in rows if r["class"] == name)


@given(seed=seeds)
def test_truth_is_never_changed(scheme, seed):
    """Property: annotated classes are the truth's voxels exactly; unknown ones hold only votes."""
    random = np.random.default_rng(seed)
    states = {name: str(random.choice(["present", "absent", "unknown"])) for name in scheme.names}
    present = [scheme.ids[n] for n in scheme.names if states[n] == "present"]
    truth = random.choice(np.array([0, *present, *range(15)], np.uint8), SHAPE)
    maps = [random.integers(0, 15, SHAPE, dtype=np.uint8) for _ in range(random.integers(1, 5))]
    fused, rows = fuse(truth, states, [(f"m{i}", m) for i, m in enumerate(maps)], scheme, scheme.names, 0.5)
    voted = vote(maps)
    owned = np.isin(truth, present)
    np.testing.assert_array_equal(fused[owned], truth[owned])
    for name, index in scheme.ids.items():
        if states[name] == "present":
            np.testing.assert_array_equal(fused == index, truth == index)
        elif states[name] == "absent":
            assert not (fused == index).any()
        else:
            np.testing.assert_array_equal(fused == index, (voted == index) & ~owned)
        assert row(rows, name)["volume_ml"] == (fused == index).sum() * 0.5
        assert row(rows, name)["voxels_changed"] == ((voted == index) & (fused != index)).sum()


def test_what_another_organ_was_given_is_counted(scheme):
    liver, spleen, tumor = (scheme.ids[name] for name in ("liver", "spleen", "tumor"))
    truth, first, second = (np.zeros(SHAPE, np.uint8) for _ in range(3))
    truth[0], first[:2], second[1:] = spleen, liver, spleen
    first[3], second[3] = liver, tumor  # a tumor lies in its organ: no overlap
    models = {"a": ["liver"], "b": ["spleen", "tumor"]}
    _, rows = fuse(
        truth, {"spleen": "present"}, [("a", first), ("b", second)], scheme, ["liver", "spleen", "tumor"], 0.5, models
    )
    size = truth[0].size
    extra = [r for r in rows if r["step"] == "overlap"]
    # slice 0: true spleen; slice 1: the spleen of the group with the tumor comes first
    assert extra == [{"class": "liver", "source": "a", "step": "overlap", "voxels_changed": 2 * size, "volume_ml": 0.0}]
    _, rows = fuse(None, {}, [("a", first), ("b", first)], scheme, ["liver", "spleen"], 0.5)
    assert [r["step"] for r in rows] == ["fuse", "fuse"]  # models that know the same classes vote; nothing overlaps


def test_annotated_absent_beats_pseudo(scheme):
    prediction = np.full(SHAPE, scheme.ids["gallbladder"], np.uint8)
    fused, rows = fuse(np.zeros(SHAPE, np.uint8), {"gallbladder": "absent"}, [("m", prediction)], scheme, ["all"], 1.0)
    assert not fused.any()
    assert row(rows, "gallbladder") == {
        "class": "gallbladder", "source": "truth", "step": "fuse", "voxels_changed": prediction.size, "volume_ml": 0.0,
    }  # fmt: skip
    fused, rows = fuse(None, {"gallbladder": "absent"}, [("m", prediction)], scheme, ["all"], 1.0)
    assert not fused.any()  # a scan without a map can be known to have no gallbladder


def test_ids_in_the_file_are_not_annotation(scheme):
    """A spleen in the truth file of a case where nobody annotated spleens is not truth."""
    truth, prediction = np.full(SHAPE, scheme.ids["spleen"], np.uint8), np.zeros(SHAPE, np.uint8)
    fused, rows = fuse(truth, {"liver": "present"}, [("m", prediction)], scheme, ["all"], 1.0)
    assert not fused.any()
    assert row(rows, "spleen")["source"] == "m"


def test_tumor_and_organs(scheme):
    liver, tumor = scheme.ids["liver"], scheme.ids["tumor"]
    truth = np.full(SHAPE, liver, np.uint8)
    truth[1] = 0  # a hole left by the annotator
    pseudo = np.zeros(SHAPE, np.uint8)
    pseudo[0:2] = tumor
    fused, _ = fuse(truth, {"liver": "present"}, [("m", pseudo)], scheme, ["all"], 1.0)
    assert (fused[0] == liver).all()  # the true organ wins
    assert (fused[1] == tumor).all()  # the hole is filled
    fused, _ = fuse(pseudo, {"tumor": "present"}, [("m", truth)], scheme, ["all"], 1.0)
    assert (fused[:2] == tumor).all()  # a true tumor wins over a pseudo organ
    assert (fused[2:] == liver).all()


def test_majority_and_ties():
    maps = [np.array(v, np.uint8) for v in ([1, 1, 3, 0], [2, 2, 2, 5], [2, 1, 1, 5])]
    assert vote(maps).tolist() == [2, 1, 3, 5]
    assert vote(maps[:2]).tolist() == [1, 1, 3, 0]  # one against one: the first
    four = [np.array([v], np.uint8) for v in (7, 8, 9, 9)]
    assert vote(four).tolist() == [9]
    assert vote([np.array([v], np.uint8) for v in (6, 8, 9, 9, 8)]).tolist() == [8]  # tie of 8 and 9: the earlier


def test_models_vote_only_on_what_they_know(scheme):
    liver, tumor = scheme.ids["liver"], scheme.ids["tumor"]
    organs, lesions = np.full(SHAPE, liver, np.uint8), np.zeros(SHAPE, np.uint8)
    lesions[0] = tumor
    fused, rows = fuse(
        None, {}, [("organs", organs), ("tumor", lesions)], scheme, ["liver", "tumor", "spleen"], 1.0,
        model_classes={"organs": ["liver"], "tumor": ["tumor"]},
    )  # fmt: skip
    assert (fused[0] == tumor).all()
    assert (fused[1:] == liver).all()
    assert [row(rows, n)["source"] for n in ("liver", "tumor", "spleen")] == ["organs", "tumor", "none"]


def test_classes_left_out_are_not_in_the_map(scheme):
    prediction = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE) % 15
    fused, rows = fuse(None, {}, [("a", prediction), ("b", prediction)], scheme, ["liver", "spleen"], 1.0)
    assert set(np.unique(fused)) == {0, scheme.ids["liver"], scheme.ids["spleen"]}
    assert [r["source"] for r in rows] == ["a+b", "a+b"]


def test_refusals(scheme):
    small = np.zeros((1, 1, 1), np.uint8)
    with pytest.raises(ValueError, match="nothing to fuse"):
        fuse(None, {}, [], scheme, ["all"], 1.0)
    with pytest.raises(ValueError, match="differ in shape"):
        fuse(small, {}, [("m", np.zeros(SHAPE, np.uint8))], scheme, ["all"], 1.0)
    with pytest.raises(ValueError, match="no truth map: liver"):
        fuse(None, {"liver": "present"}, [("m", small)], scheme, ["all"], 1.0)


def _row_of_voxels(*names, scheme):
    """A map of one line of voxels, 2 mm apart; "" is background."""
    return np.array([scheme.ids.get(name, 0) for name in names], np.uint8).reshape(1, 1, -1)


def test_tumor_voxels_go_to_the_organ_that_is_predicted(scheme):
    organs = ("liver", "spleen", "stomach")
    truth = _row_of_voxels("liver", "tumor", "tumor", "tumor", "tumor", "", scheme=scheme)
    predicted = _row_of_voxels("spleen", "liver", "spleen", "stomach", "", "liver", scheme=scheme)
    states = {"liver": "present", "stomach": "absent", "tumor": "present"}
    given = [("m", predicted)]
    fused, _ = fuse(truth, states, given, scheme, organs, 1.0)
    filled, rows = give_tumor_to_organs(
        fused, truth, states, given, scheme, organs, "predicted_organ", (2, 2, 2), {"m": organs}
    )
    # the spleen is unknown and already fused; the stomach is annotated absent; outside the tumor nothing changes
    expected = _row_of_voxels("liver", "liver", "spleen", "", "", "", scheme=scheme)
    np.testing.assert_array_equal(filled, expected)
    assert [(r["class"], r["voxels_changed"], r["volume_ml"]) for r in rows] == [("liver", 1, 2 * 8 / 1000)]


def test_tumor_voxels_go_to_the_nearest_organ_in_mm(scheme):
    truth = np.zeros((4, 5, 5), np.uint8)
    truth[1:3, 2, 2] = scheme.ids["tumor"]
    fused = np.zeros_like(truth)
    fused[0, 2, 2], fused[1, 2, 4] = scheme.ids["liver"], scheme.ids["spleen"]
    states = {"liver": "present", "tumor": "present"}
    for spacing, names in (((10, 1, 1), ("spleen", "spleen")), ((1, 10, 10), ("liver", "liver"))):
        filled, rows = give_tumor_to_organs(fused, truth, states, [], scheme, ["organs"], "nearest_organ", spacing)
        assert filled[1:3, 2, 2].tolist() == [scheme.ids[n] for n in names]
        assert sum(r["voxels_changed"] for r in rows) == 2 == (filled != fused).sum()


def test_without_a_prediction_tumor_voxels_go_to_the_nearest_organ(scheme):
    truth = _row_of_voxels("liver", "tumor", "tumor", scheme=scheme)
    states = {"liver": "present", "tumor": "present"}
    fused, _ = fuse(truth, states, [], scheme, ["organs"], 1.0)
    filled, _ = give_tumor_to_organs(fused, truth, states, [], scheme, ["organs"], "predicted_organ", (2, 2, 2))
    np.testing.assert_array_equal(filled, _row_of_voxels("liver", "liver", "liver", scheme=scheme))


def test_for_a_model_of_organs_a_tumor_belongs_to_the_nearest_organ_that_it_touches(scheme):
    labels = _row_of_voxels("liver", "tumor", "tumor", "tumor", "spleen", "", "tumor", "", scheme=scheme)
    expected = _row_of_voxels("liver", "liver", "liver", "spleen", "spleen", "", "", "", scheme=scheme)
    np.testing.assert_array_equal(tumor_as_organs(labels, scheme, (2, 2, 2)), expected)
    plain = _row_of_voxels("liver", "", "spleen", scheme=scheme)
    np.testing.assert_array_equal(tumor_as_organs(plain, scheme, (2, 2, 2)), plain)
    alone = _row_of_voxels("tumor", "tumor", scheme=scheme)
    np.testing.assert_array_equal(tumor_as_organs(alone, scheme, (2, 2, 2)), 0 * alone)


@pytest.mark.parametrize("how", ["predicted_organ", "nearest_organ"])
def test_without_a_true_tumor_nothing_is_given(scheme, how):
    truth = np.full(SHAPE, scheme.ids["tumor"], np.uint8)
    fused = np.zeros(SHAPE, np.uint8)
    fused[0] = scheme.ids["liver"]
    for states in ({"tumor": "absent"}, {}):
        filled, rows = give_tumor_to_organs(fused, truth, states, [], scheme, ["organs"], how, (1, 1, 1))
        np.testing.assert_array_equal(filled, fused)
        assert rows == []


@given(seed=seeds)
def test_voxels_that_the_truth_ignores_stay_ignored_and_are_counted(scheme, seed):
    random = np.random.default_rng(seed)
    truth = random.choice(np.array([0, 1, 2, IGNORED], np.uint8), SHAPE)
    states, prediction = {"liver": "present", "right_kidney": "present"}, random.integers(0, 15, SHAPE, dtype=np.uint8)
    fused, _ = fuse(truth, states, [("m", prediction)], scheme, scheme.names, 0.5)
    left, rows = leave_ignored(fused, truth, states, scheme, scheme.names, 0.5)
    np.testing.assert_array_equal(left == IGNORED, truth == IGNORED)
    np.testing.assert_array_equal(left[truth != IGNORED], fused[truth != IGNORED])
    for name, index in scheme.ids.items():
        lost, kept = (int((array == index).sum()) for array in (fused[truth == IGNORED], left))
        assert [(r["voxels_changed"], r["volume_ml"]) for r in rows if r["class"] == name] == (
            [(lost, kept * 0.5)] if lost else []
        )


def test_where_no_class_of_the_set_is_annotated_the_models_label_what_the_truth_ignores(scheme):
    truth, predicted = np.full(SHAPE, IGNORED, np.uint8), np.full(SHAPE, scheme.ids["spleen"], np.uint8)
    states = {"tumor": "present"}
    assert leave_ignored(predicted, truth, states, scheme, scheme.sets["organs"], 1.0) == (predicted, [])
    assert (leave_ignored(predicted, truth, states, scheme, ["spleen", "tumor"], 1.0)[0] == IGNORED).all()


def test_what_organ_a_tumor_beside_ignored_voxels_is_in_is_not_known(scheme):
    labels = np.zeros((3, 3, 9), np.uint8)
    labels[:, :, :3], labels[:, :, 3:6], labels[:, :, 6] = scheme.ids["liver"], scheme.ids["tumor"], IGNORED
    found = tumor_as_organs(labels, scheme, (1, 1, 1))
    assert found[0, 0].tolist() == [1, 1, 1, 1, 1, IGNORED, IGNORED, 0, 0]
