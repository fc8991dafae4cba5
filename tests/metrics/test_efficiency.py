"""What a run costs."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from labelloop.metrics.efficiency import INTERVAL_S, Meter, Sample, flare_area, usage

ROOT = Path(__file__).resolve().parents[2]


def test_areas_do_not_depend_on_how_often_one_looks():
    """A ramp of memory and two busy cores, sampled evenly and unevenly."""
    for times in (np.linspace(0, 10, 101), np.sort(np.append(np.random.default_rng(0).uniform(0, 10, 40), (0, 10)))):
        samples = [Sample(t, 100 * t, 50.0, 200.0) for t in times]
        result = usage(samples, 10.0)
        assert result.area_gpu_mb_s == pytest.approx(5000) and result.area_ram_mb_s == pytest.approx(500)
        assert result.area_cpu_percent_s == pytest.approx(2000) and result.peak_gpu_mb == 1000


def test_flare_counts_every_look_as_a_tenth_of_a_second():
    samples = [Sample(0.15 * i, 3000.0, 1000.0, 100.0) for i in range(100)]  # looking takes 0.05 s
    assert flare_area(samples) == pytest.approx(100 * 3000 * INTERVAL_S)
    assert usage(samples, 15.0).area_gpu_mb_s == pytest.approx(99 * 0.15 * 3000)


def test_a_command_is_measured_from_outside():
    command = [sys.executable, ROOT / "benchmarks" / "inference" / "container.py", sys.executable, "-c", "exit(3)"]
    done = subprocess.run(command, capture_output=True, text=True)
    told = dict(line.split(": ") for line in done.stdout.splitlines())
    assert done.returncode == 3 and float(told["runtime_s"]) >= 0
    assert (told["area_gpu_mb_s"], told["flare_area_gpu_mb_s"]) == ("0.0", "0.0")


@pytest.mark.parametrize("shared", [False, True])
def test_meter_sees_children_memory_and_work(shared):
    code = "import time; x = b'1' * (300 << 20); end = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    with Meter(interval_s=0.02, shared=shared) as meter:
        subprocess.run([sys.executable, "-c", code], check=True)
    result, idle = meter.usage(), meter.samples[0].ram_mb
    assert result.runtime_s >= 0.2 and len(meter.samples) > 5
    assert result.peak_ram_mb - idle > 250 and result.area_cpu_percent_s > 12
    if not shared:  # what else runs on the machine is not in it
        assert result.peak_ram_mb - idle < 700
        assert result.area_cpu_percent_s < 300  # a fifth of a second of one core, and the sampler's own
    assert result.peak_gpu_mb == 0 and result.energy_j is None


def test_meter_survives_the_end_of_its_process():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    with Meter(process.pid, interval_s=0.01) as meter:
        process.wait()
        time.sleep(0.05)
    assert meter.usage().runtime_s >= 0.05


def test_a_gpu_is_found_by_its_uuid(monkeypatch):
    """Where ``CUDA_VISIBLE_DEVICES`` hides cards, torch's indices are not the driver's."""
    joules = {"GPU-b": iter((5000, 12000))}
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=300 * 2**20),
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(joules[handle]),
        __spec__=object(),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with Meter(gpu="GPU-b") as meter:
        pass
    result = meter.usage()
    assert (result.energy_j, result.peak_gpu_mb) == (7.0, 300.0)
