"""What an inference costs: seconds of its stages (read, prepare, network, export, write), and the networks' work."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from labelloop.networks.network import count_parameters, counting_macs

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

STAGES = ("read", "prepare", "network", "export", "write")
Item = TypeVar("Item")


class Work:
    """Wall time, booked on the innermost stage that runs; and multiply-accumulates, and the networks that made them."""

    def __init__(self, device: "torch.device | None" = None):
        self._device = device
        self.seconds: dict[str, float] = {}
        self.macs = 0
        self._parameters: dict[int, int] = {}
        self._running: list[str] = []
        self._since = 0.0

    @property
    def parameters(self) -> int:
        """Parameters of all networks that ran, each tensor counted once."""
        return sum(self._parameters.values())

    def note(self, network: "nn.Module", macs: int) -> None:
        """Take note of a pass of ``network``."""
        self.macs += macs
        if id(network) not in self._parameters:
            self._parameters[id(network)] = count_parameters(network)

    def enter(self, name: str) -> None:
        self._book()
        self._running.append(name)

    def leave(self) -> None:
        self._book()
        self._running.pop()

    def _book(self) -> None:
        if self._device is not None and self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)  # kernels run on while Python goes ahead
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


_work: ContextVar[Work | None] = ContextVar("work", default=None)


@contextmanager
def collected(device: "torch.device | None" = None) -> Iterator[Work]:
    """Yield what gets the seconds of every :func:`stage`, and the work of every :class:`Counted`, in this thread.

    Args:
        device: that the stages run on; a GPU is waited for at the end of each.
    """
    work = Work(device)
    token = _work.set(work)
    try:
        yield work
    finally:
        _work.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Book the wall time of the block, less that of stages inside it, on ``name``; free when nobody collects."""
    work = _work.get()
    if work is None:
        yield
        return
    work.enter(name)
    try:
        yield
    finally:
        work.leave()


def staged(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yield ``items``; the time to make them is booked on ``name``."""
    iterator = iter(items)
    while True:
        with stage(name):
            item = next(iterator, None)
        if item is None:
            return
        yield item


class Counted:
    """A network whose work is noted when somebody collects. Passes of one shape are alike; the first is counted."""

    def __init__(self, network: "nn.Module"):
        self._network = network
        self._macs: dict[tuple[int, ...], int] = {}

    def __call__(self, x: "Tensor") -> "Tensor":
        work = _work.get()
        if work is None:
            return self._network(x)
        if x.shape in self._macs:
            result = self._network(x)
        else:
            with counting_macs(self._network) as counted:
                result = self._network(x)
            self._macs[x.shape] = sum(counted)
        work.note(self._network, self._macs[x.shape])
        return result
