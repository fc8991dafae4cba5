"""The whole chain on a tiny collection: what it leaves, what it never does, what it does with bad files."""

import pytest

from labelloop.paths import OUTPUTS
from labelloop.tables import read_table

TABLES = ["cases.csv", "annotation.csv", "geometry.csv", "quarantine.csv", "groups.csv"]
MODELS = ["teacher", "teacher_b", "student"]


def test_everything_declared_is_there_and_nothing_is_left_to_do(reference):
    labels = [f"labels/pseudo/{name}.csv" for name in ("provenance", "verdicts", "disagreement", "selected")]
    models = [f"models/{model}/{name}" for model in MODELS for name in OUTPUTS]
    ends = ["predictions/summary.csv", "predictions/efficiency.csv", "evaluation/teacher.csv", "evaluation/final.csv"]
    for name in [*TABLES, *labels, *models, *ends, "report/index.html"]:
        assert (reference.results / name).stat().st_size, name
    assert reference.planned() == set()
    assert not list(reference.results.rglob(".tmp-*"))


def test_every_good_case_has_its_label_maps(reference, collection):
    test = {row["case"] for row in reference.table("cases.csv") if row["role"] == "test"} & collection.good
    train = collection.good - test
    assert test and train
    assert {f.name for f in (reference.results / "predictions").glob("*.nii.gz")} == {f"{c}.nii.gz" for c in test}
    assert {f.name for f in (reference.results / "labels" / "pseudo").glob("*.nii.gz")} == {
        f"{c}.nii.gz" for c in train
    }
    assert {row["case"] for row in reference.table("predictions/summary.csv")} == test


def test_every_bad_case_is_set_aside_with_its_reason(reference, collection):
    rows = reference.table("quarantine.csv")
    errors = {(row["case"], row["code"]) for row in rows if row["severity"] == "error"}
    assert errors == set(collection.bad.errors.items())
    assert all(row["found"] and row["action"] for row in rows)
    warned = {(row["case"], row["code"]) for row in rows if row["severity"] == "warning"}
    assert set(collection.bad.warnings.items()) <= warned


def test_only_annotated_classes_are_scored(reference):
    annotated = {(row["case"], row["class"]) for row in reference.table("annotation.csv") if row["state"] != "unknown"}
    test = {row["case"] for row in reference.table("cases.csv") if row["role"] == "test"}
    expected = {pair for pair in annotated if pair[0] in test}
    assert ("good_test", "liver") in expected and ("good_test", "tumor") not in expected
    teacher, final = (
        {(row["case"], row["class"]) for row in reference.table(f"evaluation/{which}.csv")}
        for which in ("teacher", "final")
    )
    assert final == expected
    assert teacher == {pair for pair in expected if pair[1] != "tumor"}  # it knows organs only
    lesions = {row["case"] for row in reference.table("evaluation/lesions/final.csv")}
    assert lesions and lesions == {case for case, name in expected if name == "tumor"}
    assert reference.table("evaluation/lesions/teacher.csv") == []


@pytest.mark.parametrize("model", MODELS)
def test_truth_of_test_cases_is_never_learned_from(reference, model):
    test = {row["case"] for row in reference.table("cases.csv") if row["role"] == "test"}
    learned = {row["case"] for row in reference.table(f"models/{model}/cases.csv")}
    assert learned and not learned & test
    prepared = {f.name.removesuffix(".b2nd") for f in (reference.results / "prepared").rglob("*.b2nd")}
    assert prepared and not prepared & test


def test_a_second_round_goes_on_from_the_first(copied, reference):
    copied.configure(rounds=2)
    done = copied.run()
    train_shards = sorted(s.stem for s in (reference.results / "prepared/fine/shards").glob("*.csv"))
    per_shard = [
        "predict/student",
        *(f"{job}/pseudo_round2" for job in ("fuse", "agree", "check", "held_out", "prepare_labels/fine/labels")),
    ]
    assert done == {
        *(f"{job}/{shard}" for job in per_shard for shard in train_shards),
        "select/pseudo_round2", "review/pseudo_round2", "train/student_round2",
        "infer/test-000", "summarize/all", "evaluate/final", "report/page",
    }  # fmt: skip
    before, after = reference.contents(), copied.contents()
    changed = {name for name, content in before.items() if after[name] != content}
    assert changed and all(
        name.startswith(("predictions/", "evaluation/final", "evaluation/lesions/final", "evaluation/cases"))
        for name in changed
    )
    steady = [
        read_table(copied.results / f"labels/{name}/disagreement.csv", "disagreement")["stability"]
        for name in ("pseudo", "pseudo_round2")
    ]
    assert steady[0].isna().all()
    assert steady[1].between(0, 1).all()
    page = (copied.results / "report/index.html").read_text()
    assert "student_round2" in page
