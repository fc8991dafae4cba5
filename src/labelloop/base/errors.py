"""The two ways in which labelloop says no, how errors of the machine are told from ours, and what may be meant."""

import difflib
from collections.abc import Iterable


class CaseError(Exception):
    """One case cannot be used, because of what is in its files. It is set aside and the run goes on.

    No other error blames a case: a ValueError or KeyError is a fault of ours.

    Args:
        code: stable reason code, e.g. ``image_truncated`` (see ``labelloop.cases.survey.REASONS``).
        file: the file at fault; empty where it is not known.
        found: what was found.
        action: what the user can do about it.
        common: most cases of a collection may have it, e.g. too many voxels for the memory that is allowed. Of any
            other reason, cases do not fail in such numbers by themselves.
    """

    def __init__(self, code: str, file: str, found: str, action: str, common: bool = False):
        super().__init__(": ".join(part for part in (code, str(file), f"{found}. {action}") if part))
        self.code, self.file, self.found, self.action, self.common = code, str(file), found, action, common


class UserError(Exception):
    """The run as a whole cannot start or go on; the message says what was found, expected and what to do."""

    def lines(self, key: str) -> list[str]:
        """Return the lines of the message, each after the key that is at fault."""
        return [f"{key}: {line}" for line in str(self).splitlines()]


class NotTriedError(RuntimeError):
    """A case could not even be tried, because of another one."""


MACHINE = (
    "out of memory", "ALLOC_FAILED", "allocate memory", "bad_alloc", "bad allocation", "CUDA error", "CUDA driver",
    "CUDA initialization", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error", "NVML",
)  # fmt: skip
"""What errors of torch and ITK say, which know one kind only, when memory or the GPU is at fault."""


def may_pass(error: Exception) -> bool:
    """Say whether an error tells of the machine: memory, the GPU, the disk. All others are faults of ours."""
    if isinstance(error, MemoryError | OSError | NotTriedError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in MACHINE)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known name most like ``name``, or ``; known: ...`` when none is."""
    names = sorted(map(str, known))  # of a file that is not checked yet, a name may be a number
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names) or 'none'}"
