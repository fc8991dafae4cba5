"""Prepared arrays on a node's own disk: copied once, shared by the trainings of the node, removed by the last of them.

A training reads pieces of 20 KB here and there, which a file system that many nodes share is slow at, and reads each of
them many times. A copy is taken for the file if it has its size and time, and is not read again to see whether it is.
"""

import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from labelloop.base.errors import UserError
from labelloop.base.files import atomic, digest, stamp
from labelloop.base.heartbeat import counted
from labelloop.base.locks import TakenError, hold, private_folder
from labelloop.inference.prepared import SUFFIX
from labelloop.training.job import TrainingJob

log = logging.getLogger(__name__)

FILLED = 0.9
"""Share of what the disk has free that copies may take."""
COPIERS = 4
"""Files copied at once."""
Place = Callable[[Path], Path]
"""Returns where the files of a folder are to be read."""
_numbers = itertools.count()


@contextmanager
def staged_job(job: TrainingJob) -> Iterator[TrainingJob]:
    """Yield a training with its arrays where ``job.stage`` says, for the time of the block."""
    names = [f"{case.case}{SUFFIX}" for case in job.cases]
    labels = [job.labels / name for name in names if (job.labels / name).is_file()]  # unlabeled cases have none
    with staged([*(job.images / name for name in names), *labels], job.stage) as place:
        yield replace(job, images=place(job.images), labels=place(job.labels))


@contextmanager
def staged(files: Sequence[Path], stage: str | None) -> Iterator[Place]:
    """Copy ``files`` to a folder on this node's own disk for the time of the block; yield where each folder's lie.

    Where that is impossible, they are read where they are, and the log says why.

    Args:
        stage: the folder; may hold environment variables of the node, e.g. ``$TMPDIR``. None: nothing is copied.
    """
    root = _root(stage) if stage else None
    if root is None:
        yield _in_place
        return
    lock = f"copies of arrays in {root}"
    with _held(root / "copying.lock", lock):
        mine = root / f"{os.getpid()}-{next(_numbers)}.user"
        using = hold(mine, lock)
        place = _copied(files, root)
    try:
        yield place
    finally:
        using.release()
        with _held(root / "copying.lock", lock):
            if not _is_used(root):
                for folder in [path for path in root.iterdir() if path.is_dir()]:
                    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(path: Path, what: str) -> Iterator[None]:
    lock = hold(path, what)
    try:
        yield
    finally:
        lock.release()


def _in_place(folder: Path) -> Path:
    return folder


def _root(stage: str) -> Path | None:
    """Return this user's folder for copies in ``stage``; None when there can be none."""
    folder = Path(os.path.expandvars(stage))
    if not folder.is_dir():
        log.warning("stage: %s: no such folder on this node; arrays are read where they are", stage)
        return None
    try:
        return private_folder("stage", folder)
    except (UserError, OSError) as error:
        log.warning("stage: %s; arrays are read where they are", error)
        return None


def _copied(files: Iterable[Path], root: Path) -> Place:
    """Copy those of ``files`` that are not there; say where to read: in place when they do not fit."""

    def place(folder: Path) -> Path:
        return root / digest(str(folder.resolve()))

    targets = {file: place(file.parent) / file.name for file in files}
    if not all(file.is_file() for file in targets):
        return _in_place  # whoever reads them will say which is missing
    missing = [file for file, target in targets.items() if stamp(target) != stamp(file)]
    needed, free = sum(file.stat().st_size for file in missing), shutil.disk_usage(root).free
    if needed > FILLED * free:
        log.warning(
            "stage: %.1f GB do not fit into the %.1f GB that are free in %s; arrays are read where they are",
            needed / 1e9, free / 1e9, root,
        )  # fmt: skip
        return _in_place
    try:
        with ThreadPoolExecutor(COPIERS) as pool, counted("array to copy", len(missing)) as count:
            try:
                for _ in pool.map(_copy, missing, [targets[file] for file in missing]):
                    count.advance()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except (UserError, OSError) as error:
        log.warning("stage: %s; arrays are read where they are", error)
        return _in_place
    log.info("stage: %d arrays in %s, %d of them copied now, %.1f GB", len(targets), root, len(missing), needed / 1e9)
    return place


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with atomic(target) as temporary:
        shutil.copy2(source, temporary)  # with its time


def _is_used(root: Path) -> bool:
    """Say whether another training of this node uses the copies; forget those that have ended, however they did."""
    used = False
    for file in root.glob("*.user"):
        try:
            hold(file, "copies of arrays", wait=False).release()
        except TakenError:
            used = True
        else:
            file.unlink(missing_ok=True)
    return used
