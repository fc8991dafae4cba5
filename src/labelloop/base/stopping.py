"""Ctrl-C and SIGTERM (a time limit, scancel, a kill): work that asked for it may first come to a good end."""

import logging
import os
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

    Processes forked inside go on ignoring Ctrl-C, which a terminal sends to them, too, and end at SIGTERM. Outside of
    the main thread, which alone gets signals, nothing is deferred.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            request.note(number, frame)
        elif number == signal.SIGTERM:
            os._exit(128 + number)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
