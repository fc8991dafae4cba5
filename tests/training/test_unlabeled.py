"""What unlabeled samples teach: how many, from when on, in which view, and at which voxels."""

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from tiny_training import make_job

from labelloop.base.errors import UserError
from labelloop.networks.plans import Plan
from labelloop.training.losses import PartialLabelLoss, ramp_up
from labelloop.training.settings import Unlabeled, trainer_settings
from labelloop.training.trainers import TRAINERS
from labelloop.training.unlabeled import ConfidenceMask, strong_augmentation, unknown_but

KINDS = ("mean_teacher", "cross_pseudo")
TERM = {"mean_teacher": "consistency", "cross_pseudo": "cross"}
FOUR = Plan(spacing_mm=(3, 3, 3), patch=(16, 24, 24), features=(4, 8, 8, 8), batch_size=4)


def trainer_of(data, kind, plan=FOUR, own=None, **unlabeled):
    settings = {"kind": kind, "unlabeled": unlabeled, "epochs": 10} | (own or {})
    return TRAINERS[kind].of(make_job(data, data / "model", states={3: {}}, plan=plan, settings=settings))


def batch_of(trainer, seed=0):
    np.random.seed(seed)
    torch.manual_seed(seed)
    return trainer.get_dataloaders()["train"].generate_train_batch()


def probabilities(seed=0, channels=4, shape=(2, 6, 6, 6), sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(shape[0], channels, *shape[1:], generator=generator)).softmax(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("share", "number"), [(0.5, 2), (0.25, 1), (0.1, 1), (0.8, 3)])
def test_so_many_samples_are_unlabeled(data, kind, share, number):
    trainer = trainer_of(data, kind, share=share)
    cases = [str(case) for case in trainer.get_dataloaders()["train"].get_indices()]
    assert [case == "case3" for case in cases] == [False] * (4 - number) + [True] * number
    assert trainer.labeled == 4 - number


def test_no_weight_before_unlabeled_cases_count():
    weights = [ramp_up(epoch, 100, 0.4, after=0.3) for epoch in range(100)]
    assert weights[:30] == [0.0] * 30
    assert weights[30] == pytest.approx(np.exp(-5))
    assert weights[70:] == [1.0] * 30
    assert sorted(weights) == weights


@pytest.mark.parametrize("kind", KINDS)
def test_before_that_the_unlabeled_change_nothing(data, kind):
    trainer = trainer_of(data, kind, burn_in=0.5)
    batch = batch_of(trainer)
    other = batch | {"data": torch.cat([batch["data"][:2], batch["data"][2:] * 2 + 1])}
    for epoch, same in ((4, True), (9, False)):
        trainer.epoch = epoch
        losses = [trainer.training_loss(*trainer.on_device(b))[0] for b in (batch, other)]
        assert torch.equal(*losses) is same


@pytest.mark.parametrize("confidence", [0.5, 0.7, 0.9])
def test_voxels_teach_where_a_prediction_is_sure(confidence):
    found = probabilities()
    trusted = ConfidenceMask(Unlabeled(confidence_threshold=confidence), 4, torch.device("cpu"))(found)
    assert torch.equal(trusted, found.amax(1, keepdim=True) >= confidence)


def test_a_class_of_which_a_network_is_never_sure_is_not_left_out():
    """Two classes: of one it is 95 % sure, of the other 60 %."""
    found = torch.tensor([0.95, 0.05, 0.4, 0.6]).view(2, 2).T.reshape(1, 2, 1, 1, 2)
    plain, balanced = (
        ConfidenceMask(Unlabeled(confidence_threshold=0.8, balanced=b), 2, torch.device("cpu")) for b in (False, True)
    )
    for _ in range(1000):
        counted = balanced(found)
    assert plain(found).flatten().tolist() == [True, False]
    assert counted.flatten().tolist() == [True, True]
    assert balanced.means.tolist() == pytest.approx([0.95, 0.6], abs=1e-3)


def test_at_other_voxels_nothing_is_learned():
    logits = torch.randn(2, 4, 5, 5, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    trusted = torch.rand(2, 1, 5, 5, 5, generator=torch.Generator().manual_seed(2)) < 0.5
    target = torch.randint(4, (2, 1, 5, 5, 5), generator=torch.Generator().manual_seed(3))

    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    PartialLabelLoss(loss)(logits, target, unknown_but(trusted, 4)).backward()
    moved = logits.grad.abs().sum(1, keepdim=True) > 1e-7
    assert torch.equal(moved, trusted)


@pytest.mark.parametrize("kind", KINDS)
def test_confidence_that_nothing_reaches_leaves_the_labels_alone(data, kind):
    own = {"cross_on": "unlabeled"} if kind == "cross_pseudo" else {}
    trainer = trainer_of(data, kind, own=own, confidence_threshold=1.0)
    batch = batch_of(trainer)
    other = batch | {"data": torch.cat([batch["data"][:2], batch["data"][2:] * 2 + 1])}
    terms = [trainer.training_loss(*trainer.on_device(b))[1][TERM[kind]] for b in (batch, other)]
    assert terms[0] == pytest.approx(float(terms[1]), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_that_learns_sees_another_view_of_unlabeled_samples(data, kind):
    trainer = trainer_of(data, kind, strong_augmentation=True)
    seen = {"learns": [], "tells": []}

    def look(module, inputs):
        seen["learns" if torch.is_grad_enabled() else "tells"].append(inputs[0])

    for network in {trainer.network, *(c.network for c in trainer.candidates)}:
        network.register_forward_pre_hook(look)
    data_, targets, unknown = trainer.on_device(batch_of(trainer))
    trainer.training_loss(data_, targets, unknown)
    for learned in seen["learns"]:
        assert torch.equal(learned[:2], data_[:2])
        assert not torch.allclose(learned[2:], data_[2:], atol=0.1)
    assert seen["tells"] and all(len(told) in (2, 4) for told in seen["tells"])
    again = list(seen["learns"])
    trainer.training_loss(data_, targets, unknown)
    assert torch.equal(again[0], seen["learns"][len(again)])  # the same update, the same view


def test_a_strong_view_moves_nothing_and_follows_its_generator():
    data = torch.randn(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    data[:, :, 4:] += 5
    views = [strong_augmentation(data, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1]) and not torch.allclose(views[0], views[2], atol=0.1)
    for view in views:
        assert (view[:, :, 4:].mean((1, 2, 3, 4)) > view[:, :, :4].mean((1, 2, 3, 4))).all()
    assert torch.isfinite(strong_augmentation(torch.zeros(1, 1, 4, 4, 4), torch.Generator().manual_seed(0))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_remembered_of_classes_outlives_a_resume(data, kind):
    options = {"confidence_threshold": 0.3, "balanced": True}
    trainer, resumed = trainer_of(data, kind, **options), trainer_of(data, kind, **options)
    trainer.train_step(batch_of(trainer))
    assert not torch.equal(trainer.confidence_mask.means, resumed.confidence_mask.means)
    resumed.load_state(trainer.state())
    assert torch.equal(trainer.confidence_mask.means, resumed.confidence_mask.means)


def test_contradictions_are_refused(data):
    with pytest.raises(ValueError, match="balanced: without effect where `confidence_threshold` is 0"):
        Unlabeled(balanced=True)
    with pytest.raises(ValueError, match=r"unlabeled\n +Extra inputs"):
        trainer_settings({"kind": "partial", "unlabeled": {"share": 0.5}})
    single = FOUR.model_copy(update={"batch_size": 1})
    with pytest.raises(UserError, match="no room for labeled and unlabeled"):
        trainer_of(data, "mean_teacher", plan=single)
