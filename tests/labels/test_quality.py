"""Predicted quality: learned from known DSCs, right of other patients, honest in its intervals, said in words."""

import numpy as np
import pandas as pd
import pytest

from labelloop.base.errors import UserError
from labelloop.labels import quality
from labelloop.labels.quality import (
    LARGEST_WEIGHT,
    fit,
    judge,
    kinds,
    out_of_fold,
    usual,
    weights,
    widening,
)
from labelloop.labels.settings import CORRUPTED, HELD_OUT, LEAST_PATIENTS, UNALTERED

CLASSES = ("liver", "spleen", "pancreas")
EVIDENCE = ("surface.border", "position.farthest", "rules.failed", "agreement.dice", "confidence.mean")


def row(random, patient, name, source, dsc):
    """What is known of a label: evidence follows its DSC, each a little; the pancreas has fainter borders."""
    bad, predicted = 1 - dsc, source == HELD_OUT
    return {
        "case": f"{patient}_1",
        "patient": patient,
        "class": name,
        "source": source,
        "dsc": dsc,
        "surface.border": 90 - 15 * CLASSES.index(name) - 60 * bad + random.normal(0, 4),
        "position.farthest": abs(6 * bad + random.normal(0, 1)),
        "rules.failed": float(bad > 0.5 and random.random() < 0.8),
        "agreement.dice": 1 - 0.8 * bad + random.normal(0, 0.03) if predicted else np.nan,
        "confidence.mean": 1 - 0.3 * bad + random.normal(0, 0.05) if predicted else np.nan,
    }


def table(patients, seed=1, sources=(UNALTERED, CORRUPTED, CORRUPTED, CORRUPTED, HELD_OUT)):
    random, rows = np.random.default_rng(seed), []
    for number in range(patients):
        for name in CLASSES:
            for source in sources:
                dsc = {UNALTERED: 1.0, CORRUPTED: random.uniform(0, 0.98), HELD_OUT: random.beta(5, 1.5)}[source]
                rows.append(row(random, f"p{seed}_{number}", name, source, dsc))
    return pd.DataFrame(rows)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer trees and folds, which these few numbers do not need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "ITERATIONS", 40)
        patch.setattr(quality, "FOLDS", 3)
        yield


@pytest.fixture(scope="module")
def learned(small):
    return fit(table(40), CLASSES)[0]


@pytest.fixture(scope="module")
def others():
    return table(40, seed=2, sources=(HELD_OUT,))


def test_labels_of_other_patients_are_ranked_as_their_dsc(learned, others):
    found = learned.predict(others)
    assert found["dsc"].corr(others["dsc"], method="spearman") > 0.8
    assert (found["dsc"] - others["dsc"]).abs().mean() < 0.06
    assert list(found.index) == list(others.index)


def test_intervals_are_ordered_and_hold_what_they_promise(learned, others):
    found = learned.predict(others)
    assert ((found["low"] >= 0) & (found["low"] <= found["dsc"])).all()
    assert ((found["dsc"] <= found["high"]) & (found["high"] <= 1)).all()
    assert others["dsc"].between(found["low"], found["high"]).mean() > 0.72  # 80 % promised, of 120 labels
    assert (found["high"] - found["low"]).mean() < 0.5


def test_where_nothing_tells_good_labels_from_lost_ones_their_mean_is_predicted():
    rows = table(40)[["case", "patient", "class", "source"]]
    rows["surface.border"] = 90.0
    rows["dsc"] = np.where(np.random.default_rng(3).random(len(rows)) < 0.7, 0.95, 0.05)
    found = out_of_fold(rows, CLASSES)
    assert found["dsc"].mean() == pytest.approx(rows["dsc"].mean(), abs=0.05)  # 0.68; the median label has 0.95
    assert ((found["low"] <= found["dsc"]) & (found["dsc"] <= found["high"])).mean() == 1


def test_it_works_with_one_model_and_without_any_evidence(learned, others):
    alone = others.assign(**{"agreement.dice": np.nan}).drop(columns="confidence.mean")
    assert learned.predict(alone)["dsc"].corr(others["dsc"], method="spearman") > 0.7
    nothing = learned.predict(others[["class"]])
    assert np.isfinite(nothing.to_numpy()).all()
    assert np.isfinite(learned.predict(others.assign(**{"class": "a class of another scheme"})).to_numpy()).all()
    assert learned.predict(others.head(0)).empty


def test_of_a_class_that_nobody_labeled_nothing_is_promised_and_that_is_told(learned, others):
    strange = others.head(3).assign(**{"class": "tumor"})
    found, said = learned.predict(strange), learned.reasons(strange)
    assert (found["low"] == 0).all() and (found["high"] == 1).all()
    assert all("nobody labeled this one" in reason for reason in said)
    assert not any("nobody" in reason for reason in learned.reasons(others))


def test_patients_are_predicted_without_themselves_and_alike_again():
    few = table(LEAST_PATIENTS)
    before = out_of_fold(few, CLASSES)
    mine = few["patient"] == "p1_0"
    other = few.copy()
    other.loc[mine, "dsc"] = 1 - other.loc[mine, "dsc"]
    after = out_of_fold(other, CLASSES)
    pd.testing.assert_frame_equal(before[mine], after[mine])
    assert not before[~mine].equals(after[~mine])


def test_too_few_patients_are_refused():
    with pytest.raises(UserError, match=f"{LEAST_PATIENTS - 1} labeled patients, where {LEAST_PATIENTS} are needed"):
        fit(table(LEAST_PATIENTS - 1), CLASSES)


def test_labels_are_judged_by_what_was_learned_from_the_evidence_that_they_have(others):
    rows = table(40)
    silent = others.assign(**{"agreement.dice": np.nan, "confidence.mean": np.nan})
    alone = others.assign(**{"agreement.dice": np.nan})
    asked = pd.concat([others, alone, silent], ignore_index=True).sample(frac=1, random_state=1)
    assert kinds(asked).value_counts().to_dict() == {
        kind: len(others) for kind in ("agreement confidence", "confidence", "")
    }
    found, left_out = judge(rows, asked, CLASSES)
    assert list(found.index) == list(asked.index)
    assert list(left_out.index) == list(rows.index[rows["source"] == HELD_OUT])
    for kind, mine in asked.groupby(kinds(asked)):
        assert found.loc[mine.index, "dsc"].corr(mine["dsc"], method="spearman") > 0.7
        # nothing said by models is no sign of an expert's label
        assert found.loc[mine.index, "dsc"].mean() == pytest.approx(mine["dsc"].mean(), abs=0.05), kind
    never_said, mine = rows.drop(columns=["agreement.dice", "confidence.mean"]), asked[kinds(asked) == ""]
    pd.testing.assert_frame_equal(judge(never_said, mine, CLASSES)[0], found.loc[mine.index])


def test_held_out_labels_weigh_as_much_as_all_others():
    rows = table(20)
    found = weights(rows)
    held_out = rows["source"] == HELD_OUT
    assert found[held_out].sum() == pytest.approx(found[~held_out].sum())
    assert (weights(rows[~held_out]) == 1).all()
    assert weights(pd.concat([rows[~held_out], rows[held_out].head(1)])).max() == LARGEST_WEIGHT


def test_intervals_are_widened_by_what_lies_outside_of_them():
    predicted = pd.DataFrame({"low": np.full(9, 0.5), "high": np.full(9, 0.7)})
    assert widening(predicted, np.full(9, 0.6)) == 0
    outside = np.array([0.6] * 6 + [0.4, 0.8, 0.9])
    assert widening(predicted, outside) == pytest.approx(0.1)  # the 8th of 9 residuals
    assert widening(predicted.head(3), outside[:3]) == 1  # three labels promise nothing
    assert widening(predicted.head(0), outside[:0]) == 1


def test_what_is_usual_is_that_of_good_labels():
    rows = table(20)
    found = usual(rows, EVIDENCE)
    truth = rows[(rows["source"] == UNALTERED) & (rows["class"] == "liver")]
    held_out = rows[(rows["source"] == HELD_OUT) & (rows["class"] == "liver")]
    assert found.loc["liver", "surface.border"] == truth["surface.border"].median()
    assert found.loc["liver", "agreement.dice"] > held_out["agreement.dice"].median()


def test_the_evidence_that_lowers_the_quality_is_named(learned, others):
    usual_ones = {column: learned.usual.loc["liver", column] for column in EVIDENCE}
    good = others.nlargest(5, "dsc").assign(**usual_ones, **{"class": "liver"})
    assert learned.gains(good).abs().max().max() == 0
    assert all("lowered" not in said for said in learned.reasons(good))
    faint = good.assign(**{"surface.border": 35.0})
    assert (learned.gains(faint).idxmax(axis=1) == "surface").all()
    said = learned.reasons(faint)[0]
    assert "lowered by what the image shows at its surface (by 0." in said
    assert ";" not in said
    unknown = faint.assign(**{"surface.border": np.nan})
    assert (learned.gains(unknown)["surface"] == 0).all()
