"""Does the loop pay? A student of checked pseudo-labels against as many updates on the labels alone, and an oracle.

    python benchmarks/loop/run.py OUT --btcv FOLDER        # 16 real scans in 4 folds, each tested once: hours
    python benchmarks/loop/run.py OUT                      # on the phantom, 4 labeled cases
    python benchmarks/loop/run.py OUT --partly             # 12 labeled cases, each knows a third of the organs
    python benchmarks/loop/run.py OUT --arms default quality --against default    # 12 labeled cases of the phantom
    python benchmarks/loop/run.py OUT --size tiny --seeds 2    # does it run? The numbers mean nothing

Each arm is a model of a recipe (``arms.py``); the arms of a fold and schedule are one run of Snakemake under OUT, which
goes on where it was stopped. Printed for each schedule: DSC of the organs by size; the difference of their mean to the
two arms that take as many updates on labels alone, ``control`` in one go and ``continued`` in two, as the student; the
share of the gap between ``control`` and ``oracle`` that an arm closes; the true DSC of the pseudo-labels that the loop
accepted and refused. Intervals of 95 % are over test cases and over trainings, one a fold and seed
(``hierarchical_bootstrap``). Arms that are not finished are named.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from arms import (
    ARMS,
    CONTINUED,
    CONTROL,
    FEW,
    GROUPS,
    LEARNED_FROM,
    ORACLE,
    ORGANS,
    QUALITY,
    SIZES,
    epochs_of,
    named,
    oracle_recipe,
    recipe,
)
from folds import FOLDS, LABELED, PARTLY, Fold, btcv_folds, phantom_fold

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import RESULTS, gain_in_percent, organ_mean, scores_of_folds, train, written_by

from labelloop.base.classes import load_classes
from labelloop.base.files import write_text
from labelloop.base.tables import read_table
from labelloop.base.wording import count
from labelloop.cases.survey import read_truth
from labelloop.images.volume import canonical, read
from labelloop.labels.agree import disagreement
from labelloop.metrics.compare import share_of_gap

REFERENCES = (CONTROL, CONTINUED)
SCHEDULES = (0.1, 0.25, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything that is trained")
    parser.add_argument("--btcv", type=Path, help="folder of <case>_0000.nii.gz and <case>.nii.gz; else the phantom")
    parser.add_argument("--partly", action="store_true", help="each labeled case knows one in three of the organs")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[3],
        help="a second number: a table of arms with fewer seeds, too",
    )
    parser.add_argument("--schedules", type=float, nargs="*", default=SCHEDULES, help="shares of the updates")
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=FEW, help="what is trained and scored")
    parser.add_argument("--against", choices=ARMS, nargs="+", default=REFERENCES, help="what arms are compared with")
    parser.add_argument("--folds", type=int, nargs="+", default=range(FOLDS), help="of the real scans: 0 to 3")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cores", default="all")
    parser.add_argument("--print", action="store_true", help="train nothing, print what is there")
    parser.add_argument(
        "--write", nargs="?", const="", metavar="PART", help="write the table of the arms and scans; PART ends its name"
    )
    options = parser.parse_args()
    if QUALITY in options.arms and (options.btcv or options.partly or ORACLE in options.arms):
        parser.error(f"the arm {QUALITY} is for the phantom: {LEARNED_FROM} labeled cases that know all, and no oracle")
    size, seeds = SIZES[options.size], range(max(options.seeds))
    if options.btcv:
        real = btcv_folds(options.btcv, options.partly)
        folds = [real[number] for number in options.folds]
    else:
        folds = [phantom_fold(options.out / "phantom", size, labeled_in(options), options.partly)]
    lines: list[str] = []
    for schedule in options.schedules:
        out = options.out / f"schedule_{schedule:g}"
        if not options.print:
            for fold in folds:
                few = recipe(size, seeds, schedule, options.arms, fold.truth())
                train(out / fold.name, fold.known(), few, options.device, options.cores)
                if ORACLE in options.arms:
                    known = oracle_recipe(size, seeds, schedule)
                    train(out / f"{fold.name}_{ORACLE}", fold.cases, known, options.device, options.cores)
        updates = size.trainer["iterations_per_epoch"] * epochs_of(size, schedule)
        lines += [f"## {updates} updates, and as many again", ""]
        shown: set[str] = set()
        for number in options.seeds:
            finished = {arm for arm in options.arms if scores(out, folds, arm, range(number))}
            if finished - shown or not shown:
                lines += [*report(out, folds, range(number), options.arms, options.against), ""]
            shown |= finished
        lines += [*label_quality(out, folds, tuple(shown)), ""]
    text = "\n".join(lines)
    print(text)
    if options.write is not None:
        head = f"# Does the loop pay?\n\n{written_by(__file__, 'torch', gpu=True)}\n\n"
        write_text(RESULTS / f"loop_{name_of(options)}.md", head + text)


def labeled_in(options: argparse.Namespace) -> int:
    """Return how many cases of the phantom are labeled."""
    if options.partly:
        return PARTLY
    return LEARNED_FROM if QUALITY in options.arms else LABELED


def name_of(options: argparse.Namespace) -> str:
    """Return what the written table is named after."""
    scans = "btcv" if options.btcv else "phantom"
    parts = (QUALITY if QUALITY in options.arms else scans, "partly" if options.partly else "", options.write)
    return "_".join(filter(None, parts))


def scores(out: Path, folds: Sequence[Fold], arm: str, seeds: range) -> list[pd.DataFrame]:
    """Return the scores of an arm on the test cases of all folds, one table a seed; none while some are missing."""
    places = {fold.name: out / (f"{fold.name}_{ORACLE}" if arm == ORACLE else fold.name) for fold in folds}
    tables = []
    for seed in seeds:
        files = {fold: at / "results" / "evaluation" / f"{named(arm, seed)}.csv" for fold, at in places.items()}
        table = scores_of_folds(files)
        if table is None:
            return []
        tables.append(table)
    return tables


def report(
    out: Path,
    folds: Sequence[Fold],
    seeds: range,
    arms: Sequence[str] = FEW,
    references: Sequence[str] = REFERENCES,
) -> Iterable[str]:
    """Yield what is missing, and the table of the arms.

    Args:
        references: arms that the others are compared with.
    """
    found = {arm: scores(out, folds, arm, seeds) for arm in ARMS if arm in arms}
    missing = [arm for arm, tables in found.items() if not tables]
    if missing:
        yield f"Not finished: {', '.join(missing)}."
        yield ""
    yield f"{count(len(seeds), 'seed')}:"
    yield ""
    columns = [*(f"{group} organs" for group in GROUPS), f"all {len(ORGANS)}"]
    columns += [*(f"against {name} (95 %)" for name in references), "share of the gap closed (95 %)"]
    yield f"| arm | {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * len(columns)}"
    for arm, tables in found.items():
        if tables:
            cells = [f"{100 * _mean(tables, organs):.1f}" for organs in (*GROUPS.values(), ORGANS)]
            cells += [against(found, arm, name) for name in references]
            yield f"| {arm} | {' | '.join([*cells, share_closed(found, arm)])} |"


def against(found: dict[str, list[pd.DataFrame]], arm: str, reference: str) -> str:
    """Return an arm's difference to another, in words."""
    if arm == reference or not found.get(reference):
        return "–"
    return gain_in_percent(organ_mean(found[reference], found[arm]))


def share_closed(found: dict[str, list[pd.DataFrame]], arm: str) -> str:
    """Return the share of the gap between control and oracle that an arm closes, in words."""
    if arm in (CONTROL, ORACLE) or not found.get(CONTROL) or not found.get(ORACLE):
        return "–"
    if organ_mean(found[CONTROL], found[ORACLE])["low_95"] <= 0:
        return "no certain gap"
    by_case = [_by_case(found[name]) for name in (CONTROL, arm, ORACLE)]
    folds = found[CONTROL][0].groupby("case")["fold"].first()[by_case[0].columns].to_numpy()
    share, low, high = share_of_gap(*by_case, folds=folds)
    return f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def label_quality(out: Path, folds: Sequence[Fold], arms: Sequence[str] = FEW) -> Iterable[str]:
    """Yield the true DSC of what each arm's label sets accepted and refused, of all folds and seeds."""
    scheme, rows = load_classes("flare"), []
    for fold in folds:
        truths = {case.case: case for case in fold.cases}
        for selected in sorted((out / fold.name / "results" / "labels").glob("set_*/selected.csv")):
            arm = selected.parent.name.removeprefix("set_").rstrip("0123456789")
            if arm not in arms:
                continue
            table = read_table(selected, "selected").query("decision in ('accepted', 'demoted', 'dropped')")
            for case, some in table[table["class"].isin(ORGANS)].groupby("case"):
                truth = read_truth(truths[str(case)], scheme)
                label = read(selected.parent / f"{case}.nii.gz")
                if truth is None:
                    continue
                both = [canonical(volume).array for volume in (truth, label)]
                dice = {row["class"]: row["pairwise_dice"] for row in disagreement(both, scheme, ORGANS)}
                decided = zip(some["class"], some["decision"] == "accepted", strict=True)
                rows += [(arm, name, accepted, dice[name]) for name, accepted in decided]
    if rows:
        yield from _accepted_and_refused(pd.DataFrame(rows, columns=["arm", "class", "accepted", "dsc"]))


def _accepted_and_refused(labels: pd.DataFrame) -> Iterable[str]:
    """Yield a row a label set: the mean DSC of what it accepted and refused, and how far these differ in a class."""
    yield "| label set of | accepted: true DSC (labels) | refused: true DSC (labels) | difference in the same class |"
    yield "| --- | ---: | ---: | ---: |"
    for arm, some in labels.groupby("arm"):
        parts = [some[some["accepted"] == accepted]["dsc"] for accepted in (True, False)]
        cells = [f"{100 * part.mean():.1f} ({len(part)})" if len(part) else "–" for part in parts]
        by_class = some.pivot_table("dsc", "class", "accepted").reindex(columns=[True, False]).dropna()
        apart = 100 * (by_class[True] - by_class[False]).mean()
        cells.append(f"{apart:+.1f} ({count(len(by_class), 'class')})" if len(by_class) else "–")
        yield f"| {arm} | {' | '.join(cells)} |"


def _by_case(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the mean DSC of the organs, a row a training and a column a case."""
    chosen = [table[table["class"].isin(ORGANS)].groupby("case")["dsc"].mean() for table in tables]
    return pd.concat(chosen, axis=1).T


def _mean(tables: Sequence[pd.DataFrame], organs: Sequence[str]) -> float:
    rows = pd.concat(tables)
    return float(rows[rows["class"].isin(organs)].groupby("class")["dsc"].mean().mean())


if __name__ == "__main__":
    main()
