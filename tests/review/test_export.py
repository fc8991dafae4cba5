"""A review as files: what is written can be judged elsewhere, what comes back is checked, and nothing comes twice."""

import csv
from pathlib import Path

import numpy as np
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import sha256
from labelloop.base.paths import Paths
from labelloop.base.tables import TABLES, write_table
from labelloop.cli.main import main
from labelloop.images.volume import Geometry, read, write
from labelloop.review.decisions import read as read_decisions
from labelloop.review.desk import Desk, write_desk

SCHEME = load_classes("flare")
GRID = Geometry((12, 10, 8), (3.0, 3.0, 5.0), direction=(-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
LIVER, SPLEEN = SCHEME.ids["liver"], SCHEME.ids["spleen"]


def label_map() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:5, 2:6, 2:6], labels[2:4, 2:4, 8:10] = LIVER, SPLEEN
    return labels


@pytest.fixture
def results(tmp_path) -> Path:
    """Results with a queue of three labels of two cases."""
    root, paths = tmp_path / "results", Paths(str(tmp_path / "results"))
    rows, cases, queue = [], [], []
    for case in ("a", "b"):
        image = tmp_path / f"{case}.mha"
        write(image, np.arange(960).reshape(GRID.shape).astype(np.int16), GRID)
        write(root / f"labels/pseudo/{case}.nii.gz", label_map(), GRID)
        write(root / f"models/m/predictions/{case}.nii.gz", label_map(), GRID)
        cases.append(dict.fromkeys(TABLES["cases"], "") | {"case": case, "image": str(image)})
        empty = dict.fromkeys(TABLES["selected"], "")
        rows += [empty | {"case": case, "class": name, "decision": "accepted"} for name in SCHEME.names]
    for rank, (case, name, asked) in enumerate(
        [("a", "liver", "doubt"), ("a", "spleen", "doubt"), ("b", "liver", "random")]
    ):
        made = {"case": case, "class": name, "asked": asked, "rank": rank + 1, "reasons": "volume: odd\nleak: odd, too"}
        made |= {"file": f"../labels/pseudo/{case}.nii.gz", "image": cases[case == "b"]["image"]}
        made["sha256"] = sha256(root / f"labels/pseudo/{case}.nii.gz")
        queue.append(dict.fromkeys(TABLES["review"], "") | made)
    write_table(paths.table("cases"), cases, "cases")
    write_table(paths.label_table("selected", "pseudo"), rows, "selected")
    write_table(paths.review("pseudo"), queue, "review")
    write_desk(Path(paths.desk("pseudo")), "pseudo", str(tmp_path / "reviews/pseudo"), SCHEME, ["m", "gone"])
    return root


@pytest.fixture
def folder(results, tmp_path) -> Path:
    assert main(["review", str(results), "--export", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


def fill(folder: Path, **decisions: str) -> None:
    """Write decisions (and comments behind a colon) into the queue, by case and class: ``a_liver="right"``."""
    with (folder / "queue.csv").open(newline="", encoding="utf-8-sig") as file:
        delimiter = ";" if file.readline().count(";") > 5 else ","
        file.seek(0)
        rows = list(csv.DictReader(file, delimiter=delimiter))
    for row in rows:
        decision, _, comment = decisions.pop(f"{row['case']}_{row['class']}", "").partition(":")
        row |= {"decision": decision, "comment": comment, "seconds": "4.5" if decision else ""}
    assert not decisions
    with (folder / "queue.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")  # as a spreadsheet of many countries does
        writer.writeheader()
        writer.writerows(rows)


def take(results: Path, folder: Path, who: str = "ann") -> int:
    return main(["review", str(results), "--import", str(folder), "--reviewer", who])


def said(results: Path) -> list[tuple[str, str, str]]:
    return [(one.case, one.name, one.decision) for one in read_decisions(Desk(results).folder)[0]]


def test_a_folder_holds_all_that_there_is_to_look_at(results, folder):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {"queue.csv", "README.txt", "labels_slicer.ctbl", "labels_itksnap.txt"}
    assert files == expected | {f"{kind}/{case}{end}" for case in "ab" for kind, end in (
        ("images", ".mha"), ("labels", ".nii.gz"), ("models/m", ".nii.gz"),
    )}  # fmt: skip
    assert (folder / "labels/a.nii.gz").read_bytes() == (results / "labels/pseudo/a.nii.gz").read_bytes()
    assert f"\n{LIVER} liver " in (folder / "labels_slicer.ctbl").read_text()
    with pytest.raises(UserError, match="name a new folder"):
        from labelloop.review.export import export_folder

        export_folder(Desk(results), folder)


def test_what_is_filled_in_comes_back_once(results, folder, capsys):
    array = label_map()
    array[6, 6:9, 6:9] = SPLEEN
    write(folder / "edited/a.nii.gz", array, GRID)
    fill(folder, a_liver="Right : sure", a_spleen="edited:a part was\nmissing", b_liver="wrong")
    assert take(results, folder) == take(results, folder) == 0
    found, problems = read_decisions(Desk(results).folder)
    assert not problems
    assert said(results) == [("a", "liver", "right"), ("a", "spleen", "edited"), ("b", "liver", "wrong")]
    assert [one.asked for one in found] == ["doubt", "doubt", "random"] and found[1].comment == "a part was missing"
    reviews = Desk(results).folder
    assert (read(reviews / found[1].file).array == array).all()
    assert (reviews / "edited/a.nii.gz").read_bytes() == (reviews / found[1].file).read_bytes()
    assert (read(reviews / found[0].file).array == label_map()).all()
    assert take(results, folder, "bob") == 0 and len(said(results)) == 6
    assert "0 of 3 labels to look at" in (main(["review", str(results)]), capsys.readouterr().out)[1]


def test_what_was_judged_counts_when_the_results_have_moved_on(results, folder):
    write(results / "labels/pseudo/a.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    fill(folder, a_liver="right")
    assert take(results, folder) == 0
    [one] = read_decisions(Desk(results).folder)[0]
    assert (read(Desk(results).folder / one.file).array == label_map()).all()
    (folder / "labels/a.nii.gz").unlink()
    fill(folder, a_spleen="right")
    assert take(results, folder) == 1 and len(said(results)) == 1  # nobody has the map that was judged any more


def test_a_map_that_was_edited_in_its_place_is_the_edited_one(results, folder, capsys):
    array = label_map()
    array[6, 6:9, 6:9] = LIVER
    write(folder / "labels/a.nii.gz", array, GRID)
    fill(folder, a_liver="edited", a_spleen="right")
    assert take(results, folder) == 1
    assert "a.nii.gz was altered, but the decision is right" in capsys.readouterr().out
    assert said(results) == [("a", "liver", "edited")]


@pytest.mark.parametrize(
    ("problem", "told"),
    [("grid", "label_spacing_differs"), ("ids", "label ids 200"), ("text", "label_"), ("none", "no edited map")],
)
def test_an_edited_map_that_cannot_be_used_is_named_and_leaves_nothing(results, folder, capsys, problem, told):
    array = label_map()
    if problem == "ids":
        array[0, 0, 0] = 200
    path = folder / "edited" / "a.nii.gz"
    if problem == "text":
        path.write_text("no image")
    elif problem != "none":
        write(
            path, array, Geometry(GRID.size, (2.0, 3.0, 5.0), direction=GRID.direction) if problem == "grid" else GRID
        )
    fill(folder, a_liver="edited", b_liver="absent")
    assert take(results, folder) == 1
    out = capsys.readouterr().out
    assert "queue.csv: row 2: " in out and told in out
    assert said(results) == [("b", "liver", "absent")] and not (Desk(results).folder / "edited/a.nii.gz").exists()


def test_rows_that_are_wrong_are_named_and_the_others_count(results, folder, capsys):
    fill(folder, a_liver="perhaps", a_spleen="wrong", b_liver="unsure")
    text = (folder / "queue.csv").read_text().replace(";spleen;", ";nothing;")
    (folder / "queue.csv").write_text(text.replace("b;liver", "../../b;liver"))
    write(folder / "edited/b.nii.gz", label_map(), GRID)
    assert take(results, folder) == 1
    out = capsys.readouterr().out
    for told in ("row 2: decision 'perhaps'", "row 3: class 'nothing'", "row 4: case '../../b'", "b.nii.gz: not used"):
        assert told in out
    assert said(results) == []


def test_the_door_refuses_what_is_no_decision(results):
    desk = Desk(results)
    one = desk.asked()[0]
    with pytest.raises(UserError, match="no reviewer"):
        desk.decide(one, " ", "right")
    with pytest.raises(UserError, match="did you mean 'wrong'"):
        desk.decide(one, "ann", "wrogn")
    with pytest.raises(UserError, match="there is no edited map"):
        desk.decide(one, "ann", "edited")
    with pytest.raises(UserError, match="case 'z' is not in label set pseudo"):
        desk.question("z", "liver")
    with pytest.raises(CaseError, match="label_missing"):
        desk.decide(one, "ann", "edited", edited=results / "nowhere.nii.gz")
    write(one.map, np.zeros(GRID.shape, np.uint8), GRID)
    with pytest.raises(UserError, match="made anew"):
        desk.decide(one, "ann", "right")
    assert said(results) == []
    with pytest.raises(UserError, match="did you mean 'pseudo'"):
        Desk(results, "psuedo")
