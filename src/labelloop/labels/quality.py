"""The predicted quality of a label: the DSC that it would have with the truth, an interval, and why it is not higher.

Gradient boosted regressions (scikit-learn's HistGradientBoostingRegressor, as LightGBM: Ke et al., NeurIPS 2017)
predict the DSC, and its 10 % and 90 % quantile, from a row of :mod:`labelloop.labels.evidence`. The DSC is a mean, not
a median: where a label is either good or lost, it says how likely each is. All classes share the regressions, and the
class is one of the features: what a step at the border means is learned from large organs, too. Missing evidence (NaN)
goes its own way in each tree, but what only models say (:data:`~labelloop.labels.evidence.PREDICTED`) would tell which
labels are predictions: one that lacks some of it is judged by regressions that never saw that part.

They learn, inside a run, from labeled cases alone: labels as they are (DSC 1), corrupted ones (``labels.corrupt``), and
predictions for cases that no model behind them learned from. The interval is widened until it holds as many labels as
it says of patients that were left out (conformalized quantile regression: Romano et al., NeurIPS 2019; over folds of
patients instead of one split, as the jackknife+ of Barber et al., Annals of Statistics 2021). It speaks of labels
like the held-out ones; without held-out ones, of corrupted ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold

from labelloop.base.errors import UserError
from labelloop.labels.evidence import GROUPS, PREDICTED, group_of
from labelloop.labels.settings import HELD_OUT, LEAST_PATIENTS, UNALTERED

LOW, HIGH = 0.1, 0.9
"""Quantiles of the DSC that an interval goes between."""
AVERAGED = 3
"""Regressions of the DSC, which differ in the evidence that each tree may ask; their mean counts."""
FOLDS = 5
LEAST_RESIDUALS = 30
"""With fewer held-out labels, corrupted ones tell how wide the interval must be, too."""
LARGEST_WEIGHT = 10.0
"""Held-out labels count as much as all others together, but none more than this."""
ITERATIONS = 100
"""Trees of each regression."""
SEED = 17
LEAST_GAIN = 0.02
"""Evidence that lowers the DSC by less is not named."""
MOST_NAMED = 3
FROM_OTHERS = "learned from other classes, for nobody labeled this one"


@dataclass(frozen=True)
class Quality:
    """What predicts the quality of labels.

    Args:
        classes: known classes; a row of another one is judged as one of unknown class.
        columns: evidence that was available, in the order of the features.
        means, low, high: regressions of the DSC, and one of each quantile.
        widened: by how much the interval is widened at both ends, in DSC.
        usual: medians of good labels [class, columns]; NaN where not known.
    """

    classes: tuple[str, ...]
    columns: tuple[str, ...]
    means: tuple[HistGradientBoostingRegressor, ...]
    low: HistGradientBoostingRegressor
    high: HistGradientBoostingRegressor
    widened: float
    usual: pd.DataFrame

    def predict(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return ``dsc``, ``low`` and ``high`` of each row, from 0 to 1, in its order and with its index.

        Of a class that nobody labeled, other classes tell a DSC, and no interval is promised: it goes from 0 to 1.

        Args:
            rows: evidence (``labels.evidence``) with ``class``.
        """
        features = _features(rows, self.classes, self.columns)
        dsc, low, high = self._mean(features), _asked(self.low, features), _asked(self.high, features)
        widened = np.where(self._labeled(rows), self.widened, 1.0)
        ends = {"low": np.minimum(low, dsc) - widened, "high": np.maximum(high, dsc) + widened}
        return pd.DataFrame({"dsc": dsc, **ends}, index=rows.index).clip(0, 1)

    def _labeled(self, rows: pd.DataFrame) -> np.ndarray:
        """Return of which rows [n] there were labels of the class to learn from."""
        return rows["class"].isin(self.usual.index).to_numpy()

    def _mean(self, features: np.ndarray) -> np.ndarray:
        """Return the DSC of each row [n]."""
        return np.mean([_asked(model, features) for model in self.means], axis=0)

    def gains(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return by how much DSC each row [n, group] would gain if a group of evidence were as in good labels.

        What is not available of a label stays so.
        """
        features = _features(rows, self.classes, self.columns)
        before = self._mean(features)
        usual = self.usual.reindex(rows["class"])[list(self.columns)].to_numpy(float)
        gains = {}
        for group in GROUPS:
            mine = np.array([False, *(group_of(column) == group for column in self.columns)])
            if mine.any():
                changed, good = features.copy(), usual[:, mine[1:]]
                changed[:, mine] = np.where(np.isfinite(changed[:, mine]) & np.isfinite(good), good, changed[:, mine])
                gains[group] = self._mean(changed) - before
        return pd.DataFrame(gains, index=rows.index)

    def reasons(self, rows: pd.DataFrame) -> list[str]:
        """Say of each row, in words, the DSC, its interval, and what lowers it most. No reason holds a semicolon."""
        found, gains = self.predict(rows), self.gains(rows)
        from_others = ["" if labeled else f", {FROM_OTHERS}" for labeled in self._labeled(rows)]
        return [_in_words(found.iloc[at], gains.iloc[at]) + said for at, said in enumerate(from_others)]


def judge(rows: pd.DataFrame, asked: pd.DataFrame, classes: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Learn from labels whose DSC is known, and predict that of others.

    Labels of which models say the same kinds of things are judged by what was learned from these kinds alone.

    Args:
        rows, classes: as :func:`fit` takes them.
        asked: evidence with ``class``.

    Returns:
        of each row of ``asked``, ``dsc``, ``low``, ``high`` and ``reason``; of each held-out row of ``rows``, the same,
        predicted by what was learned from other patients, without a reason.
    """
    held_out = rows[rows["source"] == HELD_OUT]
    asked_of, held_out_of = kinds(asked), kinds(held_out)
    found, left_out = [], []
    for kind in sorted({*asked_of, *held_out_of}) or [""]:
        quality, from_others = fit(reduced(rows, kind), classes)
        mine = asked[asked_of == kind]
        found.append(quality.predict(mine).assign(reason=quality.reasons(mine)))
        left_out.append(from_others.loc[held_out.index[held_out_of == kind]].assign(reason=""))
    return pd.concat(found).reindex(asked.index), pd.concat(left_out).reindex(held_out.index)


def kinds(rows: pd.DataFrame) -> pd.Series:
    """Return, of each row, the groups of what only models say of which anything is known, as one text."""
    said = {}
    for group in PREDICTED:
        known = rows[[column for column in rows.columns if group_of(column) == group]].notna().any(axis=1)
        said[group] = known.map({True: f"{group} ", False: ""})
    return pd.DataFrame(said, index=rows.index).sum(axis=1).str.strip()


def reduced(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return rows without what models say of another kind, as :func:`kinds` names it."""
    lost = [group for group in PREDICTED if group not in kind.split()]
    return rows[[column for column in rows.columns if group_of(column) not in lost]]


def _in_words(found: pd.Series, gains: pd.Series) -> str:
    """Return a sentence on a predicted DSC and its interval."""
    said = f"a DSC of {found['dsc']:.2f} is predicted ({found['low']:.2f} to {found['high']:.2f})"
    named = gains[gains >= LEAST_GAIN].sort_values(ascending=False, kind="stable")[:MOST_NAMED]
    causes = ", ".join(f"{GROUPS[str(group)]} (by {gain:.2f})" for group, gain in named.items())
    return f"{said}, lowered by {causes}" if causes else said


def fit(rows: pd.DataFrame, classes: Sequence[str]) -> tuple[Quality, pd.DataFrame]:
    """Learn from labels whose DSC is known.

    Args:
        rows: evidence with ``class``, ``patient``, ``source`` (its source in ``labels.settings``) and ``dsc``. All
            are to be measured alike, as if nobody had labeled them: what is measured in one source only tells sources
            apart. A corrupted label's positions leave its own patient out (``Positions.z_scores(without=...)``).
            What only models say may be known of held-out rows alone: then the result is for rows of which it is known.
        classes: all classes that there are.

    Returns:
        what predicts the quality, and what :func:`out_of_fold` predicts of the rows that were learned from.

    Raises:
        UserError: when there are fewer than :data:`labelloop.labels.settings.LEAST_PATIENTS` patients.
    """
    patients = rows["patient"].nunique()
    if patients < LEAST_PATIENTS:
        raise UserError(
            f"quality of labels: {patients} labeled patients, where {LEAST_PATIENTS} are needed to learn it; "
            "leave min_quality (or score: quality) out, or label more"
        )
    left_out = out_of_fold(rows, classes)
    counted = rows["source"] == HELD_OUT
    if counted.sum() < LEAST_RESIDUALS:
        counted = rows["source"] != UNALTERED
    widened = widening(left_out[counted], rows.loc[counted, "dsc"].to_numpy(float))
    return fitted(rows, classes, widened), left_out


def out_of_fold(rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return ``dsc``, ``low`` and ``high`` of each row, predicted by what was learned from other patients.

    The interval is that of the quantiles, not widened. This is what a held-out label's quality is to be taken from,
    where it serves to find a threshold, or to say how good the prediction is.

    Args:
        rows, classes: as :func:`fit` takes them, of at least two patients.
    """
    found = pd.DataFrame(np.nan, index=rows.index, columns=["dsc", "low", "high"])
    folds = GroupKFold(min(FOLDS, rows["patient"].nunique()))
    for learned, left in folds.split(rows, groups=rows["patient"]):
        predicted = fitted(rows.iloc[learned], classes, 0.0).predict(rows.iloc[left])
        found.iloc[left] = predicted.to_numpy()
    return found


def widening(predicted: pd.DataFrame, dsc: np.ndarray) -> float:
    """Return by how much ``low`` and ``high`` must be widened to hold as many labels as their quantiles promise.

    The residual of a label is how far it lies outside, negative inside; of n residuals the ceil((n + 1) 0.8)-th is
    taken (Romano et al. 2019, equations 7 and 8). It is never below 0: an interval is not narrowed. 1 where n is too
    small to promise anything.
    """
    low, high = predicted["low"].to_numpy(float), predicted["high"].to_numpy(float)
    residuals = np.sort(np.maximum(low - dsc, dsc - high))
    wanted = math.ceil((len(residuals) + 1) * round(HIGH - LOW, 6))
    return max(float(residuals[wanted - 1]), 0.0) if wanted <= len(residuals) else 1.0


def fitted(rows: pd.DataFrame, classes: Sequence[str], widened: float = 0.0) -> Quality:
    """Fit the regressions to all rows, whoever they are of."""
    known = [column for column in rows.columns if group_of(column) in GROUPS]
    columns = tuple(column for column in known if np.isfinite(rows[column].to_numpy(float)).any())
    features, dsc, weight = _features(rows, classes, columns), rows["dsc"].to_numpy(float), weights(rows)
    means = tuple(_regression(SEED + n).fit(features, dsc, sample_weight=weight) for n in range(AVERAGED))
    low, high = (_regression(SEED, quantile).fit(features, dsc, sample_weight=weight) for quantile in (LOW, HIGH))
    return Quality(tuple(classes), columns, means, low, high, widened, usual(rows, columns))


def _asked(model: HistGradientBoostingRegressor, features: np.ndarray) -> np.ndarray:
    """Return what a regression says of each row [n], from 0 to 1; there may be none."""
    return np.clip(model.predict(features), 0, 1) if len(features) else np.empty(0)


def _regression(seed: int, quantile: float | None = None) -> HistGradientBoostingRegressor:
    """Return a regression of the mean, or of a quantile; leaves hold few rows: good organs are rare among bad ones."""
    return HistGradientBoostingRegressor(
        loss="squared_error" if quantile is None else "quantile",
        quantile=quantile,
        learning_rate=0.1,
        max_iter=ITERATIONS,
        max_leaf_nodes=15,
        min_samples_leaf=10,
        max_features=0.5,
        categorical_features=[0],
        early_stopping=False,
        random_state=seed,
    )


def _features(rows: pd.DataFrame, classes: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """Return features [n, 1 + columns]: the class as a number (NaN for one that is not known), then evidence."""
    numbers = {name: float(number) for number, name in enumerate(classes)}
    known = rows["class"].map(numbers).to_numpy(float)
    return np.column_stack([known, rows.reindex(columns=list(columns)).to_numpy(float)])


def weights(rows: pd.DataFrame) -> np.ndarray:
    """Return the weight of each row: held-out labels together weigh as much as all others, each at least as one."""
    held_out = (rows["source"] == HELD_OUT).to_numpy()
    if not held_out.any():
        return np.ones(len(rows))
    weight = np.clip((~held_out).sum() / held_out.sum(), 1.0, LARGEST_WEIGHT)
    return np.where(held_out, weight, 1.0)


def usual(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the medians of good labels [class, columns]: of those unaltered or, where none has it, held out.

    Of these the better half of each class counts.
    """
    own = rows[rows["source"] == UNALTERED].groupby("class")[list(columns)].median()
    predicted = rows[rows["source"] == HELD_OUT]
    better = predicted[predicted["dsc"] >= predicted.groupby("class")["dsc"].transform("median")]
    return own.combine_first(better.groupby("class")[list(columns)].median())
