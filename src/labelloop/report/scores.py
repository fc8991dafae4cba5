"""Report sections on results: DSC and NSD of every evaluated model side by side, per class and per case.

Means are taken over cases first and over classes second (FLARE); classes that nobody annotated in a case have no row
and are never scored. Cases in which a class is neither there nor found are in the means, with the 100 % that FLARE's
rules give them, and counted beside. Differences are the last model minus the first, on the cases and classes that both
scored; difference, interval and p are of one and the same mean (``labelloop.metrics.compare``). Chance is that of other
patients, of whom some have several cases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import UserError
from labelloop.base.sequences import flat
from labelloop.base.wording import plain
from labelloop.metrics.compare import ORGAN_MEAN, compare_scores, organs_of
from labelloop.metrics.evaluate import both_empty, class_means
from labelloop.report.charts import Chart, strips
from labelloop.report.results import Results

METRICS = ("dsc", "nsd")
NAN = float("nan")
FEWEST_PATIENTS = 6
"""With fewer patients, in all or of an organ, who resemble each other by chance, no interval is shown."""


@dataclass(frozen=True)
class Scored:
    """A model's scores: title, scores table, class scheme."""

    title: str
    table: pd.DataFrame
    scheme: ClassScheme

    @cached_property
    def means(self) -> pd.DataFrame:
        """Means per class over cases."""
        return class_means(self.table, self.scheme)

    @cached_property
    def empty(self) -> pd.Series:
        """Cases per class in which it is neither there nor found."""
        return self.table.loc[both_empty(self.table), "class"].value_counts()

    def mean(self, classes: Sequence[str], metric: str) -> float:
        """Return the mean over ``classes`` of the means over cases; NaN without any."""
        known = [name for name in classes if name in self.means.index]
        return float(self.means.loc[known, metric].mean()) if known else NAN

    def per_case(self, classes: Sequence[str], metric: str = "dsc") -> pd.Series:
        """Return the mean over ``classes`` by case."""
        rows = self.table[self.table["class"].isin(classes)].dropna(subset=[metric])
        return rows.groupby("case")[metric].mean().astype(float)

    def some(self, cases: Sequence[str]) -> "Scored":
        """Return the scores of these cases alone."""
        return Scored(self.title, self.table[self.table["case"].isin(cases)], self.scheme)

    @property
    def unpredicted(self) -> list[str]:
        """Cases without a prediction, which are scored as if nothing was found."""
        return sorted(self.table.loc[self.table["volume_prediction_ml"].isna(), "case"].unique())


def read_scores(results: Results, evaluated: Sequence[tuple[str, str | Path]], scheme: ClassScheme) -> list[Scored]:
    """Read the scores tables that are there and not empty."""
    scored = []
    for title, path in evaluated:
        table = results.table(path, "scores")
        table = table[table["class"].isin(scheme.names)].astype(dict.fromkeys(METRICS, float))
        if len(table):
            scored.append(Scored(title, table, scheme))
    return scored


def comparison(
    scored: Sequence[Scored], scheme: ClassScheme, patients: Mapping[str, str] | None = None
) -> pd.DataFrame | None:
    """Compare the last model with the first (``labelloop.metrics.compare``); None when they share no case."""
    if len(scored) < 2:
        return None
    try:
        table = compare_scores([scored[0].table], [scored[-1].table], scheme, patients=patients)
    except UserError:
        return None
    return table.set_index(["class", "metric"])


def scores(scored: Sequence[Scored], scheme: ClassScheme, patients: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the tables and charts of the results section.

    Args:
        patients: patient of each case; one that it does not name is a patient of its own.
    """
    organs, tumors = organs_of(scheme), scheme.sets.get("tumor", ())
    shown = [n for n in scheme.names if any(n in s.means.index for s in scored)]
    compared = comparison(scored, scheme, patients)
    rows = [_row(scored, scheme, name, compared) for name in shown]
    paired = {metric: _paired(compared, metric) for metric in METRICS}
    return {
        "titles": [s.title for s in scored],
        "rows": rows,
        "total": _total(scored, organs, rows, paired),
        "charts": list(filter(None, (_chart(scored, shown, metric, scheme) for metric in METRICS))),
        "unpredicted": {s.title: s.unpredicted for s in scored if s.unpredicted},
        "cases": _case_rows(scored, organs, tumors),
        "paired": paired["dsc"],
    }


def _row(scored: Sequence[Scored], scheme: ClassScheme, name: str, compared: pd.DataFrame | None) -> dict[str, Any]:
    info = scheme[name]
    row: dict[str, Any] = {"name": name, "color": info.color, "tolerance_mm": info.tolerance_mm}
    row["n"] = [int(s.means["cases"].get(name, 0)) for s in scored]
    row["empty"] = [int(s.empty.get(name, 0)) for s in scored]
    for metric in METRICS:
        row[metric] = [s.mean([name], metric) for s in scored]
        row[f"{metric}_change"] = NAN if compared is None else compared["difference"].get((name, metric), NAN)
    return row


def _total(
    scored: Sequence[Scored],
    organs: Sequence[str],
    rows: Sequence[dict[str, Any]],
    paired: Mapping[str, dict[str, Any] | None],
) -> dict[str, Any] | None:
    """Return the mean over organ classes of what the rows show, and by metric whether its change is beyond chance."""
    known = [row for row in rows if row["name"] in organs]
    if not known:
        return None
    total: dict[str, Any] = {"n": [len(s.per_case(organs)) for s in scored]}
    for count, of_class in (("scores", "n"), ("empty", "empty")):
        total[count] = [sum(row[of_class][i] for row in known) for i in range(len(scored))]
    for metric in METRICS:
        total[metric] = [s.mean(organs, metric) for s in scored]
        change = paired[metric] or {"difference": NAN, "sure": False}
        total |= {f"{metric}_change": change["difference"], f"{metric}_sure": change["sure"]}
    return total


def _chart(scored: Sequence[Scored], names: Sequence[str], metric: str, scheme: ClassScheme) -> Chart | None:
    rows = []
    for name in names:
        models = {s.title: _percent(s.per_case([name], metric)) for s in scored}
        rows.append((plain(name), scheme[name].color, models))
    return strips(rows, f"{metric.upper()} of every case", "%")


def _percent(values: pd.Series) -> dict[str, float]:
    return {str(case): 100 * value for case, value in values.items()}


def _case_rows(scored: Sequence[Scored], organs: Sequence[str], tumors: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row a case, best organ DSC of the last model first."""
    if not scored:
        return []
    columns = [(s.per_case(organs, "dsc"), s.per_case(organs, "nsd"), s.per_case(tumors, "dsc")) for s in scored]
    names = sorted(set(flat(s.table["case"] for s in scored)))
    rows = [
        {"case": case, "models": [[float(series.get(case, NAN)) for series in model] for model in columns]}
        for case in names
    ]
    return sorted(rows, key=lambda row: -np.nan_to_num(row["models"][-1][0], nan=-1))


def _paired(compared: pd.DataFrame | None, metric: str) -> dict[str, Any] | None:
    """Return how the mean over organs changes: both means and their difference, and its interval and p.

    All are of the same mean, over what both models scored. Of few patients (not ``enough``) nothing is ``sure``.
    """
    if compared is None or (ORGAN_MEAN, metric) not in compared.index:
        return None
    row = compared.loc[[(ORGAN_MEAN, metric)]].iloc[0]
    keys = {"first": "mean_first", "last": "mean_second", "difference": "difference"}
    keys |= {"low": "low_95", "high": "high_95", "p": "p"}
    found = {key: float(row[column]) for key, column in keys.items()}
    number = {"n": int(row["cases"]), "patients": int(row["patients"]), "fewest": int(row["fewest"])}
    enough = number["fewest"] >= FEWEST_PATIENTS
    sure = enough and (found["low"] > 0 or found["high"] < 0)
    return {"enough": enough, "sure": sure, **number, **found}


@dataclass(frozen=True)
class Chosen:
    """A test case to look at: why it was chosen, its scores, the classes that are there and were not found."""

    case: str
    words: tuple[str, ...]
    organs: float
    tumor: float
    missed: tuple[str, ...]


def chosen_cases(scored: Scored, limit: int) -> list[Chosen]:
    """Return at most ``limit`` cases, the best mean organ DSC first.

    Best, median and worst, the tumors scored best and worst, and others at equal distances between best and worst.
    """
    organs = scored.per_case(organs_of(scored.scheme))
    if organs.empty:
        organs = scored.per_case(scored.scheme.names)
    there = scored.table[scored.table["volume_truth_ml"].astype(float) > 0]
    tumors = there[there["class"].isin(scored.scheme.sets.get("tumor", ()))].groupby("case")["dsc"].mean()
    missed = there[there["volume_prediction_ml"].fillna(0).astype(float) == 0].groupby("case")["class"].agg(tuple)
    ranked = _ranked(organs)
    words = _why_shown(ranked, _ranked(tumors), limit)
    order = [case for case in ranked if case in words]
    return [
        Chosen(case, tuple(words[case]), organs.get(case, NAN), tumors.get(case, NAN), missed.get(case, ()))
        for case in [*order, *(case for case in words if case not in order)]
    ]


def _ranked(values: pd.Series) -> list[str]:
    """Return the cases, the highest value first."""
    return list(map(str, values.sort_index().sort_values(ascending=False, kind="stable").index))


def _why_shown(ranked: Sequence[str], tumors: Sequence[str], limit: int) -> dict[str, list[str]]:
    """Return the cases to show and what for; of a case that is both best and worst, only the first is said."""
    words: dict[str, list[str]] = {}
    if ranked:
        for word, case in (("best", ranked[0]), ("worst", ranked[-1]), ("median", ranked[len(ranked) // 2])):
            words.setdefault(case, [word])
    if tumors:
        words.setdefault(tumors[0], []).append("tumor scored best")
        if len(tumors) > 1:
            words.setdefault(tumors[-1], []).append("tumor scored worst")
    for place in np.linspace(0, len(ranked) - 1, min(limit, len(ranked))).round().astype(int):
        if len(words) < limit:
            words.setdefault(ranked[place], [])
    return words
