"""The Slurm profile on a real Slurm: GPUs of two jobs at once, then the whole chain."""

import re
import shutil
import subprocess
import sys

import pytest
from one_machine_slurm import FLAGS, one_machine_slurm, why_not
from tiny_project import RECIPE, ROOT, Project

SNAKEFILE = """
rule all:
    input:
        expand("results/{model}.txt", model=["teacher", "student"]),


rule train:
    output:
        "results/{model}.txt",
    threads: 2
    resources:
        gpu=1,
        mem_mb=16000,
    shell:
        "sleep 3; echo $SLURM_JOB_PARTITION $CUDA_VISIBLE_DEVICES > {output}"
"""
ONE_TEACHER = RECIPE | {"labels": {"pseudo": {"predict": ["teacher"], "select": {"min_pairwise_dice": None}}}}
NETWORK_RULES = {"train", "predict", "infer"}

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=f"no Slurm: {why_not()}")]


@pytest.fixture(scope="module")
def slurm():
    with one_machine_slurm():
        yield


def test_two_jobs_at_once_get_different_gpus(slurm, tmp_path):
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "slurm").symlink_to("profiles/slurm")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", *FLAGS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 0, done.stderr
    results = [(tmp_path / "results" / f"{model}.txt").read_text().split() for model in ("teacher", "student")]
    assert sorted(results) == [["gpu", "0"], ["gpu", "1"]]


def test_whole_chain(slurm, reference, collection, tmp_path):
    project = Project.new(tmp_path / "project", collection.table, ONE_TEACHER, device="auto", shard_size=80)
    project.snakemake("--profile", "slurm", *FLAGS)
    assert project.planned() == set()
    assert (project.results / "report" / "index.html").stat().st_size

    jobs = [line.split() for line in _ask("squeue", "-h", "-t", "all", "-O", "Partition,tres-per-job,Comment:200")]
    where = {(_rule(comment), partition, gpus) for partition, gpus, comment in jobs if _rule(comment) in RULES}
    assert where == {(rule, *(("gpu", "gres:gpu:1") if rule in NETWORK_RULES else ("cpu", "N/A"))) for rule in RULES}

    same = ("annotation.csv", "groups.csv", "quarantine.csv", "evaluation/teacher.csv")
    ours, theirs = project.contents(), reference.contents()
    maps = [name for name in theirs if re.fullmatch(r"models/teacher/predictions/[^/]+\.nii\.gz", name)]
    assert maps and {name: ours[name] for name in (*same, *maps)} == {name: theirs[name] for name in (*same, *maps)}


RULES = {
    "survey", "tested", "collect", "group", "prepare", "prepare_labels", "train", "predict", "fuse", "check", "select",
    "infer", "summarize", "evaluate", "report",
}  # fmt: skip


def _rule(comment: str) -> str:
    return comment.removeprefix("rule_").split("_wildcards_")[0]


def _ask(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
