"""Atomic writes and content hashes: a killed job leaves the old file, the new file, or nothing."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where it is there, is ten times as fast


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place when the block succeeds.

    The temporary name keeps all suffixes of ``path``, because writers choose their format by them. It follows from
    ``path``, so that what a killed job left behind is removed when the file is made again.
    """
    path = Path(path)
    folder = path.parent / f".tmp-{path.name}"
    shutil.rmtree(folder, ignore_errors=True)  # some writers would go on in half a file that they find
    folder.mkdir(parents=True)
    temporary = folder / path.name
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_yaml(path: str | Path) -> Any:
    """Return the content of a YAML file. Raises yaml.YAMLError when it is none."""
    return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_LOADER)


def sha256(path: str | Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def stamp(path: str | Path) -> list[int] | None:
    """Return size (bytes) and modification time (ns) of a file; None when there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def digest(content: Any) -> str:
    """Return a short stable fingerprint of anything JSON can hold (dictionary order does not matter)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def link(source: str | Path, target: str | Path) -> None:
    """Put ``source`` at ``target`` atomically, as a hard link where the file system allows, else as a copy."""
    with atomic(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copy2(source, temporary)
