"""Shards and their ledgers: many cases in one job, each case finished, failed or untouched, never half done.

A shard's job walks its cases. Every case has a *key*, the fingerprint of all that its result is made from. The ledger
remembers key and content hash of each result, so that a killed job resumes with the next case, a repeated job does
nothing, and a file that was deleted or altered is made anew. Snakemake decides what might be stale, the ledger what is.

Why a case fails matters. What is wrong with the case itself is a result: the case is set aside. Memory that ran out, a
GPU or a disk that was away may be back at the next try: then the job fails after its last case and leaves no manifest,
and the next job does these cases alone. A case that goes on failing is set aside, too, or a scan that is too large for
the GPU would stop the run for good. Any other error is a fault of ours: it stops the job, and the case is not set
aside. Nor are most cases of a job at once: whatever makes them fail, it is hardly the cases.
"""

import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from labelloop.base.errors import CaseError, NotTriedError, UserError, may_pass
from labelloop.base.files import explained, sha256, write_text
from labelloop.base.heartbeat import finished
from labelloop.base.locks import hold
from labelloop.base.paths import MANIFESTS, folder_of, journal_of, manifest_of, shard_of
from labelloop.base.seals import Finding, as_sealed, look, put_seal
from labelloop.base.tables import TABLES, read_table, write_table
from labelloop.base.wording import count

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

TRIES = 2
"""So often a case may fail for a reason that may pass; then it is set aside: a job and its retry.

Twice as often, so that somebody has seen it and started the run again, where most cases of a small shard fail: then it
is rather the machine that is at fault.
"""
MANY = 4
"""Of so many cases or more, most do not fail by themselves: they are not set aside."""
MOST_SHARDS = 256
"""Of a role. Each is a job of every step, and Snakemake takes some milliseconds for each job before the first one."""
CASE_OF_ROW = re.compile(rb'{"case": ("(?:[^"\\\\]|\\\\.)*")')
"""Begins a row of a journal, whose keys are sorted."""
OURS = "a fault of labelloop, not of the case"


def assign_shards(cases: Sequence[tuple[str, str]], size: int) -> dict[str, str]:
    """Assign (case, role) pairs to shards named ``<role>-<number>``; return ``{case: shard}``.

    A case's shard follows from its id and the number of shards alone. That number is a power of two, so that adding
    a case leaves every other case where it is, except when the collection outgrows it. Beyond :data:`MOST_SHARDS` of a
    role, shards grow instead.
    """
    counts: dict[str, int] = {}
    for _, role in cases:
        counts[role] = counts.get(role, 0) + 1
    needed = {role: 1 << max(0, (-(-count // size) - 1).bit_length()) for role, count in counts.items()}
    shards = {role: min(MOST_SHARDS, number) for role, number in needed.items()}
    return {case: f"{role}-{zlib.crc32(case.encode()) % shards[role]:03d}" for case, role in cases}


class Ledger:
    """Results of one step for the cases of one shard. One process at a time: another one waits here.

    Args:
        folder: where the case files go; ``<folder>/shards/<shard>.csv`` is the manifest, written by :meth:`close`.
        shard: shard name.
        tries: see :data:`TRIES`; 0: whatever failed is set aside at once.
        resume: keep what an earlier job finished. Else every case is done anew; what there is stays where that fails.

    ``lacking`` says of cases that are done what else was to be made of them, and failed.
    """

    def __init__(self, folder: str | Path, shard: str, tries: int = TRIES, resume: bool = True):
        self.folder, self.shard, self._tries = Path(folder), shard, tries
        self.manifest = Path(manifest_of(folder, shard))
        self._journal = Path(journal_of(self.manifest))
        self._lock = hold(self._journal.with_suffix(".lock"), f"{self.folder}, shard {shard}")
        self._known: dict[str, dict] = {}
        self._rows: dict[str, dict] = {}
        self._resume = resume
        self.lacking: dict[str, str] = {}
        with explained(self._journal):
            if self._journal.is_file():
                self._read_journal()

    @classmethod
    def of(cls, manifest: str | Path) -> "Ledger":
        """Return the ledger that writes ``manifest``."""
        return cls(folder_of(manifest), shard_of(manifest))

    def _read_journal(self) -> None:
        content = self._journal.read_bytes()
        if not content.endswith(b"\n"):  # else the next line would be lost with the one that a kill cut short
            with self._journal.open("ab") as journal:
                journal.write(b"\n")
        rows = _rows_of(content)
        damaged = rows[:-1].count(None)  # the last line may be one that a kill cut short
        if damaged:
            log.warning("%s: %d damaged lines; their cases are looked at anew", self._journal, damaged)
        self._known = {row["case"]: row for row in rows if row}

    def run(self, case: str, key: str, work: Callable[[], tuple[Path | None, dict]]) -> dict:
        """Do ``work`` for ``case`` unless its result with the same ``key`` is intact; return the case's row.

        ``work`` returns the file it wrote (or None) and a JSON-able dictionary of results to remember as ``extra``.
        :class:`CaseError` alone says that something is wrong with the case. What may pass is counted, except a
        :class:`NotTriedError`. Neither stops the shard.

        Raises:
            UserError: nothing more can be done, e.g. because the disk is full.
            Exception: any other error of ``work``: a fault of ours. With no ``tries``, it is told and counted.
        """
        if self.keep(case, key):
            return self._rows[case]
        known = self._known.get(case)
        if self._resume and known and known["key"] == key and known["status"] == "done":
            log.warning("%s: %s was deleted or altered; made anew", case, self.folder / known["file"])
        row = self._try(case, key, work)
        if row["status"] == "failed" and known and self._is_result(known, key):  # to be done anew, in vain
            self.lacking[case], row = row["reason"], known
        elif row["status"] == "failed" and known and known["file"]:  # made of what the case was before
            (self.folder / known["file"]).unlink(missing_ok=True)
        with explained(self._journal), self._journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(row, sort_keys=True) + "\n")
        self._rows[case] = row
        finished("case")
        return row

    def add(self, case: str, work: Callable[[], object]) -> None:
        """Do more ``work`` for a case that is done: files beside its own.

        When that fails, it is told (``lacking``). The case stays done: its own file is as good as before.

        Raises:
            UserError: nothing more can be done, e.g. because the disk is full.
        """
        try:
            work()
        except CaseError as error:
            log.warning("%s lacks something: %s", case, error)
            self.lacking[case] = str(error)
        except UserError:
            raise
        except Exception as error:
            log.exception("%s lacks something", case)
            self.lacking[case] = f"{type(error).__name__}: {error}"

    def _try(self, case: str, key: str, work: Callable[[], tuple[Path | None, dict]]) -> dict:
        """Do ``work``, and return the row that says what became of it."""
        known = self._known.get(case)
        row: dict[str, Any]
        row = {"case": case, "key": key, "status": "done", "file": "", "sha256": "", "reason": "", "extra": {}}
        try:
            path, row["extra"] = work()
            if path is not None:
                row |= {"file": str(Path(path).relative_to(self.folder)), "sha256": sha256(path)}
        except CaseError as error:
            row |= {"status": "failed", "reason": str(error), "code": "" if error.common else error.code}
            log.warning("%s set aside: %s", case, error)
        except UserError:
            raise
        except Exception as error:
            ours = not may_pass(error)
            if ours and self._tries:
                error.add_note(self._told(case))
                raise
            row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}{f' ({OURS})' if ours else ''}"}
            log.exception("%s failed", case)
            before = self.failures(case) if known and known["key"] == key else 0
            row["failures"] = before + (not isinstance(error, NotTriedError))
        return row

    def _told(self, case: str) -> str:
        return (
            f"{self.folder}, shard {self.shard}, case {case}: {OURS}. The job stops, and the case is not set aside; "
            "what is finished is kept. Please report this with the log. Until it is fixed, the run can go on without "
            "the case: take its row out of the case table."
        )

    def keep(self, case: str, key: str) -> bool:
        """Keep the result of an earlier job if it has the same ``key`` and is intact; say whether that is so."""
        known = self._known.get(case)
        if not self._resume or not known or not self._is_result(known, key):
            return False
        self._rows[case] = known
        finished("case")
        return True

    def _is_result(self, row: dict, key: str) -> bool:
        return row["key"] == key and row["status"] == "done" and self._intact(row)

    def failures(self, case: str) -> int:
        """Return how often a case has failed, up to now, for a reason that may pass."""
        return self._known.get(case, {}).get("failures", 0)

    def close(self) -> None:
        """Write the manifest of all cases run. The journal still knows those that left, as they may come back.

        Raises:
            UserError: when cases failed for a reason that may pass, and may be tried again, or most of them for one
                reason. Then there is no manifest.
        """
        left = {case: row for case, row in self._known.items() if case not in self._rows and row["status"] == "done"}
        lines = [json.dumps(row, sort_keys=True) + "\n" for _, row in sorted((left | self._rows).items())]
        write_text(self._journal, "".join(lines))
        self._refuse_what_may_pass()
        self._refuse_what_most_have()
        rows = [row | {"reason": self.lacking.get(case, row["reason"])} for case, row in self._rows.items()]
        write_table(self.manifest, [{k: row[k] for k in TABLES["manifest"]} for row in rows], "manifest")
        self._seal()
        self._lock.release()
        done = sum(row["status"] == "done" for row in self._rows.values())
        log.info("shard %s: %s done, %d set aside", self.shard, count(done, "case"), len(self._rows) - done)

    def _seal(self) -> None:
        files = {row["file"]: row["sha256"] for row in self._rows.values() if row["file"]}
        name = str(self.manifest.relative_to(self.folder))
        put_seal(self.manifest, self.folder, files | {name: sha256(self.manifest)})

    def _refuse_what_may_pass(self) -> None:
        failed = [row for row in self._rows.values() if "failures" in row]
        tries = self._tries * (2 if self._are_most(len(failed), least=1) else 1)
        never = bool(self._tries) and self._are_most(len(failed))
        again = [f"  {row['case']}: {row['reason']}" for row in failed if never or row["failures"] < tries]
        if again:
            listed = "\n".join(again)
            until = "" if never else f", and sets aside what has failed {tries} times"
            self._refuse(
                f"{len(again)} of {len(self._rows)} cases failed for a reason that may pass:\n{listed}\nSee what is in "
                f"the way: memory, the GPU, the disk. All other cases are kept; the next job tries these alone{until}."
            )
        for row in failed if self._tries else ():
            log.warning(
                "%s SET ASIDE: failed %d times for a reason that may pass: %s. To try it again, give --forcerun and "
                "the name of this step's rule.", row["case"], row["failures"], row["reason"],
            )  # fmt: skip

    def _refuse_what_most_have(self) -> None:
        failed = [row for row in self._rows.values() if row["status"] == "failed" and row.get("code")]
        for code, number in Counter(row["code"] for row in failed).items() if self._tries else ():
            if self._are_most(number):
                first = next(row for row in failed if row["code"] == code)
                self._refuse(
                    f"{number} of {len(self._rows)} cases failed for one reason, as {first['case']}:\n  "
                    f"{first['reason']}\nSo many are hardly at fault themselves, and none is set aside. See what they "
                    "have in common: a folder that is away, a step before this one. If it is the cases, take them out "
                    "of the case table."
                )

    def _are_most(self, number: int, least: int = MANY) -> bool:
        return len(self._rows) >= least and 2 * number > len(self._rows)

    def _refuse(self, found: str) -> NoReturn:
        self.manifest.unlink(missing_ok=True)
        self._lock.release()
        raise UserError(f"{self.folder}, shard {self.shard}: {found}")

    def extras(self) -> dict[str, dict]:
        """Return ``{case: extra}`` of the cases that are done."""
        return {case: row["extra"] for case, row in self._rows.items() if row["status"] == "done"}

    def _intact(self, row: dict) -> bool:
        if not row["file"]:
            return True
        path = self.folder / row["file"]
        return path.is_file() and sha256(path) == row["sha256"]


def _rows_of(journal: bytes) -> list[dict | None]:
    """Return the rows of a journal; None for a line that is none."""
    lines = [line.strip(b"\0 \r") for line in journal.split(b"\n")]  # a disk that lost power leaves zeros
    return [_row_of(line) for line in lines if line]


def _row_of(line: bytes) -> dict | None:
    """Return a row of a journal; None for a line that is none: cut short by a kill, or damaged from outside."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    fields = {"case": str, "key": str, "status": str, "file": str, "sha256": str, "reason": str, "extra": dict}
    if not isinstance(row, dict) or not isinstance(row.get("failures", 0), int):
        return None
    return row if all(isinstance(row.get(name), kind) for name, kind in fields.items()) else None


def read_manifests(paths: Iterable[str | Path]) -> "pd.DataFrame":
    """Return the rows of several manifests, indexed by case, with ``file`` made a full path.

    Raises:
        UserError: when a manifest is not as its job wrote it.
    """
    import pandas as pd

    tables = []
    for path in map(Path, paths):
        folder = folder_of(path)
        if path.is_file() and not as_sealed(path, folder, str(path.relative_to(folder))):
            raise UserError(f"{path}: altered while the run goes. Type the same command again: it is made anew.")
        table = read_table(path, "manifest")
        table["file"] = [str(folder / f) if f else "" for f in table["file"]]
        tables.append(table)
    merged = pd.concat(tables) if tables else pd.DataFrame(columns=["case"])
    return merged.set_index("case", drop=False)


def look_at_manifests(
    folders: Iterable[str | Path], shards: Container[str] | None = None
) -> Iterator[tuple[Path, Finding]]:
    """Yield the manifests of ``folders`` and what is wrong with them and the files that they list.

    A manifest without a seal is damaged, or of an older version.

    Args:
        shards: those there are; manifests of others are left over from a collection of another size. All without.
    """
    for folder in map(Path, folders):
        for manifest in sorted(folder.glob(f"{MANIFESTS}/*.csv")):
            if shards is not None and shard_of(manifest) not in shards:
                continue
            found = look(manifest, folder)
            yield manifest, found or Finding(manifest, {str(manifest.relative_to(folder)): "without a seal"})
