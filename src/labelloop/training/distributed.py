"""One training on several cards of a node: each computes its share of every batch, and all take the same steps.

The global batch is that of one card. Each process makes some samples of it, lets the network answer to them, and gets
the answers to the others; from there on all compute the loss of the whole batch, whatever loss that is, and each goes
backwards through its own answers. The sum of all gradients is that of one card, up to rounding, for every kind of
training, loss and share. nnU-Net divides its batch in the same way, but rebuilds its Dice alone from all cards
(``AllGatherGrad``). What is sent more, the answers, weighs about as much as the gradients.

Rank 0 is the job's own process, as on one card: it writes checkpoints and logs, is asked to stop, holds the locks. The
others (``member``) are started by it and end with it, however it ends.
"""

import itertools
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from labelloop.base.sequences import flat
from labelloop.base.wording import count
from labelloop.training.job import TrainingJob

log = logging.getLogger(__name__)

MEMBER = "labelloop.training.member"
"""The module that runs in the other processes."""
PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: for a checkpoint on a slow disk, or a network that is being compiled."""
GRACE_S = 60.0
"""How long the first process has, after another has died, to find out for itself and to say so."""
MOMENT_S = 5.0
"""How long a process that fails takes to end."""


class Team:
    """The processes that train a model together; this one is number ``rank`` of ``size``. Alone, all is as it was."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    def share(self, total: int) -> slice:
        """Return which of ``total`` samples are this process's; all, where there are fewer samples than processes."""
        return self._shares(total)[self.rank]

    def _shares(self, total: int) -> list[slice]:
        if total < self.size:
            return [slice(0, total)] * self.size
        ends = [rank * total // self.size for rank in range(self.size + 1)]
        return [slice(*pair) for pair in itertools.pairwise(ends)]

    def join(self, own: Tensor, total: int) -> Tensor:
        """Return what all processes have of their shares of ``total`` samples, in order.

        Gradients flow into this process's share alone: those of the others flow there.
        """
        if self.size == 1:
            return own
        if total < self.size:
            if own.requires_grad:
                raise RuntimeError(f"a network learns from {total} samples on {self.size} cards")
            return own
        shares = self._shares(total)
        parts = [own.detach().new_empty((s.stop - s.start, *own.shape[1:])) for s in shares]
        parts[self.rank] = own.detach().contiguous()
        # as bytes, for no backend knows all types; one after the other, for no backend gathers unequal shares
        sent = [
            distributed.broadcast(part.view(-1).view(torch.uint8), source, async_op=True)
            for source, part in enumerate(parts)
        ]
        for work in filter(None, sent):
            work.wait()
        parts[self.rank] = own
        return torch.cat(parts)

    def join_lists(self, own: Sequence[Any]) -> list[Any]:
        """Return the lists of all processes as one; any small objects."""
        if self.size == 1:
            return list(own)
        lists: list[Any] = [None] * self.size
        distributed.all_gather_object(lists, list(own))
        return flat(lists)

    def add_gradients(self, networks: Sequence[nn.Module]) -> None:
        """Let every process have the sum of all processes' gradients."""
        if self.size == 1:
            return
        for network in networks:
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            flat = torch.cat([g.reshape(-1) for g in gradients])
            distributed.all_reduce(flat)
            pieces = flat.split([g.numel() for g in gradients])
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))

    def largest(self, number: int) -> int:
        """Return the largest number that a process has."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return int(tensor)

    def check_weights(self, networks: Sequence[nn.Module]) -> None:
        """Make sure that all processes still have the same weights.

        Raises:
            RuntimeError: they have drifted apart: each would train a network of its own.
        """
        if self.size == 1:
            return
        totals = [sum(p.detach().double().sum() for p in network.parameters()) for network in networks]
        if len(set(self.join_lists([" ".join(float(total).hex() for total in totals)]))) > 1:
            raise RuntimeError("the processes of this training have different weights: are their cards of one kind?")


ALONE = Team()


@dataclass(frozen=True)
class Seat:
    """What another process is told: the training, its place, where all meet, and whose end is its own.

    Args:
        meeting: file by which the processes find each other.
        logs: files that its errors go to, besides the terminal.
        owner: id of the process of rank 0.
    """

    job: TrainingJob
    rank: int
    size: int
    meeting: str
    logs: tuple[str, ...]
    owner: int


@contextmanager
def together(job: TrainingJob, device: torch.device) -> Iterator[Team]:
    """Start the other processes of a training, and be their first inside the block.

    Raises:
        RuntimeError: another process has failed; the log has its traceback.
    """
    size = processes(job, device)
    if size == 1:
        yield ALONE
        return
    with tempfile.TemporaryDirectory(prefix="labelloop-") as folder:
        meeting = str(Path(folder, "meeting"))
        logs = tuple(h.baseFilename for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler))
        seats = [Seat(job, rank, size, meeting, logs, os.getpid()) for rank in range(1, size)]
        members: list[subprocess.Popen] = []
        ended = threading.Event()
        try:
            for seat in seats:
                members.append(_start(seat, device))
                threading.Thread(target=_watch, args=(members[-1], ended), daemon=True).start()
            with joined(0, size, meeting, device) as team:
                log.info("%s: trained by %d processes, each with its share of every batch", job.name, size)
                try:
                    yield team
                except Exception as error:
                    failed = _failed(members) if isinstance(error, RuntimeError) else ""
                    _end(members, ended)  # before they miss this process, and say so
                    if failed:
                        raise RuntimeError(f"{job.name}: {failed}; this log has what it said") from error
                    raise
            _wait_for(members)
        finally:
            _end(members, ended)


@contextmanager
def joined(rank: int, size: int, meeting: str, device: torch.device) -> Iterator[Team]:
    """Meet the other processes, and work with them inside the block."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this node, whatever its name resolves to
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, f"file://{meeting}", PATIENCE, world_size=size, rank=rank)
    try:
        yield Team(rank, size)
    except Exception:
        if device.type == "cpu":  # a GPU may wait for ever for what another process was to send
            distributed.destroy_process_group()
        raise
    except BaseException:  # all were asked to stop
        distributed.destroy_process_group()
        raise
    distributed.destroy_process_group()


def processes(job: TrainingJob, device: torch.device) -> int:
    """Return how many processes train: as many as ``job.cards``, if there are so many cards and samples in a batch."""
    most = {f"a batch has {count(job.plan.batch_size, 'sample')}": job.plan.batch_size}
    if device.type == "cuda":
        visible = torch.cuda.device_count()
        most[f"{count(visible, 'card')} can be used here"] = visible
    elif job.device != "cpu":
        most["there is no card here"] = 1
    reason, size = min(most.items(), key=lambda item: item[1])
    if size >= job.cards:
        return job.cards
    log.warning("%s: trained on %s, not on %d: %s", job.name, count(size, "card"), job.cards, reason)
    return size


def _start(seat: Seat, device: torch.device) -> subprocess.Popen:
    """Start another process. It sees one card, which is its first, as that of every training is."""
    environment = dict(os.environ)
    if device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[seat.rank].strip() if visible else str(seat.rank)
    with tempfile.TemporaryFile() as told:  # not a pipe, whose reader may be dead
        pickle.dump(seat, told)
        told.seek(0)
        return subprocess.Popen([sys.executable, "-m", MEMBER], stdin=told, env=environment)


def _watch(member: subprocess.Popen, ended: threading.Event) -> None:
    """End this process when another has failed: it may wait for an answer of its card that never comes."""
    if not member.wait() or ended.wait(GRACE_S):
        return
    log.critical("process %d of this training ended with code %d; see above", member.pid, member.poll())
    os._exit(1)


def _failed(members: Sequence[subprocess.Popen]) -> str:
    """Say which process has failed; empty when none has, nor does in a moment."""
    deadline = time.monotonic() + MOMENT_S
    while time.monotonic() < deadline:
        for rank, member in enumerate(members, start=1):
            if member.poll():
                return f"process {rank + 1} of {len(members) + 1} ended with code {member.returncode}"
        time.sleep(0.05)
    return ""


def _end(members: Sequence[subprocess.Popen], ended: threading.Event) -> None:
    ended.set()
    for member in members:
        member.kill()
        member.wait()


def _wait_for(members: Sequence[subprocess.Popen]) -> None:
    for member in members:
        try:
            member.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            log.warning("process %d of this training does not end; it is killed", member.pid)
