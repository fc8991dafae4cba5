import json
import logging

import numpy as np
import pytest
import torch
from tiny_training import CLASSES, PLAN, PRESENT, contents, make_job

from labelloop.base.errors import UserError
from labelloop.base.tables import read_table
from labelloop.inference.engine import Predictor
from labelloop.networks.plans import RESIDUAL
from labelloop.training.export import export_nnunet
from labelloop.training.nnunet import train
from labelloop.training.trainers import TRAINERS

LIVER_ONLY = {"liver": "present"}


def test_outputs(model, data):
    description = json.loads((model / "model.json").read_text())
    assert description["channels"] == ["background", *CLASSES]
    assert description["class_ids"] == {"liver": 1, "spleen": 3, "left_kidney": 13}
    assert description["cases"] == {"train": 3, "validation": 1}
    assert set(description["validation_dice"]) == set(CLASSES)
    rows = [json.loads(line) for line in (model / "training.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["learning_rate"] > rows[1]["learning_rate"]
    for part in ("train", "validation"):
        assert rows[0][part]["loss"] == pytest.approx(rows[0][part]["dice"] + rows[0][part]["cross_entropy"], abs=1e-5)
    cases = read_table(model / "cases.csv", "training_cases")
    assert dict(zip(cases["case"], cases["split"], strict=True))["case0"] == "validation"


@pytest.mark.parametrize("change", [{}, {"workers": 2}])
def test_equal_jobs_give_equal_bytes_with_any_number_of_workers(model, data, tmp_path, change):
    train(make_job(data, tmp_path, **change))
    assert contents(tmp_path) == contents(model)


def test_another_seed_gives_other_weights(model, data, tmp_path):
    train(make_job(data, tmp_path, settings={"seed": 1}))
    assert (tmp_path / "weights.pt").read_bytes() != (model / "weights.pt").read_bytes()


@pytest.mark.parametrize("wanted", [True, "auto", False])
def test_a_model_says_whether_it_was_trained_by_reproducible_algorithms(data, tmp_path, wanted):
    train(make_job(data, tmp_path, deterministic=wanted, settings={"epochs": 1}))
    assert torch.are_deterministic_algorithms_enabled() == bool(wanted)
    assert json.loads((tmp_path / "model.json").read_text())["deterministic"] is bool(wanted)


def test_best_export_is_the_epoch_of_the_best_average(data, tmp_path):
    train(make_job(data, tmp_path, settings={"epochs": 3, "export": "best", "learning_rate": 0.05}))
    description = json.loads((tmp_path / "model.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    averages = [row["dice_average"] for row in rows]
    assert description["epoch"] == description["best_epoch"] == averages.index(max(averages)) + 1


def test_best_export_is_the_last_epoch_where_none_has_a_score(data, tmp_path, monkeypatch):
    monkeypatch.setattr("labelloop.training.trainers.base.dice_scores", dict.fromkeys)  # no class in any patch
    train(make_job(data, tmp_path, settings={"epochs": 2, "export": "best"}))
    description = json.loads((tmp_path / "model.json").read_text())
    assert (description["epoch"], description["best_epoch"]) == (2, None)


@pytest.mark.parametrize("settings", [{"kind": "partial"}, {"kind": "partial", "merge": "max"}, {"precision": "bf16"}])
def test_other_ways_to_train(data, tmp_path, settings):
    states = {1: LIVER_ONLY} if settings.get("kind") else {}
    train(make_job(data, tmp_path, states=states, settings=settings | {"epochs": 1}))
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)["weights"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_residual_network_trains_grows_predicts_and_is_exported(data, tmp_path):
    plan = PLAN.model_copy(update={"residual": True, "convs_per_stage": (1, 2, 1, 1), "convs_per_stage_decoder": 1})
    first, states = tmp_path / "first", dict.fromkeys(range(4), PRESENT | {"tumor": "present"})
    train(make_job(data, first, plan=plan, settings={"epochs": 1}))
    grown = make_job(data, tmp_path / "grown", plan=plan, states=states, classes=(*CLASSES, "tumor"), init_from=first)
    train(grown)
    found = Predictor(tmp_path / "grown", device="cpu")
    assert found.classes == (*CLASSES, "tumor") and "ResidualEncoder" in type(found.network).__name__
    described = json.loads((export_nnunet(first, tmp_path / "stock") / "plans.json").read_text())
    network = described["configurations"]["3d_fullres"]["architecture"]
    assert network["network_class_name"] == RESIDUAL and network["arch_kwargs"]["n_blocks_per_stage"] == [1, 2, 1, 1]


@pytest.mark.parametrize("optimizer", [{"momentum": 0.9, "learning_rate": 0.02}, {"optimizer": "adamw"}])
def test_training_learns(data, tmp_path, optimizer):
    settings = {"epochs": 8, "iterations_per_epoch": 10, "validation_iterations": 0, "augmentation": "none"}
    train(make_job(data, tmp_path, settings=settings | optimizer))
    rows = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert rows[-1]["train"]["loss"] < rows[0]["train"]["loss"] - 0.5


def test_supervised_leaves_out_cases_with_unknown_classes(data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trainer = TRAINERS["supervised"].of(make_job(data, tmp_path, states={1: LIVER_ONLY}))
    assert [c.case for c in trainer.cases["train"]] == ["case2", "case3"]
    assert "1 of 4 cases left out: a class of the model is unknown" in caplog.text


def test_partial_uses_what_is_known(data, tmp_path):
    states = {1: LIVER_ONLY, 2: {"tumor": "present"}}
    trainer = TRAINERS["partial"].of(make_job(data, tmp_path, states=states, settings={"kind": "partial"}))
    assert [c.case for c in trainer.cases["train"]] == ["case1", "case3"]
    _, label, _, properties = trainer.get_dataloaders()["train"]._data.load_case("case1")
    assert set(np.unique(label[:, :, :, :])) == {0, 1}  # voxels of the unknown classes are background,
    assert set(properties["class_locations"]) == {1}  # and nothing steers patches to them


def test_no_case_to_train_on_says_so(data, tmp_path):
    states = dict.fromkeys(range(4), LIVER_ONLY)
    with pytest.raises(UserError, match="none of its 4 cases"):
        train(make_job(data, tmp_path, states=states))


def test_unknown_classes_do_not_count_in_validation(data, tmp_path):
    states = {0: LIVER_ONLY, 1: PRESENT}
    trainer = TRAINERS["partial"].of(make_job(data, tmp_path, states=states, settings={"kind": "partial"}))
    target = torch.tensor([[[[0, 1, 2, 0]]]])[:, None].expand(2, 1, 1, 1, 4)
    predicted = torch.tensor([1, 1, 3, 2])  # per voxel: false liver, true liver, wrong organ, false spleen
    logits = torch.nn.functional.one_hot(predicted, 4).T.reshape(1, 4, 1, 1, 4).expand(2, 4, 1, 1, 4).float() * 10
    trainer.network = lambda data: [logits] * 3
    batch = {"data": torch.zeros(2, 1, 1, 1, 4), "target": [target] * 3, "keys": ["case0", "case1"]}
    _, counts = trainer.validation_step(batch)
    assert counts[1].tolist() == [2, 2, 0]  # liver counts in both samples
    assert counts[2].tolist() == [0, 1, 1]  # spleen only in case1, where it is known
    assert counts[3].tolist() == [0, 1, 0]


def test_coarsest_output_may_count(data, tmp_path):
    jobs = [make_job(data, tmp_path, settings={"deep_supervision": how}) for how in (True, "all_outputs")]
    weights = [TRAINERS["supervised"].of(job).loss.weight_factors for job in jobs]
    assert [tuple(map(float, w)) for w in weights] == [
        pytest.approx((2 / 3, 1 / 3, 0)),
        pytest.approx((4 / 7, 2 / 7, 1 / 7)),
    ]
    train(make_job(data, tmp_path, settings={"epochs": 1, "deep_supervision": "all_outputs"}))
    row = json.loads((tmp_path / "training.jsonl").read_text())["train"]
    assert row["loss"] == pytest.approx(row["dice"] + row["cross_entropy"], abs=1e-5)


def test_settings_that_are_not_given_leave_fingerprints_as_they_were(data, tmp_path):
    """Pinned: whoever renames a setting or adds one that counts raises TRAINING_VERSION."""
    job = make_job(data, tmp_path, settings={"kind": "partial"})
    assert job.fingerprint == "5a63e71bb709af8e"
