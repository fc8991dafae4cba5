"""Score a folder of label maps against a folder of truth: ``labelloop evaluate``."""

import logging
from collections import Counter
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.errors import CaseError, UserError, nearest
from labelloop.base.outputs import is_table, refuse_overwriting
from labelloop.base.sequences import flat
from labelloop.base.tables import read_table, write_table
from labelloop.base.wording import NOTHING, count, first_of, named, shown
from labelloop.cases.annotation import PRESENT, STATES, States, from_table
from labelloop.images.datasets import Dataset, of_scheme
from labelloop.images.listing import Listing, tell
from labelloop.images.mask_folders import list_label_maps, masks_of, read_label_map
from labelloop.images.nnunet_json import ids_beside
from labelloop.metrics.flare import get_rules, score_case
from labelloop.metrics.lesions import in_words, lesion_rows

log = logging.getLogger(__name__)

OF_PREDICTIONS = "Name the data set whose ids the predictions carry (--prediction-dataset)."
SEVERAL = 2
"""So many classes or more that lie nowhere in the same place are rather named wrong than segmented badly."""


def evaluate_folders(
    truth_dir: str | Path,
    prediction_dir: str | Path,
    classes: str | Path,
    rules: str,
    out: str | Path,
    workers: int = 1,
    annotation: str | Path | None = None,
    lesions: str | Path | None = None,
    dataset: str | Path | None = None,
    prediction_dataset: str | Path | None = None,
) -> int:
    """Score the label maps of one folder against those of the same cases in another; write ``scores``, print a summary.

    Args:
        truth_dir, prediction_dir: folders of label maps in the ids of ``classes``, of ``dataset`` (the truth) and of
            ``prediction_dataset``; or of folders with a mask an organ (:mod:`labelloop.images.mask_folders`). Where a
            ``dataset.json`` of nnU-Net lies beside label maps, it says the ids.
        classes: class scheme, by name or path.
        rules: a name in :data:`labelloop.metrics.flare.RULES`.
        out: the table to write, of kind "scores".
        workers: processes.
        annotation: table of kind "annotation": classes that it calls unknown, or does not name, are not scored.
        lesions: the table to write of what was found and missed of tumors, of kind "lesions"; None writes none.
        dataset: data set, by name or path, whose ids the truth carries and whose ``annotated`` classes are scored,
            unless ``annotation`` says otherwise. Of masks, the classes that have one are scored.
        prediction_dataset: data set, by name or path, whose ids the predictions carry.

    Returns:
        How many problems there were: cases missing on one side, unreadable, or not comparable. Each is logged as one
        line and does not stop the others.

    Raises:
        UserError: when a folder, the classes, the rules, the data set or the annotation table do not exist, a folder
            holds no label map, or a table would be written over what is read or what another program wrote.
    """
    get_rules(rules)
    scheme = load_classes(classes)
    states = _read_states(annotation, scheme) if annotation else None
    named_ids, said = ids_beside(Path(truth_dir), dataset, scheme)
    predicted_ids, said_too = ids_beside(Path(prediction_dir), prediction_dataset, scheme)
    sides = ((truth_dir, named_ids), (prediction_dir, predicted_ids))
    listings = [list_label_maps(folder, ids or of_scheme(scheme)) for folder, ids in sides]
    truths, predictions = (listing.volumes for listing in listings)
    read_files = [*truths.values(), *predictions.values(), *([annotation] if annotation else [])]
    read_files += [*said, *said_too]
    refuse_overwriting([out], read_files, is_table("scores"))
    refuse_overwriting([lesions] if lesions else [], [*read_files, out], is_table("lesions"))
    problems = _listed(listings, truths.keys() & predictions.keys())
    problems += [f"{case}: no prediction in {prediction_dir}" for case in sorted(truths.keys() - predictions.keys())]
    problems += [f"{case}: no truth in {truth_dir}" for case in sorted(predictions.keys() - truths.keys())]
    both = truths.keys() & predictions.keys()
    _tell_same_files([case for case in sorted(both) if truths[case].samefile(predictions[case])])
    problems += [
        f"{case}: not in {annotation}, so nothing is scored" for case in sorted(both - (states or truths).keys())
    ]
    shared = (scheme, rules, named_ids, predicted_ids)
    jobs = [
        _Job(case, truths[case], predictions[case], _states(case, states, named_ids, truths[case], scheme), *shared)
        for case in sorted(both)
    ]
    tables = _tables(jobs, workers, problems)
    write_table(out, tables["scores"], "scores")
    if lesions:
        write_table(lesions, tables["lesions"], "lesions")
    for problem in problems:
        log.error("%s", problem)
    print(summary(tables["scores"], scheme), in_words(tables["lesions"]), sep="\n")
    tell_apart(tables["scores"])
    return len(problems)


def _tables(jobs: "Sequence[_Job]", workers: int, problems: list[str]) -> dict[str, pd.DataFrame]:
    """Return the tables of all cases by kind; what keeps a case from being scored goes to ``problems``."""
    rows: dict[str, list[dict]] = {"scores": [], "lesions": []}
    for scored, problem in _scored(jobs, workers):
        for kind, of_case in scored.items():
            rows[kind] += of_case
        problems += [problem] if problem else []
    return {kind: pd.DataFrame(all_rows) for kind, all_rows in rows.items()}


def _tell_same_files(cases: Sequence[str]) -> None:
    if cases:
        what = count(len(cases), "prediction")
        log.warning("%s scored as perfect, being the very file of the truth: %s", what, named(cases))


def _read_states(path: str | Path, scheme: ClassScheme) -> dict[str, dict[str, str]]:
    """Read an annotation table. Raises UserError for states and classes that are none, and rows that stand twice."""
    table = read_table(path, "annotation")
    lines = [f"{path}: {case}, {name}: a second row" for case, name in table.loc[
        table.duplicated(["case", "class"]), ["case", "class"]].itertuples(index=False)]  # fmt: skip
    for column, known in (("state", STATES), ("class", scheme.names)):
        wrong = sorted(set(table[column]) - set(known))
        lines += [f"{path}: {column} {name[:40]!r}{nearest(name, known)}" for name in wrong]
    if lines:
        raise UserError("\n".join(first_of(lines)))
    return from_table(table)


def _listed(listings: Sequence[Listing], used: Container[str]) -> list[str]:
    """Say what of the folders is used and what is not; return a line for each file that should be read and cannot."""
    for listing in listings:
        tell(listing, sum(case in used for case in listing.volumes), "label map")
    return [f"{shown(entry.path)}: {entry.reason}" for entry in flat(listing.lost for listing in listings)]


def _states(
    case: str, states: Mapping[str, States] | None, dataset: Dataset | None, truth: Path, scheme: ClassScheme
) -> States | None:
    """Return what is known of a case: by the annotation table, or else by its masks, or the data set; None: all."""
    if states is not None:
        return states.get(case, {})
    if truth.is_dir():
        masks = masks_of(truth, dataset or of_scheme(scheme))
        return dict.fromkeys((name for name in masks.files if name in scheme.ids), PRESENT)
    return None if dataset is None else dict.fromkeys(dataset.annotated, PRESENT)  # which stands for absent, too


@dataclass(frozen=True)
class _Job:
    """What a process needs to score a case."""

    case: str
    truth: Path
    prediction: Path
    states: States | None
    scheme: ClassScheme
    rules: str
    dataset: Dataset | None
    predicted: Dataset | None


_Scored = tuple[dict[str, list[dict]], str | None]
"""Rows of one case by kind of table, and the problem that kept it from being scored."""


def _scored(jobs: Sequence[_Job], workers: int) -> Iterable[_Scored]:
    if workers <= 1 or len(jobs) <= 1:
        yield from map(_score_files, jobs)
        return
    # Spawned, because SimpleITK's threads do not survive a fork.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_score_files, jobs)


def _score_files(job: _Job) -> _Scored:
    case, file = job.case, str(job.prediction)
    try:
        truth = read_label_map(job.truth, job.scheme, job.dataset)
        prediction = read_label_map(job.prediction, job.scheme, job.predicted, OF_PREDICTIONS)
        scores = score_case(truth, prediction, job.scheme, job.rules, job.states, file)
        lesions = lesion_rows(truth, prediction, job.scheme, job.states, file)
    except (CaseError, OSError) as error:
        return {}, f"{case}: {error}"
    return {"scores": [{"case": case, **r} for r in scores], "lesions": [{"case": case, **r} for r in lesions]}, None


def class_means(table: pd.DataFrame, scheme: ClassScheme) -> pd.DataFrame:
    """Return mean DSC and NSD over cases [class; cases, dsc, nsd], then the means of the scheme's sets.

    The mean of a set is the mean of its class means, as FLARE's organ DSC; a set of one class adds no row.
    """
    if table.empty:
        return pd.DataFrame(columns=["cases", "dsc", "nsd"], dtype=float)
    groups = table.groupby("class")[["dsc", "nsd"]]
    means = groups.mean().assign(cases=groups.size())
    means = means.reindex([n for n in scheme.names if n in means.index])[["cases", "dsc", "nsd"]]
    for name, members in scheme.sets.items():
        scored = means.loc[[m for m in members if m in means.index], ["dsc", "nsd"]]
        if len(members) > 1 and len(scored):
            cases = table.loc[table["class"].isin(members), "case"].nunique()
            means.loc[f"mean of {name}"] = [cases, *scored.mean()]
    return means.astype({"cases": int})


def both_empty(table: pd.DataFrame) -> pd.Series:
    """Return which rows of a "scores" table have neither truth nor prediction: FLARE's rules give them 100 %."""
    return (table["volume_truth_ml"] == 0) & (table["volume_prediction_ml"].fillna(0) == 0)


def tell_apart(table: pd.DataFrame) -> None:
    """Warn where the ids of truth or prediction may well be those of another scheme, as a "scores" table tells.

    Truth in BTCV's ids is valid in FLARE's, and so would be scored without a word: several classes that both sides hold
    overlap in no case. Of truth with few classes, none is found in any case.
    """
    if table.empty:
        return
    volumes = table[["volume_truth_ml", "volume_prediction_ml"]].fillna(0) > 0
    best = table[volumes["volume_truth_ml"]].groupby("class", sort=False)["dsc"].max()
    both = table[volumes.all(axis=1)].groupby("class", sort=False)["dsc"].max()
    apart = list(both.index[both == 0])
    if len(best) and not best.any():
        log.warning(
            "no class of the truth overlaps with its prediction in any case: %s. Do the predictions carry the ids of "
            "another scheme (--prediction-dataset names theirs, --dataset those of the truth)?", ", ".join(best.index)
        )  # fmt: skip
    elif len(apart) >= SEVERAL:
        log.warning(
            "truth and prediction overlap in no case for %d of the %s that both hold: %s. Are the ids of one side "
            "those of another scheme (--dataset names that of the truth), or the sides of the patient swapped?",
            len(apart), count(len(both), "class"), ", ".join(apart),
        )  # fmt: skip


def summary(table: pd.DataFrame, scheme: ClassScheme) -> str:
    """Return means of a "scores" table as text, in percent, over the cases in which a class is, or was found.

    Cases without truth and prediction are counted apart: they would lift a mean to any height. Each mean over classes
    says over how many.
    """
    if table.empty:
        return "nothing was scored"
    empty = both_empty(table)
    apart = Counter(table.loc[empty, "class"])
    means = class_means(table[~empty], scheme).to_dict("index")
    lines = [f"{'class':<22} {'cases':>5} {'empty':>5} {'DSC %':>7} {'NSD %':>7}"]
    for name in scheme.names:
        if name in set(table["class"]):
            lines.append(_line(name, means.get(name), str(apart[name])))
    for name, members in scheme.sets.items():
        title, scored = f"mean of {name}", [member for member in members if member in means]
        if title in means:
            over = f"over {len(scored)} of {count(len(members), 'class')}"
            lines.append(f"{_line(title, means[title], '')}  {over}")
    if empty.any():
        lines.append("empty: cases with neither truth nor prediction, not in the means (FLARE counts them as 100 %)")
    return "\n".join(lines)


def _line(name: str, means: Mapping[Hashable, Any] | None, empty: str) -> str:
    """Write a row of the summary; None: a class without a case to take a mean over."""
    values = (np.nan if means is None else means[metric] for metric in ("dsc", "nsd"))
    dsc, nsd = (NOTHING if np.isnan(value) else f"{np.round(100 * value, 2):.2f}" for value in values)
    return f"{name:<22} {0 if means is None else int(means['cases']):>5} {empty:>5} {dsc:>7} {nsd:>7}"
