"""Give each local job GPUs of its own: Snakemake counts GPUs but assigns none (snakemake#281)."""

import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from labelloop.base.locks import Lock, TakenError, hold, private_folder
from labelloop.base.sequences import flat

log = logging.getLogger(__name__)

NO_GPU = ("", "-1", "NoDevFiles")
"""What stands in ``CUDA_VISIBLE_DEVICES`` for none; the last is Slurm's."""
BUSY_MB = 200
"""Memory in use beyond which a GPU that none of our jobs holds is somebody else's; a context alone takes more."""
EXCLUSIVE, PROHIBITED = "Exclusive_Process", "Prohibited"
"""Compute modes in which a GPU takes one process, or none."""


@dataclass(frozen=True)
class Card:
    """A GPU as ``nvidia-smi -L`` lists it: number, UUID, and the UUIDs of the MIG instances that it is cut into.

    CUDA shows a process one instance of a card that is cut, so that each is to be leased by itself.
    """

    number: str
    uuid: str
    parts: tuple[str, ...] = ()

    @property
    def units(self) -> tuple[str, ...]:
        """What can be leased: its instances, or itself."""
        return self.parts or (self.number,)

    def is_meant(self, name: str) -> bool:
        """Say whether an entry of ``CUDA_VISIBLE_DEVICES`` names it; CUDA takes the beginning of a UUID, too."""
        return name == self.number or (name.startswith("GPU-") and self.uuid.startswith(name))


@contextmanager
def lease_gpus(
    device: str, number: int = 1, folder: Path | None = None, gpus: list[str] | None = None, poll_s: float = 2.0
) -> Iterator[tuple[str, ...]]:
    """Hold GPUs: set ``CUDA_VISIBLE_DEVICES`` to some that no other holder has; wait while too few are free.

    The kernel frees them when the process ends, however it ends. One that somebody else uses comes last and, in
    exclusive mode, is waited for. Nothing is leased for a device other than ``auto`` and ``cuda``, without any GPU, and
    when the user (by ``CUDA_VISIBLE_DEVICES``) or Slurm has chosen a single one.

    One process at a time chooses, and keeps what it has found while it waits for the rest: two that need several GPUs
    never wait for each other, and one that needs many is not overtaken for ever by those that need one.

    Args:
        device: ``auto``, ``cuda``, ``cpu``, ...
        number: how many; where there are fewer, all. Of instances of a GPU that is cut, one: they cannot work together.
        folder: folder of the lock files; must be on this machine's own disk. By default one of this user's own, so that
            all of their runs share the GPUs.
        gpus: ids to choose from; by default :func:`usable_gpus`.
        poll_s: seconds between two looks while GPUs are taken.

    Yields:
        The ids of the GPUs leased.

    Raises:
        RuntimeError: torch has already chosen its GPU; the lease comes too late.
        UserError: the folder of the locks cannot be trusted, or written.
    """
    choices = _choices(device, usable_gpus() if gpus is None else gpus)
    if not choices:
        yield ()
        return
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        raise RuntimeError("lease_gpus must come before the first use of the GPU in this process")
    cut = any(gpu.startswith("MIG") for gpu in choices)
    held = _acquire(choices, 1 if cut else min(number, len(choices)), folder or _locks(), poll_s)
    leased = tuple(held)
    before = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(leased)
    if not _named_by_number(before["CUDA_VISIBLE_DEVICES"]):  # what the user's own numbers mean stays as it is
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # number GPUs as nvidia-smi does
    log.info("GPU %s: reserved for this process", ", ".join(leased))
    try:
        yield leased
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        for lock in held.values():
            lock.release()


def _named_by_number(visible: str | None) -> bool:
    """Say whether ``CUDA_VISIBLE_DEVICES`` has numbers. They are CUDA's own: without an order, the fastest GPU is 0."""
    return visible is not None and any(name.strip().isdigit() for name in visible.split(","))


def usable_gpus() -> list[str]:
    """Return the ids of the NVIDIA GPUs that this process may use, without importing torch.

    Those that ``CUDA_VISIBLE_DEVICES`` names, if it is set (up to the first that is none, as CUDA reads it), else all
    that ``nvidia-smi`` lists. A GPU goes by its number, however it was named, and the parts of one that is cut (MIG) by
    their UUIDs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return flat(card.units for card in _cards())
    named = list(takewhile(lambda gpu: gpu not in NO_GPU, (gpu.strip() for gpu in visible.split(","))))
    cards = _cards() if named else []
    found: list[str] = []
    for name in named:
        meant = [card for card in cards if card.is_meant(name)]
        found += meant[0].units if len(meant) == 1 else [name]
    return list(dict.fromkeys(found))


def gpu_names() -> list[str]:
    """Return the names of this machine's GPUs; none without a driver that works."""
    return [name.strip() for name in _ask("--query-gpu=name", "--format=csv,noheader") if name.strip()]


def _cards() -> list[Card]:
    cards: list[Card] = []
    for line in _ask("-L"):
        name, uuid = re.match(r"GPU (\d+):", line), re.search(r"\(UUID: ([^)]+)\)", line)
        if name:
            cards.append(Card(name[1], uuid[1] if uuid else ""))
        elif cards and uuid and line.strip().startswith("MIG"):
            cards[-1] = Card(cards[-1].number, cards[-1].uuid, (*cards[-1].parts, uuid[1]))
    return cards


def _taken(gpus: list[str]) -> dict[str, str]:
    """Return the compute mode of those GPUs that another program uses, or that take no program at all.

    Of instances of a GPU that is cut, the driver does not tell.
    """
    taken = {}
    for line in _ask("--query-gpu=index,compute_mode,memory.used", "--format=csv,noheader,nounits"):
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 3 or fields[0] not in gpus:
            continue
        number, mode, used = fields
        if mode == PROHIBITED or (used.isdigit() and int(used) > BUSY_MB):
            taken[number] = mode
    return taken


def _ask(*arguments: str) -> list[str]:
    """Return the lines that ``nvidia-smi`` answers; none without a driver that works."""
    if not shutil.which("nvidia-smi"):
        return []
    answer = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True)
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def _choices(device: str, gpus: list[str]) -> list[str]:
    """Return the GPUs to choose from; none when there is nothing to lease."""
    chosen = "CUDA_VISIBLE_DEVICES" in os.environ or "SLURM_JOB_ID" in os.environ
    fewest = 2 if chosen else 1
    return gpus if device in ("auto", "cuda") and len(gpus) >= fewest else []


def _locks() -> Path:
    """Return the default folder of the locks; Slurm may number the GPUs of each job from 0."""
    slurm = os.environ.get("SLURM_JOB_ID")
    return private_folder(f"gpus-slurm-{slurm}" if slurm else "gpus")


def _acquire(choices: list[str], number: int, folder: Path, poll_s: float) -> dict[str, Lock]:
    """Return ``number`` free GPUs and their locks."""
    held: dict[str, Lock] = {}
    turn: Lock | None = None
    told = False
    try:
        while True:
            try:
                turn = turn or hold(folder / "turn.lock", "the next GPU", wait=False)
                holders = _take_free(choices, number, folder, held)
            except TakenError as first:
                holders = [f"after {first.holder}"]
            if len(held) == number:
                return held
            if not told:
                log.info("process %d waits for a GPU: %s", os.getpid(), ", ".join(holders))
            told = True
            time.sleep(poll_s)
    except BaseException:
        for lock in held.values():
            lock.release()
        raise
    finally:
        if turn:
            turn.release()


def _take_free(choices: list[str], number: int, folder: Path, held: dict[str, Lock]) -> list[str]:
    """Add free GPUs to those ``held`` until there are ``number``; return who has the others."""
    holders = []
    taken = _taken(choices)
    for gpu in sorted(choices, key=lambda gpu: gpu in taken):
        if gpu in held or len(held) == number:
            continue
        try:
            lock = hold(folder / f"gpu{gpu.replace('/', '-')}.lock", f"GPU {gpu}", wait=False)
        except TakenError as other:
            holders.append(f"GPU {gpu} by {other.holder}")
            continue
        if taken.get(gpu) in (EXCLUSIVE, PROHIBITED):
            lock.release()
            holders.append(f"GPU {gpu} by another program or user (compute mode {taken[gpu]})")
            continue
        if gpu in taken:
            log.warning("GPU %s is shared: another program uses it, and no other GPU is free", gpu)
        held[gpu] = lock
    return holders
