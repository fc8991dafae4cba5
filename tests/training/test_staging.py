"""Copies of prepared arrays on a node's own disk: what is copied, how often, who shares it, when it goes."""

import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest
from tiny_training import contents, make_job

from labelloop.training import staging
from labelloop.training.nnunet import train
from labelloop.training.staging import staged, staged_job


@pytest.fixture
def files(tmp_path):
    """Four files of 1 kB in two folders."""
    made = [tmp_path / "shared" / folder / f"{name}.b2nd" for folder in ("images", "labels") for name in "ab"]
    for number, file in enumerate(made):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes([number]) * 1000)
    return made


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """The node's own disk, as ``$NODE_DISK`` names it there."""
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.fixture
def copied(monkeypatch):
    """The names of the files that are copied."""
    names = []
    original = shutil.copy2

    def copy(source, target):
        names.append(Path(source).name)
        return original(source, target)

    monkeypatch.setattr(staging.shutil, "copy2", copy)
    return names


def left(disk):
    return [file for file in disk.rglob("*") if file.suffix == ".b2nd"]


def test_arrays_are_read_from_the_copy_and_it_is_removed(files, disk):
    with staged(files, "$NODE_DISK") as place:
        for file in files:
            copy = place(file.parent) / file.name
            assert disk in copy.parents and copy.read_bytes() == file.read_bytes()
        assert len(left(disk)) == 4
    assert not left(disk)


def test_a_training_that_fails_leaves_no_copy(files, disk):
    with pytest.raises(SystemExit), staged(files, "$NODE_DISK"):
        raise SystemExit(143)
    assert not left(disk)


def test_two_trainings_of_a_node_share_what_both_read_and_the_last_removes_it(files, disk, copied):
    with staged(files[:3], str(disk)) as first:
        assert sorted(copied) == ["a.b2nd", "a.b2nd", "b.b2nd"]
        with staged(files, str(disk)) as second:
            assert len(copied) == 4  # the one that was missing
            assert first(files[0].parent) == second(files[0].parent)
        assert len(left(disk)) == 4
    assert not left(disk)


def test_what_a_killed_training_left_is_used_and_then_removed(files, disk, copied, monkeypatch):
    """As a kill does: its lock is gone, its files are there."""
    with monkeypatch.context() as patch:
        patch.setattr(staging, "_is_used", lambda root: True)
        with staged(files, str(disk)):
            pass
    assert len(left(disk)) == 4
    with staged(files, str(disk)):
        assert len(copied) == 4
    assert not left(disk)
    assert not list(disk.rglob("*.user"))


def test_a_file_that_was_made_anew_is_copied_anew(files, disk, copied):
    with staged(files, str(disk)):
        files[0].write_bytes(b"new")
        os.utime(files[0], (1, 1))
        with staged(files, str(disk)) as place:
            assert (place(files[0].parent) / files[0].name).read_bytes() == b"new"
    assert len(copied) == 5


@pytest.mark.parametrize("stage", ["$NO_SUCH_VARIABLE", "/no/such/folder", None])
def test_without_such_a_folder_arrays_are_read_in_place(files, stage, caplog):
    with staged(files, stage) as place:
        assert place(files[0].parent) == files[0].parent
    assert ("no such folder on this node" in caplog.text) == bool(stage)


def test_what_does_not_fit_is_read_in_place_and_the_log_says_so(files, disk, copied, monkeypatch, caplog):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage(4400))  # 4 kB would leave too little
    with staged(files, str(disk)) as place:
        assert place(files[0].parent) == files[0].parent
    assert not copied and "do not fit" in caplog.text
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage(4500))
    with staged(files, str(disk)) as place:
        assert disk in place(files[0].parent).parents


def test_a_disk_that_fills_up_meanwhile_costs_no_training(files, disk, monkeypatch, caplog):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging.shutil, "copy2", full)
    with staged(files, str(disk)) as place:
        assert place(files[0].parent) == files[0].parent
    assert "No space left on device" in caplog.text


def test_a_file_that_is_missing_is_left_to_whoever_reads_it(files, disk, copied):
    files[1].unlink()
    with staged(files, str(disk)) as place:
        assert place(files[0].parent) == files[0].parent
    assert not copied


def test_another_training_is_waited_for_while_it_copies(files, disk, caplog):
    with staged(files, str(disk)):
        (root,) = disk.glob("*/stage")
    held = str(root / "copying.lock")
    code = f"from labelloop.base.locks import hold; lock = hold({held!r}, ''); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        other.stdout.readline()
        threading.Timer(0.2, other.stdin.close).start()
        with staged(files, str(disk)):
            assert len(left(disk)) == 4
    assert f"process {other.pid}" in caplog.text and "waiting until it ends" in caplog.text


def test_unlabeled_cases_have_no_label_to_copy(data, disk, tmp_path):
    root = shutil.copytree(data, tmp_path / "unlabeled")
    (root / "labels" / "case3.b2nd").unlink()
    with staged_job(make_job(root, tmp_path, stage=str(disk))) as near:
        assert {path.name for path in near.images.iterdir()} == {f"case{n}.b2nd" for n in range(4)}
        assert {path.name for path in near.labels.iterdir()} == {f"case{n}.b2nd" for n in range(3)}


@pytest.mark.training
def test_a_training_from_a_copy_is_the_training(model, data, disk, tmp_path, copied):
    train(make_job(data, tmp_path / "model", stage="$NODE_DISK"))
    assert contents(tmp_path / "model") == contents(model)
    assert len(copied) == 8 and not left(disk)
    train(make_job(data, tmp_path / "model", stage="$NODE_DISK"))
    assert len(copied) == 8, "a finished training copies nothing"
