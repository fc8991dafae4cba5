"""Ctrl-C and SIGTERM (a time limit, scancel, a kill): work that asked for it may first come to a good end."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def pass_on_to_children() -> None:
    """Let SIGTERM reach the processes that this one has started, before it is handled as it was.

    Snakemake on its own waits for its jobs, which may take days.
    """
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        import psutil

        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, handle)


class StopRequest:
    """Whether this process was asked to end: by which ``signal``, 0 for none."""

    def __init__(self) -> None:
        self.signal = 0

    def __bool__(self) -> bool:
        return self.signal > 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Take down the request; a signal handler."""
        if not self:
            log.warning("%s: stopping after the step at hand", signal.Signals(number).name)
        self.signal = number


def exit_by(number: int) -> SystemExit:
    """Return what to raise when the work that signal ``number`` asked to end has come to its end."""
    return SystemExit(128 + number)


@contextmanager
def deferred() -> Iterator[StopRequest]:
    """Let the block end itself: it looks at the request yielded, and raises what :func:`exit_by` returns.

    Outside of the main thread, which alone gets signals, nothing is deferred. Processes that the block forks would get
    them, too: start them in :func:`spared`.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def spared() -> Iterator[None]:
    """Let processes that the block starts never see Ctrl-C and SIGTERM: who started them says when they end.

    A terminal, Slurm and :func:`pass_on_to_children` signal all processes of a job. What those processes still compute
    is needed for the good end of the work.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
