"""A dry run on thousands of cases shows the whole chain, quickly."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tiny_project import ROOT

CASES = 4000
SECONDS, GIGABYTES, JOBS = 20, 1, 1500


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
    (tmp_path / "config.yaml").write_text(json.dumps(config))

    places = ["--directory", str(tmp_path), "--configfile", str(tmp_path / "config.yaml")]
    command = [sys.executable, "-m", "snakemake", *places, "--cores", "8", "--dry-run"]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
    text = (tmp_path / "out").read_text() + (tmp_path / "err").read_text()
    assert status == 0, text[-3000:]

    jobs = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}
    assert jobs["total"] <= JOBS
    assert set(jobs) == {
        "survey", "collect", "group", "prepare", "prepare_labels", "train", "predict", "fuse", "agree", "check",
        "select", "infer", "summarize", "evaluate", "report", "all", "total",
    }  # fmt: skip
    for name in ("", "_round2", "_round3"):
        assert f"results/models/student{name}/weights.pt" in text
        assert f"results/labels/pseudo{name}/selected.csv" in text
    assert used.ru_utime + used.ru_stime <= SECONDS  # of processor time: what else the machine does does not matter
    assert used.ru_maxrss <= GIGABYTES * 2**20  # KiB
