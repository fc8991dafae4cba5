"""A dry run on thousands of cases shows the whole chain, quickly."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tiny_project import ROOT

from labelloop.recipe import load_recipe, unroll
from labelloop.run import cost

CASES = 4000
SECONDS, GIGABYTES, JOBS = 20, 1, 1500
# From a small process: the kernel counts what a process used before it became another program, and pytest is large.
MEASURE = """
import resource, subprocess, sys
with open("out", "w") as out:
    status = subprocess.run(sys.argv[1:], stdout=out, stderr=out).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(status, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


def test_dry_run_on_4000_cases_shows_three_rounds(tmp_path: Path):
    folder = tmp_path / "scans"
    folder.mkdir()
    rows = ["case,image,label,dataset,role"]
    for number in range(CASES):
        image, label = f"case_{number:04d}_0000.nii.gz", f"case_{number:04d}.nii.gz" if number % 2 else ""
        for name in filter(None, (image, label)):
            (folder / name).touch()
        rows.append(f"case_{number:04d},{image},{label},flare22,{'test' if number % 20 == 1 else 'train'}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    config = {"cases": str(folder / "cases.csv"), "recipe": "default", "results": "results", "rounds": 3}
    config |= {"gpus_per_training": 2, "stage": "$TMPDIR"}
    (tmp_path / "config.yaml").write_text(json.dumps(config))

    places = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "config.yaml"]
    command = [sys.executable, "-m", "snakemake", *places, "--cores", "32", "--resources", "gpu=4", "--dry-run"]
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    status, seconds, kib = map(float, measured.stdout.split())
    text = (tmp_path / "out").read_text()
    assert status == 0, text[-3000:]

    jobs = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}
    assert jobs["total"] <= JOBS
    assert set(jobs) == {
        "survey", "tested", "collect", "group", "prepare", "prepare_labels", "train", "predict", "fuse", "agree",
        "check", "held_out", "select", "review", "infer", "summarize", "evaluate", "report", "all", "total",
    }  # fmt: skip
    shards = [len(set(re.findall(rf"\b{role}-\d+\b", text))) for role in ("train", "test")]
    expected = cost.jobs(unroll(load_recipe("default", rounds=3)), *shards)
    assert {name: count for name, count in jobs.items() if name not in ("all", "total")} == expected
    for name in ("_round1", "_round2", ""):
        assert f"train: model student{name}\n" in text
        assert f"select: trusted cases and classes of label set pseudo{name}\n" in text
    assert seconds <= SECONDS  # of processor time: what else the machine does does not matter
    assert kib <= GIGABYTES * 2**20
