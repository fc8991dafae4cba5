"""The network arranged for CPUs computes the same."""

import pytest
import torch
from tiny_models import tiny_plan
from torch import nn

from labelloop.inference.cpu import OneDnnConv, SampleNorm, channels_last, mean_and_variance
from labelloop.inference.engine import cast_weights
from labelloop.networks.network import build_network


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "plan", [tiny_plan(), tiny_plan(spacing_mm=(6, 1.5, 1.5), patch=(8, 16, 32), features=(4, 8, 16))]
)
def test_same_logits(plan, batch):
    torch.manual_seed(0)
    network = build_network(plan, 4).eval()
    for parameter in network.parameters():  # so that weight and bias of the norms matter
        parameter.data += 0.1 * torch.randn_like(parameter)
    image = torch.randn(batch, 1, *plan.patch)
    with torch.inference_mode():
        expected = network(image)
        changed = channels_last(network)
        result = changed(image.contiguous(memory_format=torch.channels_last_3d))
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
        assert result.is_contiguous(memory_format=torch.channels_last_3d)
        scores = cast_weights(changed, torch.bfloat16)(image.bfloat16())
        assert scores.dtype == torch.float32 and (scores.bfloat16() != scores).float().mean() > 0.5
        assert (scores - expected).abs().mean() < 0.1 * expected.abs().mean()
    kinds = {type(module) for module in changed.modules()}
    assert {SampleNorm, OneDnnConv} <= kinds and not kinds & {nn.InstanceNorm3d, nn.Conv3d}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_are_as_good_over_a_million_voxels(dtype):
    torch.manual_seed(0)
    x = (torch.randn(1, 2, 31, 160, 200) * 3 + 5).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    mean, variance = mean_and_variance(x)
    exact = torch.var_mean(x.double(), dim=(0, 2, 3, 4), unbiased=False)
    torch.testing.assert_close((variance.double(), mean.double()), exact, rtol=1e-5, atol=0)


def test_weights_keep_their_names_and_are_shared():
    network = build_network(tiny_plan(), 4)
    before = {name: value.data_ptr() for name, value in network.state_dict().items()}
    after = {name: value.data_ptr() for name, value in channels_last(network).state_dict().items()}
    assert before.keys() == after.keys()
    assert len(set(after.values())) < len(after)  # nnU-Net's encoder has several names for each


def test_what_cannot_be_replaced_stays():
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding="same"), nn.InstanceNorm3d(2, track_running_stats=True))
    assert [type(m) for m in channels_last(network)] == [nn.Conv3d, nn.InstanceNorm3d]
