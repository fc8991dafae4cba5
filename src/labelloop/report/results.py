"""The files of a run as the report reads them: what is there, what is not, and the fingerprint of each."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pandas as pd

from labelloop.base.errors import UserError
from labelloop.base.files import sha256
from labelloop.base.paths import Paths
from labelloop.base.tables import TABLES, read_table

T = TypeVar("T")


@dataclass
class Results:
    """A results folder. Files that were read, and parts that are missing or unreadable, are remembered.

    Args:
        root: the folder.
        handed: files, and folders with their files, that may be read; None: whatever is there.
    """

    root: Path
    handed: frozenset[Path] | None = None
    used: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    paths: ClassVar[Paths] = Paths(".")
    """Where its files lie, relative to the root."""

    def table(self, relative: str | Path, kind: str) -> pd.DataFrame:
        """Return a table of :data:`labelloop.base.tables.TABLES`; empty when it is missing or unreadable."""
        table = self._read(relative, lambda path: read_table(path, kind))
        return pd.DataFrame(columns=list(TABLES[kind])) if table is None else table

    def json(self, relative: str | Path) -> dict[str, Any]:
        """Return a JSON object; empty when it is missing or unreadable."""
        content = self._read(relative, lambda path: json.loads(path.read_text(encoding="utf-8")))
        return content if isinstance(content, dict) else {}

    def json_lines(self, relative: str | Path) -> list[dict[str, Any]]:
        """Return the objects of a JSON lines file, without a last line that a kill cut short."""
        return self._read(relative, lambda path: _parse_lines(path.read_text(encoding="utf-8"))) or []

    def bytes(self, relative: str | Path) -> bytes | None:
        """Return a file's bytes, or None."""
        return self._read(relative, Path.read_bytes)

    def files(self, page: Path) -> list[dict[str, str]]:
        """Return name, link from ``page`` and sha256 of every file read."""
        folder = page.resolve().parent
        return [
            {"name": name, "href": Path(os.path.relpath(path.resolve(), folder)).as_posix(), "sha256": sha256(path)}
            for name, path in sorted(self.used.items())
        ]

    def __contains__(self, relative: str | Path) -> bool:
        path = self.root / relative
        return path.is_file() and (self.handed is None or not self.handed.isdisjoint([path, *path.parents]))

    def _read(self, relative: str | Path, parse: Callable[[Path], T]) -> T | None:
        path = self.root / relative
        name = Path(relative).name if Path(relative).is_absolute() else Path(relative).as_posix()
        if path.is_relative_to(self.root):
            name = path.relative_to(self.root).as_posix()
        if relative not in self:
            self.missing[name] = "not there"
            return None
        try:
            content = parse(path)
        except (UserError, ValueError) as error:  # ValueError: not CSV, not JSON, not text
            self.missing[name] = f"unreadable: {str(error).replace(str(path), name)}"
            return None
        self.used[name] = path
        return content


def _parse_lines(text: str) -> list[dict[str, Any]]:
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
