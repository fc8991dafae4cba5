"""BIDS data sets: a case for each image, its label map below derivatives, patients by subject."""

import logging

import pytest

from labelloop.base.errors import UserError
from labelloop.cases.make_table import Options, make_table
from labelloop.cases.table import load_cases
from labelloop.cli import main as cli

FILES = (
    "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
    "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
    "sub-01/ses-1/anat/sub-01_ses-1_T1w_defacemask.nii.gz",
    "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
    "sub-02/anat/sub-02_T2w.nii.gz",
    "sub-03/ct/sub-03_ct.nii.gz",
    "sub-03/func/sub-03_task-rest_bold.nii.gz",
    "derivatives/labels/sub-01/ses-1/anat/sub-01_ses-1_T1w_desc-manual_dseg.nii.gz",
    "derivatives/labels/sub-01/ses-2/anat/sub-01_ses-2_dseg.nii.gz",
    "derivatives/labels/sub-02/anat/sub-02_T2w_label-liver_mask.nii.gz",
    "derivatives/other/sub-03/ct/sub-03_ct_seg.nii.gz",
)


def collection(folder, files=FILES):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")
    (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    return folder


def test_each_image_is_a_case_with_its_label_map_and_its_patient(tmp_path, caplog):
    folder, out = collection(tmp_path / "d"), tmp_path / "c.csv"
    with caplog.at_level(logging.INFO):
        assert cli.main(["cases", "--images", str(folder), "--dataset", "flare24", "--out", str(out)]) == 0
    assert "1 left out, no image, by its suffix: sub-01_ses-1_T1w_defacemask.nii.gz" in caplog.text
    cases, rejected = load_cases(out)
    assert rejected == []
    assert {c.case: (c.patient, c.sequence, c.modality, c.label.removeprefix(f"{folder}/")) for c in cases} == {
        "sub-01_ses-1_T1w": ("01", "t1w", "MR", FILES[7]),
        "sub-01_ses-1_T2w": ("01", "t2w", "MR", ""),
        "sub-01_ses-2_T1w": ("01", "t1w", "MR", FILES[8]),
        "sub-02_T2w": ("02", "t2w", "MR", ""),
        "sub-03_ct": ("03", "ct", "CT", FILES[10]),
    }
    drawn = make_table(folder, None, "flare24", out, Options(test_fraction=0.3, seed=2, overwrite=True))
    tested = {case.patient for case in drawn if case.role == "test"}
    assert tested and tested.isdisjoint(case.patient for case in drawn if case.role == "train")


def test_a_label_map_that_may_be_of_two_images_is_of_neither(tmp_path):
    folder = collection(tmp_path / "d", (*FILES[:2], "derivatives/a/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz"))
    assert [case.label for case in make_table(folder, None, "flare24", tmp_path / "c.csv")] == ["", ""]


def test_an_image_with_several_label_maps_is_lost(tmp_path, caplog):
    more = "derivatives/other/sub-01/ses-2/anat/sub-01_ses-2_T1w_dseg.nii.gz"
    folder = collection(tmp_path / "d", (*FILES, more))
    assert cli.main(["cases", "--images", str(folder), "--dataset", "flare24", "--out", str(tmp_path / "c.csv")]) == 1
    assert "sub-01_ses-2_T1w" not in {case.case for case in load_cases(tmp_path / "c.csv")[0]}
    assert "2 left out, label maps of one image" in caplog.text


def test_what_is_missing_is_said_in_words(tmp_path):
    folder = collection(tmp_path / "d", ["sub-01/func/sub-01_bold.nii.gz"])
    with pytest.raises(UserError, match="--dataset: name what the label ids mean"):
        make_table(folder, None, None, tmp_path / "c.csv")
    with pytest.raises(UserError, match="a BIDS folder without an image"):
        make_table(folder, None, "flare24", tmp_path / "c.csv")
    with pytest.raises(UserError, match="leave out --labels"):
        make_table(folder, folder, "flare24", tmp_path / "c.csv")
