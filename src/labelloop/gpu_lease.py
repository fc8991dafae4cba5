"""Give each local job a GPU of its own: Snakemake counts GPUs but assigns none (snakemake#281)."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from labelloop.locks import Lock, TakenError, hold, private_folder

log = logging.getLogger(__name__)

NO_GPU = ("", "-1", "NoDevFiles")
"""What stands in ``CUDA_VISIBLE_DEVICES`` for none; the last is Slurm's."""


@contextmanager
def lease_gpu(
    device: str, folder: Path | None = None, gpus: list[str] | None = None, poll_s: float = 2.0
) -> Iterator[str | None]:
    """Hold a GPU: set ``CUDA_VISIBLE_DEVICES`` to one that no other holder has; wait while all are taken.

    The kernel frees the GPU when the process ends, however it ends. Nothing is leased for a device other than ``auto``
    and ``cuda``, without any GPU, and when the user (by ``CUDA_VISIBLE_DEVICES``) or Slurm has chosen a single one.

    Args:
        device: ``auto``, ``cuda``, ``cpu``, ...
        folder: folder of the lock files; must be on this machine's own disk. By default one of this user's own, so that
            all of their runs share the GPUs.
        gpus: ids to choose from; by default :func:`usable_gpus`.
        poll_s: seconds between two looks while all GPUs are taken.

    Yields:
        The id of the GPU leased, or None.

    Raises:
        RuntimeError: torch has already chosen its GPU; the lease comes too late.
        UserError: the folder of the locks cannot be trusted, or written.
    """
    choices = _choices(device, usable_gpus() if gpus is None else gpus)
    if not choices:
        yield None
        return
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        raise RuntimeError("lease_gpu must come before the first use of the GPU in this process")
    gpu, lock = _acquire(choices, folder or _locks(), poll_s)
    before = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # number GPUs as nvidia-smi does
    log.info("GPU %s is mine until I end", gpu)
    try:
        yield gpu
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        lock.release()


def usable_gpus() -> list[str]:
    """Return the ids of the NVIDIA GPUs that this process may use, without importing torch.

    Those that ``CUDA_VISIBLE_DEVICES`` names, if it is set (up to the first that is none, as CUDA reads it), else all
    that ``nvidia-smi`` lists.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _list_gpus()
    return list(takewhile(lambda gpu: gpu not in NO_GPU, (gpu.strip() for gpu in visible.split(","))))


def _list_gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    return [line.split(":")[0].removeprefix("GPU ") for line in lines if line.startswith("GPU ")]


def _choices(device: str, gpus: list[str]) -> list[str]:
    """Return the GPUs to choose from; none when there is nothing to lease."""
    chosen = "CUDA_VISIBLE_DEVICES" in os.environ or "SLURM_JOB_ID" in os.environ
    fewest = 2 if chosen else 1
    return gpus if device in ("auto", "cuda") and len(gpus) >= fewest else []


def _locks() -> Path:
    """Return the default folder of the locks; Slurm may number the GPUs of each job from 0."""
    slurm = os.environ.get("SLURM_JOB_ID")
    return private_folder(f"gpus-slurm-{slurm}" if slurm else "gpus")


def _acquire(choices: list[str], folder: Path, poll_s: float) -> tuple[str, Lock]:
    """Return the first free GPU and its lock."""
    waiting = False
    while True:
        holders = []
        for gpu in choices:
            try:
                return gpu, hold(folder / f"gpu{gpu.replace('/', '-')}.lock", f"GPU {gpu}", wait=False)
            except TakenError as taken:
                holders.append(f"GPU {gpu} by {taken.holder}")
        if not waiting:
            log.info("process %d waits for a GPU: %s", os.getpid(), ", ".join(holders))
            waiting = True
        time.sleep(poll_s)
