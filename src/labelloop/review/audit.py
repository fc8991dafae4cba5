"""How many of the accepted labels are wrong, by those that were drawn at random and judged."""

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import pandas as pd

from labelloop.base.tables import by_label
from labelloop.review.decisions import AGAIN, WRONG

CONFIDENCE = 0.95
RANDOM = "random"
"""Why a label is asked about that was drawn (column ``asked``)."""
ERRORS = ("wrong", "edited", "absent")
"""What a reviewer says of a label that should not have been accepted as it is."""


@dataclass(frozen=True)
class ErrorRate:
    """The share of wrong labels among the accepted ones.

    Args:
        judged: labels that were drawn at random and judged. wrong: of these, those that were not right.
        open: labels that were drawn, but reviewers are unsure of or differ about; they count neither way.
        low, high: interval of Clopper and Pearson (1934): it holds the true share with :data:`CONFIDENCE`, at least,
            also of few labels. Drawn without replacement, the share is known better than that.
    """

    judged: int
    wrong: int
    open: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Share of the judged labels that are wrong."""
        return self.wrong / self.judged


Said = Mapping[Hashable, Any]
"""A row of the table "reviewed"."""


def in_order_of_draw(
    chosen: Mapping[tuple[str, str], Said], said: Mapping[tuple[str, str], Said], labels: str
) -> dict[tuple[str, str], Said | None]:
    """Return the labels that are accepted, or would be without reviewers, those with the smallest hash first.

    Each comes with what reviewers say since it was drawn; with None while nobody looked at it. A label that reviewers
    settled because it is doubtful, or of which they know the class from an earlier map, is none of these.

    Args:
        chosen, said: rows of the tables "selected" and "reviewed", by case and class. labels: name of the label set.
    """
    accepted = {key for key, row in chosen.items() if row["decision"] == "accepted"}
    accepted |= {key for key, row in said.items() if row["accepted"] == "True"}
    rows = {key: said.get(key) for key in sorted(accepted, key=lambda key: _lot(labels, *key))}
    drawn = {key: row if was_drawn(row) else None for key, row in rows.items()}
    return {key: row for key, row in drawn.items() if row is not None or not _is_settled(said.get(key))}


def was_drawn(said: Said | None) -> bool:
    """Say whether reviewers judged a label because it was drawn at random, and it is still the same."""
    return said is not None and not said["problem"] and said["asked"] == RANDOM and said["same_label"] == "True"


def _is_settled(said: Said | None) -> bool:
    if said is None or said["problem"] or said["decision"] in AGAIN:
        return False
    return said["decision"] != WRONG or said["same_label"] == "True"


def _lot(*label: str) -> str:
    return hashlib.sha256("\0".join(label).encode()).hexdigest()


def error_rate(selected: pd.DataFrame, reviewed: pd.DataFrame, labels: str) -> ErrorRate | None:
    """Return the error rate of the labels that a label set accepts now; None when none that was drawn is judged.

    Answers count up to the first label in the order of the draw at which nobody looked: selection may have changed
    since, and these are a random sample of what it accepts now. Labels that were asked about because they are doubtful
    do not count: they are wrong more often than others. Nor do answers about a label that is another one by now.

    Args:
        selected, reviewed: tables of those kinds, of all cases. labels: name of the label set.
    """
    rows = in_order_of_draw(by_label(selected), by_label(reviewed), labels).values()
    drawn = [row["decision"] for row in takewhile(lambda row: row is not None, rows) if row]
    wrong, right = sum(decision in ERRORS for decision in drawn), drawn.count("right")
    judged = wrong + right
    if not judged:
        return None
    from scipy import stats  # slow to import, and most runs have no reviewers

    interval = stats.binomtest(wrong, judged).proportion_ci(CONFIDENCE, method="exact")
    return ErrorRate(judged, wrong, len(drawn) - judged, float(interval.low), float(interval.high))
