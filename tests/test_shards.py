"""Shards stay put when cases come and go; ledgers resume, retry and repair."""

import json

import pytest

from labelloop.errors import CaseError, UserError
from labelloop.shards import Ledger, NotTriedError, assign_shards, broken_manifests, read_manifests


def writer(folder, case, text="content"):
    def work():
        path = folder / f"{case}.txt"
        path.write_text(text)
        return path, {"length": len(text)}

    return work


def refuse():
    raise AssertionError("the case is done and must not be done again")


def test_adding_a_case_moves_no_other_case():
    cases = [(f"case_{i}", "train") for i in range(50)]
    before = assign_shards(cases, 16)
    after = assign_shards([*cases[:7], ("new", "train"), *cases[7:], ("held_out", "test")], 16)
    assert {case: after[case] for case, _ in cases} == before
    assert len(set(before.values())) == 4
    assert after["held_out"] == "test-000"


def test_shards_hold_about_the_size_asked_for():
    counts: dict[str, int] = {}
    for shard in assign_shards([(f"case_{i:04d}", "train") for i in range(4000)], 64).values():
        counts[shard] = counts.get(shard, 0) + 1
    assert len(counts) == 64
    assert max(counts.values()) < 110


def test_a_finished_case_is_not_done_again(tmp_path):
    first = Ledger(tmp_path, "train-000")
    first.run("a", "key", writer(tmp_path, "a"))
    again = Ledger(tmp_path, "train-000")  # no close(): the first was killed
    assert again.run("a", "key", refuse)["extra"] == {"length": 7}


@pytest.mark.parametrize("change", ["key", "delete", "alter"])
def test_a_case_is_done_again_when_its_origin_or_its_file_changed(tmp_path, change):
    ledger = Ledger(tmp_path, "train-000")
    ledger.run("a", "key", writer(tmp_path, "a"))
    ledger.close()
    if change == "delete":
        (tmp_path / "a.txt").unlink()
    elif change == "alter":
        (tmp_path / "a.txt").write_text("something else")
    again = Ledger(tmp_path, "train-000")
    again.run("a", "other" if change == "key" else "key", writer(tmp_path, "a", "made anew"))
    assert (tmp_path / "a.txt").read_text() == "made anew"


def test_one_bad_case_does_not_stop_the_others(tmp_path):
    def bad():
        raise CaseError("image_truncated", "b.nii.gz", "half a file", "Copy it again.")

    ledger = Ledger(tmp_path, "train-000")
    ledger.run("b", "key", bad)
    ledger.run("a", "key", writer(tmp_path, "a"))
    ledger.close()
    rows = read_manifests([ledger.manifest])
    assert rows.loc["a", "status"] == "done" and rows.loc["a", "file"] == str(tmp_path / "a.txt")
    assert rows.loc["b", "status"] == "failed" and "Copy it again." in rows.loc["b", "reason"]


def failing(error):
    def work():
        raise error

    return work


def job(folder, works, key="key", **options):
    """Run a shard as a step does; None or what it said when it would not close."""
    ledger = Ledger(folder, "train-000", **options)
    for case, work in works.items():
        ledger.run(case, key, work)
    try:
        ledger.close()
    except UserError as error:
        assert not ledger.manifest.exists()
        return str(error)
    return None


def statuses(folder):
    return dict(read_manifests([folder / "shards" / "train-000.csv"])["status"])


@pytest.mark.parametrize(
    "error", [MemoryError("full"), RuntimeError("CUDA error"), OSError(116, "Stale file handle")], ids=str
)
def test_what_may_pass_fails_the_job_and_is_tried_again_alone(tmp_path, error):
    works = {case: writer(tmp_path, case) for case in "abc"}
    said = job(tmp_path, works | {"b": failing(error)})
    assert f"b: {type(error).__name__}: {error}" in said and "a:" not in said
    assert job(tmp_path, {"a": refuse, "b": works["b"], "c": refuse}) is None
    assert statuses(tmp_path) == dict.fromkeys("abc", "done")


def test_a_case_that_goes_on_failing_does_not_stop_the_run_for_good(tmp_path, caplog):
    works = {"a": failing(MemoryError("too large for the GPU")), "b": writer(tmp_path, "b")}
    assert job(tmp_path, works)
    assert job(tmp_path, works) is None
    assert statuses(tmp_path) == {"a": "failed", "b": "done"}
    assert "a SET ASIDE: failed 2 times" in caplog.text and "too large for the GPU" in caplog.text
    assert job(tmp_path, works, key="another image")  # what it is made from has changed: counted anew


def test_a_machine_on_which_most_cases_fail_is_not_believed_at_once(tmp_path):
    works = {case: failing(OSError(5, "the disk is away")) for case in "ab"} | {"c": writer(tmp_path, "c")}
    assert all(job(tmp_path, works) for _ in range(3))  # two jobs of a start, and the first of the next
    assert job(tmp_path, works) is None
    assert statuses(tmp_path) == {"a": "failed", "b": "failed", "c": "done"}


def test_a_case_that_could_not_be_tried_is_not_counted(tmp_path):
    works = {case: writer(tmp_path, case) for case in "abc"}
    for _ in range(3):
        assert "c: NotTriedError" in job(tmp_path, works | {"c": failing(NotTriedError("the GPU is lost"))})
    assert job(tmp_path, works | {"c": failing(RuntimeError("CUDA error"))})


def test_on_demand_all_that_failed_is_set_aside_at_once_and_tried_again(tmp_path):
    works = {"a": failing(MemoryError("full")), "b": writer(tmp_path, "b")}
    assert job(tmp_path, works, tries=0) is None
    assert statuses(tmp_path) == {"a": "failed", "b": "done"}
    assert job(tmp_path, {"a": writer(tmp_path, "a"), "b": refuse}, tries=0) is None
    assert statuses(tmp_path) == {"a": "done", "b": "done"}


def test_something_wrong_with_the_case_itself_is_a_result(tmp_path):
    assert job(tmp_path, {"a": failing(ValueError("needs 20 GB, the budget is 8 GB"))}) is None
    assert statuses(tmp_path) == {"a": "failed"}


def test_a_line_cut_short_by_a_kill_loses_only_its_case(tmp_path):
    ledger = Ledger(tmp_path, "train-000")
    ledger.run("a", "key", writer(tmp_path, "a"))
    ledger.run("b", "key", writer(tmp_path, "b"))
    journal = tmp_path / "shards" / ".train-000.jsonl"
    journal.write_text(journal.read_text()[:-20])
    again = Ledger(tmp_path, "train-000")
    again.run("a", "key", refuse)
    again.run("b", "key", writer(tmp_path, "b"))
    again.close()
    assert [json.loads(line)["case"] for line in journal.read_text().splitlines()] == ["a", "b"]


def test_a_second_kill_does_not_lose_what_followed_the_line_cut_short(tmp_path):
    Ledger(tmp_path, "train-000").run("a", "key", writer(tmp_path, "a"))
    journal = tmp_path / "shards" / ".train-000.jsonl"
    journal.write_text(journal.read_text()[:-20])
    Ledger(tmp_path, "train-000").run("b", "key", writer(tmp_path, "b"))  # no close(): killed again
    Ledger(tmp_path, "train-000").run("b", "key", refuse)


@pytest.mark.parametrize("change", ["delete", "alter"])
def test_a_manifest_that_no_longer_tells_the_truth_is_found(tmp_path, change):
    ledger = Ledger(tmp_path, "train-000")
    ledger.run("a", "key", writer(tmp_path, "a"))
    ledger.close()
    assert broken_manifests([tmp_path]) == []
    if change == "delete":
        (tmp_path / "a.txt").unlink()
    else:
        (tmp_path / "a.txt").write_text("altered")
    assert broken_manifests([tmp_path]) == [ledger.manifest]


def test_a_damaged_manifest_is_found(tmp_path):
    ledger = Ledger(tmp_path, "train-000")
    ledger.run("a", "key", writer(tmp_path, "a"))
    ledger.close()
    ledger.manifest.write_text(ledger.manifest.read_text().split("\n", 1)[1])
    assert broken_manifests([tmp_path]) == [ledger.manifest]
