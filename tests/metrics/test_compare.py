import numpy as np
import pandas as pd
import pytest
from scipy import stats

from labelloop.classes import load_classes
from labelloop.errors import UserError
from labelloop.metrics.compare import bootstrap_interval, compare_scores, wilcoxon_p

FLARE = load_classes("flare")


def table(rng, shift=0.0, cases=20):
    rows = [
        (f"c{i:02d}", name, *(rng.uniform(0.4, 0.6, 2) + shift)) for i in range(cases) for name in ("liver", "tumor")
    ]
    return pd.DataFrame(rows, columns=["case", "class", "dsc", "nsd"])


def test_a_constant_gain_is_found_with_its_sign():
    first = table(np.random.default_rng(0))
    second = first.assign(dsc=first["dsc"] + 0.1)
    result = compare_scores(first, second.sample(frac=1, random_state=0), FLARE).set_index(["class", "metric"])
    assert list(result.index) == [(c, m) for c in ("liver", "tumor", "organ mean") for m in ("dsc", "nsd")]
    gain = result.loc[("liver", "dsc")]
    assert gain[["difference", "low_95", "high_95"]].tolist() == pytest.approx([0.1] * 3)
    assert gain["p_wilcoxon"] < 1e-4 and gain["cases"] == 20
    none = result.loc[("tumor", "nsd")]
    assert none[["difference", "low_95", "high_95", "p_wilcoxon"]].tolist() == [0, 0, 0, 1]


def test_exchanging_the_tables_mirrors_the_result():
    rng = np.random.default_rng(1)
    first, second = table(rng), table(rng, 0.02)
    forward, back = (compare_scores(*pair, FLARE, seed=3) for pair in ((first, second), (second, first)))
    assert np.allclose(forward["difference"], -back["difference"])
    assert np.allclose(forward["low_95"], -back["high_95"])
    assert np.allclose(forward["p_wilcoxon"], back["p_wilcoxon"])


def test_the_interval_is_seeded_and_near_the_normal_one():
    differences = np.random.default_rng(2).normal(0.05, 0.1, 200)
    low, high = bootstrap_interval(differences, seed=1)
    assert (low, high) == bootstrap_interval(differences, seed=1) != bootstrap_interval(differences, seed=2)
    normal = stats.norm.interval(0.95, differences.mean(), stats.sem(differences))
    assert (low, high) == pytest.approx(normal, abs=0.003)


def test_wilcoxon_is_scipys_and_one_without_any_difference():
    differences = np.random.default_rng(3).normal(0.3, 1, 30)
    assert wilcoxon_p(differences) == stats.wilcoxon(differences).pvalue
    assert wilcoxon_p(np.zeros(5)) == 1


def test_only_what_both_tables_have_is_paired():
    first, second = table(np.random.default_rng(4)), table(np.random.default_rng(5), cases=25)
    lacking = first.drop(index=first.index[(first["case"] == "c00") & (first["class"] == "liver")])
    result = compare_scores(lacking, second, FLARE).set_index(["class", "metric"])
    assert result.loc[("liver", "dsc"), "cases"] == 19 and result.loc[("tumor", "dsc"), "cases"] == 20
    with pytest.raises(UserError, match="in common"):
        compare_scores(first, second.assign(case="x" + second["case"]), FLARE)
    with pytest.raises(pd.errors.MergeError):
        compare_scores(pd.concat([first, first]), second, FLARE)


def test_the_organ_mean_of_a_case_leaves_the_tumor_out():
    first = table(np.random.default_rng(6))
    second = first.copy()
    second.loc[second["class"] == "tumor", "dsc"] += 0.5
    result = compare_scores(first, second, FLARE).set_index(["class", "metric"])
    assert result.loc[("organ mean", "dsc"), "difference"] == 0
