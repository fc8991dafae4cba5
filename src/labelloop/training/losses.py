"""Losses for cases in which some classes, or all classes of some voxels, are unknown.

What nobody looked for is merged into the background, and what nobody knows is left out.

Where a class is unknown, "background" in the label map means "background or that class". The loss is therefore taken
on a coarser question: channel 0 stands for all of them together. ``logsumexp`` of their logits is the exact log of
their summed probability (marginal loss; Fang & Yan 2020, Shi et al. 2021); ``max`` is the variant of the FLARE23
semi-supervised trainer (luckieucas/FLARE23, ``merge_prediction_max``).
"""

import math
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Merge = Literal["logsumexp", "max"]
MERGED_LOGIT = -1e4
"""Logit of a class merged away: low enough for a softmax of exactly 0, finite so that no NaN can come of it."""
LEFT_OUT = -100
"""What torch's cross-entropy takes for a voxel without a label."""


def merge_unknown(logits: Tensor, target: Tensor, unknown: Tensor, mode: Merge = "logsumexp") -> tuple[Tensor, Tensor]:
    """Merge the unknown classes of each sample into its background.

    Args:
        logits: [batch, channels, ...].
        target: channel numbers [batch, 1, ...], any integer type.
        unknown: bool [batch, channels], or [batch, channels, ...] where it differs from voxel to voxel; the
            background, channel 0, is never unknown.

    Returns:
        logits and target of the same shapes. Channel 0 is the merged background, unknown channels have probability 0
        and do not occur in the target. Where nothing is unknown, both are as they were.
    """
    # Whether anything is unknown is not asked first: on a GPU, the question would wait for all that is under way.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    spatial = (1,) * (logits.ndim - 2)
    gone = unknown.view(*unknown.shape, *spatial) if unknown.ndim == 2 else unknown
    background = (torch.arange(unknown.shape[1], device=unknown.device) == 0).view(1, -1, *spatial)
    members = logits.masked_fill(~(gone | background), -torch.inf)
    merged = members.logsumexp(1, keepdim=True) if mode == "logsumexp" else members.amax(1, keepdim=True)
    others = logits[:, 1:].masked_fill(gone[:, 1:], MERGED_LOGIT)
    return torch.cat([merged, others], 1), drop_unknown(target, unknown)


def drop_unknown(labels: Tensor, unknown: Tensor) -> Tensor:
    """Set channel numbers ``labels`` [batch, ...] that are ``unknown`` in their sample, or at their voxel, to 0.

    Args:
        unknown: bool [batch, channels] or, with labels [batch, 1, ...], [batch, channels, ...].
    """
    if unknown.ndim > 2:
        return labels.masked_fill(unknown.gather(1, labels.long()), 0)
    channels = torch.arange(unknown.shape[1], device=labels.device).expand(unknown.shape)
    table = channels.masked_fill(unknown, 0)
    return table.gather(1, labels.flatten(1).long()).view_as(labels).to(labels.dtype)


class KnownDice(nn.Module):
    """Soft Dice loss in which a sample counts the classes that are known in it, and no others.

    A sample of k known classes has the loss and the gradient of a network with k + 1 outputs (Zhou, section 2.2). A
    class is known in a sample if it is at any voxel. Where all are known it is nnU-Net's
    ``MemoryEfficientSoftDiceLoss``, without the background.

    Args:
        batch_dice: the samples of a batch count as one.
    """

    def __init__(self, batch_dice: bool, smooth: float):
        super().__init__()
        self.batch_dice, self.smooth = batch_dice, smooth

    def forward(self, logits: Tensor, target: Tensor, unknown: Tensor) -> Tensor:
        """Return the loss of merged logits and target, as :func:`merge_unknown` takes and gives them."""
        axes = tuple(range(2, logits.ndim))
        probability = logits.softmax(1)[:, 1:]
        truth = torch.zeros_like(logits).scatter_(1, target.long(), 1)[:, 1:]
        overlap, size = (probability * truth).sum(axes), (probability + truth).sum(axes)
        known = (~unknown).flatten(2).any(2)[:, 1:] if unknown.ndim > 2 else ~unknown[:, 1:]
        if self.batch_dice:
            overlap, size, known = overlap.sum(0, True), size.sum(0, True), known.any(0, True)
        dice = (2 * overlap + self.smooth) / (size + self.smooth).clamp_min(1e-8)
        return -((dice * known).sum(1) / known.sum(1).clamp_min(1)).mean()


class ReproducibleCrossEntropy(nn.Module):
    """torch's mean cross-entropy from sums that have the same bits each time on a GPU, too.

    torch adds up losses and weights in the order in which a GPU's threads come. Each gradient is divided by the sum of
    the weights, whose last bits therefore differ from run to run.

    Args:
        weight: of each channel [channels]; None: all are 1.
    """

    def __init__(self, weight: Tensor | None = None):
        super().__init__()
        self.weight = weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over voxels, by the weights of their channels; those that are :data:`LEFT_OUT` do not count.

        Args:
            logits: [batch, channels, ...].
            target: channel numbers [batch, ...], any type.
        """
        target = target.long()
        losses = functional.cross_entropy(logits, target, self.weight, ignore_index=LEFT_OUT, reduction="none")
        counts = target != LEFT_OUT
        weights = counts if self.weight is None else self.weight[target.where(counts, 0)] * counts
        return losses.sum() / weights.sum()


class PartialLabelLoss(nn.Module):
    """nnU-Net's Dice and cross-entropy, taken after :func:`merge_unknown`. Equals them where all is annotated.

    Ignored voxels count in neither, as with nnU-Net's ignore label: the mean of the cross-entropy is over the others.

    Args:
        loss: nnU-Net's ``DC_and_CE_loss``, whose cross-entropy is used and whose Dice settings are.
        ignored: number in targets of voxels that are left out; None: there are none.
        compiled: what is done to the Dice term, e.g. ``torch.compile``.
    """

    def __init__(
        self,
        loss: nn.Module,
        mode: Merge = "logsumexp",
        compiled: Callable[[nn.Module], nn.Module] = lambda module: module,
        ignored: int | None = None,
    ):
        super().__init__()
        dice: Any = loss.get_submodule("dc")
        self.dc, self.ce = compiled(KnownDice(dice.batch_dice, dice.smooth)), loss.get_submodule("ce")
        self.mode: Merge = mode
        self.ignored = ignored

    def forward(self, logits: Tensor, target: Tensor, unknown: Tensor) -> Tensor:
        if self.ignored is None:
            merged, labels = merge_unknown(logits, target, unknown, self.mode)
            return self.dc(merged, labels, unknown) + self.ce(merged, labels[:, 0])
        ignored = target == self.ignored
        merged, labels = merge_unknown(logits, target.masked_fill(ignored, 0), unknown, self.mode)
        merged = surely_background(merged, ignored)
        # A mean over no voxel is NaN. Where all are ignored they count: as surely background, which has no gradient.
        asked = labels.masked_fill(ignored & ~ignored.all(), LEFT_OUT)
        return self.dc(merged, labels, unknown) + self.ce(merged, asked[:, 0])


def surely_background(logits: Tensor, where: Tensor) -> Tensor:
    """Return logits that are sure of background, and have no gradient, at the voxels ``where`` [batch, 1, ...]."""
    certain = logits.new_full((1, logits.shape[1], *[1] * (logits.ndim - 2)), MERGED_LOGIT)
    certain[:, 0] = 0
    return torch.where(where, certain, logits)


def ramp_up(epoch: int, epochs: int, share: float, after: float = 0.0) -> float:
    """Return the weight of unlabeled samples: exp(-5 (1 - t)^2), t from 0 to 1 (He, section 2.3).

    Args:
        share: of the epochs, in which t grows; 0: it is 1 at once.
        after: share of the epochs before that, in which the weight is 0.
    """
    begun = epoch - after * epochs
    if begun < 0:
        return 0.0
    t = min(1.0, begun / (share * epochs)) if share else 1.0
    return math.exp(-5 * (1 - t) ** 2)


class LossTerms:
    """Remembers the Dice and cross-entropy terms inside a loss as it is called.

    Args:
        loss: nnU-Net's ``DC_and_CE_loss``, or a :class:`PartialLabelLoss`.
        weights: weights of the deep-supervision outputs that count, finest first.
    """

    def __init__(self, loss: nn.Module, weights: tuple[float, ...] = (1.0,)):
        self._weights = weights
        self._values: dict[str, list[Tensor]] = {"dice": [], "cross_entropy": []}
        for name, term in (("dice", "dc"), ("cross_entropy", "ce")):
            loss.get_submodule(term).register_forward_hook(
                lambda _module, _inputs, value, name=name: self._add(name, value)
            )

    def take(self) -> dict[str, Tensor]:
        """Return the weighted terms since the last call, and forget them."""
        result = {
            name: reduce(add, (weight * value for weight, value in zip(self._weights, values, strict=True)))
            for name, values in self._values.items()
        }
        for values in self._values.values():
            values.clear()
        return result

    def _add(self, name: str, value: Tensor) -> None:
        self._values[name].append(value.detach())
