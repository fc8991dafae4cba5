"""What a user edits, written into a folder of the user's; no file is ever replaced."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from labelloop.base.errors import UserError
from labelloop.base.files import write_text
from labelloop.base.lookup import OWN, PROJECT, SUFFIXES, find
from labelloop.base.tables import CASES
from labelloop.run.config import RunConfig

EDITED = {"cases": "cases.csv", "recipe": "default", "results": "results/run"}
"""Keys of the configuration that stand in a new ``config.yaml`` as they are; the others are shown behind a ``#``."""
SCHEMA = "# yaml-language-server: $schema="
SCHEMAS = {"recipes": "recipe", "classes": "classes", "datasets": "dataset"}
EXAMPLE: tuple[Mapping[str, str], ...] = (
    {"case": "a001", "image": "scans/a001_0000.nii.gz", "label": "labels/a001.nii.gz", "dataset": "flare22"},
    {"case": "a002", "image": "scans/a002_0000.nii.gz", "dataset": "flare22"},
    {
        "case": "b001", "image": "scans/b001_0000.nii.gz", "label": "labels/b001.nii.gz", "dataset": "flare23",
        "patient": "p7", "annotated": "liver;tumor",
    },
    {
        "case": "t001", "image": "scans/t001_0000.nii.gz", "label": "labels/t001.nii.gz", "dataset": "flare22",
        "role": "test",
    },
)  # fmt: skip
"""Labeled, unlabeled, with two classes annotated, tested on."""


def write_project(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Write config.yaml, an example of a case table and the profiles; yield each file, and whether it is new.

    Raises:
        UserError: the folder cannot be written.
    """
    texts = {Path("config/config.yaml"): _config(), Path("config/cases.example.csv"): _example()}
    for file in sorted((PROJECT / "profiles").rglob("*.yaml")):
        texts[file.relative_to(PROJECT)] = file.read_text(encoding="utf-8")
    for name, text in texts.items():
        new = not (folder / name).exists()
        if new:
            write_text(folder / name, text)
        yield folder / name, new


def copy(kind: str, name: str, file: Path | None = None) -> Path:
    """Copy a recipe, class scheme or data set; return the copy, by default ``config/<kind>/<name>.yaml``.

    A copy in a file of another name is named so.

    Raises:
        UserError: there is no such name, there is such a file already, or it is not to be YAML.
    """
    source = find(kind, name)
    file = file or OWN / kind / source.name
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file}: name a file that ends in .yaml")
    if file.exists():
        raise UserError(f"{file}: there already; name another file")
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    content = lines[1:] if lines[:1] and lines[0].startswith(SCHEMA) else lines
    text = "".join([f"{_schema(SCHEMAS[kind])}\n", *content])
    if file.stem != source.stem:
        text = re.sub(rf"(?m)^name: {re.escape(source.stem)}$", lambda _: f"name: {json.dumps(file.stem)}", text)
    write_text(file, text)
    return file


def _schema(name: str) -> str:
    """Return the line by which editors find the schema of a file, wherever that lies."""
    return SCHEMA + (PROJECT / "workflow" / "schemas" / f"{name}.schema.json").as_uri()


def _config() -> str:
    lines = [
        _schema("config"),
        "# What `labelloop run` does in this folder. Paths start at the folder in which it is typed.",
        "# Options of the command (--cases, --recipe, --results, --config KEY=VALUE) go before what stands here.",
        "",
        "# The case table: one row a case. `labelloop cases` writes it; cases.example.csv is one.",
        *(f"#   {column}: {meaning}" for column, meaning in CASES.items()),
        f"cases: {EDITED['cases']}",
    ]
    for key, field in RunConfig.model_fields.items():
        if key == "cases":
            continue
        default = field.default
        value = EDITED[key] if key in EDITED else json.dumps(list(default) if isinstance(default, tuple) else default)
        lines += ["", f"# {field.description}", f"{key}: {value}" if key in EDITED else f"# {key}: {value}"]
    return "\n".join([*lines, ""])


def _example() -> str:
    rows = [",".join(CASES), *(",".join(row.get(column, "") for column in CASES) for row in EXAMPLE)]
    return "\n".join([*rows, ""])
