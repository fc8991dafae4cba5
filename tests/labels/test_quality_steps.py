"""Predicted quality in a run: known errors in the truth, what is known of each label, and what is predicted."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from two_models import CLASSES, RULES, SHARD, Loop, label_map

from labelloop.base.paths import manifest_of
from labelloop.base.tables import read_table
from labelloop.labels import quality as predicted
from labelloop.labels.settings import CORRUPTED, HELD_OUT, PSEUDO, UNALTERED
from labelloop.steps import quality as steps

PATIENTS = 12


def tables(loop: Loop) -> dict[str, Path]:
    """Run the steps before the last; return their tables, and the case table."""
    survey, given = loop.agreed({"min_quality": 0.8})
    errors, evidence = (folder / f"{SHARD}.csv" for folder in (loop.results / "errors", loop.labels / "evidence"))
    steps.corrupt(survey, RULES, errors, Path(manifest_of(errors.parent, SHARD)), 1)
    given |= {"maps": given["predictions"][0], "table": evidence, "manifest": Path(manifest_of(evidence.parent, SHARD))}
    steps.measure(survey, rules=RULES, version=1, **given)
    return {"cases": Path(survey.cases[0]), "errors": errors, "evidence": evidence}


def judged(loop: Loop) -> pd.DataFrame:
    found, table = tables(loop), loop.labels / "quality.csv"
    steps.quality([found["cases"]], [found["errors"]], [found["evidence"]], "flare", table)
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
