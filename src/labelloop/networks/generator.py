"""The networks of the CT-to-MR translator: residual generators and patch discriminators in 3-D.

Architecture of He's released code: with 64 features and nine blocks, the two generators and two discriminators have the
90.32 million parameters of the paper's Table 2. Instance norm takes its statistics from what it sees, in training and
in use alike; the released code keeps running ones besides, which differ between the two.
"""

import itertools

import torch
from torch import nn


def normalized(layer: nn.Module, features: int, activation: nn.Module | None) -> list[nn.Module]:
    """Return a layer, its instance norm without parameters, and its activation if it has one."""
    return [layer, nn.InstanceNorm3d(features), *([activation] if activation else [])]


class Block(nn.Module):
    """Two convolutions around which the input goes on unchanged."""

    def __init__(self, features: int):
        super().__init__()
        first, second = (nn.Conv3d(features, features, 3, padding=1, padding_mode="replicate") for _ in range(2))
        self.layers = nn.Sequential(
            *normalized(first, features, nn.ReLU(inplace=True)), *normalized(second, features, None)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return an array of the shape of ``x`` [batch, features, z, y, x]."""
        return x + self.layers(x)


class Generator(nn.Module):
    """From one look to the other: [batch, 1, z, y, x] between -1 and 1; sides are multiples of 4.

    Args:
        features: of the first layer; they double with each of the two halvings.
        blocks: residual blocks at a quarter of the resolution.
    """

    def __init__(self, features: int = 64, blocks: int = 9):
        super().__init__()
        f = features
        self.layers = nn.Sequential(
            *normalized(nn.Conv3d(1, f, 7, padding=3, padding_mode="replicate"), f, nn.ReLU(inplace=True)),
            *normalized(nn.Conv3d(f, 2 * f, 3, stride=2, padding=1), 2 * f, nn.ReLU(inplace=True)),
            *normalized(nn.Conv3d(2 * f, 4 * f, 3, stride=2, padding=1), 4 * f, nn.ReLU(inplace=True)),
            *(Block(4 * f) for _ in range(blocks)),
            *normalized(_doubling(4 * f), 2 * f, nn.ReLU(inplace=True)),
            *normalized(_doubling(2 * f), f, nn.ReLU(inplace=True)),
            nn.Conv3d(f, 1, 7, padding=3, padding_mode="replicate"),
            nn.Tanh(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the translated array."""
        return self.layers(x)


class Discriminator(nn.Module):
    """Real or fake, patch by patch: [batch, 1, z, y, x] to logits of a coarser grid.

    Args:
        features: of the first layer; they double with each of the next, up to eightfold.
        layers: strided layers.
    """

    def __init__(self, features: int = 64, layers: int = 3):
        super().__init__()
        widths = [features * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv3d(1, features, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for number, (before, after) in enumerate(itertools.pairwise(widths), start=1):
            stride = 2 if number < layers else 1
            layer = nn.Conv3d(before, after, 4, stride=stride, padding=1)
            parts += normalized(layer, after, nn.LeakyReLU(0.2, inplace=True))
        self.layers = nn.Sequential(*parts, nn.Conv3d(widths[-1], 1, 4, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.layers(x)


def initialize(network: nn.Module) -> nn.Module:
    """Draw all weights from a normal distribution of deviation 0.02 (CycleGAN; He, Table 2), biases 0; return it."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _doubling(features: int) -> nn.Module:
    return nn.ConvTranspose3d(features, features // 2, 3, stride=2, padding=1, output_padding=1)
