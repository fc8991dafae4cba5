"""Commands that label one image: run without a shell, ended when they take too long or this process ends."""

import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from labelloop.base.errors import CaseError
from labelloop.base.heartbeat import duration

SHOWN = 5
"""Lines that a message shows of what a command printed last."""
TAIL_BYTES = 4096
GRACE_S = 5.0
"""Seconds between the request to end and the end by force."""
FAILED = "Run the command by hand. All other cases go on."


def run_command(words: Sequence[str], printed: Path, limit_s: float, case: str) -> None:
    """Run a command to its end, in a process group of its own.

    Args:
        words: program and arguments.
        printed: file for what it prints.
        limit_s: seconds after which it is ended.

    Raises:
        CaseError: ``command_slow`` or ``command_failed``, with what it printed last.
        MemoryError: when it was killed from outside, as the system does when memory runs out: that may pass.
        OSError: when it cannot be started.
    """
    with printed.open("wb") as output:
        process = subprocess.Popen(
            list(words), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            _end(process)
            found = f"{shlex.join(words)} took more than {duration(limit_s)}{_said(printed)}"
            raise CaseError("command_slow", case, found, f"Raise limit_s. {FAILED}") from None
        except BaseException:  # this process is to end
            _end(process)
            raise
    if status == -signal.SIGKILL:
        raise MemoryError(f"{shlex.join(words)} was killed, as for lack of memory{_said(printed)}")
    if status:
        found = f"{shlex.join(words)} ended with exit code {status}{_said(printed)}"
        raise CaseError("command_failed", case, found, FAILED)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and those that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def _said(printed: Path) -> str:
    """Return the last lines of what was printed, to add to a message."""
    with printed.open("rb") as file:
        file.seek(max(0, printed.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    last = [line.strip() for line in lines if line.strip()][-SHOWN:]
    return f"; it said: {' | '.join(last)}" if last else ", and said nothing"
