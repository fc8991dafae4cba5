"""When rules are not asked, or milder: what annotators, surgeons, the field of view and ignored voxels say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_verdicts import RIGHT, erase, failing, move, paint, reasons, shrink, verdict, verdicts

from labelloop.base.classes import IGNORED
from labelloop.images.volume import Geometry
from labelloop.labels.check import check
from labelloop.labels.fit import measure
from strategies import few


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"states": {"spleen": "absent"}}, "annotated absent"),
        ({"surgery": ["spleen"], "classes": ["organs"]}, "surgery: spleen"),
        ({}, "nobody labeled it"),
    ],
)
def test_missing_spleen_can_be_true(anatomy, scheme, arguments, reason):
    erase(anatomy, "spleen", np.s_[:])
    rows = verdicts(anatomy, scheme, **arguments)
    assert failing(rows) == set()
    assert reason in reasons(rows, "spleen")


def test_missing_spleen_that_was_asked_for_fails(anatomy, scheme):
    erase(anatomy, "spleen", np.s_[:])
    rows = verdicts(anatomy, scheme, classes=["all"])
    assert failing(rows) == {("spleen", "volume"), ("spleen", "expected")}
    assert "liver and stomach lie whole in the field of view" in verdict(rows, "spleen", "expected")["reason"]


def test_absent_in_every_model_is_true_of_what_is_removed_often_and_else_doubted(anatomy, scheme):
    """A gallbladder may be gone; where liver and stomach are, a spleen is missing, until somebody says otherwise."""
    for name in ("spleen", "gallbladder"):
        erase(anatomy, name, np.s_[:])
    nowhere = {"models_absent": ["spleen", "gallbladder"], "classes": ["organs"]}
    rows = verdicts(anatomy, scheme, **nowhere)
    assert failing(rows) == {("spleen", "expected")}
    assert "nothing shows it: it may be absent" in reasons(rows, "gallbladder")
    assert failing(verdicts(anatomy, scheme, **nowhere, surgery=["spleen"])) == set()


def test_nothing_is_expected_where_its_neighbors_are_not_in_the_scan(anatomy, scheme):
    low = 68  # of the neighbors, only the spleen's upper end and parts of others are left
    anatomy.labels, anatomy.image = anatomy.labels[low:], anatomy.image[low:]
    anatomy.geometry = Geometry(anatomy.labels.shape[::-1], (3.0, 3.0, 3.0))
    row = verdict(verdicts(anatomy, scheme, classes=["all"]), "right_kidney", "expected")
    assert row["verdict"] == "not_applicable"
    assert "neighbors lie whole in the field of view" in row["reason"]


def test_present_beats_absent_in_every_model(anatomy, scheme):
    erase(anatomy, "spleen", np.s_[:])
    rows = verdicts(anatomy, scheme, {"spleen": "present"}, models_absent=["spleen"])
    assert ("spleen", "volume") in failing(rows)


def test_organs_cut_by_the_field_of_view(anatomy, scheme):
    low = 68  # the lower two thirds of the liver, the kidneys and the adrenals are outside of the scan
    anatomy.labels, anatomy.image = anatomy.labels[low:], anatomy.image[low:]
    anatomy.geometry = Geometry(anatomy.labels.shape[::-1], (3.0, 3.0, 3.0))
    rows = verdicts(anatomy, scheme)
    assert failing(rows) == set()
    assert "cut by the field of view" in verdict(rows, "liver", "volume")["reason"]
    assert verdict(rows, "liver", "volume")["value"] < 300


@pytest.mark.parametrize("slices", [(30, 45), (44, 56), (45, 75), (75, 90), (77, 100)])
def test_no_label_is_refused_for_what_lies_outside_of_the_field_of_view(anatomy, scheme, slices):
    """A liver's left lobe, and a pancreas's head and tail, may lie in slices that were not scanned."""
    seen = slice(*slices)
    z, y, x = anatomy.labels[seen].shape
    geometry = Geometry((x, y, z), anatomy.geometry.spacing)
    rows = check(anatomy.labels[seen], geometry, {}, scheme, anatomy.image[seen])
    assert failing(rows) == set()


def test_a_cut_organ_that_reaches_far_enough_passes_and_a_whole_one_that_does_not_fails(anatomy, scheme):
    erase(anatomy, "liver", np.s_[:, :, :80])
    assert ("liver", "reaches_left") in failing(verdicts(anatomy, scheme))
    paint(anatomy, "liver", anatomy.tube(70, 100, 60, 95, 4))
    row = verdict(verdicts(anatomy, scheme), "liver", "reaches_left")
    assert (row["verdict"], "where it ends is not known" in row["reason"]) == ("not_applicable", True)
    paint(anatomy, "liver", anatomy.tube(60, 70, 70, 50, 4))
    assert verdict(verdicts(anatomy, scheme), "liver", "reaches_left")["verdict"] == "pass"


def test_parts_that_may_be_joined_outside_are_one_component(anatomy, scheme):
    paint(anatomy, "aorta", anatomy.tube(85, 100, 75, 66, 3))  # ascending aorta, joined above the last slice
    assert verdict(verdicts(anatomy, scheme), "aorta", "one_component")["verdict"] == "pass"
    erase(anatomy, "aorta", np.s_[95:])
    assert verdict(verdicts(anatomy, scheme), "aorta", "one_component")["verdict"] == "fail"


def test_atrophic_kidney_and_contracted_gallbladder_pass(anatomy, scheme):
    shrink(anatomy, RIGHT, anatomy.ball((44, 30, 88), (5, 4, 4)))
    shrink(anatomy, "gallbladder", anatomy.ball((44, 66, 90), (2, 2, 2)))
    rows = verdicts(anatomy, scheme)
    assert verdict(rows, RIGHT, "volume")["value"] < 10
    assert failing(rows) == set()


def test_what_lies_outside_of_the_field_of_view_may_be_nearer(anatomy, scheme):
    """A spleen below the volume's top whose neighbors begin above it is not held against their distance."""
    for name in ("stomach", "left_kidney", "pancreas"):
        erase(anatomy, name, np.s_[:])
    paint(anatomy, "stomach", anatomy.ball((98, 62, 95), (3, 9, 9)))
    paint(anatomy, "pancreas", anatomy.ball((98, 50, 90), (3, 4, 4)))
    assert verdict(verdicts(anatomy, scheme), "spleen", "near_neighbors")["verdict"] == "fail"
    anatomy.labels, anatomy.image = anatomy.labels[:99], anatomy.image[:99]
    move(anatomy, "spleen", (18, 0, 0))
    anatomy.geometry = Geometry(anatomy.labels.shape[::-1], (3.0, 3.0, 3.0))
    row = verdict(verdicts(anatomy, scheme), "spleen", "near_neighbors")
    assert row["reason"] == "nearer parts may lie outside of the field of view"


def test_image_rules_step_back(anatomy, scheme):
    saturated = np.clip(anatomy.image, -125, 275)  # like BTCV: no air, no body outline
    for arguments in ({"image": saturated}, {"image": None}, {"image": np.maximum(anatomy.image, 0), "modality": "MR"}):
        rows = verdicts(anatomy, scheme, **arguments)
        assert {r["verdict"] for r in rows if r["rule"] == "inside_body"} == {"not_applicable"}
        assert failing(rows) == set()


def test_no_rule_measures_hu_on_mr(anatomy, scheme):
    """Also where a scheme forgets to say that a rule is for CT: the intensities would all fail."""
    rules = tuple(rule | {"modality": ["CT", "MR"]} for rule in scheme.rules)
    everywhere = scheme.model_copy(update={"rules": rules})
    bright = np.maximum(anatomy.image, 0) + 350  # bone, were it HU
    assert failing(verdicts(anatomy, everywhere, image=bright))
    rows = verdicts(anatomy, everywhere, image=bright, modality="MR")
    reasons = {
        r["reason"] for r in rows if r["rule"] in ("intensity", "fat", "fat_inside", "air", "lung", "inside_body")
    }
    assert failing(rows) == set() and reasons == {"measures HU, which MR does not have"}


def test_islands_below_he_s_threshold_pass(anatomy, scheme):
    anatomy.labels[5, 5, 5:10] = anatomy.ids["liver"]  # 5 voxels of 27 mm3 = 0.135 ml
    rows = verdicts(anatomy, scheme, image=None)
    assert verdict(rows, "liver", "one_component")["verdict"] == "pass"
    anatomy.labels[5, 5, 5:16] = anatomy.ids["liver"]  # 11 voxels = 0.297 ml, above 64 * 4.32 mm3 = 0.276 ml
    assert verdict(verdicts(anatomy, scheme, image=None), "liver", "one_component")["value"] == pytest.approx(0.297)
    assert ("liver", "one_component") in failing(verdicts(anatomy, scheme, image=None))


def test_empty_map(scheme, anatomy):
    anatomy.labels[:] = 0
    rows = verdicts(anatomy, scheme)
    assert {row["verdict"] for row in rows} == {"not_applicable"}


@given(low=st.tuples(*[st.integers(0, 80)] * 3), sides=st.tuples(*[st.integers(1, 60)] * 3))
@few()
def test_no_label_is_refused_because_of_ignored_voxels(anatomy, scheme, low, sides):
    """Property: of a clean anatomy nothing fails, wherever voxels are ignored and whatever was asked for."""
    labels = anatomy.labels.copy()
    labels[tuple(slice(a, a + n) for a, n in zip(low, sides, strict=True))] = IGNORED
    held = {name: "present" if (labels == index).any() else "unknown" for name, index in scheme.ids.items()}
    rows = check(
        labels, anatomy.geometry, held, scheme, anatomy.image, classes=list(scheme.names), overlap={"liver": 3}
    )
    assert failing(rows) == set()


def test_scattered_ignored_voxels_cut_nothing_off(anatomy, scheme):
    anatomy.labels[np.random.default_rng(0).random(anatomy.labels.shape) < 0.2] = IGNORED
    assert failing(verdicts(anatomy, scheme, classes=list(scheme.names))) == set()


def test_what_is_known_is_judged_beside_ignored_voxels(anatomy, scheme):
    """A spleen in two parts far from ignored voxels fails, a liver of fat does, though ignored voxels lie in it."""
    anatomy.labels[60, 55, 90] = IGNORED
    paint(anatomy, "spleen", anatomy.ball((62, 80, 30), (4, 4, 4)))
    anatomy.image[anatomy.labels == anatomy.ids["liver"]] = -90
    found = failing(verdicts(anatomy, scheme))
    assert ("spleen", "one_component") in found and ("liver", "intensity") in found
    row = verdict(verdicts(anatomy, scheme), "liver", "one_component")
    assert row["verdict"] == "not_applicable" and "ignored" in row["reason"]


def test_volumes_of_organs_that_may_be_larger_are_not_fitted_to(anatomy, scheme):
    whole = measure(anatomy.labels, anatomy.geometry, scheme, anatomy.image)
    anatomy.labels[60, 55, 90] = IGNORED
    cut = measure(anatomy.labels, anatomy.geometry, scheme, anatomy.image)
    assert {("volume", "liver"), ("volume", "spleen")} <= set(whole)
    assert ("volume", "liver") not in cut and cut["volume", "spleen"] == whole["volume", "spleen"]
