"""What a run says of itself: models and cases, time of training left, and at the end what needs attention."""

import logging
from types import SimpleNamespace

import pytest

from labelloop.run.console import Work, ending, how_far, without_noise, work_of


def test_trainings_count_by_their_updates():
    jobs = [
        Work("train", 1000, True, 60.0), Work("train", 3000, False), Work("train_translator", 2000, False),
        Work("predict", 11, True), Work("predict", 7, False), Work("infer", 6, False),
    ]  # fmt: skip
    said = how_far(jobs)
    assert said == (
        "1 of 3 models trained, 11 of 18 predictions, 0 of 6 final label maps; about 5 min of training left"
    )


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ([], ""),
        ([Work("train", 1000, False)], "0 of 1 model trained"),
        ([Work("train", 1000, True, 9.0)], "1 of 1 model trained"),
        ([Work("train", 1000, True), Work("train", 1000, False)], "1 of 2 models trained"),
    ],
)
def test_no_time_is_told_that_nobody_knows(jobs, said):
    assert how_far(jobs) == said


def test_jobs_are_those_of_snakemake(tmp_path):
    benchmark = tmp_path / "teacher.tsv"
    benchmark.write_text("s\th:m:s\n12.5\t0:00:12\n")
    kinds = {"train": {"model": "teacher"}, "predict": {"model": "teacher", "shard": "a"}, "survey": {"shard": "a"}}
    jobs = [SimpleNamespace(rule=SimpleNamespace(name=n), wildcards=w, benchmark=benchmark) for n, w in kinds.items()]
    found = work_of(jobs, lambda job: job.rule.name == "train", lambda w: 6 if "shard" in w else 80)
    assert found == [Work("train", 80, True, 12.5), Work("predict", 6, False)]
    benchmark.write_text("s\th:m")
    assert work_of(jobs[:1], lambda job: True, lambda w: 80) == [Work("train", 80, True)]


def test_the_end_says_what_needs_attention_and_where_the_page_is(tmp_path):
    assert ending(tmp_path, "", "", 30) == ["done in 30 s."]
    found = ending(tmp_path, "1 of 1 model trained", "2 cases set aside", 30)
    assert found == ["1 of 1 model trained", "needs attention: 2 cases set aside", "done in 30 s."]
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").touch()
    (tmp_path / "report" / "attention.txt").write_text("one.\ntwo.\n")
    told = ending(tmp_path, "", "2 cases set aside", 30)
    assert told[:2] == ["needs attention: one.", "needs attention: two."]
    assert told[2].startswith("done in 30 s. Open ") and len(told) == 3


def test_only_lines_of_the_scheduler_are_noise():
    lines = {"Select jobs to execute...": False, "Execute 2 jobs...": False, "3 of 36 steps (8%) done": True}
    for line, kept in lines.items():
        assert without_noise(logging.LogRecord("x", logging.INFO, "", 0, line, None, None)) is kept
