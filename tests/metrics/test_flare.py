import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labelloop.base.classes import IGNORED, ClassScheme, load_classes
from labelloop.base.errors import CaseError, UserError
from labelloop.base.tables import TABLES
from labelloop.images.volume import Geometry, Volume, read
from labelloop.metrics import flare
from labelloop.metrics.flare import RULES, score_case

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "flare_metrics"
FLARE = load_classes("flare")
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no ../shared/reference/flare_metrics here")
SMALL = ClassScheme.model_validate(
    {
        "name": "small",
        "classes": [
            {"name": "organ", "id": 1, "tolerance_mm": 2, "color": "#000000"},
            {"name": "tube", "id": 2, "tolerance_mm": 2, "color": "#000000", "tube": True},
        ],
    }
)
GRID = Geometry((12, 14, 16), (1.0, 1.5, 3.0))


def volume(array, geometry=GRID):
    return Volume(array.astype(np.uint8), geometry)


def blank():
    return np.zeros(GRID.shape, np.uint8)


def scores(truth, prediction, rules="official-2024", states=None, scheme=SMALL):
    return {row["class"]: row for row in score_case(volume(truth), volume(prediction), scheme, rules, states)}


def case_pairs():
    return [(read(path), read(REFERENCE / "res" / path.name)) for path in sorted((REFERENCE / "ref").glob("*.nii.gz"))]


@needs_reference
def test_all_336_official_numbers():
    official = pd.read_csv(REFERENCE / "official.csv").set_index("Name")
    compared = 0
    for name, expected in official.iterrows():
        pair = read(REFERENCE / "ref" / name), read(REFERENCE / "res" / name)
        table = pd.DataFrame(score_case(*pair, FLARE, "official-2024"))
        assert expected.tolist() == pytest.approx([*table["dsc"], *table["nsd"]], abs=1e-9), name
        compared += len(expected)
    assert compared == 336


@needs_reference
def test_corrected_differs_from_official_only_in_tubes():
    changed = 0
    for truth, prediction in case_pairs():
        both = zip(*(score_case(truth, prediction, FLARE, r) for r in ("official-2024", "corrected")), strict=True)
        for official, corrected in both:
            same = all(official[m] == pytest.approx(corrected[m], abs=5.1e-5) for m in ("dsc", "nsd"))
            assert same or FLARE[official["class"]].tube
            changed += not same
    assert changed


@needs_reference
@pytest.mark.parametrize("rules", RULES)
def test_scores_do_not_depend_on_how_the_axes_are_stored(rules):
    truth, prediction = case_pairs()[1]
    expected = score_case(truth, prediction, FLARE, rules)
    assert score_case(turned(truth), turned(prediction), FLARE, rules) == expected
    assert score_case(turned(truth), prediction, FLARE, rules) == expected  # each its own way, on the same grid


def turned(given: Volume) -> Volume:
    """Store the same volume with permuted and reversed axes: image axes (y reversed, z, x reversed)."""
    g = given.geometry
    direction = np.asarray(g.direction).reshape(3, 3)
    last = np.asarray(g.size) - 1
    corner = direction @ (np.array([last[0], last[1], 0]) * g.spacing)
    columns = np.stack([-direction[:, 1], direction[:, 2], -direction[:, 0]], axis=1)
    pick = [1, 2, 0]
    geometry = Geometry(
        tuple(g.size[i] for i in pick),
        tuple(g.spacing[i] for i in pick),
        tuple((np.asarray(g.origin) + corner).tolist()),
        tuple(columns.ravel().tolist()),
    )
    array = given.array[:, ::-1, ::-1].transpose(2, 0, 1)  # [z, y, x] to [x reversed, z, y reversed]
    return Volume(array, geometry)


def test_rows_are_those_of_a_scores_table_and_volumes_are_true():
    truth, prediction = blank(), blank()
    truth[2:6, 2:6, 2:6] = 1
    prediction[2:6, 2:6, 2:10] = 1
    row = scores(truth, prediction)["organ"]
    assert {"case", *row} == set(TABLES["scores"])
    assert json.loads(json.dumps(row)) == row  # ledgers keep rows as JSON
    assert row["volume_truth_ml"] == pytest.approx(64 * 4.5 / 1000)
    assert row["volume_error_ml"] == pytest.approx(64 * 4.5 / 1000)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("state", ["present", "absent", "unknown", None])
@pytest.mark.parametrize("in_truth, in_prediction", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_empties(rules, state, in_truth, in_prediction):
    truth, prediction = blank(), blank()
    truth[4:9, 4:9, 4:9] = in_truth
    prediction[4:9, 4:9, 4:9] = in_prediction
    states = None if state is None else {"organ": state}
    got = scores(truth, prediction, rules, states)
    if state == "unknown":
        assert got == {}  # never scored, whatever the files hold
        return
    expected = 1.0 if in_truth == in_prediction else 0.0
    assert (got["organ"]["dsc"], got["organ"]["nsd"]) == (expected, expected)
    assert ("tube" in got) == (states is None)  # a class that the annotation does not name is unknown


def test_nsd_of_a_poor_dsc_is_zero_by_the_rules_of_the_year():
    truth, prediction = blank(), blank()
    truth[4:10, 4:10, 4:5] = 1
    prediction[4:10, 4:10, 5:6] = 1  # one voxel aside: no overlap, all within 2 mm
    prediction[4:6, 4:7, 4:5] = 1
    rows = {rules: scores(truth, prediction, rules)["organ"] for rules in RULES}
    assert 0.1 < rows["corrected"]["dsc"] < 0.2
    assert rows["official-2022"]["nsd"] == rows["official-2023"]["nsd"] == 1
    assert rows["official-2024"]["nsd"] == rows["corrected"]["nsd"] == 0
    prediction[4:6, 4:7, 4:5] = 0
    assert scores(truth, prediction, "official-2022")["organ"]["nsd"] == 1
    assert scores(truth, prediction, "official-2023")["organ"]["nsd"] == 0


def test_tubes_are_scored_on_the_z_range_of_the_truth():
    truth, longer, shorter = blank(), blank(), blank()
    truth[4:10, 4:9, 4:9] = 2
    longer[1:16, 4:9, 4:9] = 2
    shorter[4:9, 4:9, 4:9] = 2  # the top slice is missing
    for rules in RULES:
        row = scores(truth, longer, rules)["tube"]
        assert (row["dsc"], row["nsd"]) == (1, 1)
    assert scores(truth, shorter, "official-2024")["tube"]["dsc"] == 1
    assert scores(truth, shorter, "corrected")["tube"]["dsc"] == pytest.approx(10 / 11)
    bottom = np.where(np.arange(16)[:, None, None] == 4, 0, truth)
    assert scores(truth, bottom, "official-2024")["tube"]["dsc"] < 1  # only the top is forgiven


@pytest.mark.parametrize("rules", RULES)
def test_a_tube_of_one_slice_is_scored_on_that_slice(rules):
    truth, prediction = blank(), blank()
    truth[7, 4:9, 4:9] = 2
    prediction[3:12, 4:9, 4:9] = 2
    row = scores(truth, prediction, rules)["tube"]
    assert (row["dsc"], row["nsd"]) == (1, 1)
    prediction[7] = 0
    row = scores(truth, prediction, rules)["tube"]
    assert (row["dsc"], row["nsd"]) == (0, 0)


def test_official_scores_are_rounded_as_numpy_rounds_and_corrected_ones_are_not(monkeypatch):
    monkeypatch.setattr(flare, "_dsc_nsd", lambda *_: (0.55625, 0.123456))
    row = scores(blank(), blank(), "official-2024")["organ"]
    assert (row["dsc"], row["nsd"]) == (0.5562, 0.1235)
    row = scores(blank(), blank(), "corrected")["organ"]
    assert (row["dsc"], row["nsd"]) == (0.55625, 0.123456)


@pytest.mark.parametrize(
    "other, word",
    [
        (Geometry((12, 14, 15), (1.0, 1.5, 3.0)), "size"),
        (Geometry((12, 14, 16), (1.0, 1.5, 2.5)), "spacing"),
        (Geometry((12, 14, 16), (1.0, 1.5, 3.0), (5.0, 0.0, 0.0)), "origin"),
    ],
)
def test_another_grid_is_refused_in_words(other, word):
    with pytest.raises(CaseError, match=f"pred.nii.gz.*{word}.*against") as error:
        score_case(volume(blank()), volume(np.zeros(other.shape), other), SMALL, "corrected", file="pred.nii.gz")
    assert error.value.code == "grid_differs"


def test_fractional_labels_are_refused_and_whole_floats_are_not():
    with pytest.raises(CaseError, match="fractional"):
        score_case(volume(blank()), Volume(blank() + 0.5, GRID), SMALL)
    assert score_case(volume(blank()), Volume(blank().astype(np.float64), GRID), SMALL)[0]["dsc"] == 1


def test_ids_outside_the_scheme_and_unknown_rules():
    truth = blank()
    truth[4:9, 4:9, 4:9] = 1
    prediction = np.where(truth == 1, 1, 99)
    assert scores(truth, prediction)["organ"]["dsc"] == 1
    with pytest.raises(UserError, match=r"official-2025.*known: official-2022"):
        scores(truth, truth, "official-2025")


def test_scores_are_finite_for_noise():
    rng = np.random.default_rng(0)
    rows = scores(rng.integers(0, 3, GRID.shape), rng.integers(0, 3, GRID.shape), "official-2022")
    assert all(math.isfinite(v) for row in rows.values() for k, v in row.items() if k != "class")


def with_ignored(seed=0):
    """A truth of an organ and a tube, of which a part is ignored, and a prediction of both."""
    rng, truth, prediction = np.random.default_rng(seed), blank(), blank()
    truth[3:10, 2:9, 2:8], truth[4:12, 10:13, 9:11] = 1, 2
    prediction[4:11, 3:9, 2:9], prediction[3:11, 10:13, 8:11] = 1, 2
    low = rng.integers(0, 6, 3)
    truth[tuple(slice(a, a + 4) for a in low)] = IGNORED
    return truth, prediction, truth == IGNORED


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_predicted_in_ignored_voxels_changes_no_score(rules, seed):
    truth, prediction, ignored = with_ignored(seed)
    expected = scores(truth, prediction, rules)
    for value in (0, 1, 2):
        prediction[ignored] = value
        assert scores(truth, prediction, rules) == expected
    volumes = {name: (truth == i).sum() * 4.5 / 1000 for i, name in ((1, "organ"), (2, "tube"))}
    assert {name: row["volume_truth_ml"] for name, row in expected.items()} == pytest.approx(volumes)
    assert expected["organ"]["volume_prediction_ml"] == pytest.approx(((prediction == 1) & ~ignored).sum() * 4.5 / 1000)


def test_dice_is_that_of_both_masks_without_ignored_voxels():
    truth, prediction, ignored = with_ignored()
    without = [np.where(ignored, 0, array) for array in (truth, prediction)]
    with_it, plain = scores(truth, prediction, "corrected"), scores(*without, "corrected")
    assert [row["dsc"] for row in with_it.values()] == [row["dsc"] for row in plain.values()]
    assert with_it["organ"]["nsd"] != plain["organ"]["nsd"]


def test_an_organ_whose_border_is_ignored_has_a_dice_and_no_nsd():
    truth = blank()
    truth[2:12, 2:12, 2:10], truth[4:10, 4:10, 4:8] = IGNORED, 1
    row = scores(truth, np.where(truth == IGNORED, 1, truth), "corrected")["organ"]
    assert row["dsc"] == 1 and math.isnan(row["nsd"])
    missed = scores(truth, blank(), "corrected")["organ"]
    assert (missed["dsc"], missed["nsd"]) == (0, 0)


def test_a_class_that_may_lie_under_ignored_voxels_is_not_scored():
    truth = blank()
    truth[3:6, 3:6, 3:6], truth[10, 3, 3] = 1, IGNORED
    assert set(scores(truth, truth * 0, "corrected")) == {"organ"}
    assert set(scores(truth, truth * 0, "corrected", {"organ": "present", "tube": "present"})) == {"organ"}
    assert scores(truth, truth * 0, "corrected", {"tube": "absent"})["tube"]["dsc"] == 1


def test_ignored_voxels_are_left_out_whatever_the_order_of_axes():
    truth, prediction, _ = with_ignored()
    turned = [Volume(a[::-1, ::-1].copy(), Geometry(GRID.size, GRID.spacing, (0.0, 13 * 1.5, 15 * 3.0),
              (1.0, 0, 0, 0, -1.0, 0, 0, 0, -1.0))) for a in (truth, prediction)]  # fmt: skip
    assert score_case(*turned, SMALL, "corrected") == score_case(volume(truth), volume(prediction), SMALL, "corrected")
