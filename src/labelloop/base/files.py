"""Atomic writes and content hashes: a killed job leaves the old file, the new file, or nothing."""

import errno
import hashlib
import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from labelloop.base.errors import UserError

CANNOT_WRITE = {
    errno.ENOSPC: "Free some space there",
    errno.EDQUOT: "Free some space there, or ask for a larger quota",
    errno.EROFS: "Mount it for writing, or choose another folder",
    errno.EACCES: "Ask its owner for the right to write there, or choose another folder",
    errno.EPERM: "Ask its owner for the right to write there, or choose another folder",
    errno.ENOTDIR: "Choose a folder",
    errno.EEXIST: "Choose a folder",
    errno.ELOOP: "Remove the symbolic link, which is not followed",
}
"""What keeps every file of a folder from being written, and what to do about it."""
FULL_BYTES = 2**20
"""A disk with less free space than this is full: some libraries do not say why they cannot write."""
ABANDONED_S = 24 * 3600
"""Age from which on the temporary files of another machine are taken for those of a dead process."""
_numbers = itertools.count()


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Say in one line why ``path`` cannot be written, and what to do, when the block fails for such a reason.

    Raises:
        UserError: the disk is full or read-only, or the folder may not be written. Other errors pass through.
    """
    path = Path(path)
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = _reason(path, error)
        if number not in CANNOT_WRITE:
            raise
        raise UserError(
            f"{path}: cannot be written: {os.strerror(number)}. {CANNOT_WRITE[number]}, then type the same command "
            "again: what is finished is kept."
        ) from error


def _reason(path: Path, error: OSError | RuntimeError) -> int:
    """Return the errno of what keeps ``path`` from being written; 0 for an error that says nothing of the sort."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return error.errno
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:  # it may be about a file that was read
        place = Path(os.fsdecode(error.filename)) if error.filename else path.parent
        return error.errno if place == path.parent or path.parent in place.parents or place in path.parents else 0
    with suppress(OSError):
        if shutil.disk_usage(path.parent).free < FULL_BYTES:
            return errno.ENOSPC
    return 0


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place when the block succeeds.

    The temporary name keeps all suffixes of ``path``, because writers choose their format by them. It lies in
    ``.tmp-<name>``, in a folder of this process's own, so that two processes do not meet; what a killed process left
    there is removed when the file is written again.

    Raises:
        UserError: as :func:`explained`.
    """
    path = Path(path)
    with explained(path):
        folder = _own_folder(path.parent / f".tmp-{path.name}")
        temporary = folder / path.name
        try:
            with explained(path):  # looks at the disk while the half-written file is still there
                yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another process writes the same file
                folder.parent.rmdir()


def _own_folder(shared: Path) -> Path:
    """Make a folder in ``shared`` that no other process and no other thread uses."""
    with suppress(OSError):
        for left in list(shared.iterdir()):
            if _is_abandoned(left):
                _remove(left)
    folder = shared / f"{os.getpid()}-{next(_numbers)}-{platform.node()}"
    for attempts_left in reversed(range(100)):
        try:
            folder.mkdir(parents=True)
            break
        except (FileNotFoundError, FileExistsError):
            # Another process may remove the empty folder above, before this one is made or while Python looks at it.
            if not attempts_left:
                raise
    return folder


def _is_abandoned(left: Path) -> bool:
    """Say whether the process that made a temporary folder is dead."""
    process, _, host = left.name.partition("-")
    if not process.isdigit():
        return True
    if host.partition("-")[2] != platform.node():
        return time.time() - left.stat().st_mtime > ABANDONED_S
    return not is_alive(int(process))


def is_alive(process: int) -> bool:
    """Say whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


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
