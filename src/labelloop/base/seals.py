"""Seals: which bytes a set of finished files had, so that a change from outside is noticed whatever its date says.

A seal is a hidden JSON file beside the files. Of each it notes the content hash, and size and times as they were then.
While these are the same the file is; where they differ, as after ``cp -r``, the content decides.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labelloop.base.files import sha256, write_text

Stamp = list[int]


@dataclass
class Finding:
    """What a look at sealed files found.

    Args:
        seal: the seal.
        wrong: file to what is wrong with it: gone or altered.
        moved: content as sealed, but with other times: to be noted anew by :meth:`renew`.
    """

    seal: Path
    wrong: dict[str, str] = field(default_factory=dict)
    moved: dict[str, tuple[str, Stamp]] = field(default_factory=dict)

    def renew(self) -> None:
        """Note the times that the look saw, so that the next one need not read these files."""
        if self.moved and not self.wrong:
            _write(self.seal, (_read(self.seal) or {}) | self.moved)


def seal_of(path: Path) -> Path:
    """Return the path of the seal of what ``path`` stands for: a manifest, a model's ``model.json``."""
    return path.with_name(f".{path.name}.seal")


def put_seal(path: Path, folder: Path, hashes: Mapping[str, str]) -> None:
    """Write the seal of ``path``: the files ``hashes`` of ``folder``, by name, with their content hashes."""
    _write(seal_of(path), {name: (digest, _stamp(folder / name)) for name, digest in hashes.items()})


def put_seal_of_files(path: Path, folder: Path, names: Iterable[str]) -> None:
    """As :func:`put_seal`, for files whose hashes are not known."""
    put_seal(path, folder, {name: sha256(folder / name) for name in names})


def look(path: Path, folder: Path) -> Finding | None:
    """Hold the sealed files against their seal; None when there is no seal that can be read."""
    sealed = _read(seal_of(path))
    if sealed is None:
        return None
    found = Finding(seal_of(path))
    for name, (digest, stamp) in sealed.items():
        now = _stamp(folder / name)
        if now == stamp:
            continue
        if not now:
            found.wrong[name] = "gone"
        elif now[:1] != stamp[:1] or not _holds(folder / name, digest):
            found.wrong[name] = "altered"
        else:
            found.moved[name] = (digest, now)
    return found


def as_sealed(path: Path, folder: Path, name: str) -> bool:
    """Say whether one file holds what the seal of ``path`` says; also when there is no seal."""
    sealed = (_read(seal_of(path)) or {}).get(name)
    return sealed is None or _holds(folder / name, sealed[0])


def _holds(file: Path, digest: str) -> bool:
    try:
        return sha256(file) == digest
    except OSError:
        return False


def _stamp(file: Path) -> Stamp:
    """Return size (bytes), modification and change time (ns). No program can set the last one back."""
    try:
        status = file.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read(seal: Path) -> dict[str, tuple[str, Stamp]] | None:
    try:
        content = json.loads(seal.read_bytes())
        return {str(name): (str(digest), list(stamp)) for name, (digest, stamp) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _write(seal: Path, content: Mapping[str, tuple[str, Stamp]]) -> None:
    write_text(seal, json.dumps(content, separators=(",", ":"), sort_keys=True) + "\n")
