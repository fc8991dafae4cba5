"""Snakemake in a folder of its own on a chain that runs in a minute, and questions to ask about what it did."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bad_inputs import BadInputs, make_bad_inputs
from labelloop.base.files import sha256
from labelloop.phantom import write_phantom

ROOT = Path(__file__).parents[2]
STALL, OPENED = Path(__file__).parent / "stall", Path(__file__).parent / "opened"
PLAN = {"spacing_mm": [12, 12, 12], "patch": [16, 16, 24], "features": [4, 8]}
TRAINER = {"epochs": 3, "iterations_per_epoch": 2, "validation_iterations": 1, "save_every": 1}
RECIPE = {
    "extends": "default",
    "plans": {"fine": PLAN},
    "models": {"teacher": {"trainer": TRAINER}, "student": {"trainer": TRAINER}},
}
ONE_THREAD = ["--set-threads", "train=1", "predict=1", "infer=1"]
"""So that two networks run at once on two cores, and that results do not depend on the number of cores."""
LATE = "phantom_007"
"""A case with a tumor label only, which the table does not name at first."""


class Collection:
    """Images and labels: a phantom, and beside it a bad file of every kind with a few good ones.

    ``table`` names all cases but one, ``longer_table`` that one, too.
    """

    def __init__(self, folder: Path):
        self.bad: BadInputs = make_bad_inputs(folder / "bad")
        phantom = _rows(write_phantom(folder / "phantom", cases=9, seed=1, spacing_mm=9))
        self.phantom = {row["case"]: row for row in phantom}
        early = [row for row in phantom if row["case"] != LATE]
        bad = _rows(self.bad.table)
        self.table = _write(folder / "cases.csv", [*early, *bad])
        self.longer_table = _write(folder / "longer.csv", [*phantom, *bad])

    @property
    def good(self) -> set[str]:
        """Cases of ``table`` that can be used."""
        return {*self.phantom, *self.bad.good, *self.bad.warnings} - {LATE}


def _rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of a case table, with absolute paths."""
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    return [row | {c: str(table.parent / row[c]) if row[c] else "" for c in ("image", "label")} for row in rows]


def _write(table: Path, rows: list[dict[str, str]]) -> Path:
    with table.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(dict.fromkeys(column for row in rows for column in row)))
        writer.writeheader()
        writer.writerows(rows)
    return table


def _python_path(folder: Path) -> str:
    """Return the search path of Python with a folder whose ``sitecustomize`` is to be loaded."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))


class Project:
    """A working folder: ``config.yaml``, ``recipe.yaml`` and ``results``. Jobs go by ``<rule>/<wildcards>``."""

    def __init__(self, folder: Path):
        self.folder, self.results = folder, folder / "results"
        self.opened: Path | None = None
        """Where jobs note which files they open, see the folder ``opened``; None: nowhere."""

    @classmethod
    def new(cls, folder: Path, cases: Path, recipe: dict | None = None, **config) -> "Project":
        """Make the folder; ``config`` overrides the configuration of a tiny run."""
        folder.mkdir(parents=True)
        (folder / "slurm").symlink_to(ROOT / "profiles" / "slurm")  # looked up in the working folder
        (folder / "recipe.yaml").write_text(json.dumps({"name": "tiny"} | (recipe or RECIPE)))
        project = cls(folder)
        tiny = {"recipe": "recipe.yaml", "results": "results", "device": "cpu", "shard_size": 48, "workers": 0}
        tiny["review"] = 4  # each picture takes half a second
        project.configure(**{"cases": str(cases)} | tiny | config)
        return project

    def copy(self, folder: Path) -> "Project":
        """Return a copy in which nothing needs to be redone: with Snakemake's notes and all file times."""
        subprocess.run(["cp", "-a", self.folder, folder], check=True)
        return Project(folder)

    def configure(self, **config) -> None:
        """Change the configuration."""
        path = self.folder / "config.yaml"
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | config))  # JSON is YAML

    def command(self, *arguments: str) -> list[str]:
        """Return what is typed in the project's root, with the working folder elsewhere."""
        places = ["--directory", str(self.folder), "--configfile", str(self.folder / "config.yaml")]
        return [sys.executable, "-m", "snakemake", *places, *ONE_THREAD, *arguments]

    def snakemake(self, *arguments: str) -> str:
        """Run Snakemake to its end; return what it printed."""
        environment = dict(os.environ)
        if self.opened:
            environment |= {"OPENED": str(self.opened), "PYTHONPATH": _python_path(OPENED)}
        done = subprocess.run(
            self.command(*arguments), cwd=ROOT, env=environment, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-9000:]}"
        return done.stdout

    def told(self, *arguments: str) -> str:
        """Run Snakemake to its end; return what it says beside what it prints."""
        done = subprocess.run(
            self.command(*arguments), cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr[-9000:]
        return done.stderr

    def run(self, *arguments: str) -> set[str]:
        """Run the workflow; return the jobs that were done."""
        before = self._benchmarks()
        self.snakemake("--cores", "2", *arguments)
        return {job for job, stamp in self._benchmarks().items() if before.get(job) != stamp}

    def planned(self) -> set[str]:
        """Return the jobs that the next run would do."""
        header, *lines = self.snakemake("--summary").splitlines()
        rows = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
        logs = [Path(row["log-file(s)"]) for row in rows if row["plan"] != "no update"]
        return {str(log.relative_to("results/logs").with_suffix("")) for log in logs}

    def start_and_stall(self, pattern: str, count: int, *targets: str) -> tuple[subprocess.Popen, Path]:
        """Start the workflow; whoever writes file number ``count`` matching ``pattern`` stops half-way (see ``stall``).

        Returns:
            The process, leader of a process group of its own, and a file that will appear and name the file in work.
        """
        mark = self.folder / "stalled"
        mark.unlink(missing_ok=True)
        process = self.start("--cores", "2", *targets, stalls=[(pattern, count, mark)])
        return process, mark

    def start(self, *arguments: str, stalls: Sequence[tuple[str, int, Path]] = ()) -> subprocess.Popen:
        """Start the workflow in a process group of its own; it prints into ``run.log``.

        Args:
            stalls: patterns, counts and marks, see ``stall``.
        """
        extra = {"PYTHONPATH": _python_path(STALL)} if stalls else {}
        extra |= {"STALLS": json.dumps([(pattern, count, str(mark)) for pattern, count, mark in stalls])}
        with (self.folder / "run.log").open("w") as log:
            return subprocess.Popen(
                self.command(*arguments), cwd=ROOT, env=os.environ | extra, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def contents(self) -> dict[str, str]:
        """Return the sha256 of all label maps, tables and weights. ``efficiency.csv`` and ``benchmarks`` hold times."""
        kinds = ("**/*.nii.gz", "**/*.csv", "models/*/weights.pt")
        files = [file for kind in kinds for file in self.results.glob(kind)]
        names = {str(f.relative_to(self.results)): f for f in files if "efficiency" not in str(f)}
        return {name: sha256(file) for name, file in sorted(names.items())}

    def times(self, pattern: str) -> dict[str, int]:
        """Return the modification times of the files in ``results`` that match and are finished."""
        files = [f for f in self.results.glob(pattern) if not f.name.startswith(".tmp-")]
        return {str(f.relative_to(self.results)): f.stat().st_mtime_ns for f in files}

    def table(self, name: str) -> list[dict[str, str]]:
        """Return the rows of a table in ``results``."""
        with (self.results / name).open(newline="") as handle:
            return list(csv.DictReader(handle))

    def _benchmarks(self) -> dict[str, tuple[int, int]]:
        base = self.results / "benchmarks"
        files = {str(f.relative_to(base).with_suffix("")): f.stat() for f in base.rglob("*.tsv")}
        return {job: (status.st_mtime_ns, status.st_ino) for job, status in files.items()}
