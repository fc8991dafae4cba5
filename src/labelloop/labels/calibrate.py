"""Calibrate acceptance on held-out truth: the lowest agreement at which accepted labels reach a target DSC.

Risk is the mean of 1 - DSC over accepted labels. For a class, held-out cases are sorted by agreement; a set of the k
most agreeing cases is tested against "its risk is 1 - target or more". The test is a bet: an e-value that is at most 1
in expectation while that hypothesis holds, for losses in [0, 1] and any sample size, and a set is certified when it
reaches 2 / (1 - confidence) (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B
2024, section 4; here constant bets mixed over a fixed grid, so that the order of the cases does not matter).

Sets are tested from small to large and the first that fails ends it, so that no error is spent on trying several. Half
of the error is kept for a second start, the set of all cases: many cases may prove what the few that agree most cannot
(fixed sequence testing from several starts: Angelopoulos et al., "Learn then test", arXiv 2110.01052, section 4). Given
the agreement of the next case, those above it are a random sample of all that agree more, hence the threshold is the
next case's agreement. Each test is exact; the sequence is so up to the step between one set and the next, because the
sets follow from the agreements.

The promise is about people and scanners like the held-out ones. Scans of one person, as phases of a CT or sequences of
an MR, are no independent cases, so each person counts once: of the labels of a person that could be accepted, one is
drawn, by a hash of its case id (``cases.patients``). A threshold then speaks of a new person's label that is drawn
likewise. All labels of a person could count by their mean loss instead. But which of them a set holds depends on its
agreement, and the next case may be of a person in the set: so sets of persons are no random samples, as sets of the
drawn labels are. With few persons nothing can be certified: the table says how many it takes.

Without a confidence the promise is one on average: over runs like this one, each with held-out cases of its own, the
mean loss of the labels accepted (none: no loss) is as allowed. Then the largest set counts whose losses, and one more
that is 1, have a mean of at most what is allowed: so conformal risk control counts the next case (Angelopoulos et al.,
ICLR 2024), here among the selected, as for a false discovery rate (Jin and Candes, "Selection by prediction with
conformal p-values", JMLR 2023). Single runs may miss the target, and the sets follow from the losses: that the promise
holds is simulated (``benchmarks/calibration``), not proven.

Risk-coverage curves and AURC: Geifman et al., "Bias-reduced uncertainty estimation", ICLR 2019.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.base.outputs import is_table, refuse_overwriting
from labelloop.base.tables import TABLES, read_table, write_table
from labelloop.base.wording import named
from labelloop.cases.patients import cases_of, one_a_patient, patients_of

SCORE = "pairwise_dice"
BETS = np.linspace(0.05, 0.95, 19)
"""Shares of the largest bet that cannot be ruined."""
HOPED = 0.5
"""The first set is large enough to be certified if its mean loss is this share of the loss allowed."""
STEPS = 20
TUBE = (
    "FLARE scores tubes on the slices of the truth alone, which is no DSC of the whole label; calibrate it in a run "
    "(select: target_dsc)"
)
ROUNDING = 1e-9
"""1 - 0.9 is a little less than 0.1: what differs by no more is equal."""


def calibrate(
    scores: pd.DataFrame,
    disagreement: pd.DataFrame,
    target_dsc: float,
    confidence: float | None,
    classes: Sequence[str],
    patients: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Return the "calibration" table: per class the pairwise Dice from which labels may be accepted.

    A threshold means: with probability ``confidence`` over the choice of held-out patients (None: on average), labels
    of new patients, one of each, whose pairwise Dice is above it have a mean DSC of at least ``target_dsc``. Each class
    is a statement of its own. Where no threshold can be certified it is NaN, and ``reason`` says why.

    Args:
        scores: table of kind "scores" of labels that the models did not learn from.
        disagreement: table of kind "disagreement" of the same cases and models.
        patients: patient of each case; one that it does not name is a patient of its own.

    Raises:
        ValueError: when target or confidence do not lie between 0 and 1.
    """
    both = scores.merge(disagreement, on=["case", "class"], validate="one_to_one")
    both["patient"] = [(patients or {}).get(case, case) for case in both["case"]]
    return _thresholds(both, SCORE, target_dsc, confidence, classes)


def calibrate_held_out(
    held_out: pd.DataFrame, target_dsc: float, confidence: float | None, classes: Sequence[str], score: str = SCORE
) -> pd.DataFrame:
    """Return the "calibration" table from a table of kind "held_out": from its labels that pass all other criteria.

    Args:
        score: column whose threshold is looked for: ``pairwise_dice``, or ``quality``. What is predicted of a held-out
            label was learned from other patients, and of a new one from all: so with the latter the promise is nearly
            kept, not proven.
    """
    return _thresholds(held_out[held_out["decision"] == "accepted"], score, target_dsc, confidence, classes)


def independent(labels: pd.DataFrame, score: str) -> pd.DataFrame:
    """Return the labels of one class that count: those whose ``score`` and ``dsc`` are known, of each patient one."""
    known = labels.dropna(subset=["dsc", score])
    return known[known["case"].isin(one_a_patient(known["case"], patients_of(known)))]


def _thresholds(
    labels: pd.DataFrame, score: str, target_dsc: float, confidence: float | None, classes: Sequence[str]
) -> pd.DataFrame:
    """Return the "calibration" table from labels with ``case, patient, class, dsc`` and the column ``score``."""
    if not (0 < target_dsc < 1 and (confidence is None or 0 < confidence < 1)):
        raise ValueError(f"target DSC {target_dsc} and confidence {confidence} must lie between 0 and 1")
    rows = []
    for name in classes:
        mine = independent(labels[labels["class"] == name], score)
        agreement, dsc = mine[score].to_numpy(float), mine["dsc"].to_numpy(float)
        found = threshold(agreement, dsc, target_dsc, confidence)
        rows.append({"class": name, "target_dsc": target_dsc, "confidence": confidence, **found})
    return pd.DataFrame(rows, columns=list(TABLES["calibration"]))


def threshold(
    agreement: np.ndarray, dsc: np.ndarray, target_dsc: float, confidence: float | None
) -> dict[str, float | str]:
    """Return threshold, cases, accepted, coverage, mean_dsc of the accepted, aurc and reason for one class."""
    order = np.argsort(-agreement, kind="stable")
    ranked, loss = agreement[order], 1.0 - dsc[order]
    number, allowed = len(loss), 1.0 - target_dsc
    if confidence is None:
        accepted, reason = _on_average(ranked, loss, allowed)
    else:
        accepted, reason = _with_confidence(ranked, loss, allowed, confidence)
    below = ranked[accepted] if 0 < accepted < number else -math.inf
    lowest = below if below > -math.inf else 0.0
    return {
        "threshold": lowest if accepted else math.nan,
        "cases": number,
        "accepted": accepted,
        "coverage": accepted / number if number else math.nan,
        "mean_dsc": float(1 - loss[:accepted].mean()) if accepted else math.nan,
        "aurc": aurc(agreement, dsc),
        "reason": reason,
    }


def _with_confidence(ranked: np.ndarray, loss: np.ndarray, allowed: float, confidence: float) -> tuple[int, str]:
    """Return how many of the ranked cases are accepted, and why."""
    least = fewest_cases(allowed, confidence)
    accepted, tried = 0, _sizes(ranked, least)
    for sequence in (tried, tried[-1:]):
        for size in sequence:
            if e_value(loss[:size], allowed) < _enough(confidence):
                break
            accepted = max(accepted, size)
    return accepted, _reason(accepted, len(loss), least, loss, tried, allowed)


def _on_average(ranked: np.ndarray, loss: np.ndarray, allowed: float) -> tuple[int, str]:
    """Return the most of the ranked cases whose losses, and a 1, have the mean allowed, and how that is said."""
    sizes = _tops(ranked)
    enough = sizes[np.cumsum(loss)[sizes - 1] + 1 <= allowed * (sizes + 1) + ROUNDING]
    accepted = int(enough.max()) if len(enough) else 0
    if accepted or not len(loss):
        return accepted, _accepted(accepted, len(loss))
    least = math.ceil((1 - allowed) / allowed - ROUNDING)
    few = f"; with fewer than {least} none can be" if len(loss) < least else ""
    return (
        0,
        f"no set of the {len(loss)} held-out cases that agree most has a mean DSC of {1 - allowed:g} to spare{few}",
    )


def _sizes(ranked: np.ndarray, least: int) -> list[int]:
    """Return the sizes to test, from ``least`` (or all, if fewer) to all; cases that agree equally stay together."""
    number = len(ranked)
    if not number:
        return []
    wanted = np.unique(np.linspace(min(least, number), number, STEPS).round().astype(int))
    tops = _tops(ranked)
    return sorted({int(tops[np.searchsorted(tops, size)]) for size in wanted})


def _tops(ranked: np.ndarray) -> np.ndarray:
    """Return the sizes of sets of the first cases that part no two cases that agree equally."""
    return np.append(np.flatnonzero(ranked[:-1] > ranked[1:]) + 1, len(ranked)) if len(ranked) else np.zeros(0, int)


def _accepted(accepted: int, number: int) -> str:
    return f"{accepted} of {number} held-out cases are accepted" if number else "no held-out label to judge by"


def _reason(accepted: int, number: int, least: int, loss: np.ndarray, tried: Sequence[int], allowed: float) -> str:
    if accepted or not number:
        return _accepted(accepted, number)
    first, few = tried[0], f"; with fewer than {least} only far better ones will do" if number < least else ""
    mean = f"mean DSC {1 - loss[:first].mean():.3f}"
    return f"the {first} of {number} held-out cases that agree most ({mean}) do not prove {1 - allowed:g}{few}"


def e_value(losses: np.ndarray, allowed: float) -> float:
    """Return the evidence that the mean of ``losses`` (each in [0, 1]) is below ``allowed``.

    The mean over bets b of the product of 1 + b (allowed - loss); at most 1 in expectation if the mean is not below.
    """
    bets = BETS / (1.0 - allowed)
    logs = np.log1p(bets[:, None] * (allowed - np.asarray(losses)[None, :])).sum(axis=1)
    return float(np.exp(np.logaddexp.reduce(logs) - math.log(len(bets))))


def _enough(confidence: float) -> float:
    """Return the evidence that a test needs so that both sequences together err with probability 1 - confidence."""
    return 2.0 / (1.0 - confidence)


def fewest_cases(allowed: float, confidence: float) -> int:
    """Return how many cases it takes to certify losses of ``HOPED`` times what is allowed.

    Each case adds the same to the logarithm of what a bet has won, so the evidence grows with their number.
    """
    gains = np.log1p(BETS / (1.0 - allowed) * (1 - HOPED) * allowed)
    wanted = math.log(_enough(confidence) * len(BETS))
    return 1 + bisect_left(
        range(1, math.ceil(wanted / gains.max())), wanted, key=lambda n: np.logaddexp.reduce(n * gains)
    )


def risk_coverage(agreement: np.ndarray, dsc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage (share accepted) and risk (mean 1 - DSC of the accepted), accepting by falling agreement.

    Cases that agree equally are accepted together, so the curve does not depend on their order.
    """
    order = np.argsort(-agreement, kind="stable")
    ranked, loss = agreement[order], 1.0 - dsc[order]
    ends = _tops(ranked)
    return ends / max(len(ranked), 1), np.cumsum(loss)[ends - 1] / np.maximum(ends, 1)


def aurc(agreement: np.ndarray, dsc: np.ndarray) -> float:
    """Return the area under the risk-coverage curve (steps); the mean loss when agreement says nothing, 0 is best."""
    coverage, risk = risk_coverage(agreement, dsc)
    return float(np.diff(coverage, prepend=0.0) @ risk) if len(coverage) else math.nan


def _check_shares(path: Path, table: pd.DataFrame, column: str) -> None:
    """Raise UserError unless a column holds numbers from 0 to 1, or nothing."""
    wrong = table[table[column].notna() & ~table[column].between(0, 1)]
    if len(wrong):
        first = wrong.iloc[0]
        found = f"{column} of {first['case']}, {first['class']} is {first[column]:g}"
        raise UserError(f"{path}: {found}, where a number from 0 to 1 is expected")


def calibrate_files(
    scores: Path,
    disagreement: Path,
    out: Path,
    classes: str,
    target_dsc: float,
    confidence: float | None,
    cases: Path | None = None,
) -> pd.DataFrame:
    """Read the two tables, write the calibration table of the classes that were scored, and return it.

    Tubes get no threshold (:data:`TUBE`): what the table says of them (``metrics.flare``) is no DSC of the whole label.

    Args:
        cases: case table that says the patient of each case; one that it does not name is a patient of its own.

    Raises:
        UserError: when a table is missing, no case and class is in both, the numbers make no sense, ``cases`` names
            none of the cases, or ``out`` is a file that is read or no calibration table.
    """
    refuse_overwriting([out], [scores, disagreement, *filter(None, (cases,))], is_table("calibration"))
    tables = read_table(scores, "scores"), read_table(disagreement, "disagreement")
    shared = set.intersection(*(set(zip(t["case"], t["class"], strict=True)) for t in tables))
    if not shared:
        raise UserError(f"{scores} and {disagreement} have no case and class in common")
    for path, table, column in zip((scores, disagreement), tables, ("dsc", SCORE), strict=True):
        _check_shares(path, table, column)
    scheme = load_classes(classes)
    names = [name for name in scheme.names if name in {shared_name for _, shared_name in shared}]
    if not names:
        raise UserError(f"{scores}: holds {named(sorted({name for _, name in shared}))}, no class of {classes}")
    tubes = [info.name for info in scheme.classes if info.tube]
    whole = tables[0][~tables[0]["class"].isin(tubes)]
    rows = cases_of(cases, {case for case, _ in shared}, "scored case") if cases else {}
    patients = {case: row.patient for case, row in rows.items()}
    try:
        table = calibrate(whole, tables[1], target_dsc, confidence, names, patients)
    except ValueError as error:
        raise UserError(str(error)) from error
    table.loc[table["class"].isin(tubes), "reason"] = TUBE
    write_table(out, table, "calibration")
    return table
