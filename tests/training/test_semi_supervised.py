"""Mean teacher and cross pseudo supervision: what both share, and what each does."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from tiny_training import contents, make_job

from labelloop.base.errors import UserError
from labelloop.networks.plans import Plan
from labelloop.training.losses import ramp_up
from labelloop.training.nnunet import train
from labelloop.training.trainers import TRAINERS
from labelloop.training.trainers.base import Trainer

KINDS = ("mean_teacher", "cross_pseudo")
UNLABELED = {3: {}}


@pytest.fixture(scope="module")
def unlabeled(data, tmp_path_factory):
    """The prepared cases, of which case3 has no label map."""
    root = tmp_path_factory.mktemp("unlabeled")
    shutil.copytree(data, root, dirs_exist_ok=True)
    (root / "labels" / "case3.b2nd").unlink()
    return root


def trainer_of(data, kind, states=UNLABELED, **settings):
    return TRAINERS[kind].of(make_job(data, data / "model", states=states, settings={"kind": kind} | settings))


def batch_of(trainer, seed=0):
    np.random.seed(seed)
    torch.manual_seed(seed)
    return trainer.get_dataloaders()["train"].generate_train_batch()


def parameters(network):
    return [p.detach().clone() for p in network.parameters()]


def equal(ones, others):
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


# --- both


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_each_batch_is_unlabeled(unlabeled, kind):
    loader = trainer_of(unlabeled, kind).get_dataloaders()["train"]
    batches = [[str(case) for case in loader.get_indices()] for _ in range(20)]
    assert all(first in ("case1", "case2") and second == "case3" for first, second in batches)


def test_partly_labeled_cases_count_as_unlabeled_if_so_asked(data):
    partly = {2: {"liver": "present"}}
    for cross, labeled in (({}, {"case1", "case2", "case3"}), ({"partly_labeled": "unlabeled"}, {"case1", "case3"})):
        loader = trainer_of(data, "cross_pseudo", partly, **cross).get_dataloaders()["train"]
        batches = [[str(case) for case in loader.get_indices()] for _ in range(30)]
        assert {batch[0] for batch in batches} == labeled
        assert {batch[1] for batch in batches} == ({"case2"} if cross else labeled)


@pytest.mark.parametrize(
    ("partly", "states", "needed"),
    [("unlabeled", {"liver": "present"}, "every class"), ("labeled", {}, "any class")],
)
def test_why_no_case_is_labeled_is_told_as_it_is(data, partly, states, needed):
    with pytest.raises(UserError, match=f"in none of 3 to learn from is {needed} of the model known"):
        trainer_of(data, "cross_pseudo", dict.fromkeys(range(4), states), partly_labeled=partly)


@pytest.mark.parametrize("kind", KINDS)
def test_unlabeled_half_has_no_part_in_the_supervised_terms(unlabeled, kind):
    trainer = trainer_of(unlabeled, kind)
    batch = batch_of(trainer)
    other = batch | {"data": torch.cat([batch["data"][:1], batch["data"][1:] * 2 + 1])}
    terms = [trainer.training_loss(*trainer.on_device(b))[1] for b in (batch, other)]
    for name in ("dice", "cross_entropy"):
        assert torch.equal(terms[0][name], terms[1][name])
    name = {"mean_teacher": "consistency", "cross_pseudo": "cross"}[kind]
    assert not torch.equal(terms[0][name], terms[1][name])


@pytest.mark.parametrize("kind", KINDS)
def test_without_unlabeled_cases_all_are_labeled(data, kind, caplog):
    trainer = trainer_of(data, kind, states={})
    assert "no unlabeled case" in caplog.text
    assert trainer.labeled == 2
    assert torch.isfinite(trainer.train_step(batch_of(trainer))["loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_impossible_batches_are_refused(data, tmp_path, kind):
    states = {number: {} for number in range(1, 4)}
    with pytest.raises(UserError, match="in none of 3 to learn from is any class of the model known"):
        TRAINERS[kind].of(make_job(data, tmp_path, states=states, settings={"kind": kind}))
    single = Plan(spacing_mm=(3, 3, 3), patch=(16, 24, 24), features=(4, 8, 8, 8), batch_size=1)
    with pytest.raises(UserError, match="no room for labeled and unlabeled"):
        TRAINERS[kind].of(make_job(data, tmp_path, states=UNLABELED, plan=single, settings={"kind": kind}))


class Killed(BaseException):
    """Ends a training as abruptly as a process can from inside."""


@pytest.mark.training
@pytest.mark.parametrize(("kind", "export"), [("mean_teacher", "final"), ("cross_pseudo", "best")])
def test_killed_and_resumed_equals_uninterrupted(unlabeled, tmp_path, monkeypatch, kind, export):
    settings = {"kind": kind, "export": export, "epochs": 2, "iterations_per_epoch": 2, "validation_iterations": 1}
    settings |= {"save_every": 1}

    def job(name):
        return make_job(unlabeled, tmp_path / name, states=UNLABELED, settings=settings)

    train(job("whole"))
    original, count = Trainer.train_step, [0]

    def step_or_die(self, batch):
        count[0] += 1
        if count[0] == 4:  # the second step of epoch 2; the checkpoint is of epoch 1
            raise Killed
        return original(self, batch)

    monkeypatch.setattr(Trainer, "train_step", step_or_die)
    with pytest.raises(Killed):
        train(job("killed"))
    monkeypatch.undo()
    train(job("killed"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_ramp():
    assert ramp_up(0, 100, 1.0) == pytest.approx(np.exp(-5))
    assert ramp_up(50, 100, 1.0) == pytest.approx(np.exp(-5 / 4))
    assert ramp_up(25, 100, 0.25) == ramp_up(99, 100, 0.25) == ramp_up(0, 100, 0.0) == 1.0


# --- mean teacher


def test_teacher_is_the_moving_average_of_the_student(unlabeled):
    trainer = trainer_of(unlabeled, "mean_teacher", ema_decay=0.6)
    expected = None
    for step in range(4):
        trainer.train_step(batch_of(trainer, step))
        student = parameters(trainer.network)
        past = min(1 - 1 / (step + 1), 0.6)
        expected = [past * e + (1 - past) * s for e, s in zip(expected or student, student, strict=True)]
        teacher = parameters(trainer.teacher)
        assert all(torch.allclose(t, e, atol=1e-7) for t, e in zip(teacher, expected, strict=True))
    assert not equal(teacher, student)
    assert all(p.grad is None for p in trainer.teacher.parameters())


def test_consistency_is_a_real_switch(unlabeled):
    students = {}
    for name, options in {
        "on": {"consistency_weight": 10.0, "consistency_ramp": 0.0},
        "off": {"consistency": False},
        "zero": {"consistency_weight": 0.0, "consistency_ramp": 0.0},
    }.items():
        trainer = trainer_of(unlabeled, "mean_teacher", **options)
        terms = [trainer.train_step(batch_of(trainer, step)) for step in range(2)]
        assert ("consistency" in terms[0]) == (name != "off")
        students[name] = parameters(trainer.network)
    assert equal(students["off"], students["zero"])
    assert not equal(students["on"], students["off"])


def test_terms_of_the_mean_teacher_add_up(unlabeled):
    trainer = trainer_of(unlabeled, "mean_teacher", consistency_weight=3.0, consistency_ramp=0.0)
    terms = trainer.train_step(batch_of(trainer))
    parts = terms["dice"] + terms["cross_entropy"] + terms["consistency_weight"] * terms["consistency"]
    assert terms["loss"].item() == pytest.approx(parts.item(), abs=1e-6)
    assert terms["consistency_weight"] == 3.0


def test_without_noise_equal_networks_agree(unlabeled):
    quiet, noisy = (trainer_of(unlabeled, "mean_teacher", noise=noise) for noise in (0.0, 0.1))
    batch = batch_of(quiet)
    assert quiet.training_loss(*quiet.on_device(batch))[1]["consistency"] < 1e-10  # one sample or two: last bits differ
    assert noisy.training_loss(*noisy.on_device(batch))[1]["consistency"] > 1e-8


def test_noise_is_bounded_and_that_of_its_step(unlabeled):
    trainer = trainer_of(unlabeled, "mean_teacher")
    seen = []
    trainer.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    data, targets, unknown = trainer.on_device(batch_of(trainer))
    for step in (0, 0, 1):
        trainer.step = step
        trainer.training_loss(data, targets, unknown)
    noise = [inputs - data[1:] for inputs in seen]
    assert noise[0].abs().max().item() == pytest.approx(0.2, abs=1e-5)
    assert noise[0].std().item() == pytest.approx(0.095, abs=0.01)  # of N(0, 0.1), clamped at two deviations
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])


@pytest.mark.slow
def test_the_teacher_is_exported(unlabeled, tmp_path):
    settings = {"kind": "mean_teacher", "epochs": 1, "validation_iterations": 1}
    train(make_job(unlabeled, tmp_path, states=UNLABELED, settings=settings))
    trainer = trainer_of(unlabeled, "mean_teacher", epochs=1, validation_iterations=1)
    trainer.fit(_NoWork(tmp_path))
    exported = torch.load(tmp_path / "weights.pt", weights_only=True)["weights"]
    assert all(torch.equal(value, exported[name]) for name, value in trainer.teacher.state_dict().items())
    assert not all(torch.equal(value, exported[name]) for name, value in trainer.network.state_dict().items())
    assert json.loads((tmp_path / "model.json").read_text())["exported_network"] == "teacher"


class _NoWork:
    """A work folder that keeps nothing."""

    def __init__(self, folder):
        self.folder, self.checkpoint = folder / "elsewhere", folder / "none"

    def save(self, *_):
        pass


# --- cross pseudo supervision


def test_networks_are_equally_built_and_differ(unlabeled):
    trainer = trainer_of(unlabeled, "cross_pseudo")
    first, second = (parameters(network) for network in trainer.trained)
    assert [p.shape for p in first] == [p.shape for p in second]
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a.ndim > 1)


def test_terms_of_cross_supervision_add_up(unlabeled):
    trainer = trainer_of(unlabeled, "cross_pseudo", cross_weight=0.5)
    terms = trainer.train_step(batch_of(trainer))
    supervised = sum(terms[f"{part}{which}"] for part in ("dice", "cross_entropy") for which in ("", "_second"))
    crossed = terms["cross_weight"] * (terms["cross"] + terms["cross_second"])
    assert terms["loss"].item() == pytest.approx((supervised + crossed).item(), abs=1e-5)


def test_without_cross_supervision_each_network_learns_as_if_alone(unlabeled):
    trainer = trainer_of(unlabeled, "cross_pseudo", cross_weight=0.0)
    alone = trainer_of(unlabeled, "mean_teacher", consistency=False)
    alone.network.load_state_dict(copy.deepcopy(trainer.second.state_dict()))
    for step in range(2):
        batch = batch_of(trainer, step)
        trainer.train_step(batch)
        alone.train_step(batch)
    pairs = zip(parameters(alone.network), parameters(trainer.second), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_each_network_follows_the_others_prediction(unlabeled):
    trainer = trainer_of(unlabeled, "cross_pseudo")
    channels = len(trainer.job.classes) + 1
    data, targets, unknown = trainer.on_device(batch_of(trainer))
    losses = {}
    for spoken in (1, 2):  # the second network calls everything this channel
        said = [torch.zeros(2, channels, *t.shape[2:]) for t in targets]
        for output in said:
            output[:, spoken] = 10.0
        trainer.trained[1] = lambda _, said=said: said
        losses[spoken] = trainer.training_loss(data, targets, unknown)[1]
    own = [torch.zeros(2, channels, *t.shape[2:]) for t in targets]
    for output in own:
        output[:, 1] = 10.0
    trainer.trained = [lambda _: own, trainer.trained[1]]  # the first says 1, the second 2
    disagree = trainer.training_loss(data, targets, unknown)[1]
    trainer.trained[1] = trainer.trained[0]
    agree = trainer.training_loss(data, targets, unknown)[1]
    assert losses[1]["cross"] != losses[2]["cross"]
    assert agree["cross"] < disagree["cross"] - 5
    assert torch.equal(agree["cross"], agree["cross_second"])


@pytest.mark.parametrize("better", [0, 1])
def test_the_network_that_does_better_in_validation_is_exported(unlabeled, better):
    trainer = trainer_of(unlabeled, "cross_pseudo")
    for number, candidate in enumerate(trainer.candidates):
        candidate.progress.add(0.1, {"loss": 1.0}, {}, {"liver": 0.9 if number == better else 0.3})
    exported, network = trainer.exported_weights(), trainer.trained[better]
    assert all(torch.equal(value, exported[name]) for name, value in network.state_dict().items())
    description = trainer.description()
    assert description["exported_network"] == ("first", "second")[better]
    assert description["validation_dice_average"] == {"first": [0.9, 0.3][better], "second": [0.3, 0.9][better]}
