"""Loaded by every Python process whose PYTHONPATH names this folder: a job's notes each file that it opens.

It appends paths to a file of its own, ``$OPENED/<process>``. Files that a library opens without Python (arrays of
blosc2, what ITK writes) are not seen.
"""

import os
import sys
from pathlib import Path

if "OPENED" in os.environ and any(".snakemake/scripts" in argument for argument in sys.orig_argv):
    notes = os.open(Path(os.environ["OPENED"]) / str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str):
            os.write(notes, f"{Path.cwd() / arguments[0]}\n".encode())

    sys.addaudithook(note)
