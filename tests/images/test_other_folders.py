"""Folders of nnU-Net and of TotalSegmentator as they are: scored, checked and segmented without being rewritten."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from bad_inputs import AFFINE, SHAPE, ct_values, save
from labelloop.base.errors import UserError
from labelloop.base.tables import read_table
from labelloop.inference.find_cases import find_cases
from labelloop.labels.folder import check_folder
from labelloop.metrics.evaluate import evaluate_folders

LABELS = {"background": 0, "spleen": 1, "kidney_left": 2}
IDS = {"spleen": 3, "left_kidney": 13}
"""Of the scheme flare."""


def organs() -> dict[str, np.ndarray]:
    spleen, kidney = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    spleen[5:9, 5:12, 3:9], kidney[11:15, 6:12, 4:9] = 1, 1
    return {"spleen": spleen, "left_kidney": kidney}


def label_map(ids: dict[str, int]) -> np.ndarray:
    return sum(mask * np.uint8(ids[name]) for name, mask in organs().items())


def masks(folder, names=("spleen", "kidney_left"), cases=("a", "b")):
    """Write a tree as TotalSegmentator's data set has it, with a structure that is no class of ours."""
    shapes = organs() | {"kidney_left": organs()["left_kidney"], "heart": organs()["spleen"][::-1]}
    for case in cases:
        save(folder / case / "ct.nii.gz", ct_values())
        for name in (*names, "heart"):
            save(folder / case / "segmentations" / f"{name}.nii.gz", shapes[name])
    return folder


def ours(folder, cases=("a", "b")):
    for case in cases:
        save(folder / f"{case}.nii.gz", label_map(IDS))
    return folder


def nnunet(folder, place="labelsTr", cases=("a", "b"), own=None):
    """Write label maps in the ids of a dataset.json: beside their folder, or, as predictions have it, in it."""
    own = {"spleen": 1, "left_kidney": 2} if own is None else own
    for case in cases:
        save(folder / place / f"{case}.nii.gz", label_map(own))
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": LABELS}))
    return folder / place


def scored(truth, prediction, out, **options):
    assert evaluate_folders(truth, prediction, "flare", "official-2024", out, **options) == 0
    return read_table(out, "scores")


def perfect(table) -> bool:
    there = table[table["class"].isin(IDS)]
    return len(there) == 4 and bool((there["volume_truth_ml"] > 0).all() and (table["dsc"] == 1).all())


def test_label_maps_of_nnunet_are_scored_in_the_ids_of_their_dataset_json(tmp_path, caplog, monkeypatch):
    with caplog.at_level(logging.INFO):
        table = scored(nnunet(tmp_path / "d"), ours(tmp_path / "ours"), tmp_path / "1.csv")
    assert perfect(table) and set(table["class"]) == set(IDS)  # what the file does not name was not annotated
    assert sum("label maps in the ids of" in line for line in caplog.messages) == 1
    predicted = nnunet(tmp_path / "predicted", "")
    assert perfect(scored(tmp_path / "d" / "labelsTr", predicted, tmp_path / "2.csv"))
    assert perfect(scored(ours(tmp_path / "truth"), predicted, tmp_path / "3.csv"))
    monkeypatch.chdir(tmp_path / "d" / "labelsTr")
    assert perfect(scored(Path(), tmp_path / "ours", tmp_path / "5.csv"))
    (tmp_path / "other").mkdir()
    moved = nnunet(tmp_path / "other", "moved")
    named = scored(moved, tmp_path / "ours", tmp_path / "4.csv", dataset=tmp_path / "other" / "dataset.json")
    assert perfect(named) and set(named["class"]) == set(IDS)


def test_predictions_in_other_ids_are_scored_in_the_ids_that_are_named_and_told_where_none_are(tmp_path, caplog):
    """Id 1 is the spleen of the truth, and the liver of the scheme."""
    truth, predicted = nnunet(tmp_path / "d"), tmp_path / "predicted"
    for case in ("a", "b"):
        save(predicted / f"{case}.nii.gz", label_map({"spleen": 1, "left_kidney": 2}))
    named = {"prediction_dataset": tmp_path / "d" / "dataset.json"}
    assert perfect(scored(truth, predicted, tmp_path / "1.csv", **named))
    assert "no class of the truth overlaps" not in caplog.text
    assert (scored(truth, predicted, tmp_path / "2.csv")["dsc"] == 0).all()
    assert "no class of the truth overlaps with its prediction in any case: spleen, left_kidney" in caplog.text


def test_a_data_set_that_contradicts_the_file_beside_the_labels_is_told(tmp_path, caplog):
    """As where somebody names the data set of other labels: its ids are all valid."""
    labels = nnunet(tmp_path / "d")
    assert check_folder(labels, "flare", tmp_path / "v.csv", dataset="flare22") == 0
    found = "contradicts data set flare22, which counts: 1 is spleen, and liver in data set flare22; 2 is left_kidney"
    assert found in caplog.text
    caplog.clear()
    (tmp_path / "mine.yaml").write_text("{name: mine, modality: CT, labels: {1: spleen, 2: null}}")
    assert check_folder(labels, "flare", tmp_path / "v.csv", dataset=str(tmp_path / "mine.yaml")) == 0
    assert "contradicts" not in caplog.text


def test_a_class_of_a_dataset_json_that_no_scheme_has_is_not_background(tmp_path):
    labels = nnunet(tmp_path / "d")
    (tmp_path / "d" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "spleen": 1, "cyst": 2}}))
    with pytest.raises(UserError, match=r"no class 'cyst'(.|\n)*data set file, too \(--dataset; --prediction-dataset"):
        evaluate_folders(labels, ours(tmp_path / "ours"), "flare", "official-2024", tmp_path / "s.csv")


def test_masks_are_scored_and_classes_without_one_are_not(tmp_path):
    truth, prediction = masks(tmp_path / "truth"), ours(tmp_path / "ours")
    table = scored(truth, prediction, tmp_path / "1.csv")
    assert perfect(table) and set(table["class"]) == set(IDS)
    assert perfect(scored(truth, masks(tmp_path / "theirs"), tmp_path / "2.csv"))
    less = scored(prediction, masks(tmp_path / "less", names=("spleen",)), tmp_path / "3.csv")
    kidney = less[less["class"] == "left_kidney"]
    assert (kidney["dsc"] == 0).all() and (kidney["volume_prediction_ml"] == 0).all()
    assert set(scored(tmp_path / "less", prediction, tmp_path / "4.csv")["class"]) == {"spleen"}


def test_masks_that_do_not_fit_each_other_are_one_case_problem(tmp_path, caplog):
    truth = masks(tmp_path / "truth")
    save(truth / "a" / "segmentations" / "spleen.nii.gz", organs()["spleen"], np.diag([1.0, 1.0, 7.0, 1.0]) @ AFFINE)
    assert evaluate_folders(truth, ours(tmp_path / "ours"), "flare", "official-2024", tmp_path / "s.csv") == 1
    assert any(line.startswith("a: mask_grid") for line in caplog.messages)
    assert set(read_table(tmp_path / "s.csv", "scores")["case"]) == {"b"}
    with pytest.raises(UserError, match="no case has masks of classes of flare"):
        evaluate_folders(masks(tmp_path / "x", names=()), truth, "flare", "official-2024", tmp_path / "t.csv")


@pytest.mark.parametrize("kind", ["ours", "nnunet", "masks"])
def test_all_of_them_are_checked_with_their_images_and_get_the_same_verdicts(tmp_path, kind):
    tree = masks(tmp_path / "tree")
    labels = {"ours": ours, "nnunet": nnunet, "masks": masks}[kind](tmp_path / kind)
    for name, folder in ((kind, labels), ("expected", ours(tmp_path / "expected"))):
        assert check_folder(folder, "flare", tmp_path / f"{name}.csv", tree) == 0
    found, expected = ((tmp_path / f"{name}.csv").read_text() for name in (kind, "expected"))
    assert found == expected and "a,spleen," in found


def test_images_and_masks_may_lie_in_one_tree(tmp_path, caplog):
    tree = masks(tmp_path / "tree")
    with caplog.at_level(logging.INFO):
        assert check_folder(tree, "flare", tmp_path / "v.csv", tree) == 0
    assert "without an image" not in caplog.text
    assert [(case.case, case.image.name) for case in find_cases(tree)] == [("a", "ct.nii.gz"), ("b", "ct.nii.gz")]


def test_images_of_nnunet_are_segmented_under_the_names_of_their_cases(tmp_path):
    folder = tmp_path / "Dataset007_X"
    for place, names in (("imagesTr", ["x_001_0000", "x_002_0000"]), ("imagesTs", ["x_003_0000"])):
        for name in names:
            save(folder / place / f"{name}.nii.gz", ct_values())
    nnunet(folder, cases=["x_001"])
    assert [case.case for case in find_cases(folder / "imagesTr")] == ["x_001", "x_002"]
    assert [case.case for case in find_cases(folder / "imagesTs")] == ["x_003"]
    with pytest.raises(UserError, match="give the images in it that are meant, imagesTs or imagesTr"):
        find_cases(folder)
