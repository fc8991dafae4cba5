"""Ctrl-C, and SIGTERM to Snakemake alone: a training ends at a checkpoint within seconds and goes on from there."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_project import RECIPE, ROOT, TRAINER, Project

LONG = TRAINER | {"epochs": 1, "iterations_per_epoch": 400}
MODEL = "results/models/teacher/model.json"


BEGUN = "supervised training on cpu"
TOLD_S = 30
"""A few seconds on a quiet machine; this one runs other tests, too."""


def listen_to_ctrl_c() -> None:
    """Undo what a shell does to what it starts in the background: SIGINT is ignored there, by all descendants."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_training(log: Path, number: int, limit_s: float = 120) -> None:
    """Wait until a log says for the ``number``-th time that a training has begun."""
    deadline = time.monotonic() + limit_s
    while not log.is_file() or log.read_text().count(BEGUN) < number:
        assert time.monotonic() < deadline, f"{log}: no training {number} within {limit_s} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def project(tmp_path_factory, collection):
    recipe = RECIPE | {"models": {"teacher": {"trainer": LONG}, "student": {"trainer": TRAINER}}}
    return Project.new(tmp_path_factory.mktemp("stopped") / "project", collection.table, recipe)


def test_a_training_ends_within_seconds_and_goes_on(project):
    log = project.results / "logs/train/teacher.attempts.log"
    for number, (sign, to_all) in enumerate([(signal.SIGTERM, False), (signal.SIGINT, True)], start=1):
        process = subprocess.Popen(
            project.command("--cores", "1", MODEL), cwd=ROOT, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                preexec_fn=listen_to_ctrl_c,
        )  # fmt: skip
        try:
            wait_for_training(log, number)
            time.sleep(1)  # some updates
            began = time.monotonic()
            os.killpg(process.pid, sign) if to_all else process.send_signal(sign)
            printed, _ = process.communicate(timeout=60)
            assert time.monotonic() - began < TOLD_S, printed[-3000:]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode != 0
        assert (project.results / "models/teacher/work/checkpoint.pth").is_file(), printed[-3000:]
        assert not (project.folder / MODEL).exists()
    project.run(MODEL)
    tries = log.read_text().split(BEGUN)[1:]
    assert len(tries) == 3, "each command tries once"
    resumed = [int(part.split("resuming after epoch 0 of 1, update ")[1].split()[0]) for part in tries[1:]]
    assert 0 < resumed[0] < resumed[1] < LONG["iterations_per_epoch"]
