"""What reviewers say goes before truth and predictions: in label maps, provenance, and what selection trusts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from labelloop.base.paths import manifest_of
from labelloop.base.shards import Ledger
from labelloop.base.tables import TABLES, read_table, write_table
from labelloop.cases.table import Case
from labelloop.images.volume import Geometry, read, write
from labelloop.labels.select import select, with_acceptance
from labelloop.labels.settings import SelectSettings
from labelloop.review.decisions import Decision, append
from labelloop.review.maps import keep
from labelloop.steps.common import trusted
from labelloop.steps.labels import fuse
from survey_files import do_survey

SHARD, SET = "train-000", "pseudo"
GRID = Geometry((24, 20, 16), (3.0, 3.0, 3.0), direction=(-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
NAMES = ("liver", "spleen", "pancreas")
LIVER, SPLEEN, PANCREAS = 1, 2, 3
SPEC = {"predict": ["m"], "cases": ["all"], "classes": ["organs"], "fuse": "truth_first", "clean": []}


@dataclass
class World:
    """Cases "a" and "b", in each of which annotators drew a liver and a model saw all three organs."""

    folder: Path

    def __post_init__(self):
        classes = [{"name": n, "id": i, "tolerance_mm": 3.0, "color": "#dd8265"} for i, n in enumerate(NAMES, start=1)]
        self.write("scheme.yaml", name="own", classes=classes, sets={"organs": list(NAMES)})
        self.write("data.yaml", name="own", modality="CT", source="a test", labels={1: "liver"})
        self.truth, self.made = np.zeros(GRID.shape, np.uint8), np.zeros(GRID.shape, np.uint8)
        self.truth[2:12, 4:12, 4:12] = LIVER
        self.made[2:10, 4:12, 4:12] = LIVER
        self.made[4:8, 4:8, 16:20] = SPLEEN
        self.made[10:12, 14:18, 4:16] = PANCREAS
        ledger, self.rows = Ledger(self.folder / "m", SHARD), []
        for case in ("a", "b"):
            image = np.random.default_rng(0).integers(-1000, 200, GRID.shape).astype(np.int16)
            files = {"image": self.save(f"{case}_0000.nii.gz", image), "label": self.save(f"{case}.nii.gz", self.truth)}
            about = {"dataset": str(self.folder / "data.yaml"), "modality": "CT", "patient": case}
            self.rows.append(Case(case=case, **{k: str(v) for k, v in files.items()}, **about).model_dump())
            ledger.run(case, "key", lambda case=case: (self.save(f"m/{case}.nii.gz", self.made), {}))
        ledger.close()
        self.reviews, self.out = self.folder / "reviews" / SET, self.folder / "results" / "labels" / SET
        self.survey = do_survey(self.rows, self.folder / "results", SHARD, self.classes)

    @property
    def classes(self) -> str:
        return str(self.folder / "scheme.yaml")

    def write(self, file: str, **content) -> None:
        (self.folder / file).write_text(yaml.safe_dump(content), encoding="utf-8")

    def save(self, name: str, array: np.ndarray, grid: Geometry = GRID) -> Path:
        write(self.folder / name, array, grid)
        return self.folder / name

    def say(self, decision: str, name: str, array: np.ndarray | None = None, who="ann", grid=GRID, **more) -> None:
        """Append a decision about case "a", of what stands there or on another map."""
        sha, file = keep(self.reviews, self.out / "a.nii.gz")
        if array is not None:
            own, file = keep(self.reviews, self.save("drawn.nii.gz", array, grid))
            sha = own if decision == "right" else sha
        append(self.reviews, [Decision(who, "a", name, decision, sha, file, labels=SET, **more)])

    def fused(self, **spec) -> np.ndarray:
        """Fuse; return the map of case "a"."""
        tables = self.table_file("provenance"), self.table_file("reviewed")
        predictions, manifest = [Path(manifest_of(self.folder / "m", SHARD))], Path(manifest_of(self.out, SHARD))
        made_from = SPEC | spec, {"m": ["organs"]}, self.classes, {}
        fuse(self.survey, predictions, *made_from, manifest, *tables, str(self.reviews), 1)
        return read(self.out / "a.nii.gz").array

    def table_file(self, kind: str) -> Path:
        return self.out / f"{kind}.csv"

    def table(self, kind: str) -> pd.DataFrame:
        """Return the rows of case "a"."""
        return read_table(self.table_file(kind), kind).query("case == 'a'").set_index("class")

    def selected(self, **settings) -> pd.DataFrame:
        """Return what is made of case "a"."""
        survey = read_table(self.survey.annotation[0], "annotation")
        provenance, reviewed = (read_table(self.table_file(kind), kind) for kind in ("provenance", "reviewed"))
        empty = [pd.DataFrame(columns=list(TABLES[kind])) for kind in ("verdicts", "disagreement")]
        table = select(survey, provenance, *empty, SelectSettings(**settings), NAMES, None, reviewed)
        return table.query("case == 'a'").set_index("class")

    def accepted(self, failed=(), **settings) -> dict[str, str]:
        """Return what would be accepted of case "a" without reviewers, of what they judged; the models agree by 0.9."""
        survey = read_table(self.survey.annotation[0], "annotation")
        tables = [read_table(self.table_file(kind), kind) for kind in ("provenance", "reviewed")]
        rules = [("a", name, "volume", "fail", 1.0, 2.0, "ml", "odd", "") for name in failed]
        pairs = [("a", name, 0.9, 0.1, 2, None) for name in NAMES]
        verdicts = pd.DataFrame(rules, columns=list(TABLES["verdicts"]))
        disagreement = pd.DataFrame(pairs, columns=list(TABLES["disagreement"]))
        quality = pd.DataFrame(columns=list(TABLES["quality"]))

        def decide(made, judged, foreseen):
            return select(survey, made, judged, disagreement, SelectSettings(**settings), NAMES, None, None, foreseen)

        table = with_acceptance(tables[1], tables[0], verdicts, quality, decide)
        return table.query("case == 'a'").set_index("class")["accepted"].to_dict()


@pytest.fixture
def world(tmp_path) -> World:
    made = World(tmp_path)
    made.fused()
    return made


def sources(world: World) -> dict[str, str]:
    return world.table("provenance").query("step == 'fuse'")["source"].to_dict()


def test_right_becomes_truth_with_the_voxels_as_judged_whatever_models_say_later(world):
    before = world.fused()
    world.say("right", "spleen")
    assert (world.fused() == before).all()
    assert sources(world) == {"liver": "truth", "spleen": "reviewer", "pancreas": "m"}
    row = world.selected().loc["spleen"]
    assert (row["state"], row["decision"], row["reason"]) == ("present", "reviewer", "ann said right")
    world.made[4:8, 4:8, 16:20] = 0
    world.made[12:14, 4:8, 16:20] = SPLEEN
    ledger = Ledger(world.folder / "m", SHARD)
    for case in ("a", "b"):
        ledger.run(case, "other", lambda case=case: (world.save(f"m/{case}.nii.gz", world.made), {}))
    ledger.close()
    after = world.fused()
    assert ((after == SPLEEN) == (before == SPLEEN)).all()
    assert world.table("reviewed").loc["spleen", "same_label"] == "False"


def test_edited_voxels_of_the_class_asked_about_count_and_no_others(world):
    before, drawn = world.fused(), world.made.copy()
    drawn[drawn == SPLEEN] = 0
    drawn[4:9, 4:8, 12:20] = SPLEEN
    drawn[2, 4:12, 4:12] = PANCREAS
    world.say("edited", "spleen", drawn)
    after = world.fused()
    assert ((after == SPLEEN) == (drawn == SPLEEN)).all()
    assert ((after == PANCREAS) == (before == PANCREAS)).all() and ((after == LIVER) == (before == LIVER)).all()
    assert sources(world)["spleen"] == "reviewer"


def test_of_two_who_draw_the_same_voxels_the_later_one_has_them_and_the_other_is_told(world):
    world.say("right", "spleen")
    more_liver, more_spleen = world.truth.copy(), world.made.copy()
    more_liver[12:14, 4:12, 4:12] = LIVER
    more_spleen[12:14, 4:8, 4:8] = SPLEEN
    both = (more_liver == LIVER) & (more_spleen == SPLEEN)
    world.say("edited", "liver", more_liver)
    world.say("edited", "spleen", more_spleen)
    after, reviewed = world.fused(), world.table("reviewed")
    assert both.sum() == 32 and (after[both] == SPLEEN).all()
    assert ((after == LIVER) == ((more_liver == LIVER) & ~both)).all()
    assert reviewed.loc["liver", "reason"] == "ann said edited, 32 voxels of it went to spleen, drawn later"
    assert reviewed.loc["spleen", "reason"] == "ann said edited" and set(reviewed["problem"]) == {""}
    world.say("edited", "liver", more_liver)  # the same again, and so the later one
    assert ((world.fused() == LIVER) == (more_liver == LIVER)).all()
    assert "went to liver" in world.table("reviewed").loc["spleen", "reason"]


def test_a_class_of_which_a_later_edit_left_nothing_is_not_used(world):
    world.say("right", "spleen")
    world.say("edited", "pancreas", np.full_like(world.made, PANCREAS))
    after = world.fused()
    assert (after == PANCREAS).all()
    row = world.table("reviewed").loc["spleen"]
    assert row["state"] == "" and row["problem"] == "all of it went to pancreas, drawn later. Judge it anew."


def test_a_reviewer_goes_before_truth(world):
    drawn = world.truth.copy()
    drawn[2:4] = 0
    world.say("edited", "liver", drawn)
    world.say("edited", "spleen", np.where(drawn == LIVER, 0, world.truth * SPLEEN).astype(np.uint8))
    after = world.fused()
    assert ((after == LIVER) == (drawn == LIVER)).all()
    assert (after[2:4, 4:12, 4:12] == SPLEEN).all()
    assert world.selected()["decision"].to_dict() == {"liver": "reviewer", "spleen": "reviewer", "pancreas": "accepted"}


def test_absent_keeps_predictions_out(world):
    world.say("absent", "pancreas")
    assert PANCREAS not in world.fused()
    assert world.selected().loc["pancreas", ["state", "decision"]].to_list() == ["absent", "reviewer"]


@pytest.mark.parametrize("name", ["spleen", "liver"])
def test_wrong_is_unknown_and_stays_visible_also_where_annotators_drew_it(world, name):
    before = world.fused()
    world.say("wrong", name, comment="that is bowel; surely")
    assert (world.fused() == before).all()
    row = world.selected().loc[name]
    assert (row["state"], row["decision"], row["criterion"]) == ("unknown", "demoted", "reviewer")
    assert row["reason"] == "ann said wrong: that is bowel, surely"
    assert set(world.selected(if_refused="drop")["decision"]) == {"dropped"}
    assert world.table("reviewed").loc[name, "same_label"] == "True"


def test_who_calls_absent_what_is_not_in_the_map_calls_it_right(world):
    world.say("absent", "pancreas")
    world.fused()
    assert world.table("reviewed").loc["pancreas", "decision"] == "absent"
    world.say("absent", "pancreas")  # of the map without it
    world.fused()
    row = world.table("reviewed").loc["pancreas"]
    assert (row["decision"], row["state"]) == ("right", "absent")


def test_trainings_are_told_what_people_drew(world):
    world.say("right", "spleen")
    world.say("wrong", "liver")
    world.fused()
    path = world.folder / "selected.csv"
    write_table(path, world.selected().reset_index(), "selected")
    items = world.survey.usable()
    known, drawn = (states["a"] for states in trusted(path, items))
    assert drawn == {"liver": "unknown", "spleen": "present", "pancreas": "unknown"}
    assert known == drawn | {"pancreas": "present"}
    assert trusted(None, items)[1]["a"]["liver"] == "present"


def test_two_who_differ_leave_the_class_unknown_until_they_agree(world):
    world.say("right", "spleen")
    world.say("wrong", "spleen", who="bob")
    world.fused()
    row = world.selected().loc["spleen"]
    assert (row["state"], row["criterion"], row["reason"]) == (
        "unknown", "reviewers_differ", "ann said right, bob said wrong",
    )  # fmt: skip
    world.say("right", "spleen", who="bob")
    world.fused()
    assert world.selected().loc["spleen", "decision"] == "reviewer"


def test_unsure_leaves_the_label_as_it_was(world):
    before = world.selected()
    world.say("unsure", "spleen")
    world.fused()
    pd.testing.assert_frame_equal(world.selected(), before)


@pytest.mark.parametrize("decision", ["right", "edited", "absent", "wrong", "unsure"])
def test_whether_a_judged_label_would_be_accepted_follows_what_selection_asks_now(world, decision):
    drawn = np.where(world.made == SPLEEN, SPLEEN, 0).astype(np.uint8)
    drawn[4:8, 8:10, 16:20] = SPLEEN
    world.say(decision, "spleen", drawn if decision == "edited" else None, asked="random")
    world.say("wrong", "pancreas")
    world.say("right", "liver", asked="random")
    world.fused()
    assert world.accepted() == {"spleen": "True", "pancreas": "True", "liver": "False"}  # truth is not accepted
    assert world.accepted(min_pairwise_dice=0.95) == {"spleen": "False", "pancreas": "False", "liver": "False"}
    failed = world.accepted(["pancreas", *(["spleen"] if decision in ("edited", "absent") else [])])
    assert failed == {"spleen": "True", "pancreas": "False", "liver": "False"}


def test_what_was_not_drawn_would_be_accepted_as_selection_says_of_the_map_that_there_is(world):
    world.say("wrong", "spleen", asked="doubt")
    world.fused()
    assert world.accepted() == {"spleen": "True"}
    assert world.accepted(min_quality=0.5) == world.accepted(["spleen"]) == {"spleen": "False"}
    world.say("wrong", "spleen", asked="random")
    world.fused()
    assert world.accepted(min_quality=0.5) == world.accepted(["spleen"]) == {"spleen": "True"}


def test_reviewers_count_where_predictions_alone_do(world):
    world.say("edited", "spleen", (world.truth > 0).astype(np.uint8) * SPLEEN)
    after = world.fused(fuse="predictions_only")
    assert ((after == SPLEEN) == (world.truth > 0)).all()
    assert sources(world) == {"liver": "m", "spleen": "reviewer", "pancreas": "m"}


def test_only_the_case_that_was_judged_is_made_anew(world):
    times = {case: (world.out / f"{case}.nii.gz").stat().st_mtime_ns for case in ("a", "b")}
    world.say("absent", "pancreas")
    world.fused()
    after = {case: (world.out / f"{case}.nii.gz").stat().st_mtime_ns for case in ("a", "b")}
    assert after["a"] != times["a"] and after["b"] == times["b"]
    world.fused()
    assert {case: (world.out / f"{case}.nii.gz").stat().st_mtime_ns for case in ("a", "b")} == after


def test_an_edited_map_that_cannot_be_used_costs_its_decision_alone(world, caplog):
    before, strange = world.fused(), world.made.copy()
    strange[0, 0, 0] = 77
    other = Geometry(GRID.size, (2.0, 3.0, 3.0), direction=GRID.direction)
    world.say("edited", "spleen", world.made, grid=other)
    world.say("edited", "pancreas", strange)
    world.say("absent", "liver")
    kept = world.fused()
    assert LIVER not in kept and ((kept == SPLEEN) == (before == SPLEEN)).all()
    problems = world.table("reviewed")["problem"].to_dict()
    assert "decisions.csv: row 2: label_grid" in problems["spleen"] and "77" in problems["pancreas"]
    assert not problems["liver"] and "what is said of spleen is not used" in caplog.text
    assert world.selected()["decision"].to_dict() == {"liver": "reviewer", "spleen": "accepted", "pancreas": "accepted"}


def test_a_kept_map_that_was_altered_or_lost_is_not_used(world):
    world.say("right", "spleen")
    [kept] = (world.reviews / "kept").iterdir()
    content = kept.read_bytes()
    write(kept, np.zeros(GRID.shape, np.uint8), GRID)
    world.fused()
    assert "review_altered" in world.table("reviewed").loc["spleen", "problem"]
    kept.unlink()
    world.fused()
    assert "label_missing" in world.table("reviewed").loc["spleen", "problem"]
    kept.write_bytes(content)
    world.fused()
    assert sources(world)["spleen"] == "reviewer"
