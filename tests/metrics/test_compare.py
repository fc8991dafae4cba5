import numpy as np
import pandas as pd
import pytest
from scipy import stats

from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.metrics.compare import compare_scores, contributions, hierarchical_bootstrap, share_of_gap
from labelloop.metrics.evaluate import class_means

FLARE = load_classes("flare")
ORGANS = ("liver", "spleen", "pancreas")


def table(rng, shift=0.0, cases=20):
    rows = [
        (f"c{i:02d}", name, *(rng.uniform(0.4, 0.6, 2) + shift)) for i in range(cases) for name in ("liver", "tumor")
    ]
    return pd.DataFrame(rows, columns=["case", "class", "dsc", "nsd"])


def test_a_constant_gain_is_found_with_its_sign():
    first = table(np.random.default_rng(0))
    second = first.assign(dsc=first["dsc"] + 0.1)
    result = compare_scores([first], [second.sample(frac=1, random_state=0)], FLARE).set_index(["class", "metric"])
    assert list(result.index) == [(c, m) for c in ("liver", "tumor", "organ mean") for m in ("dsc", "nsd")]
    gain = result.loc[("liver", "dsc")]
    assert gain[["difference", "low_95", "high_95"]].tolist() == pytest.approx([0.1] * 3)
    assert gain["p"] < 1e-3 and gain["cases"] == 20
    none = result.loc[("tumor", "nsd")]
    assert none[["difference", "low_95", "high_95", "p"]].tolist() == [0, 0, 0, 1]


def test_exchanging_the_tables_mirrors_the_result():
    rng = np.random.default_rng(1)
    first, second = table(rng), table(rng, 0.02)
    forward, back = (compare_scores(*pair, FLARE, seed=3) for pair in (([first], [second]), ([second], [first])))
    assert np.allclose(forward["difference"], -back["difference"])
    assert np.allclose(forward["low_95"], -back["high_95"], atol=2e-3)
    assert np.allclose(forward["p"], back["p"], atol=0.02)


def test_the_interval_is_seeded_and_near_the_normal_one():
    differences = np.random.default_rng(2).normal(0.05, 0.1, (1, 200))
    low, high, p = hierarchical_bootstrap(differences, seed=1)
    assert (low, high, p) == hierarchical_bootstrap(differences, seed=1) != hierarchical_bootstrap(differences, seed=2)
    normal = stats.norm.interval(0.95, differences.mean(), stats.sem(differences[0]))
    assert (low, high) == pytest.approx(normal, abs=0.003)


def experiments(trainings, cases, of_training, of_case, of_both, number=400):
    """Differences whose true mean is 0, [trainings, cases] each: cases and trainings have effects of their own."""
    rng = np.random.default_rng(trainings * 100 + cases)
    shape = (number, trainings, cases)
    grid = rng.normal(0, of_both, shape) + rng.normal(0, of_training, (number, trainings, 1))
    return grid + rng.normal(0, of_case, (number, 1, cases))


@pytest.mark.parametrize(
    ("trainings", "cases", "of_training", "of_case", "of_both"),
    [
        (3, 12, 0.12, 0.05, 0.05),
        (3, 12, 0.03, 0.1, 0.05),
        (5, 16, 0.05, 0.05, 0.1),
        (3, 16, 0, 0, 0.1),
        (1, 16, 0, 0.1, 0),
    ],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(trainings, cases, of_training, of_case, of_both):
    found = experiments(trainings, cases, of_training, of_case, of_both)
    intervals = np.array([hierarchical_bootstrap(grid, seed=n, resamples=1000) for n, grid in enumerate(found)])
    covered = np.mean((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0))
    assert covered > 0.92
    assert np.mean(intervals[:, 2] < 0.05) < 0.08


@pytest.mark.parametrize(
    ("trainings", "of_training", "of_case", "of_both"), [(2, 0.1, 0.03, 0.05), (3, 0.03, 0.1, 0.05), (3, 0, 0, 0.1)]
)
def test_folds_are_trainings_of_their_own(trainings, of_training, of_case, of_both):
    folds = np.arange(16) % 4
    found = experiments(trainings, 16, 0, of_case, of_both)
    spread = np.random.default_rng(trainings).normal(0, of_training, (len(found), trainings, 4))
    found = found + spread[:, :, folds]
    nested, crossed = (
        np.array([hierarchical_bootstrap(grid, n, 1000, folds=by) for n, grid in enumerate(found)])
        for by in (folds, None)
    )
    assert np.mean((nested[:, 0] <= 0) & (nested[:, 1] >= 0)) > 0.92
    assert np.median(nested[:, 1] - nested[:, 0]) < np.median(crossed[:, 1] - crossed[:, 0])


def test_the_folds_of_tables_are_those_of_their_column():
    rng = np.random.default_rng(8)
    first = [table(rng).assign(fold="a") for _ in range(2)]
    second = [one.assign(dsc=one["dsc"] + shift) for one, shift in zip(first, (0.1, 0.2), strict=True)]
    plain, one_fold = (
        compare_scores([t.drop(columns="fold") for t in first], second, FLARE),
        compare_scores(first, second, FLARE),
    )
    pd.testing.assert_frame_equal(plain, one_fold)
    by_case = {case: n % 4 for n, case in enumerate(sorted(first[0]["case"].unique()))}
    more = compare_scores([t.assign(fold=t["case"].map(by_case)) for t in first], second, FLARE)
    narrower = (more["high_95"] - more["low_95"]) < (one_fold["high_95"] - one_fold["low_95"])
    assert narrower[more["metric"] == "dsc"].all()


def test_an_interval_over_cases_alone_forgets_what_another_training_would_give():
    """As it was: 12 test cases of seed-averaged scores, seeds 12 points apart."""
    found = experiments(3, 12, 0.12, 0.05, 0.05).mean(1, keepdims=True)
    intervals = np.array([hierarchical_bootstrap(grid, seed=n, resamples=1000) for n, grid in enumerate(found)])
    assert np.mean((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0)) < 0.6


def test_a_large_gain_in_every_training_and_case_is_told_from_chance():
    low, high, p = hierarchical_bootstrap(experiments(5, 16, 0.02, 0.02, 0.02, 1)[0] + 0.3)
    assert 0.2 < low < high < 0.4 and p < 0.01
    assert hierarchical_bootstrap(np.zeros((3, 8)))[:2] == (0, 0) and hierarchical_bootstrap(np.zeros((3, 8)))[2] == 1


def test_trainings_are_paired_one_by_one():
    rng = np.random.default_rng(7)
    first = [table(rng, shift) for shift in (0.0, 0.2, 0.4)]
    second = [one.assign(dsc=one["dsc"] + 0.1) for one in first]
    row = compare_scores(first, second, FLARE).set_index(["class", "metric"]).loc[("liver", "dsc")]
    assert (row["trainings"], row["cases"]) == (3, 20)
    assert row[["difference", "low_95", "high_95"]].tolist() == pytest.approx([0.1] * 3)
    assert row["mean_first"] == pytest.approx(np.mean([one[one["class"] == "liver"]["dsc"].mean() for one in first]))
    with pytest.raises(UserError, match="3 and 2 score tables"):
        compare_scores(first, second[:2], FLARE)


def test_only_what_both_tables_have_is_paired():
    first, second = table(np.random.default_rng(4)), table(np.random.default_rng(5), cases=25)
    lacking = first.drop(index=first.index[(first["case"] == "c00") & (first["class"] == "liver")])
    result = compare_scores([lacking], [second], FLARE).set_index(["class", "metric"])
    assert result.loc[("liver", "dsc"), "cases"] == 19 and result.loc[("tumor", "dsc"), "cases"] == 20
    with pytest.raises(UserError, match="in common"):
        compare_scores([first], [second.assign(case="x" + second["case"])], FLARE)
    with pytest.raises(UserError, match="two rows of the same"):
        compare_scores([pd.concat([first, first])], [second], FLARE)


def test_the_organ_mean_of_a_case_leaves_the_tumor_out():
    first = table(np.random.default_rng(6))
    second = first.copy()
    second.loc[second["class"] == "tumor", "dsc"] += 0.5
    result = compare_scores([first], [second], FLARE).set_index(["class", "metric"])
    assert result.loc[("organ mean", "dsc"), "difference"] == 0


def partly(rng, cases=40, of_class=(0.03, -0.05, -0.05)):
    """Scores of two models: all cases have the liver, one in three the other organs; each class has its difference."""
    first = pd.DataFrame(
        [(f"c{i:02d}", name, 0.7, 0.7) for i in range(cases) for name in ORGANS[: 1 if i % 3 else 3]],
        columns=["case", "class", "dsc", "nsd"],
    )
    gain = first["class"].map(dict(zip(ORGANS, of_class, strict=True))) + rng.normal(0, 0.02, len(first))
    of_case = first["case"].map(dict(zip(first["case"].unique(), rng.normal(0, 0.03, cases), strict=True)))
    return first, first.assign(dsc=first["dsc"] + gain + of_case)


def test_the_organ_mean_is_over_classes_also_where_cases_have_different_ones():
    first, second = partly(np.random.default_rng(3))
    row = compare_scores([first], [second], FLARE).set_index(["class", "metric"]).loc[("organ mean", "dsc")]
    means = [class_means(one, FLARE).loc["mean of organs", "dsc"] for one in (first, second)]
    assert row[["mean_first", "mean_second"]].tolist() == pytest.approx(means)
    assert row["difference"] == pytest.approx(means[1] - means[0]) and row["difference"] < 0
    assert row["low_95"] < row["difference"] < row["high_95"]


def test_the_interval_of_the_organ_mean_holds_it_as_often_as_it_says():
    rng, held = np.random.default_rng(4), []
    for seed in range(400):
        first, second = partly(rng)
        gain = (second["dsc"] - first["dsc"]).to_numpy()
        added = contributions(gain[None], first["class"].to_numpy(), first["case"].to_numpy())
        low, high, _ = hierarchical_bootstrap(added, seed, 1000)
        held.append(low <= -0.07 / 3 <= high)
    assert np.mean(held) > 0.9


def of_patients(rng, patients=16):
    """Return differences of cases that have the mean 0, and their patients, who have one to nine."""
    cases = np.repeat(np.arange(patients), np.arange(patients) % 9 + 1)
    return rng.normal(0, 0.1, patients)[cases] + rng.normal(0, 0.02, len(cases)), cases


def test_the_interval_over_patients_holds_the_truth_where_they_have_several_cases():
    rng, held = np.random.default_rng(9), []
    for seed in range(400):
        found, patients = of_patients(rng)
        for units in (patients, np.arange(len(found))):
            low, high, _ = hierarchical_bootstrap(
                contributions(found[None], np.zeros(len(found)), units), seed, resamples=1000
            )
            held.append(low <= 0 <= high)
    by_patient, by_case = np.mean(np.reshape(held, (-1, 2)), axis=0)
    assert by_patient > 0.88 and by_case < 0.65


def test_patients_change_the_interval_and_no_mean():
    rng = np.random.default_rng(10)
    found, patients = of_patients(rng)
    first = pd.DataFrame({"case": [f"c{n:03d}" for n in range(len(found))], "class": "liver", "dsc": 0.5, "nsd": 0.5})
    second = first.assign(dsc=0.5 + found)
    of_case = {f"c{n:03d}": f"p{patient}" for n, patient in enumerate(patients)}
    alone, together = (
        compare_scores([first], [second], FLARE, patients=given).set_index(["class", "metric"]).loc[("liver", "dsc")]
        for given in (None, of_case)
    )
    assert (together["cases"], together["patients"], together["fewest"]) == (len(found), 16, 16)
    assert alone["patients"] == len(found)
    assert together["difference"] == pytest.approx(found.mean()) == alone["difference"]
    assert together["high_95"] - together["low_95"] > 1.3 * (alone["high_95"] - alone["low_95"])


@pytest.mark.parametrize("share", [-0.3, 0.4, 1.0])
def test_the_share_of_a_gap_is_found_and_its_interval_holds_it(share):
    rng = np.random.default_rng(11)
    control = rng.normal(0.4, 0.1, (3, 16))
    oracle = control + rng.normal(0.2, 0.02, control.shape)
    arm = control + share * 0.2 + rng.normal(0, 0.02, control.shape)
    found, low, high = share_of_gap(control, arm, oracle)
    assert found == pytest.approx(share, abs=0.1)
    assert low < found < high and low < share < high and high - low < 0.5
    assert share_of_gap(control, control, oracle)[0] == 0


def test_of_no_certain_gap_no_share_is_told():
    rng = np.random.default_rng(12)
    control, arm, oracle = rng.normal(0.5, 0.1, (3, 3, 8))
    _, low, high = share_of_gap(control, arm, oracle)
    assert np.isinf(low) or np.isinf(high)
