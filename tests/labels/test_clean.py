import numpy as np
import pytest

from labelloop.errors import UserError
from labelloop.labels.clean import clean


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
    {"step": "islands", "classes": ["organs"], "below_ml": 1},
    {"step": "tumor_outside_abdomen"},
    {"step": "tumor_far_from_organs", "beyond_mm": 50},
    {"step": "keep_largest", "classes": ["liver", "spleen"]},
)


def test_clean_anatomy_stays(anatomy, scheme):
    cleaned, rows = run(anatomy, scheme, *STEPS)
    np.testing.assert_array_equal(cleaned, anatomy.labels)
    assert [row["step"] for row in rows] == ["islands"] * 13 + ["tumor_outside_abdomen", "tumor_far_from_organs"] + [
        "keep_largest"
    ] * 2


def test_islands(anatomy, scheme):
    anatomy.labels[4, 4, 4:8] = scheme.ids["liver"]  # 4 * 27 mm3 = 0.108 ml
    anatomy.labels[8:12, 4:8, 4:8] = scheme.ids["liver"]  # 64 * 27 mm3 = 1.728 ml
    cleaned, rows = run(anatomy, scheme, {"step": "islands", "classes": ["liver"], "below_ml": 1})
    assert rows[0]["voxels_changed"] == 4
    assert (cleaned[8:12, 4:8, 4:8] == scheme.ids["liver"]).all()
    cleaned, rows = run(anatomy, scheme, {"step": "keep_largest", "classes": ["liver"]})
    assert rows[0]["voxels_changed"] == 68


def test_the_largest_component_is_no_island(anatomy, scheme):
    step = {"step": "islands", "classes": ["tumor"], "below_ml": 100}
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
    wide = {"step": "tumor_outside_abdomen", "above_mm": 400, "below_mm": 400, "aside_mm": 400}
    assert run(anatomy, scheme, wide)[1][0]["voxels_changed"] == 0
    assert run(anatomy, scheme, {"step": "tumor_far_from_organs", "beyond_mm": 900})[1][0]["voxels_changed"] == 0


def test_without_organs_no_tumor_is_removed(anatomy, scheme):
    anatomy.labels[anatomy.labels != scheme.ids["tumor"]] = 0
    assert all(row["voxels_changed"] == 0 for row in run(anatomy, scheme, *STEPS[1:3])[1])


def test_truth_is_not_cleaned(anatomy, scheme):
    anatomy.labels[4, 4, 4:8] = scheme.ids["liver"]
    steps = {"step": "keep_largest", "classes": ["liver", "spleen"]}
    cleaned, rows = run(anatomy, scheme, steps, states={"liver": "present"})
    np.testing.assert_array_equal(cleaned, anatomy.labels)
    assert [row["class"] for row in rows] == ["spleen"]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"step": "island"}, r"cleaning step 1 \(island\)"),
        ({"step": "islands", "classes": ["liver"]}, "below_ml: Field required"),
        ({"step": "keep_largest", "classes": ["liver"], "below_ml": 3}, "below_ml: Extra inputs"),
        ({"step": "keep_largest", "classes": ["heart"]}, "no class or set named heart"),
    ],
)
def test_wrong_steps_are_refused(anatomy, scheme, step, said):
    with pytest.raises(UserError, match=said):
        clean(anatomy.labels, anatomy.geometry, [step], scheme)
