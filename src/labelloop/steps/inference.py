"""Final label maps and their scores: the steps of ``workflow/rules/inference.smk``."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from labelloop.annotation import UNKNOWN, States, annotated
from labelloop.classes import ClassScheme, load_classes
from labelloop.errors import CaseError
from labelloop.files import digest
from labelloop.inference.infer import tell_found_nowhere
from labelloop.inference.steps import FinishedInference
from labelloop.labels.folder import tell_verdicts
from labelloop.metrics.evaluate import both_empty, tell_apart
from labelloop.metrics.flare import score_case
from labelloop.metrics.lesions import lesion_rows
from labelloop.shards import Ledger
from labelloop.steps.common import Files, Rows, Surveyed, engine_case, read_many, surveyed, table_of
from labelloop.survey import read_truth
from labelloop.tables import read_table, write_table
from labelloop.volume import Volume, read
from labelloop.wording import count

log = logging.getLogger(__name__)


def infer(
    rows: Rows,
    steps: Sequence[Mapping[str, Any]],
    engine: Mapping[str, Any],
    classes: str,
    shard: str,
    results: Path,
    device: str,
    deterministic: bool = False,
    meter: bool = False,
) -> None:
    """Run the inference chain over the cases of one shard: label maps, volumes and confidence, run times."""
    from labelloop.inference.postprocess import load_chain
    from labelloop.inference.running import Options, efficiency, run_cases
    from labelloop.inference.running import rows as summary_rows
    from labelloop.inference.settings import Settings

    out = results / "predictions"
    ledger = Ledger(out, shard)
    items = surveyed(rows, results / "survey", [shard])
    settings, scheme = Settings.model_validate(dict(engine)), load_classes(classes)
    chain = load_chain(steps, results / "models", scheme, device, settings, deterministic)
    run_cases([engine_case(item) for item in items], chain, ledger, Options(meter=meter))
    write_table(out / "summary" / f"{shard}.csv", summary_rows(ledger), "summary")
    write_table(out / "efficiency" / f"{shard}.csv", efficiency(ledger), "efficiency")


def summarize(
    summaries: Iterable[str],
    efficiencies: Iterable[str],
    steps: Sequence[Mapping[str, Any]],
    engine: Mapping[str, Any],
    classes: str,
    results: Path,
) -> None:
    """Join the shards' tables of the final label maps, and leave what ``labelloop infer --results`` needs."""
    out = results / "predictions"
    summary = read_many(summaries, "summary")
    write_table(out / "summary.csv", summary, "summary")
    tell_found_nowhere(summary.to_dict("records"))
    write_table(out / "efficiency.csv", read_many(efficiencies, "efficiency"), "efficiency")
    chain = {"classes": load_classes(classes), "engine": dict(engine), "steps": tuple(steps)}
    FinishedInference.model_validate(chain).write(results)


def check_final(rows: Rows, scheme: dict[str, Any], summary: str, shard: str, results: Path, version: int) -> None:
    """Hold the final label maps of one shard against the anatomy rules of the class scheme.

    Args:
        summary: table of the shard's volumes; a class in it that is empty fails its rule on volume.
    """
    from labelloop.inference.anatomy import verdicts

    rules, out = ClassScheme.model_validate(scheme), results / "predictions"
    classes = sorted(set(read_table(summary, "summary")["class"]))
    files = Files([out / "shards" / f"{shard}.csv"], "prediction")
    ledger = Ledger(out / "verdicts", shard)
    for item in surveyed(rows, results / "survey", [shard]):
        if item.id in files:

            def work(item: Surveyed = item) -> tuple[None, dict]:
                labels, image = item.label(files.path(item.id)), item.image()
                surgery = rules.select(item.case.surgery_names)
                return None, {"rows": verdicts(labels, image, item.case.modality, rules, classes, surgery)}

            content = [version, rules.model_dump(mode="json"), classes, item.case.surgery]
            ledger.run(item.id, digest([*content, files.key(item.id), item.image_key]), work)
    ledger.close()
    table = table_of(ledger.extras(), "rows")
    write_table(out / "verdicts" / f"{shard}.csv", table, "verdicts")
    tell_verdicts(table, logging.INFO)


def evaluate(
    rows: Rows,
    manifests: Sequence[str],
    survey_folder: Path,
    classes: str,
    known: Sequence[str],
    rules: str,
    out: Path,
    lesions: Path,
    version: int,
) -> None:
    """Score label maps of test cases against their truth, on classes that are annotated and that the maps know.

    A case whose label map could not be made is scored as FLARE does, as if nothing was found: a model is not to gain by
    failing. Its rows have no volume of a prediction.

    Args:
        manifests: manifests of the label maps.
        known: classes (or class sets) that the label maps can contain.
        out, lesions: tables to write, of kind "scores" and "lesions".
    """
    scheme = load_classes(classes)
    asked = scheme.select(list(known))
    files = Files(manifests, "prediction")
    ledger, missing = Ledger(out.parent / "cases", out.stem), []
    for item in surveyed(rows, survey_folder, [Path(manifest).stem for manifest in manifests]):
        states = {name: state if name in asked else UNKNOWN for name, state in item.states.items()}
        if not annotated(states) or not files.asked(item.id):
            continue
        missing += [] if item.id in files else [item.id]
        work = partial(_score, item, states, scheme, rules, files)
        judged = [rules, scheme.fingerprint("tolerance_mm", "tube"), states]
        ledger.run(item.id, digest([version, *judged, item.truth_key, files.key(item.id)]), work)
    ledger.close()
    if missing:
        log.warning("%s: no label map of %s; scored as if nothing was found", out.stem, ", ".join(missing))
    scores = table_of(ledger.extras(), "rows")
    write_table(out, scores, "scores")
    write_table(lesions, table_of(ledger.extras(), "lesions"), "lesions")
    tell_apart(scores)
    if not scores.empty:
        means = scores[~both_empty(scores)].groupby("class", sort=False)[["dsc", "nsd"]].mean()
        words = "%s: mean DSC %.4f, mean NSD %.4f over %s that are there or were found"
        log.info(words, out.stem, *means.mean(), count(len(means), "class"))


def _score(item: Surveyed, states: States, scheme: ClassScheme, rules: str, files: Files) -> tuple[None, dict]:
    truth = read_truth(item.case, scheme)
    if truth is None:
        raise CaseError("label_missing", item.case.label, "no label to score against", "Give one, or none.")
    predicted = item.id in files
    prediction = read(files.path(item.id)) if predicted else Volume(np.zeros_like(truth.array), truth.geometry)
    scores = score_case(truth, prediction, scheme, rules, states)
    if not predicted:
        scores = [row | dict.fromkeys(("volume_prediction_ml", "volume_error_ml")) for row in scores]
    return None, {"rows": scores, "lesions": lesion_rows(truth, prediction, scheme, states)}
