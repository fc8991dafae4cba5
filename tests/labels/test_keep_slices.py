"""Cleaning by the slices of other organs (He, section 2.6): what lies above or below them goes and is counted."""

import numpy as np
import pytest
from test_clean import run

from labelloop.base.errors import UserError
from labelloop.labels.clean import clean

AROUND_LIVER = {"of": ["liver"], "above_mm": 24, "below_mm": 24, "taller_than_mm": 240}
HE = (
    AROUND_LIVER | {"keep_slices": ["liver", "stomach", "gallbladder", "pancreas"]},
    AROUND_LIVER | {"keep_largest": ["aorta"]},
    {"keep_slices": ["duodenum", "pancreas"], "of": ["liver"], "above_mm": 0},
    {"keep_slices": ["spleen"], "of": ["left_kidney", "right_kidney"], "below_mm": 0},
)


def levels(anatomy, scheme, name):
    found = np.flatnonzero((anatomy.labels == scheme.ids[name]).any((1, 2)))
    return int(found[0]), int(found[-1])


def test_clean_anatomy_stays(anatomy, scheme):
    cleaned, rows = run(anatomy, scheme, *HE)
    np.testing.assert_array_equal(cleaned, anatomy.labels)
    assert len(rows) == 8


def test_what_lies_24_mm_beyond_the_liver_goes(anatomy, scheme):
    low, high = levels(anatomy, scheme, "liver")  # 3 mm slices: 8 of them are 24 mm
    stomach = scheme.ids["stomach"]
    for z in (low - 9, low - 8, high + 8, high + 9):
        anatomy.labels[z, 5:7, 5:7] = stomach
    cleaned, rows = run(anatomy, scheme, HE[0])
    assert [bool(cleaned[z, 5, 5]) for z in (low - 9, low - 8, high + 8, high + 9)] == [False, True, True, False]
    assert {row["class"]: row["voxels_changed"] for row in rows}["stomach"] == 8


def test_levels_are_those_of_the_largest_liver(anatomy, scheme):
    anatomy.labels[2, 5:7, 5:7] = scheme.ids["liver"]
    anatomy.labels[2, 9:11, 9:11] = scheme.ids["pancreas"]
    _, rows = run(anatomy, scheme, HE[0])
    assert {row["class"]: row["voxels_changed"] for row in rows} == {
        "liver": 4, "stomach": 0, "gallbladder": 0, "pancreas": 4
    }  # fmt: skip


@pytest.mark.parametrize(("height", "removed"), [(80, 0), (81, 4)])
@pytest.mark.parametrize("step", [HE[0], {"keep_largest": "stomach", "taller_than_mm": 240}], ids=["slices", "largest"])
def test_small_images_stay(anatomy, scheme, step, height, removed):
    """He: only where there are more than 80 slices of 3 mm, whatever the step."""
    anatomy.labels = anatomy.labels[19 : 19 + height]
    anatomy.geometry = type(anatomy.geometry)(
        anatomy.labels.shape[::-1], anatomy.geometry.spacing, direction=anatomy.geometry.direction
    )
    anatomy.labels[2, 5:7, 5:7] = scheme.ids["stomach"]  # the liver begins at level 23 of this part
    assert levels(anatomy, scheme, "liver")[0] > 2 + 8
    _, rows = run(anatomy, scheme, step)
    assert sum(row["voxels_changed"] for row in rows) == removed


def test_the_aorta_is_the_part_at_the_level_of_the_liver(anatomy, scheme):
    aorta, (low, _) = scheme.ids["aorta"], levels(anatomy, scheme, "liver")
    anatomy.labels[anatomy.labels == aorta] = 0
    anatomy.labels[low : low + 4, 30:33, 60:63] = aorta  # small, where it belongs
    anatomy.labels[:20, 90:96, 10:16] = aorta  # large, far below
    cleaned, _ = run(anatomy, scheme, HE[1])
    assert np.flatnonzero((cleaned == aorta).any((1, 2))).tolist() == list(range(low, low + 4))
    cleaned, _ = run(anatomy, scheme, {"keep_largest": ["aorta"]})
    assert (cleaned == aorta).sum() == 20 * 36


def test_above_the_liver_and_below_the_kidneys(anatomy, scheme):
    top, bottom = levels(anatomy, scheme, "liver")[1], levels(anatomy, scheme, "right_kidney")[0]
    anatomy.labels[top + 1, 5:7, 5:7], anatomy.labels[top, 8:10, 5:7] = scheme.ids["duodenum"], scheme.ids["duodenum"]
    anatomy.labels[bottom - 1, 5:7, 5:7], anatomy.labels[bottom, 8:10, 5:7] = scheme.ids["spleen"], scheme.ids["spleen"]
    _, rows = run(anatomy, scheme, *HE[2:])
    assert {row["class"]: row["voxels_changed"] for row in rows} == {"duodenum": 4, "pancreas": 0, "spleen": 4}


def test_without_the_organ_nothing_is_known(anatomy, scheme):
    anatomy.labels[anatomy.labels == scheme.ids["left_kidney"]] = 0
    anatomy.labels[0, 5:7, 5:7] = scheme.ids["spleen"]
    assert run(anatomy, scheme, HE[3])[1][0]["voxels_changed"] == 0


def test_a_step_that_cuts_nowhere_is_refused(anatomy, scheme):
    step = {"keep_slices": ["spleen"], "of": ["liver"]}
    with pytest.raises(UserError, match="above_mm, below_mm or both"):
        clean(anatomy.labels, anatomy.geometry, [step], scheme)
