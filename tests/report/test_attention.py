"""What needs attention is said first, in a sentence each, and nothing is said where all is well."""

import json
import re

import pandas as pd
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.paths import Paths
from labelloop.base.tables import TABLES, write_table
from labelloop.report.attention import attention
from labelloop.report.facts import run_facts
from labelloop.report.intake import intake
from labelloop.report.label_sets import label_set
from labelloop.report.results import Results
from labelloop.report.scores import Scored, scores

SCHEME = load_classes("flare")
INTAKE = {"set_aside": 0, "total": 4, "train": 3, "states": [], "aside": []}


def _scored(title: str, liver: float, spleen: float, cases: int = 9) -> Scored:
    rows = [
        (f"c{i}", name, dsc + i / 1000, dsc, 5.0, 5.0, 0.0)
        for i in range(cases)
        for name, dsc in (("liver", liver), ("spleen", spleen))
    ]
    return Scored(title, pd.DataFrame(rows, columns=list(TABLES["scores"])), SCHEME)


def _said(*scored: Scored, **parts) -> list[str]:
    content = {"intake": INTAKE, "volumes": [], "label_sets": [], "models": [], "translations": [], "missing": {}}
    content |= {"scores": scores(scored, SCHEME)} | parts
    return [entry["text"] for entry in attention(content, scored)]


def _labels(tmp_path, *rows: tuple[str, str, str, str]) -> dict:
    table = [(case, name, "unknown", decision, criterion, "why") for case, name, decision, criterion in rows]
    selected = pd.DataFrame(table, columns=list(TABLES["selected"]))
    write_table(tmp_path / "labels" / "pseudo" / "selected.csv", selected, "selected")
    return label_set(Results(tmp_path), "pseudo", SCHEME)


def test_nothing_is_said_where_all_is_well():
    assert _said(_scored("teacher", 0.8, 0.8), _scored("student", 0.9, 0.9)) == []


def test_a_student_below_its_teacher_is_told_and_how_sure_that_is():
    (worse,) = _said(_scored("teacher", 0.9, 0.9), _scored("student", 0.8, 0.8))
    assert worse.startswith("student 80.4 % is below teacher 90.4 %") and "chance" not in worse
    (few,) = _said(_scored("teacher", 0.9, 0.9, cases=3), _scored("student", 0.8, 0.8, cases=3))
    assert few.endswith("That may be chance.")


def _partly(title: str, liver: float, others: float, nsd: float = 0.8) -> Scored:
    """Most cases have the liver annotated alone; a few have other organs, too."""
    rows = [
        (f"c{i}", name, (others if name != "liver" else liver) + i / 10_000, nsd, 5.0, 5.0, 0.0)
        for i in range(40)
        for name in ("liver", "spleen", "pancreas")[: 1 if i % 5 else 3]
    ]
    return Scored(title, pd.DataFrame(rows, columns=list(TABLES["scores"])), SCHEME)


def test_means_difference_and_interval_are_of_one_quantity():
    """The student gains in most cases, all of the liver, and loses in the mean over organs, which is what is shown."""
    (worse,) = _said(_partly("teacher", 0.8, 0.9), _partly("student", 0.83, 0.85))
    numbers = re.findall(r"[−+]?\d+\.\d", worse.replace("95 %", ""))
    last, first, change, low, high = (float(number.replace("−", "-")) for number in numbers)
    assert last - first == pytest.approx(change, abs=0.11) and low <= change <= high < 0
    assert _said(_partly("teacher", 0.8, 0.9), _partly("student", 0.93, 0.85)) == []


def test_means_are_of_what_both_scored():
    """The teacher does not know an organ on which the student is bad."""
    student = _scored("student", 0.85, 0.2)
    teacher = Scored("teacher", _scored("teacher", 0.8, 0.9).table.query("`class` == 'liver'"), SCHEME)
    assert _said(teacher, student) == []
    (worse,) = _said(teacher, _scored("student", 0.7, 0.95))
    assert worse.startswith("student 70.4 % is below teacher 80.4 %")


def test_cases_of_few_patients_are_chance():
    """Nine scans of one patient, or an organ of few patients only, prove nothing of other people."""
    worse = [_scored("teacher", 0.9, 0.9), _scored("student", 0.8, 0.8)]
    assert scores(worse, SCHEME)["paired"]["sure"]
    paired = scores(worse, SCHEME, {f"c{n}": f"p{n % 3}" for n in range(9)})["paired"]
    assert (paired["n"], paired["patients"]) == (9, 3) and not paired["enough"] and not paired["sure"]
    few = [Scored(one.title, one.table[(one.table["class"] == "liver") | (one.table["case"] < "c3")], SCHEME)
           for one in worse]  # fmt: skip
    assert scores(few, SCHEME)["paired"]["fewest"] == 3 and not scores(few, SCHEME)["paired"]["enough"]


def test_each_metric_is_as_sure_as_its_own_interval():
    total = scores([_partly("a", 0.8, 0.8), _partly("b", 0.9, 0.9)], SCHEME)["total"]
    assert total["dsc_sure"] and not total["nsd_sure"]


def test_a_score_near_zero_names_its_class():
    (low,) = _said(_scored("student", 0.9, 0.01))
    assert low == "student: the mean DSC of 1 class is below 10.0 %: spleen 1.4 %."


def test_classes_in_no_final_label_map_are_named():
    volumes = [{"name": "liver", "found": 3, "cases": 3}, {"name": "left_kidney", "found": 0, "cases": 3}]
    assert "The final label maps of 3 cases hold no left kidney." in _said(_scored("m", 0.9, 0.9), volumes=volumes)


def test_label_sets_of_which_nothing_was_accepted(tmp_path):
    refused = [("a", "liver", "demoted", "agreement"), ("b", "liver", "dropped", "whole_case")]
    found = _said(_scored("m", 0.9, 0.9), label_sets=[_labels(tmp_path, *refused)])
    assert found == ["Label set pseudo: not one of 2 labels made by models was accepted."]


def test_a_class_that_no_model_finds(tmp_path):
    rows = [("a", "liver", "accepted", ""), ("a", "spleen", "unknown", "not_found")]
    rows += [("a", "tumor", "unknown", "not_predicted"), ("b", "spleen", "truth", "")]
    found = _said(_scored("m", 0.9, 0.9), label_sets=[_labels(tmp_path, *rows)])
    assert found == ["Label set pseudo: no model found spleen in any case."]


@pytest.mark.parametrize("severity", ["error", "warning"])
def test_all_cases_set_aside(tmp_path, severity):
    rows = [(case, "f", "image_missing", severity, "x", "y") for case in "ab"]
    write_table(tmp_path / "quarantine.csv", pd.DataFrame(rows, columns=list(TABLES["quarantine"])), "quarantine")
    cases = pd.DataFrame([dict.fromkeys(TABLES["cases"], "") | {"case": c, "role": "train"} for c in "ab"])
    found = _said(_scored("m", 0.9, 0.9), intake=intake(Results(tmp_path), cases, SCHEME))
    aside = ["2 of 2 cases could not be used: image_missing 2.", "No case is left to learn from."]
    assert found == (aside if severity == "error" else [])


def test_facts_are_those_that_jobs_left(tmp_path):
    for name, seconds in (("train/teacher", "3600.5"), ("predict/teacher/train-000", "59.6"), ("survey/x", "bad")):
        path = tmp_path / "benchmarks" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\n{seconds}\t-\n")
    for name, gpus in (("teacher", ["H100"]), ("student", ["H100", "A100"])):
        path = tmp_path / "logs" / "train" / f"{name}.machine.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"began": f"2026-11-2{len(gpus)}T16:58:23+00:00", "node": "n1", "cpu": "EPYC", "cores": 2, "gpus": gpus}
        path.write_text(json.dumps(about))
    (tmp_path / "logs" / "train" / "cut.machine.json").write_text('{"beg')
    facts = run_facts(Paths(str(tmp_path)), "default", [{"versions": {"torch": "2.0"}}, {"versions": {"torch": "2.1"}}])
    assert facts["recipe"] == "default" and facts["date"] == "2026-11-22 16:58"
    assert facts["computing time"] == "1 h 02 min of all jobs together (predicting 60 s, training 1 h 01 min)"
    assert facts["machine"] == "EPYC, 2 cores (n1)" and facts["GPU"] == "A100, H100"
    assert facts["versions"].endswith("torch 2.0 and 2.1")


def test_what_nobody_noted_is_left_out(tmp_path):
    assert list(run_facts(Paths(str(tmp_path)), "", [])) == ["versions"]


def test_held_out_labels_are_not_counted_among_those_whose_quality_is_predicted(tmp_path):
    rows = [("a", "pseudo", "liver", 0.6, 0.5, 0.7, ""), ("b", "held_out", "liver", 0.9, 0.9, 0.9, "")]
    table = pd.DataFrame(rows, columns=list(TABLES["quality"]))
    write_table(tmp_path / "labels" / "pseudo" / "quality.csv", table, "quality")
    (row,) = _labels(tmp_path, ("a", "liver", "accepted", ""))["quality"]
    assert (row["labels"], row["quartiles"][1], row["high"]) == (1, 0.6, 0.7)
