"""What review buys: the next student's DSC after K judged labels, answered by an oracle that knows the truth.

Two teachers learn from 4 labeled cases and label the others. An arm is a label set of theirs with a review of its own:
the first K labels in some order, answered as a person would, in the files of the project; Snakemake goes on from there.
Its student goes on from the first teacher, as does that of the control, which nobody reviews.
"""

import argparse
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import SimpleITK as sitk
from arms import BASE, QUICK, SATURATED, Size, label_set, model, named, student, whole_recipe
from common import RESULTS, gain_in_percent, organ_mean, scores_of_folds, train, written_by
from folds import FOLDS, Fold, btcv_folds, phantom_fold, resampled

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.errors import UserError
from labelloop.base.files import atomic, sha256, write_text
from labelloop.base.paths import Paths, reviews_of
from labelloop.base.tables import read_table
from labelloop.cases.folders import pair_folders
from labelloop.cases.survey import read_truth
from labelloop.images.volume import Volume, read, write
from labelloop.metrics.surface import dice
from labelloop.review.decisions import ABSENT, DECISIONS, EDITED, RIGHT, WRONG, Decision
from labelloop.review.decisions import read as read_decisions
from labelloop.review.desk import Desk, Question
from labelloop.review.queue import by_doubt, queue

ORDERS = QUEUE, DOUBT, RANDOM = "queue", "doubt", "random"
COUNTS = (10, 30, 100)
EVERY_LABEL = 10_000
LIMIT_DSC = 0.85
"""A label with this DSC is called right."""
LOOK_S, DRAW_S = 10, 180
"""Seconds of work that are assumed: to look at a label and press a key; to draw it, besides."""
REVIEWER = "oracle"
CPU = Size(
    {"spacing_mm": [8, 8, 8], "patch": [24, 28, 32], "batch_size": 2, "features": [8, 16, 32]} | SATURATED,
    QUICK | {"iterations_per_epoch": 100},
    epochs=3,
    phantoms=37,
    phantom_mm=8.0,
)
SIZES = {
    "cpu": CPU,
    # On real scans, models of so few updates as above are too weak to tell arms apart.
    "long": CPU._replace(epochs=16),
    "tiny": Size(
        {"spacing_mm": [14, 14, 14], "patch": [16, 16, 16], "batch_size": 2, "features": [4, 8]},
        QUICK | {"iterations_per_epoch": 2},
        epochs=1,
        phantoms=12,
        phantom_mm=10.0,
    ),
}


class Arm(NamedTuple):
    """A review: the first ``count`` labels in an order, and what the oracle says of labels that must be drawn."""

    order: str
    count: int
    answer: str = EDITED

    @property
    def name(self) -> str:
        """Name of its label sets and models."""
        wrong = "_wrong" if self.answer == WRONG else ""
        return f"{self.order}{wrong}_{'all' if self.count == EVERY_LABEL else self.count}"

    def labels(self, seed: int) -> str:
        """Name of its label set of a seed."""
        return f"set_{named(self.name, seed)}"


CONTROL = Arm("none", 0)
MAIN = tuple(Arm(order, count) for order in ORDERS for count in COUNTS)
WRONGS = tuple(Arm(QUEUE, count, WRONG) for count in COUNTS)
CEILING = Arm(RANDOM, EVERY_LABEL)
KINDS = {"edited": MAIN, "wrong": WRONGS, "ceiling": (CEILING,)}
ARMS = (*MAIN, *WRONGS, CEILING)


def fold_recipe(size: Size, seeds: Iterable[int], arms: Sequence[Arm]) -> dict[str, Any]:
    """Return the recipe of the control and some arms: teachers, label sets and students of each seed."""
    models: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    scored = []
    for seed in seeds:
        teachers = [named(BASE, seed), named("second", seed)]
        models[teachers[0]] = model(size, 1, seed)
        models[teachers[1]] = model(size, 1, seed + 1000)
        for arm in (CONTROL, *arms):
            labels[arm.labels(seed)] = label_set(teachers)
            models[named(arm.name, seed)] = student(size, 1, seed, arm.labels(seed))
            scored.append(named(arm.name, seed))
    return whole_recipe(size, models, labels, scored)


def folds_of(out: Path, size: Size, btcv: Path | None, numbers: Sequence[int]) -> list[Fold]:
    """Return the real scans in folds, as coarse as the network sees them; or the phantom."""
    if not btcv:
        return [phantom_fold(out / "phantom", size)]
    folder, spacing = out / "btcv", size.plan["spacing_mm"]
    for case, ((image,), label) in pair_folders(btcv.resolve(), btcv.resolve()).items():
        sources = {f"{case}_0000.nii.gz": (image, sitk.sitkLinear), f"{case}.nii.gz": (label, sitk.sitkNearestNeighbor)}
        for name, (source, interpolation) in sources.items():
            if source and not (folder / name).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                with atomic(folder / name) as temporary:
                    sitk.WriteImage(resampled(sitk.ReadImage(str(source)), interpolation, spacing), str(temporary))
    return [btcv_folds(folder)[number] for number in numbers]


class Oracle:
    """Answers what a review of a fold asks, by the truth, in the files of the project.

    Args:
        fold: the cases with all their labels. folder: of their run.
    """

    def __init__(self, fold: Fold, folder: Path):
        self._cases = {case.case: case for case in fold.cases}
        self._scheme: ClassScheme = load_classes("flare")
        self._results = folder / "results"
        self._read: dict[str, Volume] = {}

    def review(self, arm: Arm, seed: int) -> None:
        """Judge the first labels of the control's label set in the order of an arm; what is judged already stays.

        Raises:
            UserError: the folder has decisions about other labels.
        """
        control = CONTROL.labels(seed)
        desk = Desk(self._results, control, reviews_of(str(self._results), arm.labels(seed)))
        asked = self._in_order(desk, arm.order, seed)[: arm.count]
        for one in asked:
            if one.settled is None:
                self._answer(desk, one, arm.answer)
        said = {(case, name) for case, classes in desk.reviews.settled.items() for name in classes}
        if said != {(one.case, one.name) for one in asked}:
            raise UserError(f"{desk.folder}: decisions about other labels than arm {arm.name} asks about; remove it")

    def _in_order(self, desk: Desk, order: str, seed: int) -> list[Question]:
        """Return the labels that may be judged: the queue as it is, all doubtful ones, or all that models made."""
        if order == QUEUE:
            return desk.asked()
        paths = Paths(str(self._results))
        tables = {
            kind: read_table(paths.label_table(kind, desk.labels), kind)
            for kind in ("selected", "verdicts", "disagreement")
        }
        if order == DOUBT:
            rows = queue(**tables).to_dict("records")
            keys = [(row["case"], row["class"]) for row in sorted(rows, key=by_doubt)]
        else:
            made = tables["selected"].query("decision in ('accepted', 'demoted', 'dropped')")
            drawn = made.sort_values(["case", "class"]).sample(frac=1, random_state=seed)
            keys = list(drawn[["case", "class"]].itertuples(index=False, name=None))
        return [desk.question(*key, sha256=self._content(desk, key[0])) for key in keys]

    def _content(self, desk: Desk, case: str) -> str:
        path = Path(Paths(str(self._results)).labels(desk.labels)) / f"{case}.nii.gz"
        return sha256(path) if path.is_file() else ""

    def _answer(self, desk: Desk, one: Question, drawn: str) -> None:
        """Say what a person would who sees the truth: ``drawn`` is the answer where the label should be drawn."""
        id_ = self._scheme.ids[one.name]
        truth = self._truth(one.case)
        mask = truth.array == id_
        label = read(one.map).array if one.map else np.zeros_like(truth.array)
        if not mask.any():
            desk.decide(one, REVIEWER, ABSENT, seconds=LOOK_S)
        elif dice(mask, label == id_) >= LIMIT_DSC:
            desk.decide(one, REVIEWER, RIGHT, seconds=LOOK_S)
        elif drawn == WRONG:
            desk.decide(one, REVIEWER, WRONG, seconds=LOOK_S)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                edited = Path(scratch) / "edited.nii.gz"
                write(edited, np.where(mask, id_, np.where(label == id_, 0, label)).astype(np.uint8), truth.geometry)
                desk.decide(one, REVIEWER, EDITED, edited=edited, seconds=LOOK_S + DRAW_S)

    def _truth(self, case: str) -> Volume:
        if case not in self._read:
            truth = read_truth(self._cases[case], self._scheme)
            if truth is None:
                raise UserError(f"{case}: no truth to judge by")
            self._read[case] = truth
        return self._read[case]


def buys(folds: Sequence[Fold], out: Path, size: Size, seeds: range, arms: Sequence[Arm], cores: str) -> None:
    """Train the teachers, let the oracle judge, and train the students; what is there stays.

    The arms of one number of labels are trained before those of the next.
    """
    recipe, paths = fold_recipe(size, seeds, ARMS), Paths("results")
    queues = [paths.table("cases"), *(paths.review(CONTROL.labels(seed)) for seed in seeds)]
    groups = list(dict.fromkeys((arm.count, arm.answer) for arm in arms))
    for fold in folds:
        folder, known = out / fold.name, fold.known()
        settings = {"review": max(COUNTS)}
        if not train(folder, known, recipe, "cpu", cores, queues, **settings):
            continue
        oracle = Oracle(fold, folder)
        for group in groups:
            mine = [arm for arm in arms if (arm.count, arm.answer) == group]
            for arm, seed in product(mine, seeds):
                oracle.review(arm, seed)
            scores = [paths.scores(named(arm.name, seed)) for arm, seed in product((CONTROL, *mine), seeds)]
            train(folder, known, recipe, "cpu", cores, scores, **settings)


def scores_of(folds: Sequence[Fold], out: Path, arm: Arm, seeds: range) -> list[pd.DataFrame]:
    """Return the scores of an arm on the test cases of all folds, one table a seed; none while some are missing."""
    places = {fold.name: Paths(str(out / fold.name / "results")) for fold in folds}
    tables = []
    for seed in seeds:
        table = scores_of_folds({fold: Path(paths.scores(named(arm.name, seed))) for fold, paths in places.items()})
        if table is None:
            return []
        tables.append(table)
    return tables


def work_of(folds: Sequence[Fold], out: Path, arm: Arm, seeds: range) -> tuple[Counter[str], float]:
    """Return how often each answer was given in an arm, and the minutes of work, as means over the seeds."""
    given: list[Decision] = []
    for fold, seed in product(folds, seeds):
        given += read_decisions(reviews_of(str(out / fold.name / "results"), arm.labels(seed)))[0]
    answers = Counter({name: sum(d.decision == name for d in given) / len(seeds) for name in DECISIONS})
    return answers, sum(d.seconds or 0.0 for d in given) / 60 / len(seeds)


def report(folds: Sequence[Fold], out: Path, seeds: range) -> Iterator[str]:
    """Yield the table of the arms; those that are not finished are named."""
    found = {arm: scores_of(folds, out, arm, seeds) for arm in (CONTROL, *ARMS)}
    missing = [arm.name for arm, tables in found.items() if not tables]
    if missing:
        yield from (f"Not finished: {', '.join(missing)}.", "")
    if len(missing) == len(found):
        return
    columns = [ABSENT, EDITED, WRONG, "work, min", "DSC, %", "against no review (95 %)", "against random order (95 %)"]
    yield f"| order | labels judged | {RIGHT} | {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * (len(columns) + 2)}"
    for arm, tables in found.items():
        if tables:
            yield _row(arm, found, *work_of(folds, out, arm, seeds))


def _row(arm: Arm, found: Mapping[Arm, list[pd.DataFrame]], answers: Counter[str], minutes: float) -> str:
    dsc = organ_mean(found[arm], found[arm])["mean_second"]
    rivals = [CONTROL, Arm(RANDOM, arm.count)]
    gains = [_gain(found.get(rival, []), found[arm]) if rival != arm else "–" for rival in rivals]
    counts = [f"{answers[name]:.1f}" for name in (RIGHT, ABSENT, EDITED, WRONG)]
    cells = [
        arm.name.rpartition("_")[0],
        f"{sum(answers.values()):.0f}{', all' if arm == CEILING else ''}",
        *counts,
        f"{minutes:.0f}",
        f"{100 * dsc:.1f}",
        *gains,
    ]
    return f"| {' | '.join(cells)} |"


def _gain(rival: Sequence[pd.DataFrame], tables: Sequence[pd.DataFrame]) -> str:
    if not rival:
        return "–"
    return gain_in_percent(organ_mean(rival, tables))


def about(folds: Sequence[Fold], size: Size, seeds: range) -> Iterator[str]:
    """Yield what is compared, and on what it was measured."""
    train_cases = [sum(case.role == "train" for case in fold.cases) for fold in folds]
    labeled, tested = [len(fold.labeled) for fold in folds], [sum(c.role == "test" for c in f.cases) for f in folds]
    updates = size.epochs * size.trainer["iterations_per_epoch"]
    yield from ("# What review buys", "", written_by(str(Path(__file__).with_name("run.py")), "torch"), "")
    text = f"""
    {", ".join(fold.name for fold in folds)}: {labeled[0]} labeled cases, {train_cases[0] - labeled[0]} without labels,
    {tested[0]} to test; {len(seeds)} seeds; voxels of {size.plan["spacing_mm"][0]} mm. Two teachers take {updates}
    updates on the labeled cases; each student takes {updates} more on their label set. The oracle says `right` at a DSC
    of {LIMIT_DSC} or more, `absent` where the truth has none, else `edited` (or `wrong`: `queue_wrong`). Work is
    assumed, not measured: {LOOK_S} s to look, {DRAW_S} s more to draw. `queue` is the order of the review queue;
    `doubt` its doubtful labels, the largest doubt first; `random` draws from all labels that models made. Intervals are
    over test cases and seeds.
    """
    yield from textwrap.wrap(" ".join(text.split()), 140)
    yield ""


def main(arguments: Sequence[str]) -> None:
    """Train, judge and print; see ``--help``."""
    parser = argparse.ArgumentParser(prog="run.py buys", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for everything that is trained; goes on where it was stopped")
    parser.add_argument("--btcv", type=Path, help="folder of <case>_0000.nii.gz and <case>.nii.gz; else the phantom")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, nargs="+", choices=range(FOLDS), default=[0], help="of the real scans")
    parser.add_argument("--arms", choices=KINDS, nargs="+", default=["edited"], help="what is trained")
    parser.add_argument("--counts", type=int, choices=COUNTS, nargs="+", default=COUNTS, help="labels judged, in turn")
    parser.add_argument("--cores", default="1")
    parser.add_argument("--print", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--write", action="store_true", help="write review_buys_phantom.md, or _btcv.md, too")
    options = parser.parse_args(arguments)
    size, seeds, out = SIZES[options.size], range(options.seeds), options.out / options.size
    folds = folds_of(out, size, options.btcv, options.folds)
    if not options.print:
        chosen = [arm for kind in options.arms for arm in KINDS[kind]]
        arms = [arm for count in (*options.counts, EVERY_LABEL) for arm in chosen if arm.count == count]
        buys(folds, out, size, seeds, arms, options.cores)
    text = "\n".join([*about(folds, size, seeds), *report(folds, out, seeds), ""])
    print(text)
    if options.write:
        write_text(RESULTS / f"review_buys_{'btcv' if options.btcv else 'phantom'}.md", text)
