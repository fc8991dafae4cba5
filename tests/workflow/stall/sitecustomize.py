"""Loaded by every Python process whose PYTHONPATH names this folder: one stops in the middle of writing a file.

STALLS is JSON: a list of patterns, counts and marks. The process that has written the count-th file whose path matches
a pattern cuts its temporary file in half, writes the path into the file ``mark``, and waits to be killed, or until
``<mark>.go`` lies there: then it goes on with the whole file. Where a mark lies already, nothing stops.
"""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labelloop.base import files

LONGEST_S = 600
atomic, written = files.atomic, Counter()


@contextmanager
def stalling(path: str | Path) -> Iterator[Path]:
    with atomic(path) as temporary:
        yield temporary
        for pattern, count, mark in json.loads(os.environ["STALLS"]):
            if re.search(pattern, str(path)):
                written[mark] += 1
                if written[mark] == count and not Path(mark).exists():
                    stall(temporary, Path(mark))


def stall(temporary: Path, mark: Path) -> None:
    whole, end = temporary.read_bytes(), time.monotonic() + LONGEST_S
    os.truncate(temporary, len(whole) // 2)
    mark.write_text(str(temporary))
    while time.monotonic() < end and not mark.with_suffix(".go").exists():
        time.sleep(0.1)
    temporary.write_bytes(whole)


files.atomic = stalling
