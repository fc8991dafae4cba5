"""What a run costs."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from labelloop.metrics.efficiency import INTERVAL_S, Gpu, Meter, Sample, flare_area, usage

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


def nvml_that_knows(monkeypatch, *uuids):
    def handle(uuid):
        if uuid not in uuids:
            raise ValueError("NVMLError_NotFound")
        return uuid

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=300 * 2**20),
        __spec__=object(),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


@pytest.mark.parametrize(
    ("visible", "known", "found"),
    [
        ("", ["GPU-a"], "GPU-a"),
        ("0,1", ["GPU-a", "GPU-b"], "GPU-a"),
        ("MIG-x,MIG-a", ["MIG-a", "GPU-a"], "MIG-a"),  # torch may tell the UUID of the whole card
        ("MIG-x,MIG-y", ["GPU-a", "MIG-y"], "MIG-y"),
        ("", [], None),
    ],
)
def test_the_gpu_that_torch_works_on_is_found_or_part_of_one(monkeypatch, visible, known, found):
    nvml_that_knows(monkeypatch, *known)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid="a"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (number * 2**20, 8 * 2**20))
    gpu = Gpu.of_torch(1)
    assert (gpu.nvml, gpu.index) == (found, 1)
    assert gpu.used_mb() == (300 if found else 7) and gpu.energy_j() is None  # this driver does not tell


def test_a_gpu_that_is_lost_ends_no_measured_work(monkeypatch, caplog):
    class Lost(Gpu):
        def used_mb(self):
            raise ValueError("NVMLError_GpuIsLost")

    with Meter(gpu=Lost(None, 0), interval_s=0.001) as meter:
        time.sleep(0.02)
    assert meter.failed and meter.usage().peak_gpu_mb == 0
    assert len(caplog.messages) == 1


def test_the_table_of_processes_is_read_rarely(monkeypatch):
    """On a machine of thousands of processes it takes a tenth of a second; seen: half of the time of an inference."""
    looks = []

    def slow(self, recursive):
        looks.append(recursive)
        time.sleep(0.01)
        return []

    monkeypatch.setattr(psutil.Process, "children", slow)
    with Meter(interval_s=0.002) as meter:
        time.sleep(0.1)
    assert len(looks) <= 2 < len(meter.samples)
    looks.clear()
    with Meter(interval_s=0.002, children=False):
        time.sleep(0.01)
    assert not looks
