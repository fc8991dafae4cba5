"""Loaded by every Python process whose PYTHONPATH names this folder: a disk that fails now and then.

Writing a file whose path ends in FAULT_AT fails as long as the number in the file FAULT_LEFT is above 0, and lowers it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labelloop.base import files

atomic = files.atomic


@contextmanager
def failing(path: str | Path) -> Iterator[Path]:
    with atomic(path) as temporary:
        left = Path(os.environ["FAULT_LEFT"])
        if str(path).endswith(os.environ["FAULT_AT"]) and int(left.read_text()):
            left.write_text(str(int(left.read_text()) - 1))
            raise OSError(5, "Input/output error", str(path))
        yield temporary


files.atomic = failing
