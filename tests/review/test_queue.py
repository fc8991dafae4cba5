"""The review queue: which labels are asked about, in which order, and their pictures."""

import numpy as np
import pandas as pd
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.tables import TABLES, read_table
from labelloop.images.boxes import box_text
from labelloop.images.volume import Geometry, write
from labelloop.review import queue as review_queue
from labelloop.review.queue import CaseFiles, queue, write_review

SCHEME = load_classes("flare")
EMPTY = {kind: pd.DataFrame(columns=list(TABLES[kind])) for kind in ("selected", "verdicts", "disagreement")}


def _queue(**rows: list[tuple]) -> pd.DataFrame:
    return queue(*(pd.DataFrame(rows.get(kind, []), columns=list(TABLES[kind])) for kind in EMPTY))


def test_queue_leaves_out_agreeing_labels_and_truth_that_passes():
    selected = [("a", "liver", "present", "truth", "", ""), ("b", "liver", "present", "accepted", "", "")]
    disagreement = [("a", "liver", 0.1, 1.0, 2, None), ("b", "liver", 0.95, 0.1, 2, None)]
    assert _queue(selected=selected, disagreement=disagreement).empty


def test_queue_asks_of_nothing_that_is_not_in_the_label_set():
    verdicts = [("a", name, "volume", "fail", 1.0, 2.0, "ml", "odd", "") for name in ("liver", "spleen")]
    table = _queue(selected=[("a", "liver", "present", "truth", "", "")], verdicts=verdicts)
    assert list(table["class"]) == ["liver"]


def test_queue_puts_more_failed_rules_first_then_less_agreement():
    selected = [(case, "liver", "unknown", "demoted", "agreement", "pairwise_dice low") for case in "abc"]
    selected += [("d", "liver", "present", "truth", "", "annotated")]
    failed = [("c", "volume"), ("d", "volume"), ("d", "side")]
    verdicts = [(case, "liver", rule, "fail", 1.0, 2.0, "ml", "odd", "") for case, rule in failed]
    disagreement = [
        (case, "liver", dice, 0.1, 2, None) for case, dice in zip("abcd", (0.4, 0.3, 0.6, 0.1), strict=True)
    ]
    table = _queue(selected=selected, verdicts=verdicts, disagreement=disagreement)
    assert list(table["case"]) == ["d", "c", "b", "a"]
    assert list(table["failed"]) == ["volume;side", "volume", "", ""]
    assert list(table["rank"]) == [1, 2, 3, 4]
    assert pd.isna(table["pairwise_dice"][0])  # what models say of a truth is not asked


def test_queue_lists_accepted_labels_that_a_rule_doubts_behind_those_that_fail():
    """A doubt refuses nothing; truth that is doubted is left alone."""
    selected = [(case, "liver", "present", "accepted", "", "") for case in "abc"]
    selected += [("d", "liver", "present", "truth", "", "annotated")]
    given = [("a", "contrast", "doubt"), ("b", "volume", "fail"), ("b", "leak", "doubt"), ("d", "leak", "doubt")]
    verdicts = [(case, "liver", rule, verdict, 1.0, 2.0, "ml", "odd", f"{rule} box") for case, rule, verdict in given]
    table = _queue(selected=selected, verdicts=verdicts, disagreement=[("c", "liver", 0.5, 0.1, 2, None)])
    assert list(table["case"]) == ["b", "a", "c"]
    assert list(table["failed"]) == ["volume", "", ""]
    assert list(table["doubted"]) == ["leak", "contrast", ""]
    assert list(table["reasons"])[:2] == ["volume: odd\nleak: odd", "contrast: odd"]
    assert list(table["box"]) == ["volume box", "contrast box", ""]


def test_queue_puts_the_smallest_predicted_dsc_first_and_says_what_lowers_it():
    selected = [(case, "liver", "present", "accepted", "", "") for case in "abc"]
    verdicts = [("c", "liver", "leak", "doubt", 3.0, 2.0, "ml", "odd", "")]
    quality = pd.DataFrame(
        [
            (case, "pseudo", "liver", dsc, 0.1, 1.0, f"a DSC of {dsc} is predicted")
            for case, dsc in zip("abc", (0.5, 0.3, 0.9), strict=True)
        ],
        columns=list(TABLES["quality"]),
    )
    given = (
        pd.DataFrame(rows, columns=list(TABLES[kind]))
        for rows, kind in zip((selected, verdicts, []), EMPTY, strict=True)
    )
    table = queue(*given, quality=quality)
    assert list(table["case"]) == ["b", "a", "c"]
    assert list(table["quality"]) == [0.3, 0.5, 0.9]
    assert table["reasons"][0] == "a DSC of 0.3 is predicted"
    assert table["reasons"][2] == "leak: odd\na DSC of 0.9 is predicted"


def test_what_goes_wrong_in_every_case_does_not_hide_the_rest():
    selected = [(case, "aorta", "unknown", "demoted", "volume", "volume: too small") for case in "abcde"]
    selected += [("a", "liver", "unknown", "demoted", "agreement", "pairwise_dice 0.6 below 0.7")]
    verdicts = [(case, "aorta", "volume", "fail", 1.0, 2.0, "ml", "too small", "") for case in "abcde"]
    table = _queue(selected=selected, verdicts=verdicts, disagreement=[("a", "liver", 0.6, 0.1, 2, None)])
    assert list(zip(table["case"], table["class"], strict=True)) == [
        ("a", "aorta"), ("b", "aorta"), ("a", "liver"), ("c", "aorta"), ("d", "aorta"), ("e", "aorta"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("decision", "criteria", "said", "lines"),
    [
        ("demoted", "volume;agreement", "volume: 3 ml, 10 to 900 expected; pairwise_dice 0.1 below 0.7",
         ["volume: 3 ml; 10 to 900 expected", "pairwise_dice 0.1 below 0.7"]),
        ("dropped", "nothing_known;volume", "no class is known; volume: 3 ml, 10 to 900 expected",
         ["volume: 3 ml; 10 to 900 expected", "no class is known", "pairwise_dice 0.1 below 0.8"]),
    ],
)  # fmt: skip
def test_a_reason_is_said_once_and_what_selection_adds_stays(decision, criteria, said, lines):
    verdicts = [("a", "liver", "volume", "fail", 3.0, 10.0, "ml", "3 ml; 10 to 900 expected", "")]
    selected = [("a", "liver", "unknown", decision, criteria, said)]
    table = _queue(selected=selected, verdicts=verdicts, disagreement=[("a", "liver", 0.1, 1.0, 2, None)])
    assert table["reasons"][0].splitlines() == lines


def test_a_place_that_cannot_be_read_costs_no_picture(tmp_path, caplog):
    grid = Geometry((24, 20, 8), (3.0, 3.0, 5.0))
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:6, 4:12, 3:10], labels[2:6, 13:18, 3:10] = SCHEME.ids["liver"], SCHEME.ids["spleen"]
    write(tmp_path / "image.nii.gz", labels * np.float32(20), grid)
    write(tmp_path / "a.nii.gz", labels, grid)
    place = box_text((slice(2, 4), slice(4, 8), slice(3, 6)), grid)
    names = ("liver", "spleen")
    table = _queue(
        selected=[("a", name, "unknown", "demoted", "volume", "volume: too large") for name in names],
        verdicts=[
            ("a", name, "volume", "fail", 3000.0, 2500.0, "ml", "too large", box)
            for name, box in zip(names, ("0 0 nowhere", place), strict=True)
        ],
    )
    files = {"a": CaseFiles(tmp_path / "image.nii.gz", "CT", tmp_path / "a.nii.gz")}
    write_review(table, files, SCHEME, tmp_path / "queue.csv", tmp_path / "pictures", limit=10)
    assert all((tmp_path / name).is_file() for name in read_table(tmp_path / "queue.csv", "review")["picture"])
    assert "a, liver: the place of the doubt is not shown" in caplog.text and "spleen" not in caplog.text


def test_models_that_agree_on_nothing_are_said_to_have_found_nothing(tmp_path, monkeypatch):
    grid, notes = Geometry((24, 20, 8), (3.0, 3.0, 5.0)), []
    labels = np.full(grid.shape, SCHEME.ids["liver"], np.uint8)
    write(tmp_path / "image.nii.gz", labels * np.float32(20), grid)
    write(tmp_path / "a.nii.gz", labels, grid)
    names = ("liver", "spleen")
    table = _queue(
        selected=[("a", name, "unknown", "demoted", "volume", "volume: too large") for name in names],
        verdicts=[("a", name, "volume", "fail", 3000.0, 2500.0, "ml", "too large", "") for name in names],
        disagreement=[("a", name, 1.0, 0.0, 2, None) for name in names],
    )
    monkeypatch.setattr(review_queue, "case_picture", lambda *_, note, **__: notes.append(note) or b"")
    files = {"a": CaseFiles(tmp_path / "image.nii.gz", "CT", tmp_path / "a.nii.gz")}
    write_review(table, files, SCHEME, tmp_path / "queue.csv", tmp_path / "pictures", limit=10)
    said = {name: line for line, *_ in notes for name in names if f" {name} " in line}
    assert said["liver"].endswith("agreement of the models 100 %")
    assert said["spleen"].endswith("no model found it")
