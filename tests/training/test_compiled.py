"""Trainings whose networks are compiled, as nnU-Net compiles them on a GPU."""

import pytest
import torch
from tiny_training import make_job

from labelloop.training.trainers import TRAINERS


@pytest.mark.parametrize("kind", sorted(TRAINERS))
def test_every_kind_trains_and_validates_compiled(kind, data, tmp_path, monkeypatch):
    monkeypatch.setattr(TRAINERS[kind], "compiled", lambda self, network: torch.compile(network, backend="aot_eager"))
    states = {3: {}} if kind in ("mean_teacher", "cross_pseudo") else {}
    job = make_job(data, tmp_path, states=states, settings={"kind": kind, "epochs": 1, "augmentation": "none"})
    trainer = TRAINERS[kind].of(job)
    progress = trainer.fit(NoWork(tmp_path))
    assert progress.epochs[0]["train"]["loss"] == progress.epochs[0]["train"]["loss"]  # a number
    assert progress.epochs[0]["validation"]["loss"] > -1
    assert not any(name.startswith("_orig_mod") for name in trainer.exported_weights())


class NoWork:
    """A work folder that keeps nothing."""

    def __init__(self, folder):
        self.checkpoint, self.folder = folder / "none", folder

    def save(self, epochs, content):
        pass
