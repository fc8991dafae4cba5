"""``benchmarks/demos``: it trains every recipe there is in demo size, and its table has the right means."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labelloop.base.tables import TABLES, write_table

RECIPES = Path(__file__).resolve().parents[2] / "config" / "recipes"


@pytest.fixture(scope="module")
def demos(load_benchmark):
    return load_benchmark("demos")


def test_it_trains_all_recipes_in_demo_size_as_they_are(demos, load):
    assert {f"{name}_demo" for name in demos.RECIPES} == {path.stem for path in RECIPES.glob("*_demo.yaml")}
    for name in demos.RECIPES:
        assert load(demos.recipe(name)).models == load({"extends": f"{name}_demo", "description": "as it is"}).models


def test_its_table_has_means_of_final_label_maps_and_names_what_is_not_finished(demos, tmp_path):
    rows = [("a", "liver", 0.8, 900.0), ("a", "tumor", 0.4, 9.0), ("b", "liver", 0.6, 900.0), ("b", "tumor", 1.0, 0.0)]
    table = pd.DataFrame(rows, columns=["case", "class", "dsc", "volume_truth_ml"])
    table = table.assign(**{column: np.nan for column in TABLES["scores"] if column not in table})
    evaluation = tmp_path / "default" / "results" / "evaluation"
    evaluation.mkdir(parents=True)
    for name in ("teacher", "final"):
        write_table(evaluation / f"{name}.csv", table, "scores")
    lines = list(demos.report({name: tmp_path / name for name in ("default", "best")}))
    assert "Not finished: best." in lines
    assert "| default | 2 | 0.700 | 0.700 | 0.400 |" in lines
    assert "## default" in lines and "## best" not in lines
