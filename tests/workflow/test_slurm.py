"""The Slurm profile on a real Slurm: GPUs of two jobs at once, then a whole chain under fire."""

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from one_machine_slurm import FLAGS, Slurm, one_machine_slurm, why_not
from test_kill import wait_for
from tiny_project import RECIPE, ROOT, Project

from labelloop.run.slurm import AWAY, BACK

SNAKEFILE = """
rule all:
    input:
        expand("results/{model}.txt", model=["teacher", "student", "pair"]),


rule train:
    output:
        "results/{model}.txt",
    threads: 2
    resources:
        gpu=lambda w: 2 if w.model == "pair" else 1,
        nodes=1,
        mem_mb=16000,
    shell:
        "sleep 3; echo $SLURM_JOB_PARTITION $CUDA_VISIBLE_DEVICES > {output}"
"""
ONE_TEACHER = RECIPE | {"labels": {"pseudo": {"predict": ["teacher"], "select": {"min_pairwise_dice": None}}}}
NETWORK_RULES = {"train", "predict", "infer"}
RULES = {
    "survey", "tested", "collect", "group", "prepare", "prepare_labels", "train", "predict", "fuse", "check", "select",
    "infer", "summarize", "evaluate", "report",
}  # fmt: skip
CHECKPOINT = r"models/{}/work/checkpoint\.pth$"
STALLS = {
    "cancelled": (r"prepared/fine/[^/]+\.b2nd$", 2),
    "controller": (CHECKPOINT.format("teacher"), 1),
    "time": (CHECKPOINT.format("teacher"), 2),
    "front": (r"models/teacher/predictions/[^/]+\.nii\.gz$", 2),
    "node": (CHECKPOINT.format("student"), 2),
}
"""Faults, in the order of the chain, and the files whose n-th writing by one process they cut short."""
TOO_LITTLE_MEMORY = ["--set-resources", "review:mem_mb=attempt**5*200"]
JOB = (
    "JobID",
    "State",
    "Comment",
    "Partition",
    "tres-per-job",
    "TimeLimit",
    "MinMemory",
    "RestartCnt",
    "NodeList",
    "WorkDir",
)

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=f"no Slurm: {why_not()}")]


@pytest.fixture(scope="module")
def slurm():
    with one_machine_slurm() as running:
        yield running


def test_two_jobs_at_once_get_different_gpus_and_one_that_asks_for_two_gets_two_of_a_node(slurm, tmp_path):
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "slurm").symlink_to("profiles/slurm")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", *FLAGS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 0, done.stderr
    results = [(tmp_path / "results" / f"{m}.txt").read_text().split() for m in ("teacher", "student", "pair")]
    assert sorted(results[:2]) == [["gpu", "0"], ["gpu", "1"]]
    assert results[2] == ["gpu", "0,1"]


@dataclass
class Fire:
    """A chain on Slurm, what happens to it, and what was seen of it."""

    slurm: Slurm
    project: Project
    done: dict[str, int] = field(default_factory=dict)
    printed: str = ""
    jobs: list[dict[str, str]] = field(default_factory=list)
    lost: str = ""

    def start(self) -> None:
        """Type the command."""
        stalls = [(pattern, count, self.project.folder / name) for name, (pattern, count) in STALLS.items()]
        command = ["--profile", "slurm", *FLAGS, *TOO_LITTLE_MEMORY]
        self.process = self.project.start(*command, stalls=stalls)

    def reach(self, name: str) -> str:
        """Wait until a job has stopped where it is to be hit; return its number."""
        wait_for(self.project.folder / name, self.process)
        rule = {"cancelled": "prepare", "front": "predict"}.get(name, "train")
        running = [line.split("|") for line in ask("squeue", "-h", "-t", "running", "-o", "%i|%k")]
        return next(number for number, comment in running if rule_of(comment) == rule)

    def go_on(self, name: str) -> None:
        """Let a job that has stopped go on."""
        (self.project.folder / f"{name}.go").touch()

    def log(self, name: str) -> str:
        """Return what all jobs of a model's step have logged."""
        files = (self.project.results / "logs").glob(f"{name}*.attempts.log")
        return "".join(file.read_text() for file in sorted(files))

    def so_far(self) -> str:
        return (self.project.folder / "run.log").read_text()

    def rows(self, rule: str) -> list[dict[str, str]]:
        """Return the jobs of a rule, in the order of their numbers."""
        rows = [row for row in self.jobs if rule_of(row["Comment"]) == rule]
        return sorted(rows, key=lambda row: int(row["JobID"]))


@pytest.fixture(scope="module")
def fire(slurm, collection, tmp_path_factory) -> Fire:
    """A chain that was hit by every fault once, and came to its end."""
    folder = tmp_path_factory.mktemp("fire") / "project"
    fire = Fire(slurm, Project.new(folder, collection.table, ONE_TEACHER, device="auto", shard_size=80))
    fire.start()
    try:
        cancel(fire)
        restart_controller(fire)
        let_time_run_out(fire)
        kill_front_process(fire)
        lose_node(fire)
        code = fire.process.wait(900)
    finally:
        fire.process.kill()
    fire.printed += fire.so_far()
    assert code == 0, fire.printed[-9000:]
    fire.jobs = jobs_of(folder)
    return fire


def cancel(fire: Fire) -> None:
    number = fire.reach("cancelled")
    fire.done = fire.project.times("prepared/fine/*.b2nd")
    ask("scancel", number)


def restart_controller(fire: Fire) -> None:
    fire.reach("controller")
    fire.slurm.kill_controller()
    fire.go_on("controller")  # the training goes on while the controller is away
    until(lambda: AWAY in fire.so_far(), 240)
    fire.slurm.start_controller()


def let_time_run_out(fire: Fire) -> None:
    number = fire.reach("time")
    ask("scontrol", "update", f"jobid={number}", "timelimit=1")  # the training has run for about that long
    until(lambda: state(number) in ("COMPLETING", "TIMEOUT"), 120)
    fire.go_on("time")  # it was asked to stop, and has KillWait until it is killed


def kill_front_process(fire: Fire) -> None:
    fire.reach("front")
    fire.process.kill()
    fire.process.wait()
    fire.printed += fire.so_far()
    fire.start()
    until(lambda: "waiting until it ends" in fire.log("predict/teacher/"), 120)
    fire.go_on("front")


def lose_node(fire: Fire) -> None:
    number = fire.reach("node")
    (fire.lost,) = ask("squeue", "-h", "-j", number, "-o", "%N")
    fire.slurm.lose(fire.lost)
    until(lambda: state(number) in ("PENDING", "RUNNING"), 60)


def test_whole_chain_ends_as_without_faults(fire, collection, tmp_path):
    reference = Project.new(tmp_path / "reference", collection.table, ONE_TEACHER, device="auto", shard_size=80)
    reference.run()
    ours, theirs = fire.project.contents(), reference.contents()
    assert {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)} == set()
    assert fire.project.planned() == set()
    assert (fire.project.results / "report" / "index.html").stat().st_size
    assert not list(fire.project.results.rglob(".tmp-*"))


def test_jobs_go_to_the_partition_that_can_hold_them(fire):
    where = {(rule_of(row["Comment"]), row["Partition"], row["tres-per-job"]) for row in fire.jobs}
    expected = {(rule, *(("gpu", "gres:gpu:1") if rule in NETWORK_RULES else ("cpu", "N/A"))) for rule in RULES}
    assert {row for row in where if row[0] in RULES} == expected


def test_a_cancelled_job_comes_back_and_only_its_case_in_work_is_lost(fire):
    assert [row["State"] for row in fire.rows("prepare")] == ["CANCELLED", "COMPLETED"]
    after = fire.project.times("prepared/fine/*.b2nd")
    assert fire.done and {name: after[name] for name in fire.done} == fire.done
    assert "SLURM status is: 'CANCELLED'" in fire.printed


def test_a_controller_that_is_away_is_waited_for(fire):
    assert fire.printed.count(AWAY) == fire.printed.count(BACK) >= 1


def test_a_job_over_its_time_comes_back_with_more_and_loses_nothing(fire):
    first, second, *_ = [row for row in fire.rows("train") if row["Comment"].endswith("teacher")]
    assert (first["State"], second["State"]) == ("TIMEOUT", "COMPLETED")
    assert second["TimeLimit"] == "4-00:00:00"
    log = fire.log("train/teacher")
    assert "SIGTERM: stopping after the step at hand" in log
    assert "resuming after epoch 2 of 3" in log


def test_jobs_of_a_front_process_that_was_killed_are_told_and_waited_for(fire):
    assert "jobs of a former run of this folder are still in the Slurm queue" in fire.printed
    rows = fire.rows("predict")
    assert {row["State"] for row in rows} == {"COMPLETED"}
    by_shard = Counter(row["Comment"] for row in rows)
    assert len(by_shard) == 2 and 2 in by_shard.values()  # by both runs, unless it was done when the second looked
    assert "free again" in fire.log("predict/teacher/")


def test_a_job_on_a_lost_node_goes_on_elsewhere_from_its_checkpoint(fire):
    (row,) = [row for row in fire.rows("train") if row["Comment"].endswith("student")]
    assert (row["State"], row["RestartCnt"]) == ("COMPLETED", "1")
    assert row["NodeList"] != fire.lost
    assert "resuming after epoch 1 of 3" in fire.log("train/student")


def test_a_job_over_its_memory_comes_back_with_more(fire):
    first, second = fire.rows("review")
    assert (first["State"], second["State"]) == ("FAILED", "COMPLETED")  # OUT_OF_MEMORY where cgroups see to it
    assert (first["MinMemory"], second["MinMemory"]) == ("200M", "6400M")
    log = fire.project.folder / ".snakemake/slurm_logs/rule_review/pseudo" / f"{first['JobID']}.log"
    assert "exceeded memory limit" in log.read_text() and str(log) in fire.printed


def rule_of(comment: str) -> str:
    return comment.removeprefix("rule_").split("_wildcards_")[0]


def jobs_of(folder: Path) -> list[dict[str, str]]:
    """Return what Slurm remembers of the jobs of a working folder."""
    columns = ",".join(f"{column}:200" for column in JOB)
    lines = ask("squeue", "-h", "-t", "all", "-O", columns)
    rows = [{c: line[200 * n : 200 * (n + 1)].strip() for n, c in enumerate(JOB)} for line in lines]
    return [row for row in rows if Path(row["WorkDir"]) == folder]


def state(number: str) -> str:
    return " ".join(ask("squeue", "-h", "-t", "all", "-j", number, "-o", "%T"))


def until(ready: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not ready():
        assert time.monotonic() < deadline, f"not ready within {limit_s} s"
        time.sleep(0.2)


def ask(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
