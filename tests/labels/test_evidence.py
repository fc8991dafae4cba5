"""What is known of a label, as numbers: complete rows, NaN for what is not available, signs that mean the same."""

import math

import numpy as np
import pytest

from labelloop.labels.check import check, opened, verdicts
from labelloop.labels.evidence import CONFIDENCE, GROUPS, PREDICTED, columns, evidence, group_of, of_models
from labelloop.labels.position import MEASURES

CLASSES = ("liver", "spleen", "left_kidney")


def rows(anatomy, scheme, image=True, positions=None, models=None, classes=CLASSES):
    case = opened(anatomy.labels, anatomy.geometry, {}, scheme, anatomy.image if image else None)
    found = evidence(case, verdicts(case, classes=classes), classes, positions or {}, models or {})
    return {row["class"]: row for row in found}


def known(row, group):
    return [column for column, value in row.items() if column.startswith(f"{group}.") and not math.isnan(value)]


def test_a_row_has_every_column_and_every_column_a_group(anatomy, scheme):
    found = rows(anatomy, scheme)
    assert list(found) == list(CLASSES)
    for row in found.values():
        assert tuple(row) == ("class", *columns(scheme))
    assert {group_of(column) for column in columns(scheme)} == set(GROUPS)
    assert set(PREDICTED) < set(GROUPS)


def test_with_one_model_and_no_image_what_is_not_available_is_nan(anatomy, scheme):
    models = of_models([{"class": "liver", "pairwise_dice": math.nan, "uncertainty": math.nan}], [])
    row = rows(anatomy, scheme, image=False, models=models)["liver"]
    assert {group for group in GROUPS if known(row, group)} == {"rules", "shape"}
    assert known(rows(anatomy, scheme)["liver"], "surface")


def test_rows_of_rules_are_positive_where_they_are_broken(anatomy, scheme):
    before = rows(anatomy, scheme)["liver"]
    assert before["rules.failed"] == before["rules.doubted"] == 0 < before["rules.applied"]
    assert all(before[c] <= 0 for c in known(before, "rules")[3:])
    anatomy.labels[anatomy.ball((60, 55, 100), (9, 9, 9)) & (anatomy.labels == anatomy.ids["liver"])] = 0
    after = rows(anatomy, scheme)["liver"]
    said = check(anatomy.labels, anatomy.geometry, {}, scheme, anatomy.image, classes=CLASSES)
    broken = {f"rules.{r['rule']}" for r in said if r["class"] == "liver" and r["verdict"] in ("fail", "doubt")}
    assert broken
    assert {c for c in known(after, "rules")[3:] if after[c] > 0} == broken
    assert after["rules.failed"] + after["rules.doubted"] == len(broken)


def test_the_surface_shows_what_was_left_out(anatomy, scheme):
    before = rows(anatomy, scheme)["spleen"]
    anatomy.labels[:62][anatomy.labels[:62] == anatomy.ids["spleen"]] = 0
    after = rows(anatomy, scheme)["spleen"]
    assert before["surface.border"] > 90 > after["surface.border"]
    assert before["surface.undersegmented"] < 1 < 10 < after["surface.undersegmented"]
    assert after["surface.flat"] > before["surface.flat"]
    assert after["shape.volume"] == pytest.approx(before["shape.volume"] + math.log10(0.5), abs=0.05)


def test_parts_and_roughness_are_seen(anatomy, scheme):
    before = rows(anatomy, scheme)["liver"]
    spleen = anatomy.labels == anatomy.ids["spleen"]
    anatomy.labels[spleen] = anatomy.ids["liver"]
    after = rows(anatomy, scheme)["liver"]
    assert (before["shape.parts"], before["shape.largest"]) == (1, 100)
    assert after["shape.parts"] == 2
    assert 50 < after["shape.largest"] < 100
    assert 1 < before["surface.rough"] < after["surface.rough"]


def test_a_class_without_a_voxel_has_a_row(anatomy, scheme):
    anatomy.labels[anatomy.labels == anatomy.ids["spleen"]] = 0
    row = rows(anatomy, scheme)["spleen"]
    assert row["shape.volume"] == -2
    assert row["rules.expected"] == 1
    assert not known(row, "surface") and not known(row, "position")


def test_positions_and_models_stand_in_the_row(anatomy, scheme):
    scores = {"liver": dict.fromkeys(MEASURES, 0.5) | {"z": -3.0, "x": math.nan}}
    pairs = {"class": "liver", "pairwise_dice": 0.9, "uncertainty": 0.1, "stability": 0.8}
    sure = [{"class": "liver", "confidence": value} for value in (0.7, 0.9, math.nan)]
    found = rows(anatomy, scheme, positions=scores, models=of_models([pairs], sure))
    row = found["liver"]
    assert (row["position.z"], row["position.farthest"]) == (-3, 3)
    assert math.isnan(row["position.x"])
    assert (row["agreement.dice"], row["agreement.uncertainty"]) == (0.9, 0.1)
    assert (row["stability.dice"], row[CONFIDENCE]) == pytest.approx((0.8, 0.8))
    assert not known(found["spleen"], "position") and not known(found["spleen"], "agreement")


def test_an_opened_case_gives_the_verdicts_of_check(anatomy, scheme):
    case = opened(anatomy.labels, anatomy.geometry, {}, scheme, anatomy.image)
    once = verdicts(case, ("gallbladder",), (), CLASSES)
    whole = check(anatomy.labels, anatomy.geometry, {}, scheme, anatomy.image, "CT", ("gallbladder",), (), CLASSES)
    np.testing.assert_equal(once, whole)
