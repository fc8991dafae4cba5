"""A small round of ``benchmarks/faults/fuzz.py``: damaged and strange files are read or refused, nothing else."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "faults"))

from fuzz import fuzz


def test_changed_files_are_read_or_refused_in_words(tmp_path):
    doors = fuzz(tmp_path, count=170, seed=7)
    assert [fault for door in doors.values() for fault in door.faults] == []
    assert all(door.read_well + door.refused == 10 for door in doors.values())
