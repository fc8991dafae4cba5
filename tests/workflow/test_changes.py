"""A file that was deleted or changed, or a new case: what depends on it is done again, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_project import LATE, Project

CASE, SHARD = "phantom_000", "train-001"
OTHER_CASE, OTHER = "phantom_004", "train-000"
SHARDS = (OTHER, SHARD)

INFER = {"infer/test-000", "summarize/all", "evaluate/final", "report/page"}
STUDENT = {"train/student", *INFER}
SELECT = {"select/pseudo", "review/pseudo", *STUDENT}
FUSED = {
    shard: {
        *(f"{step}/pseudo/{shard}" for step in ("fuse", "check", "held_out")),
        f"prepare_labels/fine/labels/pseudo/{shard}",
    }
    for shard in SHARDS
}
FUSE = FUSED[SHARD] | SELECT
PREDICT = {f"predict/teacher/{SHARD}", f"predict/teacher_b/{OTHER}", *(f"agree/pseudo/{s}" for s in SHARDS), *SELECT}
PREDICT |= FUSED[SHARD] | FUSED[OTHER]
LABELING = ("fuse", "agree", "check", "held_out", "prepare_labels/fine/labels")
PSEUDO = {f"{job}/pseudo/{shard}" for job in LABELING for shard in SHARDS}
TEACHER_USED = {*(f"predict/teacher/{s}" for s in (*SHARDS, "test-000")), "evaluate/teacher", *PSEUDO, *SELECT}
TEACHERS = {"train/teacher", "train/teacher_b", *(f"predict/teacher_b/{s}" for s in SHARDS), *TEACHER_USED}


def delete(file: Path) -> None:
    file.unlink()


def damage(file: Path) -> None:
    """Put other bytes in the file's place, as a copy of a wrong file does."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    _replace(file, bytes(content))


def append_space(file: Path) -> None:
    _replace(file, file.read_bytes() + b" \n")


def behead(file: Path) -> None:
    """Drop the first line, a table's header."""
    _replace(file, file.read_bytes().split(b"\n", 1)[1])


def demote(file: Path) -> None:
    _replace(file, file.read_bytes().replace(b"present", b"unknown", 1))


def _replace(file: Path, content: bytes) -> None:
    other = file.with_name(f"other-{file.name}")
    other.write_bytes(content)
    other.replace(file)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            [("annotation.csv", delete), ("review/pseudo.csv", delete), ("predictions/efficiency.csv", delete),
             ("evaluation/final.csv", delete)],
            {"collect/all", "group/all", "review/pseudo", "summarize/all", "evaluate/final", "report/page"},
        ),
        ([(f"prepared/fine/{CASE}.b2nd", damage)], {
            f"prepare/fine/{SHARD}", f"prepare_labels/fine/organs/truth/{SHARD}", *TEACHERS,
        }),
        ([("models/teacher/model.json", delete), ("models/teacher_b/weights.pt", damage)], TEACHERS),
        ([("models/teacher/model.json", append_space), ("models/teacher_b/curve.png", delete)], TEACHERS),
        ([("models/teacher/weights.pt", delete)], {"train/teacher", *TEACHER_USED}),
        (
            [(f"models/teacher/predictions/{CASE}.nii.gz", delete),
             (f"models/teacher_b/predictions/{OTHER_CASE}.nii.gz", damage)],
            PREDICT,
        ),
        (
            [(f"models/teacher/predictions/shards/{SHARD}.csv", behead),
             (f"models/teacher_b/predictions/shards/{OTHER}.csv", delete)],
            PREDICT,
        ),
        ([(f"labels/pseudo/{CASE}.nii.gz", damage)], FUSE),
        (
            [(f"labels/pseudo/verdicts/{SHARD}.csv", delete), (f"labels/pseudo/held_out/{OTHER}.csv", delete),
             (f"prepared/fine/labels/pseudo/{CASE}.b2nd", delete)],
            {f"check/pseudo/{SHARD}", f"held_out/pseudo/{OTHER}", f"prepare_labels/fine/labels/pseudo/{SHARD}",
             *SELECT},
        ),
        ([("labels/pseudo/selected.csv", delete)], SELECT),
        ([("labels/pseudo/selected.csv", demote)], {"review/pseudo", *STUDENT}),
        ([("predictions/phantom_001.nii.gz", damage)], INFER),
        ([("report/index.html", delete)], {"report/page"}),
        ([("report/index.html", append_space)], set()),
    ],
)  # fmt: skip
def test_changed_files_lead_to_what_depends_on_them(
    copied: Project, changes: list[tuple[str, Callable[[Path], None]]], expected: set[str]
):
    for name, change in changes:
        change(copied.results / name)
    assert copied.planned() == expected


@pytest.mark.parametrize("change", [delete, damage])
def test_a_changed_picture_of_the_review_queue_leads_to_the_queue(copied: Project, change: Callable[[Path], None]):
    change(next((copied.results / "review/pseudo").glob("*.png")))
    assert copied.planned() == {"review/pseudo", "report/page"}


def test_changed_files_are_made_anew_and_all_others_kept(copied, reference):
    changes = {
        f"models/teacher/predictions/{CASE}.nii.gz": damage,
        f"prepared/fine/organs/truth/{CASE}.b2nd": damage,
        "models/teacher/weights.pt": damage,
        "labels/pseudo/selected.csv": delete,
        f"labels/pseudo/{CASE}.nii.gz": delete,
        "predictions/phantom_001.nii.gz": damage,
    }
    made = ("**/*.nii.gz", "prepared/**/*.b2nd", "models/*/work/training.jsonl")
    before = {name: time for pattern in made for name, time in copied.times(pattern).items()}
    for name, change in changes.items():
        change(copied.results / name)
    assert copied.run() == {f"prepare_labels/fine/organs/truth/{SHARD}", *TEACHERS}
    assert copied.contents() == reference.contents()
    after = {name: time for pattern in made for name, time in copied.times(pattern).items()}
    assert before.keys() == after.keys()
    assert {name for name in before if after[name] != before[name]} == changes.keys() & before.keys()


def test_a_new_case_leads_to_its_shard_and_what_is_downstream(copied, collection):
    copied.configure(cases=str(collection.longer_table))
    maps, arrays = copied.times("models/*/predictions/*.nii.gz"), copied.times("prepared/fine/*.b2nd")
    trained = copied.times("models/*/work/training.jsonl")
    done = copied.run()
    [shard] = [s for s in SHARDS if LATE in {row["case"] for row in copied.table(f"prepared/fine/shards/{s}.csv")}]
    own = {f"survey/{shard}", f"prepare/fine/{shard}", f"prepare_labels/fine/organs/truth/{shard}"}
    assert {job for job in done if job.startswith(("survey/", "prepare/", "prepare_labels/fine/organs/truth/"))} == own

    after = copied.times("models/*/predictions/*.nii.gz")
    assert {name: after[name] for name in maps} == maps
    assert {Path(name).name for name in after.keys() - maps.keys()} == {f"{LATE}.nii.gz"}
    after = copied.times("prepared/fine/*.b2nd")
    assert {name: after[name] for name in arrays} == arrays and len(after) == len(arrays) + 1

    now = copied.times("models/*/work/training.jsonl")
    repeated = {Path(name).parts[1] for name in trained if now[name] != trained[name]}
    assert repeated == {"student"}  # the case holds no organs for the teachers to learn
    log = (copied.results / "logs/train/teacher.log").read_text()
    assert "nothing changed, reusing the finished training" in log
    assert LATE in {row["case"] for row in copied.table("models/student/cases.csv")}
