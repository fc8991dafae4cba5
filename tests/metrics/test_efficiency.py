"""What a run costs."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from labelloop.metrics.efficiency import (
    INTERVAL_S,
    Meter,
    Sample,
    case_macs,
    common_maximum,
    count_macs,
    count_parameters,
    flare_usage,
    usage,
)
from labelloop.network import build_network
from labelloop.plans import Plan


def test_areas_do_not_depend_on_how_often_one_looks():
    """A ramp of memory and two busy cores, sampled evenly and unevenly."""
    for times in (np.linspace(0, 10, 101), np.sort(np.append(np.random.default_rng(0).uniform(0, 10, 40), (0, 10)))):
        samples = [Sample(t, 100 * t, 50.0, 200.0) for t in times]
        result = usage(samples, 10.0)
        assert result.area_gpu_mb_s == pytest.approx(5000) and result.area_ram_mb_s == pytest.approx(500)
        assert result.area_cpu_percent_s == pytest.approx(2000) and result.peak_gpu_mb == 1000


def test_flare_counts_every_look_as_a_tenth_of_a_second():
    samples = [Sample(0.15 * i, 3000.0, 1000.0, 100.0) for i in range(100)]  # looking takes 0.05 s
    flare = flare_usage(samples, 15.0)
    assert flare.area_gpu_mb_s == pytest.approx(100 * 3000 * INTERVAL_S)
    assert usage(samples, 15.0).area_gpu_mb_s == pytest.approx(99 * 0.15 * 3000)


def test_rare_peaks_do_not_count_before_2023():
    values = [100.0] * 97 + [900.0, 900.4, 5000.0]
    assert common_maximum(values) == 100 and common_maximum(values[:50] + values[97:]) == 900
    samples = [Sample(i, v, 0, 0) for i, v in enumerate(values)]
    assert flare_usage(samples, 1, "2023").peak_gpu_mb == 5000 and flare_usage(samples, 1, "2022").peak_gpu_mb == 100


@pytest.mark.parametrize("shared", [False, True])
def test_meter_sees_children_memory_and_work(shared):
    code = "import time; x = b'1' * (300 << 20); end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    with Meter(interval_s=0.02, shared=shared) as meter:
        subprocess.run([sys.executable, "-c", code], check=True)
    result, idle = meter.usage(), meter.samples[0].ram_mb
    assert result.runtime_s >= 0.5 and len(meter.samples) > 5
    assert result.peak_ram_mb - idle > 250 and result.area_cpu_percent_s > 30
    if not shared:  # what else runs on the machine is not in it
        assert result.peak_ram_mb - idle < 700
        assert result.area_cpu_percent_s < 300  # half a second of one core, and the sampler's own
    assert result.peak_gpu_mb == 0 and result.energy_j is None


def test_meter_survives_the_end_of_its_process():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    with Meter(process.pid, interval_s=0.01) as meter:
        process.wait()
        time.sleep(0.05)
    assert meter.usage().runtime_s >= 0.05


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
    convolution = nn.Conv3d(2, 5, 3, padding=1)
    assert count_macs(convolution, (6, 7, 8), channels=2) == 6 * 7 * 8 * 2 * 5 * 27
    assert convolution.weight.device.type == "cpu"
    assert case_macs(100, 24) == 2400 and case_macs(100, 24, (0, 1, 2)) == 8 * 2400
