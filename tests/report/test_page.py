"""The report page: built from a tiny results folder, it says what the tables say, and names what is missing."""

import base64
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from labelloop.base.classes import load_classes
from labelloop.base.tables import TABLES, read_table, write_table
from labelloop.images.volume import Geometry, Volume, write
from labelloop.report import gallery
from labelloop.report.intake import _by_reason
from labelloop.report.models import model
from labelloop.report.page import write_report
from labelloop.report.results import Results
from labelloop.review.queue import CaseFiles, queue, write_review

SCHEME = load_classes("flare")
GRID = Geometry((24, 20, 8), (3.0, 3.0, 5.0))
TEST = ("case_a", "case_b", "case_c")
LESIONS = {"teacher": "teacher", "student": "final"}
GRAPH = [
    {"name": "truth", "title": "truth", "kind": "truth", "parents": []},
    {"name": "teacher", "title": "model teacher", "kind": "model", "parents": ["truth"]},
    {"name": "round1", "title": "labels round1", "kind": "labels", "parents": ["truth", "teacher"]},
    {"name": "student", "title": "model student", "kind": "model", "parents": ["round1"]},
    {"name": "predictions", "title": "predictions", "kind": "predictions", "parents": ["student"]},
]


def _save(path: Path, kind: str, rows: list[tuple]) -> None:
    write_table(path, pd.DataFrame(rows, columns=list(TABLES[kind])), kind)


def _labels(shift: int) -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:6, 4:12, 3 + shift : 10 + shift] = SCHEME.ids["liver"]
    labels[3:5, 12:16, 16:20] = SCHEME.ids["spleen"]
    return labels


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("run") / "results"
    cases = []
    for name in (*TEST, "case_d", "case_e", "case_f"):
        image = root.parent / "images" / f"{name}_0000.nii.gz"
        if name != "case_f":
            write(image, (_labels(0) * 20.0 - 50).astype(np.float32), GRID)
        role = "test" if name in TEST else "train"
        cases.append((name, str(image), "", "phantom", "CT", "", name, role, "", ""))
    _save(root / "cases.csv", "cases", cases)
    surveyed = [row[0] for row in cases if row[0] != "case_f"]
    grid = (24, 20, 8, 3.0, 3.0, 5.0, "LPS")
    _save(root / "geometry.csv", "geometry", [(c, *grid, 0, 1, "", "a", "b", "", "") for c in surveyed])
    states = {"liver": "present", "spleen": "absent"}
    rows = [(c, n, states.get(n, "unknown")) for c in surveyed for n in SCHEME.names]
    _save(root / "annotation.csv", "annotation", rows)
    _save(root / "groups.csv", "groups", [(c, "organs_partial") for c in surveyed])
    quarantine = [
        ("case_f", "case_f_0000.nii.gz", "image_missing", "error", "no such <file>", "Fetch it again"),
        ("case_g", "cases.csv", "name_invalid", "error", "a space in the name", "Rename the case"),
        ("case_d", "case_d_0000.nii.gz", "values_saturated", "warning", "ends at 275 HU", "Nothing to do"),
    ]
    _save(root / "quarantine.csv", "quarantine", quarantine)
    _models(root)
    _label_set(root / "labels" / "round1")
    _scores(root)
    return root


def _models(root: Path) -> None:
    for name in ("teacher", "student"):
        folder = root / "models" / name
        _save(folder / "cases.csv", "training_cases", [("case_d", "train", "k"), ("case_e", "validation", "k")])
        epochs = [
            {"epoch": e, "train": {"loss": 1 / e}, "validation": {}, "dice_mean": 0.8, "dice_average": 0.7 + e / 100}
            for e in range(1, 6)
        ]
        (folder / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in epochs) + '{"epoch": 6, "tr')
        about = {"classes": list(SCHEME.names), "versions": {"torch": "2.0"}, "fingerprint": "f00d" * 4, "epoch": 5}
        about["licenses"] = {"datasets": {"btcv": "", "kits": "CC BY-NC-SA 4.0"}, "models": {"zoo": "Apache-2.0"}}
        (folder / "model.json").write_text(json.dumps(about | {"settings": {"kind": "partial", "seed": 7}}))


def _label_set(folder: Path) -> None:
    selected = [
        ("case_d", "liver", "present", "truth", "", "annotated"),
        ("case_d", "pancreas", "unknown", "demoted", "agreement", "pairwise_dice 0.31 below 0.7"),
        ("case_e", "pancreas", "unknown", "demoted", "agreement", "pairwise_dice 0.52 below 0.7"),
        ("case_e", "liver", "present", "accepted", "", "all rules passed"),
    ]
    _save(folder / "selected.csv", "selected", selected)
    # Drawn before the liver of case_e, at which nobody looked.
    said = [("case_d", "aorta", "right"), ("case_d", "spleen", "right"), ("case_e", "aorta", "wrong")]
    reviewed = [(*one, "present", "ann", True, "random", True, f"ann said {one[2]}", "") for one in said]
    reviewed += [
        ("case_e", "pancreas", "right", "", "bob", False, "", False, "bob said right", "label_grid: another grid")
    ]
    _save(folder / "reviewed.csv", "reviewed", reviewed)
    verdicts = [
        ("case_e", "liver", "volume", "fail", 3000.0, 2500.0, "ml", "too large", ""),
        ("case_d", "liver", "volume", "pass", 1500.0, 2500.0, "ml", "", ""),
    ]
    _save(folder / "verdicts.csv", "verdicts", verdicts)
    _save(
        folder / "disagreement.csv",
        "disagreement",
        [("case_d", "pancreas", 0.31, 0.9, 2, None), ("case_e", "liver", 0.9, 0.1, 2, None)],
    )
    _save(folder / "provenance.csv", "provenance", [("case_e", "liver", "teacher", "fuse", 0, 3000.0)])
    write(folder / "case_e.nii.gz", _labels(1), GRID)
    held_out = [(f"held_{i}", f"held_{i}", "liver", i / 10, None, 0.5 + i / 20, "accepted", "") for i in range(10)]
    _save(
        folder / "held_out.csv",
        "held_out",
        [*held_out, ("held_0", "held_0", "spleen", 0.1, None, 0.2, "demoted", "too small")],
    )
    calibration = [("liver", 0.85, 0.9, 0.55, 10, 4, 0.4, 0.87, 0.1, "4 of 10 held-out cases are accepted")]
    _save(folder / "calibration.csv", "calibration", calibration)
    _review(folder)


def _review(folder: Path) -> None:
    kinds = ("selected", "verdicts", "disagreement")
    table = queue(*(read_table(folder / f"{kind}.csv", kind) for kind in kinds))
    root = folder.parents[1]
    images = {case: root.parent / "images" / f"{case}_0000.nii.gz" for case in ("case_d", "case_e")}
    files = {case: CaseFiles(image, "CT", folder / f"{case}.nii.gz") for case, image in images.items()}
    write_review(table, files, SCHEME, root / "review" / "round1.csv", root / "review" / "round1", limit=10)


def _scores(root: Path) -> None:
    teacher = {"case_a": (0.90, 0.80), "case_b": (0.85, 0.75), "case_c": (0.80, 0.70)}
    for name, gain in (("teacher", 0.0), ("final", 0.05)):
        rows = []
        for case, (dsc, nsd) in teacher.items():
            for organ in ("liver", "spleen"):
                rows.append((case, organ, dsc + gain, nsd + gain, 10.0, 11.0, 1.0))
        rows.append(("case_a", "tumor", 0.4 + gain, 0.3 + gain, 1.0, 1.0, 0.0))
        _save(root / "evaluation" / f"{name}.csv", "scores", rows)
    found = [("case_a", "tumor", 4, 3, 1, 0.75, 0.75, 0.6, 1.5, 0.2), ("case_b", "tumor", 0, 0, 3, "", 0, "", 0, 2.5)]
    _save(root / "evaluation" / "lesions" / "final.csv", "lesions", found)
    _save(root / "evaluation" / "lesions" / "teacher.csv", "lesions", [])
    for index, case in enumerate(TEST):
        write(root / "predictions" / f"{case}.nii.gz", _labels(index), GRID)
    _save(
        root / "predictions" / "summary.csv",
        "summary",
        [("case_a", "liver", 1234.0, 0.97), ("case_a", "spleen", 0, "")],
    )
    cost = ("case_a", 7.5, 2600.0, 4000.0, 5_500_000, 812.5, 9100.0, None)
    _save(root / "predictions" / "efficiency.csv", "efficiency", [cost])


def _write(results: Path, out: Path, **options) -> str:
    arguments = {
        "graph": GRAPH,
        "scheme": SCHEME,
        "evaluated": [("teacher", "evaluation/teacher.csv"), ("student", "evaluation/final.csv")],
        "lesions": [(name, f"evaluation/lesions/{file}.csv") for name, file in LESIONS.items()],
        "label_sets": ["round1"],
        "model_names": ["teacher", "student"],
        "truth": lambda case: Volume(_labels(0), GRID),
    }
    write_report(results, out, **(arguments | options))
    return out.read_text()


@pytest.fixture(scope="module")
def page(results) -> str:
    return _write(results, results / "report" / "index.html")


@pytest.fixture
def without_pictures(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("not drawn")

    monkeypatch.setattr(gallery, "case_picture", refuse)


class _Rows(HTMLParser):
    """Collects the cells of every table row."""

    def __init__(self):
        super().__init__()
        self.rows: list[list[str]] = []
        self.open = False

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.open = self.open or tag in ("td", "th")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1] += data.strip()


def _rows(page: str, first: str) -> list[list[str]]:
    parser = _Rows()
    parser.feed(page)
    return [row for row in parser.rows if row and row[0] == first]


def _text(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S)))


def test_is_one_file_that_fetches_nothing(page):
    assert not re.search(r"(?:src|href|action)\s*=\s*[\"'](?:https?:)?//", page)
    assert not re.search(r"url\(|@import|<script|<link|<iframe", page)
    assert set(re.findall(r"<img src=\"([a-z]+:)", page)) == {"data:"}


def test_every_case_set_aside_is_there_with_its_reason(page):
    assert ["case_f", "image_missing", "no such <file>"] in _rows(page, "case_f")
    assert ["case_g", "name_invalid", "a space in the name"] in _rows(page, "case_g")
    assert ["case_d", "values_saturated", "ends at 275 HU"] in _rows(page, "case_d")
    for action in ("Fetch it again", "Rename the case", "Nothing to do"):
        assert _text(page).count(action) == 1
    assert "2 of 7 cases could not be used: image_missing 1, name_invalid 1." in _text(page)


def _sum(page: str) -> dict[str, int]:
    parser = _Rows()
    parser.feed(page.split('<table class="sum">')[1].split("</table>")[0])
    return {words: int(number) for words, number in parser.rows}


def test_used_and_set_aside_add_up_to_what_went_in(page):
    assert _sum(page) == {
        "cases to learn from": 2, "+ test cases": 3, "+ set aside:image_missing": 1, "+ set aside:name_invalid": 1,
        "= cases in the case table": 7,
    }  # fmt: skip
    assert ["phantom", "CT", "5", "5", "2", "3", "0"] in _rows(page, "phantom")


def test_a_case_with_several_faults_is_counted_once_and_listed_with_all():
    quarantine = [("a", "f", code, "error", "x", "y") for code in ("label_missing", "image_missing")]
    quarantine += [("b", "f", "image_missing", "error", "x", "z")]
    found = _by_reason(pd.DataFrame(quarantine, columns=list(TABLES["quarantine"])))
    assert {entry["code"]: (entry["cases"], len(entry["rows"])) for entry in found} == {
        "label_missing": (1, 2), "image_missing": (1, 1)
    }  # fmt: skip


def test_scores_are_those_of_the_tables(page):
    assert ["liver", "85.0", "90.0", "+5.0", "75.0", "80.0", "+5.0", "3", "0", "5"] in _rows(page, "liver")
    assert ["tumor", "40.0", "45.0", "+5.0", "30.0", "35.0", "+5.0", "1", "0", "2"] in _rows(page, "tumor")
    (mean,) = _rows(page, "mean of organs")
    assert mean == ["mean of organs", "85.0", "90.0", "+5.0", "75.0", "80.0", "+5.0", "3", "0", ""]
    assert ["case_a", "90.0", "80.0", "40.0", "95.0", "85.0", "45.0"] in _rows(page, "case_a")
    assert "Mean organ DSC on 3 test cases: student 90.0 % (NSD 80.0 %), teacher 85.0 % (NSD 75.0 %)." in _text(page)
    assert "3 patients are too few" in _text(page)


def test_patients_with_several_cases_count_once(results, tmp_path, without_pictures):
    """Scores stay; the case table says that two of the three cases, and seven of the ten labels, are of one patient."""
    root = tmp_path / "results"
    shutil.copytree(results, root)
    cases = read_table(root / "cases.csv", "cases")
    cases.loc[cases["case"] == "case_b", "patient"] = "case_a"
    write_table(root / "cases.csv", cases, "cases")
    held_out = read_table(root / "labels" / "round1" / "held_out.csv", "held_out")
    held_out.loc[held_out["case"] > "held_2", "patient"] = "p"
    write_table(root / "labels" / "round1" / "held_out.csv", held_out, "held_out")
    page = _write(root, tmp_path / "page.html")
    assert "2 patients are too few" in _text(page)
    assert any(row[1:3] == ["4", "4"] for row in _rows(page, "liver") if len(row) == 9)


def test_scores_of_what_is_neither_there_nor_found_are_counted_beside_the_mean(results, tmp_path, without_pictures):
    """Case b has no spleen, of which the teacher finds some: FLARE's rules give 0 % and 100 %."""
    root = tmp_path / "results"
    shutil.copytree(results, root)
    for name, found in (("teacher", 2.0), ("final", 0.0)):
        table = read_table(root / "evaluation" / f"{name}.csv", "scores")
        row = (table["case"] == "case_b") & (table["class"] == "spleen")
        table.loc[row, ["dsc", "nsd", "volume_truth_ml", "volume_prediction_ml"]] = [float(not found)] * 2 + [0, found]
        write_table(root / "evaluation" / f"{name}.csv", table, "scores")
    page = _write(root, tmp_path / "page.html")
    assert [row[-3:-1] for row in _rows(page, "spleen") if len(row) == 10] == [["3", "0 / 1"]]
    assert [row[-3:-1] for row in _rows(page, "liver") if len(row) == 10] == [["3", "0"]]
    assert [row[-3:-1] for row in _rows(page, "mean of organs")] == [["3", "0 / 1"]]
    assert "1 of the 6 organs scored of student is neither there nor found, and counts as 100 %" in _text(page)


def test_lesions_are_pooled_over_the_cases(page):
    expected = ["student", "3 of 4", "75.0", "60.0", "4", "42.9", "54.5", "1 of 1", "3", "2.5"]
    assert expected in _rows(page, "student")
    assert not any(len(row) == len(expected) for row in _rows(page, "teacher"))  # it scored no tumor


def test_annotation_and_acceptance_are_counted(page):
    assert ["liver", "", "5", "0", "0"] in _rows(page, "liver")
    assert ["spleen", "", "0", "5", "0"] in _rows(page, "spleen")
    assert ["pancreas", "", "0", "0", "5"] in _rows(page, "pancreas")
    assert ["liver", "", "1", "1", "·", "·", "·", ""] in _rows(page, "liver")
    assert ["pancreas", "", "·", "·", "2", "·", "·", "agreement 2"] in _rows(page, "pancreas")
    assert ["2", "demoted", "pairwise dice 0.31 below 0.7", "pancreas 2"] in _rows(page, "2")
    assert ["volume", "2", "1", "50.0", "0", "0", "liver 1"] in _rows(page, "volume")


def test_the_review_queue_is_on_the_page_as_in_its_table(results, page):
    assert ["1", "case_e", "liver", "90.0", "accepted", "volume: too large", "picture"] in _rows(page, "1")
    assert ["2", "case_d", "pancreas", "31.0", "demoted", "pairwise dice 0.31 below 0.7", ""] in _rows(page, "2")
    table = read_table(results / "review" / "round1.csv", "review")
    assert list(table["case"]) == ["case_e", "case_d", "case_e"]
    picture = results / "review" / table["picture"][0]
    assert "case_e_liver" in picture.name
    shown = re.search(rf'<a href="../review/{table["picture"][0]}"><img src="data:image/webp;base64,([^"]+)"', page)
    drawn, whole = (Image.open(io.BytesIO(p)) for p in (base64.b64decode(shown[1]), picture.read_bytes()))
    assert drawn.width == whole.width and drawn.height < whole.height  # what is written beneath stands on the page
    figure = page[shown.start() :].split("</figure>")[0]
    assert "volume: too large" in _text(figure) and "<b>liver</b>" in figure
    assert (results / "review" / table["file"][0]).resolve() == (results / "labels/round1/case_e.nii.gz").resolve()


def test_what_reviewers_say_and_how_many_accepted_labels_are_wrong_is_on_the_page(page):
    text = _text(page)
    assert "right 2, wrong 1" in text
    assert (
        "Of 3 accepted labels that were drawn at random and judged, 1 turned out wrong: 33.3 % (95 % interval 0.8"
        in text
    )
    assert "Not used: case_e, pancreas: label_grid: another grid" in text
    assert "1 decision of reviewers cannot be used: case_e, pancreas" in text


def test_calibration_is_drawn_where_there_are_enough_labels(page):
    assert ["liver", "10", "10", "72.5", "0.163", "55.0", "40.0", "87.0", ""] in _rows(page, "liver")
    assert ["spleen", "1", "0", "–", "–", "–", "–", "–", ""] in _rows(page, "spleen")
    assert page.count('alt="liver by share accepted, %"') == 1
    assert page.count('alt="spleen by share accepted, %"') == 0
    assert "at least 85.0 % with a confidence of 90.0 %" in _text(page)


def test_models_chain_volumes_and_speed_are_there(page):
    text = _text(page)
    assert "1 to train, 1 to validate" in text
    assert "75.0 % last, 75.0 % best" in text
    for chart in ("Loss by epoch", "Validation Dice of patches by epoch"):
        assert page.count(f'alt="{chart}"') == 2
    assert "labels round1" in text
    assert ["liver", "1 of 1", "1234", "1234", "1234", "97.0"] in _rows(page, "liver")
    assert ["spleen", "0 of 1", "–", "–", "–", "–"] in _rows(page, "spleen")
    assert ["run time per case, s", "7.5", "7.5", "1"] in _rows(page, "run time per case, s")
    assert "f00df00df00df00d" in text
    assert "kits (CC BY-NC-SA 4.0)" in text and "btcv (not stated)" in text and "zoo (Apache-2.0)" in text
    assert page.count("<dt>trainer</dt><dd>partial</dd>") == 2


def test_a_translator_is_named_as_the_trainer(tmp_path):
    folder = tmp_path / "models" / "to_mr"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"kind": "translator", "settings": {"seed": 7}}))
    assert model(Results(tmp_path), "to_mr")["facts"] == {"trainer": "translator", "seed": "7"}


def _figures(page: str) -> dict[str, tuple[list[str], list[str], int]]:
    """Return, by case of the gallery: the words it was chosen for, the legend, the number of pictures."""
    section = page.split('<section id="pictures">')[1].split("</section>")[0]
    found = {}
    for figure in section.split("<figure>")[1:]:
        words = re.findall(r'<span class="tag">([^<]+)', figure)
        legend = re.findall(r"</i>(?:<b>)?([^<]+)", figure.split('<ul class="key">')[-1])
        found[re.search(r"<b>(\w+)</b>", figure)[1]] = words, legend, figure.count("<img ")
    return found


def test_pictures_name_why_they_are_shown_and_each_class_outlined(page):
    figures = _figures(page)
    assert list(figures) == list(TEST)
    assert [words for words, _, _ in figures.values()] == [["best", "tumor scored best"], ["median"], ["worst"]]
    for _, legend, pictures in figures.values():
        assert (legend, pictures) == (["liver", "spleen", "truth"], 2)


def test_without_scores_final_label_maps_are_shown(results, tmp_path):
    page = _write(results, tmp_path / "page.html", evaluated=[], lesions=[], truth=None)
    assert {case: shown[1:] for case, shown in _figures(page).items()} == {"case_a": (["liver", "spleen"], 2)}
    assert "1 of 2 classes found" in _text(page) and "Nothing was scored" in _text(page)


def test_equal_files_give_equal_bytes(results, page):
    assert _write(results, results / "report" / "again.html") == page


@pytest.mark.parametrize(
    ("updates", "said"),
    [
        ({"teacher": 300, "student": 300}, "Both are the outcome of 300 updates."),
        ({"teacher": 300, "student": 900}, "Training was not equal: 900 updates led to the student, 300 to teacher."),
        ({}, ""),
    ],
)
@pytest.mark.usefixtures("without_pictures")
def test_scores_stand_beside_the_training_behind_them(results, tmp_path, updates, said):
    lead = _write(results, tmp_path / "page.html", updates=updates).split('<p class="lead">')[1].split("</p>")[0]
    assert said in " ".join(lead.split())
    assert ("updates" in lead) == bool(said)


def test_links_lead_to_the_files_read(results, page):
    links = re.findall(r'<a href="([^#"]+)"', page)
    assert "../evaluation/final.csv" in links
    assert all((results / "report" / link).is_file() for link in links)


def test_missing_parts_are_said_in_words(tmp_path):
    text = _text(_write(tmp_path / "empty", tmp_path / "page.html", graph=[], truth=None))
    for words in ("No case table", "No annotation table", "No files of 2 models", "No selection table", "No pictures"):
        assert words in text
    assert "Nothing was scored" in text
    assert "cases.csv not there" in text
    assert "The recipe was not given" in text


@pytest.mark.usefixtures("without_pictures")
def test_unreadable_tables_are_said_in_words(results, tmp_path):
    broken = tmp_path / "broken.csv"
    broken.write_text("case,class\na,liver\n")
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    text = _text(_write(results, tmp_path / "page.html", evaluated=[("a", broken), ("b", empty)]))
    assert "broken.csv unreadable: broken.csv: a scores table lacks the columns" in text
    assert "empty.csv unreadable" in text and "2 files could not be read: broken.csv, empty.csv." in text
    assert str(tmp_path) not in text


@pytest.mark.usefixtures("without_pictures")
def test_one_model_is_not_compared(results, tmp_path):
    page = _write(results, tmp_path / "page.html", evaluated=[("student", "evaluation/final.csv")])
    assert ["liver", "90.0", "80.0", "3", "0", "5"] in _rows(page, "liver")
    assert "change" not in _text(page)


@pytest.mark.usefixtures("without_pictures")
def test_test_cases_without_a_prediction_are_counted_and_named(results, page, tmp_path):
    assert "no label map of" not in page
    table = read_table(results / "evaluation" / "final.csv", "scores")
    table.loc[table["case"] == "case_b", ["dsc", "nsd", "volume_prediction_ml", "volume_error_ml"]] = [0, 0, None, None]
    write_table(tmp_path / "final.csv", table, "scores")
    evaluated = [("teacher", "evaluation/teacher.csv"), ("student", tmp_path / "final.csv")]
    text = _text(_write(results, tmp_path / "page.html", evaluated=evaluated))
    assert "student: no label map of 1 test case (case_b), scored as if nothing was found" in text


def test_a_case_without_files_costs_its_pictures_only(results, tmp_path):
    def truth(case: str) -> Volume:
        if case == "case_b":
            raise RuntimeError("the label is gone")
        return Volume(_labels(0), GRID)

    page = _write(results, tmp_path / "page.html", truth=truth)
    assert "No picture: the label is gone." in _text(page)
    assert {case: pictures for case, (_, _, pictures) in _figures(page).items()} == {
        "case_a": 2, "case_b": 0, "case_c": 2
    }  # fmt: skip
