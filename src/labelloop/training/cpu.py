"""Convolutions of one sample at a time on CPUs, as fast a voxel as those of several."""

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW = 20480
"""Batch x channels x planes x rows up to which torch leaves oneDNN for one sample (``ConvParams::use_mkldnn``)."""


class SingleSampleConv3d(nn.Conv3d):
    """A convolution that computes one sample as a batch of its lower and its upper half.

    Torch computes a single small sample in float32 by ``slow_conv3d``, forwards and backwards, and leaves oneDNN, which
    is four to nine times as fast, for batches. The halves overlap by what the kernel reaches, so the numbers are those
    of the whole.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        planes = (input.shape[2] + 2 * int(self.padding[0]) - kernel) // stride + 1
        if not _is_slow(input) or planes < 2:
            return super()._conv_forward(input, weight, bias)
        half = (planes + 1) // 2
        reach, upper = (half - 1) * stride + kernel, (planes - half) * stride
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = functional.pad(input, self._reversed_padding_repeated_twice, mode)
        halves = torch.cat([padded[:, :, :reach], padded[:, :, upper : upper + reach]])
        lower, higher = functional.conv3d(halves, weight, bias, self.stride).split(1)
        return torch.cat([lower, higher[:, :, 2 * half - planes :]], 2)


def _is_slow(x: Tensor) -> bool:
    batch, channels, planes, rows, _ = x.shape
    few = batch == 1 and channels * planes * rows <= FEW
    return few and x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def by_onednn(network: nn.Module) -> nn.Module:
    """Let the convolutions of ``network`` use oneDNN for single samples, too; changes it in place and returns it."""
    for module in network.modules():
        if type(module) is nn.Conv3d and _can_be_halved(module):
            module.__class__ = SingleSampleConv3d
    return network


def _can_be_halved(convolution: nn.Conv3d) -> bool:
    plain = convolution.groups == 1 and set(convolution.dilation) == {1} and not isinstance(convolution.padding, str)
    return plain and convolution.kernel_size[0] > 1
