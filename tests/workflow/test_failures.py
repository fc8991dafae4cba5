"""A case that fails for a reason that may pass: the job is tried again, and does this case alone."""

import os
from pathlib import Path

import pytest
from tiny_project import Project

FAULT = Path(__file__).parent / "fault"
CASE = "good_test"
INFER = {"infer/test-000", "summarize/all", "evaluate/final", "report/page"}


@pytest.fixture
def fail(copied: Project, monkeypatch):
    """Let the label map of a test case be made anew, which fails so often."""

    def run(times: int) -> set[str]:
        left = copied.folder / "left"
        left.write_text(str(times))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(FAULT), os.environ.get("PYTHONPATH")))))
        monkeypatch.setenv("FAULT_AT", f"results/predictions/{CASE}.nii.gz")
        monkeypatch.setenv("FAULT_LEFT", str(left))
        (copied.results / "predictions" / f"{CASE}.nii.gz").unlink()
        return copied.run()

    return run


def test_a_failure_that_passes_leaves_no_trace_but_in_the_log(fail, copied, reference):
    done = copied.times("predictions/*.nii.gz")
    assert fail(1) <= INFER
    assert copied.contents() == reference.contents()
    log = (copied.results / "logs/infer/test-000.attempts.log").read_text()
    assert f"{CASE}: OSError: [Errno 5] Input/output error" in log
    assert {name for name, stamp in copied.times("predictions/*.nii.gz").items() if done[name] != stamp} == {
        f"predictions/{CASE}.nii.gz"
    }


def test_a_failure_that_stays_is_set_aside_scored_as_empty_and_reported(fail, copied):
    assert fail(9) == INFER
    assert int((copied.folder / "left").read_text()) == 7  # a job and its retry
    (row,) = (row for row in copied.table("predictions/shards/test-000.csv") if row["case"] == CASE)
    assert row["status"] == "failed" and "Input/output error" in row["reason"]
    scores = {row["class"]: row for row in copied.table("evaluation/final.csv") if row["case"] == CASE}
    assert float(scores["liver"]["dsc"]) == 0 and scores["liver"]["volume_prediction_ml"] == ""
    page = (copied.results / "report/index.html").read_text()
    assert f"final label maps: no label map of 1 test case ({CASE})" in page
    assert copied.planned() == set()
