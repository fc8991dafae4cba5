"""Locks: one holder, named to those who wait; freed by any death; a file system without locks stops nothing."""

import errno
import fcntl
import logging
import os
import platform
import signal
import subprocess
import sys

import pytest

from labelloop.base import locks
from labelloop.base.errors import UserError
from labelloop.base.locks import TakenError, hold

HOLD = """
import os, sys, time
from labelloop.base.locks import hold

lock = hold(sys.argv[1], "a folder")
child = os.fork()  # like a data loader's worker
if child:
    print(child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds ``tmp_path/lock``, and has a child."""
    environment = os.environ | {"SLURM_JOB_ID": "77"}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        child = int(process.stdout.readline())
        yield process
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_who_waits_says_for_whom_and_a_killed_holder_lets_go(tmp_path, other, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    with pytest.raises(TakenError, match=rf"held by process {other.pid} on {platform.node()}, Slurm job 77, since 2"):
        hold(tmp_path / "lock", "a folder", wait=False)

    def kill(*_, **__):
        other.kill()
        other.wait()
        monkeypatch.undo()
        return acquire(*_, **__)

    acquire = locks.FileLock.acquire
    monkeypatch.setattr(
        locks.FileLock, "acquire", lambda *a, **k: acquire(*a, **k) if k.get("blocking") is False else kill(*a, **k)
    )
    hold(tmp_path / "lock", "a folder", poll_s=0.01).release()
    assert f"a folder: process {other.pid} on {platform.node()}, Slurm job 77, since" in caplog.text
    assert "free again" in caplog.text


def test_a_process_does_not_wait_for_itself(tmp_path):
    first, second = (hold(tmp_path / "lock", "a folder") for _ in range(2))
    first.release()
    first.release()
    second.release()
    hold(tmp_path / "lock", "a folder", wait=False).release()


@pytest.mark.parametrize("number", locks.NO_LOCKS, ids=errno.errorcode.get)
@pytest.mark.parametrize("wait", [True, False])
def test_a_file_system_without_locks_is_told_and_work_goes_on(tmp_path, monkeypatch, caplog, number, wait):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    hold(tmp_path / "lock", "results x", wait=wait).release()
    assert "results x: the file system has no locks" in caplog.text


def test_a_lock_that_cannot_be_written_is_told_in_a_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written: .*, then type the same command again"):
        hold(tmp_path / "file" / "lock", "a folder")
