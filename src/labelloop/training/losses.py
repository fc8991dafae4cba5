"""Losses for cases in which some classes are unknown: merge what nobody looked for into the background.

Where a class is unknown, "background" in the label map means "background or that class". The loss is therefore taken
on a coarser question: channel 0 stands for all of them together. ``logsumexp`` of their logits is the exact log of
their summed probability (marginal loss; Fang & Yan 2020, Shi et al. 2021); ``max`` is the variant of the FLARE23
semi-supervised trainer (luckieucas/FLARE23, ``merge_prediction_max``).
"""

import math
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor, nn

MERGED_LOGIT = -1e4
"""Logit of a class merged away: low enough for a softmax of exactly 0, finite so that no NaN can come of it."""


def merge_unknown(
    logits: Tensor, target: Tensor, unknown: Tensor, mode: Literal["logsumexp", "max"] = "logsumexp"
) -> tuple[Tensor, Tensor]:
    """Merge the unknown classes of each sample into its background.

    Args:
        logits: [batch, channels, ...].
        target: channel numbers [batch, 1, ...], any integer type.
        unknown: bool [batch, channels], or [batch, channels, ...] where it differs from voxel to voxel; the
            background, channel 0, is never unknown.

    Returns:
        logits and target of the same shapes. Channel 0 is the merged background, unknown channels have probability 0
        and do not occur in the target, so their Dice term is a constant.
    """
    if not unknown.any():
        return logits, target
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


class PartialLabelLoss(nn.Module):
    """A segmentation loss of (logits, target), taken after :func:`merge_unknown`. Equals it where all is annotated."""

    def __init__(self, loss: nn.Module, mode: Literal["logsumexp", "max"] = "logsumexp"):
        super().__init__()
        self.loss, self.mode = loss, mode

    def forward(self, logits: Tensor, target: Tensor, unknown: Tensor) -> Tensor:
        return self.loss(*merge_unknown(logits, target, unknown, self.mode))


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
    """Remembers the Dice and cross-entropy terms inside nnU-Net's ``DC_and_CE_loss`` as it is called.

    Args:
        loss: the ``DC_and_CE_loss``.
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
