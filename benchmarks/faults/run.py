"""Kill a tiny chain again and again, at seeded random moments, and compare what it leaves with an uninterrupted run.

    python benchmarks/faults/run.py OUT --kills 100 --write      # go on with the same command after an interruption

The chain is that of the tests (``tests/workflow/tiny_project.py``): good and bad scans, two models, a label set, final
label maps, scores, report. Each start is ended after a random time, in one of three ways: ``kill -9`` of all processes;
SIGTERM to all; ``kill -9`` of the front process alone, whose jobs run on beside those of the next start. A chain that
comes to its end is compared, and the next one starts from nothing, until there were enough kills. A start that ends on
its own with an error is a stuck state, and stops the benchmark.
"""

import argparse
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path

import psutil

from labelloop.files import sha256, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "workflow")]

from tiny_project import RECIPE, Collection, Project  # noqa: E402

TABLE = ROOT / "benchmarks" / "results" / "faults.md"
TRAINER = {"epochs": 40, "iterations_per_epoch": 4, "validation_iterations": 1, "save_every": 1}
LONGER = RECIPE | {"models": {name: {"trainer": TRAINER} for name in ("teacher", "student")}}
"""Trainings long enough to be killed after checkpoints."""
SHORTEST_S, LONGEST_S = 5, 60
"""When a start is ended; later where the machine is slow, up to a fifth of the time of an uninterrupted run."""
WAYS = {"kill -9 of all": 0.5, "SIGTERM to all": 0.25, "kill -9 of the front process": 0.25}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for scans, chains and what was seen; goes on where it stopped")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write the table to {TABLE.name}")
    options = parser.parse_args()
    out = options.out.resolve()
    collection = Collection(out / "scans") if not (out / "scans").is_dir() else None
    table = collection.table if collection else out / "scans" / "cases.csv"
    reference = chain(out / "reference", table)
    if not (out / "expected.json").is_file():
        began = time.monotonic()
        reference.run()
        write_json(out / "expected.json", {"seconds": time.monotonic() - began, "files": contents(reference)})
    whole = json.loads((out / "expected.json").read_text())
    expected, longest = whole["files"], max(LONGEST_S, whole["seconds"] / 5)
    seen = json.loads((out / "seen.json").read_text()) if (out / "seen.json").is_file() else {"kills": [], "ends": []}
    while len(seen["kills"]) < options.kills or not seen["ends"] or seen["ends"][-1]["kills"] < len(seen["kills"]):
        killing = len(seen["kills"]) < options.kills
        project = chain(out / f"chain_{len(seen['ends'])}", table)
        kill = start(project, random.Random(f"{options.seed} {len(seen['kills'])}") if killing else None, longest)
        if kill:
            seen["kills"].append(kill)
        else:
            found = contents(project)
            different = sorted(n for n in {*expected, *found} if expected.get(n) != found.get(n))
            left = [str(f) for f in project.results.rglob(".tmp-*")]
            seen["ends"].append({"kills": len(seen["kills"]), "different": different, "left": left})
        write_json(out / "seen.json", seen)
        print(len(seen["kills"]), kill or seen["ends"][-1], flush=True)
    text = report(seen, options.seed)
    print(text)
    if options.write:
        write_text(TABLE, text)


def chain(folder: Path, table: Path) -> Project:
    """Return the chain in ``folder``, made when it is not there."""
    return Project(folder) if folder.is_dir() else Project.new(folder, table, LONGER, shard_size=8)


def contents(project: Project) -> dict[str, str]:
    """Return the sha256 of all label maps, tables and weights."""
    weights = project.results.glob("models/*/weights.pt")
    return project.contents() | {str(f.relative_to(project.results)): sha256(f) for f in sorted(weights)}


def start(project: Project, chance: random.Random | None, longest_s: float) -> dict | None:
    """Start the chain, and end it after a random time; return how, or None when it came to its end.

    Raises:
        RuntimeError: it ended with an error that nobody caused.
    """
    log = project.folder / "run.log"
    with log.open("w") as handle:
        process = subprocess.Popen(
            project.command("--cores", "2"), cwd=ROOT, stdout=handle, stderr=handle, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    seconds = chance.uniform(SHORTEST_S, longest_s) if chance else None
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        assert chance is not None
        way = chance.choices(list(WAYS), list(WAYS.values()))[0]
        at = {
            "seconds": round(seconds or 0, 1),
            "way": way,
            "at": at_work(process.pid),
            "checkpoints": checkpoints(project),
        }
        end(process, way)
        return at
    if code:
        raise RuntimeError(f"stuck: {project.folder} ended with {code}\n{log.read_text()[-5000:]}")
    return None


def at_work(front: int) -> list[str]:
    """Return the steps whose scripts run below a front process; ``start`` when there is none yet."""
    steps = set()
    for child in psutil.Process(front).children(recursive=True):
        try:
            found = re.search(r"\.snakemake/scripts/tmp\w+\.(\w+)\.py", " ".join(child.cmdline()))
        except psutil.Error:
            continue
        if found:
            steps.add(found[1])
    return sorted(steps) or ["start"]


def checkpoints(project: Project) -> int:
    """Return how many trainings of the chain have a checkpoint and are not finished."""
    return len(list(project.results.glob("models/*/work/checkpoint.pth")))


def end(process: subprocess.Popen, way: str) -> None:
    """End a run in one of :data:`WAYS`. What runs on after a kill of the front process is not waited for."""
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


def report(seen: dict, seed: int) -> str:
    kills, ends = seen["kills"], seen["ends"]
    steps = Counter(step for kill in kills for step in kill["at"])
    resuming = sum(kill["checkpoints"] > 0 for kill in kills)
    different, left = (sum(len(end[name]) for end in ends) for name in ("different", "left"))
    lines = [
        "# Kills", "",
        f"`benchmarks/faults/run.py`, {date.today()}, {platform.machine()}, {os.cpu_count()} cores, seed {seed}.", "",
        f"{len(kills)} kills in {len(ends)} chains, {resuming} of them while a training had a checkpoint. Against an "
        f"uninterrupted run, {different} label maps, tables and weights differ, {left} temporary files are left, and "
        "no chain was stuck.", "",
        "| how | kills |", "|---|---:|",
        *(f"| {way} | {sum(k['way'] == way for k in kills)} |" for way in WAYS), "",
        "| step at work | kills |", "|---|---:|",
        *(f"| {step} | {count} |" for step, count in sorted(steps.items())), "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
