"""Predicted quality in a run: known errors in the truth, what is known of each label, and what is predicted."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from two_models import CLASSES, RULES, SCHEME, SHARD, Loop, label_map

from labelloop.base.classes import IGNORED
from labelloop.base.paths import manifest_of
from labelloop.base.tables import read_table
from labelloop.labels import quality as predicted
from labelloop.labels.measured import true_dsc
from labelloop.labels.settings import CORRUPTED, HELD_OUT, PSEUDO, UNALTERED
from labelloop.steps import held_out
from labelloop.steps import quality as steps

PATIENTS = 12


def tables(loop: Loop, unlabeled: Collection[tuple[str, str]] = (), **more) -> dict[str, Path]:
    """Run the steps before the last, with ``more`` for `measure`; return their tables, and what the last is given."""
    survey, given = loop.agreed({"min_quality": 0.8})
    errors, evidence = (folder / f"{SHARD}.csv" for folder in (loop.results / "errors", loop.labels / "evidence"))
    steps.corrupt(survey, RULES, errors, Path(manifest_of(errors.parent, SHARD)), 1)
    given |= {"provenance": loop.provenance(*unlabeled), "maps": given["predictions"][0]} | more
    given |= {"table": evidence, "manifest": Path(manifest_of(evidence.parent, SHARD))}
    steps.measure(survey, rules=RULES, version=1, **given)
    return {"cases": Path(survey.cases[0]), "errors": errors, "evidence": evidence, "reviewed": given["reviewed"]}


def judged(loop: Loop) -> pd.DataFrame:
    found, table = tables(loop), loop.labels / "quality.csv"
    steps.quality(*([found[kind]] for kind in ("cases", "errors", "evidence", "reviewed")), "flare", table)
    return read_table(table, "quality").set_index(["map", "case", "class"])


@pytest.fixture(autouse=True)
def small():
    """Fewer copies, trees and folds, which these few patients do not need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "COPIES", 2)
        patch.setattr(predicted, "ITERATIONS", 30)
        patch.setattr(predicted, "FOLDS", 3)
        yield


def loop_of(folder: Path, patients: int) -> Loop:
    """Return a loop whose models find the liver whole in even patients and half of it in odd ones.

    Of every fourth patient, nobody drew the spleen.
    """
    loop, random = Loop(folder), np.random.default_rng(0)
    for number in range(patients):
        wide = int(random.integers(10, 13))
        found = label_map(wide if number % 2 == 0 else wide // 2)
        partly = {"spleen": "unknown"} if number % 4 == 3 else {}
        loop.add(f"labeled_{number}", label_map(wide, 0 if partly else 4), found, found, **partly)
    for name, wide in (("whole", 11), ("half", 5)):
        loop.add(name, None, label_map(wide), label_map(wide))
    return loop


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    return loop_of(tmp_path_factory.mktemp("loop"), PATIENTS)


def test_each_source_is_measured_and_has_its_true_dsc_where_one_is_known(loop):
    loop.learned = {"m": ["labeled_0"], "n": []}
    found = tables(loop)
    rows = pd.concat([read_table(found[name], "evidence") for name in ("errors", "evidence")])
    rows["source"] = rows["map"].str.partition("-")[0]
    labeled = {f"labeled_{number}" for number in range(PATIENTS)}
    cases = {source: set(part["case"]) for source, part in rows.groupby("source")}
    assert cases == {
        UNALTERED: labeled,
        CORRUPTED: labeled,
        HELD_OUT: labeled - {"labeled_0"},
        PSEUDO: {"whole", "half", *(f"labeled_{number}" for number in range(3, PATIENTS, 4))},
    }
    dsc = rows[rows["measure"] == "dsc"].set_index(["map", "case", "class"])["value"]
    assert (dsc[UNALTERED] == 1).all()
    assert PSEUDO not in dsc.index.get_level_values("map")
    assert dsc[HELD_OUT, "labeled_2", "liver"] == 1
    assert 0.5 < dsc[HELD_OUT, "labeled_1", "liver"] < 0.7


def test_what_models_did_to_labeled_patients_says_what_they_did_to_others(loop):
    loop.learned = {"m": [], "n": []}
    both = judged(loop)
    found = both.loc[PSEUDO]
    assert set(found.index) == {
        *((case, name) for case in ("whole", "half") for name in CLASSES),
        *((f"labeled_{number}", "spleen") for number in range(3, PATIENTS, 4)),
    }
    assert found.loc[("whole", "liver"), "dsc"] > 0.9 > 0.8 > found.loc[("half", "liver"), "dsc"]
    assert (found["low"] <= found["dsc"]).all() and (found["dsc"] <= found["high"]).all()
    assert found["reason"].str.contains("a DSC of").all()
    others = both.loc[HELD_OUT]["dsc"].xs("liver", level="class")
    whole, half = ([f"labeled_{number}" for number in range(first, PATIENTS, 2)] for first in (0, 1))
    assert others[whole].min() > 0.8 > others[half].max()


def test_what_was_measured_is_kept(loop, monkeypatch):
    loop.learned = {"m": [], "n": []}
    before = {name: path.read_bytes() for name, path in tables(loop).items()}
    monkeypatch.setattr(steps, "with_errors", None)
    monkeypatch.setattr(steps, "measured", None)
    assert {name: path.read_bytes() for name, path in tables(loop).items()} == before


def small_loop(folder: Path) -> Loop:
    """Return a loop of two labeled cases, of which the models find half of the liver, and one without a label."""
    loop = Loop(folder)
    for name in ("one", "two"):
        loop.add(name, label_map(10), label_map(5), label_map(5))
    loop.add("new", None, label_map(5), label_map(5))
    return loop


def measured_of(table: Path, case: str, which: str) -> dict[tuple[str, str], float]:
    rows = read_table(table, "evidence").query(f"case == '{case}' and map == '{which}'")
    return {(row["class"], row["measure"]): row["value"] for row in rows.to_dict("records")}


def test_labels_of_another_sequence_take_the_place_of_predictions(tmp_path):
    loop = small_loop(tmp_path)
    given = loop.carry(one=label_map(10), two=None, new=label_map(10))
    found = tables(loop, **given)["evidence"]
    held_out = measured_of(found, "one", HELD_OUT)
    assert held_out["liver", "dsc"] == 1
    assert ("liver", "confidence.mean") not in held_out | measured_of(found, "new", PSEUDO)
    assert not measured_of(found, "two", HELD_OUT)
    assert ("liver", "confidence.mean") in measured_of(tables(loop)["evidence"], "one", HELD_OUT)


def test_what_nobody_labeled_has_no_quality(tmp_path):
    loop = small_loop(tmp_path)
    names = {name for name, _ in measured_of(tables(loop)["evidence"], "new", PSEUDO)}
    assert set(CLASSES) <= names
    found = tables(loop, [("new", "spleen")])["evidence"]
    assert ("spleen", "shape.volume") not in measured_of(found, "new", PSEUDO)
    assert ("liver", "shape.volume") in measured_of(found, "new", PSEUDO)


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({"modality": "MR"}, {"corrupt", "measure", "held_out"}),
        ({"surgery": "spleen"}, {"corrupt", "measure", "held_out"}),
        ({"patient": "two"}, {"corrupt"}),  # whose labels are no other patient's then
    ],
)
def test_a_changed_row_of_the_case_table_is_noticed(changed, again, tmp_path, monkeypatch):
    loop, made = small_loop(tmp_path), []
    for module, work, step in (
        (steps, "_corrupt_case", "corrupt"),
        (steps, "_measure_case", "measure"),
        (held_out, "_judge", "held_out"),
    ):
        nothing = (None, {"rows": []})
        monkeypatch.setattr(module, work, lambda item, *_, s=step, n=nothing: made.append((s, item.id)) or n)
    tables(loop), loop.table({})
    made.clear()
    loop.rows[0] |= changed
    tables(loop), loop.table({})
    assert {step for step, case in made if case == "one"} == again


def test_truth_that_reviewers_overruled_is_no_example_of_a_good_label(loop, monkeypatch):
    learned, before = [], predicted.fit
    monkeypatch.setattr(predicted, "fit", lambda rows, classes: learned.append(rows) or before(rows, classes))
    said = [("liver", "wrong", "unknown"), ("spleen", "right", "present")]
    monkeypatch.setattr(
        loop, "reviewed", [{"case": "labeled_0", "class": c, "decision": d, "state": s} for c, d, s in said]
    )
    judged(loop)
    (rows,) = learned
    assert set(rows.loc[rows["case"] == "labeled_0", "class"]) == {"spleen"}
    assert set(rows.loc[rows["case"] == "labeled_2", "class"]) == set(CLASSES)


def test_ignored_voxels_of_the_truth_count_in_no_dsc():
    truth, found = label_map(10), label_map(10)
    truth[:, :, 8:] = IGNORED
    assert true_dsc(found, truth, SCHEME, CLASSES) == {"liver": 1, "spleen": 1}


def test_a_run_in_which_models_learned_from_all_patients_says_so(loop, caplog):
    everybody = [f"labeled_{number}" for number in range(PATIENTS)]
    loop.learned = {"m": everybody, "n": []}
    assert PSEUDO in judged(loop).index
    assert "models learned from all labeled patients" in caplog.text
