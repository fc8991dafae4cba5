"""Results as lines of JSON, each written as soon as it is known; steps that were tried are not tried again."""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

LONGEST_ERROR = 2000


class Step(NamedTuple):
    """One measurement: its name, unique within its part, and what measures; the result is data that JSON can hold."""

    name: str
    measure: Callable[[], dict[str, Any]]


class Record:
    """The file of results of one part.

    Args:
        path: file of JSON lines; other parts write to it, too, but not at the same time.
        session: of this call. What failed, or ended the process, in an earlier session is tried again.
    """

    def __init__(self, path: Path, part: str, session: str):
        self._path, self._part, self._session = path, part, session

    def append(self, **content: Any) -> None:
        """Write a line; it is on the disk when this returns."""
        line = {"part": self._part, "session": self._session, "at": round(time.time(), 1), **content}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def settled(self) -> set[str]:
        """Return the steps that are done, and those that were begun in this session, however they ended."""
        mine = [line for line in read(self._path) if line["part"] == self._part and "step" in line]
        return {line["step"] for line in mine if line["status"] == "done" or line["session"] == self._session}

    def run(self, steps: Iterable[Step], until: float, healthy: Callable[[], bool]) -> bool:
        """Take the steps that are left, one after the other; return whether all were taken.

        A step that fails is a line, not an end.

        Args:
            until: time (seconds since the epoch) after which no step begins.
            healthy: says whether the device still answers; if not, the process ends, and the next goes on.

        Raises:
            SystemExit: when the device does not answer any more.
        """
        settled = self.settled()
        left = [step for step in steps if step.name not in settled]
        for number, step in enumerate(left):
            if time.time() >= until:
                self.append(left_out=[other.name for other in left[number:]])
                return False
            self.append(step=step.name, status="begun")
            began = time.perf_counter()
            try:
                outcome = {"status": "done", "result": step.measure()}
            except Exception as error:
                said = f"{type(error).__name__}: {error}"[:LONGEST_ERROR]
                trace = "".join(traceback.format_exception(error))[-LONGEST_ERROR:]
                outcome = {"status": "failed", "error": said, "trace": trace}
            self.append(step=step.name, seconds=round(time.perf_counter() - began, 3), **outcome)
            print(f"{self._part}: {step.name}: {outcome['status']}", flush=True)
            if outcome["status"] == "failed" and not healthy():
                raise SystemExit("the device does not answer any more")
        return True


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results; one that a kill cut short is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def results(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the last line of each (part, step): done, failed, or begun and never ended."""
    return {(line["part"], line["step"]): line for line in lines if "step" in line}
