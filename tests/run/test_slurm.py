"""Jobs that a former run left in the Slurm queue are told; a controller that does not answer is waited for."""

import asyncio
import logging
import math
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from labelloop.run import slurm
from labelloop.run.slurm import PLUGIN, be_patient, jobs_in_queue, most_of, told

QUEUE = """\
12|RUNNING|{folder}|rule_train_wildcards_teacher
13|PENDING|{folder}|rule_predict_wildcards_teacher_train-000
14|RUNNING|/elsewhere|rule_train_wildcards_student
15|RUNNING|{folder}|(null)
16|RUNNING
"""


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch) -> Path:
    """A ``squeue`` that prints what stands beside it."""
    tool = tmp_path / "squeue"
    tool.write_text(f"#!/bin/sh\ncat {tmp_path}/queue\n")
    tool.chmod(0o755)
    (tmp_path / "queue").write_text(QUEUE.format(folder=tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    return tool


def test_jobs_of_this_folder_are_told_with_what_ends_them(squeue, tmp_path):
    jobs = jobs_in_queue(tmp_path)
    assert jobs == {"12": "train teacher, running", "13": "predict teacher_train-000, pending"}
    message = told(jobs)
    assert "2 jobs of a former run" in message and "12 (train teacher, running)" in message
    assert message.endswith("If there is none, this ends them: scancel 12 13")
    assert "and 1 more" in told(jobs, most=1)


@pytest.mark.parametrize("gpu", [0, 1])
@pytest.mark.parametrize("cpu", ["{max_runtime: 2d}", "{max_runtime: 4h}"])
def test_a_job_that_asks_for_no_more_than_a_partition_has_goes_there(tmp_path, gpu, cpu):
    """By the plugin's own rule."""
    from snakemake_executor_plugin_slurm.partitions import read_partition_file

    table = tmp_path / "partitions.yaml"
    short, large = "{max_gpu: 8, max_runtime: 1h}", "{max_gpu: 8, max_runtime: 1d}"
    table.write_text(f"partitions: {{cpu: {cpu}, short: {short}, large: {large}}}")
    partitions, most = read_partition_file(table), most_of("runtime", table, bool(gpu))

    def fitting(runtime):
        job = SimpleNamespace(threads=1, resources={"gpu": gpu, "runtime": runtime, "mem_mb": 10**6})
        return [one.name for one in partitions if one.score_job_fit(job) is not None]

    assert fitting(most) and not fitting(most + 1)
    assert most_of("mem_mb", table, bool(gpu)) == most_of("runtime", None, bool(gpu)) == math.inf


def test_no_slurm_or_no_answer_is_no_job(squeue, tmp_path, monkeypatch):
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error' >&2; exit 1\n")
    assert jobs_in_queue(tmp_path) == {}
    monkeypatch.setenv("PATH", "/nowhere")
    assert jobs_in_queue(tmp_path) == {}


@pytest.fixture
def plugin(monkeypatch) -> ModuleType:
    """Snakemake's plugin as far as it is used: ``answers`` to each tool, in their order, and what it submits."""
    module = ModuleType(PLUGIN)
    module.answers, module.submitted = {"squeue": [], "sacct": []}, []

    async def query_job_status(command, log):
        assert command.split()[-2:] == ["--name", "run"]
        return module.answers[command.split()[0]].pop(0), 0.1

    class Executor:
        logger = logging.getLogger("test")

        def run_job(self, job):
            module.submitted.append(job)

    module.reports = []
    module.create_efficiency_report = lambda **settings: module.reports.append(settings["run_uuid"])
    module.query_job_status, module.Executor = query_job_status, Executor
    module.query_job_status_squeue = "squeue --states=all --name {}".format
    monkeypatch.setitem(sys.modules, PLUGIN, module)
    be_patient(pause_s=0)
    return module


def ask(plugin: ModuleType, answer: dict[str, str] | None, tool: str = "squeue") -> dict[str, str]:
    """Return what the plugin sees when it asks once."""
    plugin.answers[tool].append(answer)
    states, seconds = asyncio.run(plugin.query_job_status(f"{tool} --name run", logging.getLogger("test")))
    assert seconds is not None, "the plugin would forget all its jobs"
    return states


def test_no_answer_is_told_once_and_no_job_is_forgotten(plugin, caplog):
    assert ask(plugin, {"1": "RUNNING"}) == {"1": "RUNNING"}
    assert [ask(plugin, None) for _ in range(50)] == [{}] * 50
    assert ask(plugin, {"1": "COMPLETED"}) == {"1": "COMPLETED"}
    assert [record.getMessage() for record in caplog.records] == [slurm.AWAY, slurm.BACK]


def test_squeue_is_asked_where_there_is_no_accounting(plugin, caplog):
    plugin.answers["squeue"] = [{"1": "FAILED"}, None, {"1": "FAILED"}]
    assert [ask(plugin, None, "sacct") for _ in range(3)] == [{"1": "FAILED"}, {}, {"1": "FAILED"}]
    assert [record.getMessage() for record in caplog.records] == [slurm.AWAY, slurm.BACK]


def test_a_job_cancelled_by_somebody_is_cancelled(plugin):
    assert ask(plugin, {"1": "CANCELLED by 1000"}, tool="sacct") == {"1": "CANCELLED"}


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
def test_a_job_that_is_not_put_back_into_the_queue_has_ended(plugin, state):
    assert ask(plugin, {"1": state, "2": state}) == {"1": state, "2": state}
    assert ask(plugin, {"1": state, "2": "PENDING"}) == {"1": "CANCELLED", "2": "PENDING"}


@pytest.mark.parametrize(("answer", "reports"), [("exit 0", ["run"]), ("exit 1", []), (None, [])])
def test_what_jobs_used_is_reported_where_slurm_keeps_accounts(plugin, tmp_path, monkeypatch, caplog, answer, reports):
    if answer:
        (tmp_path / "sacct").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.INFO):
        plugin.create_efficiency_report(run_uuid="run", logger=logging.getLogger("test"))
    assert plugin.reports == reports
    assert (slurm.NO_ACCOUNTS in caplog.messages) != bool(reports)


def test_a_job_that_squeue_forgot_is_judged_by_its_output(plugin):
    ask(plugin, {"1": "RUNNING", "2": "RUNNING"})
    assert ask(plugin, {"2": "RUNNING"}) == {"1": "UNKNOWN", "2": "RUNNING"}
    assert ask(plugin, {"2": "RUNNING"}) == {"1": "UNKNOWN", "2": "RUNNING"}
    assert ask(plugin, {"3": "RUNNING"}, tool="sacct") == {"3": "RUNNING"}, "sacct forgets nothing"


def test_nothing_is_submitted_before_slurm_answers(plugin, monkeypatch):
    pings = [SimpleNamespace(returncode=code) for code in (1, 1, 0)]
    monkeypatch.setattr(slurm.subprocess, "run", lambda *args, **kwargs: pings.pop(0))
    plugin.Executor().run_job("job")
    assert plugin.submitted == ["job"] and not pings


def test_without_the_plugin_nothing_happens(monkeypatch):
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    be_patient()
