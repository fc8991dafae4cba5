"""Score a folder of label maps against a folder of truth: ``labelloop evaluate``."""

import logging
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from labelloop.annotation import States, from_table
from labelloop.classes import ClassScheme, load_classes
from labelloop.errors import CaseError
from labelloop.folders import label_maps
from labelloop.metrics.flare import get_rules, score_case
from labelloop.metrics.lesions import in_words, lesion_rows
from labelloop.scan import read_classes
from labelloop.tables import read_table, write_table

log = logging.getLogger(__name__)


def evaluate_folders(
    truth_dir: str | Path,
    prediction_dir: str | Path,
    classes: str | Path,
    rules: str,
    out: str | Path,
    workers: int = 1,
    annotation: str | Path | None = None,
    lesions: str | Path | None = None,
) -> int:
    """Score the label maps of one folder against those of the same cases in another; write ``scores``, print a summary.

    Args:
        truth_dir, prediction_dir: folders of label maps in the ids of ``classes``.
        classes: class scheme, by name or path.
        rules: a name in :data:`labelloop.metrics.flare.RULES`.
        out: the table to write, of kind "scores".
        workers: processes.
        annotation: table of kind "annotation": classes that it calls unknown, or does not name, are not scored.
        lesions: the table to write of what was found and missed of tumors, of kind "lesions"; None writes none.

    Returns:
        How many problems there were: cases missing on one side, unreadable, or not comparable. Each is logged as one
        line and does not stop the others.

    Raises:
        UserError: when a folder, the classes, the rules or the annotation table do not exist, or a folder holds no
            label map.
    """
    get_rules(rules)
    scheme = load_classes(classes)
    states = from_table(read_table(annotation, "annotation")) if annotation else None
    truths, predictions = label_maps(truth_dir), label_maps(prediction_dir)
    problems = [f"{case}: no prediction in {prediction_dir}" for case in sorted(truths.keys() - predictions.keys())]
    problems += [f"{case}: no truth in {truth_dir}" for case in sorted(predictions.keys() - truths.keys())]
    jobs = [
        (case, truths[case], predictions[case], scheme, rules, states if states is None else states.get(case, {}))
        for case in sorted(truths.keys() & predictions.keys())
    ]
    rows: dict[str, list[dict]] = {"scores": [], "lesions": []}
    for scored, problem in _scored(jobs, workers):
        for kind, of_case in scored.items():
            rows[kind] += of_case
        problems += [problem] if problem else []
    tables = {kind: pd.DataFrame(all_rows) for kind, all_rows in rows.items()}
    write_table(out, tables["scores"], "scores")
    if lesions:
        write_table(lesions, tables["lesions"], "lesions")
    for problem in problems:
        log.error("%s", problem)
    print(summary(tables["scores"], scheme), in_words(tables["lesions"]), sep="\n")
    return len(problems)


def _scored(jobs: list[tuple], workers: int) -> Iterable[tuple[dict[str, list[dict]], str | None]]:
    if workers <= 1 or len(jobs) <= 1:
        yield from map(_score_files, jobs)
        return
    # Spawned, because SimpleITK's threads do not survive a fork.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_score_files, jobs)


def _score_files(
    job: tuple[str, Path, Path, ClassScheme, str, States | None],
) -> tuple[dict[str, list[dict]], str | None]:
    """Return the rows of one case by kind of table, or the problem that kept it from being scored."""
    case, truth, prediction, scheme, rules, states = job
    try:
        pair, file = (read_classes(truth, scheme), read_classes(prediction, scheme)), str(prediction)
        scores = score_case(*pair, scheme, rules, states, file)
        lesions = lesion_rows(*pair, scheme, states, file)
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


def summary(table: pd.DataFrame, scheme: ClassScheme) -> str:
    """Return :func:`class_means` as text, in percent."""
    lines = [f"{'class':<22} {'cases':>5} {'DSC %':>7} {'NSD %':>7}"]
    for name, row in class_means(table, scheme).iterrows():
        dsc, nsd = (np.round(100 * row[metric], 2) for metric in ("dsc", "nsd"))
        lines.append(f"{name:<22} {int(row['cases']):>5} {dsc:>7.2f} {nsd:>7.2f}")
    return "\n".join(lines)
