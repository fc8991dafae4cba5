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
    sidecars = [file.replace(".nii.gz", ".json") for file in FILES[:6]]
    folder, out = collection(tmp_path / "d", [*FILES, *sidecars]), tmp_path / "c.csv"
    with caplog.at_level(logging.INFO):
        assert cli.main(["cases", "--images", str(folder), "--dataset", "flare24", "--out", str(out)]) == 0
    assert f"1 left out, no image, by its suffix: {FILES[2]}" in caplog.text
    assert caplog.text.count("no format that is read") == 1  # a sidecar of each image is nothing to tell one by one
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


M = "derivatives/m/sub-01/anat/sub-01_"
NAMED_BY_BIDS = {
    "runs": (["run-1_T1w", "run-2_T1w"], {"run-1_dseg": "run-1_T1w", "run-2_desc-manual_dseg": "run-2_T1w"}),
    "one name begins the other": (["T1w", "acq-hr_T1w"], {"dseg": "T1w", "acq-hr_dseg": "acq-hr_T1w"}),
    "another space": (["T1w"], {"space-T1w_dseg": "T1w", "space-MNI152_dseg": ""}),
    "only another space": (["T1w"], {"T1w_space-MNI152_dseg": ""}),
    "another image": (["T1w"], {"T2w_dseg": "", "acq-hr_dseg": ""}),
    "two images": (["T1w", "T2w"], {"dseg": "", "T2w_dseg": "T2w"}),
}


@pytest.mark.parametrize("what", NAMED_BY_BIDS)
def test_a_label_map_is_of_the_image_whose_entities_it_has_or_is_told(tmp_path, caplog, what):
    images, labels = NAMED_BY_BIDS[what]
    files = [*(f"sub-01/anat/sub-01_{name}.nii.gz" for name in images), *(f"{M}{name}.nii.gz" for name in labels)]
    with caplog.at_level(logging.INFO):
        cases = make_table(collection(tmp_path / "d", files), None, "flare24", tmp_path / "c.csv")
    found = {case.label.rpartition("/sub-01_")[2]: case.case.removeprefix("sub-01_") for case in cases if case.label}
    assert {case.case.removeprefix("sub-01_") for case in cases} == set(images)
    assert found == {f"{label}.nii.gz": image for label, image in labels.items() if image}
    for label in (label for label, image in labels.items() if not image):
        assert f"{M}{label}.nii.gz" in caplog.text


def test_label_maps_that_lie_where_nobody_looks_are_told(tmp_path, caplog):
    strays = [
        f"derivatives/{place}_dseg.nii.gz"
        for place in ("sub-02/anat/sub-02", "m/sub-02/sub-02", "m/sub-02/ses-2/anat/sub-02")
    ]
    folder = collection(tmp_path / "d", [FILES[4], *strays])
    with caplog.at_level(logging.INFO):
        make_table(folder, None, "flare24", tmp_path / "c.csv")
    assert all(stray in caplog.text for stray in strays)
    assert "name them <image>_dseg, in the folder of the image below derivatives/<any>/" in caplog.text


def test_an_image_whose_label_map_cannot_be_read_is_lost(tmp_path, caplog):
    folder = collection(tmp_path / "d", [*FILES[:2], FILES[4]])
    label = folder / FILES[7]
    label.parent.mkdir(parents=True)
    label.symlink_to("/annex/gone.nii.gz")
    assert cli.main(["cases", "--images", str(folder), "--dataset", "flare24", "--out", str(tmp_path / "c.csv")]) == 1
    assert {case.case for case in load_cases(tmp_path / "c.csv")[0]} == {"sub-01_ses-1_T2w", "sub-02_T2w"}
    assert "a dead link" in caplog.text and FILES[7] in caplog.text


@pytest.mark.parametrize("place", ["d/sub-02", "d/sub-01/ses-2", "d/sub-03/ct", "derivatives/other/sub-03/ct"])
def test_a_folder_that_cannot_be_looked_into_is_lost_with_its_case(tmp_path, caplog, close, place):
    """Without its label map, a case would pass for an unlabeled one."""
    folder, lost = collection(tmp_path / "d"), []
    close(place)
    make_table(folder, None, "flare24", tmp_path / "c.csv", Options(), lost)
    assert len(load_cases(tmp_path / "c.csv")[0]) == 4
    assert [entry.path.match(place) for entry in lost] == [True] and "Permission denied" in caplog.text


def test_a_ct_among_mr_is_ct_and_who_says_the_modality_is_heard(tmp_path):
    folder = collection(tmp_path / "d", ["sub-01/anat/sub-01_CT.nii.gz", "sub-02/anat/T1w.nii.gz"])
    cases = make_table(folder, None, "flare24", tmp_path / "c.csv")
    assert [(case.modality, case.patient) for case in cases] == [("CT", "01"), ("MR", "02")]
    cases = make_table(folder, None, "flare24", tmp_path / "c.csv", Options(modality="CT", overwrite=True))
    assert [case.modality for case in cases] == ["CT", "CT"]


def test_names_without_subject_or_session_have_those_of_their_folders(tmp_path):
    images = [f"sub-0{subject}/ses-{session}/anat/{name}.nii.gz"
              for subject in (1, 2) for session in (1, 2) for name in (f"sub-0{subject}_T1w", "T2w")]  # fmt: skip
    labels = [f"derivatives/m/{images[0].replace('T1w', 'T1w_dseg')}",  # named as its image, and as BIDS wants it
              "derivatives/m/sub-01/ses-2/anat/sub-01_ses-2_T1w_dseg.nii.gz"]  # fmt: skip
    folder = collection(tmp_path / "d", [*images, *labels])
    assert cli.main(["cases", "--images", str(folder), "--dataset", "flare24", "--out", str(tmp_path / "c.csv")]) == 0
    cases = {case.case: case for case in load_cases(tmp_path / "c.csv")[0]}
    assert set(cases) == {f"sub-0{n}_ses-{s}_{w}" for n in (1, 2) for s in (1, 2) for w in ("T1w", "T2w")}
    assert {name: case.label.removeprefix(f"{folder}/") for name, case in cases.items() if case.label} == {
        "sub-01_ses-1_T1w": labels[0], "sub-01_ses-2_T1w": labels[1],
    }  # fmt: skip


def test_images_of_one_name_are_told_and_none_of_them_is_used(tmp_path, caplog):
    twice = ["sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-1/anat/sub-01_T1w.nii.gz"]
    moved = ["sub-02/anat/sub-03_T2w.nii.gz", "sub-03/anat/sub-03_T2w.nii.gz"]
    folder = collection(tmp_path / "d", [*twice, *moved, "sub-04/ct/sub-04_ct.nii.gz"])
    assert cli.main(["cases", "--images", str(folder), "--dataset", "flare24", "--out", str(tmp_path / "c.csv")]) == 1
    assert [case.case for case in load_cases(tmp_path / "c.csv")[0]] == ["sub-04_ct"]
    (line,) = (line for line in caplog.messages if "4 left out, images of one case" in line)
    assert all(file in line for file in (twice[0], moved[0]))


def test_what_is_missing_is_said_in_words(tmp_path):
    folder = collection(tmp_path / "d", ["sub-01/func/sub-01_bold.nii.gz"])
    with pytest.raises(UserError, match="--dataset: name what the label ids mean"):
        make_table(folder, None, None, tmp_path / "c.csv")
    with pytest.raises(UserError, match="a BIDS folder without an image"):
        make_table(folder, None, "flare24", tmp_path / "c.csv")
    with pytest.raises(UserError, match="leave out --labels"):
        make_table(folder, folder, "flare24", tmp_path / "c.csv")
