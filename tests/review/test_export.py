"""A review as files: what is written can be judged elsewhere, what comes back is checked, and nothing comes twice."""

import csv
import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from labelloop.base.classes import IGNORED
from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import sha256
from labelloop.base.paths import Paths
from labelloop.base.tables import read_table, write_table
from labelloop.cli.main import main
from labelloop.images.volume import Geometry, read, write
from labelloop.review.decisions import read as read_decisions
from labelloop.review.desk import Desk
from labelloop.review.export import export_folder
from labelloop.review.imports import import_folder
from tiny_review import GRID, LIVER, SPLEEN, label_map, write_results


@pytest.fixture
def folder(results, tmp_path) -> Path:
    assert main(["review", str(results), "--export", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


def test_a_folder_on_a_full_disk_is_not_left_half_written(results, tmp_path, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match="No space left on device"):
        export_folder(Desk(results), tmp_path / "out")
    monkeypatch.undo()
    assert not export_folder(Desk(results), tmp_path / "out")


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
    assert files == expected | {
        f"{kind}{case}.nii.gz" for case in "ab" for kind in ("", "labels/original/", "models/m/")
    }
    assert (folder / "labels/final").is_dir() and (
        read(folder / "a.nii.gz").array == np.arange(960).reshape(GRID.shape)
    ).all()
    assert (folder / "labels/original/a.nii.gz").read_bytes() == (results / "labels/pseudo/a.nii.gz").read_bytes()
    assert f"\n{LIVER} liver " in (folder / "labels_slicer.ctbl").read_text()
    with pytest.raises(UserError, match="name a new folder"):
        export_folder(Desk(results), folder)


def test_what_is_filled_in_comes_back_once(results, folder, capsys):
    array = label_map()
    array[6, 6:9, 6:9] = SPLEEN
    write(folder / "labels/final/a.nii.gz", array, GRID)
    fill(folder, a_liver="Right : sure", a_spleen="edited:a part was\nmissing", b_liver="wrong")
    assert take(results, folder) == take(results, folder, " ann") == 0
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


def test_a_folder_that_is_read_again_takes_back_no_later_decision(results, folder, capsys):
    fill(folder, a_liver="right", b_liver="wrong")
    assert take(results, folder) == 0
    desk = Desk(results)
    for decision in ("right", "wrong"):
        desk.decide(desk.asked()[0], "ann", decision, comment="on the page")
    fill(folder, a_liver="right", a_spleen="right", b_liver="wrong")
    assert take(results, folder) == 1 and len(said(results)) == 5
    assert "a, liver: ann said right before, and wrong since" in capsys.readouterr().out
    assert desk.reviews.of("a")["liver"].decision == "wrong"
    fill(folder, a_liver="right:after all")
    assert take(results, folder) == 0 and desk.reviews.of("a")["liver"].decision == "right"


def test_what_was_judged_counts_when_the_results_have_moved_on(results, folder):
    write(results / "labels/pseudo/a.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    fill(folder, a_liver="right")
    assert take(results, folder) == 0
    [one] = read_decisions(Desk(results).folder)[0]
    assert (read(Desk(results).folder / one.file).array == label_map()).all()
    (folder / "labels/original/a.nii.gz").unlink()
    fill(folder, a_spleen="right")
    assert take(results, folder) == 1 and len(said(results)) == 1  # nobody has the map that was judged any more


def test_a_map_that_was_edited_in_its_place_is_the_edited_one(results, folder, capsys):
    array = label_map()
    array[6, 6:9, 6:9] = LIVER
    write(folder / "labels/original/a.nii.gz", array, GRID)
    assert take(results, folder) == 1 and said(results) == []
    assert "a.nii.gz was altered, but the decision is empty; say edited" in capsys.readouterr().out
    fill(folder, a_liver="edited", a_spleen="right")
    assert take(results, folder) == 1
    assert "a.nii.gz was altered, but the decision is right" in capsys.readouterr().out
    assert said(results) == [("a", "liver", "edited")]


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        ("grid", "label_spacing_differs"),
        ("ids", "label ids 200"),
        ("text", "label_"),
        ("none", "labels/final/a.nii.gz is expected"),
    ],
)
def test_an_edited_map_that_cannot_be_used_is_named_and_leaves_nothing(results, folder, capsys, problem, told):
    array = label_map()
    if problem == "ids":
        array[0, 0, 0] = 200
    path = folder / "labels" / "final" / "a.nii.gz"
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


@pytest.fixture
def whole(tmp_path) -> Path:
    """Results with two patients on one grid; of each, six organs are labeled and the liver is asked about."""
    maps = {}
    for case, start in (("a", 0), ("b", 4)):
        array = np.zeros(GRID.shape, np.uint8)
        for label in range(1, 7):
            array[label, start : start + 5, 2:9] = label
        maps[case] = (array, GRID)
        write(tmp_path / f"{case}.nii.gz", np.zeros(GRID.shape, np.int16), GRID)
    images = {case: tmp_path / f"{case}.nii.gz" for case in maps}
    return write_results(tmp_path, images, maps, [("a", "liver", "doubt"), ("b", "liver", "doubt")])


@pytest.mark.parametrize("whose", ["a", "b", "the liver alone"])
def test_the_map_of_another_patient_on_the_same_grid_is_refused(whole, tmp_path, capsys, whose):
    folder = tmp_path / "out"
    assert main(["review", str(whole), "--export", str(folder)]) == 0
    array = read(folder / "labels/original" / ("a.nii.gz" if whose == "a" else "b.nii.gz")).array.copy()
    if whose == "the liver alone":
        array[array != LIVER] = 0
    array[7, 6:9, 6:9] = LIVER
    write(folder / "labels/final/a.nii.gz", array, GRID)
    fill(folder, a_liver="edited")
    assert take(whole, folder) == (1 if whose == "b" else 0)
    told = "not the map of a that was shown: of the 5 classes that nobody was asked about, none is as it was"
    assert (told in capsys.readouterr().out) == (whose == "b")
    assert said(whole) == ([] if whose == "b" else [("a", "liver", "edited")])


def submit(folder: Path, case: str, array: np.ndarray, names: list[str]) -> None:
    """Submit a label as MONAI Label's server does for 3D Slicer: segments count from 1, and have names."""
    final, path = folder / "labels/final" / f"{case}.nii.gz", folder / "datastore_v2.json"
    write(final, array, GRID)
    store = json.loads(path.read_text()) if path.is_file() else {"name": "new-dataset", "objects": {}}
    segments = [{"name": name, "idx": number} for number, name in enumerate(names, start=1)]
    info = {"label_info": segments, "ts": 1, "checksum": sha256(final), "name": final.name}
    entry = {"ext": ".nii.gz", "info": info}
    store["objects"][case] = {"image": {"ext": ".nii.gz", "info": {}}, "labels": {"original": {}, "final": entry}}
    path.write_text(json.dumps(store))


def test_what_is_submitted_to_monai_label_comes_back_by_the_names_of_segments(results, folder, capsys):
    before = label_map()
    array = np.select([before == SPLEEN, before == LIVER], [1, 2]).astype(np.uint8)
    array[6, 6:9, 6:9] = 1
    array[0, 0, 0] = IGNORED  # as it was loaded: it is no segment
    submit(folder, "a", array, ["spleen", "liver"])
    submit(folder, "b", array, ["spleen", "Segment_2"])
    assert take(results, folder) == take(results, folder) == 1
    assert said(results) == [("a", "liver", "right"), ("a", "spleen", "edited")]
    [_, edited] = read_decisions(Desk(results).folder)[0]
    after = read(Desk(results).folder / edited.file).array
    assert set(np.unique(after)) == {0, LIVER, SPLEEN, IGNORED} and ((after == SPLEEN) == (array == 1)).all()
    assert "no classes of the label set: Segment_2" in capsys.readouterr().out
    submit(folder, "b", np.zeros_like(array), ["spleen"])  # without the class: absent, or not looked at?
    assert take(results, folder) == 1 and len(said(results)) == 2
    assert "b.nii.gz was submitted without a segment 'liver'" in capsys.readouterr().out
    submit(folder, "b", np.zeros_like(array), ["spleen", "liver"])
    fill(folder, a_liver="wrong")
    assert take(results, folder) == 0
    assert said(results)[2:] == [("a", "liver", "wrong"), ("b", "liver", "edited")]
    store = (folder / "datastore_v2.json").read_text()
    for broken in ('{"objects": {"a": 3}}', store.replace('"idx": 1', '"idx": Infinity')):
        (folder / "datastore_v2.json").write_text(broken)
        with pytest.raises(UserError, match="not what MONAI Label writes"):
            import_folder(Desk(results), folder, "ann")


def test_a_map_saved_over_what_was_submitted_is_not_read_by_its_segments(results, folder, capsys):
    submit(folder, "a", np.zeros(GRID.shape, np.uint8), ["spleen", "liver"])
    write(folder / "labels/final/a.nii.gz", label_map(), GRID)
    assert take(results, folder) == 1 and said(results) == []
    assert "a.nii.gz is not what was submitted to MONAI Label" in capsys.readouterr().out
    (folder / "datastore_v2.json").unlink()
    assert take(results, folder) == 0
    assert said(results) == [("a", "liver", "right"), ("a", "spleen", "right")]


def test_of_two_maps_of_a_case_neither_is_taken(results, folder, capsys):
    for name in ("a.nii.gz", "a.mha", "b.nii.gz"):
        write(folder / "labels/final" / name, label_map(), GRID)
    assert take(results, folder) == 1 and said(results) == [("b", "liver", "right")]
    assert "a: a.mha, a.nii.gz in labels/final; keep one" in capsys.readouterr().out


@pytest.mark.parametrize("name", [
    "labels/final/a/a.nii.gz", "labels/final/Segmentation.nrrd", "Segmentation.nii.gz", "labels/original/a-l.nii.gz",
    "queue.xlsx",
])  # fmt: skip
def test_a_map_that_was_saved_where_none_is_looked_for_is_named(results, folder, capsys, name):
    (folder / name).parent.mkdir(exist_ok=True)
    if name == "queue.xlsx":
        (folder / name).write_bytes(b"PK")
    else:
        write(folder / name, label_map(), GRID)
    assert take(results, folder) == 1 and said(results) == []
    assert f"{name}: not used: " in capsys.readouterr().out
    (folder / name).unlink()
    text = (folder / "queue.csv").read_text(encoding="utf-8-sig")
    (folder / "queue.csv").write_text("".join(line for line in text.splitlines(True) if ",b," not in line))
    assert take(results, folder) == 0  # who leaves rows out has saved nothing


def test_a_case_that_a_spreadsheet_took_for_a_number_is_the_one_of_its_image(tmp_path):
    image = tmp_path / "0012.nii.gz"
    write(image, np.arange(960).reshape(GRID.shape).astype(np.int16), GRID)
    results = write_results(tmp_path, {"0012": image}, {"0012": (label_map(), GRID)}, [("0012", "liver", "doubt")])
    assert main(["review", str(results), "--export", str(tmp_path / "out")]) == 0
    fill(tmp_path / "out", **{"0012_liver": "right"})
    path = tmp_path / "out/queue.csv"
    path.write_text(path.read_text().replace(";0012;", ";12;"))
    assert take(results, tmp_path / "out") == 0 and said(results) == [("0012", "liver", "right")]


@pytest.mark.parametrize("saved", ["sep=;\n{header}\n{rows}", "{HEADER}\n{rows}", "{header}\n{rows};;;;;\n"])
def test_a_queue_that_a_spreadsheet_saved_is_read(results, folder, saved):
    fill(folder, a_liver="right")
    header, _, rows = (folder / "queue.csv").read_text().partition("\n")
    (folder / "queue.csv").write_text(saved.format(header=header, HEADER=header.upper(), rows=rows))
    assert take(results, folder) == 0 and said(results) == [("a", "liver", "right")]


SPOILED = {
    "another encoding": (lambda text: text.replace("odd", "Gefäß").encode("latin-1"), 2),
    "a field without end": (lambda text: text.replace("odd", "odd" * 99999).encode(), 2),
    "half of it": (lambda text: text[:-40].encode(), 0),
    "a case without end": (lambda text: text.replace(";b;", f";{'b' * 5000};").replace("b.nii.gz", "").encode(), 0),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_queue_that_is_spoiled_is_no_fault_of_ours(results, folder, capsys, how):
    fill(folder, a_liver="right")
    change, code = SPOILED[how]
    (folder / "queue.csv").write_bytes(change((folder / "queue.csv").read_text()))
    assert take(results, folder) == code and said(results) == ([] if code else [("a", "liver", "right")])
    assert not code or "queue.csv: not a CSV table in UTF-8" in capsys.readouterr().err


def test_rows_that_are_wrong_are_named_and_the_others_count(results, folder, capsys):
    fill(folder, a_liver="perhaps", a_spleen="wrong", b_liver="unsure")
    text = (folder / "queue.csv").read_text().replace(";spleen;", ";nothing;")
    (folder / "queue.csv").write_text(text.replace("b;liver", "../../b;liver").replace(";b.nii.gz", ";"))
    write(folder / "labels/final/b.nii.gz", label_map(), GRID)
    assert take(results, folder) == 1
    out = capsys.readouterr().out
    for told in ("row 2: decision 'perhaps'", "row 3: class 'nothing'", "row 4: case '../../b'", "b.nii.gz: not used"):
        assert told in out
    assert said(results) == []


def test_of_several_channels_the_first_is_shown_of_a_label_that_was_not_asked_about(results):
    table = Path(Paths(str(results)).table("cases"))
    cases = read_table(table, "cases")
    first = cases["image"].iloc[0]
    write_table(table, cases.assign(image=lambda rows: rows["image"] + ";/elsewhere/b_0001.nii.gz"), "cases")
    shown = Desk(results).question(cases["case"].iloc[0], "pancreas").image
    assert shown == Path(first) and shown.is_file()


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
