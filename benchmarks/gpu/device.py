"""What differs between a GPU and a CPU: waiting for it, its memory, its name. Everything else runs on both."""

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "scipy", "nnunetv2", "SimpleITK", "dynamic-network-architectures", "nvidia-ml-py")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def healthy(device: torch.device) -> bool:
    """Say whether the device still answers: after some errors a process has lost its GPU for good."""
    try:
        synchronize(device)
    except RuntimeError:
        return False
    return True


def forget(device: torch.device) -> None:
    """Give back memory that nobody holds, and begin to count its peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> dict[str, float | None]:
    """Return the largest memory since :func:`forget`, in MiB: what tensors held, and what torch held; None on a CPU."""
    if device.type != "cuda":
        return {"peak_mb": None, "reserved_mb": None}
    held = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"peak_mb": held[0] / 2**20, "reserved_mb": held[1] / 2**20}


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return the wall time of ``work``, to its end on the device."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def median_seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median wall time of ``work``, after a first time that is not counted."""
    work()
    return statistics.median(seconds(work, device) for _ in range(repeats))


@contextmanager
def metered(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield what gets area (MiB s) and energy (J) of the GPU when the block has ended; None where nothing tells."""
    told: dict[str, Any] = {"area_gpu_mb_s": None, "energy_j": None}
    meter = _meter(device, told)
    if meter is None:
        yield told
        return
    with meter:
        yield told
        synchronize(device)
    usage = meter.usage()
    told |= {"area_gpu_mb_s": usage.area_gpu_mb_s, "energy_j": usage.energy_j}


def _meter(device: torch.device, told: dict[str, Any]) -> Any:
    """Return a meter of the GPU; None on a CPU, and where psutil or the driver refuse one, which ``told`` then says."""
    if device.type != "cuda":
        return None
    try:
        from labelloop.metrics.efficiency import Gpu, Meter

        return Meter(gpu=Gpu.of_torch(device.index or 0), children=False)
    except Exception as error:  # a machine where nothing can be metered is measured without
        told["meter"] = f"{type(error).__name__}: {error}"
        return None


def about(device: torch.device) -> dict[str, Any]:
    """Return device, machine, date and versions."""
    told: dict[str, Any] = {
        "device": f"{platform.machine()} CPU",
        "cores": len(os.sched_getaffinity(0)),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        told |= {
            "device": properties.name, "memory_mb": properties.total_memory / 2**20, "uuid": str(properties.uuid),
            "capability": list(torch.cuda.get_device_capability(device)), "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }  # fmt: skip
    for name in PACKAGES:
        try:
            told["versions"][name] = version(name)
        except PackageNotFoundError:
            told["versions"][name] = None
    return told
