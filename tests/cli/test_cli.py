"""What every command does when it is interrupted, or when a file stands in its way."""

import errno
import os
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from labelloop import phantom
from labelloop.base import lookup
from labelloop.base.lookup import known
from labelloop.cli.main import main


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
    assert len(lines) == len(known("recipes"))


def test_a_recipe_of_the_users_is_listed_even_if_it_cannot_be_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config" / "recipes").mkdir(parents=True)
    (tmp_path / "config" / "recipes" / "ours.yaml").write_text("{extends: default, round: 2}")
    assert main(["recipe", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(known("recipes"))
    assert any(re.match("ours +cannot be used: .*round: unknown key; did you mean 'rounds'", line) for line in lines)


@pytest.mark.parametrize("what", ["dataset", "classes"])
def test_data_sets_and_classes_are_listed(capsys, what):
    assert main([what, "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == known({"dataset": "datasets"}.get(what, what))
    assert any("liver" in line for line in lines)


RECIPE = "{extends: default, inference: [{segment: student}, {clean: {keep_largest: [%s]}}]}"


def test_a_recipe_is_checked_alone_and_on_cases(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check, cases = ["recipe", "check", "mine.yaml"], ["--cases", "cases.csv"]
    Path("cases.csv").write_text("case,image,label,dataset\na,a.nii.gz,l.nii.gz,flare22\n")
    Path("mine.yaml").write_text(RECIPE % "livr")
    for arguments in (check, [*check, *cases]):
        assert main(arguments) == 2
        assert "mine.yaml: inference" in (said := capsys.readouterr().err) and "did you mean 'liver'" in said
    Path("mine.yaml").write_text(RECIPE % "liver")
    assert main(check) == 0
    assert capsys.readouterr().out.startswith("mine.yaml: no error")
    assert main([*check, *cases]) == 0
    assert re.search(r"no error. recipe mine, 1 case in", capsys.readouterr().out)
    Path("cases.csv").write_text("case,image,dataset\na,a.nii.gz,flare22\n")
    assert main([*check, *cases]) == 2
    assert "recipe mine: models.teacher.cases: none of" in capsys.readouterr().err


def test_an_installed_package_writes_no_schemas(tmp_path, monkeypatch, capsys):
    for name in ("PACKED", "PROJECT"):
        monkeypatch.setattr(lookup, name, tmp_path)
    assert main(["schema"]) == 2
    assert "needs a checkout" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"labelloop {version('labelloop')}\n"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["infr"], "Did you mean 'infer'"),
        (["infer", "scans", "--modle", "m"], "--model"),
        (["infer", "scans", "--out", "o"], "--model or --results"),
        (["infer", "scans", "--out", "o", "--model", "m", "--results", "r"], "--model or --results"),
        (["check", "--labels", "maps"], "--out or --fit"),
        (["cases", "--images", "scans"], "Missing option '--out'"),
        (["recipe", "cost", "best", "--cases", "0"], "--cases"),
    ],
)
def test_what_is_typed_wrong_is_told_in_a_line(capsys, typed, said):
    assert main(typed) == 2
    told = capsys.readouterr().err
    assert told.startswith("labelloop: ") and said in told and told.count("\n") == 1


CASES = ["cases", "--images", "scans", "--dataset", "flare22", "--out", "c.csv"]
INFER = ["infer", "scans", "--out", "o"]
CALIBRATE = ["calibrate", "--scores", "s", "--disagreement", "d", "--target-dsc", "0.9", "--out", "t"]
IDLE = [
    ([*INFER, "--results", "r", "--classes", "flare", "--no-mirror"], "--classes, --no-mirror", "--results"),
    ([*INFER, "--model", "m", "--classes", "flare"], "--classes", "--preview, --check, --dataset or --dicom-seg"),
    ([*INFER, "--model", "m", "--sequence", "t1w"], "--sequence", "without --modality MR"),
    ([*INFER, "--model", "m", "--device", "cpu", "--meter"], "--meter", "--device cpu"),
    (["infer", __file__, "--out", "o", "--model", "m", "--series", "2"], "--series", "one file"),
    (["export", "m", "--to", "onnx", "--out", "o", "--modality", "CT"], "--modality", "--to onnx"),
    (["check", "--labels", "l", "--fit", "f", "--asked", "liver", "--rules", "r"], "--rules, --asked", "--fit"),
    ([*CALIBRATE, "--on-average", "--confidence", "0.9"], "--confidence", "--on-average"),
    ([*CASES, "--test-labels", "l"], "--test-labels", "--test-images"),
    ([*CASES, "--merged", "m"], "--merged", "--labels"),
    ([*CASES, "--annotated-from-ids"], "--annotated-from-ids", "labels"),
    ([*CASES, "--role", "test", "--test-fraction", "0.2"], "--test-fraction", "--role test"),
    ([*CASES, "--seed", "1"], "--seed", "--test-fraction"),
    (["review", "r", "--export", "e", "--reviewer", "ann"], "--reviewer", "--export"),
    (["review", "r", "--import", "e", "--no-browser", "--port", "80"], "--port, --no-browser", "--import"),
]


@pytest.mark.parametrize(("typed", "options", "beside"), IDLE)
def test_an_option_that_counts_for_nothing_beside_others_is_refused(capsys, typed, options, beside):
    assert main(typed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"labelloop: {options}: without effect ") and beside in line and "Leave it out" in line


def test_every_command_says_what_it_does_and_shows_an_example(capsys):
    commands = [[name] for name in ("init", "phantom", "convert", "cases", "run", "infer", "export")]
    commands += [["evaluate"], ["check"], ["calibrate"], ["recipe", "show"], ["recipe", "check"], ["recipe", "cost"]]
    for command in commands:
        assert main([*command, "--help"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"Usage: labelloop {' '.join(command)}" in said
        assert f"Example: labelloop {' '.join(command)}" in said
