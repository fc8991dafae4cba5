"""``labelloop run``: what it says to Snakemake, and that nothing stands between Snakemake and the shell."""

import subprocess
import sys
from pathlib import Path

import pytest
from snakemake.cli import parse_config

from labelloop.base.lookup import CONFIG, PROJECT
from labelloop.cli.main import main
from labelloop.run import launch

ODD = 'My Drive, O\'Neil "Prüfung" = {1} 🙂'


@pytest.fixture
def said(tmp_path, monkeypatch):
    """Return what runs a command line of ``labelloop run`` in an empty folder up to Snakemake's, which it returns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    commands = []
    monkeypatch.setattr(launch, "launch", commands.append)

    def run(*arguments):
        assert main(["run", *arguments]) == 0
        return commands.pop()[4:]

    return run


def between(command, first, last):
    return command[command.index(first) + 1 : command.index(last)]


@pytest.mark.parametrize(
    "path", ["cases.csv", "12", "1e3", "a b/c.csv", ODD, "True", "[x]", "{", "a: b", "a #b", "", "'a'", "~"]
)
def test_paths_reach_the_configuration_as_they_are(said, path):
    command = said("--cases", path, "--recipe", "mine", "--results", path)
    assert parse_config(between(command, "--config", "--configfile")) == {
        "cases": path, "recipe": "mine", "results": path
    }  # fmt: skip


def test_paths_are_not_quoted_without_need(said):
    command = said("--cases", "My Drive, O'Neil, Prüfung (1)/cases.csv")
    assert between(command, "--config", "--configfile") == ["cases=My Drive, O'Neil, Prüfung (1)/cases.csv"]


def test_without_a_config_file_that_of_labelloop_is_the_base(said):
    command = said("--cases", "cases.csv")
    assert between(command, "--configfile", "--snakefile") == [str(CONFIG / "config.yaml")]
    assert command[-3:] == [str(PROJECT / "Snakefile"), "--cores", "all"]


def test_a_config_file_comes_from_the_folder_or_the_command_line(said):
    Path("config").mkdir()
    Path("config/config.yaml").write_text("cases: cases.csv")
    assert "--configfile" not in said() and "--config" not in said()
    Path("other.yaml").write_text("cases: other.csv")
    command = said("other.yaml", "--config", "device=cpu", "rounds=2", "--config", "workers=0")
    assert sorted(between(command, "--config", "--configfile")) == ["device=cpu", "rounds=2", "workers=0"]
    assert between(command, "--configfile", "--snakefile") == ["other.yaml"]
    assert said("device=cpu", "other.yaml") == said("other.yaml", "--config", "device=cpu")


def test_what_follows_two_dashes_goes_to_snakemake(said):
    command = said("--cases", "cases.csv", "-n", "--", "--quiet", "rules", "--", "-odd")
    assert command[-7:] == ["--cores", "all", "--dry-run", "--quiet", "rules", "--", "-odd"]


@pytest.mark.parametrize(
    "options", [["--cores", "2"], ["--", "-j4"], ["--", "--jobs", "4"], ["--", "--executor=slurm"], ["--profile", "x"],
                ["--", "--workflow-profile", "slurm"]],
)  # fmt: skip
def test_who_says_where_to_run_is_not_given_all_cores(said, options):
    command = said("--cases", "cases.csv", *options)
    assert command[command.index(str(PROJECT / "Snakefile")) + 1 :] == [o for o in options if o != "--"]


@pytest.mark.parametrize("options", [["--profile", "slurm"], ["--", "--profile", "slurm"], ["--", "--profile=slurm"]])
def test_the_profile_is_the_users_else_the_one_that_labelloop_brings(said, options):
    def profile():
        return said("--cases", "cases.csv", *options)[-1].removeprefix("--profile=")

    assert profile() == str(PROJECT / "profiles" / "slurm")
    Path("slurm").mkdir()  # a folder of logs, say
    assert profile() == str(PROJECT / "profiles" / "slurm")
    Path("profiles/slurm").mkdir(parents=True)
    Path("profiles/slurm/profile.yaml").write_text("executor: slurm")
    assert profile() == "profiles/slurm"


def test_a_profile_elsewhere_is_left_to_snakemake(said):
    assert said("--cases", "cases.csv", "--profile", "of_the_site")[-1] == "of_the_site"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what shall be run"),
        (["--recipe", "best"], "what shall be run"),
        (["nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["a.yaml", "b.yaml"], "a.yaml, b.yaml: name one config file"),
        (["--cases", "cases.csv", "--", "--config", "rounds=2"], "--config stands after `--`"),
        (["--cases", "cases.csv", "--", "-s", "Snakefile"], "-s stands after `--`"),
    ],
)
def test_what_cannot_be_run_ends_in_a_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["run", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_exit_code_and_the_process_are_those_of_what_was_launched():
    code = "import os; from labelloop.run.launch import launch; print(os.getpid(), end=' '); launch([{!r}, '-c', {!r}])"
    command = code.format(sys.executable, "import os, sys; print(os.getpid()); sys.exit(7)")
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    first, second = done.stdout.split()
    assert (done.returncode, first) == (7, second)
