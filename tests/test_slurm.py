"""Jobs that a former run left in the Slurm queue are found and told; without Slurm there are none."""

import os
from pathlib import Path

import pytest

from labelloop.slurm import jobs_in_queue, told

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
    assert message.endswith("scancel 12 13")
    assert "and 1 more" in told(jobs, most=1)


def test_no_slurm_or_no_answer_is_no_job(squeue, tmp_path, monkeypatch):
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error' >&2; exit 1\n")
    assert jobs_in_queue(tmp_path) == {}
    monkeypatch.setenv("PATH", "/nowhere")
    assert jobs_in_queue(tmp_path) == {}
