"""Loaded by every Python process whose PYTHONPATH names this folder: one stops in the middle of writing a file.

The process that has written the STALL_COUNT-th file whose path matches STALL_AT cuts its temporary file in half, writes
the path into STALL_MARK, and waits to be killed.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labelloop import files

atomic, written = files.atomic, []


@contextmanager
def stalling(path: str | Path) -> Iterator[Path]:
    with atomic(path) as temporary:
        yield temporary
        if re.search(os.environ["STALL_AT"], str(path)):
            written.append(path)
            if len(written) == int(os.environ["STALL_COUNT"]):
                os.truncate(temporary, temporary.stat().st_size // 2)
                Path(os.environ["STALL_MARK"]).write_text(str(temporary))
                time.sleep(600)


files.atomic = stalling
