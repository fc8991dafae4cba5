"""Shards stay put when cases come and go; ledgers resume, retry and repair."""

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from labelloop.base import seals
from labelloop.base.errors import CaseError, NotTriedError, UserError
from labelloop.base.seals import seal_of
from labelloop.base.shards import MOST_SHARDS, Ledger, assign_shards, look_at_manifests, read_manifests


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


def test_shards_of_a_huge_collection_grow_and_a_new_case_moves_no_other():
    cases = [(f"case_{i}", "train") for i in range(100_000)]
    before, after = assign_shards(cases[:60_000], 64), assign_shards(cases, 64)
    assert len(set(before.values())) == len(set(after.values())) == MOST_SHARDS
    assert before.items() <= after.items()


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


@pytest.mark.parametrize("change", ["delete", "alter"])
def test_a_file_that_is_made_anew_is_told(tmp_path, caplog, change):
    Ledger(tmp_path, "train-000").run("a", "key", writer(tmp_path, "a"))
    (tmp_path / "a.txt").unlink() if change == "delete" else (tmp_path / "a.txt").write_text("by hand")
    Ledger(tmp_path, "train-000").run("a", "key", writer(tmp_path, "a"))
    assert f"a: {tmp_path / 'a.txt'} was deleted or altered; made anew" in caplog.text


def test_a_case_that_fails_leaves_no_file_of_what_it_was_before(tmp_path):
    Ledger(tmp_path, "train-000").run("a", "key", writer(tmp_path, "a"))

    def refused():
        raise CaseError("image_truncated", "a.nii", "half", "Copy it again.")

    Ledger(tmp_path, "train-000").run("a", "another image", refused)
    assert not (tmp_path / "a.txt").exists()


def test_what_is_to_be_done_anew_in_vain_stays(tmp_path, caplog):
    """Of the same origin, it is as good as before, and a job that stops at once has forgotten nothing."""
    for case in "abc":
        Ledger(tmp_path, "train-000").run(case, "key", writer(tmp_path, case))
    again = Ledger(tmp_path, "train-000", resume=False)
    assert again.run("a", "key", writer(tmp_path, "a", "anew"))["extra"] == {"length": 4}
    assert "altered" not in caplog.text
    again.run("b", "key", failing(NotTriedError("the GPU is lost")))
    again.run("c", "of another origin", failing(NotTriedError("the GPU is lost")))
    assert "the GPU is lost" in again.lacking["b"]
    assert [(tmp_path / f"{case}.txt").exists() for case in "abc"] == [True, True, False]
    assert Ledger(tmp_path, "train-000").run("b", "key", refuse)["status"] == "done"


def test_more_work_for_a_finished_case_that_fails_is_told_and_costs_nothing(tmp_path):
    for case in "ab":
        Ledger(tmp_path, "train-000").run(case, "key", writer(tmp_path, case))
    ledger = Ledger(tmp_path, "train-000")
    assert ledger.keep("a", "key") and ledger.keep("b", "key")
    ledger.add("a", (tmp_path / "a.png").touch)
    ledger.add("b", failing(CaseError("odd", "b.nii", "odd", "Do something.")))
    ledger.close()
    assert statuses(tmp_path) == {"a": "done", "b": "done"} and (tmp_path / "b.txt").exists()
    reasons = read_manifests([ledger.manifest])["reason"]
    assert reasons["a"] == "" and "Do something." in reasons["b"]
    assert Ledger(tmp_path, "train-000").keep("b", "key")


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
    too_large = CaseError("too_large", "", "needs 20 GB, the budget is 8 GB", "Allow more memory.")
    assert job(tmp_path, {"a": failing(too_large)}) is None
    assert statuses(tmp_path) == {"a": "failed"}


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes differ"),
        KeyError("liver"),
        IndexError(3),
        TypeError("None"),
        RuntimeError("sizes must match"),
    ],
    ids=repr,
)
def test_a_fault_of_ours_stops_the_job_and_is_not_blamed_on_the_case(tmp_path, error):
    works = {"a": writer(tmp_path, "a"), "b": failing(error), "c": refuse}
    for _ in range(3):  # however often it is tried
        with pytest.raises(type(error)) as stopped:
            job(tmp_path, works)
        told = "".join(traceback.format_exception(stopped.value))
        assert "in work" in told and f"{tmp_path}, shard train-000, case b: a fault of labelloop" in told
        assert not (tmp_path / "shards" / "train-000.csv").exists()
        works["a"] = refuse  # what is finished is kept
    assert job(tmp_path, {"a": refuse, "b": writer(tmp_path, "b"), "c": writer(tmp_path, "c")}) is None
    assert statuses(tmp_path) == dict.fromkeys("abc", "done")


def test_on_demand_a_fault_of_ours_costs_its_case_and_is_told(tmp_path, caplog):
    works = {"a": failing(ValueError("shapes differ")), "b": writer(tmp_path, "b")}
    assert job(tmp_path, works, tries=0) is None
    assert statuses(tmp_path) == {"a": "failed", "b": "done"} and "Traceback" in caplog.text
    assert "a fault of labelloop" in read_manifests([tmp_path / "shards" / "train-000.csv"]).loc["a", "reason"]


def refused(code, common=False):
    return failing(CaseError(code, "x.nii.gz", "what was found", "Do this.", common))


def test_what_most_cases_share_is_not_the_cases_fault(tmp_path):
    works = {case: refused("label_grid") for case in "abc"} | {case: writer(tmp_path, case) for case in "de"}
    said = job(tmp_path, works)
    assert "3 of 5 cases failed for one reason, as a:\n  label_grid" in said and "in common" in said
    mended = {case: writer(tmp_path, case) for case in "abc"}
    assert job(tmp_path, mended | {"d": refuse, "e": refuse}) is None
    assert statuses(tmp_path) == dict.fromkeys("abcde", "done")


@pytest.mark.parametrize(
    "works",
    [
        {"a": "label_grid", "b": "label_grid", "c": "label_grid"},  # too few to tell
        {"a": "label_grid", "b": "label_grid", "c": "", "d": ""},  # no more than half
        {"a": "label_grid", "b": "label_grid", "c": "image_truncated", "d": "image_truncated"},  # two reasons
    ],
    ids=["few", "half", "two reasons"],
)
def test_cases_are_set_aside_as_long_as_it_may_be_them(tmp_path, works):
    assert job(tmp_path, {c: refused(code) if code else writer(tmp_path, c) for c, code in works.items()}) is None
    assert statuses(tmp_path) == {case: "failed" if code else "done" for case, code in works.items()}


def test_what_a_whole_collection_may_have_sets_its_cases_aside(tmp_path):
    assert job(tmp_path, {case: refused("too_large", common=True) for case in "abcd"}) is None
    assert set(statuses(tmp_path).values()) == {"failed"}


def test_most_cases_are_never_set_aside_because_of_the_machine(tmp_path):
    works = {case: failing(OSError(5, "the disk is away")) for case in "abc"} | {"d": writer(tmp_path, "d")}
    assert all("3 of 4 cases failed" in (job(tmp_path, works) or "") for _ in range(6))


def test_what_stops_everything_stops_the_job_and_keeps_what_is_finished(tmp_path):
    ledger = Ledger(tmp_path, "train-000")
    ledger.run("a", "key", writer(tmp_path, "a"))
    with pytest.raises(UserError, match="full"):
        ledger.run("b", "key", failing(UserError("b.nii.gz: the disk is full")))
    del ledger
    assert job(tmp_path, {"a": refuse, "b": writer(tmp_path, "b")}) is None


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


@pytest.mark.parametrize(
    "journal",
    [b"{}\n", b"null\n", b"[1]\n", b'{"case": "b"}\n', b"\xff\xfe\n", b"[" * 5000 + b"\n", b"1e999\n", b"\0" * 512],
    ids=["no fields", "null", "list", "no key", "not UTF-8", "deep", "infinite", "zeros"],
)
def test_a_damaged_journal_is_told_and_costs_only_its_damaged_lines(tmp_path, caplog, journal):
    for case in "ac":
        Ledger(tmp_path, "train-000").run(case, "key", writer(tmp_path, case))
    file = tmp_path / "shards" / ".train-000.jsonl"
    first, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + journal + last)
    again = Ledger(tmp_path, "train-000")
    for case in "ac":
        again.run(case, "key", refuse)
    again.close()
    assert ("1 damaged lines" in caplog.text) is (b"\0" not in journal)


def finished(folder, cases="ab"):
    ledger = Ledger(folder, "train-000")
    for case in cases:
        ledger.run(case, "key", writer(folder, case))
    ledger.close()
    return ledger.manifest


def wrong(folder):
    return {manifest.name: found.wrong for manifest, found in look_at_manifests([folder]) if found.wrong}


def shorter(path, lines):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


DAMAGES = {
    "a row lost": lambda manifest: shorter(manifest, 2),
    "all rows lost": lambda manifest: shorter(manifest, 1),
    "the header lost": lambda manifest: manifest.write_text(manifest.read_text().split("\n", 1)[1]),
    "cut in a row": lambda manifest: manifest.write_bytes(manifest.read_bytes()[:-9]),
    "not UTF-8": lambda manifest: manifest.write_bytes(manifest.read_bytes() + b"\xff\xfe"),
    "a huge field": lambda manifest: manifest.write_text(manifest.read_text() + "x" * 200_000),
    "empty": lambda manifest: manifest.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_found_and_not_read(tmp_path, damage):
    manifest = finished(tmp_path)
    assert wrong(tmp_path) == {}
    DAMAGES[damage](manifest)
    assert set(wrong(tmp_path)["train-000.csv"]) == {"shards/train-000.csv"}
    with pytest.raises(UserError, match=r"train-000.csv: altered"):
        read_manifests([manifest])
    finished(tmp_path)
    assert wrong(tmp_path) == {} and len(read_manifests([manifest])) == 2


def test_a_manifest_without_seal_is_made_anew(tmp_path):
    manifest = finished(tmp_path)
    for damage in (lambda seal: seal.write_bytes(b"\xff"), lambda seal: seal.write_text("[1]"), Path.unlink):
        damage(seal_of(manifest))
        assert wrong(tmp_path) == {"train-000.csv": {"shards/train-000.csv": "without a seal"}}


def older(file):
    file.write_text("other!!")
    os.utime(file, (10**9, 10**9))


def same_date(file):
    before = file.stat()
    file.write_text("other!!")  # of the same length
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchanged(file):
    """Put another file with the same date and size in its place, as a copy that keeps dates does."""
    other = file.with_suffix(".other")
    other.write_text("other!!")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)


@pytest.mark.parametrize(
    ("change", "what"),
    [(Path.unlink, "gone"), (lambda f: f.write_text("longer than it was"), "altered"), (older, "altered"),
     (same_date, "altered"), (exchanged, "altered")],
    ids=["gone", "longer", "older", "same date", "exchanged"],
)  # fmt: skip
def test_a_file_that_was_altered_is_found_whatever_its_date(tmp_path, change, what):
    finished(tmp_path)
    change(tmp_path / "a.txt")
    assert wrong(tmp_path) == {"train-000.csv": {"a.txt": what}}


def test_a_copy_is_read_once_and_is_not_broken(tmp_path, monkeypatch):
    finished(tmp_path / "results")
    shutil.copytree(tmp_path / "results", tmp_path / "copy", copy_function=shutil.copy)  # with the dates of now
    ((_, found),) = look_at_manifests([tmp_path / "copy"])
    assert not found.wrong and set(found.moved) == {"a.txt", "b.txt", "shards/train-000.csv"}
    found.renew()
    monkeypatch.setattr(seals, "sha256", lambda file: pytest.fail("read again"))
    ((_, found),) = look_at_manifests([tmp_path / "copy"])
    assert not found.wrong and not found.moved


JOB = """
import sys, time
from pathlib import Path
from labelloop.base.shards import Ledger

folder = Path(sys.argv[1])
ledger = Ledger(folder, "train-000")
print("begun", flush=True)
for case in "abc":
    def work():
        with (folder / "done.log").open("a") as done:
            print(case, file=done)
        time.sleep(0.1)
        (folder / case).write_text(case)
        return folder / case, {}
    ledger.run(case, "key", work)
ledger.close()
"""


@pytest.mark.slow
def test_a_second_job_waits_and_finds_the_work_done(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path)], stdout=subprocess.PIPE)
    first.stdout.readline()
    second = subprocess.run([sys.executable, "-c", JOB, str(tmp_path)], capture_output=True, text=True)
    assert first.wait() == second.returncode == 0, second.stderr
    first.stdout.close()
    assert f"train-000: process {first.pid} on {platform.node()}" in second.stderr
    assert (tmp_path / "done.log").read_text().split() == ["a", "b", "c"]
    assert wrong(tmp_path) == {}


def test_a_disk_that_is_full_is_told_in_a_line_and_the_same_command_goes_on(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, "train-000")
    ledger.run("a", "key", writer(tmp_path, "a"))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(UserError, match=r"jsonl: cannot be written: No space left on device\. Free some space"):
            ledger.run("b", "key", writer(tmp_path, "b"))
    assert job(tmp_path, {"a": refuse, "b": writer(tmp_path, "b")}) is None
