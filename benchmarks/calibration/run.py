"""How many held-out labels does a calibrated threshold take, and does it keep what it promises? Simulated.

    python benchmarks/calibration/run.py                 # 200 runs of each kind
    python benchmarks/calibration/run.py --runs 2000 --write

A run draws held-out labels, calibrates a threshold on them (``labelloop.labels.calibrate``), and accepts new labels by
it. One label in four is bad (DSC beta(4, 4)), the others are good (beta(40, 3)); the score by which they are accepted
has a rank correlation with the DSC that is given, 0 being a score that tells nothing.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import written_by

from labelloop.base.files import write_text
from labelloop.labels.calibrate import threshold

RESULT = Path(__file__).resolve().parents[1] / "results" / "calibration.md"
SEED = 5
BAD = 0.25
NEW = 200_000
"""New labels by which a threshold is judged."""
PROMISES = {"with a confidence of 0.9": 0.9, "on average": None}
CORRELATIONS, NUMBERS, TARGETS = (0.6, 0.0), (20, 40, 120), (0.80, 0.85, 0.88)


def labels(number: int, correlation: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return score and DSC of simulated labels, joined by a normal copula of that rank correlation."""
    one, other = random.standard_normal((2, number))
    pearson = 2 * np.sin(np.pi / 6 * correlation)
    score, rank = pearson * one + np.sqrt(1 - pearson**2) * other, stats.norm.cdf(one)
    bad = stats.beta.ppf(np.minimum(rank / BAD, 1), 4, 4)
    return score, np.where(rank < BAD, bad, stats.beta.ppf(np.maximum(rank - BAD, 0) / (1 - BAD), 40, 3))


def row(correlation: float, number: int, target: float, promise: str, runs: int) -> str:
    """Return a line of the table: of ``runs`` runs with ``number`` held-out labels."""
    random = np.random.default_rng([SEED, number, round(100 * target), round(10 * correlation)])
    score, dsc = labels(NEW, correlation, random)
    order = np.argsort(-score)
    score, sums = score[order], np.cumsum(1 - dsc[order])
    taken = []
    for _ in range(runs):
        found = threshold(*labels(number, correlation, random), target, PROMISES[promise])
        lowest = -np.inf if found["accepted"] == number else found["threshold"]
        taken.append(int(np.searchsorted(-score, -lowest)) if found["accepted"] else 0)
    accepted = np.array([count for count in taken if count])
    losses = sums[accepted - 1] / accepted if len(accepted) else np.zeros(0)
    below, loss = (losses > 1 - target).sum() / runs, losses.sum() / runs
    shares = f"{len(accepted) / runs:.2f} | {accepted.mean() / NEW if len(accepted) else 0:.2f}"
    then = f"{1 - sums[accepted - 1].sum() / accepted.sum():.3f}" if len(accepted) else "–"
    return f"| {correlation:g} | {number} | {target:g} | {promise} | {shares} | {then} | {1 - loss:.3f} | {below:.3f} |"


def report(runs: int) -> Iterator[str]:
    """Yield the lines of the result."""
    everything = labels(NEW, 0.0, np.random.default_rng(SEED))[1].mean()
    yield f"{runs} runs in each line; the mean DSC of all labels is {everything:.3f}."
    yield "With a confidence of 0.9 at most 0.1 of the runs may accept labels below the target. On average, the mean"
    yield "over runs must reach it (a run that accepts nothing counts as one without loss), single runs may miss it;"
    yield "where the score tells nothing and all labels are below the target, each run that accepts some does."
    yield ""
    heads = (
        "rank correlation",
        "held-out labels",
        "target DSC",
        "promise",
        "runs with a threshold",
        "share accepted then",
        "mean DSC of all accepted",
    )
    yield f"| {' | '.join((*heads, 'mean over runs', 'runs below the target'))} |"
    yield "| ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    for correlation in CORRELATIONS:
        for target in TARGETS:
            for number in NUMBERS:
                for promise in PROMISES:
                    yield row(correlation, number, target, promise, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="simulated runs of each kind")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULT.parent.name}/{RESULT.name}")
    options = parser.parse_args()
    text = "\n".join(report(options.runs)) + "\n"
    print(text)
    if options.write:
        made = written_by(__file__, "numpy", "scipy")
        write_text(RESULT, f"# What a calibrated threshold takes\n\n{made}\n\n{text}")


if __name__ == "__main__":
    main()
