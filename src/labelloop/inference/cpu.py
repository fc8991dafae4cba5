"""The same network, arranged for CPUs: channels last, where convolutions of few channels are up to twice as fast.

And memory that is kept: a forward pass asks for tens of tensors of tens of MB. The C library takes each from the system
and gives it back, page by page, which is a quarter of the time of a network of 16 features.
"""

import ctypes
import math
import platform

import torch
from torch import nn
from torch.nn import functional

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's ``mallopt`` (malloc.h)."""
WIDE = 1 << 10
"""Numbers at most that statistics are gathered of side by side."""


class SampleNorm(nn.Module):
    """An instance norm that keeps channels last.

    Torch's own turns its input to channels first and back. The norm of one sample is a batch norm of a batch of one,
    for which torch has a kernel for either layout.
    """

    def __init__(self, norm: nn.InstanceNorm3d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize [batch, channel, z, y, x]."""
        samples = [
            functional.batch_norm(one, *mean_and_variance(one), self.weight, self.bias, training=False, eps=self.eps)
            for one in x.split(1)
        ]
        return samples[0] if len(samples) == 1 else torch.cat(samples)


def mean_and_variance(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of each channel of [1, channel, z, y, x], float32.

    Some neighbors are looked at as one voxel of more channels. Torch's kernel is many times as fast for whole vectors
    of them as for 12; and it adds up in single precision, one voxel after the other, which over a million voxels costs
    three digits, enough to change which class wins in one of ten thousand voxels.
    """
    channels = x.shape[1]
    voxels = x.movedim(1, -1).reshape(-1, channels)
    neighbors = math.gcd(len(voxels), 1 << max(0, (WIDE // channels).bit_length() - 1))
    wide = voxels.reshape(-1, neighbors * channels)  # a view of what lies channels last
    floats = wide.new_zeros(wide.shape[1], dtype=torch.float32)  # asks for statistics in float32, whatever x is
    means, variances = (
        part.view(neighbors, channels) for part in torch.batch_norm_update_stats(wide, floats, floats.clone(), 0.0)
    )
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


class OneDnnConv(nn.Module):
    """A convolution by oneDNN; torch on its own takes a slower path, channels first, for single small samples.

    One of size 1, the head, stays in float32 in any case: scores of so few digits as bf16 has are often equal.
    """

    def __init__(self, convolution: nn.Conv3d):
        super().__init__()
        if isinstance(convolution.padding, str):
            raise ValueError(f"padding {convolution.padding!r}: oneDNN needs numbers")
        self.weight, self.bias = convolution.weight, convolution.bias
        self._geometry = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        self.head = set(convolution.kernel_size) == {1}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve [batch, channel, z, y, x]."""
        x = x.to(self.weight.dtype)
        padding, stride, dilation, groups = self._geometry
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return torch.mkldnn_convolution(x, self.weight, self.bias, padding, stride, dilation, groups)
        return functional.conv3d(x, self.weight, self.bias, stride, padding, dilation, groups)


def channels_last(network: nn.Module) -> nn.Module:
    """Rearrange ``network`` in place and return it; what it computes is the same up to rounding.

    Its input should be in ``torch.channels_last_3d`` too.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm3d) and not child.track_running_stats:
                setattr(module, name, SampleNorm(child))
            elif isinstance(child, nn.Conv3d) and _fits_onednn(child):
                setattr(module, name, OneDnnConv(child))
    return network.to(memory_format=torch.channels_last_3d)


def _fits_onednn(convolution: nn.Conv3d) -> bool:
    plain = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return plain and torch.backends.mkldnn.is_available() and hasattr(torch, "mkldnn_convolution")


def keep_freed_memory() -> None:
    """Let this process keep what it frees, to use it again; for glibc, elsewhere nothing happens.

    The process needs a little more memory at its peak, and does not shrink after it.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
