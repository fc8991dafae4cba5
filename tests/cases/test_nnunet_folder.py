"""Data set folders of nnU-Net and of the Decathlon: a case table, and what their label ids mean."""

import json
import logging

import pytest

from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.base.tables import read_table
from labelloop.cases.make_table import Options, make_table
from labelloop.cases.table import load_cases
from labelloop.cli import main as cli
from labelloop.images.datasets import load_dataset, read_dataset

CT = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 2}
LABELS = {"background": 0, "Liver": 1, "kidney_right": 2, "ignore": 3}


def collection(folder, content=None, files=None):
    """Write a data set folder: by default two cases with labels and one to test on, without."""
    files = files or {"imagesTr": ["a_0000", "b_0000"], "labelsTr": ["a", "b"], "imagesTs": ["c_0000"]}
    for place, names in files.items():
        (folder / place).mkdir(parents=True)
        for name in names:
            (folder / place / f"{name}.nii.gz").write_bytes(b"x")
    (folder / "dataset.json").write_text(json.dumps(CT | {"labels": LABELS} if content is None else content))
    return folder


@pytest.mark.parametrize("given", ["", "dataset.json"])
def test_a_data_set_folder_becomes_a_table_and_a_data_set_file(tmp_path, given):
    folder, out = collection(tmp_path / "Dataset007_Liver"), tmp_path / "cases.csv"
    assert cli.main(["cases", "--images", str(folder / given), "--out", str(out)]) == 0
    cases, rejected = load_cases(out)
    assert rejected == []
    assert [(c.case, c.role, bool(c.label), c.modality) for c in cases] == [
        ("a", "train", True, "CT"), ("b", "train", True, "CT"), ("c", "test", False, "CT")
    ]  # fmt: skip
    assert set(read_table(out, "cases")["dataset"]) == {"Dataset007_Liver.yaml"}
    dataset = load_dataset(tmp_path / "Dataset007_Liver.yaml", load_classes("flare"))
    assert dataset.named == {1: "liver", 2: "right_kidney"} and dataset.ignored == {3}
    assert dataset.annotated == ("liver", "right_kidney")


def test_what_is_not_read_is_told(tmp_path, caplog):
    folder = collection(tmp_path / "d", files={"imagesTr": ["a_0000"], "labelsTr": ["a", "z"], "imagesVal": ["v_0000"]})
    (folder / "imagesTs").mkdir()  # as nnU-Net leaves it
    (folder / "imagesTr" / "notes.txt").write_text("x")
    (folder / "plans.txt").write_text("x")
    with caplog.at_level(logging.INFO):
        assert [case.case for case in make_table(folder, None, None, tmp_path / "c.csv")] == ["a"]
    for words in ("notes.txt", "imagesVal", "plans.txt", "no image of theirs: z"):
        assert sum(words in line and "left out" in line for line in caplog.messages) == 1


def test_labels_of_test_images_are_taken_and_none_are_drawn_then(tmp_path):
    files = {"imagesTr": ["a_0000", "b_0000"], "labelsTr": ["a", "b"]}
    folder = collection(tmp_path / "d", files=files | {"imagesTs": ["c_0000"], "labelsTs": ["c"]})
    cases = make_table(folder, None, None, tmp_path / "c.csv")
    assert [(case.case, case.role, bool(case.label)) for case in cases][2:] == [("c", "test", True)]
    drawn = Options(test_fraction=0.5, overwrite=True)
    with pytest.raises(UserError, match="labeled test cases of its own; leave out --test-fraction"):
        make_table(folder, None, None, tmp_path / "c.csv", drawn)
    (folder / "labelsTs" / "c.nii.gz").unlink()
    cases = make_table(folder, None, None, tmp_path / "c.csv", drawn)
    assert sorted(case.role for case in cases) == ["test", "test", "train"]


REFUSED = {
    "channels": (
        {"channel_names": {"0": "CT", "1": "PET"}, "labels": LABELS},
        "1 file of each image, e.g. of a, for 2",
    ),
    "regions": (CT | {"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "regions, which overlap"),
    "order": (CT | {"labels": LABELS, "regions_class_order": [1, 2]}, "regions, which overlap"),
    "modality": ({"channel_names": {"0": "PET"}, "labels": LABELS}, "the channel is 'PET', which says neither"),
    "no channel": ({"labels": LABELS}, "say it with --modality"),
    "no labels": (CT, "no labels"),
    "fractions": (CT | {"labels": {"background": 0, "liver": 1.5}}, "expected a whole number for each class"),
    "background": (CT | {"labels": {"0": "liver", "1": "spleen"}}, "liver has id 0"),
    "no name": (CT | {"labels": {"background": 0, "": 1}}, "expected a whole number for each class"),
    "a long number": (
        CT | {"labels": {"0": "background", "9" * 5000: "liver"}},
        "expected a whole number for each class",
    ),
    "validation": (CT | {"labels": LABELS, "validation": [{"image": "imagesTr/a_0000.nii.gz"}]}, "for validation"),
    "twice": (CT | {"labels": {"background": 0, "liver": 1, "spleen": 1}}, "two classes have one id"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_in_words(tmp_path, kind):
    content, words = REFUSED[kind]
    with pytest.raises(UserError) as caught:
        make_table(collection(tmp_path / "d", content), None, None, tmp_path / "c.csv")
    assert words in str(caught.value) and "dataset.json" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_other_files_of_the_decathlon_and_of_version_1_say_the_same(tmp_path):
    content = {"name": "Pancreas", "modality": {"0": "CT"}, "licence": "CC-BY-SA 4.0", "reference": "MSK",
               "labels": {"0": "background", "1": "pancreas", "2": "cancer"}, "training": [], "test": []}  # fmt: skip
    files = {"imagesTr": ["pancreas_001"], "labelsTr": ["pancreas_001"], "imagesTs": ["pancreas_002"]}
    folder = collection(tmp_path / "Task07", content, files)
    assert [case.case for case in make_table(folder, None, None, tmp_path / "c.csv")] == [
        "pancreas_001",
        "pancreas_002",
    ]
    dataset = read_dataset(tmp_path / "Task07.yaml")
    assert dataset.labels == {1: "pancreas", 2: "cancer"}
    assert (dataset.license, dataset.source) == ("CC-BY-SA 4.0", "MSK")


def test_a_class_that_no_scheme_has_is_told_and_never_becomes_background(tmp_path, caplog):
    folder = collection(tmp_path / "d", CT | {"labels": {"background": 0, "liver": 1, "cancer": 2}})
    make_table(folder, None, None, tmp_path / "c.csv")
    assert any("no class scheme has cancer" in line for line in caplog.messages)
    with pytest.raises(UserError, match="no class 'cancer'"):
        load_dataset(tmp_path / "d.yaml", load_classes("flare"))


def test_a_data_set_file_that_was_edited_is_kept(tmp_path, caplog):
    folder, overwrite = collection(tmp_path / "d"), Options(overwrite=True)
    make_table(folder, None, None, tmp_path / "c.csv")
    edited = (tmp_path / "d.yaml").read_text() + "annotated: [liver]\n"
    (tmp_path / "d.yaml").write_text(edited)
    with caplog.at_level(logging.INFO):
        make_table(folder, None, None, tmp_path / "c.csv", overwrite)
    assert (tmp_path / "d.yaml").read_text() == edited and "there before and kept" in caplog.text
    assert not [line for line in caplog.records if line.levelno >= logging.WARNING]
    (folder / "dataset.json").write_text(json.dumps(CT | {"labels": {"background": 0, "spleen": 1}}))
    make_table(folder, None, None, tmp_path / "c.csv", overwrite)
    assert any("says other things of label ids" in line for line in caplog.messages)


def test_options_that_the_folder_answers_itself_are_refused(tmp_path, caplog):
    folder = collection(tmp_path / "d")
    with pytest.raises(UserError, match="leave out --labels, --merged"):
        make_table(folder, folder / "labelsTr", None, tmp_path / "c.csv", Options(merged=tmp_path / "m"))
    made = make_table(folder, None, "flare22", tmp_path / "c.csv")  # a data set that is named goes before
    assert {case.dataset for case in made} == {"flare22"} and not (tmp_path / "d.yaml").exists()
    assert "contradicts" not in caplog.text
    for images, labels in ((folder, None), (folder / "imagesTr", folder / "labelsTr")):
        caplog.clear()
        make_table(images, labels, "msd_spleen", tmp_path / "c.csv", Options(overwrite=True))
        found = "contradicts data set msd_spleen, which counts: 1 is liver, and spleen in data set msd_spleen"
        assert found in caplog.text
    with pytest.raises(UserError, match="--dataset: name what the label ids mean"):
        make_table(folder / "imagesTr", None, None, tmp_path / "e.csv")


@pytest.mark.parametrize(("channel", "modality"), [("T1", "MR"), ("mri", "MR"), ("ct", "CT"), ("in_phase", "MR")])
def test_a_channel_says_the_modality(tmp_path, channel, modality):
    make_table(collection(tmp_path / "d", {"channel_names": {"0": channel}, "labels": LABELS}), None, None,
               tmp_path / "c.csv")  # fmt: skip
    assert read_dataset(tmp_path / "d.yaml").modality == modality


def test_a_modality_that_is_given_goes_before(tmp_path):
    folder = collection(tmp_path / "d", {"channel_names": {"0": "noNorm"}, "labels": LABELS})
    assert {case.modality for case in make_table(folder, None, None, tmp_path / "c.csv", Options(modality="MR"))} == {
        "MR"
    }
