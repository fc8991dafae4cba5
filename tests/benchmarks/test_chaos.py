"""``benchmarks/chaos``: arms take as many updates as their control, and no MR is learned from that is tested."""

import numpy as np
import pandas as pd
import pytest

from labelloop.images.volume import Geometry, write
from labelloop.run.chain import updates


@pytest.fixture(scope="module")
def chaos(load_benchmark):
    return load_benchmark("chaos")


@pytest.fixture(scope="module")
def folds(chaos, tmp_path_factory):
    grid, folder = Geometry((8, 8, 8), (5.0, 5.0, 5.0)), tmp_path_factory.mktemp("scans")
    for kind, number in (("ct", 3), ("mr", 6)):
        for n in range(number):
            write(folder / kind / f"{kind}{n}_0000.nii.gz", np.zeros(grid.shape, np.float32), grid)
            write(folder / kind / f"{kind}{n}.nii.gz", np.zeros(grid.shape, np.uint8), grid)
    return [chaos.read_fold(folder / "ct", folder / "mr", number) for number in range(chaos.FOLDS)]


def test_every_arm_after_the_first_two_takes_as_many_updates_as_the_control(chaos, load):
    few = load(chaos.recipe(seed=1))
    assert updates(few, "ct_only") == updates(few, "random") == updates(few, "control") / 2
    assert {updates(few, arm) for arm in chaos.ARMS[2:]} == {updates(few, "control")}
    assert {model.trainer.seed for model in few.models.values()} == {1}


def test_each_mr_is_tested_once_by_models_that_never_saw_it(chaos, folds):
    for arm in chaos.ARMS:
        tested = [case.case for fold in folds for case in fold.tests(arm)]
        assert sorted(tested) == [f"mr{n}" for n in range(6)]
    for fold in folds:
        learned = {case.case: case for case in fold.cases if case.role == "train"}
        assert len([case for case in learned if case.startswith("ct")]) == 3
        assert all(not learned[case].label for case in learned if case.startswith("mr"))
        assert not learned.keys() & {case.case for case in fold.tests("looped")}


def test_models_of_ct_alone_see_no_mr_and_learn_from_no_model(chaos):
    for arm in chaos.CT_ARMS:
        model = chaos.CHAIN.models[arm]
        assert not chaos.CHAIN.plans[model.plan].translate
        assert (model.cases, model.labels) == (("ct",), "truth")
        assert model.init_from in (None, "random")


def test_the_table_names_what_is_missing_and_tells_differences(chaos):
    def scored(shift):
        rows = [(f"mr{n}", organ, 0.5 + n / 100 + shift) for n in range(6) for organ in chaos.ORGANS]
        return pd.DataFrame(rows, columns=["case", "class", "dsc"]).assign(nsd=0.5)

    found = {"ct_only": [scored(0), scored(0.01)], "random": [scored(0.2), scored(0.21)], "looped": [scored(0.3), None]}
    text = list(chaos.lines(found))
    assert text[0] == "Not finished: looped."
    assert "+20.0 (+20.0 to +20.0)" in text[-1] and text[-1].startswith("| random |")
