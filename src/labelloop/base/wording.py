"""How the report and messages write numbers, names and paths: one place, so that equal things look equal."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

NOTHING = "–"
NAMED = 5
"""Names that a message gives before it says how many more there are."""


def percent(share: float) -> str:
    """Write a share (0 to 1) in percent with one decimal, without the sign."""
    return NOTHING if not _known(share) else f"{100 * share:.1f}"


def points(difference: float) -> str:
    """Write a difference of shares in percentage points with its sign."""
    if not _known(difference):
        return NOTHING
    value = round(100 * difference, 1)
    return "0.0" if value == 0 else f"{value:+.1f}".replace("-", "−")


def number(value: float, digits: int = 4) -> str:
    """Write a measured number with few significant digits and without an exponent."""
    if not _known(value):
        return NOTHING
    text = f"{value:.{digits}g}"
    if "e" in text:
        text = f"{value:.0f}" if abs(value) >= 1 else f"{value:.6f}".rstrip("0")
    return text.replace("-", "−")


def count(amount: int, one: str) -> str:
    """Write an amount with its noun: ``1 case``, ``3 cases``, ``2 classes``."""
    many = f"{one}es" if one.endswith(("s", "x", "ch")) else f"{one}s"
    return f"{amount} {one if amount == 1 else many}"


def named(names: Sequence[str]) -> str:
    """Write some names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def first_of(lines: Sequence[str], most: int = NAMED) -> list[str]:
    """Return the first lines, and one more that says how many are left out, if any are."""
    return [*lines[:most], f"and {len(lines) - most} more"] if len(lines) > most else list(lines)


def shown(path: str | Path) -> str:
    """Write a path so that it can be printed and stored, also where it is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def plain(name: str) -> str:
    """Write a name of a class, rule or group with spaces."""
    return name.replace("_", " ")


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
