"""The size of a network, and its work."""

import pytest
import torch
from torch import nn

from labelloop.inference.cpu import channels_last
from labelloop.inference.stages import Counted, collected
from labelloop.networks.network import build_network, count_macs, count_parameters
from labelloop.networks.plans import Plan


def test_shared_parameters_count_once():
    layer = nn.Linear(10, 10, bias=False)
    assert count_parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 100
    plan = Plan(spacing_mm=(1, 1, 1), patch=(16, 16, 16), features=(4, 8))
    network = build_network(plan, 3)
    state = sum(t.numel() for t in network.state_dict().values())
    assert count_parameters(network) < state  # nnU-Net's state dict names encoder tensors several times


def test_zhous_network_has_31_million_parameters():
    """The paper's 88.62 M sum up the state dict."""
    plan = Plan(spacing_mm=(2.5, 1.5, 1.5), patch=(32, 192, 192), features=(32, 64, 128, 256, 320, 320),
                strides=((1, 1, 1), *((2, 2, 2),) * 5), kernels=((3, 3, 3),) * 6)  # fmt: skip
    with torch.device("meta"):
        network = build_network(plan, 15)
    assert count_parameters(network) == pytest.approx(31_206_059, abs=0)
    assert count_macs(network, plan.patch) == pytest.approx(269e9, rel=0.01)


def test_macs_of_a_convolution():
    convolution = nn.Conv3d(1, 5, 3, padding=1)
    assert count_macs(convolution, (6, 7, 8)) == 6 * 7 * 8 * 5 * 27
    assert convolution.weight.device.type == "cpu"


def test_macs_are_half_of_torchs_flops():
    from torch.utils.flop_counter import FlopCounterMode

    network = build_network(Plan(spacing_mm=(1, 1, 1), patch=(16, 16, 16), features=(4, 8)), 3)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 16, 16, 16))
    assert count_macs(network, (16, 16, 16)) == counter.get_total_flops() // 2


def test_every_pass_is_counted_when_somebody_collects():
    plan = Plan(spacing_mm=(1, 1, 1), patch=(16, 16, 16), features=(4, 8))
    network, image = channels_last(build_network(plan, 3)).eval(), torch.zeros(1, 1, *plan.patch)
    network_again = Counted(network)
    plain = build_network(plan, 3)
    with torch.inference_mode():
        network_again(image)
        with collected() as work:
            for x in (image, image, image.expand(2, -1, -1, -1, -1)):
                network_again(x)
    assert work.macs == 4 * count_macs(plain, plan.patch)
    assert work.parameters == count_parameters(plain)
