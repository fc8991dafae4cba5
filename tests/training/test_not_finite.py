"""Losses and gradients that are not numbers: an update is skipped, and only many of them end a training."""

import pytest
import torch
from test_compiled import NoWork
from tiny_training import make_job

from labelloop.base.errors import UserError
from labelloop.training import loading
from labelloop.training.loop import means
from labelloop.training.trainers import TRAINERS, base


@pytest.fixture
def spoiled(data, tmp_path, monkeypatch):
    """Return a function that makes a trainer whose losses of some updates, by number, are multiplied by a factor."""

    def make(kind, numbers, factor=float("nan"), **settings):
        states = {3: {}} if kind == "mean_teacher" else {}
        settings = {"kind": kind, "epochs": 1, "augmentation": "none"} | settings
        trainer = TRAINERS[kind].of(make_job(data, tmp_path, states=states, settings=settings))
        original, count = trainer.training_loss, iter(range(1000))

        def training_loss(*batch):
            loss, terms = original(*batch)
            return loss * (factor if next(count) in numbers else 1.0), terms

        monkeypatch.setattr(trainer, "training_loss", training_loss)
        return trainer

    return make


@pytest.mark.parametrize("kind", ["supervised", "mean_teacher", "cross_pseudo"])
def test_one_loss_that_is_no_number_changes_no_weight(spoiled, kind, tmp_path, caplog):
    trainer = spoiled(kind, {1})
    train = trainer.fit(NoWork(tmp_path)).epochs[0]["train"]
    assert train["skipped"] == pytest.approx(1 / 3) and train["loss"] == train["loss"]
    assert all(value.isfinite().all() for value in trainer.exported_weights().values())
    assert all(value.isfinite().all() for network in trainer.trained for value in network.parameters())
    assert any("1 of 3 updates skipped" in line for line in caplog.messages)


def test_a_skipped_update_leaves_weights_and_momentum_as_they_were(spoiled):
    trainer = spoiled("supervised", {1})
    batches = trainer.get_dataloaders()["train"]
    trainer.train_step(batches.generate_train_batch())
    before = [p.clone() for p in trainer.network.parameters()]
    trainer.train_step(batches.generate_train_batch())
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    assert all(s["momentum_buffer"].isfinite().all() for s in trainer.optimizer.state.values())


def test_an_epoch_without_a_number_ends_the_training(spoiled, tmp_path):
    with pytest.raises(UserError, match="no loss of epoch 1 is a number"):
        spoiled("supervised", {0, 1, 2}).fit(NoWork(tmp_path))


@pytest.mark.parametrize(("numbers", "ends"), [({1, 2, 3}, True), ({0, 1, 3, 4}, False)])
def test_many_skipped_updates_in_a_row_end_the_training(spoiled, tmp_path, monkeypatch, numbers, ends):
    """Their losses are finite, but their gradients are not."""
    monkeypatch.setattr(base, "MOST_SKIPPED", 3)
    trainer = spoiled("supervised", numbers, factor=1e38, iterations_per_epoch=5, validation_iterations=0)
    if not ends:
        assert trainer.fit(NoWork(tmp_path)).epochs[0]["train"]["skipped"] == pytest.approx(4 / 5)
        return
    with pytest.raises(UserError, match="3 updates in a row were skipped"):
        trainer.fit(NoWork(tmp_path))


def test_means_are_over_numbers():
    rows = [{"loss": torch.tensor(value)} for value in (1.0, float("nan"), 3.0, float("inf"))]
    assert means(rows) == {"loss": 2.0} and means([]) == {}
    assert means(rows[1:2])["loss"] != means(rows[1:2])["loss"]


@pytest.mark.parametrize("saved", [1, 8])
def test_a_training_goes_on_beside_another_number_of_gpus(monkeypatch, saved):
    """Older checkpoints hold the generators of all GPUs that were visible."""
    states = [torch.full((16,), number, dtype=torch.uint8) for number in range(saved)]
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: states[0])
    monkeypatch.setattr(torch.cuda, "set_rng_state", given.append)
    state = loading.random_state()
    assert len(state["cuda"]) == 1
    loading.restore_random_state(state | {"cuda": states})
    assert given == [states[0]]
