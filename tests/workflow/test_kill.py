"""Kill -9 of the whole process tree in the middle of a step: what was done stays, the same command goes on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_project import ROOT, Project

STEPS = {
    "prepare": (r"prepared/fine/[^/]+\.b2nd$", "prepared/fine/*.b2nd"),
    "train": (r"models/teacher/work/checkpoint\.pth$", "models/teacher/work/state.json"),
    "predict": (r"models/teacher/predictions/[^/]+\.nii\.gz$", "models/teacher/predictions/*.nii.gz"),
    "infer": (r"results/predictions/[^/]+\.nii\.gz$", "predictions/*.nii.gz"),
}
"""Step, in the order of the chain: the files whose second writing is cut short, and what was done before it."""


def wait_for(mark: Path, process: subprocess.Popen, limit_s: float = 600) -> Path:
    """Wait until a process of the run has stopped in the middle of a write; return the file in work."""
    deadline = time.monotonic() + limit_s
    while not mark.is_file() or not mark.read_text():
        log = mark.with_name("run.log")
        assert process.poll() is None, f"the run ended before it could be killed\n{log.read_text()[-5000:]}"
        assert time.monotonic() < deadline, f"nothing stalled in {limit_s} s\n{log.read_text()[-5000:]}"
        time.sleep(0.05)
    return Path(mark.read_text())


@pytest.fixture(scope="module")
def killed(tmp_path_factory, collection) -> tuple[Project, dict[str, dict[str, int]]]:
    """A run from scratch that was killed in every step, and the times of what each step had done before its kill.

    Its trainings load with a worker, those of the reference without: one run less shows that bytes do not depend on it.
    """
    project = Project.new(tmp_path_factory.mktemp("killed") / "project", collection.table, workers=1)
    done = {}
    for step, (pattern, finished) in STEPS.items():
        process, mark = project.start_and_stall(pattern, count=2)
        try:
            half = project.folder / wait_for(mark, process)
            done[step] = project.times(finished)
            if step == "train":
                refused = subprocess.run(project.command("--cores", "1"), cwd=ROOT, capture_output=True, text=True)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert half.is_file(), "killed in the middle of a write"
        assert not (half.parents[2] / half.name).exists() or step == "train", "no half-written result"
        assert len(done[step]) >= 1
    assert refused.returncode != 0 and "another run" in refused.stderr
    project.run()
    return project, done


def test_the_same_command_ends_with_the_bytes_of_an_uninterrupted_run(killed, reference):
    project, _ = killed
    assert project.contents() == reference.contents()
    assert project.planned() == set()


def test_no_half_written_file_is_left(killed):
    project, _ = killed
    assert not [f for f in project.results.rglob("*") if f.name.startswith(".tmp-") or f.suffix == ".tmp"]


@pytest.mark.parametrize("step", ["prepare", "predict", "infer"])
def test_only_the_case_in_flight_is_lost(killed, step):
    project, done = killed
    after = project.times(STEPS[step][1])
    assert {name: after[name] for name in done[step]} == done[step]


def test_training_goes_on_from_its_last_checkpoint(killed):
    project, _ = killed
    log = (project.results / "logs/train/teacher.attempts.log").read_text()
    assert log.count("resuming after epoch 1 of 3") == 1
    assert log.count("epoch 1/3") == 1 and log.count("epoch 3/3") == 1
