"""Kill a tiny chain again and again, at seeded random moments, and compare what it leaves with an uninterrupted run.

    python benchmarks/faults/run.py OUT --kills 100 --write      # go on with the same command after an interruption
    python benchmarks/faults/run.py OUT --kills 20 --slurm --write       # the same on a Slurm of this machine alone

The chain is that of the tests (``tests/workflow/tiny_project.py``): good and bad scans, models, a label set, final
label maps, scores, report. After a random time it is hit in one of three ways: ``kill -9`` of all processes; SIGTERM to
all; ``kill -9`` of the front process alone, whose jobs run on beside those of the next start. On Slurm: ``scancel`` of
a job; ``kill -9`` of the front process; ``kill -9`` of the controller, which is started again later. The same command
goes on. A chain that comes to its end is compared, and the next one starts from nothing, until there were enough kills.
A start that nobody hit and that ends with an error, or not at all, is a stuck state, and stops the benchmark. The table
holds what was seen in both places.
"""

import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import psutil
from command_line import parser, show

from labelloop.base.files import write_json
from labelloop.base.wording import count
from labelloop.run.slurm import jobs_in_queue

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "workflow")]

from one_machine_slurm import FLAGS, Slurm, one_machine_slurm  # noqa: E402
from tiny_project import RECIPE, Collection, Project  # noqa: E402

TRAINER = {"epochs": 40, "iterations_per_epoch": 4, "validation_iterations": 1, "save_every": 1}
LONGER = RECIPE | {"models": {name: {"trainer": TRAINER} for name in ("teacher", "student")}}
"""Trainings long enough to be killed after checkpoints."""
ONE_TEACHER = LONGER | {"labels": {"pseudo": {"predict": ["teacher"], "select": {"min_pairwise_dice": None}}}}
SHORTEST_S, LONGEST_S = 5, 60
"""When a chain is hit; later where the machine is slow, up to a fifth of the time of an uninterrupted run."""
STUCK_S = 3600
"""A start that nobody hits has to end within this time."""


class Here:
    """A chain on this machine, and how it is ended."""

    name, folder, recipe, shard_size = "on this machine", "local", LONGER, 8
    arguments = ("--cores", "2")
    ways = {"kill -9 of all": 0.5, "SIGTERM to all": 0.25, "kill -9 of the front process": 0.25}  # noqa: RUF012

    def hit(self, process: subprocess.Popen, project: Project, chance: random.Random) -> str:
        """End a run; return how. What runs on after a kill of the front process is not waited for."""
        way = pick(self.ways, chance)
        if way == "kill -9 of the front process":
            process.kill()
        elif way == "SIGTERM to all":
            os.killpg(process.pid, signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(0.2)
        return way

    def at_work(self, process: subprocess.Popen, project: Project) -> list[str]:
        """Return the rules of the jobs that run below a front process, by the logs that they hold open."""
        logs, rules = project.results.resolve() / "logs", set()
        for child in psutil.Process(process.pid).children(recursive=True):
            held = [Path(file) for file in opened(child)]
            rules |= {path.relative_to(logs).parts[0] for path in held if path.is_relative_to(logs)}
        return sorted(rules)


class OnSlurm:
    """A chain on the one-machine Slurm; fewer and larger jobs, as each costs seconds before any code starts."""

    name, folder, recipe, shard_size = "on Slurm", "slurm", ONE_TEACHER, 80
    arguments = ("--profile", "slurm", *FLAGS)
    ways = {"scancel": 0.5, "kill -9 of the front process": 0.25, "controller killed": 0.25}  # noqa: RUF012

    def __init__(self, slurm: Slurm):
        self._slurm = slurm

    def hit(self, process: subprocess.Popen, project: Project, chance: random.Random) -> str:
        """Hit a run, which goes on unless its front process was killed; return how."""
        way, jobs = pick(self.ways, chance), sorted(jobs_in_queue(project.folder))
        if way == "scancel" and jobs:
            subprocess.run(["scancel", chance.choice(jobs)], check=True)
        elif way == "controller killed":
            self._slurm.kill_controller()
            time.sleep(chance.uniform(1, 40))
            self._slurm.start_controller()
        else:
            way = "kill -9 of the front process"
            process.kill()
            process.wait()
        return way

    def at_work(self, process: subprocess.Popen, project: Project) -> list[str]:
        """Return the steps of all jobs in the queue."""
        return sorted({what.split()[0].rstrip(",") for what in jobs_in_queue(project.folder).values()})


def main() -> None:
    arguments = parser(__doc__, "kills", 100, "folder for scans, chains and what was seen; goes on where it stopped")
    arguments.add_argument("--slurm", action="store_true", help="on the one-machine Slurm of the tests")
    options = arguments.parse_args()
    scans = options.out / "scans"
    table = scans / "cases.csv" if (scans / "cases.csv").is_file() else Collection(scans).table
    with ExitStack() as stack:
        place = OnSlurm(stack.enter_context(one_machine_slurm())) if options.slurm else Here()
        Benchmark(options.out / place.folder, table, place, options.kills, options.seed).run()
    show(report({p.name: read(options.out / p.folder) for p in (Here, OnSlurm)}, options.seed), "faults", options.write)


@dataclass
class Benchmark:
    """Chains of a case table in a folder that are hit at random moments; ``seen`` is kept in ``seen.json``."""

    out: Path
    table: Path
    place: Here | OnSlurm
    kills: int
    seed: int

    def __post_init__(self) -> None:
        self.seen = read(self.out)

    def run(self) -> None:
        """Hit chains until there were enough kills and the last chain has ended."""
        if not (self.out / "expected.json").is_file():
            reference, began = self.chain("reference"), time.monotonic()
            reference.run()
            content = {"seconds": time.monotonic() - began, "files": reference.contents()}
            write_json(self.out / "expected.json", content)
        expected, ends = json.loads((self.out / "expected.json").read_text()), self.seen["ends"]
        while self.missing() or not ends or ends[-1]["kills"] < len(self.seen["kills"]):
            project = self.chain(f"chain_{len(ends)}")
            if self.start(project, max(LONGEST_S, expected["seconds"] / 5)):
                ours, theirs = project.contents(), expected["files"]
                different = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
                left = [str(file) for file in project.results.rglob(".tmp-*")]
                self.note("ends", {"kills": len(self.seen["kills"]), "different": different, "left": left})

    def start(self, project: Project, longest_s: float) -> bool:
        """Start a chain, and hit it at random moments until it ends; return whether it came to its end.

        Raises:
            RuntimeError: it ended with an error that nobody caused, or did not end.
        """
        process, hits, log = project.start(*self.place.arguments), 0, project.folder / "run.log"
        try:
            while True:
                chance = random.Random(f"{self.seed} {len(self.seen['kills'])}")
                try:
                    code = process.wait(chance.uniform(SHORTEST_S, longest_s) if self.missing() else STUCK_S)
                except subprocess.TimeoutExpired:
                    code = None
                if code == 0 or (code and hits):
                    return code == 0
                if code or not self.missing():
                    raise RuntimeError(f"stuck: {project.folder}, exit code {code}\n{log.read_text()[-5000:]}")
                hits += 1
                kill = {"at": self.place.at_work(process, project) or ["start"], "checkpoints": checkpoints(project)}
                self.note("kills", {"way": self.place.hit(process, project, chance), **kill})
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def missing(self) -> int:
        """Return how many kills are still to come."""
        return max(0, self.kills - len(self.seen["kills"]))

    def note(self, what: str, row: dict) -> None:
        """Write down and print a kill or the end of a chain."""
        self.seen[what].append(row)
        write_json(self.out / "seen.json", self.seen)
        print(len(self.seen["kills"]), row, flush=True)

    def chain(self, name: str) -> Project:
        """Return a chain, made when it is not there."""
        folder = self.out / name
        if folder.is_dir():
            return Project(folder)
        return Project.new(folder, self.table, self.place.recipe, shard_size=self.place.shard_size)


def pick(ways: dict[str, float], chance: random.Random) -> str:
    """Return one of some ways, by their weights."""
    return chance.choices(list(ways), list(ways.values()))[0]


def read(out: Path) -> dict:
    """Return what was seen of chains in ``out``."""
    seen = out / "seen.json"
    return json.loads(seen.read_text()) if seen.is_file() else {"kills": [], "ends": []}


def checkpoints(project: Project) -> int:
    """Return how many trainings of the chain have a checkpoint and are not finished."""
    return len(list(project.results.glob("models/*/work/checkpoint.pth")))


def opened(process: psutil.Process) -> list[str]:
    """Return the files that a process holds open; none when it has ended."""
    try:
        return [file.path for file in process.open_files()]
    except psutil.Error:
        return []


def report(seen: dict[str, dict], seed: int) -> str:
    """Return the table of what was seen, by place."""
    lines = [
        "# Kills", "",
        f"`benchmarks/faults/run.py`, {date.today()}, {platform.machine()}, {os.cpu_count()} cores, seed {seed}.", "",
    ]  # fmt: skip
    for place, found in seen.items():
        kills, ends = found["kills"], found["ends"]
        if not kills:
            continue
        ways, steps = Counter(k["way"] for k in kills), Counter(step for kill in kills for step in kill["at"])
        resuming = sum(kill["checkpoints"] > 0 for kill in kills)
        different, left = (sum(len(end[name]) for end in ends) for name in ("different", "left"))
        lines += [
            f"{count(len(kills), 'kill')} {place} in {count(len(ends), 'chain')}, {resuming} of them while a training "
            f"had a checkpoint. Against an uninterrupted run, {different} label maps, tables and weights differ, "
            f"{left} temporary files are left, and no chain was stuck.", "",
            f"| how, {place} | kills |", "|---|---:|", *(f"| {way} | {n} |" for way, n in sorted(ways.items())), "",
            f"| step at work, {place} | kills |", "|---|---:|",
            *(f"| {step} | {n} |" for step, n in sorted(steps.items())), "",
        ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
