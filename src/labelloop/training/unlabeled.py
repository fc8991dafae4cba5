"""What an unlabeled patch teaches: another view of it, and the voxels of which the network that labels is sure."""

import torch
from torch import Tensor

from labelloop.training.settings import Unlabeled

MEMORY = 0.99
"""Share of the past in the mean confidence of a class."""
CONTRAST, BRIGHTNESS, NOISE, GAMMA = (0.65, 1.5), 0.3, 0.1, (0.7, 1.5)
"""Ranges of the strong view: factor of the contrast, deviations of brightness and noise, exponent. Of the order of
nnU-Net's augmentation, but drawn for every patch; not tuned."""


class ConfidenceMask:
    """Says where a prediction is sure enough to teach, by a threshold of each class.

    With ``balanced`` the threshold of class c is ``confidence_threshold`` times the mean confidence of voxels that are
    predicted to be c, relative to that of the surest class (curriculum pseudo labeling: Zhang et al. 2021, FlexMatch,
    section 3; here by mean confidence, not by counts). Small organs, of which a network is never as sure as of the
    background, are not left out.
    """

    def __init__(self, settings: Unlabeled, channels: int, device: torch.device):
        self._settings = settings
        self.means = torch.ones(channels, device=device)

    @torch.no_grad()
    def __call__(self, probabilities: Tensor) -> Tensor:
        """Return where to learn, bool [batch, 1, ...]; remember means of ``probabilities`` [batch, channels, ...]."""
        confidence, predicted = probabilities.max(1, keepdim=True)
        if self._settings.balanced:
            self._remember(confidence.flatten(), predicted.flatten())
        thresholds = self._settings.confidence_threshold * self.means / self.means.max()
        return confidence >= thresholds[predicted]

    def _remember(self, confidence: Tensor, predicted: Tensor) -> None:
        number = torch.zeros_like(self.means).index_add_(0, predicted, torch.ones_like(confidence))
        total = torch.zeros_like(self.means).index_add_(0, predicted, confidence)
        now = torch.where(number > 0, total / number.clamp(min=1), self.means)
        self.means = torch.lerp(now, self.means, MEMORY)


def strong_augmentation(data: Tensor, generator: torch.Generator) -> Tensor:
    """Return patches [batch, 1, ...] of other contrast, brightness, gamma and noise; no voxel moves.

    The network that learns sees this view, the one that labels sees the patch as it is (FixMatch: Sohn et al. 2020,
    section 2).
    """

    def drawn(low: float, high: float) -> Tensor:
        share = torch.rand((len(data), *[1] * (data.ndim - 1)), generator=generator, device=data.device)
        return low + (high - low) * share

    axes = tuple(range(1, data.ndim))
    low, high = data.amin(axes, keepdim=True), data.amax(axes, keepdim=True)
    extent = (high - low).clamp(min=1e-6)
    bent = ((data - low) / extent) ** drawn(*GAMMA) * extent + low
    mean = bent.mean(axes, keepdim=True)
    view = (bent - mean) * drawn(*CONTRAST) + mean + drawn(-BRIGHTNESS, BRIGHTNESS)
    return view + NOISE * torch.randn(data.shape, generator=generator, device=data.device)


def unknown_but(trusted: Tensor, channels: int) -> Tensor:
    """Return the unknown channels, bool [batch, channels, ...], of a label that teaches at ``trusted`` voxels alone.

    Where all classes are unknown, every answer is right: such a voxel has no gradient.

    Args:
        trusted: bool [batch, 1, ...].
    """
    unknown = (~trusted).expand(-1, channels, *trusted.shape[2:]).clone()
    unknown[:, 0] = False
    return unknown
