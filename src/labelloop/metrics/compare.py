"""Is one model better than another: paired differences with an interval over test cases and over trainings."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import UserError

METRICS = ("dsc", "nsd")
ORGAN_MEAN = "organ mean"
"""Mean over organ classes of their means over cases, as FLARE's organ DSC (``evaluate.class_means``)."""
RESAMPLES = 10_000
CONFIDENCE = 0.95
FARTHEST = 100.0
"""Shares of a gap that are looked at, from what was found."""


def organs_of(scheme: ClassScheme) -> tuple[str, ...]:
    """Return the classes of the set ``organs``, or all that are not in the set ``tumor``."""
    tumors = scheme.sets.get("tumor", ())
    return scheme.sets.get("organs", tuple(n for n in scheme.names if n not in tumors))


def compare_scores(
    first: Sequence[pd.DataFrame],
    second: Sequence[pd.DataFrame],
    scheme: ClassScheme,
    seed: int = 0,
    patients: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Compare two ways of training by their tables of kind "scores", one a training, on what all of these have.

    Args:
        first, second: as many tables each; ``difference`` is second minus first, training by training. A column
            ``fold`` says which cases were tested by one training; without it, each training tested all.
        scheme: its organs give the row :data:`ORGAN_MEAN`.
        seed: of the bootstrap.
        patients: patient of each case; one that it does not name is a patient of its own. Means are over cases, as
            FLARE's. Intervals are over patients, of which each brings all its cases.

    Returns:
        One row per class and metric: ``class, metric, cases, patients, fewest`` (patients of the class that fewest
        have), ``trainings, mean_first, mean_second, difference, low_95,
        high_95, p`` (see :func:`hierarchical_bootstrap`).

    Raises:
        UserError: when the tables share no case and class, hold one twice, or are not as many on both sides.
    """
    if len(first) != len(second) or not first:
        raise UserError(f"{len(first)} and {len(second)} score tables: give as many trainings of both, one or more")
    tables = [table.set_index(["case", "class"])[list(METRICS)] for table in (*first, *second)]
    if not all(table.index.is_unique for table in tables):
        raise UserError("a score table has two rows of the same case and class")
    numbered = [table.add_suffix(f"_{number}") for number, table in enumerate(tables)]
    joined = pd.concat(numbered, axis=1, join="inner").dropna().reset_index()
    if joined.empty:
        raise UserError("the score tables have no case and class in common")
    joined["patient"] = [(patients or {}).get(case, case) for case in joined["case"]]
    folds = first[0].groupby("case")["fold"].first() if "fold" in first[0] else None
    members = {name: (name,) for name in scheme.names} | {ORGAN_MEAN: organs_of(scheme)}
    groups = [(name, joined[joined["class"].isin(classes)]) for name, classes in members.items()]
    found = [(name, group) for name, group in groups if len(group)]
    rows = [
        {"class": name, "metric": metric, **_paired(group, metric, len(first), seed, folds)}
        for (name, group), metric in product(found, METRICS)
    ]
    return pd.DataFrame(rows)


def _paired(group: pd.DataFrame, metric: str, trainings: int, seed: int, folds: pd.Series | None) -> dict[str, float]:
    values = np.array([group[f"{metric}_{n}"].to_numpy(float) for n in range(2 * trainings)])
    first, second = values[:trainings], values[trainings:]
    rows = group["class"].to_numpy(), group["patient"].to_numpy()
    first, second, differences = (contributions(each, *rows) for each in (first, second, second - first))
    tested = None if folds is None else group["case"].map(folds).groupby(group["patient"]).first().to_numpy()
    low, high, p = hierarchical_bootstrap(differences, seed, folds=tested)
    return {
        "cases": group["case"].nunique(),
        "patients": differences.shape[1],
        "fewest": group.groupby("class")["patient"].nunique().min(),
        "trainings": trainings,
        "mean_first": first.mean(),
        "mean_second": second.mean(),
        "difference": differences.mean(),
        "low_95": low,
        "high_95": high,
        "p": p,
    }


def contributions(values: np.ndarray, classes: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Return what each patient contributes to the mean over classes of the means over cases, [trainings, patients].

    The contributions of a training have this mean, and so they can be resampled. Where each patient has one case and
    all classes are scored, a patient contributes the mean over its classes. Else it contributes the mean of all, and by
    how much its scores lie above those of their classes, each with the weight that it has in the mean: to first order,
    what resampled patients do to the mean (a mean of ratios; Davison and Hinkley, "Bootstrap methods and their
    application", 1997, section 2.7). Of a class of few patients the variance is made unbiased.

    Args:
        values: scores or differences, [trainings, rows].
        classes, patients: class and patient of each row.

    Returns:
        Patients in sorted order.
    """
    _, of_class, rows = np.unique(classes, return_inverse=True, return_counts=True)
    names, of_patient = np.unique(patients, return_inverse=True)
    means = np.bincount(of_class, values.mean(0)) / rows
    shares = np.zeros((len(patients), len(names)))
    shares[np.arange(len(patients)), of_patient] = len(names) / (len(rows) * rows[of_class])
    have = np.array([len(np.unique(of_patient[of_class == number])) for number in range(len(rows))])
    unbiased = np.sqrt(_unbiased(have) / _unbiased(len(names)))[of_class]  # 1 where all patients have the class
    above = values - means[of_class]
    return means.mean() + (above + (unbiased - 1) * above.mean(0)) @ shares


def _unbiased(number: np.ndarray | int) -> np.ndarray:
    """Return by what a variance around the mean of so many values is multiplied to be unbiased; 1 for one value."""
    return number / np.maximum(number - 1, 1)


def hierarchical_bootstrap(
    differences: np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
    folds: np.ndarray | None = None,
) -> tuple[float, float, float]:
    """Return the 95 % interval of a mean difference over test cases and over trainings, and the two-sided p of none.

    Cases are to be independent: where patients have several, a column is a patient (:func:`contributions`).
    Every training is tested on the same cases: two sources of chance that cross. Cases are drawn with replacement. Of
    trainings there are few: resampled, three never reach farther than they lie themselves, and such an interval holds
    the truth in three of four experiments. So their part is drawn from Student's t, with their mean's standard error.
    Both parts are those of unbiased variances. One training says nothing of the spread between trainings: its interval
    is over test cases alone.

    In cross-validation every fold trains anew, on other cases. Then a row of ``differences`` holds one training of each
    fold, and the spread between the trainings of a fold is pooled over the folds (nested analysis of variance).

    Args:
        differences: second minus first, [trainings, cases].
        folds: of each case, the fold that tested it; None: all cases were tested by each training.
    """
    trainings, cases = differences.shape
    random, mean = np.random.default_rng(seed), float(differences.mean())
    of_cases = differences.mean(0) - mean
    drawn = of_cases[random.integers(cases, size=(resamples, cases))].mean(1)
    draws = drawn * np.sqrt(_unbiased(cases))
    if trainings > 1:
        inside = [np.ones(cases, bool)] if folds is None else [folds == fold for fold in np.unique(folds)]
        variances = [(mine.mean() ** 2) * differences[:, mine].mean(1).var(ddof=1) for mine in inside]
        error = np.sqrt(sum(variances) / trainings)
        draws += error * random.standard_t(len(inside) * (trainings - 1), resamples)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    # how often chance alone is as far off as what was found; never less than a resample can tell
    p = (np.sum(np.abs(draws) >= abs(mean) * (1 - 1e-9)) + 1) / (resamples + 1)
    return mean - float(high), mean - float(low), float(p) if mean else 1.0


def share_of_gap(
    control: np.ndarray,
    arm: np.ndarray,
    oracle: np.ndarray,
    seed: int = 0,
    resamples: int = 2000,
    folds: np.ndarray | None = None,
) -> tuple[float, float, float]:
    """Return the share of the gap between a control and an oracle that an arm closes, with its 95 % interval.

    A share s is in the interval if the mean of (arm - control) - s (oracle - control) may be 0, as Fieller's theorem
    has it for ratios. Where no gap is certain, that is so for all large shares: the interval then ends at infinity.

    Args:
        control, arm, oracle: scores [trainings, cases] on the same cases.
        folds: see :func:`hierarchical_bootstrap`.
    """
    gain, gap = np.asarray(arm) - np.asarray(control), np.asarray(oracle) - np.asarray(control)
    share = float(gain.mean() / gap.mean()) if gap.mean() else float("nan")

    def possible(value: float) -> bool:
        low, high, _ = hierarchical_bootstrap(gain - value * gap, seed, resamples, folds=folds)
        return low <= 0 <= high

    def end(direction: int) -> float:
        inside, step = share, 0.01
        while step <= FARTHEST and possible(share + direction * step):
            inside, step = share + direction * step, step * 1.5
        if step > FARTHEST:
            return direction * float("inf")
        outside = share + direction * step
        for _ in range(12):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if possible(middle) else (inside, middle)
        return inside

    return share, end(-1), end(1)
