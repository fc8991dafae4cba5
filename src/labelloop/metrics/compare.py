"""Is one score table better than another: paired test and bootstrap interval of the mean difference."""

import numpy as np
import pandas as pd
from scipy import stats

from labelloop.classes import ClassScheme
from labelloop.errors import UserError

METRICS = ("dsc", "nsd")
ORGANS = "organs"


def compare_scores(
    first: pd.DataFrame, second: pd.DataFrame, scheme: ClassScheme, seed: int = 0, resamples: int = 10_000
) -> pd.DataFrame:
    """Compare two tables of kind "scores" on the cases and classes that both have.

    Args:
        first, second: score tables; ``difference`` is second minus first.
        scheme: its set "organs" gives the row "organ mean", the mean over a case's scored organs.
        seed: of the bootstrap.
        resamples: bootstrap resamples of the cases.

    Returns:
        One row per class and metric: ``class, metric, cases, mean_first, mean_second, difference, low_95, high_95,
        p_wilcoxon``. The interval is the percentile bootstrap of the mean difference, p the two-sided Wilcoxon
        signed-rank test (1 when no case differs). With one case the interval is that case's difference: no statement.

    Raises:
        UserError: when the tables share no case and class.
    """
    pairs = first.merge(second, on=["case", "class"], suffixes=("_first", "_second"), validate="one_to_one")
    if pairs.empty:
        raise UserError("the two score tables have no case and class in common")
    groups = [(name, pairs[pairs["class"] == name]) for name in scheme.names]
    organs = pairs[pairs["class"].isin(scheme.sets.get(ORGANS, ()))]
    groups.append(("organ mean", organs.groupby("case").mean(numeric_only=True)))
    rows = [
        {"class": name, "metric": metric, **_paired(group, metric, seed, resamples)}
        for name, group in groups
        if len(group)
        for metric in METRICS
    ]
    return pd.DataFrame(rows)


def _paired(group: pd.DataFrame, metric: str, seed: int, resamples: int) -> dict:
    first, second = (group[f"{metric}_{side}"].to_numpy(float) for side in ("first", "second"))
    low, high = bootstrap_interval(second - first, seed, resamples)
    return {
        "cases": len(group),
        "mean_first": first.mean(),
        "mean_second": second.mean(),
        "difference": (second - first).mean(),
        "low_95": low,
        "high_95": high,
        "p_wilcoxon": wilcoxon_p(second - first),
    }


def bootstrap_interval(differences: np.ndarray, seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of paired differences."""
    drawn = np.random.default_rng(seed).integers(len(differences), size=(resamples, len(differences)))
    low, high = np.percentile(differences[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def wilcoxon_p(differences: np.ndarray) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test; 1 when all differences are zero."""
    return float(stats.wilcoxon(differences).pvalue) if np.any(differences) else 1.0
