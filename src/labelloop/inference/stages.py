"""Seconds that the stages of an inference take: read, prepare, network, export, write."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

STAGES = ("read", "prepare", "network", "export", "write")
Item = TypeVar("Item")


class _Clock:
    """Books wall time on the innermost stage that runs."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    def enter(self, name: str) -> None:
        self._book()
        self._running.append(name)

    def leave(self) -> None:
        self._book()
        self._running.pop()

    def _book(self) -> None:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # kernels run on while Python goes ahead
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


_clock: ContextVar[_Clock | None] = ContextVar("clock", default=None)


@contextmanager
def collected() -> Iterator[dict[str, float]]:
    """Yield a mapping that gets the seconds of every :func:`stage` run inside, in this thread."""
    clock = _Clock()
    token = _clock.set(clock)
    try:
        yield clock.seconds
    finally:
        _clock.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Book the wall time of the block, less that of stages inside it, on ``name``; free when nobody collects."""
    clock = _clock.get()
    if clock is None:
        yield
        return
    clock.enter(name)
    try:
        yield
    finally:
        clock.leave()


def staged(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yield ``items``; the time to make them is booked on ``name``."""
    iterator = iter(items)
    while True:
        with stage(name):
            item = next(iterator, None)
        if item is None:
            return
        yield item
