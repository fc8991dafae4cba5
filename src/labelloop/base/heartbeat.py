"""Signs of life: what a job does, how far it is and how long it still takes, said every 20 seconds."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

EVERY_S = 20.0
"""Seconds between two signs of life."""


@dataclass
class Count:
    """Pieces of work of one kind, e.g. the cases of a shard.

    Args:
        what: name of a piece, e.g. ``case``.
        total: number of pieces; ``done`` of them are finished, ``before`` were so from the beginning.
    """

    what: str
    total: int
    done: int = 0
    before: int = 0
    began: float = field(default_factory=lambda: time.monotonic())

    def advance(self) -> None:
        """Count a piece as finished."""
        self.done = min(self.done + 1, self.total)

    def __str__(self) -> str:
        return f"{self.what} {min(self.done + 1, self.total)} of {self.total}"


_running: list[Count] = []
"""What is being counted, the whole before its parts."""


@contextmanager
def counted(what: str, total: int, done: int = 0) -> Iterator[Count]:
    """Count pieces of work inside the block; a block within it counts the parts of a piece.

    Args:
        done: pieces that were finished before.
    """
    count = begin(what, total, done)
    try:
        yield count
    finally:
        del _running[_running.index(count) :]


def begin(what: str, total: int, done: int = 0) -> Count:
    """Count pieces of work until the process ends."""
    count = Count(what, total, done, done)
    _running.append(count)
    return count


def finished(what: str) -> None:
    """Count a piece as finished, if pieces of that name are counted."""
    for count in _running:
        if count.what == what:
            count.advance()


def status() -> str:
    """Say how far the work is and how long it still takes, e.g. ``epoch 2 of 5, update 31 of 80, 3 min to go``."""
    counts = [count for count in _running if count.total]
    if not counts:
        return ""
    remaining = _seconds_to_go(counts)
    told = [] if remaining is None else [f"{duration(remaining)} to go"]
    return ", ".join([*map(str, counts), *told])


def _seconds_to_go(counts: list[Count]) -> float | None:
    """Return the seconds that the outermost count still needs at its speed; None before there is one."""
    share = 0.0
    for count in reversed(counts):
        share = min((count.done + share) / count.total, 1.0)
    whole = counts[0]
    gained = share - whole.before / whole.total
    passed = time.monotonic() - whole.began
    return passed * (1 - share) / gained if gained > 0 else None


def duration(seconds: float) -> str:
    """Return a duration in words, e.g. ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = -int(-seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def speak(name: str, every_s: float = EVERY_S) -> threading.Event:
    """Log a sign of life every ``every_s`` seconds, from a thread, until the event returned is set.

    Args:
        name: of the job, e.g. ``train teacher``.
    """
    began, silent = time.monotonic(), threading.Event()

    def run() -> None:
        while not silent.wait(every_s):
            log.info("%s: %s", name, status() or f"{duration(time.monotonic() - began)} so far")

    threading.Thread(target=run, name="heartbeat", daemon=True).start()
    return silent


@contextmanager
def hushed() -> Iterator[None]:
    """Log no signs of life inside the block: the process waits for a person."""
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def speaking(name: str, every_s: float = EVERY_S) -> Iterator[None]:
    """Log signs of life inside the block."""
    silent = speak(name, every_s)
    try:
        yield
    finally:
        silent.set()
