"""What a run costs: time, memory, area under the memory-time curves, energy.

:func:`usage` integrates over the true times of the samples of a :class:`Meter`, so that short runs and slow looks are
counted right. :func:`flare_area` is what the FLARE challenges' sampler (JunMa11/FLARE) makes of the same samples.
"""

import importlib.util
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil

INTERVAL_S = 0.1
"""Pause between two samples (FLARE)."""
MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """One look: seconds since the start, GPU memory and RAM in MiB, CPU in percent of one core."""

    time_s: float
    gpu_mb: float
    ram_mb: float
    cpu_percent: float


@dataclass(frozen=True)
class Usage:
    """Cost of a run. Areas are integrals over time: MiB s, and percent of one core times s.

    ``energy_j`` is that of the whole GPU, None where its driver does not tell.
    """

    runtime_s: float
    peak_gpu_mb: float
    area_gpu_mb_s: float
    peak_ram_mb: float
    area_ram_mb_s: float
    area_cpu_percent_s: float
    energy_j: float | None = None


class Meter:
    """Samples a process and all its children in a thread, from ``with`` to its end.

    Args:
        pid: the process; default: this one.
        gpu: index or UUID of the GPU, or None. Its memory is that of the whole device (FLARE), whoever uses it.
        interval_s: pause between two samples.
        shared: count memory that processes share once (slower; Linux only). RAM is the sum of resident sets otherwise.
    """

    def __init__(
        self, pid: int | None = None, gpu: int | str | None = None, interval_s: float = INTERVAL_S, shared=False
    ):
        self.samples: list[Sample] = []
        self.runtime_s = 0.0
        self._process = psutil.Process(pid or os.getpid())
        self._gpu = _Gpu.of(gpu)
        self._interval, self._shared = interval_s, shared
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="efficiency meter", daemon=True)
        self._cpu: dict[int, float] = {}

    def __enter__(self) -> "Meter":
        self._start = self._last = time.perf_counter()
        self._energy = self._gpu.energy_j() if self._gpu else None
        self._cpu = self._cpu_seconds(self._processes())
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.runtime_s = time.perf_counter() - self._start
        self._stop.set()
        self._thread.join()
        self._sample()

    @property
    def energy_j(self) -> float | None:
        """Energy of the GPU since the start, where its driver tells."""
        now = self._gpu.energy_j() if self._gpu else None
        return None if now is None or self._energy is None else now - self._energy

    def usage(self) -> Usage:
        """Return the cost over the true times of the samples."""
        return usage(self.samples, self.runtime_s, self.energy_j)

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        processes = self._processes()
        now = time.perf_counter()
        cpu = self._cpu_seconds(processes)
        spent = sum(seconds - self._cpu.get(pid, 0.0) for pid, seconds in cpu.items())
        percent = 100 * spent / (now - self._last) if now > self._last else 0.0
        gpu = self._gpu.used_mb() if self._gpu else 0.0
        ram = sum(self._memory(p) for p in processes) / MIB
        self.samples.append(Sample(now - self._start, gpu, ram, percent))
        self._cpu, self._last = cpu, now

    def _processes(self) -> list[psutil.Process]:
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _memory(self, process: psutil.Process) -> int:
        try:
            return process.memory_full_info().pss if self._shared else process.memory_info().rss
        except psutil.Error:  # it has just ended
            return 0

    @staticmethod
    def _cpu_seconds(processes: Sequence[psutil.Process]) -> dict[int, float]:
        seconds = {}
        for process in processes:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            seconds[process.pid] = times.user + times.system
        return seconds


def usage(samples: Sequence[Sample], runtime_s: float, energy_j: float | None = None) -> Usage:
    """Return peaks, and areas by the trapezoid rule over the samples' true times; CPU by its time steps."""
    times = np.array([s.time_s for s in samples])
    gpu, ram, cpu = (np.array([getattr(s, n) for s in samples]) for n in ("gpu_mb", "ram_mb", "cpu_percent"))
    area_gpu, area_ram = (float(np.trapezoid(values, times)) for values in (gpu, ram))
    area_cpu = float((cpu[1:] * np.diff(times)).sum())  # a CPU sample is the mean since the one before
    return Usage(runtime_s, float(gpu.max()), area_gpu, float(ram.max()), area_ram, area_cpu, energy_j)


def flare_area(samples: Sequence[Sample]) -> float:
    """Return FLARE's area under the GPU memory curve: its script counts each look for 0.1 s, however long it takes."""
    return sum(sample.gpu_mb for sample in samples) * INTERVAL_S


@dataclass(frozen=True)
class _Gpu:
    """A GPU as NVML sees it (package ``nvidia-ml-py``), or as torch does, which knows no energy."""

    nvml: object | None
    """NVML's handle; None where torch is asked."""
    index: int | None
    """torch's number of the GPU; None: the current one."""

    @classmethod
    def of(cls, gpu: int | str | None) -> "_Gpu | None":
        if gpu is None:
            return None
        if importlib.util.find_spec("pynvml"):
            import pynvml

            pynvml.nvmlInit()
            by = pynvml.nvmlDeviceGetHandleByUUID if isinstance(gpu, str) else pynvml.nvmlDeviceGetHandleByIndex
            return cls(by(gpu), None)
        return cls(None, gpu if isinstance(gpu, int) else None)

    def used_mb(self) -> float:
        if self.nvml is not None:
            import pynvml

            return pynvml.nvmlDeviceGetMemoryInfo(self.nvml).used / MIB
        import torch

        free, total = torch.cuda.mem_get_info(self.index)
        return (total - free) / MIB

    def energy_j(self) -> float | None:
        if self.nvml is None:
            return None
        import pynvml

        try:
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(self.nvml) / 1000
        except pynvml.NVMLError:  # older cards
            return None
