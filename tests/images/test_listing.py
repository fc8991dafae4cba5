"""Folders: the same files are used by every command, and none is left out without a word."""

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from labelloop.base.errors import CaseError, UserError
from labelloop.base.tables import read_table
from labelloop.cases.folders import pair_folders
from labelloop.cases.make_table import make_table
from labelloop.cli import main as cli
from labelloop.images.listing import CAPITALS, EXTENSIONS, image_cases, list_folder, list_labels
from labelloop.images.scan import read_image, read_label
from labelloop.images.volume import Geometry, read_geometry, write
from labelloop.inference.find_cases import find_cases
from labelloop.labels.folder import check_folder
from labelloop.metrics.evaluate import evaluate_folders

GRID = Geometry((8, 8, 6), (4.0, 4.0, 5.0))
BAD_NAME = os.fsdecode(b"bad\xff_0000.nii.gz")


def touch(folder, *names: str):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def volumes(folder, *names: str, grid=GRID, ids=(1,)):
    labels = np.zeros(grid.shape, np.uint8)
    for i, number in enumerate(ids):
        labels[1:5, 2:6, 1 + i] = number
    for name in names:
        write(folder / name, labels, grid)
    return folder


def spoil(folder, *names: str):
    """Put there what bears a volume's name and cannot be read: a dead link, a folder, a name that is not UTF-8."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = (lambda p: p.symlink_to("/annex/objects/gone.nii.gz"), Path.mkdir, lambda p: p.write_bytes(b"x"))
    for make, name in zip(kinds, names, strict=False):
        make(folder / name)
    return folder


# ----------------------------------------------------------------------------------------------- what is left out


def test_what_is_used_and_what_is_not_and_why(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii", "B.NII", "c.mha", "d.nrrd", ".hidden.nii.gz", "notes.txt", "f.mgz")
    touch(tmp_path, "e.mhd", "e.zraw", "g.nhdr", "g.raw.gz", "lonely.raw")
    (tmp_path / "e.mhd").write_text("ElementDataFile = e.zraw\n")
    (tmp_path / "g.nhdr").write_text("NRRD0004\ndata file: g.raw.gz\n")
    touch(tmp_path, "._a.nii.gz", ".DS_Store", "Thumbs.db")  # passed over in silence
    (tmp_path / "sub").mkdir()
    spoil(tmp_path, "x.nii.gz", "y.nii.gz", BAD_NAME)
    listing = list_folder(tmp_path)
    assert list(listing.volumes) == ["a", "b", "c", "d", "e", "g"]
    words = {entry.path.name: (entry.reason.split()[1], entry.lost) for entry in listing.left_out}
    assert words == {
        ".hidden.nii.gz": ("hidden", False), "notes.txt": ("format", False), "f.mgz": ("format", False),
        "lonely.raw": ("format", False), "sub": ("folder", False), "x.nii.gz": ("dead", True),
        "y.nii.gz": ("folder", True), BAD_NAME: ("name", True), "B.NII": ("extension", True),
    }  # fmt: skip


def doors(folder, out):
    """Each command on a folder; returns {door: exit code}."""
    out.mkdir(exist_ok=True)
    lost: list = []
    return {
        "cases": cli.main(["cases", "--images", str(folder), "--dataset", "flare22", "--out", str(out / "c.csv")]),
        "evaluate": evaluate_folders(folder, folder, "flare", "corrected", out / "s.csv"),
        "check": check_folder(folder, "flare", out / "v.csv"),
        "infer": len(find_cases(folder, lost=lost)) and len(lost),
    }


def test_every_door_tells_what_it_leaves_out_and_fails_by_its_exit_code(tmp_path, caplog):
    folder = spoil(volumes(tmp_path / "in", "a.nii.gz", "b.nii.gz"), "c.nii.gz", "d.nii.gz", BAD_NAME)
    with caplog.at_level(logging.INFO):
        codes = doors(folder, tmp_path / "out")
    assert all(codes.values())
    for words in ("a dead link", "named like a file: move the file out of it: d.nii.gz", r"UTF-8: rename it: bad\xff"):
        assert sum(words in line and "1 left out" in line for line in caplog.messages) == 5  # evaluate has two folders
    assert sum(line.endswith(": 2 images") for line in caplog.messages) == 2
    assert sum(line.endswith(": 2 label maps") for line in caplog.messages) == 3


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_door_reads_the_same_formats(tmp_path, extension, caplog):
    image = sitk.ReadImage(str(volumes(tmp_path, "a.nii") / "a.nii"))
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    (tmp_path / "in").mkdir()
    sitk.WriteImage(image, str(tmp_path / "in" / f"a{extension}"))  # two files of .mhd and .nhdr
    with caplog.at_level(logging.INFO):
        assert doors(tmp_path / "in", tmp_path / "out") == {"cases": 0, "evaluate": 0, "check": 0, "infer": 0}
    assert not any("left out" in line for line in caplog.messages)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_extensions_in_capitals_are_read_by_no_door_and_told_by_all(tmp_path, extension, caplog, capsys):
    """ITK reads some of them and not others."""
    folder = volumes(tmp_path / "in", "a.nii.gz")
    image = sitk.ReadImage(str(folder / "a.nii.gz"))
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    sitk.WriteImage(image, str(folder / f"b{extension}"))
    (folder / f"b{extension}").rename(folder / f"b{extension.upper()}")
    with caplog.at_level(logging.INFO):
        codes = doors(folder, tmp_path / "out")
    assert all(codes.values())
    words = f"1 left out, {CAPITALS}: b{extension.upper()}"
    assert sum(words in line for line in caplog.messages) == 5
    for read in (read_label, lambda p: read_image(p, "CT")):
        with pytest.raises(CaseError, match=r"_not_an_image: .*in capital letters"):
            read(folder / f"b{extension.upper()}")


def test_folders_of_which_nothing_can_be_used_fail_with_what_lies_there(tmp_path):
    for number, spoiled in enumerate(("a.nii.gz", "notes.txt")):
        folder = tmp_path / str(number)
        spoil(folder, spoiled) if number == 0 else touch(folder, spoiled)
        for call in (list_labels, find_cases, pair_folders):
            with pytest.raises(UserError, match=rf"1 left out.*{spoiled}"):
                call(folder)


def test_a_folder_of_a_case_that_cannot_be_looked_into_is_lost(tmp_path, close):
    for case in "abc":
        touch(tmp_path / "i" / case, "ct.nii.gz")
    close("b")
    for call in (find_cases, pair_folders):
        lost: list = []
        found = call(tmp_path / "i", lost=lost)
        assert [getattr(case, "case", case) for case in found] == ["a", "c"]
        assert [(entry.path.name, entry.reason.endswith("Permission denied")) for entry in lost] == [("b", True)]
    for call in (find_cases, pair_folders):
        with pytest.raises(UserError, match=r"cannot be looked into: Permission denied: b"):
            call(touch(tmp_path / "only" / "b").parent)


def test_a_closed_folder_at_the_root_of_a_disk_is_no_case(tmp_path, close):
    folder = volumes(tmp_path / "i" / "a", "a.nii.gz", ids=(1, 2)).parent
    (folder / "lost+found").mkdir()
    close("lost+found")
    out = tmp_path / "c.csv"
    assert cli.main(["cases", "--images", str(folder), "--dataset", "btcv", "--out", str(out)]) == 0
    lost: list = []
    assert [case.case for case in find_cases(folder, lost=lost)] == ["a"] and lost == []


def test_images_whose_names_differ_in_capitals_alone_are_told(tmp_path, caplog):
    assert len(find_cases(touch(tmp_path, "P1_0000.nii.gz", "p1.nii.gz", "p2.nii.gz"))) == 3
    assert "P1 and p1: names that differ in capitals alone" in caplog.text and "p2" not in caplog.text


def test_a_case_whose_label_cannot_be_read_is_no_unlabeled_case(tmp_path, caplog):
    images = touch(tmp_path / "i", "a_0000.nii.gz", "b_0000.nii.gz", "c_0000.nii.gz")
    labels = spoil(touch(tmp_path / "l", "a.nii.gz"), "b.nii.gz")
    lost: list = []
    pairs = pair_folders(images, labels, lost)
    assert list(pairs) == ["a", "c"] and [entry.case for entry in lost] == ["b"]
    assert any("their label cannot be read: b" in line for line in caplog.messages)
    code = cli.main(["cases", "--images", str(images), "--labels", str(labels), "--dataset", "btcv", "--out",
                     str(tmp_path / "c.csv")])  # fmt: skip
    assert code == 1 and list(read_table(tmp_path / "c.csv", "cases")["case"]) == ["a", "c"]


# -------------------------------------------------------------------------------------------- other people's layouts


def test_totalsegmentators_folders_are_recognized(tmp_path):
    images = touch(tmp_path / "i", "s0000.nii.gz")
    touch(tmp_path / "l" / "s0000", "ct.nii.gz")  # as AbdomenAtlas has it
    for organ in ("liver", "spleen"):
        touch(tmp_path / "l" / "s0000" / "segmentations", f"{organ}.nii.gz")
        touch(tmp_path / "flat" / "s0000", f"{organ}.nii.gz")
    for labels in ("l", "flat"):
        with pytest.raises(UserError, match=r"liver\.nii\.gz\), as TotalSegmentator"):
            make_table(images, tmp_path / labels, "totalsegmentator", tmp_path / "c.csv")
    assert not (tmp_path / "c.csv").exists()


def test_folders_of_cases_and_of_dicom_are_recognized(tmp_path):
    touch(tmp_path / "cases" / "s0000", "ct.nii.gz")
    assert [(case, image.name) for case, ((image,), _) in pair_folders(tmp_path / "cases").items()] == [
        ("s0000", "ct.nii.gz")
    ]
    with pytest.raises(UserError, match=r"a folder a case \(s0000/ct\.nii\.gz\)"):
        check_folder(tmp_path / "cases", "flare", tmp_path / "v.csv")
    touch(tmp_path / "dicom" / "p", "1.dcm")
    (tmp_path / "dicom" / "p" / "1.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(UserError, match="holds DICOM files"):
        pair_folders(tmp_path / "dicom")


def test_folders_of_volumes_of_many_cases_are_not_taken_for_organs(tmp_path):
    """nnU-Net's folders, one too high: neither a file an organ nor a folder a case."""
    for folder, channel in (("imagesTr", "_0000"), ("labelsTr", "")):
        touch(tmp_path / "raw" / folder, *(f"case_{i}{channel}.nii.gz" for i in range(3)))
    for call in (list_labels, find_cases, pair_folders):
        with pytest.raises(UserError, match=r"2 folders in it with volumes \(imagesTr/case_0_0000\.nii\.gz\)") as said:
            call(tmp_path / "raw")
        assert "organ" not in str(said.value) and "a folder a case" not in str(said.value)


def test_a_folder_named_for_labels_must_hold_some(tmp_path):
    images = touch(tmp_path / "i", "a_0000.nii.gz")
    for labels in (images, touch(tmp_path / "l")):
        with pytest.raises(UserError, match="label"):
            pair_folders(images, labels)


# ------------------------------------------------------------------------------------------------------ names of cases


def test_ids_that_end_in_0000_are_scored_and_checked(tmp_path, capsys):
    names = [f"case_{i:04d}.nii.gz" for i in range(3)]
    truth = volumes(tmp_path / "truth", *names)
    prediction = volumes(tmp_path / "prediction", *names[1:])
    volumes(prediction, names[0], ids=())
    assert evaluate_folders(truth, prediction, "flare", "corrected", tmp_path / "scores.csv") == 0
    assert sorted(set(read_table(tmp_path / "scores.csv", "scores")["case"])) == ["case_0000", "case_0001", "case_0002"]
    assert "liver                      3     0   66.67" in capsys.readouterr().out
    assert check_folder(truth, "flare", tmp_path / "v.csv") == 0
    assert read_table(tmp_path / "v.csv", "verdicts")["case"].nunique() == 3


def test_an_image_is_left_out_of_label_maps_only_beside_its_label_map(tmp_path, caplog):
    folder = touch(tmp_path / "x", "a.nii.gz", "a_0000.nii.gz", "b_0000.mha", "notes.txt")
    listing = list_labels(folder)
    assert {case: path.name for case, path in listing.volumes.items()} == {"a": "a.nii.gz", "b_0000": "b_0000.mha"}
    assert [e.path.name for e in listing.left_out if "taken for the image" in e.reason] == ["a_0000.nii.gz"]


def test_channels_of_an_examination_are_one_image_at_every_door(tmp_path):
    folder = volumes(tmp_path / "x", *(f"p_{i:04d}.nii.gz" for i in range(4)), "q_0000.nii.gz")
    expected = {"p": [f"p_{i:04d}.nii.gz" for i in range(4)], "q": ["q_0000.nii.gz"]}
    found = {case: images for case, (images, _) in pair_folders(folder).items()}
    for images in (found, {case.case: case.files for case in find_cases(folder)}):
        assert {case: [file.name for file in files] for case, files in images.items()} == expected


def test_numbered_scans_keep_their_names(tmp_path):
    """They are told from channels by their grids, by their labels, or by their number."""
    for number in range(3):
        grid = Geometry((8, 8, 6 + number), GRID.spacing)
        volumes(tmp_path / "grids", f"scan_{number:04d}.nii.gz", grid=grid)
    numbered = ["scan_0000", "scan_0001", "scan_0002"]
    assert [case.case for case in find_cases(tmp_path / "grids")] == list(pair_folders(tmp_path / "grids")) == numbered
    alike = volumes(tmp_path / "alike", *(f"{name}.nii.gz" for name in numbered))
    assert list(pair_folders(alike, volumes(tmp_path / "l", "scan_0001.nii.gz"))) == numbered
    for number in range(2):  # two examinations, each of a small and a large image
        volumes(tmp_path / "grids", f"p_{number:04d}.nii.gz", grid=Geometry((8, 8, 6 + number), GRID.spacing))
    assert [(case.case, len(case.files)) for case in find_cases(tmp_path / "grids")] == [("p", 2), ("scan", 3)]
    many = touch(tmp_path / "many", *(f"scan_{i:04d}.nii.gz" for i in range(12)))
    assert len(find_cases(many)) == 12 and find_cases(many)[0].case == "scan_0000"
    assert list(image_cases(list_folder(touch(tmp_path / "one", "a_0000.nii.gz")))) == ["a"]
    assert list(image_cases(list_folder(tmp_path / "one"), {"a_0000"})) == ["a_0000"]


@pytest.mark.parametrize("bad", [b"NDims = 2000", b"NDims = 8472e48 3", b"NDims = 2"])
def test_grids_are_asked_of_headers_that_do_not_end_the_process(tmp_path, bad):
    """ITK asked for the grid of numbered files, and NDims = 2000 ended every command."""
    for place, good in (("one", [1]), ("two", [1, 2])):
        for number in (0, *good):
            volumes(tmp_path / place, f"scan_{number:04d}.mha", grid=Geometry((8, 8, 6 + number), GRID.spacing))
        first = tmp_path / place / "scan_0000.mha"
        first.write_bytes(first.read_bytes().replace(b"NDims = 3", bad, 1))
    assert list(pair_folders(tmp_path / "one")) == ["scan"]
    assert [(case.case, len(case.files)) for case in find_cases(tmp_path / "one")] == [("scan", 2)]
    assert list(pair_folders(tmp_path / "two")) == ["scan_0000", "scan_0001", "scan_0002"]


def test_images_of_other_cases_are_no_images(tmp_path, caplog):
    labels = volumes(tmp_path / "l", "a.nii.gz", "b.nii.gz")
    with caplog.at_level(logging.INFO):
        check_folder(labels, "flare", tmp_path / "v.csv", volumes(tmp_path / "some", "a_0000.nii.gz", "c_0000.nii.gz"))
    assert any("some: 1 left out, no label map" in line for line in caplog.messages)
    assert any("1 label map without an image" in line for line in caplog.messages)
    with pytest.raises(UserError, match=r"no image of these label maps; that of a would be a_0000\.nii\.gz"):
        check_folder(labels, "flare", tmp_path / "v.csv", volumes(tmp_path / "i", "c_0000.nii.gz"))


# -------------------------------------------------------------------------------------------------------- other things


def test_a_name_that_is_not_utf8_is_no_end_of_the_process(tmp_path):
    from labelloop.images.volume import read

    file = touch(tmp_path, BAD_NAME) / BAD_NAME
    for call in (read, read_geometry):
        with pytest.raises(CaseError, match=r"bad\\xff_0000"):
            call(file)
    with pytest.raises(UserError, match="not UTF-8"):
        find_cases(file)
    volumes(tmp_path, "good.nii.gz")
    assert [case.case for case in find_cases(tmp_path)] == ["good"]
    folder = volumes(tmp_path / "renamed", "good.nii.gz").rename(tmp_path / os.fsdecode(b"f\xff"))
    for call in (find_cases, pair_folders, list_labels):
        with pytest.raises(UserError, match=r"f\\xff: a name that is not UTF-8"):
            call(folder)


def test_twenty_thousand_files_are_found_quickly(tmp_path):
    for number in range(20_000):
        os.close(os.open(tmp_path / f"c{number:05d}_0000.nii.gz", os.O_CREAT))
    start = time.process_time()
    assert len(find_cases(tmp_path)) == 20_000
    assert time.process_time() - start < 5  # seconds; comparing each with each takes more than ten
