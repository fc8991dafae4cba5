"""A step opens nothing below the results but what its rule declares, and all that its rule declares.

How often images are opened is counted here, too.
"""

import base64
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import pytest
from tiny_project import Project

from labelloop.base.paths import MANIFESTS, Paths, folder_of, kept_beside
from labelloop.base.seals import seal_of
from labelloop.base.tables import read_table
from labelloop.recipe import load_recipe, unroll
from labelloop.run.wiring import Wiring

NOTED = {"report": ("logs/*", "benchmarks/*")}
"""What jobs note of themselves; the page tells it, and waits for none of it."""


@dataclass
class Job:
    """A finished job: what its rule declared, as Snakemake noted it, and what its processes opened."""

    project: Project
    rule: str
    log: Path
    inputs: set[Path] = field(default_factory=set)
    outputs: set[Path] = field(default_factory=set)
    opened: set[Path] = field(default_factory=set)
    images: Counter[str] = field(default_factory=Counter)

    @cached_property
    def listed(self) -> set[Path]:
        """Files that a declared manifest lists."""
        found = set()
        for manifest in self.inputs | self.outputs:
            if manifest.parent.name == MANIFESTS and manifest.suffix == ".csv":
                rows = read_table(manifest, "manifest")
                found |= {folder_of(manifest) / file for file in rows["file"] if file}
        return found

    @cached_property
    def patterns(self) -> list[str]:
        """What a job keeps for its own next try, its logs, and the seals of what it reads."""
        kept = [f"{self.log.with_suffix('')}.*", *(str(seal_of(path)) for path in self.inputs)]
        for path in self.outputs:
            kept += kept_beside(path)
        kept += [f"{folder}/*" for folder in self.inputs | self.outputs if folder.is_dir()]
        return kept + [f"{self.project.results}/{pattern}" for pattern in NOTED.get(self.rule, ())]

    def may_open(self, path: Path) -> bool:
        """Say whether a file is declared, or belongs to what is."""
        known = path in self.inputs | self.outputs | self.listed
        return known or any(fnmatch(str(path), pattern) for pattern in self.patterns)

    def reads(self, path: Path) -> bool:
        """Say whether it opened an input, or a file in one that is a folder."""
        return path in self.opened or any(path in other.parents for other in self.opened)


def made(path: Path) -> Path:
    """Return what a temporary file will be: those of ``files.atomic`` lie in ``.tmp-<name>/<process>/<name>``."""
    for folder in path.parents:
        if folder.name.startswith(".tmp-"):
            return folder.with_name(folder.name.removeprefix(".tmp-"))
    return path.with_name(path.name.removeprefix(".tmp-"))


def jobs_of(project: Project) -> list[Job]:
    """Return the jobs of a finished run with all that they opened below the results."""
    jobs: dict[Path, Job] = {}
    records = project.folder / ".snakemake" / "metadata"
    for record in filter(Path.is_file, records.rglob("*")):
        note = json.loads(record.read_text())
        name = str(record.relative_to(records)).replace("/", "").replace("@", "")  # long names are cut into folders
        output = project.folder / base64.b64decode(name).decode()
        log = project.folder / note["log"][0]
        job = jobs.setdefault(log, Job(project, note["rule"], log))
        job.outputs.add(output)
        job.inputs |= {project.folder / file for file in note["input"] if not Path(file).is_absolute()}
    for notes in project.opened.iterdir():
        lines = notes.read_text().splitlines()
        below = {Path(line) for line in set(lines) if line.startswith(f"{project.results}/")}
        (log,) = below & jobs.keys()
        jobs[log].opened |= {made(path) for path in below if not path.is_dir()}
        jobs[log].images.update(line for line in lines if line.endswith("_0000.nii.gz"))
    return list(jobs.values())


def undeclared(jobs: list[Job]) -> dict[str, set[str]]:
    """Return by rule what was opened and is not declared."""
    found = defaultdict(set)
    for job in jobs:
        for path in job.opened:
            if not job.may_open(path):
                found[job.rule].add(str(path.relative_to(job.project.results)))
    return dict(found)


def unread(jobs: list[Job]) -> dict[str, set[str]]:
    """Return by rule what was declared and not opened, of jobs that were watched."""
    found = defaultdict(set)
    for job in [job for job in jobs if job.opened]:
        for path in job.inputs:
            if path.is_relative_to(job.project.results) and not job.reads(path):
                found[job.rule].add(str(path.relative_to(job.project.results)))
    return dict(found)


@pytest.fixture(scope="module")
def jobs(reference: Project) -> list[Job]:
    return jobs_of(reference)


def test_a_step_opens_nothing_below_the_results_that_its_rule_does_not_declare(jobs):
    assert len(jobs) > 30 and all(job.opened for job in jobs)
    assert undeclared(jobs) == {}


def test_a_step_opens_all_that_its_rule_declares(jobs):
    assert unread(jobs) == {}


def test_a_file_that_is_not_declared_is_noticed(jobs):
    """As if the rule had not named the cases of its shard."""
    job = next(job for job in jobs if job.rule == "fuse")
    missing = next(path for path in job.inputs if path.name.endswith(".cases.csv"))
    less = replace(job, inputs=job.inputs - {missing})
    assert undeclared([less]) == {"fuse": {str(missing.relative_to(job.project.results))}}
    more = replace(job, inputs=job.inputs | {job.project.results / "groups.csv"})
    assert unread([more]) == {"fuse": {"groups.csv"}}


def test_what_says_which_cases_there_are_is_no_param(reference):
    """Rows of the case table reach the steps as a file for each shard."""
    records = [p for p in (reference.folder / ".snakemake" / "metadata").rglob("*") if p.is_file()]
    notes = [json.loads(record.read_text()) for record in records]
    case = next(row["case"] for row in reference.table("cases.csv"))
    holding = {note["rule"] for note in notes if case in json.dumps(note["params"])}
    assert holding == {"survey"}
    assert Path(Paths(str(reference.results)).survey("cases", "train-000")).is_file()


def test_the_image_that_a_model_learns_from_is_read_at_most_five_times_in_best(jobs, collection):
    """By the survey, for each way of preparing images, and for each label set that is checked; `predict` reads none.

    Beside that, images are read of cases of which no model has learned (`held_out`), and for pictures.
    """
    trained = {row["image"] for row in collection.phantom.values() if row["role"] == "train"}
    read: dict[str, Counter[str]] = defaultdict(Counter)
    for job in jobs:
        read[job.rule].update({image: times for image, times in job.images.items() if image in trained})
    most = {rule: max(times.values()) for rule, times in read.items() if times}
    assert {rule: most.pop(rule) for rule in ("survey", "prepare", "check")} == {"survey": 1, "prepare": 1, "check": 1}
    assert most.keys() <= {"held_out", "review", "report"}
    best = unroll(load_recipe("best"))
    wiring = Wiring(best, best)
    prepared = {wiring.images(model) for model in wiring.used_models}
    assert 1 + len(prepared) + len(wiring.label_sets_checked) <= 5
