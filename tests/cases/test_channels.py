"""Images of several channels: from folders and lists to a case table, and what the survey says of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.errors import CaseError, UserError
from labelloop.cases.survey import survey_case
from labelloop.cases.table import Case, load_cases, write_cases
from labelloop.cli import main as cli
from labelloop.images.datasets import Dataset, load_dataset, read_dataset
from labelloop.images.nnunet_json import ids_beside
from labelloop.images.scan import read_surveyed
from labelloop.images.volume import Geometry, canonical, upright_volume, write
from labelloop.inference.locate import part_of
from labelloop.inference.reading import Image

SCHEME = load_classes("flare")
GRID = Geometry((12, 11, 10), (8.0, 8.0, 10.0), (-40.0, 20.0, 5.0))
LABELS = {"background": 0, "liver": 1}
PET = {"channel_names": {"1": "PET", "0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}


def save(path, seed, grid=GRID, ct=False):
    """Write an image of noise, as CT with air, fat and soft tissue; return its file."""
    rng = np.random.default_rng(seed)
    array = rng.integers(1, 500, grid.shape).astype(np.int16)
    if ct:
        array = rng.normal(-1000, 5, grid.shape).astype(np.int16)
        array[2:-2, 2:-2, 2:-2] = rng.normal(40, 10, array[2:-2, 2:-2, 2:-2].shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, array, grid)
    return path


def collection(folder, cases=("a", "b"), content=PET):
    """Write nnU-Net's data set folder of CT and PET."""
    for number, case in enumerate(cases):
        save(folder / "imagesTr" / f"{case}_0000.nii.gz", number, ct=True)
        save(folder / "imagesTr" / f"{case}_0001.nii.gz", 10 + number)
        label = np.zeros(GRID.shape, np.uint8)
        label[4:7, 4:7, 4:7] = 1
        (folder / "labelsTr").mkdir(exist_ok=True)
        write(folder / "labelsTr" / f"{case}.nii.gz", label, GRID)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def surveyed(case, dataset=None):
    return survey_case(case, dataset or load_dataset(case.dataset, SCHEME), SCHEME)


@pytest.fixture
def table(tmp_path):
    """The table that is made of a data set folder, and its cases."""
    out = tmp_path / "cases.csv"
    assert cli.main(["cases", "--images", str(collection(tmp_path / "Dataset001_Pet")), "--out", str(out)]) == 0
    return out


def test_a_data_set_folder_of_several_channels_becomes_a_table(table):
    cases, rejected = load_cases(table)
    assert rejected == [] and [case.modality for case in cases] == ["CT", "CT"]
    images = table.parent / "Dataset001_Pet" / "imagesTr"
    assert [case.images for case in cases] == [
        tuple(str(images / f"{case}_000{channel}.nii.gz") for channel in range(2)) for case in "ab"
    ]
    assert read_dataset(table.parent / "Dataset001_Pet.yaml").channels == ("CT", "PET")
    for case in cases:
        found = surveyed(case)
        assert found.usable and found.quarantine == (), found.quarantine
        assert found.states["liver"] == "present"


def test_a_data_set_file_that_is_kept_with_other_channels_is_warned_of(table, caplog):
    folder = table.parent / "Dataset001_Pet"
    (folder / "dataset.json").write_text(json.dumps(PET | {"channel_names": {"0": "PET", "1": "CT"}}))
    assert cli.main(["cases", "--images", str(folder), "--out", str(table), "--overwrite"]) == 0
    assert "Dataset001_Pet.yaml: says other things of channels than" in caplog.text


def test_a_datalist_names_the_channels_of_an_image_in_a_list(tmp_path):
    folder = collection(tmp_path / "d")
    lists = {"training": [{"image": [f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii.gz"],
                           "label": f"labelsTr/{case}.nii.gz"} for case in "ab"]}  # fmt: skip
    (folder / "list.json").write_text(json.dumps(PET | lists))
    assert cli.main(["cases", "--images", str(folder / "list.json"), "--out", str(tmp_path / "c.csv")]) == 0
    cases, rejected = load_cases(tmp_path / "c.csv")
    assert rejected == [] and [(case.case, len(case.images)) for case in cases] == [("a", 2), ("b", 2)]


def test_a_case_without_one_of_the_channels_is_told_and_lost(tmp_path, caplog, capsys):
    folder = collection(tmp_path / "d")
    (folder / "imagesTr" / "b_0001.nii.gz").unlink()
    asked = ["cases", "--images", str(folder), "--out", str(tmp_path / "c.csv")]
    assert cli.main(asked) == 1
    assert [case.case for case in load_cases(tmp_path / "c.csv")[0]] == ["a"]
    assert "b_0000.nii.gz" in caplog.text and "1 file for 2 channels of data set d" in caplog.text
    flare = ["--images", str(folder / "imagesTr"), "--dataset", "flare22", "--out", str(tmp_path / "f.csv")]
    (folder / "imagesTr" / "b_0000.nii.gz").unlink()
    assert cli.main(["cases", *flare]) == 2
    assert "2 files of each image, e.g. of a, for 1 channel of data set" in capsys.readouterr().err


def test_no_channel_is_taken_for_that_whose_file_is_missing(tmp_path, caplog):
    three = {"channel_names": {"0": "CT", "1": "PET", "2": "T2"}, "labels": LABELS, "file_ending": ".nii.gz"}
    folder = collection(tmp_path / "d", content=three)
    for case, number in (("a", 2), ("b", 3)):  # _0002 of b is missing; what is _0003?
        save(folder / "imagesTr" / f"{case}_{number:04d}.nii.gz", 20)
    assert cli.main(["cases", "--images", str(folder), "--out", str(tmp_path / "c.csv")]) == 1
    assert [case.case for case in load_cases(tmp_path / "c.csv")[0]] == ["a"]
    assert "2 files for 3 channels" in caplog.text and "b_0003.nii.gz" in caplog.text


def test_rows_are_held_against_the_channels_of_their_data_set(table):
    made = load_cases(table)[0]
    first, second = made[0].images
    changes = {
        "one": {"image": first.replace("a_", "e_")},
        "as_mr": {"image": f"{first};{second}".replace("a_", "c_"), "modality": "MR"},
        "shares": {"image": f"{first};{second}".replace("a_0000", "d_0000"), "role": "test"},
    }
    rows = [made[0].model_copy(update={"case": case, "patient": case, **given}) for case, given in changes.items()]
    write_cases(table, [*made, *rows])
    assert "Dataset001_Pet/imagesTr/a_0000.nii.gz;Dataset001_Pet/imagesTr/a_0001.nii.gz" in table.read_text()
    cases, rejected = load_cases(table)
    errors = {row["case"]: (row["code"], row["found"]) for row in rejected if row["severity"] == "error"}
    assert errors["one"][0] == "channels_differ" and "1 image file" in errors["one"][1]
    assert "2 channels (CT, PET)" in errors["one"][1]
    assert errors["as_mr"][0] == "channel_modality"
    assert errors["a"][0] == "image_in_train_and_test" and "a_0001.nii.gz" in errors["a"][1]  # by its second channel
    assert [case.case for case in cases] == ["b", "shares"]


MOVED = {
    "size": {"size": (12, 11, 9)},
    "spacing": {"spacing": (8.0, 8.0, 9.0)},
    "origin": {"origin": (-40.0, 24.0, 5.0)},
    "direction": {"direction": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)},
}


@pytest.mark.parametrize("what", MOVED)
def test_a_channel_on_another_grid_sets_its_case_aside(tmp_path, what):
    first, other = save(tmp_path / "a_0000.nii.gz", 0, ct=True), tmp_path / "a_0001.nii.gz"
    save(other, 1, replace(GRID, **MOVED[what]))
    dataset = Dataset(name="pet", modality="CT", channels=("CT", "PET"), labels={}, annotated=())
    found = surveyed(Case(case="a", image=f"{first};{other}", dataset="pet", modality="CT"), dataset)
    assert not found.usable
    (row,) = (row for row in found.quarantine if row["severity"] == "error")
    assert row["code"] == f"channel_{what}_differs" and row["file"] == str(other)
    assert what in row["found"] and "resample" in row["action"]
    for read in (lambda: Image(first, more=[other]).volume("CT"), lambda: read_surveyed(first, other)):
        with pytest.raises(CaseError, match=f"channel_{what}_differs"):
            read()


def test_each_channel_is_checked_as_what_it_is(tmp_path):
    first, other = save(tmp_path / "a_0000.nii.gz", 0, ct=True), save(tmp_path / "a_0001.nii.gz", 1)
    both = {"case": "a", "image": f"{first};{other}", "dataset": "two", "modality": "CT"}
    for name, codes in (("PET", []), ("CT", ["image_not_hu"])):
        dataset = Dataset(name="two", modality="CT", channels=("CT", name), labels={}, annotated=())
        assert [row["code"] for row in surveyed(Case(**both), dataset).quarantine] == codes
    dataset = Dataset(name="two", modality="CT", channels=("CT", "PET"), labels={}, annotated=())
    other.write_bytes(first.read_bytes())
    (row,) = surveyed(Case(**both), dataset).quarantine
    assert (row["code"], row["file"], row["severity"]) == ("channel_repeated", str(other), "warning")


def test_a_constant_channel_is_told_and_a_constant_first_one_sets_its_case_aside(tmp_path, caplog):
    first, other = save(tmp_path / "a_0000.nii.gz", 0, ct=True), tmp_path / "a_0001.nii.gz"
    both = {"case": "a", "image": f"{first};{other}", "dataset": "two", "modality": "CT"}
    for name, value in (("PET", 0), ("CT", 40)):  # no uptake; a phase that was not taken
        write(other, np.full(GRID.shape, value, np.int16), GRID)
        dataset = Dataset(name="two", modality="CT", channels=("CT", name), labels={}, annotated=())
        found = surveyed(Case(**both), dataset)
        assert found.usable
        (row,) = found.quarantine
        assert (row["code"], row["file"], row["severity"]) == ("channel_constant", str(other), "warning")
    assert len(Image(first, more=[other]).volume("CT").channels) == 2
    assert f"{other}: channel_constant: every value is 40" in caplog.text
    write(first, np.full(GRID.shape, 7, np.int16), GRID)
    found = surveyed(Case(**both), dataset)
    assert not found.usable and [row["code"] for row in found.quarantine] == ["image_constant", "channel_constant"]
    with pytest.raises(CaseError, match="image_constant"):
        Image(first, more=[other]).volume("CT")


def test_every_channel_counts_in_the_fingerprint_and_one_alone_as_before(tmp_path):
    first, other = save(tmp_path / "a.nii.gz", 0), save(tmp_path / "b.nii.gz", 1)
    before = Image(first, more=[other]).sha256()
    assert Image(first).sha256() != before != Image(other, more=[first]).sha256()
    save(other, 2)
    assert Image(first, more=[other]).sha256() != before


def test_all_channels_are_turned_and_cut_alike(tmp_path):
    grid = replace(GRID, direction=(0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    files = [save(tmp_path / f"a_{number:04d}.nii.gz", number, grid) for number in range(3)]
    whole = read_surveyed(*files)
    box = ((2, 6), (1, 9), (3, 8))
    changed = part_of(canonical(upright_volume(whole)), box)
    assert len(changed.channels) == 3
    for number, file in enumerate(files):
        alone = part_of(canonical(upright_volume(read_surveyed(file))), box)
        np.testing.assert_array_equal(changed.channels[number], alone.array)
        assert changed.geometry == alone.geometry


def test_a_name_that_holds_the_separator_is_refused(tmp_path, capsys):
    save(tmp_path / "i;j" / "a.nii.gz", 0)
    asked = ["cases", "--images", str(tmp_path / "i;j"), "--dataset", "flare22", "--out", str(tmp_path / "c.csv")]
    assert cli.main(asked) == 2
    assert "a name with ';'" in capsys.readouterr().err and not (tmp_path / "c.csv").exists()


def test_a_data_set_says_of_one_channel_nothing():
    one = {"name": "x", "modality": "CT", "labels": {}, "annotated": ()}
    with pytest.raises(ValueError, match="names one channel"):
        Dataset(**one, channels=("CT",))
    with pytest.raises(ValueError, match="the first channel is T1; expected MR"):
        Dataset(**one, channels=("T1", "T2"))
    assert "channels" not in Dataset(**one).content  # so that no case of one channel is surveyed anew


def test_label_maps_are_read_whatever_the_file_beside_them_calls_the_channels(tmp_path):
    for names in ({str(number): f"b{number}" for number in range(12)}, {"0": "T1", "1": ""}):
        folder = collection(tmp_path / "d", content={"channel_names": names, "labels": LABELS})
        dataset, _ = ids_beside(folder / "labelsTr", None, SCHEME)
        assert dataset is not None and dataset.named == {1: "liver"} and dataset.channels == ()


def test_what_no_data_set_knows_is_refused_with_what_to_do(tmp_path):
    from labelloop.cases.make_table import make_table

    folder = collection(tmp_path / "d", content={"channel_names": {"0": "CT"}, "labels": LABELS})
    with pytest.raises(
        UserError, match=r"2 files of each image, e\.g\. of a, for 1 channel.*name them in the data set"
    ):
        make_table(folder, None, None, tmp_path / "c.csv")


def test_channels_of_one_patient_on_two_grids_are_one_case_where_the_channels_are_known(tmp_path):
    """Alone in a folder, such files could be two scans; a data set of two channels says that they are none."""
    folder = collection(tmp_path / "d", cases=("a",))
    save(folder / "imagesTs" / "p_0000.nii.gz", 5, ct=True)
    save(folder / "imagesTs" / "p_0001.nii.gz", 6, replace(GRID, size=(6, 5, 5), spacing=(16.0, 16.0, 20.0)))
    for images, dataset in ((folder, None), (folder / "imagesTs", tmp_path / "d.yaml")):
        asked = ["cases", "--images", str(images), "--out", str(tmp_path / "c.csv"), "--overwrite"]
        assert cli.main(asked + (["--dataset", str(dataset)] if dataset else [])) == 0
        case = load_cases(tmp_path / "c.csv")[0][-1]
        assert (case.case, [Path(image).name for image in case.images]) == ("p", ["p_0000.nii.gz", "p_0001.nii.gz"])
    (row,) = surveyed(case).quarantine
    assert row["severity"] == "error" and row["code"] == "channel_size_differs"
    assert "channel against first channel (p_0000.nii.gz): size (6, 5, 5) against (12, 11, 10), spacing" in row["found"]
