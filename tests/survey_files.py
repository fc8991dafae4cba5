"""The survey in a folder of results, as a run does it, for tests of what comes after it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from labelloop.base.classes import ClassScheme
from labelloop.base.paths import Paths, manifest_of
from labelloop.base.shards import Ledger
from labelloop.base.tables import write_table
from labelloop.cases.survey import merge_survey, survey_shard
from labelloop.cases.table import Case
from labelloop.steps.cases import survey
from labelloop.steps.common import SurveyTables

KINDS = ("geometry", "annotation", "quarantine", "profiles")


def do_survey(rows: Sequence[Mapping], results: Path, shard: str, classes: str = "flare", **options) -> SurveyTables:
    """Survey the cases of a shard; return its tables."""
    paths = Paths(str(results))
    tables = {kind: Path(paths.survey(kind, shard)) for kind in ("cases", *KINDS)}
    survey(rows, classes, **tables, manifest=Path(manifest_of(paths.surveyed, shard)), **options)
    return tables_of(results, shard)


def tables_of(results: Path, *shards: str, rows: Sequence[Mapping] | None = None) -> SurveyTables:
    """Return the tables of shards, in which ``rows`` take the place of the first one's; with ``upright``, if it is."""
    paths = Paths(str(results))
    if rows is not None:
        write_table(paths.survey("cases", shards[0]), list(rows), "cases")
    files = {
        kind: [Path(paths.survey(kind, shard)) for shard in shards] for kind in ("cases", "geometry", "annotation")
    }
    upright = Path(paths.table("upright"))
    return SurveyTables(**files, upright=upright if upright.is_file() else None)


def survey_to(prefix: Path, cases: Sequence[Case], scheme: ClassScheme) -> None:
    """Survey cases; write a table of each kind, ``<prefix>.<kind>.csv``."""
    found = survey_shard(cases, scheme, Ledger(prefix.parent, prefix.name))
    for kind, table in found.items():
        write_table(f"{prefix}.{kind}.csv", table, kind)


def merge_to(folder: Path, prefixes: Sequence[Path], *more) -> None:
    """Merge the tables of several prefixes; write one of each kind, ``<folder>/<kind>.csv``."""
    merged = merge_survey({kind: [Path(f"{prefix}.{kind}.csv") for prefix in prefixes] for kind in KINDS}, *more)
    for kind, table in merged.items():
        write_table(folder / f"{kind}.csv", table, kind)
