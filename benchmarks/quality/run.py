"""Does predicted quality tell good labels of real models from bad ones, on patients it did not learn from?

    python benchmarks/quality/run.py OUT --scans FOLDER --runs NAME=RESULTS [NAME=RESULTS ...] [--write]

FOLDER holds scans (<case>_0000.nii.gz) and expert labels (<case>.nii.gz; or ``--truth`` has these). RESULTS are results
of runs on these scans (``benchmarks/loop`` makes such). Each prediction of each of their models counts, for cases whose
patients the model did not learn from; ``--models`` takes some of the models. Quality is predicted out of fold:
what is said of a patient was learned from others. Beside it stand what can be known without learning: the agreement of
two models, the rules of anatomy, and the model's own confidence.

What is measured of a label map is kept in OUT, and a run that was stopped goes on from there. A map takes seconds.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from labelloop import labels as labels_package
from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.files import digest, sha256, write_text
from labelloop.base.lookup import CONFIG
from labelloop.base.tables import read_table, write_table
from labelloop.images.datasets import load_dataset
from labelloop.images.scan import read_classes, read_image
from labelloop.images.volume import Volume, canonical, read
from labelloop.labels.agree import disagreement
from labelloop.labels.clean import clean
from labelloop.labels.evidence import PREDICTED, group_of, of_models
from labelloop.labels.folder import asked_classes
from labelloop.labels.measured import joined, measured, true_dsc, with_errors
from labelloop.labels.quality import FOLDS, fitted, out_of_fold, widening
from labelloop.labels.settings import CORRUPTED, HELD_OUT, UNALTERED

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import RESULTS, written_by

LABELS = Path(labels_package.__file__).parent
MEASURES = [path for path in sorted(LABELS.rglob("*.py")) if path.name != "quality.py"]
SOURCES = (*MEASURES, CONFIG / "classes" / "flare.yaml", Path(__file__))
"""What a table of evidence follows from, beside the files."""
SEED = 17
BAD = 0.7
"""A label with a smaller DSC is bad."""
PURITY = 0.95
"""Share of good labels among those accepted."""
DRAWS = 1000
FEWEST = 5
"""Labels of either kind that a class must have for an AUROC of its own."""
EMPTY = -1.99
"""``shape.volume`` of a class without a voxel is -2."""
ONE, TWO = "predicted quality, one model", "predicted quality, two models"
AGREEMENT, CONFIDENCE = "agreement of two models", "mean confidence of the model"
COMPARED = ((ONE, CONFIDENCE), (ONE, AGREEMENT), (TWO, AGREEMENT))
KEEP_LARGEST = [{"keep_largest": "all"}]


@dataclass(frozen=True)
class Source:
    """Predictions of one model: their files by case, the model's confidence, and a second model's files."""

    name: str
    files: dict[str, Path]
    confidence: pd.DataFrame
    second: dict[str, Path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for what is measured")
    parser.add_argument("--scans", type=Path, required=True, help="scans and expert labels")
    parser.add_argument("--truth", type=Path, help="the expert labels, where they are in a folder of their own")
    parser.add_argument("--dataset", default="btcv", help="whose ids the labels carry; names the file of the result")
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=RESULTS", help="runs on these scans")
    parser.add_argument("--models", nargs="+", help="of the runs; default: all of them")
    parser.add_argument("--copies", type=int, default=8, help="corrupted copies of each case's expert label")
    parser.add_argument("--write", action="store_true", help="write quality_<dataset>.md, too")
    options = parser.parse_args()
    scheme = load_classes("flare")
    runs = [run.partition("=") for run in options.runs]
    sources = [source for name, _, run in runs for source in sources_of(name, Path(run), options.models)]
    tables = measure_all(options, scheme, sources)
    rows = joined(tables, {case: case for case in tables["case"].unique()}, scheme)  # each case is a patient
    text = "\n".join(lines(rows, scheme, [source.name for source in sources]))
    print(text)
    if options.write:
        made = written_by(__file__, "scikit-learn")
        write_text(RESULTS / f"quality_{options.dataset}.md", f"# Predicted quality of labels\n\n{made}\n\n{text}\n")


def sources_of(run_name: str, run: Path, models: Sequence[str] | None) -> list[Source]:
    """Return some models of a run (None: all), each with its predictions for cases that it did not learn from."""
    found: dict[str, dict[str, Path]] = {}
    for folder in sorted((run / "models").iterdir()):
        if models and folder.name not in models:
            continue
        learned = set(read_table(folder / "cases.csv", "training_cases")["case"])
        files = {path.name.removesuffix(".nii.gz"): path for path in (folder / "predictions").glob("*.nii.gz")}
        found[folder.name] = {case: path for case, path in sorted(files.items()) if case not in learned}
    names = list(found)
    sources = []
    for number, name in enumerate(names):
        tables = sorted((run / "models" / name / "predictions" / "confidence").glob("*.csv"))
        second: dict[str, Path] = {}
        for other in reversed(names[number + 1 :] + names[:number]):  # of each case, the next model that did not see it
            second |= found[other]
        confidence = pd.concat([read_table(path, "confidence") for path in tables])
        sources.append(Source(f"{run_name}/{name}", found[name], confidence, second))
    return [source for source in sources if source.files]


def measure_all(options: argparse.Namespace, scheme: ClassScheme, sources: Sequence[Source]) -> pd.DataFrame:
    """Return what is known of all label maps, a case at a time; what OUT has is not measured again."""
    own = load_dataset(options.dataset, scheme)
    classes = asked_classes(scheme, None, own)
    names = sorted(path.name.removesuffix("_0000.nii.gz") for path in options.scans.glob("*_0000.nii.gz"))
    labels = options.truth or options.scans
    options.out.mkdir(parents=True, exist_ok=True)

    def truth_of(name: str) -> Volume:
        return canonical(read_classes(labels / f"{name}.nii.gz", scheme, own))

    tables = []
    for name, before in zip(names, names[-1:] + names[:-1], strict=True):
        truth = truth_of(name)
        image = canonical(read_image(options.scans / f"{name}_0000.nii.gz", own.modality)).array
        about = (np.array(image), truth.geometry, own.modality, scheme, classes)

        def corrupt(name=name, before=before, truth=truth, about=about) -> list[dict]:
            drawn_by = (SEED, name, options.copies)
            other = np.array(truth_of(before).array)
            return with_errors(np.array(truth.array), *about, drawn_by, (), lambda: other)

        files = [sha256(labels / f"{name}.nii.gz"), sha256(options.scans / f"{name}_0000.nii.gz")]
        tables.append(kept(options.out, name, [*files, before, options.copies], corrupt))
        for number, source in enumerate(sources):
            if name in source.files:

                def predict(name=name, source=source, number=number, truth=truth, about=about) -> list[dict]:
                    return [{"map": f"{HELD_OUT}-{number}", **row} for row in of_prediction(name, source, truth, about)]

                both = [sha256(some[name]) if name in some else "" for some in (source.files, source.second)]
                table = kept(options.out, name, [*files, *both], predict)
                table["map"] = f"{HELD_OUT}-{number}"
                tables.append(table)
        print(name, flush=True)
    return pd.concat(tables, ignore_index=True)


def kept(out: Path, case: str, made_from: Sequence[Any], work: Callable[[], list[dict]]) -> pd.DataFrame:
    """Return a table of evidence, measured unless ``out`` has it of the same files and the same code."""
    path = out / f"{case}_{digest([*made_from, [sha256(path) for path in SOURCES]])}.csv"
    if not path.is_file():
        write_table(path, [{"case": case, **row} for row in work()], "evidence")
    return read_table(path, "evidence")


def of_prediction(case: str, source: Source, truth: Volume, about: tuple[Any, ...]) -> list[dict]:
    """Return what is known of one prediction, of which the largest component of each class is kept."""
    *_, scheme, classes = about
    labels, others = (
        [_cleaned(files[case], scheme)] if case in files else [] for files in (source.files, source.second)
    )
    pairs = disagreement([*labels, *others], scheme, classes) if others else []
    sure = source.confidence[source.confidence["case"] == case].to_dict("records")
    models = of_models(pairs, sure)
    dsc = true_dsc(labels[0], np.array(truth.array), scheme, classes)
    return measured(labels[0], *about, (), models, dsc)


def _cleaned(path: Path, scheme: ClassScheme) -> np.ndarray:
    labels = canonical(read(path))
    return clean(np.array(labels.array), labels.geometry, KEEP_LARGEST, scheme)[0]


def lines(rows: pd.DataFrame, scheme: ClassScheme, names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the result."""
    predicted = judged_rows(rows)
    judged = rows[predicted].reset_index(drop=True)
    judged["model"] = [names[int(name.partition("-")[2])] for name in judged["map"]]
    scores = all_scores(rows, scheme)
    patients, bad = judged["patient"].nunique(), int((judged["dsc"] < BAD).sum())
    kinds = f"{judged['class'].nunique()} classes, {judged['model'].nunique()} models, {patients} patients"
    yield f"{len(judged)} labels with a voxel or more ({kinds}); {bad} have a DSC below {BAD}. What is predicted of a"
    yield "patient's labels was learned from other patients."
    yield ""
    yield f"In brackets: 95 % interval over patients ({DRAWS} resamples), not over trainings. Good labels accepted: as"
    yield f"many as can be if {100 * PURITY:.0f} % of the accepted ones are to be good, by each score's best threshold,"
    yield f"found on these labels. AUROC over classes: mean over classes with {FEWEST} labels of either kind or more."
    yield ""
    yield "| score | AUROC | AUROC over classes | rank correlation in a class | good labels accepted |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for title, score in scores.items():
        yield f"| {title} | {' | '.join(cells(judged, score))} |"
    for better, worse in COMPARED:
        yield f"| {better} minus {worse} | {' | '.join(cells(judged, scores[better], scores[worse]))} |"
    yield ""
    yield from by_group(judged, scores, "model", pooled, list(TOLD))
    yield ""
    yield from by_group(judged, scores, "class", ranked, ["labels", "mean DSC"], "rank correlation: ")
    yield ""
    yield from intervals(judged, rows, scheme)


def judged_rows(rows: pd.DataFrame) -> pd.Series:
    """Return which rows are labels that a model drew: of an empty one, there is nothing to accept."""
    return (rows["source"] == HELD_OUT) & (rows["shape.volume"] > EMPTY)


def all_scores(rows: pd.DataFrame, scheme: ClassScheme) -> dict[str, np.ndarray]:
    """Return the scores that are compared: one number a predicted label, larger is better."""
    predicted = judged_rows(rows).to_numpy()
    single = without(rows, [name for name in PREDICTED if name != "confidence"])
    alone = single[single["source"] != HELD_OUT]
    judged = rows[predicted]
    return {
        ONE: out_of_fold(single, scheme.names)["dsc"].to_numpy()[predicted],
        TWO: out_of_fold(rows, scheme.names)["dsc"].to_numpy()[predicted],
        "predicted quality, learned from corrupted labels alone": transferred(alone, single[predicted], scheme),
        AGREEMENT: judged["agreement.dice"].fillna(0).to_numpy(),
        "rules of anatomy (how many fail, then doubt)": -(
            judged["rules.failed"] + judged["rules.doubted"] / 100
        ).to_numpy(),
        CONFIDENCE: judged["confidence.mean"].fillna(0).to_numpy(),
    }


def without(rows: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """Return rows that lack groups of evidence."""
    gone = {column: np.nan for column in rows.columns if group_of(column) in groups}
    return rows.assign(**gone)


def transferred(learned: pd.DataFrame, judged: pd.DataFrame, scheme: ClassScheme) -> np.ndarray:
    """Return the quality of labels, patient by patient learned from other patients' corrupted labels."""
    found = pd.Series(np.nan, index=judged.index)
    patients = sorted(judged["patient"].unique())
    for fold in range(FOLDS):
        mine = patients[fold::FOLDS]
        model = fitted(learned[~learned["patient"].isin(mine)], scheme.names)
        part = judged[judged["patient"].isin(mine)]
        found[part.index] = model.predict(part)["dsc"]
    return found.to_numpy()


@dataclass(frozen=True)
class Judged:
    """Labels as arrays [n]: number of the class, DSC, and a score."""

    classes: np.ndarray
    dsc: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, rows: pd.DataFrame, score: np.ndarray) -> "Judged":
        """Return the labels of some rows with a score."""
        return cls(rows["class"].astype("category").cat.codes.to_numpy(), rows["dsc"].to_numpy(float), score)

    def some(self, places: np.ndarray) -> "Judged":
        """Return those at some places, in that order."""
        return Judged(self.classes[places], self.dsc[places], self.score[places])

    def by_class(self) -> list["Judged"]:
        """Return the labels of each class."""
        return [self.some(np.flatnonzero(self.classes == number)) for number in np.unique(self.classes)]


def cells(rows: pd.DataFrame, score: np.ndarray, other: np.ndarray | None = None) -> Iterator[str]:
    """Yield the measures of one score, or what it is better by than another one, with intervals over patients."""
    random, patients = np.random.default_rng(SEED), rows["patient"].unique()
    scored = [score] if other is None else [score, other]
    judged = [Judged.of(rows, one) for one in scored]
    places = {patient: np.flatnonzero(rows["patient"] == patient) for patient in patients}
    draws = [np.concatenate([places[p] for p in random.choice(patients, len(patients))]) for _ in range(DRAWS)]
    for measure in (pooled, over_classes, ranked, accepted):
        drawn = np.array([[measure(one.some(draw)) for one in judged] for draw in draws])
        found = np.array([[measure(one) for one in judged]])
        low, high = np.nanquantile(_first_minus_second(drawn), [0.025, 0.975])
        yield f"{_first_minus_second(found)[0]:.2f} ({low:.2f} to {high:.2f})"


def _first_minus_second(values: np.ndarray) -> np.ndarray:
    """Return the first column, less the second if there is one."""
    return values[:, 0] - (values[:, 1] if values.shape[1] > 1 else 0)


def pooled(judged: Judged) -> float:
    """Return the AUROC: the probability that a good label has a larger score than a bad one (ties count half)."""
    bad = judged.dsc < BAD
    if bad.all() or not bad.any():
        return float("nan")
    ranks, good = rankdata(judged.score), ~bad
    return float((ranks[good].sum() - good.sum() * (good.sum() + 1) / 2) / (good.sum() * bad.sum()))


def over_classes(judged: Judged) -> float:
    """Return the mean AUROC over classes that have enough labels of either kind."""
    parts = [(part, int((part.dsc < BAD).sum())) for part in judged.by_class()]
    found = [pooled(part) for part, bad in parts if min(bad, len(part.dsc) - bad) >= FEWEST]
    return float(np.mean(found)) if found else float("nan")


def ranked(judged: Judged) -> float:
    """Return the mean rank correlation (Spearman) of score and DSC over classes."""
    found = []
    for part in judged.by_class():
        one, other = rankdata(part.score), rankdata(part.dsc)
        if one.std() and other.std():
            found.append(np.corrcoef(one, other)[0, 1])
    return float(np.mean(found)) if found else float("nan")


def accepted(judged: Judged) -> float:
    """Return the largest share of good labels above a threshold above which the purity holds."""
    good, order = judged.dsc >= BAD, np.argsort(-judged.score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(judged.score[order]) != 0, True))  # labels with one score come together
    number = np.cumsum(good[order])[ends]
    pure = number >= PURITY * (ends + 1)
    return float(number[pure].max() / good.sum()) if pure.any() else 0.0


TOLD: dict[str, Callable[[pd.DataFrame], str]] = {
    "labels": lambda part: str(len(part)),
    "mean DSC": lambda part: f"{part['dsc'].mean():.2f}",
    f"below {BAD}": lambda part: str(int((part["dsc"] < BAD).sum())),
}
"""What is told of a part of the judged labels beside how well scores tell good ones from bad ones."""


def by_group(
    judged: pd.DataFrame,
    scores: dict[str, np.ndarray],
    group: str,
    measure: Callable[[Judged], float],
    told: Sequence[str],
    what: str = "",
) -> Iterator[str]:
    """Yield a row for the labels of each model or class: what is told of them, and a measure of each score.

    Args:
        group: column that parts the labels. told: keys of :data:`TOLD`.
        what: begins the heading of the first score.
    """
    yield f"| {group} | {' | '.join(told)} | {what}{' | '.join(scores)} |"
    yield "| --- |" + " ---: |" * (len(told) + len(scores))
    for name in judged[group].unique():
        mine = (judged[group] == name).to_numpy()
        part = judged[mine]
        cells = [TOLD[key](part) for key in told]
        cells += [f"{measure(Judged.of(part, score[mine])):.2f}" for score in scores.values()]
        yield f"| {name} | {' | '.join(cells)} |"


def intervals(judged: pd.DataFrame, rows: pd.DataFrame, scheme: ClassScheme) -> Iterator[str]:
    """Yield how often the interval of 80 % holds, widened by other patients."""
    single = without(rows, [name for name in PREDICTED if name != "confidence"])
    found = out_of_fold(single, scheme.names)
    mine = judged_rows(rows).to_numpy()
    held, dsc = [], []
    for patient in judged["patient"].unique():
        this = mine & (rows["patient"] == patient).to_numpy()
        rest = mine & ~this
        widened = widening(found[rest], rows.loc[rest, "dsc"].to_numpy(float))
        true = rows.loc[this, "dsc"].to_numpy(float)
        held.append(
            ((found.loc[this, "low"] - widened <= true) & (true <= found.loc[this, "high"] + widened)).to_numpy()
        )
        dsc.append(np.abs(found.loc[this, "dsc"].to_numpy() - true))
    yield f"Intervals of 80 %, widened by other patients, hold {100 * np.concatenate(held).mean():.0f} % of labels;"
    yield f"the predicted DSC is off by {np.concatenate(dsc).mean():.3f} on average (one model)."
    counts = rows.drop_duplicates(["case", "map"])["source"].value_counts()
    yield f"Learned from {counts[UNALTERED]} expert label maps, {counts[CORRUPTED]} corrupted ones and "
    yield f"{counts[HELD_OUT]} predicted ones."


if __name__ == "__main__":
    main()
