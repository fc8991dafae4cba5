"""What every command does when it is interrupted, or when a file stands in its way."""

import errno
import os
from importlib.metadata import version

import pytest

from labelloop import phantom
from labelloop.cli import main
from labelloop.recipe.loading import shipped


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


def test_recipes_are_listed_with_what_they_are_for(capsys):
    assert main(["recipe", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("default_demo ") and "at demo size" in line for line in lines)
    assert len(lines) == len(shipped())


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"labelloop {version('labelloop')}\n")
