"""Patches that look otherwise and are shaped the same, so that a network learns shapes (Ouyang et al. 2022)."""

from itertools import pairwise

import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from torch import Tensor
from torch.nn import functional

from labelloop.training.settings import RandomIntensity

KERNELS = (1, 3)
EPSILON = 1e-5


class RandomIntensityTransform(ImageOnlyTransform):
    """The global intensity non-linear augmentation of Ouyang et al. 2022; sizes as in their code.

    "Causality-inspired single-source domain generalization for medical image segmentation", IEEE TMI.

    A shallow network with new random weights for each patch maps intensities to others. The patch is mixed with what
    comes out, and keeps its norm. Convolutions of 1 or 3 voxels move no border.
    """

    def __init__(self, settings: RandomIntensity):
        super().__init__()
        self.settings = settings

    def get_parameters(self, **_) -> dict[str, bool]:
        """Draw whether the patch is altered."""
        return {"altered": bool(torch.rand(()) < self.settings.probability)}

    def _apply_to_image(self, img: Tensor, altered: bool = True, **_) -> Tensor:
        return random_look(img, self.settings) if altered else img


def random_look(image: Tensor, settings: RandomIntensity) -> Tensor:
    """Return an image [channel, z, y, x] with other intensities.

    ``a g(x) + (1 - a) x``, ``a`` uniform in [0, 1], ``g`` of random weights, scaled to the Frobenius norm of ``x``.
    """
    look = image[None]
    widths = [image.shape[0], *[settings.channels] * (settings.layers - 1), image.shape[0]]
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        size = KERNELS[int(torch.randint(len(KERNELS), ()))]
        weights = torch.randn(outputs, inputs, size, size, size, dtype=image.dtype)
        look = functional.conv3d(look, weights, torch.randn(outputs, dtype=image.dtype), padding=size // 2)
        if layer < settings.layers - 1:
            look = functional.leaky_relu(look)
    share = torch.rand(())
    mixed = share * look[0] + (1 - share) * image
    return mixed * (image.norm() / (mixed.norm() + EPSILON))
