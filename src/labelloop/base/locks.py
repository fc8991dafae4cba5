"""One lock for every folder that is written: the results, a shard, a training, a GPU.

The kernel holds the lock (``flock``) and lets go of it when the process ends, however it ends, also when its node dies:
there is nothing to unlock after a kill. Linux carries it over NFS and, mounted with ``-o flock``, over Lustre. Where a
file system has no locks, work goes on with a warning: a lock file by existence alone would outlive a dead node, and one
that expires would be taken from a live one whose disk was slow. Nothing is half written even then.
"""

import errno
import logging
import os
import platform
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from labelloop.base.errors import UserError
from labelloop.base.files import explained

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What a file system without locks answers."""
POLL_S = 1.0


class TakenError(UserError):
    """Somebody else holds a lock. ``holder`` says who: process, host, Slurm job, since when."""

    def __init__(self, path: Path, holder: str):
        super().__init__(f"{path}: held by {holder}")
        self.holder = holder


class Lock:
    """A lock that this process holds until :meth:`release`, or until it ends."""

    def __init__(self, lock: FileLock | None):
        self._lock = lock

    def release(self) -> None:
        """Let go of the lock; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def hold(path: str | Path, what: str, *, wait: bool = True, poll_s: float = POLL_S) -> Lock:
    """Take the lock at ``path``, whose folder is made when needed.

    A process that waits for a lock may take it several times: it does not wait for itself. Its children never hold it.

    Args:
        what: what the lock guards, for the log.
        wait: wait until another process lets go, and say so; else refuse at once.
        poll_s: seconds between two looks.

    Raises:
        TakenError: another process holds the lock, and ``wait`` is False.
        UserError: the lock file cannot be written.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(
            path, thread_local=False, is_singleton=wait, fallback_to_soft=False, on_acquired=_note_holder
        )  # fmt: skip
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if not wait:
                raise TakenError(path, holder(path)) from None
            log.warning("%s: %s works here; waiting until it ends", what, holder(path))
            lock.acquire(poll_interval=poll_s)
            log.warning("%s: free again; going on", what)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning(
                "%s: the file system has no locks (%s): see to it that no second job works here", what, error.strerror
            )
            return Lock(None)
    return Lock(lock)


def holder(path: str | Path) -> str:
    """Return who took a lock last: process, host, Slurm job, since when."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"


def private_folder(name: str, within: Path | None = None) -> Path:
    """Return a folder ``name`` of this user's own on this machine, for files that their processes share.

    It lies where others write, too: what they may have put there is not used.

    Args:
        within: folder on this machine; by default the one for temporary files.

    Raises:
        UserError: when the folder is a link or somebody else's, or others may write in it.
    """
    shared = (within or Path(tempfile.gettempdir())) / f"labelloop-{os.getuid()}"
    with explained(shared), suppress(FileExistsError):
        shared.mkdir(mode=0o700)
    found = shared.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(
            f"{shared}: not a folder that is yours alone: it is a link or a file, or another user made it or may write "
            "there. Remove it, or set TMPDIR to a folder of your own."
        )
    folder = shared / name
    folder.mkdir(exist_ok=True)
    return folder


def _note_holder(descriptor: int) -> None:
    slurm = os.environ.get("SLURM_JOB_ID")
    job = f", Slurm job {slurm}" if slurm else ""
    text = f"process {os.getpid()} on {platform.node()}{job}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
