"""From CT to MR as jobs: volumes put on their feet, a translator, images prepared through it, a look at them."""

import csv
import os
import re
import signal
from pathlib import Path

import pytest
from test_kill import wait_for
from test_opened import jobs_of, undeclared, unread
from tiny_project import PLAN, TRAINER, Project, _rows, _write

from labelloop.phantom import write_phantom

GREY = PLAN | {"grey": {}, "upright": True}
SETTINGS = {"patch": [8, 16, 16], "features": 2, "blocks": 1, "layers": 1, "epochs": 3, "iterations_per_epoch": 2}
RECIPE = {
    "groups": {"ct": {"modality": "CT"}, "t1w": {"sequence": "t1w"}},
    "plans": {"grey": GREY, "fake": GREY | {"translate": "to_t1w"}},
    "models": {
        "to_t1w": {
            "plan": "grey",
            "cases": ["ct", "t1w"],
            "trainer": SETTINGS | {"kind": "translator", "save_every": 1, "reference": "mr_000_t1w"},
        },
        "stage1": {"plan": "fake", "cases": ["ct", "t1w"], "trainer": TRAINER | {"kind": "mean_teacher"}},
    },
    "inference": [{"segment": "stage1"}],
}
STRUCTURE = "results/prepared/fake/structure.csv"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    folder = tmp_path_factory.mktemp("adaptation")
    rows = _rows(write_phantom(folder / "phantom", cases=8, seed=1, spacing_mm=12, mr_patients=2))
    used = [row | {"role": "train"} for row in rows if row["sequence"] in ("t1w", "in_phase", "portal venous")]
    project = Project.new(folder / "project", _write(folder / "cases.csv", used), RECIPE)
    project.opened = tmp_path_factory.mktemp("opened")
    return project


def test_a_dry_run_shows_the_way_through_the_translator(project):
    text = project.snakemake("--cores", "1", "--dry-run", "--quiet", "host")
    jobs = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}
    assert jobs["prepare"] == 2 and jobs["detect_upside_down"] == jobs["upright"] == jobs["train_translator"] == 1
    assert jobs["structure"] == jobs["train"] == 1
    through = re.search(r"for plan fake\nReason: (.*)", text)[1]
    assert "results/models/to_t1w/weights.pt" in through and "results/upright.csv" in through


def test_a_translator_that_was_killed_goes_on_and_its_fakes_are_looked_at(project: Project):
    process, mark = project.start_and_stall(r"models/to_t1w/work/checkpoint\.pth$", count=2)
    try:
        wait_for(mark, process)
        aligned = project.times("models/to_t1w/aligned/*.json")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    project.snakemake("--cores", "2", STRUCTURE)
    log = (project.results / "logs/train_translator/to_t1w.attempts.log").read_text()
    assert log.count("resuming after epoch 1 of 3") == 1 and log.count("epoch 1/3") == 1
    assert aligned and project.times("models/to_t1w/aligned/*.json") == aligned
    wrong = {row["case"] for row in project.table("upright.csv") if row["upside_down"] == "True"}
    assert wrong == {"mr_001_t1w", "mr_001_in_phase"}
    ct = [row for row in _table(project.folder / "../cases.csv") if row["modality"] == "CT"]
    labeled = {row["case"] for row in ct if row["label"]}
    assert {row["case"] for row in project.table("prepared/fake/structure.csv")} == labeled != set()
    assert (project.results / "prepared/fake/translated.png").stat().st_size > 1000
    jobs = jobs_of(project)
    assert {job.rule for job in jobs if job.opened} == {"train_translator", "prepare", "prepare_labels", "structure"}
    assert undeclared(jobs) == {} and unread(jobs) == {}


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))
