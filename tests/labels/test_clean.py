import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from labelloop.base.errors import UserError
from labelloop.images.volume import Geometry
from labelloop.labels.clean import clean
from strategies import seeds


def run(anatomy, scheme, *steps, **arguments):
    before = anatomy.labels.copy()
    cleaned, rows = clean(anatomy.labels, anatomy.geometry, steps, scheme, **arguments)
    np.testing.assert_array_equal(anatomy.labels, before)  # the input stays
    changed = cleaned != before
    assert (cleaned[changed] == 0).all()
    assert sum(row["voxels_changed"] for row in rows) == changed.sum()  # every changed voxel is counted
    for name in {row["class"] for row in rows}:
        last = [row for row in rows if row["class"] == name][-1]
        assert last["volume_ml"] == pytest.approx((cleaned == scheme.ids[name]).sum() * anatomy.geometry.voxel_ml)
    return cleaned, rows


STEPS = (
    {"remove_islands": ["organs"], "below_ml": 1},
    {"remove_outside_abdomen": "tumor"},
    {"remove_far_from_organs": "tumor", "beyond_mm": 50},
    {"keep_largest": ["liver", "spleen"]},
)


def test_clean_anatomy_stays(anatomy, scheme):
    cleaned, rows = run(anatomy, scheme, *STEPS)
    np.testing.assert_array_equal(cleaned, anatomy.labels)
    once = ["remove_outside_abdomen", "remove_far_from_organs"]
    assert [row["step"] for row in rows] == ["remove_islands"] * 13 + once + ["keep_largest"] * 2


def test_islands(anatomy, scheme):
    anatomy.labels[4, 4, 4:8] = scheme.ids["liver"]  # 4 * 27 mm3 = 0.108 ml
    anatomy.labels[8:12, 4:8, 4:8] = scheme.ids["liver"]  # 64 * 27 mm3 = 1.728 ml
    cleaned, rows = run(anatomy, scheme, {"remove_islands": ["liver"], "below_ml": 1})
    assert rows[0]["voxels_changed"] == 4
    assert (cleaned[8:12, 4:8, 4:8] == scheme.ids["liver"]).all()
    cleaned, rows = run(anatomy, scheme, {"keep_largest": ["liver"]})
    assert rows[0]["voxels_changed"] == 68


def grid(spacing_z, shape):
    return Geometry(shape[::-1], (1.0, 1.0, spacing_z))


@given(
    seed=seeds, chosen=st.sets(st.sampled_from(["liver", "right_kidney", "spleen", "pancreas", "aorta"]), min_size=1)
)
def test_keep_largest_keeps_one_component_a_class_that_none_exceeds(scheme, seed, chosen):
    labels = np.random.default_rng(seed).integers(0, 5, (3, 4, 5), dtype=np.uint8)
    result, _ = clean(labels, grid(1.0, labels.shape), [{"keep_largest": sorted(chosen)}], scheme)
    for value in range(1, 5):
        components, _ = ndimage.label(labels == value, np.ones((3, 3, 3)))  # corners join
        sizes = np.bincount(components.ravel())[1:]
        kept = np.unique(components[result == value])
        if value in scheme_ids(scheme, chosen) and sizes.size:
            assert len(kept) == 1 and (result == value).sum() == sizes[kept[0] - 1] == sizes.max()
        else:
            np.testing.assert_array_equal(result == value, labels == value)
    assert ((result == labels) | (result == 0)).all()


def scheme_ids(scheme, names):
    return {scheme.ids[name] for name in names}


@pytest.mark.parametrize(("spacing_z", "kept"), [(10.0, (1, 1, 0)), (5.0, (1, 1, 1)), (20.0, (1, 0, 0))])
def test_islands_far_above_or_below_go_by_mm(scheme, spacing_z, kept):
    labels = np.zeros((30, 6, 40), np.uint8)
    labels[2:5, :3, :3], labels[3, 5, 5] = 1, 1  # the liver, its larger part at level 3
    labels[10:13, 2, 30:], labels[14:17, 2, 2] = 3, 14  # both touch nothing; 8 and 12 levels above it
    labels[5, :2, :2] = 3  # one island with the liver, whatever its own place
    step = {"remove_distant_islands": "all", "of": "liver", "beyond_z_mm": 100}
    result, rows = clean(labels, grid(spacing_z, labels.shape), [step], scheme)
    found = [(result[z] == i).any() for z, i in ((3, 1), (11, 3), (15, 14))]
    assert tuple(map(int, found)) == kept and (result[5] == labels[5]).all()
    np.testing.assert_array_equal(result[result > 0], labels[result > 0])
    assert sum(row["voxels_changed"] for row in rows) == (result != labels).sum()
    nowhere = {"remove_distant_islands": "all", "of": "gallbladder", "beyond_z_mm": 1}
    np.testing.assert_array_equal(clean(labels, grid(spacing_z, labels.shape), [nowhere], scheme)[0], labels)


def test_the_largest_component_is_no_island(anatomy, scheme):
    step = {"remove_islands": ["tumor"], "below_ml": 100}
    assert run(anatomy, scheme, step)[1][0]["voxels_changed"] == 0
    assert not (run(anatomy, scheme, {**step, "also_largest": True})[0] == scheme.ids["tumor"]).any()


def test_tumor_outside_the_abdomen_and_far_from_organs(anatomy, scheme):
    tumor = scheme.ids["tumor"]
    inside = (anatomy.labels == tumor).sum()
    anatomy.labels[3:5, 95:97, 3:5] = tumor
    for step in STEPS[1:3]:
        cleaned, rows = run(anatomy, scheme, step)
        assert rows[0]["voxels_changed"] == 8
        assert (cleaned == tumor).sum() == inside
    wide = {"remove_outside_abdomen": "tumor", "above_mm": 400, "below_mm": 400, "aside_mm": 400}
    assert run(anatomy, scheme, wide)[1][0]["voxels_changed"] == 0
    assert run(anatomy, scheme, {"remove_far_from_organs": "tumor", "beyond_mm": 900})[1][0]["voxels_changed"] == 0


def test_without_organs_no_tumor_is_removed(anatomy, scheme):
    anatomy.labels[anatomy.labels != scheme.ids["tumor"]] = 0
    assert all(row["voxels_changed"] == 0 for row in run(anatomy, scheme, *STEPS[1:3])[1])


def test_truth_is_not_cleaned(anatomy, scheme):
    anatomy.labels[4, 4, 4:8] = scheme.ids["liver"]
    steps = {"keep_largest": ["liver", "spleen"]}
    cleaned, rows = run(anatomy, scheme, steps, states={"liver": "present"})
    np.testing.assert_array_equal(cleaned, anatomy.labels)
    assert [row["class"] for row in rows] == ["spleen"]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (
            {"remove_island": "liver"},
            "cleaning step 1 .*expected a step with one of the keys remove_islands, keep_largest",
        ),
        ({"remove_islands": ["liver"]}, "below_ml: Field required"),
        ({"keep_largest": ["liver"], "below_ml": 3}, "below_ml: Extra inputs"),
        ({"keep_largest": ["heart"]}, "no class or set named heart"),
    ],
)
def test_wrong_steps_are_refused(anatomy, scheme, step, said):
    with pytest.raises(UserError, match=said):
        clean(anatomy.labels, anatomy.geometry, [step], scheme)
