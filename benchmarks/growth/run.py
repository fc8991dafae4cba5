"""How do the front doors grow with the number of cases? Empty files stand for scans and for finished results.

    python benchmarks/growth/run.py OUT --cases 10000 100000 --write

For each number of cases, in OUT/<number> (must not be there): ``labelloop cases`` on a folder of so many images, half
of them with a label; a dry run of the recipe ``default``; and the start of a run whose results are all there and
sealed: as they were, or copied, so that each file is read. Snakemake has no records of its own of such results.
Processor time and memory are those of the command and its children. Takes half an hour and a million small files for
100,000 cases; with ``--dry``, which ends after the dry run, some minutes.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from labelloop.base.files import sha256, write_text
from labelloop.base.machine import processor
from labelloop.base.seals import put_seal
from labelloop.base.tables import TABLES
from labelloop.run.run import Run

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# From a small process: the kernel counts what a process used before it became another program.
MEASURE = """
import resource, subprocess, sys
with open(sys.argv[1], "w") as out:
    status = subprocess.run(sys.argv[2:], stdout=out, stderr=out).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(status, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""
CLI = "import sys; from labelloop.cli.main import main; sys.exit(main(sys.argv[1:]))"
MISSING = "Missing output files: "
"""What a dry run without results says of every job, before its outputs."""
HEADER = ["| cases | jobs | command | processor time (s) | memory (MB) |", "|---:|---:|---|---:|---:|"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the empty files")
    parser.add_argument("--cases", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dry", action="store_true", help="end after the dry run")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULTS.name}")
    options = parser.parse_args()
    written = RESULTS / ("growth_dry.md" if options.dry else "growth.md")
    about = f"`benchmarks/growth/run.py`, {date.today()}, {processor()}, {os.cpu_count()} cores."
    lines = ["# Growth", "", about, "", *HEADER]
    for number in options.cases:
        for line in measure(options.out.resolve() / str(number), number, options.dry):
            lines.append(line)
            if options.write:  # the next one may take half an hour
                write_text(written, "\n".join([*lines, ""]))
    print("\n".join(lines))


def measure(folder: Path, number: int, only_dry: bool) -> Iterator[str]:
    """Yield the rows of the table for one number of cases."""
    make_scans(folder / "scans", number)
    cases = ["--images", "scans", "--labels", "scans", "--dataset", "flare22", "--test-fraction", "0.05"]
    table = timed(folder, [sys.executable, "-c", CLI, "cases", *cases, "--out", "cases.csv"])
    (folder / "config.yaml").write_text("cases: cases.csv\nrecipe: default\nresults: results\n")
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    snakemake += ["--configfile", "config.yaml", "--cores", "8"]
    dry = timed(folder, [*snakemake, "--dry-run", "--quiet", "host"])  # with reasons, which name outputs
    said = (folder / "log").read_text().splitlines()
    jobs = next(line.split()[1] for line in said if line.startswith("total"))
    missing = [line.partition(MISSING)[2].partition(";")[0] for line in said if MISSING in line]

    def row(name: str, used: tuple[float, float]) -> str:
        return f"| {number:,} | {jobs} | {name} | {used[0]:.0f} | {used[1]:.0f} |"

    yield row("`labelloop cases`", table)
    yield row("dry run", dry)
    if only_dry:
        return
    finish(folder, [name for names in missing for name in names.split(", ")])
    start = timed(folder, snakemake)
    assert "Nothing to be done" in (folder / "log").read_text()
    yield row("start, all finished", start)
    copied_at = time.time()
    for file in (folder / "results").rglob("*"):
        os.utime(file, (copied_at, copied_at))  # as far as its dates tell, each is another file now
    copied = timed(folder, snakemake)
    assert "Nothing to be done" in (folder / "log").read_text()
    yield row("the same, copied", copied)


def make_scans(folder: Path, number: int) -> None:
    """Touch so many images, every second one with a label."""
    folder.mkdir(parents=True)
    for case in range(number):
        (folder / f"case_{case:06d}_0000.nii.gz").touch()
        if case % 2:
            (folder / f"case_{case:06d}.nii.gz").touch()


def timed(folder: Path, command: list[str]) -> tuple[float, float]:
    """Run a command in ``folder``, its output in ``log``; return processor time (s) and peak memory (MB)."""
    code = [sys.executable, "-c", MEASURE, "log", *command]
    done = subprocess.run(code, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    status, cpu, mb = map(float, done.stdout.split())
    assert status == 0, (folder / "log").read_text()[-3000:]
    return cpu, mb


def finish(folder: Path, outputs: list[str]) -> None:
    """Make all outputs as empty files of one date, with the case files and the seals of their manifests."""
    os.chdir(folder)
    now = time.time()  # after the scans were made, whatever the machine is busy with
    run = Run({"cases": "cases.csv", "recipe": "default", "results": "results"})
    for output in map(Path, outputs):
        if output.suffix:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(",".join(TABLES["quarantine"]) + "\n" if output.name == "quarantine.csv" else "")
        else:
            output.mkdir(parents=True, exist_ok=True)
        os.utime(output, (now, now))
        if output.parent.name == "shards" and output.stem in run.shards.cases:
            seal(output, [case.case for case in run.shards.cases[output.stem]])


def seal(manifest: Path, cases: list[str]) -> None:
    """Touch the case files of a manifest, and seal them."""
    folder = manifest.parents[1]
    for case in cases:
        (folder / case).touch()
    empty = sha256(manifest)
    put_seal(manifest, folder, dict.fromkeys([*cases, f"shards/{manifest.name}"], empty))


if __name__ == "__main__":
    main()
