"""A label set from fusion to the queue: where annotators have a say in it, and of which classes."""

from pathlib import Path

import pytest
from two_models import CLASSES, SCHEME, SHARD, Loop, label_map

from labelloop.base.paths import manifest_of
from labelloop.base.tables import read_table
from labelloop.review.queue import queue
from labelloop.steps.labels import check, fuse, select

KINDS = ("annotation", "volume")
RULES = SCHEME.model_dump(mode="json") | {"rules": [rule for rule in SCHEME.rules if rule["kind"] in KINDS]}


class Made:
    """A label set of one shard: its tables "selected" and "verdicts", by case and class, and its queue."""

    def __init__(self, loop: Loop, settings: dict | None = None, **spec):
        survey, given = loop.agreed(settings or {})
        spec, out = {"cases": ["all"]} | given["spec"] | spec, loop.labels
        maps, verdicts = Path(manifest_of(out, SHARD)), out / "verdicts" / f"{SHARD}.csv"
        fused = {"provenance": out / "provenance" / f"{SHARD}.csv", "reviewed": out / "reviewed" / f"{SHARD}.csv"}
        fuse(survey, given["predictions"], spec, given["known"], "flare", {}, maps, *fused.values(), "nowhere", 1)
        tables = {"table": verdicts, "manifest": Path(manifest_of(verdicts.parent, SHARD))}
        check(survey, maps, *fused.values(), given["volumes"], RULES, spec, **tables, version=1)
        written = ("selected", "provenance", "reviewed", "verdicts", "disagreement", "held_out")
        files = {kind: out / f"{kind}.csv" for kind in (*written, "calibration", "transfers")}
        shards = {"shard_verdicts": [verdicts], "shard_disagreement": [given["disagreement"]]}
        joined = ([file] for file in fused.values())
        select(survey.annotation, *joined, spec, "flare", **files, **shards)
        tables = {kind: read_table(files[kind], kind) for kind in ("selected", "verdicts", "disagreement")}
        self.queue = queue(**tables)
        self.selected = tables["selected"].set_index(["case", "class"])
        self.verdicts = tables["verdicts"].set_index(["case", "class", "rule"])

    def fails(self, case: str) -> set[tuple[str, str]]:
        rows = self.verdicts.query(f"verdict == 'fail' and case == '{case}'")
        return {(name, rule) for _, name, rule in rows.index}


@pytest.fixture
def loop(tmp_path) -> Loop:
    """Of case "a", annotators drew liver and spleen; of "b", nothing. Models find the spleen of both, and no liver."""
    made = Loop(tmp_path)
    made.add("a", label_map(10), label_map(0), label_map(0))
    made.add("b", None, label_map(0), label_map(0))
    return made


def test_annotated_classes_outside_a_label_set_are_neither_judged_nor_asked_about(loop):
    made = Made(loop, classes=["spleen"])
    assert {name for _, name, _ in made.verdicts.index} == {"spleen"}
    assert made.fails("a") == made.fails("b") != set()  # a spleen that small
    assert set(made.queue.set_index(["case", "class"]).index) <= set(made.selected.index)


@pytest.mark.parametrize("fuse", ["truth_first", "predictions_only"])
def test_annotators_have_a_say_only_where_the_truth_counts(loop, fuse):
    """Where predictions alone count, what becomes of an annotated case is what becomes of one that nobody annotated."""
    for settings in ({}, {"min_pairwise_dice": 0.99}, {"absent_if_not_found": ["organs"]}, {"verdicts": []}):
        made = Made(loop, settings, fuse=fuse)
        of_a, of_b = (made.selected.loc[case] for case in "ab")
        same = of_a.equals(of_b) and made.fails("a") == made.fails("b")
        same = same and made.verdicts.loc["a"].equals(made.verdicts.loc["b"])
        assert same == (fuse == "predictions_only")
        assert (of_a["decision"] == "truth").all() == (fuse == "truth_first")
        assert list(of_a.index) == list(CLASSES)
