"""The two ways in which labelloop says no, and a hint at what was meant."""

import difflib
from collections.abc import Iterable


class CaseError(Exception):
    """One case cannot be used, because of what is in its files. It is set aside and the run goes on.

    No other error blames a case: a ValueError or KeyError may be a fault of ours.

    Args:
        code: stable reason code, e.g. ``image_truncated`` (see ``labelloop.survey.REASONS``).
        file: the file at fault; empty where it is not known.
        found: what was found.
        action: what the user can do about it.
    """

    def __init__(self, code: str, file: str, found: str, action: str):
        super().__init__(": ".join(part for part in (code, str(file), f"{found}. {action}") if part))
        self.code, self.file, self.found, self.action = code, str(file), found, action


class UserError(Exception):
    """The run as a whole cannot start or go on; the message says what was found, expected and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known name most like ``name``, or ``; known: ...`` when none is."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names) or 'none'}"
