"""When the GPU's memory does not suffice: give back what is not needed, and try again with less."""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from labelloop.inference.budget import CUDA_MB, MIB

log = logging.getLogger(__name__)
Setting = TypeVar("Setting")
Result = TypeVar("Result")
USABLE = 0.9
"""Share of the free memory that is planned with; the rest is for what lies in pieces."""
SIGNS = ("out of memory", "ALLOC_FAILED")
"""What errors of CUDA, cuBLAS and cuDNN say that are no ``OutOfMemoryError``."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error tells of too little GPU memory."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def free_mb(device: torch.device) -> float | None:
    """Return what a GPU has left for this process in MiB, as :func:`~labelloop.inference.budget.gpu_mb` counts.

    That is what nobody has taken, what this process has taken and does not use, and its context. None for a CPU.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return CUDA_MB + USABLE * (free + unused) / MIB


def release_memory() -> None:
    """Give memory that this process holds and does not use back to the GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def first_that_fits(settings: Sequence[Setting], work: Callable[[Setting], Result]) -> Result:
    """Return ``work`` of the first setting for which GPU memory suffices; memory is released between tries.

    Args:
        settings: at least one, each needing less than the one before; they are shown in the log.

    Raises:
        RuntimeError: what ``work`` raised, when it does not suffice for the last one either.
    """
    for number, setting in enumerate(settings, start=1):
        problem = None
        try:
            return work(setting)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            problem = error.with_traceback(None)  # its frames hold the tensors
        release_memory()
        if number == len(settings):
            raise problem
        log.warning("out of GPU memory with %s; again with %s", setting, settings[number])
    raise ValueError("no setting to try")
