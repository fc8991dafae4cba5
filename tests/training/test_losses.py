import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch.nn.functional import cross_entropy

from labelloop.training.losses import (
    LEFT_OUT,
    KnownDice,
    LossTerms,
    PartialLabelLoss,
    ReproducibleCrossEntropy,
    drop_unknown,
    merge_unknown,
)

MODES = ("logsumexp", "max")
UNKNOWN = torch.tensor([[False, True, False, True, False], [False] * 5])  # nothing unknown in the second sample


def nnunet_loss(batch_dice=False):
    return DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        dice_class=MemoryEfficientSoftDiceLoss,
    )


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, 5, 6, generator=generator, dtype=torch.double)
    return logits, torch.randint(0, 5, (2, 1, 4, 5, 6), generator=generator)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch_dice", [False, True])
def test_equals_the_plain_loss_where_all_is_annotated(sample, mode, batch_dice):
    logits, target = sample
    values, gradients = [], []
    for loss in (nnunet_loss(batch_dice), PartialLabelLoss(nnunet_loss(batch_dice), mode)):
        x = logits.float().requires_grad_()
        extra = (torch.zeros(2, 5, dtype=torch.bool),) if isinstance(loss, PartialLabelLoss) else ()
        values.append(loss(x, target, *extra))
        gradients.append(torch.autograd.grad(values[-1], x)[0])
    assert torch.allclose(*values, rtol=0, atol=1e-6)
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("known", [(3,), (1, 4), (1, 2, 3, 4)])
def test_a_case_of_k_known_classes_is_a_network_of_k_and_one_outputs(sample, mode, batch_dice, known):
    logits, target = sample
    unknown = torch.tensor([[channel not in (0, *known) for channel in range(5)]] * 2)
    merged, labels = merge_unknown(logits.float(), target, unknown, mode)
    table = torch.zeros(5, dtype=torch.long)
    table[list(known)] = torch.arange(1, len(known) + 1)
    small = merged[:, [0, *known]].requires_grad_()
    wanted = nnunet_loss(batch_dice)(small, table[labels])
    (gradient,) = torch.autograd.grad(wanted, small)
    large = merged.detach().requires_grad_()
    value = PartialLabelLoss(nnunet_loss(batch_dice), mode)(large, target, unknown)
    (found,) = torch.autograd.grad(value, large)
    assert torch.isclose(value, wanted, rtol=0, atol=1e-6)
    assert torch.allclose(found[:, list(known)], gradient[:, 1:], rtol=1e-4, atol=1e-8)


def test_a_class_known_in_a_pasted_box_counts_and_one_known_nowhere_does_not(sample):
    logits, target = sample
    rows = torch.tensor([[False, True, False, True, True]] * 2)
    boxes = rows[:, :, None, None, None].expand_as(logits).clone()
    boxes[:, 4, :2] = False
    merged, labels = merge_unknown(logits.float(), target, boxes)
    per_class = -nnunet_loss().dc(merged[:, [0, 2, 4]], torch.tensor([0, 0, 1, 0, 2])[labels])
    assert torch.isclose(-KnownDice(False, 1e-5)(merged, labels, boxes), per_class, atol=1e-6)


def test_a_sample_of_which_nothing_is_known_has_no_dice_loss(sample):
    merged, labels = merge_unknown(*sample, torch.tensor([[False, True, True, True, True]] * 2))
    assert KnownDice(False, 1e-5)(merged, labels, torch.tensor([[False, True, True, True, True]] * 2)) == 0


@pytest.mark.parametrize("mode", MODES)
def test_an_annotated_sample_is_untouched_beside_a_partial_one(sample, mode):
    logits, target = sample
    merged, merged_target = merge_unknown(logits, target, UNKNOWN, mode)
    assert torch.equal(merged[1], logits[1])
    assert torch.equal(merged_target[1], target[1])


@pytest.mark.parametrize("mode", MODES)
def test_permuting_within_the_merged_set_changes_nothing(sample, mode):
    logits, target = sample
    swapped = logits.clone()
    swapped[0, [0, 1, 3]] = logits[0, [3, 0, 1]]
    loss = PartialLabelLoss(nnunet_loss(), mode)
    assert torch.allclose(loss(logits, target, UNKNOWN), loss(swapped, target, UNKNOWN), rtol=0, atol=1e-7)
    relabeled = target.clone()
    relabeled[0][(target[0] == 1) | (target[0] == 3)] = 0
    assert torch.equal(loss(logits, target, UNKNOWN), loss(logits, relabeled, UNKNOWN))


def test_logsumexp_is_the_probability_of_any_merged_class(sample):
    logits, target = sample
    merged, _ = merge_unknown(logits, target, UNKNOWN, "logsumexp")
    probability, before = merged.softmax(1)[0], logits.softmax(1)[0]
    assert torch.allclose(probability[0], before[[0, 1, 3]].sum(0))
    assert torch.allclose(probability[[2, 4]], before[[2, 4]])
    assert (probability[[1, 3]] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_but_unknown_prediction_costs_nothing(mode):
    target = torch.zeros(1, 1, 2, 2, 2, dtype=torch.long)
    unknown = torch.tensor([[False, True, False]])
    losses = {}
    for channel in (0, 1, 2):
        logits = torch.full((1, 3, 2, 2, 2), -30.0)
        logits[:, channel] = 30.0
        losses[channel] = PartialLabelLoss(nnunet_loss(), mode)(logits, target, unknown).item()
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert losses[2] > losses[0] + 10


def test_max_gives_no_gradient_to_those_it_passes_over(sample):
    logits, target = sample
    x = logits.clone().requires_grad_()
    PartialLabelLoss(nnunet_loss(), "max")(x, target, UNKNOWN).backward()
    members = logits[0, [0, 1, 3]]
    losers = members < members.amax(0)
    gradient = x.grad[0, [0, 1, 3]]
    assert (gradient[losers] == 0).all()
    assert (gradient[~losers] != 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_gradient_agrees_with_finite_differences(sample, mode):
    logits, target = sample[0][:, :, :2, :2, :2], sample[1][:, :, :2, :2, :2]

    def loss(x):
        merged, labels = merge_unknown(x, target, UNKNOWN, mode)
        probability, truth = merged.softmax(1), torch.nn.functional.one_hot(labels[:, 0], 5).movedim(-1, 1)
        overlap, size = (probability * truth).sum((2, 3, 4)), (probability + truth).sum((2, 3, 4))
        return cross_entropy(merged, labels[:, 0]) - ((2 * overlap + 1e-5) / (size + 1e-5))[:, 1:].mean()

    assert torch.autograd.gradcheck(loss, logits.clone().requires_grad_())


def test_no_infinity_reaches_the_gradient_in_low_precision():
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.full((1, 3, 2, 2, 2), 60000.0 if dtype is torch.float16 else 1e30, dtype=dtype).requires_grad_()
        target = torch.zeros(1, 1, 2, 2, 2, dtype=torch.long)
        PartialLabelLoss(nnunet_loss())(x, target, torch.tensor([[False, True, False]])).backward()
        assert torch.isfinite(x.grad).all()


def test_drop_unknown_keeps_type_and_shape(sample):
    labels = sample[1].to(torch.int16)
    dropped = drop_unknown(labels, UNKNOWN)
    assert dropped.dtype == torch.int16
    assert set(dropped[0].unique().tolist()) == {0, 2, 4}
    assert torch.equal(dropped[1], labels[1])


@pytest.mark.parametrize("weights", [None, (1.0, 0.3, 2.7, 1.0, 0.1)])
@pytest.mark.parametrize("left_out", [0, 40])
def test_the_reproducible_cross_entropy_is_torchs(sample, weights, left_out):
    logits, target = sample[0].float(), sample[1][:, 0].clone()
    target.view(-1)[:left_out] = LEFT_OUT
    weight = torch.tensor(weights) if weights else None
    values, gradients = [], []
    for loss in (torch.nn.CrossEntropyLoss(weight), ReproducibleCrossEntropy(weight)):
        x = logits.clone().requires_grad_()
        values.append(loss(x, target))
        gradients.append(torch.autograd.grad(values[-1], x)[0])
    assert torch.allclose(*values, rtol=1e-6, atol=0)
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-9)


def test_terms_add_up_to_the_loss(sample):
    logits, target = sample
    inner = PartialLabelLoss(nnunet_loss())
    loss = DeepSupervisionWrapper(inner, (0.75, 0.25, 0.0))
    terms = LossTerms(inner, (0.75, 0.25))
    value = loss([logits] * 3, [target] * 3, [UNKNOWN] * 3)
    parts = terms.take()
    assert parts.keys() == {"dice", "cross_entropy"}
    assert torch.isclose(sum(parts.values()).double(), value.double(), atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_unknown_may_differ_from_voxel_to_voxel(sample, mode):
    logits, target = sample
    by_voxel = UNKNOWN[:, :, None, None, None].expand_as(logits).clone()
    for ours, theirs in zip(
        merge_unknown(logits, target, by_voxel, mode), merge_unknown(logits, target, UNKNOWN, mode), strict=True
    ):
        assert torch.equal(ours, theirs)
    by_voxel[:, :, 2:] = False  # all is known in the upper half
    merged, labels = merge_unknown(logits, target, by_voxel, mode)
    lower = merge_unknown(logits[:, :, :2], target[:, :, :2], UNKNOWN, mode)
    assert torch.equal(merged[:, :, :2], lower[0])
    assert torch.equal(labels[:, :, :2], lower[1])
    assert torch.equal(merged[:, :, 2:], logits[:, :, 2:])
    assert torch.equal(labels[:, :, 2:], target[:, :, 2:])
