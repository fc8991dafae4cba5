import logging

import numpy as np
import pandas as pd
import pytest

from labelloop.classes import load_classes
from labelloop.errors import UserError
from labelloop.metrics.evaluate import class_means, evaluate_folders
from labelloop.tables import read_table, write_table
from labelloop.volume import Geometry, write

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
    for words in ("c: grid_differs", "d: no prediction in", "e: no truth in", "f: label_unreadable"):
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


def test_nothing_to_score_leaves_an_empty_table(folders, tmp_path):
    truth, prediction = folders
    for case in "ab":
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
