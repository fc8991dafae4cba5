"""What a run costs: time, memory, area under the memory-time curves, energy.

:func:`usage` integrates over the true times of the samples of a :class:`Meter`, so that short runs and slow looks are
counted right. :func:`flare_area` is what the FLARE challenges' sampler (JunMa11/FLARE) makes of the same samples.
"""

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil

log = logging.getLogger(__name__)
INTERVAL_S = 0.1
"""Pause between two samples (FLARE)."""
PAUSE = 20
"""Times that looking for children takes, which reads the table of all processes, before they are looked for again."""
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

    A GPU that cannot be looked at (any more) ends no work: ``failed`` says so, and its numbers do not count.

    Args:
        pid: the process; default: this one.
        gpu: the driver's index or UUID of the GPU, or a :class:`Gpu`, or None. Its memory is that of the whole device
            (FLARE), whoever uses it.
        interval_s: pause between two samples.
        shared: count memory that processes share once (slower; Linux only). RAM is the sum of resident sets otherwise.
        children: look for children, too.
    """

    def __init__(
        self,
        pid: int | None = None,
        gpu: "int | str | Gpu | None" = None,
        interval_s: float = INTERVAL_S,
        shared: bool = False,
        children: bool = True,
    ):
        self.samples: list[Sample] = []
        self.runtime_s = 0.0
        self._process = psutil.Process(pid or os.getpid())
        self._gpu = gpu if isinstance(gpu, Gpu) or gpu is None else Gpu.named(gpu)
        self.failed = False
        self._family: list[psutil.Process] = []
        self._children, self._next_look = children, 0.0
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
        gpu = self._used_mb()
        ram = sum(self._memory(p) for p in processes) / MIB
        self.samples.append(Sample(now - self._start, gpu, ram, percent))
        self._cpu, self._last = cpu, now

    def _used_mb(self) -> float:
        try:
            return self._gpu.used_mb() if self._gpu and not self.failed else 0.0
        except Exception as error:  # NVML's errors share no base with torch's
            log.warning("the GPU's memory is not measured: %s", error)
            self.failed = True
            return 0.0

    def _processes(self) -> list[psutil.Process]:
        began = time.perf_counter()
        if self._children and began >= self._next_look:
            try:
                self._family = self._process.children(recursive=True)
            except psutil.Error:
                self._family = []
            now = time.perf_counter()
            self._next_look = now + PAUSE * (now - began)
        return [self._process, *self._family]

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
class Gpu:
    """A GPU, or a part of one, as NVML sees it (package ``nvidia-ml-py``), or as torch does, which knows no energy."""

    nvml: object | None
    """NVML's handle; None where torch is asked."""
    index: int | None
    """torch's number of the GPU; None: the current one."""

    @classmethod
    def named(cls, gpu: int | str) -> "Gpu":
        """Return the GPU of the driver's index, or of a UUID."""
        if not importlib.util.find_spec("pynvml"):
            return cls(None, gpu if isinstance(gpu, int) else None)
        import pynvml

        pynvml.nvmlInit()
        by = pynvml.nvmlDeviceGetHandleByUUID if isinstance(gpu, str) else pynvml.nvmlDeviceGetHandleByIndex
        return cls(by(gpu), None)

    @classmethod
    def of_torch(cls, number: int) -> "Gpu":
        """Return the GPU of torch's number, which is not the driver's where some are hidden; or the MIG instance."""
        import torch

        if importlib.util.find_spec("pynvml"):
            uuid = torch.cuda.get_device_properties(number).uuid
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[number : number + 1]
            for name in (*(v.strip() for v in visible if "-" in v), f"MIG-{uuid}", f"GPU-{uuid}"):
                try:
                    return cls(cls.named(name).nvml, number)
                except Exception as error:  # no such name, or no NVML here
                    log.debug("NVML: %s: %s", name, error)
        return cls(None, number)

    def used_mb(self) -> float:
        """Return the memory in use, whoever uses it."""
        if self.nvml is not None:
            import pynvml

            return pynvml.nvmlDeviceGetMemoryInfo(self.nvml).used / MIB
        import torch

        free, total = torch.cuda.mem_get_info(self.index)
        return (total - free) / MIB

    def energy_j(self) -> float | None:
        """Return the energy since the driver was loaded; None where it does not tell: old cards, MIG instances."""
        if self.nvml is None:
            return None
        import pynvml

        try:
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(self.nvml) / 1000
        except Exception:
            return None
