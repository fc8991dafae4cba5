"""A file is written whole or not at all, whatever an earlier attempt left behind."""

import errno
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from labelloop.base.errors import UserError
from labelloop.base.files import ABANDONED_S, atomic, digest, link, sha256, write_text


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("owner", ["array.b2nd", "dead", "other host"])
def test_what_a_killed_write_left_is_removed_and_not_gone_on_with(tmp_path, owner):
    path = tmp_path / "array.b2nd"
    names = {"dead": f"{dead_process()}-0-{platform.node()}", "other host": "1-0-elsewhere"}
    left = tmp_path / ".tmp-array.b2nd" / names.get(owner, owner)
    left.mkdir(parents=True)
    (left / "array.b2nd").write_text("half a file of a killed job")
    long_ago = time.time() - 2 * ABANDONED_S
    os.utime(left, (long_ago, long_ago))
    with atomic(path) as temporary:
        assert not temporary.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole" and [p.name for p in tmp_path.iterdir()] == ["array.b2nd"]


@pytest.mark.parametrize("owner", [f"{os.getpid()}-0-{platform.node()}", "1-0-elsewhere"], ids=["own", "elsewhere"])
def test_what_another_process_is_writing_stays(tmp_path, owner):
    theirs = tmp_path / ".tmp-array.b2nd" / owner / "array.b2nd"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("half")
    write_text(tmp_path / "array.b2nd", "whole")
    assert theirs.read_text() == "half"


WRITE = """
import sys
from labelloop.base.files import write_text
for number in range(150):
    write_text(sys.argv[1], sys.argv[2] * 1000)
"""


def test_processes_that_write_the_same_file_do_not_meet(tmp_path):
    path = tmp_path / "table.csv"
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, path, letter]) for letter in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(path.read_text()) == 1000 and len(set(path.read_text())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_folder_that_another_process_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    path, make, tried = tmp_path / "table.csv", os.mkdir, []

    def made_and_removed_by_another(folder, *arguments, **options):
        if Path(folder).name == ".tmp-table.csv" and not tried:
            tried.append(folder)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
        make(folder, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", made_and_removed_by_another)
    write_text(path, "whole")
    assert tried and path.read_text() == "whole" and [p.name for p in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_what_keeps_a_file_from_being_written_is_told_in_a_line(tmp_path, number):
    path = tmp_path / "table.csv"
    write_text(path, "old")
    with pytest.raises(UserError) as told, atomic(path) as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number), str(temporary))
    message = str(told.value)
    assert message.startswith(f"{path}: cannot be written: {os.strerror(number)}. ") and "\n" not in message
    assert "type the same command again" in message
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_full_disk_is_recognized_where_a_library_does_not_name_it(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(UserError, match="No space left on device"), atomic(tmp_path / "weights.pt"):
        raise RuntimeError("unexpected pos 576 vs 534")


def test_an_input_that_may_not_be_read_is_not_taken_for_a_folder_that_may_not_be_written(tmp_path):
    with pytest.raises(PermissionError), atomic(tmp_path / "out" / "table.csv"):
        raise PermissionError(errno.EACCES, "Permission denied", "/data/scan.nii.gz")


def test_a_link_has_the_content_and_replaces_what_was_there(tmp_path):
    write_text(tmp_path / "source", "new")
    write_text(tmp_path / "target", "old")
    link(tmp_path / "source", tmp_path / "target")
    assert sha256(tmp_path / "target") == sha256(tmp_path / "source")


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
