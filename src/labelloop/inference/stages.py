"""Seconds that the stages of an inference take: read, prepare, network, export, write."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

STAGES = ("read", "prepare", "network", "export", "write")
_seconds: ContextVar[dict[str, float] | None] = ContextVar("stages", default=None)


@contextmanager
def collected() -> Iterator[dict[str, float]]:
    """Yield a mapping that gets the seconds of every :func:`stage` run inside, in this thread."""
    seconds: dict[str, float] = {}
    token = _seconds.set(seconds)
    try:
        yield seconds
    finally:
        _seconds.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Add the wall time of the block to stage ``name``; costs nothing when nobody collects."""
    seconds = _seconds.get()
    start = time.perf_counter()
    try:
        yield
    finally:
        if seconds is not None:
            _wait_for_gpu()
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def _wait_for_gpu() -> None:
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
