"""What a reviewer decides comes back by typing the same command again: the touched case, what follows, and no more."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from test_changes import CASE, FUSE, SELECT, SHARD, SHARDS
from test_targets import jobs
from tiny_project import RECIPE, Project

from labelloop.base.tables import read_table
from labelloop.images.volume import read, write
from labelloop.recipe import load_recipe, unroll
from labelloop.review.decisions import Decision, append
from labelloop.review.desk import Desk
from labelloop.run import cost


def test_a_decision_leads_to_its_case_and_what_follows_and_is_done_once(copied: Project):
    desk = Desk(copied.results)
    assert (desk.labels, desk.folder) == ("pseudo", copied.folder / "results-reviews" / "pseudo")
    asked = desk.asked()
    assert len(asked) == 4 and all(one.image.is_file() for one in asked)
    assert all(one.map.is_file() and set(one.models) == {"teacher", "teacher_b"} for one in asked)
    made = {row["case"]: row["sha256"] for row in copied.table(f"labels/pseudo/shards/{SHARD}.csv")}
    mine, edited = desk.question(CASE, "spleen", made[CASE]), copied.folder / "edited.nii.gz"
    volume = read(mine.map)
    array = np.where(volume.array == desk.ids["spleen"], 0, volume.array)
    array[1:3, 1:3, 1:3] = desk.ids["spleen"]
    write(edited, array, volume.geometry)
    desk.decide(mine, "ann", "edited", edited=edited)
    append(desk.folder, [Decision("ann", "nobody", "liver", "wrong")])

    kinds = ("labels/pseudo/*.nii.gz", "prepared/fine/**/*.b2nd")
    before = {name: time for kind in kinds for name, time in copied.times(kind).items()}
    assert copied.run() == FUSE
    after = {name: time for kind in kinds for name, time in copied.times(kind).items()}
    changed = {Path(name).name for name in before if after.get(name) != before[name]}
    assert changed == {f"{CASE}.nii.gz", f"{CASE}.b2nd"} and after.keys() == before.keys()

    made = read(copied.results / "labels" / "pseudo" / f"{CASE}.nii.gz").array
    assert ((made == desk.ids["spleen"]) == (array == desk.ids["spleen"])).all()
    source = _row(copied, "provenance").query("step == 'fuse'")["source"].iloc[0]
    assert source == _row(copied, "selected")["decision"].iloc[0] == "reviewer"
    assert "1 from reviewers" in (copied.results / "report" / "index.html").read_text()
    assert copied.run() == set()


def test_decisions_of_other_shards_and_those_that_cannot_be_read_plan_nothing(copied: Project):
    assert copied.planned() == set()
    append(copied.folder / "results-reviews" / "pseudo", [Decision("ann", "nobody", "liver", "wrong")])
    assert "case 'nobody' is not one of the run's train cases" in copied.told("--summary")
    assert copied.planned() == set()


def test_a_run_that_waits_for_its_review_ends_before_the_student_until_the_queue_is_answered(copied: Project):
    recipe = RECIPE | {"name": "tiny", "labels": {"pseudo": {"review": "wait"}}}
    (copied.folder / "recipe.yaml").write_text(json.dumps(recipe))
    (copied.results / "models" / "student" / "weights.pt").unlink()
    assert copied.planned() == set()
    assert "label set pseudo waits for its review: 4 labels left to look at." in copied.told("--summary")
    (copied.results / "review" / "pseudo.csv").unlink()
    assert copied.planned() == {"review/pseudo"}
    assert "label set pseudo waits for its review: the queue is made first" in copied.told("--summary")
    assert copied.run() == {"review/pseudo"}
    desk = Desk(copied.results)
    asked = desk.asked()
    for one, decision in zip(asked, ("wrong", "wrong", "wrong", "unsure"), strict=True):
        desk.decide(one, "ann", decision)
    assert "train/student" not in copied.planned()
    assert "label set pseudo waits for its review: 1 label left to look at." in copied.told("--summary")
    desk.decide(asked[3], "bob", "wrong")
    assert {"train/student", "report/page"} <= copied.planned()


def test_what_is_trusted_is_what_selection_says(copied: Project):
    assert copied.run("trusted") == {f"trust/pseudo/{shard}" for shard in SHARDS}
    ids = Desk(copied.results).ids
    table = read_table(copied.results / "labels/pseudo/selected.csv", "selected")
    for shard in SHARDS:
        rows = read_table(copied.results / f"labels/pseudo/trusted/shards/{shard}.csv", "manifest")
        for case, file in zip(rows["case"], rows["file"], strict=True):
            states = table[table["case"] == case].set_index("class")["state"]
            assert bool(file) == (states != "unknown").any()
            if file:
                shown = set(np.unique(read(copied.results / "labels/pseudo/trusted" / file).array)) - {0, 255}
                assert shown <= {ids[name] for name in states[states == "present"].index}


def _row(project: Project, kind: str) -> pd.DataFrame:
    table = read_table(project.results / "labels" / "pseudo" / f"{kind}.csv", kind)
    return table[(table["case"] == CASE) & (table["class"] == "spleen")]


def test_a_student_that_learns_agreed_voxels_alone_learns_from_what_is_trusted(copied: Project):
    recipe = RECIPE | {"name": "tiny", "labels": {"pseudo": {"select": {"voxels": "agreed"}}}}
    (copied.folder / "recipe.yaml").write_text(json.dumps(recipe))
    planned = jobs(copied)
    assert planned.keys() == {"held_out", "trust", "prepare_labels", *(job.partition("/")[0] for job in SELECT)}
    chain = unroll(load_recipe(copied.folder / "recipe.yaml"))
    assert cost.jobs(chain, len(SHARDS), 1)["trust"] == planned["trust"] == planned["prepare_labels"] == len(SHARDS)
