"""Folders in nnU-Net's and FLARE's naming: paired without guessing, written as a case table."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from labelloop.base.errors import UserError
from labelloop.cases.folders import pair_folders
from labelloop.cases.make_table import Options, make_table
from labelloop.cases.table import load_cases, write_cases


def touch(folder, *names: str):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_folders_in_nnunet_naming_are_paired(tmp_path):
    images = touch(
        tmp_path / "imagesTr", "FLARE_0001_0000.nii.gz", "FLARE_0002_0000.nii.gz", "b.nrrd", "notes.txt", ".x.nii"
    )
    labels = touch(tmp_path / "labelsTr", "FLARE_0001.nii.gz", "b.mha")
    pairs = pair_folders(images, labels)
    assert {c: (i.name, label and label.name) for c, ((i,), label) in pairs.items()} == {
        "FLARE_0001": ("FLARE_0001_0000.nii.gz", "FLARE_0001.nii.gz"),
        "FLARE_0002": ("FLARE_0002_0000.nii.gz", None),
        "b": ("b.nrrd", "b.mha"),
    }
    assert pair_folders(images)["b"][1] is None


def test_images_and_labels_in_one_folder_are_paired(tmp_path):
    both = touch(
        tmp_path / "x", *(f"FLARE_{i:04d}{s}.nii.gz" for i in range(3) for s in ("", "_0000")), "u_0000.nii.gz"
    )
    pairs = pair_folders(both, both)
    assert {c: (i.name, label and label.name) for c, ((i,), label) in pairs.items()} == {
        **{f"FLARE_{i:04d}": (f"FLARE_{i:04d}_0000.nii.gz", f"FLARE_{i:04d}.nii.gz") for i in range(3)},
        "u": ("u_0000.nii.gz", None),
    }
    with pytest.raises(UserError, match="labels' folder too"):
        pair_folders(both)
    touch(both, "stray.nii.gz")
    with pytest.raises(UserError, match="could be either"):
        pair_folders(both, both)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["a_0000.nii.gz", "a_0000.nrrd"], "keep one"),
        (["notes.txt"], "no image"),
    ],
)
def test_folders_that_cannot_be_paired_are_refused_in_words(tmp_path, files, says):
    with pytest.raises(UserError, match=says):
        pair_folders(touch(tmp_path / "x", *files))


def test_labels_that_are_named_otherwise_are_refused_and_single_ones_left_out(tmp_path):
    images = touch(tmp_path / "i", "img0001.nii.gz", "img0002.nii.gz")
    with pytest.raises(UserError, match="no label has an image"):
        pair_folders(images, touch(tmp_path / "l", "label0001.nii.gz"))
    pairs = pair_folders(images, touch(tmp_path / "l", "img0001.nii.gz"))
    assert [label is not None for _, label in pairs.values()] == [True, False]


def test_a_table_is_made_from_folders(tmp_path):
    images = touch(tmp_path / "imagesTr", *(f"c{i:02d}_0000.nii.gz" for i in range(10)))
    labels = touch(tmp_path / "labelsTr", *(f"c{i:02d}.nii.gz" for i in range(8)))
    out = tmp_path / "cases.csv"
    made = make_table(images, labels, "btcv", out, Options(test_fraction=0.25, seed=3, sequence="portal"))
    read, rejected = load_cases(out)
    assert rejected == []
    assert [(c.case, c.label, c.role) for c in read] == [(c.case, c.label, c.role) for c in made]
    tested = [c for c in read if c.role == "test"]
    assert len(tested) == 2 and all(c.label for c in tested)  # drawn from the labeled ones
    assert {c.sequence for c in read} == {"portal"} and {c.modality for c in read} == {"CT"}
    with pytest.raises(UserError, match="exists"):
        make_table(images, labels, "btcv", out)
    again = make_table(images, labels, "btcv", out, Options(test_fraction=0.25, seed=3, overwrite=True))
    assert [c.role for c in again] == [c.role for c in made]
    out.unlink()
    other = make_table(images, labels, "btcv", out, Options(test_fraction=0.25, seed=4))
    assert [c.role for c in other] != [c.role for c in made]


def of_role(cases, role: str = "test") -> set[str]:
    return {case.case for case in cases if case.role == role}


@pytest.fixture
def scans(tmp_path):
    """Return what adds labeled scans to folders, and the arguments of `make_table` for these."""

    def add(*names: str):
        images = touch(tmp_path / "i", *(f"{name}_0000.nii.gz" for name in names))
        return images, touch(tmp_path / "l", *(f"{name}.nii.gz" for name in names)), "btcv"

    return add


@pytest.mark.parametrize("seed", range(4))
def test_scans_that_are_added_take_one_test_case_away_at_most(scans, tmp_path, seed):
    drawn = Options(test_fraction=0.2, seed=seed)
    before = of_role(make_table(*scans(*(f"c{i:02d}" for i in range(50))), tmp_path / "before.csv", drawn))
    for number, name in enumerate(("a", "c07b", "z")):
        after = of_role(make_table(*scans(name), tmp_path / f"after{number}.csv", drawn))
        assert len(before & after) >= len(before) - 1 >= 9
        before = after


def test_test_cases_stay_test_cases_where_a_table_is_written_over(scans, tmp_path):
    out, again = tmp_path / "c.csv", Options(test_fraction=0.5, seed=1, overwrite=True)
    before = of_role(make_table(*scans(*"abcdef"), out, again))
    after = of_role(make_table(*scans(*"ghijkl"), out, replace(again, seed=2)))
    assert len(before) == 3 and len(after) == 6 and before < after
    assert of_role(make_table(*scans("m"), out, Options(overwrite=True))) == after  # none are drawn


def test_who_was_taken_out_of_the_test_cases_is_not_drawn_again_while_others_are_new(scans, tmp_path):
    out, again = tmp_path / "c.csv", Options(test_fraction=0.5, seed=1, overwrite=True)
    made = make_table(*scans(*"abcdef"), out, again)
    freed = min(of_role(made))
    write_cases(out, [case.model_copy(update={"role": "train"}) if case.case == freed else case for case in made])
    assert of_role(make_table(*scans(*"ghijkl"), out, again)).isdisjoint(of_role(made, "train") | {freed})


def test_patients_that_were_written_into_a_table_are_drawn_as_a_whole(scans, tmp_path):
    out = tmp_path / "c.csv"
    names = [f"{patient}{scan}" for patient in "pqrstuvw" for scan in "123"]
    made = make_table(*scans(*names), out)
    write_cases(out, [case.model_copy(update={"patient": case.case[0]}) for case in made])
    for seed in range(5):
        drawn = make_table(*scans(), out, Options(test_fraction=0.25, seed=seed, overwrite=True))
        tested, trained = of_role(drawn), of_role(drawn, "train")
        assert len(tested) == 6 and {name[0] for name in tested}.isdisjoint(name[0] for name in trained)


def test_a_table_that_a_spreadsheet_saved_is_written_over_and_others_are_not(scans, tmp_path):
    out = tmp_path / "c.csv"
    make_table(*scans("a", "b"), out)
    saved = "\ufeffcase;image;dataset;patient\r\na;i/a_0000.nii.gz;btcv;p1\r\nb;i/b_0000.nii.gz;btcv;\r\n"
    out.write_text(saved, encoding="utf-8")
    assert [case.patient for case in make_table(*scans(), out, Options(overwrite=True))] == ["p1", ""]
    for other in (saved.replace("patient", "notes"), saved.replace("dataset", "label"), "no table"):
        out.write_text(other, encoding="utf-8")
        with pytest.raises(UserError, match="labelloop did not write it"):
            make_table(*scans(), out, Options(overwrite=True))
        assert out.read_text(encoding="utf-8") == other.replace("\r\n", "\n")


EDITS = {
    "a": {"patient": "p1", "annotated": "liver;spleen", "surgery": "spleen"},
    "b": {"role": "test", "modality": "MR", "sequence": "t1w"},
}


def test_what_people_wrote_into_a_table_stays_and_what_changes_is_told(scans, tmp_path, caplog):
    out = tmp_path / "c.csv"
    made = make_table(*scans("a", "b", "c"), out)
    write_cases(out, [case.model_copy(update=EDITS.get(case.case, {})) for case in made])
    with caplog.at_level(logging.INFO):
        cases = {case.case: case for case in make_table(*scans("d"), out, Options(overwrite=True))}
    plain = {case.case: case for case in make_table(*scans(), tmp_path / "plain.csv")}
    assert cases == {name: case.model_copy(update=EDITS.get(name, {})) for name, case in plain.items()}
    for column in ("patient", "annotated", "surgery", "role", "modality", "sequence"):
        assert any(f"`{column}` stays as this table had it for 1 case" in line for line in caplog.messages)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    for folder in ("i", "l"):
        for file in (tmp_path / folder).glob("c*"):
            file.unlink()
    images, labels, _ = scans()
    with caplog.at_level(logging.INFO):
        cases = {case.case: case for case in make_table(images, labels, "flare22", out,
                                                        Options(modality="CT", overwrite=True))}  # fmt: skip
    assert (cases["b"].modality, cases["b"].sequence) == ("CT", "t1w")  # what is asked for goes before the table
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.partition(": ")[2] for line in told] == [
        "`dataset` changes for 3 cases: a (was btcv), b (was btcv), d (was btcv)",
        "`modality` changes for 1 case: b (was MR)",
        "without 1 case that this table had, 0 of them for testing: c",
    ]


def test_test_cases_can_come_from_folders_of_their_own(tmp_path):
    images, labels = touch(tmp_path / "i", "a_0000.nii.gz"), touch(tmp_path / "l", "a.nii.gz")
    test_images = touch(tmp_path / "ti", "b_0000.nii.gz")
    test_labels = touch(tmp_path / "tl", "b.nii.gz")
    out = tmp_path / "cases.csv"
    make_table(images, labels, "btcv", out, Options(test_images=test_images, test_labels=test_labels))
    assert [(c.case, c.role, bool(c.label)) for c in load_cases(out)[0]] == [("a", "train", True), ("b", "test", True)]
    touch(test_images, "a_0000.nii.gz")
    with pytest.raises(UserError, match="train and in the test folder"):
        make_table(images, labels, "btcv", out, Options(test_images=test_images, overwrite=True))


def test_contradicting_options_are_all_named(tmp_path):
    images = touch(tmp_path / "i", "a_0000.nii.gz")
    with pytest.raises(UserError) as caught:
        options = Options(role="x", modality="US", test_images=images, test_fraction=0.5)
        make_table(images, None, "btcv", tmp_path / "c.csv", options)
    assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(UserError, match="did you mean 'btcv'"):
        make_table(images, None, "btvc", tmp_path / "c.csv")
    with pytest.raises(UserError, match="too few"):
        make_table(images, None, "btcv", tmp_path / "c.csv", Options(test_fraction=0.5))
    assert not (tmp_path / "c.csv").exists()


def test_files_of_any_name_become_case_ids(tmp_path, caplog):
    """As folders of DICOM do: nobody has to rename a collection."""
    images = touch(tmp_path / "i", "Pat 1_0000.nii.gz", "Müller_0000.nii.gz", "Möller_0000.nii.gz", "b_0000.nii.gz")
    labels = touch(tmp_path / "l", "Pat 1.nii.gz", "Müller.nii.gz")
    with caplog.at_level(logging.INFO):
        made = make_table(images, labels, "btcv", tmp_path / "c.csv", Options(test_fraction=0.5))
    read, rejected = load_cases(tmp_path / "c.csv")
    assert rejected == [] and [case.case for case in read] == [case.case for case in made] and len(read) == 4
    stems = {case.case: (Path(case.image).name, Path(case.label).name) for case in read}
    assert stems["Pat_1"] == ("Pat 1_0000.nii.gz", "Pat 1.nii.gz") and "Pat 1 is Pat_1" in caplog.text
    assert sorted(stems)[0].startswith("M_ller_") and sorted(stems)[1].startswith("M_ller_")
    assert [bool(case.label) for case in read if case.role == "test"] == [True]
    touch(tmp_path / "i", "Pat_1_0000.nii.gz")
    with pytest.raises(UserError, match="'Pat_1': 2 images are called so"):
        make_table(images, labels, "btcv", tmp_path / "d.csv")


def test_annotated_classes_can_be_taken_from_the_ids_that_occur(tmp_path):
    from bad_inputs import ct_values, label_values, save

    save(tmp_path / "x" / "a_0000.nii.gz", ct_values())
    save(tmp_path / "x" / "a.nii.gz", label_values(14, 1, 3))
    save(tmp_path / "x" / "b_0000.nii.gz", ct_values())
    (tmp_path / "x" / "b.nii.gz").write_bytes(b"no image")
    for case, *ids in (
        ("empty",),
        ("ignored", 3),
        ("null", 2),
    ):  # no class of ours: not "as the data set file says", all absent
        save(tmp_path / "x" / f"{case}_0000.nii.gz", ct_values())
        save(tmp_path / "x" / f"{case}.nii.gz", label_values(*ids))
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, modality: CT, source: here, labels: {1: liver, 2: null, 3: ignore, 14: tumor}}"
    )
    mine = str(tmp_path / "mine.yaml")
    by_ids = Options(annotated_from_ids=True)
    cases = make_table(tmp_path / "x", tmp_path / "x", mine, tmp_path / "c.csv", by_ids)
    assert [c.annotated for c in cases] == ["liver;tumor", "none", "none", "none", "none"]
    with pytest.raises(UserError, match="1 labeled case: too few"):  # the others have nothing to test
        make_table(tmp_path / "x", tmp_path / "x", mine, tmp_path / "d.csv", replace(by_ids, test_fraction=0.5))
