"""How many of the accepted labels are wrong, by those that were drawn at random and judged."""

from dataclasses import dataclass

import pandas as pd

CONFIDENCE = 0.95
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


def error_rate(reviewed: pd.DataFrame) -> ErrorRate | None:
    """Return the error rate of the labels that a label set accepted; None when none that was drawn is judged.

    Labels that were asked about because they are doubtful do not count: they are wrong more often than others. Nor do
    answers about a label that is another one by now.

    Args:
        reviewed: table of that kind, of all cases.
    """
    drawn = reviewed[(reviewed["asked"] == "random") & (reviewed["same_label"] == "True") & (reviewed["problem"] == "")]
    wrong, right = int(drawn["decision"].isin(ERRORS).sum()), int((drawn["decision"] == "right").sum())
    judged = wrong + right
    if not judged:
        return None
    from scipy import stats  # slow to import, and most runs have no reviewers

    interval = stats.binomtest(wrong, judged).proportion_ci(CONFIDENCE, method="exact")
    return ErrorRate(judged, wrong, len(drawn) - judged, float(interval.low), float(interval.high))
