"""Of part 1: which machine this is, and how fast it copies and multiplies at best."""

import subprocess
from collections.abc import Iterator
from typing import Any

import torch
from context import Context
from device import about, median_seconds
from record import Step


def steps(context: Context) -> Iterator[Step]:
    """Yield what is asked of the machine."""
    yield Step("about", lambda: about(context.device) | {"nvidia_smi": _gpus()})
    yield Step("ceilings", lambda: ceilings(context))


def _gpus() -> list[str]:
    """Return what ``nvidia-smi -L`` lists; nothing where there is none."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines()


def _copy_gb_s(source: torch.Tensor, device: torch.device) -> float:
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), device, 5) / 1e9


def ceilings(context: Context) -> dict[str, Any]:
    """Return the rate of a large copy (bytes read and written) and of a large matrix product in each precision."""
    device, size = context.device, 256 if context.toy else 8192
    result: dict[str, Any] = {"copy_gb_s": _copy_gb_s(torch.randn(size * size * 8, device=device), device)}
    for precision in (torch.float32, torch.float16, torch.bfloat16):
        a, b = (torch.randn(size, size, device=device).to(precision) for _ in range(2))
        taken = median_seconds(lambda a=a, b=b: a @ b, device, 5)
        result[f"matmul_{str(precision).removeprefix('torch.')}_tflops"] = 2 * size**3 / taken / 1e12
    pinned = torch.empty(size * size, dtype=torch.int16, pin_memory=device.type == "cuda")
    upload = median_seconds(lambda: pinned.to(device, non_blocking=True), device, 5)
    result["upload_gb_s"] = pinned.nbytes / upload / 1e9 if device.type == "cuda" else None
    return result
