"""Voxels of which nobody knows the class: left out of every loss, of sampling and of validation, in every training."""

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from tiny_training import CASES, CLASSES, IDS, PLAN, PRESENT, frame_of, make_job

from labelloop.base.classes import IGNORED
from labelloop.inference.prepared import open_image, open_label, write_image_array, write_label_array
from labelloop.labels.settings import CutSettings
from labelloop.labels.tumors import cut_tumors, write_objects
from labelloop.training.job import TumorBank
from labelloop.training.losses import PartialLabelLoss
from labelloop.training.sampling import Pick
from labelloop.training.slices import SliceLoader, SliceTraining
from labelloop.training.trainers import TRAINERS

CHANNELS = len(CLASSES) + 1
MARK = CHANNELS
"""What ignored voxels are in a target."""
MODES = ("logsumexp", "max")


def nnunet_loss(batch_dice=False, weight=None, **options):
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(dice, {"weight": weight}, dice_class=MemoryEfficientSoftDiceLoss, **options)


@pytest.fixture
def sample():
    """Logits and a target in which about a third of the voxels is ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, CHANNELS, 6, 5, 4, generator=generator)
    target = torch.randint(0, CHANNELS, (2, 1, 6, 5, 4), generator=generator)
    return logits, target.masked_fill(torch.rand(target.shape, generator=generator) < 0.3, MARK)


def value_and_gradient(loss, logits, *others):
    x = logits.clone().requires_grad_()
    value = loss(x, *others)
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.5, 3.0])])
def test_the_loss_is_that_of_nnunet_with_its_ignore_label(sample, mode, batch_dice, weight):
    logits, target = sample
    wanted = value_and_gradient(nnunet_loss(batch_dice, weight, ignore_label=MARK), logits, target)
    ours = PartialLabelLoss(nnunet_loss(batch_dice, weight), mode, ignored=MARK)
    found = value_and_gradient(ours, logits, target, torch.zeros(2, CHANNELS, dtype=torch.bool))
    assert torch.allclose(found[0], wanted[0], rtol=0, atol=1e-6)
    assert torch.allclose(found[1], wanted[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("mode", MODES)
def test_what_a_network_says_of_ignored_voxels_changes_nothing(sample, mode):
    logits, target = sample
    unknown = torch.tensor([[False, True, False, False], [False] * 4])
    loss, ignored = PartialLabelLoss(nnunet_loss(), mode, ignored=MARK), (target == MARK).expand_as(logits)
    value, gradient = value_and_gradient(loss, logits, target, unknown)
    assert (gradient[ignored] == 0).all() and (gradient[~ignored] != 0).any()
    other = torch.where(ignored, 50 * torch.randn_like(logits), logits)
    assert torch.equal(value_and_gradient(loss, other, target, unknown)[0], value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unknown", [(), (1,), (1, 3)])
def test_a_patch_with_an_ignored_half_is_the_other_half(sample, mode, unknown):
    logits, target = sample[0], sample[1] % CHANNELS
    rows = torch.tensor([[channel in unknown for channel in range(CHANNELS)]] * 2)
    half = value_and_gradient(PartialLabelLoss(nnunet_loss(), mode), logits[:, :, :3], target[:, :, :3], rows)
    target[:, :, 3:] = MARK
    for of_voxels in (rows, rows[:, :, None, None, None].expand_as(logits)):
        value, gradient = value_and_gradient(
            PartialLabelLoss(nnunet_loss(), mode, ignored=MARK), logits, target, of_voxels
        )
        assert torch.allclose(value, half[0], rtol=0, atol=1e-6)
        assert torch.allclose(gradient[:, :, :3], half[1], rtol=1e-5, atol=1e-8)


def test_a_patch_of_which_nothing_is_known_teaches_nothing(sample):
    logits, target = sample
    loss = PartialLabelLoss(nnunet_loss(), ignored=MARK)
    value, gradient = value_and_gradient(
        loss, logits, torch.full_like(target, MARK), torch.zeros(2, CHANNELS, dtype=torch.bool)
    )
    assert value.isfinite() and (gradient == 0).all()


# --- trainings

KINDS = ("supervised", "partial", "mean_teacher", "cross_pseudo")


@pytest.fixture(scope="module")
def ignoring(data, tmp_path_factory):
    """The prepared cases; in each, the right half is ignored, in one everything is."""
    root = tmp_path_factory.mktemp("ignoring")
    for number in range(CASES):
        image = open_image(data / "images" / f"case{number}.b2nd").array[0]
        label = np.array(open_label(data / "labels" / f"case{number}.b2nd").array[0])
        label[:, :, 15:] = IGNORED
        if number == 3:
            label[:] = IGNORED
        write_image_array(root / "images" / f"case{number}.b2nd", image, frame_of(image.shape))
        write_label_array(root / "labels" / f"case{number}.b2nd", label)
    return root


def trainer_of(data, kind, states=None, **options):
    settings = {"kind": kind} | options.pop("settings", {})
    return TRAINERS[kind].of(make_job(data, data / "model", states=states, settings=settings, **options))


def batch_of(trainer, stream="train", seed=0):
    np.random.seed(seed)
    torch.manual_seed(seed)
    return trainer.get_dataloaders()[stream].generate_train_batch()


@pytest.mark.parametrize("kind", KINDS)
def test_targets_of_every_training_say_what_is_ignored_and_its_loss_leaves_that_out(ignoring, kind):
    trainer = trainer_of(ignoring, kind, {2: {}} if kind in KINDS[2:] else None)
    batches = [batch_of(trainer, seed=seed) for seed in range(6)]
    seen = {int(value) for batch in batches for target in batch["target"] for value in target.unique()}
    assert MARK in seen and seen <= set(range(CHANNELS + 1))
    batch = next(b for b in batches if ((b["target"][0] > 0) & (b["target"][0] < MARK)).any())
    _, targets, unknown = trainer.on_device(batch)
    logits = [torch.randn(len(t), CHANNELS, *t.shape[2:]).requires_grad_() for t in targets]
    loss = trainer.compute_loss(logits, targets, unknown)
    trainer._terms.take()
    ignored = (targets[0] == MARK).expand_as(logits[0])
    (gradient,) = torch.autograd.grad(loss, logits[0])
    assert loss.isfinite() and (gradient[ignored] == 0).all() and (gradient[~ignored] != 0).any()
    losses = trainer.train_step(batch)
    assert losses["loss"].isfinite() and not losses["skipped"]


def test_where_nothing_is_ignored_the_loss_is_nnunets_own(data):
    trainer = trainer_of(data, "supervised")
    assert trainer.ignored is None and isinstance(trainer.loss.loss, DC_and_CE_loss)


def test_a_case_without_a_label_map_has_no_ignored_voxels(ignoring):
    assert trainer_of(ignoring, "supervised").channels_of({}) == {}
    assert trainer_of(ignoring, "supervised").channels_of({"liver": "absent"}) == {IGNORED: MARK}


@pytest.mark.parametrize("kind", ["supervised", "partial"])
def test_validation_counts_known_voxels_alone(ignoring, monkeypatch, kind):
    trainer = trainer_of(ignoring, kind)
    target = torch.zeros(2, 1, *PLAN.patch, dtype=torch.int16)
    target[:, :, :4], target[:, :, 4:8] = 1, MARK
    logits = torch.full((2, CHANNELS, *PLAN.patch), -9.0)
    logits[:, 1, :6], logits[:, 0, 6:] = 9, 9  # half of what is ignored is called liver
    monkeypatch.setattr(trainer, "logits_of", lambda *_: [logits])
    monkeypatch.setattr(trainer, "on_device", lambda _: (None, [target], [torch.zeros(2, CHANNELS, dtype=torch.bool)]))
    monkeypatch.setattr(trainer, "compute_loss", lambda *_: torch.zeros(()))
    monkeypatch.setattr(trainer._terms, "take", dict)
    _, counts = trainer.validation_step({})
    assert counts[1].tolist() == [2 * 4 * 24 * 24, 0, 0]


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_patches_are_centered_on_what_is_known(ignoring, foreground):
    settings = {"foreground_fraction": foreground, "augmentation": "none"}
    trainer = trainer_of(ignoring, "partial", settings=settings)
    loader = trainer.get_dataloaders()["train"]
    for case in ("case1", "case2"):
        loader._choose = lambda case=case: [Pick(case)]
        data, _, _, properties = loader._data.load_case(case)
        places = properties["class_locations"]
        assert set(places) <= {-1, 1, 2, 3} and (places[-1][:, 3] < 15).all()
        for seed in range(20):
            np.random.seed(seed)
            loader.get_indices()
            low, high = loader.get_bbox(data.shape[1:], bool(foreground), places)
            center = (low[2] + high[2]) // 2
            assert center <= 15 or low[2] == 0


def test_known_voxels_that_a_crop_hides_are_no_centers(ignoring):
    trainer = trainer_of(ignoring, "partial", {1: {"liver": "present"}}, settings={"crop_z_mm": 0.0})
    dataset = trainer.get_dataloaders()["train"]._data
    data, _, _, properties = dataset.load_case("case1")
    levels = properties["class_locations"][-1][:, 1]
    assert len(levels) and levels.min() >= 0 and levels.max() < data.shape[1]


def test_pasted_surroundings_stay_ignored(data, ignoring, tmp_path):
    label = np.array(open_label(data / "labels" / "case1.b2nd").array[0])
    label[label != IDS["tumor"]] = IGNORED
    image = open_image(data / "images" / "case1.b2nd").array[0]
    settings = CutSettings(margin_mm=((6, 6), (6, 6), (6, 6)))
    objects = cut_tumors("case1", image, label, (3, 3, 3), IDS["tumor"], settings)
    assert (objects[0][1] == IGNORED).any()
    write_objects(tmp_path / "case1.npz", objects, {"tumor": "present", "liver": "present"})
    trainer = trainer_of(
        ignoring,
        "partial",
        {1: PRESENT | {"tumor": "present"}},
        classes=(*CLASSES, "tumor"),
        tumors=TumorBank(tmp_path, {"case1": "a"}),
        settings={"cutmix": {"probability": 1.0}},
    )
    batches = [batch_of(trainer, seed=seed) for seed in range(6)]
    batch = next(b for b in batches if any(b["pasted"]))
    _, targets, _ = trainer.on_device(batch)
    assert all(target.max() <= len(CLASSES) + 2 for target in targets)
    assert trainer.train_step(batch)["loss"].isfinite()
    pasted = batch["target"][0] // (len(CLASSES) + 3) > 0  # by regions
    assert set(targets[0][pasted].tolist()) <= {4, 5} and (targets[0][pasted] == 4).any()


def test_slices_that_may_show_a_class_are_left_out(tmp_path):
    root = tmp_path
    for number in range(CASES):
        label = np.zeros((6, 8, 8), np.uint8)
        label[0], label[1, 0, 0], label[2, 0, 0], label[2, 4, 4] = 1, IGNORED, IGNORED, 1
        write_image_array(root / "images" / f"case{number}.b2nd", np.zeros(label.shape, np.float32))
        write_label_array(root / "labels" / f"case{number}.b2nd", label)
    settings = {"kind": "slice_classifier", "size": 32, "batch_size": 4}
    training = SliceTraining(make_job(root, root / "model", classes=("liver",), settings=settings))
    (case,) = training.cases["validation"]
    assert case.positive.tolist() == [True, False, True, False, False, False]
    assert case.known.tolist() == [True, False, True, True, True, True]
    loader = SliceLoader(training.job, [case], training.settings, augment=False)
    assert [(z, positive) for _, z, positive in loader._slices] == [(0, True), (2, True), (3, False), (4, False),
                                                                    (5, False)]  # fmt: skip
    assert training.held_out_scores()[0]["slices"] == 5
