"""In which precision a network is computed: a half precision only where the device has units for it."""

import logging
import platform
from functools import cache
from typing import Literal

import torch

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What ``torch.autocast`` computes in; nothing for fp32."""


def has_units(precision: Precision, device: torch.device) -> bool:
    """Say whether ``device`` computes ``precision`` itself, not by way of other precisions.

    Most CPUs emulate bf16, which takes 11 to 19 times as long as fp32.
    """
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and precision == "bf16" and _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    """Say whether oneDNN has bf16 units here, and may use them (``ONEDNN_MAX_CPU_ISA``)."""
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    # Of x86 CPUs, torch counts those with AVX-512 alone, too, which emulate bf16.
    return platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_avx512_bf16_supported()


def choose_precision(wanted: str, device: torch.device, on_cpu: Precision) -> Precision:
    """Return the precision to compute in.

    Args:
        wanted: ``auto``, ``fp32``, ``bf16`` or ``fp16``. ``auto`` is fp16 on a GPU, and ``on_cpu`` on a CPU that has
            units for it, else fp32. A half precision for which ``device`` has no units becomes fp32, with a warning.
    """
    best: dict[str, Precision] = {"cuda": "fp16", "cpu": on_cpu}
    named: dict[str, Precision] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
    asked = best.get(device.type, "fp32") if wanted == "auto" else named[wanted]
    if has_units(asked, device):
        return asked
    if wanted != "auto":
        _warn_once(wanted, device.type)
    return "fp32"


@cache
def _warn_once(wanted: str, kind: str) -> None:
    what = {"cpu": "CPU", "cuda": "GPU"}.get(kind, kind)
    log.warning("precision %s: this %s has no units for it and would emulate it; fp32 is used", wanted, what)
