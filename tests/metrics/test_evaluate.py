import gzip
import logging

import numpy as np
import pandas as pd
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.base.tables import read_table, write_table
from labelloop.images.volume import Geometry, read, write
from labelloop.metrics.evaluate import class_means, evaluate_folders, summary

GRID = Geometry((10, 12, 8), (1.0, 1.0, 2.0))


@pytest.fixture
def folders(tmp_path):
    """Cases a and b are right, c is on another grid, d lacks a prediction, e lacks a truth, f cannot be read."""
    truth, prediction = tmp_path / "truth", tmp_path / "prediction"
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:6, 2:8, 2:8] = 1
    for case in "abcd":
        write(truth / f"{case}.nii.gz", labels, GRID)
    for case in "abe":
        write(prediction / f"{case}.nii.gz", labels, GRID)
    write(prediction / "c.nii.gz", labels, Geometry(GRID.size, (1.0, 1.0, 3.0)))
    write(prediction / "a_0000.nii.gz", labels, GRID)
    write(truth / "f.nii.gz", labels, GRID)
    (prediction / "f.nii.gz").write_bytes(b"not an image")
    return truth, prediction


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_folders_are_scored_and_problems_said_in_words(folders, tmp_path, caplog, capsys, workers):
    out, lesions = tmp_path / "scores.csv", tmp_path / "lesions.csv"
    with caplog.at_level(logging.ERROR):
        problems = evaluate_folders(*folders, "flare", "official-2024", out, workers, lesions=lesions)
    said = [record.getMessage() for record in caplog.records]
    assert problems == len(said) == 4
    for words in ("c: grid_differs", "d: no prediction in", "e: no truth in", "f: label_not_an_image"):
        assert sum(words in line for line in said) == 1
    table = read_table(out, "scores")
    assert sorted(set(table["case"])) == ["a", "b"] and len(table) == 28
    assert (table["dsc"] == 1).all()
    printed = capsys.readouterr().out
    assert "liver" in printed and "mean of organs" in printed
    assert "tumor: 0 of 2 tumor-free scans with a false finding (0.0 %)" in printed
    found = read_table(lesions, "lesions")
    assert found[["case", "class", "lesions", "false_positives"]].to_numpy().tolist() == [
        ["a", "tumor", 0, 0],
        ["b", "tumor", 0, 0],
    ]


def test_annotation_decides_what_is_scored(folders, tmp_path):
    annotation = pd.DataFrame(
        [("a", "liver", "present"), ("a", "tumor", "unknown")], columns=["case", "class", "state"]
    )
    write_table(tmp_path / "annotation.csv", annotation, "annotation")
    out = tmp_path / "scores.csv"
    annotation, lesions = tmp_path / "annotation.csv", tmp_path / "lesions.csv"
    evaluate_folders(*folders, "flare", "corrected", out, annotation=annotation, lesions=lesions)
    assert read_table(lesions, "lesions").empty
    assert read_table(out, "scores")[["case", "class"]].to_numpy().tolist() == [["a", "liver"]]


@pytest.mark.parametrize(
    ("rows", "found"),
    [([("liver", "yes")], "state 'yes'"), ([("liver", "Present")], "did you mean 'present'"),
     ([("lever", "present")], "class 'lever'.*did you mean 'liver'"),
     ([("liver", "present"), ("liver", "unknown")], ", liver: a second row")],
)  # fmt: skip
def test_an_annotation_table_that_says_nothing_is_refused(folders, tmp_path, rows, found):
    """A state that is none would be taken for known, a misspelled class for unknown."""
    lines = [f"case_{number},{name},{state}" for number in range(3) for name, state in rows]
    (tmp_path / "annotation.csv").write_text("case,class,state\n" + "\n".join(lines) + "\n")
    with pytest.raises(UserError, match=found):
        evaluate_folders(*folders, "flare", "corrected", tmp_path / "s.csv", annotation=tmp_path / "annotation.csv")


def test_cases_that_the_annotation_table_does_not_name_are_told(folders, tmp_path, caplog):
    (tmp_path / "annotation.csv").write_text("case,class,state\nother,liver,present\n")
    both = {path.name for path in folders[0].iterdir()} & {path.name for path in folders[1].iterdir()}
    evaluate_folders(*folders, "flare", "corrected", tmp_path / "s.csv", annotation=tmp_path / "annotation.csv")
    assert sum("so nothing is scored" in line for line in caplog.messages) == len(both) > 0


def test_nothing_to_score_leaves_an_empty_table(folders, tmp_path):
    truth, prediction = folders
    for case in ("a", "a_0000", "b"):
        (prediction / f"{case}.nii.gz").unlink()
    assert evaluate_folders(truth, prediction, "flare", "corrected", tmp_path / "scores.csv") == 6
    assert read_table(tmp_path / "scores.csv", "scores").empty


def test_what_cannot_start_is_a_user_error(folders, tmp_path):
    truth, prediction = folders
    (tmp_path / "empty").mkdir()
    for arguments in (
        (tmp_path / "nowhere", prediction, "flare", "corrected"),
        (truth, tmp_path / "empty", "flare", "corrected"),
        (truth, prediction, "flair", "corrected"),
        (truth, prediction, "flare", "correct"),
    ):
        with pytest.raises(UserError):
            evaluate_folders(*arguments, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


def test_organ_mean_is_the_mean_of_class_means():
    table = pd.DataFrame(
        [("a", "liver", 1.0, 1.0), ("b", "liver", 0.5, 0.5), ("a", "spleen", 0.25, 0.5), ("a", "tumor", 0.0, 0.0)],
        columns=["case", "class", "dsc", "nsd"],
    )
    means = class_means(table, load_classes("flare"))
    assert means.index.tolist() == ["liver", "spleen", "tumor", "mean of organs"]
    assert means.loc["mean of organs", ["cases", "dsc", "nsd"]].tolist() == [2, 0.5, 0.625]


def write_map(folder, name, ids):
    labels = np.zeros(GRID.shape, np.uint8)
    for i, number in enumerate(ids):
        labels[2:6, 2:8, 1 + 2 * i : 3 + 2 * i] = number
    write(folder / f"{name}.nii.gz", labels, GRID)
    return folder


def test_truth_in_a_data_sets_ids_is_scored_on_what_it_annotates(tmp_path, capsys):
    """BTCV's 6 is FLARE's liver (1), its 1 the spleen (3); it annotates neither duodenum nor tumor."""
    truth = write_map(tmp_path / "truth", "a", (6, 1))
    prediction = write_map(tmp_path / "prediction", "a", (1, 3))
    out, lesions = tmp_path / "scores.csv", tmp_path / "lesions.csv"
    folders = (truth, prediction, "flare", "official-2024", out)
    assert evaluate_folders(*folders, dataset="btcv", lesions=lesions) == 0
    table = read_table(out, "scores").set_index("class")
    assert table.loc[["liver", "spleen"], "dsc"].tolist() == [1, 1]
    assert len(table) == 12 and not {"duodenum", "tumor"} & set(table.index) and read_table(lesions, "lesions").empty
    assert "over 2 of 13 classes" in capsys.readouterr().out
    known = pd.DataFrame([("a", "liver", "present")], columns=["case", "class", "state"])
    write_table(tmp_path / "annotation.csv", known, "annotation")
    evaluate_folders(*folders, dataset="btcv", annotation=tmp_path / "annotation.csv")
    assert list(read_table(out, "scores")["class"]) == ["liver"]
    with pytest.raises(UserError, match="did you mean 'btcv'"):
        evaluate_folders(*folders, dataset="btvc")


BTCV_AS_FLARE = {"truth": (6, 2, 1), "prediction": (1, 2, 3)}
"""Liver, right kidney and spleen: all ids are valid in both, and the right kidney's is even right."""


def test_predictions_that_are_the_files_of_the_truth_are_told(tmp_path, caplog, capsys):
    """The same folder typed twice, or links to it: 100 % whatever the model does."""
    truth = write_map(tmp_path / "truth", "a", (1,))
    prediction = write_map(tmp_path / "prediction", "b", (1,))
    (file,) = truth.iterdir()
    (prediction / file.name).symlink_to(file)
    write_map(truth, "b", (1,))
    for folder, found in ((truth, "2 predictions scored"), (prediction, "1 prediction scored")):
        caplog.clear()
        assert evaluate_folders(truth, folder, "flare", "corrected", tmp_path / "scores.csv") == 0
        assert found in caplog.text


def test_ids_of_another_scheme_that_are_all_valid_are_told(tmp_path, caplog, capsys):
    folders = [write_map(tmp_path / side, "a", ids) for side, ids in BTCV_AS_FLARE.items()]
    write_map(folders[0], "b", ())
    write_map(folders[1], "b", (1,))
    write_map(folders[0], "c", (1, 3, 2, 6))  # what is liver here is elsewhere than what was taken for it
    write_map(folders[1], "c", (6, 2, 3, 1))
    out = tmp_path / "scores.csv"
    assert evaluate_folders(*folders, "flare", "official-2024", out) == 0
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "3 of the 4 classes that both hold: liver, spleen, inferior_vena_cava" in warning
    assert "--dataset" in warning
    assert "right_kidney" not in warning and capsys.readouterr().out
    caplog.clear()
    write_map(folders[1], "d", (6,))
    write_map(folders[0], "d", (6,))
    write_map(folders[1], "e", (1,))
    write_map(folders[0], "e", (1,))
    evaluate_folders(*folders, "flare", "official-2024", out)  # only the spleen is left: one class may be segmented so
    assert "overlap" not in caplog.text


def test_each_side_s_ids_are_refused_with_what_to_do_about_that_side(tmp_path, caplog):
    ids = {"truth": {"a": (1,), "b": (99,)}, "prediction": {"a": (99,), "b": (1,)}}
    for side, maps in ids.items():
        for case, values in maps.items():
            write_map(tmp_path / side, case, values)
    assert evaluate_folders(tmp_path / "truth", tmp_path / "prediction", "flare", "corrected", tmp_path / "s.csv") == 2
    said = {record.getMessage()[0]: record.getMessage() for record in caplog.records}
    assert "(--dataset)" in said["b"] and "--dataset" not in said["a"] and "(--prediction-dataset)" in said["a"]


def test_classes_that_are_nowhere_do_not_lift_the_mean(tmp_path, capsys):
    """Case a: half a liver is found. Case b has neither liver nor anything else: FLARE gives it 100 %."""
    for case, ids in (("a", (1, 1)), ("b", ())):
        write_map(tmp_path / "truth", case, ids)
        write_map(tmp_path / "prediction", case, ids[:1])
    out = tmp_path / "scores.csv"
    assert evaluate_folders(tmp_path / "truth", tmp_path / "prediction", "flare", "corrected", out) == 0
    table = read_table(out, "scores").set_index(["case", "class"])["dsc"]
    assert table["b"].tolist() == [1] * 14 and table["a", "liver"] == pytest.approx(2 / 3)  # the table is FLARE's
    lines = {line[:22].strip(): line[22:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["liver"][:3] == ["1", "1", "66.67"]
    assert lines["spleen"] == ["0", "2", "–", "–"]
    assert lines["mean of organs"][1] == "66.67" and lines["mean of organs"][3:] == ["over", "1", "of", "13", "classes"]


def test_an_organ_that_is_not_there_and_was_found_counts(tmp_path, capsys):
    write_map(tmp_path / "truth", "a", (1,))
    write_map(tmp_path / "prediction", "a", (1, 3))
    evaluate_folders(tmp_path / "truth", tmp_path / "prediction", "flare", "corrected", tmp_path / "scores.csv")
    lines = {line[:22].strip(): line[22:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["spleen"][:3] == ["1", "0", "0.00"] and lines["mean of organs"][1] == "50.00"


BAD = {
    "cut": (lambda content: content[: len(content) // 2], "label_truncated"),
    "cut_inside": (lambda content: gzip.compress(gzip.decompress(content)[:600]), "label_truncated"),
    "damaged": (lambda content: content[:-8] + b"xxxx" + content[-4:], "label_corrupt"),
}
VALUES = {
    "nan": ([np.nan], np.float32, "label_not_finite"),
    "infinite": ([np.inf], np.float32, "label_not_finite"),
    "fractional": ([0.5], np.float32, "label_fractional"),
    "huge": ([2.0**32 + 5], np.float64, "label_unknown_ids"),
    "other_scheme": ([101], np.uint8, "label_unknown_ids"),
}


@pytest.mark.parametrize("side", ["truth", "prediction"])
def test_what_the_survey_refuses_is_not_scored_and_the_others_are(folders, tmp_path, caplog, side):
    folder = dict(zip(("truth", "prediction"), folders, strict=True))[side]
    good = (folders[0] / "a.nii.gz").read_bytes()
    expected = {}
    for name, (spoil, code) in BAD.items():
        for one in folders:
            (one / f"{name}.nii.gz").write_bytes(good)
        (folder / f"{name}.nii.gz").write_bytes(spoil(good))
        expected[name] = code
    for name, (values, dtype, code) in VALUES.items():
        for one in folders:
            write(one / f"{name}.mha", read(folders[0] / "a.nii.gz").array, GRID)
        labels = np.zeros(GRID.shape, dtype)
        labels[0, 0, : len(values)] = values
        write(folder / f"{name}.mha", labels, GRID)
        expected[name] = code
    problems = evaluate_folders(*folders, "flare", "official-2024", tmp_path / "scores.csv")
    assert problems == 4 + len(expected)
    said = [record.getMessage() for record in caplog.records]
    assert all(
        sum(line.startswith(f"{case}: {code}: {folder}") for line in said) == 1 for case, code in expected.items()
    )
    assert set(read_table(tmp_path / "scores.csv", "scores")["case"]) == {"a", "b"}


def test_voxels_that_the_truth_ignores_are_ignored_only_if_its_data_set_says_so(tmp_path, caplog):
    truth = write_map(tmp_path / "truth", "a", (1, 255))
    prediction = write_map(tmp_path / "prediction", "a", (1, 1))
    (tmp_path / "own.yaml").write_text("{name: own, modality: CT, labels: {1: liver, 3: spleen, 255: ignore}}")
    arguments = (truth, prediction, "flare", "corrected", tmp_path / "scores.csv")
    assert evaluate_folders(*arguments) == 1 and "label_unknown_ids: " in caplog.text
    assert evaluate_folders(*arguments, dataset=str(tmp_path / "own.yaml")) == 0
    table = read_table(tmp_path / "scores.csv", "scores")
    assert table[["class", "dsc", "nsd"]].to_numpy().tolist() == [["liver", 1.0, 1.0]]
    write_map(prediction, "a", (1, 255))
    assert evaluate_folders(*arguments, dataset=str(tmp_path / "own.yaml")) == 1  # no model says "ignored"


def test_a_class_of_which_no_surface_is_known_has_no_nsd_in_the_summary():
    rows = [("a", "liver", 1.0, np.nan, 2.0, 2.0), ("a", "spleen", 0.5, 0.5, 1.0, 1.0)]
    columns = ["case", "class", "dsc", "nsd", "volume_truth_ml", "volume_prediction_ml"]
    lines = summary(pd.DataFrame(rows, columns=columns), load_classes("flare")).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["liver", "1", "0", "100.00", "–"], ["spleen", "1", "0", "50.00", "50.00"]
    ]  # fmt: skip
