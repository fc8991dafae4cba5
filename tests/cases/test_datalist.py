"""MONAI's datalists: cases of a JSON file, by paths relative to it."""

import json
import logging
from pathlib import Path

import pytest

from labelloop.base.errors import UserError
from labelloop.cases.make_table import Options, make_table
from labelloop.cases.table import load_cases
from labelloop.cli import main as cli

NAMES = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}}


def write(folder: Path, lists: dict, missing: tuple[str, ...] = (), names: dict | None = None) -> Path:
    """Write a datalist and the files that it names, those in ``missing`` aside."""
    for entry in (entry for entries in lists.values() for entry in entries):
        for name in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(name, str) and name not in missing:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(b"x")
    folder.mkdir(exist_ok=True)
    path = folder / "list.json"
    path.write_text(json.dumps((NAMES if names is None else names) | lists))
    return path


def pair(name: str) -> dict[str, str]:
    return {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}


def test_a_datalist_becomes_a_table_and_a_data_set_file(tmp_path):
    lists = {"training": [pair("a"), pair("b") | {"fold": 0}, {"image": "images/u.nii.gz"}], "validation": [pair("c")],
             "testing": ["images/d_0000.nii.gz"]}  # fmt: skip
    path = write(tmp_path / "data", lists)
    assert cli.main(["cases", "--images", str(path), "--out", str(tmp_path / "c.csv")]) == 0
    cases, rejected = load_cases(tmp_path / "c.csv")
    assert rejected == []
    assert [(c.case, c.role, Path(c.label).parent.name) for c in cases] == [
        ("a", "train", "labels"), ("b", "train", "labels"), ("u", "train", ""), ("c", "test", "labels"),
        ("d", "test", ""),
    ]  # fmt: skip
    assert all(Path(case.image).is_file() for case in cases)
    assert "1: spleen" in (tmp_path / "list.yaml").read_text()


def test_images_of_one_name_are_named_by_their_folders_too(tmp_path):
    lists = {"training": [{"image": f"{p}/ct.nii.gz", "label": f"{p}/seg.nii.gz"} for p in ("P1", "P2")]}
    cases = make_table(write(tmp_path / "d", lists), None, None, tmp_path / "c.csv")
    assert [case.case for case in cases] == ["P1_ct", "P2_ct"]
    lists["training"] += [{"image": "x/P1/ct.nii.gz"}]
    with pytest.raises(UserError, match="several images for case P1_ct"):
        make_table(write(tmp_path / "d", lists), None, None, tmp_path / "c.csv", Options(overwrite=True))


def test_files_that_are_not_there_take_their_case_along_and_fail_by_the_exit_code(tmp_path, caplog):
    lists = {"training": [pair("a"), pair("b"), pair("c"), {"image": "images/d.dcm"}], "other": [pair("e")]}
    path = write(tmp_path / "d", lists, ("labels/b.nii.gz", "images/c.nii.gz"))
    with caplog.at_level(logging.INFO):
        assert cli.main(["cases", "--images", str(path), "--out", str(tmp_path / "c.csv")]) == 1
    assert [case.case for case in load_cases(tmp_path / "c.csv")[0]] == ["a"]
    assert "2 left out, no such file: labels/b.nii.gz, images/c.nii.gz" in caplog.text
    assert "1 left out, no format that is read" in caplog.text and "lists of other names" in caplog.text


REFUSED = {
    "channels": ({"training": [{"image": ["a.nii.gz", 1], "label": "c.nii.gz"}]}, "training.0: found"),
    "masks": ({"training": [{"image": "a.nii.gz", "label": ["b.nii.gz", "c.nii.gz"]}]}, "training.0: label"),
    "no image": ({"training": [{"img": "a.nii.gz"}]}, "training.0: found"),
    "straddles": ({"training": [pair("a")], "test": [{"image": "images/a.nii.gz"}]}, "stands in it 2 times"),
    "no list": ({"training": {"0": pair("a")}, "test": [pair("b")]}, "training: found"),
    "nothing": ({"fold0": []}, "no list training, validation, test, testing with an entry"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_entries_that_cannot_be_read_are_refused_in_words(tmp_path, kind):
    lists, words = REFUSED[kind]
    with pytest.raises(UserError) as caught:
        make_table(write(tmp_path / "d", lists), None, None, tmp_path / "c.csv")
    assert words in str(caught.value) and "list.json" in str(caught.value)
    assert not (tmp_path / "c.csv").exists()


def test_a_list_that_names_no_classes_asks_for_a_data_set(tmp_path):
    path = write(tmp_path / "d", {"training": [pair("a")]}, names={})
    with pytest.raises(UserError, match="no labels; name the data set"):
        make_table(path, None, None, tmp_path / "c.csv", Options(modality="CT"))
    assert [case.dataset for case in make_table(path, None, "btcv", tmp_path / "c.csv")] == ["btcv"]


def test_a_file_that_cannot_be_looked_at_is_left_out(tmp_path):
    path = write(tmp_path / "d", {"training": [pair("a")]})
    content = json.loads(path.read_text())
    content["training"] += [{"image": f"{'x' * 300}.nii.gz"}]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())  # as editors of Windows begin a file
    lost: list = []
    assert [case.case for case in make_table(path, None, None, tmp_path / "c.csv", lost=lost)] == ["a"]
    assert [entry.reason for entry in lost] == ["cannot be looked at: File name too long"]


def test_two_data_sets_of_one_name_do_not_share_what_ids_mean(tmp_path):
    first = write(tmp_path / "one", {"training": [pair("a")]})
    second = write(tmp_path / "two", {"training": [pair("b")]}, names={"modality": "CT", "labels": {"1": "liver"}})
    make_table(first, None, None, tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"one/list\.json mean, not those of .*two/list\.json"):
        make_table(second, None, None, tmp_path / "b.csv")
    assert not (tmp_path / "b.csv").exists()
    make_table(first, None, None, tmp_path / "a.csv", Options(overwrite=True))
