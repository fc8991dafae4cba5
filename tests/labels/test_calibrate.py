import numpy as np
import pandas as pd
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.base.tables import TABLES, read_table, write_table
from labelloop.images.volume import Geometry, Volume
from labelloop.labels.calibrate import (
    aurc,
    calibrate,
    calibrate_files,
    calibrate_held_out,
    e_value,
    fewest_cases,
    risk_coverage,
    threshold,
)
from labelloop.labels.measured import true_dsc
from labelloop.metrics.flare import score_case

FLARE = load_classes("flare")


def simulated(number, seed):
    """Agreement and true DSC: good labels agree; one in four is bad, and some of these agree all the same."""
    random = np.random.default_rng(seed)
    bad = random.random(number) < 0.25
    dsc = np.where(bad, random.beta(4, 4, number), random.beta(40, 3, number))
    agreement = np.clip(dsc + random.normal(0.02, 0.08, number), 0, 1)
    return agreement, dsc


def test_calibrated_thresholds_meet_their_target():
    """On fresh cases accepted labels reach the target in at least 9 of 10 seeds (asked for: 90 % confidence)."""
    fresh = simulated(200_000, 10_000)
    met, coverages = [], []
    for seed in range(40):
        found = threshold(*simulated(100, seed), target_dsc=0.85, confidence=0.9)
        accepted = fresh[0] > found["threshold"]
        met.append(np.isnan(found["threshold"]) or fresh[1][accepted].mean() >= 0.85)
        coverages.append(accepted.mean())
    assert fresh[1].mean() < 0.85  # accepting everything would miss it
    assert min(sum(met[i : i + 10]) for i in range(0, 40, 10)) >= 9
    assert np.median(coverages) > 0.5  # and it does not do so by refusing everything


def test_no_promise_is_made_where_none_holds():
    """With labels that are on average at the target, agreement telling nothing, at most 10 % of the seeds certify."""
    random = np.random.default_rng(0)
    certified = 0
    for _ in range(200):
        dsc = 0.8 + 0.2 * (random.random(60) < 0.25)  # mean 0.85
        certified += not np.isnan(threshold(random.random(60), dsc, 0.85, 0.9)["threshold"])
    assert certified <= 0.1 * 200


def test_on_average_forty_cases_are_enough_and_the_target_is_met():
    """Over runs of 40 cases each, most have a threshold, and what they accept meets the target on average."""
    agreement, dsc = simulated(200_000, 10_000)
    shares, losses = [], []
    for seed in range(200):
        found = threshold(*simulated(40, seed), target_dsc=0.85, confidence=None)
        accepted = agreement > found["threshold"]  # NaN: none
        shares.append(accepted.mean())
        losses.append(1 - dsc[accepted].mean() if accepted.any() else 0.0)
    assert dsc.mean() < 0.85
    assert np.mean(losses) <= 0.15
    assert np.mean(np.array(shares) > 0) >= 0.8
    assert np.median(shares) > 0.5


def test_on_average_a_score_that_tells_nothing_promises_nothing():
    """Half of the labels are worthless: what is accepted by chance is, over runs, within what is allowed."""
    random, losses = np.random.default_rng(0), []
    for _ in range(300):
        dsc = (random.random(40) < 0.5).astype(float)
        losses.append(0.0 if np.isnan(threshold(random.random(40), dsc, 0.8, None)["threshold"]) else 0.5)
    assert np.mean(losses) <= 0.2


@pytest.mark.parametrize(("target", "least"), [(0.5, 1), (0.8, 4), (0.85, 6), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_on_average_one_more_label_that_is_wrong_must_be_affordable(target, least):
    """Losses of 0: (0 + 1) of n + 1 must be within 1 - target, so of 15 % it takes 6 labels, of 10 % 9."""
    for number in (least - 1, least):
        found = threshold(np.linspace(0.8, 0.9, number), np.ones(number), target, None)
        assert found["accepted"] == (number if number == least else 0)
        assert number in (0, least) or f"fewer than {least} none can be" in found["reason"]
    assert threshold(np.zeros(0), np.zeros(0), 0.85, None)["reason"] == "no held-out label to judge by"


def test_evidence_is_at_most_one_in_expectation():
    random = np.random.default_rng(1)
    values = [e_value((random.random(30) < 0.2).astype(float), 0.2) for _ in range(20_000)]
    assert np.mean(values) < 1.05
    assert e_value(np.zeros(50), 0.2) > 1000


def test_too_few_cases_say_how_many_it_takes():
    least = fewest_cases(0.15, 0.9)
    found = threshold(np.linspace(0.8, 0.9, 8), np.full(8, 0.92), 0.85, 0.9)
    assert np.isnan(found["threshold"])
    assert f"fewer than {least}" in found["reason"]
    assert found["accepted"] == 0
    enough = threshold(np.linspace(0.8, 0.9, least), np.full(least, 0.925), 0.85, 0.9)
    assert enough["accepted"] == least
    assert np.isnan(threshold(np.zeros(0), np.zeros(0), 0.85, 0.9)["threshold"])


def test_cases_that_agree_equally_are_treated_equally():
    agreement, dsc = simulated(120, 3)
    agreement = agreement.round(1)
    random = np.random.default_rng(0)
    expected = threshold(agreement, dsc, 0.8, 0.9)
    for _ in range(5):
        order = random.permutation(120)
        found = threshold(agreement[order], dsc[order], 0.8, 0.9)
        assert found["accepted"] == expected["accepted"] == (agreement > found["threshold"]).sum()
        assert found["aurc"] == pytest.approx(expected["aurc"])


def test_risk_coverage_equals_the_definition():
    agreement, dsc = simulated(50, 0)
    agreement -= np.arange(50) * 1e-6  # no two agree equally
    coverage, risk = risk_coverage(agreement, dsc)
    for share, value in zip(coverage, risk, strict=True):
        best = np.sort(agreement)[::-1][: round(share * 50)]
        assert value == pytest.approx(1 - dsc[agreement >= best.min()].mean())
    assert aurc(agreement, dsc) == pytest.approx(risk.mean())
    assert aurc(dsc, dsc) <= aurc(agreement, dsc) < aurc(-dsc, dsc)
    assert aurc(np.ones(50), dsc) == pytest.approx(1 - dsc.mean())


def test_table(tmp_path):
    agreement, dsc = simulated(80, 1)
    cases = [f"c{i}" for i in range(80)]
    scores = pd.DataFrame({"case": cases, "class": "liver", "dsc": dsc})
    scores.loc[0, "dsc"] = np.nan  # neither truth nor prediction: nothing to learn from
    rows = pd.DataFrame({"case": cases, "class": "liver", "pairwise_dice": agreement, "uncertainty": 0.0})
    table = calibrate(scores, rows, 0.8, 0.9, ["liver", "spleen"])
    assert table.set_index("class")["cases"].to_dict() == {"liver": 79, "spleen": 0}
    write_table(tmp_path / "calibration.csv", table, "calibration")
    again = read_table(tmp_path / "calibration.csv", "calibration").set_index("class")
    assert list(again.reset_index().columns) == list(TABLES["calibration"])
    assert again.loc["liver", "threshold"] == pytest.approx(table["threshold"][0], rel=1e-5)
    assert again.loc["spleen", "reason"] == "no held-out label to judge by"
    assert np.isnan(again.loc["spleen", "threshold"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrate(scores, rows, 85, 0.9, ["liver"])


def test_files(tmp_path):
    agreement, dsc = simulated(60, 2)
    cases = [f"c{i}" for i in range(60)]
    scores = pd.DataFrame({"case": cases, "class": "liver", "dsc": dsc, "nsd": dsc})
    for column in ("volume_truth_ml", "volume_prediction_ml", "volume_error_ml"):
        scores[column] = 1.0
    rows = pd.DataFrame(
        {
            "case": cases,
            "class": "liver",
            "pairwise_dice": agreement,
            "uncertainty": 0.0,
            "predictions": 2,
            "stability": 1.0,
        }
    )
    paths = tmp_path / "scores.csv", tmp_path / "disagreement.csv", tmp_path / "calibration.csv"
    write_table(paths[0], scores, "scores")
    write_table(paths[1], rows, "disagreement")
    table = calibrate_files(*paths, "flare", 0.8, 0.9)
    assert list(table["class"]) == ["liver"]
    assert read_table(paths[2], "calibration")["accepted"][0] == table["accepted"][0] > 0
    with pytest.raises(UserError, match="between 0 and 1"):
        calibrate_files(*paths, "flare", 80, 0.9)
    for wrong in (scores.assign(dsc=100 * dsc), scores.assign(dsc=-dsc)):  # percent, say
        write_table(paths[0], wrong, "scores")
        with pytest.raises(UserError, match=r"dsc of c0, liver is .*, where a number from 0 to 1"):
            calibrate_files(*paths, "flare", 0.8, 0.9)
    write_table(paths[0], scores.assign(**{"class": "lever"}), "scores")
    write_table(paths[1], rows.assign(**{"class": "lever"}), "disagreement")
    with pytest.raises(UserError, match="holds lever, no class of flare"):
        calibrate_files(*paths, "flare", 0.8, 0.9)
    write_table(paths[0], scores, "scores")
    write_table(paths[1], rows.assign(case="other"), "disagreement")
    with pytest.raises(UserError, match="in common"):
        calibrate_files(*paths, "flare", 0.8, 0.9)


def test_scores_on_some_slices_only_certify_nothing(tmp_path):
    """Labels of the aorta that are twice as long as the truth score 1 by FLARE's rules."""
    truth = np.zeros((24, 6, 6), np.uint8)
    truth[:12, 2:4, 2:4] = FLARE.ids["aorta"]
    truth[:, 4:, 4:] = FLARE.ids["liver"]
    longer = truth.copy()
    longer[:, 2:4, 2:4] = FLARE.ids["aorta"]
    geometry = Geometry((6, 6, 24), (1.0, 1.0, 1.0))
    for rules in ("official-2024", "corrected"):
        rows = score_case(Volume(truth, geometry), Volume(longer, geometry), FLARE, rules)
        own = true_dsc(longer, truth, FLARE, ["aorta", "liver"])
        assert own["aorta"] < 0.7 < 1 == {row["class"]: row["dsc"] for row in rows}["aorta"]
        cases = [f"c{n:03d}" for n in range(100)]
        found = [{"case": case, **row} for case in cases for row in rows if row["class"] in own]
        write_table(tmp_path / "scores.csv", found, "scores")
        agreement = [
            dict.fromkeys(TABLES["disagreement"], 1.0) | {k: row[k] for k in ("case", "class")} for row in found
        ]
        write_table(tmp_path / "disagreement.csv", agreement, "disagreement")
        paths = (tmp_path / f"{name}.csv" for name in ("scores", "disagreement", "calibration"))
        table = calibrate_files(*paths, "flare", 0.85, 0.9).set_index("class")
        assert table.loc["liver", "accepted"] == 100 and table.loc["aorta", "accepted"] == 0
        assert np.isnan(table.loc["aorta", "threshold"]) and "slices of the truth" in table.loc["aorta", "reason"]


def test_only_labels_that_pass_the_other_criteria_calibrate():
    agreement, dsc = simulated(80, 5)
    pairs = enumerate(zip(agreement, dsc, strict=True))
    rows = [(f"c{i}", f"c{i}", "liver", score, None, true, "accepted", "") for i, (score, true) in pairs]
    refused = [(f"r{i}", f"r{i}", "liver", 1.0, None, 0.0, "demoted", "side: mirrored") for i in range(80)]
    tables = [pd.DataFrame(part, columns=list(TABLES["held_out"])) for part in (rows, rows + refused)]
    found = [calibrate_held_out(table, 0.8, 0.9, ["liver", "spleen"]) for table in tables]
    pd.testing.assert_frame_equal(*found)
    assert found[0]["threshold"][0] == pytest.approx(threshold(agreement, dsc, 0.8, 0.9)["threshold"])
    assert found[0]["reason"][1] == "no held-out label to judge by"
    predicted = tables[1].assign(pairwise_dice=None, quality=tables[1]["pairwise_dice"])
    by_quality = calibrate_held_out(predicted, 0.8, 0.9, ["liver", "spleen"], "quality")
    pd.testing.assert_frame_equal(found[0], by_quality)


def scans(dsc, random, number):
    """Return a held-out table: a patient for each DSC, with so many scans of it; agreement tells nothing."""
    rows = [
        {"case": f"p{p}_{n}", "patient": f"p{p}", "class": "liver", "pairwise_dice": random.random(), "quality": None}
        | {"dsc": float(np.clip(one + random.normal(0, 0.01), 0, 1)), "decision": "accepted", "reason": ""}
        for p, one in enumerate(dsc)
        for n in range(number)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("people", "number"), [(8, 9), (20, 9)])
def test_scans_of_one_patient_are_no_independent_proofs(people, number):
    """Labels are on average below the target (0.84); nine sequences of a patient are all good, or all bad."""
    random, certified = np.random.default_rng(3), 0
    for _ in range(100):
        table = scans(np.where(random.random(people) < 0.15, 0.2, 0.95), random, number)
        (found,) = calibrate_held_out(table, 0.85, 0.9, ["liver"]).to_dict("records")
        certified += not np.isnan(found["threshold"])
    assert certified <= 0.1 * 100 and found["cases"] == people


def test_many_patients_with_good_labels_are_enough():
    random = np.random.default_rng(4)
    table = scans(random.uniform(0.9, 0.97, 60), random, 3)
    (found,) = calibrate_held_out(table, 0.85, 0.9, ["liver"]).to_dict("records")
    assert found["accepted"] == found["cases"] == 60


def test_patients_of_a_case_table_count_once(tmp_path):
    random = np.random.default_rng(5)
    held_out = scans(random.uniform(0.9, 0.97, 60), random, 3)
    scores = held_out[["case", "class", "dsc"]].assign(nsd=1.0, volume_truth_ml=1.0)
    write_table(tmp_path / "s.csv", scores.assign(volume_prediction_ml=1.0, volume_error_ml=0.0), "scores")
    rows = held_out[["case", "class", "pairwise_dice"]].assign(uncertainty=0.0, predictions=2, stability=1.0)
    write_table(tmp_path / "d.csv", rows, "disagreement")
    lines = [f"{case},a.nii.gz,btcv,{patient}" for case, patient in held_out[["case", "patient"]].to_numpy()]
    (tmp_path / "cases.csv").write_text("\n".join(["case,image,dataset,patient", *lines]) + "\n")
    given = (tmp_path / "s.csv", tmp_path / "d.csv", tmp_path / "out.csv", "flare", 0.85, 0.9)
    assert calibrate_files(*given)["cases"].tolist() == [180]
    table = calibrate_files(*given, tmp_path / "cases.csv")
    pd.testing.assert_frame_equal(table, calibrate_held_out(held_out, 0.85, 0.9, ["liver"]))
    (tmp_path / "cases.csv").write_text("case,image,dataset\nother,a.nii.gz,btcv\n")
    with pytest.raises(UserError, match="names none of these scored cases"):
        calibrate_files(*given, tmp_path / "cases.csv")


@pytest.mark.parametrize("allowed", [0.3, 0.05])
def test_the_fewest_cases_are_those_of_the_test_itself(allowed):
    size = fewest_cases(allowed, 0.9)
    proven = [e_value(np.full(n, allowed / 2), allowed) >= 20 for n in (size - 1, size)]
    assert proven == [False, True]


def test_a_target_near_perfection_takes_no_time():
    assert fewest_cases(1e-9, 0.9) > 1e6
