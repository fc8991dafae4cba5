"""What every command does when it is interrupted, or when a file stands in its way."""

import errno
import os

import pytest

from labelloop import phantom
from labelloop.cli import main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted. Type the same command again"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/a.nii"), 2, "/data/a.nii: Permission denied"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), 2, "Stale file handle"),
    ],
    ids=["Ctrl-C", "not allowed", "disk away"],
)
def test_a_command_ends_in_a_line(monkeypatch, capsys, error, code, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(phantom, "write_phantom", fail)
    assert main(["phantom", "out"]) == code
    assert capsys.readouterr().err.startswith(f"labelloop: {said}")


def test_cases_takes_its_options_from_the_command_line(tmp_path, capsys):
    for name in ("a_0000.nii.gz", "a.nii.gz", "b_0000.nii.gz"):
        (tmp_path / name).touch()
    folders = ["--images", str(tmp_path), "--labels", str(tmp_path), "--dataset", "flare22"]
    assert main(["cases", *folders, "--out", str(tmp_path / "cases.csv")]) == 0
    assert "2 cases, 1 with a label" in capsys.readouterr().out
