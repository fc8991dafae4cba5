import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelloop.base.classes import IGNORED
from labelloop.base.errors import UserError
from labelloop.base.tables import TABLES, write_table
from labelloop.images.boxes import box_voxels
from labelloop.images.volume import Geometry, Volume, canonical, read
from labelloop.labels.check import KINDS, check, load_rules
from labelloop.labels.fit import measure
from labelloop.labels.rules.base import COUNTS
from labelloop.labels.settings import CRITERIA
from strategies import few, orientations

BTCV = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "btcv"
BTCV_IDS = {
    1: "spleen", 2: "right_kidney", 3: "left_kidney", 4: "gallbladder", 5: "esophagus", 6: "liver", 7: "stomach",
    8: "aorta", 9: "inferior_vena_cava", 11: "pancreas", 12: "right_adrenal_gland", 13: "left_adrenal_gland",
}  # fmt: skip


def failing(rows):
    return {(row["class"], row["rule"]) for row in rows if row["verdict"] == "fail"}


def broken(rows):
    """Return the classes and rules that fail or are doubted."""
    return {(row["class"], row["rule"]) for row in rows if row["verdict"] in ("fail", "doubt")}


def verdict(rows, name, rule):
    return next(row for row in rows if (row["class"], row["rule"]) == (name, rule))


def verdicts(anatomy, scheme, states=None, **arguments):
    arguments.setdefault("image", anatomy.image)
    return check(anatomy.labels, anatomy.geometry, states or {}, scheme, **arguments)


def test_clean_anatomy_passes_every_rule(anatomy, scheme, tmp_path):
    rows = verdicts(anatomy, scheme, dict.fromkeys(scheme.names, "present"), overlap={"liver": 3})
    assert broken(rows) == set()
    skipped = {(r["class"], r["rule"], r["reason"]) for r in rows if r["verdict"] == "not_applicable"}
    assert {(name, rule) for name, rule, reason in skipped if reason != "not for CT"} == set()
    assert {rule.kind for rule in load_rules(scheme)} == set(KINDS)
    table = pd.DataFrame([{"case": "a", **row} for row in rows])
    assert set(table.columns) == set(TABLES["verdicts"])
    write_table(tmp_path / "verdicts.csv", table, "verdicts")


# ------------------------------------------------------------------ injected errors: (name, function, what must fail)


def move(anatomy, name, by):
    """Move a class by (z, y, x) voxels, over whatever lies there."""
    mask = anatomy.labels == anatomy.ids[name]
    anatomy.labels[mask] = 0
    moved = tuple(index + shift for index, shift in zip(np.nonzero(mask), by, strict=True))
    anatomy.labels[moved] = anatomy.ids[name]


def erase(anatomy, name, where):
    region = anatomy.labels[where]
    region[region == anatomy.ids[name]] = 0


def paint(anatomy, name, mask):
    anatomy.labels[mask] = anatomy.ids[name]


def shrink(anatomy, name, mask):
    """Put a class into ``mask``, in the image too, and fat where it was."""
    before = anatomy.labels == anatomy.ids[name]
    hu = np.median(anatomy.image[before])
    anatomy.labels[before], anatomy.image[before] = 0, -90
    anatomy.labels[mask], anatomy.image[mask] = anatomy.ids[name], hu


def swap(anatomy, one, other):
    a, b = anatomy.labels == anatomy.ids[one], anatomy.labels == anatomy.ids[other]
    anatomy.labels[a], anatomy.labels[b] = anatomy.ids[other], anatomy.ids[one]


def mirror(anatomy):
    anatomy.labels, anatomy.image = anatomy.labels[:, :, ::-1].copy(), anatomy.image[:, :, ::-1].copy()


def upside_down(anatomy):
    anatomy.labels, anatomy.image = anatomy.labels[::-1].copy(), anatomy.image[::-1].copy()


def front_to_back(anatomy):
    anatomy.labels, anatomy.image = anatomy.labels[:, ::-1].copy(), anatomy.image[:, ::-1].copy()


def gas(anatomy):
    """What fills a stomach, as far as its wall."""
    return anatomy.ball((58, 62, 45), (7, 6, 8))


RIGHT, LEFT = "right_kidney", "left_kidney"
ERRORS = {
    "swapped kidneys": (lambda a: swap(a, RIGHT, LEFT), {(RIGHT, "side"), (LEFT, "side"), (LEFT, "side_of_midline")}),
    "single kidney on the wrong side": (
        lambda a: (erase(a, RIGHT, np.s_[:]), swap(a, RIGHT, LEFT)),
        {(RIGHT, "side_of_midline")},
    ),
    "swapped adrenals": (
        lambda a: swap(a, "right_adrenal_gland", "left_adrenal_gland"),
        {("right_adrenal_gland", "side"), ("left_adrenal_gland", "side")},
    ),
    "liver island in the spleen": (
        lambda a: paint(a, "liver", a.ball((62, 35, 30), (3, 3, 3))),
        {("liver", "one_component")},
    ),
    "missing slices of the aorta": (
        lambda a: erase(a, "aorta", np.s_[50:56]),
        {("aorta", "continuous"), ("aorta", "one_component")},
    ),
    "aorta without its lower half": (lambda a: erase(a, "aorta", np.s_[:55]), {("aorta", "reaches_down")}),
    "cava without its upper half": (
        lambda a: erase(a, "inferior_vena_cava", np.s_[55:]),
        {("inferior_vena_cava", "reaches_up")},
    ),
    "shifted pancreas": (lambda a: move(a, "pancreas", (40, 0, 0)), {("pancreas", "not_above_liver")}),
    "duodenum above the liver": (  # there it touches the esophagus, so it is still joined
        lambda a: move(a, "duodenum", (40, 0, 0)),
        {("duodenum", "not_above_liver")},
    ),
    "spleen below the kidneys": (lambda a: move(a, "spleen", (-48, 0, 0)), {("spleen", "spleen_not_below_kidneys")}),
    "adrenal below its kidney": (
        lambda a: move(a, "right_adrenal_gland", (-30, 0, 0)),
        {("right_adrenal_gland", "adrenal_above_kidney_center")},
    ),
    "adrenal far away": (
        lambda a: move(a, "left_adrenal_gland", (30, 0, 0)) or erase(a, "aorta", np.s_[80:]),
        {("left_adrenal_gland", "near_neighbors")},
    ),
    "tumor in the chest": (
        lambda a: paint(a, "tumor", a.ball((94, 40, 100), (4, 4, 4))),
        {("tumor", "inside_abdomen")},
    ),
    "tumor in the void": (
        lambda a: paint(a, "tumor", a.ball((8, 90, 8), (5, 5, 5))),
        {("tumor", "near_organs"), ("tumor", "inside_body"), ("tumor", "intensity")},
    ),
    "tiny liver": (lambda a: erase(a, "liver", np.s_[:66]), {("liver", "volume")}),
    "stomach torn from the esophagus": (
        lambda a: erase(a, "stomach", np.s_[62:]) or erase(a, "esophagus", np.s_[:72]),
        {("esophagus", "joined")},
    ),
    "aorta and cava swapped": (
        lambda a: swap(a, "aorta", "inferior_vena_cava"),
        {("aorta", "aorta_left_of_cava")},
    ),
    "mirrored header": (mirror, {("liver", "side"), ("aorta", "aorta_left_of_cava")}),
    "upside down": (upside_down, {("right_adrenal_gland", "adrenal_above_kidney_center")}),
    "kidney without its upper half": (lambda a: erase(a, RIGHT, np.s_[38:]), {(RIGHT, "flat_end")}),
    "spleen without its front half": (lambda a: erase(a, "spleen", np.s_[:, 36:]), {("spleen", "flat_end")}),
    "both adrenals under one name": (
        lambda a: paint(a, "right_adrenal_gland", a.labels == a.ids["left_adrenal_gland"]),
        {("right_adrenal_gland", "extent")},
    ),
    "front and back exchanged": (
        front_to_back,
        {("pancreas", "front_and_back"), (RIGHT, "front_and_back"), ("gallbladder", "front_and_back")},
    ),
    "pancreas far from the duodenum": (
        lambda a: move(a, "pancreas", (-38, 0, 0)),
        {("pancreas", "head_in_duodenum"), ("duodenum", "head_in_duodenum")},
    ),
    "pancreas moved to the left": (lambda a: move(a, "pancreas", (0, 0, -20)), {("pancreas", "crosses_midline")}),
    "pancreas without its tail": (
        lambda a: erase(a, "pancreas", np.s_[:, :, :66]),
        {("pancreas", "reaches_left"), ("pancreas", "tail_at_spleen"), ("pancreas", "tail_at_kidney")},
    ),
    "spleen in the void": (lambda a: move(a, "spleen", (0, -26, 0)), {("spleen", "air")}),
    "liver in the fat": (
        lambda a: a.image.__setitem__(a.labels == a.ids["liver"], -100),
        {("liver", "fat"), ("liver", "fat_inside"), ("liver", "intensity")},
    ),
    "stomach in the lung": (
        lambda a: a.image.__setitem__((a.labels == a.ids["stomach"]) & (np.arange(130) < 42), -800),
        {("stomach", "lung")},
    ),
    "dilated kidney": (
        lambda a: paint(a, RIGHT, a.ball((38, 30, 88), (16, 9, 9))),
        {(RIGHT, "contrast"), (RIGHT, "leak")},
    ),
    "eroded spleen": (
        lambda a: (erase(a, "spleen", np.s_[:]), paint(a, "spleen", a.ball((62, 35, 30), (10, 7, 6)))),
        {("spleen", "contrast"), ("spleen", "goes_on")},
    ),
    "liver without its left lobe": (lambda a: erase(a, "liver", np.s_[:, :, :76]), {("liver", "cut_flat")}),
    "liver with holes": (lambda a: erase(a, "liver", np.s_[::4, ::2, ::2]), {("liver", "holes")}),
    "pancreas over aorta and fat": (
        lambda a: move(a, "pancreas", (0, -16, 0)),
        {("pancreas", "uneven")},
    ),
    "kidney in the liver": (
        lambda a: a.image.__setitem__(a.ball((60, 55, 90), (8, 8, 8)), 190),
        {("liver", "foreign")},
    ),
    "stomach without its gas": (
        lambda a: (a.image.__setitem__(gas(a), -1000), a.labels.__setitem__(gas(a), 0)),
        {("stomach", "gas_beside")},
    ),
    "leaked stomach": (lambda a: paint(a, "stomach", np.s_[40:90, 55:98, 2:100]), {("stomach", "inside_body")}),
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
def test_injected_error_breaks_its_rules(anatomy, scheme, error):
    inject, expected = ERRORS[error]
    inject(anatomy)
    found = broken(verdicts(anatomy, scheme))
    assert expected <= found, found


def test_every_kind_of_rule_is_failed_by_some_error(scheme):
    kinds = {rule.name: rule.kind for rule in load_rules(scheme)}
    failed = {kinds[rule] for _, expected in ERRORS.values() for _, rule in expected}
    assert set(KINDS) - failed == {"annotation", "overlap", "expected"}  # see the next tests


def test_a_rule_that_doubts_refuses_nothing(anatomy, scheme):
    swap(anatomy, RIGHT, LEFT)
    refused = failing(verdicts(anatomy, scheme))
    assert refused
    rules = tuple({**rule, "verdict": "doubt"} for rule in scheme.rules)
    mild = verdicts(anatomy, scheme.model_copy(update={"rules": rules}))
    assert failing(mild) == set()
    assert refused <= broken(mild)


def test_annotation_is_held_against_the_map(anatomy, scheme):
    erase(anatomy, "spleen", np.s_[:])
    rows = verdicts(anatomy, scheme, {"spleen": "present", "gallbladder": "absent", "liver": "present"})
    assert {c for c, rule in failing(rows) if rule == "annotation"} == {"spleen", "gallbladder"}
    assert ("spleen", "volume") in failing(rows)


def test_an_organ_that_fusion_gave_away_fails(anatomy, scheme):
    voxels = int((anatomy.labels == anatomy.ids["pancreas"]).sum())
    for lost, verdict_ in ((voxels // 5, "pass"), (voxels, "fail")):
        row = verdict(verdicts(anatomy, scheme, overlap={"pancreas": lost}), "pancreas", "overlap")
        assert row["verdict"] == verdict_
        assert row["value"] == pytest.approx(100 * lost / (lost + voxels))
    row = verdict(verdicts(anatomy, scheme), "pancreas", "overlap")
    assert (row["verdict"], row["reason"]) == ("not_applicable", "what fusion took is not known")


# ------------------------------------------------------------------------------------------------- exceptions


def reasons(rows, name, verdict="not_applicable"):
    return {r["reason"] for r in rows if r["class"] == name and r["verdict"] == verdict}


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
    assert "absent in every model" in reasons(rows, "gallbladder")
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
    for arguments in ({"image": saturated}, {"image": None}, {"modality": "MR"}):
        rows = verdicts(anatomy, scheme, **arguments)
        assert {r["verdict"] for r in rows if r["rule"] == "inside_body"} == {"not_applicable"}
        assert failing(rows) == set()


def test_no_rule_measures_hu_on_mr(anatomy, scheme):
    """Also where a scheme forgets to say that a rule is for CT: the intensities would all fail."""
    rules = tuple(rule | {"modality": ["CT", "MR"]} for rule in scheme.rules)
    everywhere = scheme.model_copy(update={"rules": rules})
    bright = anatomy.image + 350  # bone, were it HU
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


def test_what_is_broken_says_where(anatomy, scheme):
    places = {
        "one_component": ("liver", np.s_[5:8, 5:9, 5:10], 1),
        "continuous": ("aorta", np.s_[50:56, :, :], 0),
        "holes": ("spleen", None, 0),
    }
    spleen = np.argwhere(anatomy.labels == anatomy.ids["spleen"]).mean(axis=0).astype(int)
    places["holes"] = ("spleen", tuple(slice(int(i) - 3, int(i) + 3) for i in spleen), 0)
    for name, where, fill in places.values():
        mine = anatomy.labels[where]
        anatomy.labels[where] = anatomy.ids[name] if fill else np.where(mine == anatomy.ids[name], 0, mine)
    rows = verdicts(anatomy, scheme)
    for rule, (name, where, _) in places.items():
        row = verdict(rows, name, rule)
        assert row["verdict"] == "fail"
        found = box_voxels(row["box"], anatomy.geometry)
        assert found[0] == where[0]
        assert rule == "continuous" or found == where
    assert all(bool(row["box"]) <= (row["verdict"] in ("fail", "doubt")) for row in rows)


def test_empty_map(scheme, anatomy):
    anatomy.labels[:] = 0
    rows = verdicts(anatomy, scheme)
    assert {row["verdict"] for row in rows} == {"not_applicable"}


# ------------------------------------------------------------------------------------------------- orientation


def stored(array, permutation, flips):
    """Return a canonical array as stored with permuted and flipped axes, and the header that says so."""
    out = np.flip(np.transpose(array, permutation), flips)
    axes = {0: (0, 0, 1.0), 1: (0, -1.0, 0), 2: (-1.0, 0, 0)}  # world directions of the canonical axes (LPS)
    columns = [np.array(axes[p]) * (-1 if i in flips else 1) for i, p in enumerate(permutation)][::-1]
    direction = tuple(np.stack(columns, axis=1).ravel().tolist())
    return Volume(out, Geometry(out.shape[::-1], (3.0, 3.0, 3.0), direction=direction))


@pytest.fixture
def swapped(anatomy):
    swap(anatomy, RIGHT, LEFT)
    erase(anatomy, "aorta", np.s_[50:56])
    return anatomy


@few()
@given(orientation=orientations)
def test_verdicts_do_not_change_with_orientation(swapped, scheme, orientation):
    expected = verdicts(swapped, scheme)
    labels, image = (canonical(stored(array, *orientation)) for array in (swapped.labels, swapped.image))
    rows = check(labels.array, labels.geometry, {}, scheme, image.array)
    assert len(rows) == len(expected)
    assert {row["verdict"] for row in rows} >= {"pass", "fail"}
    for row, wanted in zip(rows, expected, strict=True):
        elsewhere = ("value", "threshold", "box")  # the patient lies elsewhere in the room
        assert {k: v for k, v in row.items() if k not in elsewhere} == {
            k: v for k, v in wanted.items() if k not in elsewhere
        }
        assert bool(row["box"]) == bool(wanted["box"])
        assert row["value"] == pytest.approx(wanted["value"], nan_ok=True)


def test_verdicts_do_not_change_with_resampling(anatomy, scheme):
    swap(anatomy, RIGHT, LEFT)
    expected = {(r["class"], r["rule"]): r for r in verdicts(anatomy, scheme)}
    fine = np.repeat(np.repeat(anatomy.labels, 2, axis=0), 2, axis=2)
    image = np.repeat(np.repeat(anatomy.image, 2, axis=0), 2, axis=2)
    rows = check(fine, Geometry(fine.shape[::-1], (1.5, 3.0, 1.5)), {}, scheme, image)
    for row in rows:
        wanted = expected[row["class"], row["rule"]]
        assert row["verdict"] == wanted["verdict"]
        if row["unit"] in ("mm", "ml") and not math.isnan(row["value"]):  # up to a voxel
            assert row["value"] == pytest.approx(wanted["value"], rel=1e-6, abs=3.1)


# ------------------------------------------------------------------------------------------------- rules as data


def with_rule(scheme, **change):
    rule = {"name": "odd", "kind": "continuous", "classes": ["aorta"], "threshold": 5, "unit": "mm", "source": "test"}
    return scheme.model_copy(update={"rules": ({k: v for k, v in {**rule, **change}.items() if v is not None},)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"treshold": 3}, "treshold"),
        ({"threshold": None}, "threshold: Field required"),
        ({"kind": "continous"}, "'continous' is none of"),
        ({"classes": ["aorta", "heart"]}, "no class or set named heart"),
        ({"threshold": {"aorta": 5}, "classes": ["aorta", "liver"]}, "threshold: given for"),
        ({"kind": "position", "of": ["liver"], "direction": "left", "point": "top"}, "top cannot be compared by left"),
        ({"kind": "position", "of": ["hart"], "direction": "left"}, "no class or set named hart"),
        ({"kind": "volume", "threshold": {"liver": [5, 1]}, "classes": None}, "lowest value above the highest"),
        ({"kind": "volume", "threshold": {"liver": [float("nan"), 1]}, "classes": None}, "or NaN"),
        ({"exceptions": ["weather"]}, "exceptions"),
    ],
)
def test_wrong_rules_are_refused_by_name(scheme, change, said):
    with pytest.raises(UserError, match=r"rule 'odd'") as error:
        load_rules(with_rule(scheme, **change))
    assert said in str(error.value)


@pytest.mark.parametrize("name", [*COUNTS, *CRITERIA, "a;b"])
def test_a_rule_has_a_name_that_tables_can_tell_from_others(scheme, name):
    with pytest.raises(UserError, match=f"rule '{name}': name: .*give the rule another name"):
        load_rules(with_rule(scheme, name=name))
    described = TABLES["selected"]["criterion"]
    assert name not in CRITERIA or name in described


def test_a_rule_and_class_may_stand_only_once(scheme):
    twice = with_rule(scheme)
    with pytest.raises(UserError, match="given twice for aorta"):
        load_rules(twice.model_copy(update={"rules": twice.rules * 2}))


def test_shapes_must_agree(anatomy, scheme):
    with pytest.raises(ValueError, match="image of shape"):
        verdicts(anatomy, scheme, image=anatomy.image[1:])


@pytest.mark.slow
@pytest.mark.skipif(not BTCV.is_dir(), reason=f"no BTCV labels at {BTCV}")
def test_expert_labels_pass(scheme):
    """At most 2 % of the case-class rows of expert label sets may fail with the default thresholds.

    Of every second case; ``benchmarks/checks`` takes them all.
    """
    table = np.zeros(256, np.uint8)
    table[list(BTCV_IDS)] = [scheme.ids[name] for name in BTCV_IDS.values()]
    judged, failed = set(), set()
    for path in sorted(BTCV.glob("btcv_??.nii.gz"))[::2]:
        labels = canonical(read(path))
        image = canonical(read(path.with_name(path.name.replace(".nii", "_0000.nii"))))
        states = dict.fromkeys(BTCV_IDS.values(), "present")
        for row in check(table[labels.array.astype(np.uint8)], labels.geometry, states, scheme, image.array):
            if row["verdict"] != "not_applicable":
                judged.add((path.name, row["class"]))
            if row["verdict"] == "fail":
                failed.add((path.name, row["class"]))
    assert len(judged) == 8 * 12
    assert len(failed) <= 0.02 * len(judged), sorted(failed)


# ------------------------------------------------------------------ ignored voxels


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
