"""Shards stay put when cases come and go; ledgers resume, retry and repair."""

import json

import pytest

from labelloop.errors import CaseError
from labelloop.shards import Ledger, assign_shards, broken_manifests, read_manifests


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
