"""One training by several processes: the same samples, loss, gradient and steps as by one."""

import dataclasses
import json
import logging
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from test_cutmix import ALL, bank  # noqa: F401 (a fixture)
from tiny_training import PLAN, PRESENT, make_job

from labelloop.training import distributed
from labelloop.training.distributed import Team, processes
from labelloop.training.nnunet import train
from labelloop.training.trainers import TRAINERS
from labelloop.training.trainers.base import Trainer

THREE = PLAN.model_copy(update={"batch_size": 3, "batch_dice": True})
FEW = {"epochs": 1, "iterations_per_epoch": 3, "validation_iterations": 1, "precision": "fp32"}
UNLABELED = {"strong_augmentation": True, "confidence_threshold": 0.3, "balanced": True}


# --- in one process


def children() -> set[int]:
    """Return the processes below this one: other tests of the same worker may have left one that waits for work."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


def started_since(before: set[int]) -> set[int]:
    """Return the processes below this one that were not there before."""
    return children() - before


@pytest.mark.parametrize("total", range(1, 9))
@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_sample_is_one_process_s_unless_there_are_too_few(total, size):
    shares = [range(total)[Team(rank, size).share(total)] for rank in range(size)]
    if total < size:
        assert shares == [range(total)] * size
    else:
        assert [sample for share in shares for sample in share] == list(range(total))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("kind", ["supervised", "cross_pseudo"])
def test_the_samples_of_all_processes_are_those_of_one(data, tmp_path, kind):
    trainer = TRAINERS[kind].of(make_job(data, tmp_path, plan=THREE, settings={"kind": kind}))

    def batch(team):
        trainer.team = team
        loader = trainer.get_dataloaders()["train"]
        np.random.seed(3)
        return loader.generate_train_batch()

    whole, parts = batch(Team()), [batch(Team(rank, 2)) for rank in range(2)]
    assert [part["keys"] for part in parts] == [whole["keys"]] * 2
    assert [len(part["data"]) for part in parts] == [1, 2]
    assert torch.equal(torch.cat([part["data"] for part in parts]), whole["data"])
    for level, target in enumerate(whole["target"]):
        assert torch.equal(torch.cat([part["target"][level] for part in parts]), target)


@pytest.mark.parametrize(
    ("device", "cards", "visible", "size", "why"),
    [
        ("cpu", 2, 0, 2, ""),
        ("cuda", 2, 2, 2, ""),
        ("cuda", 1, 4, 1, ""),
        ("cuda", 4, 4, 3, "a batch has 3 samples"),
        ("cuda", 2, 1, 1, "1 card can be used here"),
        ("auto", 2, 0, 1, "there is no card here"),
    ],
)
def test_so_many_processes_train(data, tmp_path, monkeypatch, caplog, device, cards, visible, size, why):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    job = make_job(data, tmp_path, device=device, plan=THREE, cards=cards)
    assert processes(job, torch.device("cuda" if visible else "cpu")) == size
    assert (f"trained on {size} card" in caplog.text and why in caplog.text) if why else not caplog.text


def test_the_number_of_cards_is_not_a_setting_of_the_training(data, tmp_path):
    job = make_job(data, tmp_path)
    assert dataclasses.replace(job, cards=4, stage="/scratch").fingerprint == job.fingerprint


# --- two processes

KINDS = {
    "supervised, unequal shares, Dice of the batch": ({"class_weights": {"spleen": 3.0}}, THREE, {}),
    "partial, Dice of the batch": ({"kind": "partial"}, THREE, {1: {"liver": "present"}, 2: {"spleen": "present"}}),
    "cutmix": ({"kind": "partial", "cutmix": {}}, PLAN, {1: PRESENT | {"tumor": "present"}}),
    "mean_teacher, on sure voxels": (
        {"kind": "mean_teacher", "consistency_weight": 5.0, "consistency_ramp": 0.0, "unlabeled": UNLABELED},
        THREE, {3: {}},
    ),
    "cross_pseudo": ({"kind": "cross_pseudo", "cross_weight": 1.0, "cross_ramp": 0.0}, PLAN, {3: {}}),
}  # fmt: skip


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return the weights, and the losses of the only epoch."""
    weights = torch.load(folder / "weights.pt", weights_only=True)["weights"]
    (row,) = map(json.loads, (folder / "training.jsonl").read_text().splitlines())
    return weights, [*row["train"].values(), *row["validation"].values()]


def assert_alike(ones: Path, others: Path, within: float = 1e-5) -> None:
    (weights, losses), (same, also) = outcome(ones), outcome(others)
    assert losses == pytest.approx(also, abs=within)
    for name, value in weights.items():
        assert torch.allclose(value, same[name], atol=within), name


@pytest.mark.training
@pytest.mark.parametrize("name", KINDS)
def test_two_processes_take_the_steps_of_one(data, tmp_path, bank, name):  # noqa: F811
    settings, plan, states = KINDS[name]
    more = {"tumors": bank, "classes": ALL} if "cutmix" in settings else {}
    for cards in (1, 2):
        train(make_job(data, tmp_path / str(cards), states, settings=FEW | settings, plan=plan, cards=cards, **more))
    assert_alike(tmp_path / "1", tmp_path / "2")


@pytest.mark.training
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_cards_take_the_steps_of_one(data, tmp_path, precision):
    settings, plan, states = KINDS["partial, Dice of the batch"]
    settings = FEW | settings | {"precision": precision}
    for cards in (1, 2):
        job = make_job(data, tmp_path / str(cards), states, settings=settings, plan=plan, cards=cards, device="cuda")
        train(dataclasses.replace(job, deterministic=True))
    assert_alike(tmp_path / "1", tmp_path / "2", within=1e-3)


@pytest.fixture
def faulty(monkeypatch):
    """Return a function that lets the other process ``fail``, or ``stop``, in its second update."""

    def let(what):
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        monkeypatch.setenv("IN_UPDATE_2", what)
        monkeypatch.setattr(distributed, "MEMBER", "failing_member")

    return let


@pytest.mark.training
@pytest.mark.parametrize("who", ["first", "second"])
def test_all_stop_at_one_step_and_one_process_goes_on(data, tmp_path, monkeypatch, faulty, who):
    before = children()

    def job(name, cards):
        return make_job(data, tmp_path / name, settings=FEW, cards=cards)

    original = Trainer.train_step
    taken = []

    def step(self, batch):
        taken.append(batch)
        if who == "first" and len(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    if who == "second":
        faulty("stop")
    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(SystemExit) as ended:
        train(job("stopped", 2))
    assert ended.value.code == 128 + signal.SIGTERM
    assert len(taken) == 2
    assert started_since(before) == set()
    monkeypatch.undo()
    train(job("stopped", 1))
    train(job("whole", 1))
    assert_alike(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.training
def test_when_one_process_fails_all_end_and_the_log_has_its_traceback(data, tmp_path, faulty):
    before = children()
    faulty("fail")
    file = logging.FileHandler(tmp_path / "train.log")
    logging.getLogger().addHandler(file)
    try:
        with pytest.raises(RuntimeError, match="process 2 of 2 ended with code 1; this log has what it said"):
            train(make_job(data, tmp_path / "model", settings=FEW, cards=2))
    finally:
        logging.getLogger().removeHandler(file)
    assert "ValueError: the second process fails" in (tmp_path / "train.log").read_text()
    assert started_since(before) == set()


@pytest.mark.training
def test_when_the_first_process_fails_no_other_is_left(data, tmp_path, monkeypatch):
    before = children()

    def fail(self, batch):
        raise ValueError("the first process fails")

    monkeypatch.setattr(Trainer, "train_step", fail)
    with pytest.raises(ValueError, match="the first process fails"):
        train(make_job(data, tmp_path, settings=FEW, cards=2))
    assert started_since(before) == set()
