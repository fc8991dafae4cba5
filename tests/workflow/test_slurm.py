"""Both profiles on a real Slurm: partitions, GPUs, retries, logs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from one_machine_slurm import FLAGS, one_machine_slurm, why_not

ROOT = Path(__file__).parents[2]
SNAKEFILE = """
rule all:
    input:
        expand("results/{model}.txt", model=["teacher", "student"]),


rule prepare:
    output:
        "results/prepared.txt",
    shell:
        "echo $SLURM_JOB_PARTITION > {output}"


rule train:
    input:
        "results/prepared.txt",
    output:
        "results/{model}.txt",
    threads: 2
    resources:
        gpu=1,
        mem_mb=16000,
    shell:
        "sleep 3; echo $(cat {input}) $SLURM_JOB_PARTITION $CUDA_VISIBLE_DEVICES > {output}"
"""

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=f"no Slurm: {why_not()}")]


@pytest.fixture(scope="module")
def slurm():
    with one_machine_slurm():
        yield


def test_profile_sends_jobs_to_their_partitions_and_gpus(slurm, tmp_path):
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "slurm").symlink_to("profiles/slurm")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", *FLAGS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 0, done.stderr
    results = [(tmp_path / "results" / f"{model}.txt").read_text().split() for model in ("teacher", "student")]
    assert [partitions for *partitions, _ in results] == [["cpu", "gpu"]] * 2
    assert {gpu for *_, gpu in results} == {"0", "1"}  # at the same time, on different GPUs
