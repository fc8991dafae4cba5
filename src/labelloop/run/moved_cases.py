"""Results of a collection that has another number of shards now: a case's results go on in the shard that it is in.

The number of shards follows from that of cases (:func:`labelloop.base.shards.assign_shards`). What a journal says of a
case is found again by its content, so a row that is handed over wrongly costs time, and nothing else.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from labelloop.base.files import atomic, explained
from labelloop.base.locks import TakenError, hold
from labelloop.base.paths import MANIFESTS
from labelloop.base.shards import CASE_OF_ROW
from labelloop.base.wording import count
from labelloop.run.run import Run

JOURNAL = re.compile(r"\.((?:train|test)-\d+)\.jsonl")


def move_cases(run: Run) -> list[str]:
    """Hand what journals say of cases over to those of their shards now; return in words what was moved.

    Call it with the results claimed, before any job. Without another number of shards since the survey, no journal is
    looked into.
    """
    surveyed = {shard for shard, _ in _journals(Path(run.paths.surveyed, MANIFESTS))}
    if not surveyed or surveyed == set(run.shards.all):
        return []
    shard_of = {case.case: shard for shard, cases in run.shards.cases.items() for case in cases}
    moved = [_move(folder, shard_of) for folder in sorted(Path(run.results).rglob(MANIFESTS))]
    total = sum(moved)
    return [f"{count(total, 'result')} of cases that are in another shard now: taken over"] if total else []


def _journals(folder: Path) -> list[tuple[str, Path]]:
    """Return the shards that have a journal in a folder of manifests, with their journals."""
    found = [(JOURNAL.fullmatch(path.name), path) for path in sorted(folder.glob(".*.jsonl"))]
    return [(name[1], path) for name, path in found if name]


def _move(folder: Path, shard_of: Mapping[str, str]) -> int:
    """Hand the rows of one step over; return how many. Where a job of a former run still works, nothing is moved."""
    journals, there, moved = _journals(folder), set(shard_of.values()), 0
    with ExitStack() as locks:
        try:
            for _, journal in journals:
                locks.callback(hold(journal.with_suffix(".lock"), str(journal), wait=False).release)
        except TakenError:
            return 0
        for shard, journal in journals:
            rows: dict[str, list[bytes]] = defaultdict(list)
            for line in journal.read_bytes().splitlines():
                name = CASE_OF_ROW.match(line)
                if name:
                    rows[shard_of.get(json.loads(name[1]), shard)].append(line + b"\n")
            kept = rows.pop(shard, [])
            for place, lines in rows.items():
                with explained(journal), journal.with_name(f".{place}.jsonl").open("ab") as other:
                    other.write(b"\n" + b"".join(lines))  # the last line there may be one that a kill cut short
                moved += len(lines)
            if shard not in there:
                journal.unlink()
            elif rows:
                with atomic(journal) as temporary:
                    temporary.write_bytes(b"".join(kept))
    return moved
