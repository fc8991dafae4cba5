"""A collection that grows or shrinks over a limit has another number of shards: nothing is done again."""

from pathlib import Path

import pytest

from labelloop.base.locks import hold
from labelloop.base.paths import journal_of, manifest_of
from labelloop.base.shards import Ledger
from labelloop.run.moved_cases import move_cases
from labelloop.run.run import Run

FOLDERS = ("survey", "models/teacher/predictions", "labels/pseudo/verdicts")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts a run of so many cases, four of which make a shard, and what it moved."""
    monkeypatch.chdir(tmp_path)

    def start(cases: int) -> tuple[Run, list[str]]:
        rows = [f"c{i},c{i}.nii.gz,,flare22,train" for i in range(cases)]
        rows += ["t,t.nii.gz,t_label.nii.gz,flare22,test", "l,l.nii.gz,l_label.nii.gz,flare22,train"]
        Path("cases.csv").write_text("\n".join(["case,image,label,dataset,role", *rows]) + "\n")
        run = Run({"cases": "cases.csv", "results": "results", "shard_size": 4})
        return run, move_cases(run)

    return start


def make(run: Run, done: list[str]) -> None:
    """Do all jobs of some steps; note in ``done`` which cases they did."""
    for name in FOLDERS:
        folder = Path(run.results, name)
        for shard, cases in run.shards.cases.items():
            ledger = Ledger(folder, shard)
            for case in cases:

                def work(case=case.case, folder=folder):
                    done.append(case)
                    (folder / f"{case}.txt").write_text(case)
                    return folder / f"{case}.txt", {"many": "rows"}

                ledger.run(case.case, "key", work)
            ledger.close()


def test_no_case_that_stays_is_done_again_whatever_its_shard(start):
    first, _ = start(15)
    make(first, [])
    before = {case.case: shard for shard, cases in first.shards.cases.items() for case in cases}
    for number in (16, 15, 16, 7, 15):
        run, moved = start(number)
        now = {case.case: shard for shard, cases in run.shards.cases.items() for case in cases}
        assert bool(moved) == any(now[case] != before[case] for case in now.keys() & before.keys())
        assert start(number)[1] == []
        done: list[str] = []
        make(run, done)
        assert set(done) <= now.keys() - before.keys()
        before = now
        journals = {path.name for path in Path("results/survey/shards").glob(".*.jsonl")}
        assert journals == {f".{shard}.jsonl" for shard in run.shards.all}


def test_a_line_that_a_kill_cut_short_and_a_damaged_one_cost_their_cases_alone(start):
    make(start(15)[0], [])
    journals = sorted(Path("results", FOLDERS[1], "shards").glob(".train-*.jsonl"))
    for journal in journals:
        journal.write_bytes(journal.read_bytes().rstrip(b"\n")[:-3])
    lost = len(journals)
    run, _ = start(16)
    done: list[str] = []
    make(run, done)
    assert len(done) == len(FOLDERS) + lost


def test_where_a_job_of_a_former_run_still_works_nothing_is_moved(start):
    make(start(15)[0], [])
    folder = Path("results", FOLDERS[1])
    journal = Path(journal_of(manifest_of(folder, "train-000")))
    before = {path: path.read_bytes() for path in folder.rglob(".*.jsonl")}
    lock = hold(journal.with_suffix(".lock"), "a job")
    assert start(16)[1]
    lock.release()
    assert {path: path.read_bytes() for path in folder.rglob(".*.jsonl")} == before
