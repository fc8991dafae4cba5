"""``benchmarks/ablation``: its recipes are valid, its pairs differ in one thing, its numbers are right."""

import numpy as np
import pandas as pd
import pytest

SEEDS = range(2)


@pytest.fixture(scope="module")
def ablation(load_benchmark):
    return load_benchmark("ablation")


def everything(recipe, name):
    """What a model is made from, down to the truth, without names and seeds."""
    model = recipe.models[name].model_dump(mode="json", exclude={"labels"})
    model["trainer"].pop("seed")
    labels = recipe.labels.get(recipe.models[name].labels)
    source = None
    if labels:
        teachers = [everything(recipe, teacher) for teacher in labels.predict]
        source = labels.model_dump(mode="json", exclude={"predict"}) | {"predict": teachers}
    return model | {"labels": source}


def flat(content, place=""):
    if not isinstance(content, dict):
        return {place: content}
    return {k: v for key, value in content.items() for k, v in flat(value, f"{place}.{key}").items()}


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_pairs_differ_in_what_they_ask_about(ablation, load, size):
    recipe = load(ablation.partial_recipe(ablation.SIZES[size], SEEDS))
    expected = {
        ("background", "max"): {".trainer.kind", ".trainer.unknown", ".trainer.merge"},
        ("background", "marginal"): {".trainer.kind", ".trainer.unknown", ".trainer.merge"},
        ("max", "marginal"): {".trainer.merge"},
        ("marginal", "longer"): {".trainer.epochs"},
        ("pseudo_alone", "ungated"): {".labels.fuse"},
        ("ungated", "gated"): {".labels.check"},
    }
    for (first, second), what in expected.items():
        for seed in SEEDS:
            parts = [flat(everything(recipe, ablation.model_name(arm, seed))) for arm in (first, second)]
            assert {key for key in parts[0].keys() | parts[1].keys() if parts[0].get(key) != parts[1].get(key)} == what
    pasting = recipe.models["cutmix_seed0"].trainer
    assert pasting.model_copy(update={"cutmix": None}) == recipe.models["marginal_seed0"].trainer
    assert {pair[:3][1:] for pair in ablation.PAIRS} >= expected.keys() - {("marginal", "longer")}
    assert recipe.models["gated_seed1"].trainer.seed == recipe.models["marginal_seed1"].trainer.seed == 1


def test_numbers_of_a_pair(ablation):
    cases = [f"c{i}" for i in range(8)]

    def scores(shift):
        rows = [(case, name, 0.5 + i / 100 + shift) for i, case in enumerate(cases) for name in ("liver", "spleen")]
        rows += [(case, "tumor", np.nan) for case in cases]
        return pd.DataFrame(rows, columns=["case", "class", "dsc"]).assign(nsd=0.0)

    row = ablation.compare([scores(0.0), scores(0.2)], [scores(0.3), scores(0.3)], "organ mean")
    assert row["cases"] == 8
    assert np.isclose(row["first"], 0.5 + 0.035 + 0.1) and np.isclose(row["first_sd"], 0.1 * 2**0.5)
    assert np.isclose(row["second"], 0.835) and np.isclose(row["second_sd"], 0.0)
    assert (
        np.isclose(row["difference"], 0.2) and row["low_95"] < 0 < row["p"]
    )  # 0.3 and 0.1: two trainings tell nothing
    assert ablation.compare([scores(0)], [scores(1)], "tumor") is None
