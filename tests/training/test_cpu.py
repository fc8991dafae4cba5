"""Convolutions of single samples give the numbers of torch's own, and oneDNN computes them."""

import pytest
import torch
from torch import nn

from labelloop.training.cpu import SingleSampleConv3d, by_onednn


def results(convolution, image):
    """Return output and all gradients of a convolution."""
    image = image.clone().requires_grad_()
    convolution.zero_grad()
    out = convolution(image)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return out, image.grad, convolution.weight.grad, convolution.bias.grad


@pytest.mark.parametrize("planes", [2, 5, 6, 9])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (3, 3, 3), "padding": 1, "stride": (2, 1, 1)},
        {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
        {"kernel_size": 4, "padding": 1, "stride": 2},
        {"kernel_size": 2, "stride": 2},
    ],
)
def test_outputs_and_gradients_are_those_of_the_whole(planes, options):
    torch.manual_seed(0)
    convolution = nn.Conv3d(2, 3, **options).double().float()
    image = torch.randn(1, 2, planes, 7, 6)
    expected = results(convolution, image)
    changed = by_onednn(nn.Sequential(convolution))[0]
    assert type(changed) is SingleSampleConv3d
    for ours, theirs in zip(results(changed, image), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_no_single_sample_is_left_to_the_slow_way():
    image = torch.randn(1, 4, 16, 16, 16)
    network = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1, stride=2))
    assert "aten::slow_conv3d_forward" in kernels(network, image)
    assert not {name for name in kernels(by_onednn(network), image) if "slow" in name}


def kernels(network, image):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        network(image).sum().backward()
    return {event.key for event in profile.key_averages()}


def test_only_what_can_be_halved_is_changed_and_names_stay():
    network = nn.Sequential(
        nn.Conv3d(2, 2, 3, groups=2), nn.Conv3d(2, 2, 3, dilation=2), nn.Conv3d(2, 2, 3, padding="same"),
        nn.Conv3d(2, 2, 1), nn.Conv3d(2, 2, 3),
    )  # fmt: skip
    before = set(network.state_dict())
    kinds = [type(module) for module in by_onednn(network)]
    assert kinds == [nn.Conv3d] * 4 + [SingleSampleConv3d]
    assert set(network.state_dict()) == before
