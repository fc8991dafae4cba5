"""``benchmarks/nnunet``: its small configuration is one that runs here, its arms differ in what they say alone."""

import importlib
from pathlib import Path

import pytest
import torch
from tiny_nnunet import configuration, plans, save_nnunet

from labelloop.inference.nnunet_files import model_plan
from labelloop.run.chain import own_updates, updates


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("nnunet")


@pytest.mark.parametrize("residual", [False, True])
def test_the_small_configuration_inherits_all_but_its_size(benchmark, residual):
    given = configuration(residual, patch_size=[64, 16, 16])
    both = plans(given)
    both["configurations"]["small"] = benchmark.stock.narrower(given)
    whole, narrow = (model_plan(both, name, 1, Path("model")) for name in ("3d_fullres", "small"))
    assert narrow.features == tuple(count // 4 for count in whole.features) and narrow.patch == (48, 16, 16)
    assert narrow.model_copy(update={"features": whole.features, "patch": whole.patch}) == whole


def test_every_arm_takes_as_many_updates_as_the_control_but_its_teachers(benchmark, load, tmp_path):
    zoo = save_nnunet(tmp_path, labels={"background": 0, "spleen": 1, "liver": 2})
    chain = load(benchmark.students.recipe(zoo, ["liver", "spleen"], 3, 20, range(2)))
    for seed in range(2):
        taken = {arm: updates(chain, f"{arm}_seed{seed}") for arm in ("control", "student_of_nnunet", "student_of_own")}
        assert set(taken.values()) == {120} and updates(chain, f"own_seed{seed}") == 60
        assert own_updates(chain, f"fine_tuned_seed{seed}") == 60
        first, second = (chain.models[f"student_of_{name}_seed{seed}"] for name in ("nnunet", "own"))
        assert first.model_copy(update={"labels": second.labels}) == second
    assert {spec.plan for spec in chain.models.values()} == {"p"}


def test_every_arm_takes_the_optimizer_of_the_model_that_nnunet_trained(benchmark, load, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(benchmark.__file__).with_name("trainer")))
    trainer = importlib.import_module("short").nnUNetTrainerShort
    stock = trainer.__new__(trainer)
    stock.network, stock.initial_lr, stock.num_epochs = torch.nn.Linear(1, 1), 0.01, 3
    optimizer, _ = stock.configure_optimizers()
    chain = load(benchmark.students.recipe(save_nnunet(tmp_path), ["liver"], 3, 20, range(1)))
    for spec in chain.models.values():
        assert spec.trainer.optimizer == type(optimizer).__name__.lower()
        assert spec.trainer.learning_rate == optimizer.defaults["lr"]
        assert spec.trainer.weight_decay == optimizer.defaults["weight_decay"]
