"""How the report writes numbers and names: one place, so that equal things look equal."""

import math

NOTHING = "–"


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
    """Write an amount with its noun: ``1 case``, ``3 cases``."""
    return f"{amount} {one if amount == 1 else one + 's'}"


def plain(name: str) -> str:
    """Write a name of a class, rule or group with spaces."""
    return name.replace("_", " ")


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
