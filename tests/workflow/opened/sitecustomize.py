"""Note each file that a job's process opens, in a file of its own: ``$OPENED/<process>``, a path a line.

On the search path of a Snakemake run, Python imports it at the start of each process. Files that a library opens without
Python (blosc2's arrays, what ITK writes) are not seen.
"""

import os
import sys

if "OPENED" in os.environ and any(".snakemake/scripts" in argument for argument in sys.orig_argv):
    notes = os.open(os.path.join(os.environ["OPENED"], str(os.getpid())), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str):
            os.write(notes, os.path.abspath(arguments[0]).encode() + b"\n")

    sys.addaudithook(note)
