"""The whole chain on a tiny collection: what it leaves, what it never does, what it does with bad files."""

import json
from pathlib import Path

import pytest

from labelloop.base.files import sha256
from labelloop.base.paths import OUTPUTS
from labelloop.base.tables import read_table

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


def test_a_second_round_goes_on_from_the_first_which_gets_another_name(copied, reference):
    """What round 1 has trained, predicted and fused is not done again."""
    copied.configure(rounds=2)
    trained, maps = copied.times("models/student/work/training.jsonl"), copied.times("labels/pseudo/*.nii.gz")
    done = copied.run()
    train_shards = sorted(s.stem for s in (reference.results / "prepared/fine/shards").glob("*.csv"))
    steps = ("fuse", "agree", "check", "held_out", "prepare_labels/fine/labels")
    per_shard = ["predict/student_round1"]
    for name in ("pseudo", "pseudo_round1"):
        per_shard += [f"{job}/{name}" for job in steps]
    ends = ["infer/test-000", "summarize/all", "evaluate/final", "report/page"]
    for end in ("", "_round1"):
        ends += [f"select/pseudo{end}", f"review/pseudo{end}", f"train/student{end}"]
    assert done == {*ends, *(f"{job}/{shard}" for job in per_shard for shard in train_shards)}
    assert list(copied.times("models/student_round1/work/training.jsonl").values()) == list(trained.values())
    after = copied.times("labels/pseudo_round1/*.nii.gz")
    assert {Path(name).name: time for name, time in after.items()} == {Path(n).name: t for n, t in maps.items()}
    for name in ("weights.pt", "cases.csv"):
        first, before = copied.results / "models/student_round1" / name, reference.results / "models/student" / name
        assert sha256(first) == sha256(before) != sha256(copied.results / "models/student" / name)
    assert json.loads((copied.results / "models/student_round1/model.json").read_text())["name"] == "student_round1"
    steady = [
        read_table(copied.results / f"labels/{name}/disagreement.csv", "disagreement")["stability"]
        for name in ("pseudo_round1", "pseudo")
    ]
    assert steady[0].isna().all()
    assert steady[1].between(0, 1).all()
    page = (copied.results / "report/index.html").read_text()
    assert "student_round1" in page
