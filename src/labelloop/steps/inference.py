"""Final label maps and their scores: the steps of ``workflow/rules/inference.smk``."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.errors import CaseError
from labelloop.base.files import digest
from labelloop.base.paths import models_of, shard_of
from labelloop.base.shards import Ledger
from labelloop.base.tables import read_table, write_table
from labelloop.base.wording import count
from labelloop.cases.annotation import UNKNOWN, States, annotated
from labelloop.cases.survey import read_truth
from labelloop.cases.usable import UsableCase
from labelloop.images.volume import Volume, read
from labelloop.inference.infer import tell_found_nowhere
from labelloop.inference.steps import FinishedInference
from labelloop.labels.folder import tell_verdicts
from labelloop.metrics.evaluate import both_empty, tell_apart
from labelloop.metrics.flare import score_case
from labelloop.metrics.lesions import lesion_rows
from labelloop.steps.common import Files, SurveyTables, input_image, read_many, table_of

log = logging.getLogger(__name__)


def infer(
    survey: SurveyTables,
    models: Sequence[Path],
    steps: Sequence[Mapping[str, Any]],
    engine: Mapping[str, Any],
    classes: str,
    manifest: Path,
    summary: Path,
    efficiency: Path,
    device: str,
    deterministic: int = 0,
    meter: int = 0,
) -> None:
    """Run the inference chain over the cases of one shard: label maps, volumes and confidence, run times.

    Args:
        models: files of the models that the steps name.
    """
    from labelloop.inference.postprocess import load_chain
    from labelloop.inference.running import Options, run_cases
    from labelloop.inference.running import efficiency as costs
    from labelloop.inference.settings import Settings

    ledger, items = Ledger.of(manifest), survey.usable()
    settings, scheme = Settings.model_validate(dict(engine)), load_classes(classes)
    chain = load_chain(steps, models_of(models[0]), scheme, device, settings, bool(deterministic))
    run_cases([input_image(item) for item in items], chain, ledger, Options(meter=bool(meter)))
    write_table(summary, table_of(ledger.extras(), "rows"), "summary")
    write_table(efficiency, costs(ledger), "efficiency")


def summarize(
    shard_summary: Sequence[Path],
    shard_efficiency: Sequence[Path],
    steps: Sequence[Mapping[str, Any]],
    engine: Mapping[str, Any],
    classes: str,
    summary: Path,
    efficiency: Path,
    inference: Path,
) -> None:
    """Join the shards' tables of the final label maps, and leave what ``labelloop infer --results`` needs."""
    volumes = read_many(shard_summary, "summary")
    write_table(summary, volumes, "summary")
    tell_found_nowhere(volumes.to_dict("records"))
    write_table(efficiency, read_many(shard_efficiency, "efficiency"), "efficiency")
    chain = {"classes": load_classes(classes), "engine": dict(engine), "steps": tuple(steps)}
    FinishedInference.model_validate(chain).write(inference)


def check_final(
    survey: SurveyTables,
    maps: Path,
    summary: Path,
    rules: dict[str, Any],
    table: Path,
    manifest: Path,
    version: int,
) -> None:
    """Hold the final label maps of one shard against the anatomy rules of the class scheme.

    Args:
        maps: manifest of the label maps.
        summary: table of the shard's volumes; a class in it that is empty fails its rule on volume.
        rules: the class scheme.
        table, manifest: to write.
    """
    from labelloop.inference.anatomy import verdicts

    scheme = ClassScheme.model_validate(rules)
    classes = sorted(set(read_table(summary, "summary")["class"]))
    files, ledger = Files([maps], "prediction"), Ledger.of(manifest)
    for item in survey.usable():
        if item.id in files:

            def work(item: UsableCase = item) -> tuple[None, dict]:
                labels, image = item.label(files.path(item.id)), item.image()
                surgery = scheme.select(item.case.surgery_names)
                return None, {"rows": verdicts(labels, image, item.case.modality, scheme, classes, surgery)}

            content = [version, scheme.model_dump(mode="json"), classes, item.examination_key]
            ledger.run(item.id, digest([*content, files.key(item.id)]), work)
    ledger.close()
    found = table_of(ledger.extras(), "rows")
    write_table(table, found, "verdicts")
    tell_verdicts(found, logging.INFO)


def evaluate(
    survey: SurveyTables,
    maps: Sequence[Path],
    classes: str,
    known: Sequence[str],
    rules: str,
    scores: Path,
    lesions: Path,
    manifest: Path,
    version: int,
) -> None:
    """Score label maps of test cases against their truth, on classes that are annotated and that the maps know.

    A case whose label map could not be made is scored as FLARE does, as if nothing was found: a model is not to gain by
    failing. Its rows have no volume of a prediction.

    Args:
        maps: manifests of the label maps.
        known: classes (or class sets) that the label maps can contain.
        scores, lesions, manifest: to write.
    """
    scheme, name = load_classes(classes), shard_of(manifest)
    asked = scheme.select(list(known))
    files = Files(maps, "prediction")
    ledger, missing = Ledger.of(manifest), []
    for item in survey.usable():
        states = {c: state if c in asked else UNKNOWN for c, state in item.states.items()}
        if not annotated(states) or not files.asked(item.id):
            continue
        missing += [] if item.id in files else [item.id]
        work = partial(_score, item, states, scheme, rules, files)
        judged = [rules, scheme.fingerprint("tolerance_mm", "tube"), states]
        ledger.run(item.id, digest([version, *judged, item.truth_key, files.key(item.id)]), work)
    ledger.close()
    if missing:
        log.warning("%s: no label map of %s; scored as if nothing was found", name, ", ".join(missing))
    found = table_of(ledger.extras(), "rows")
    write_table(scores, found, "scores")
    write_table(lesions, table_of(ledger.extras(), "lesions"), "lesions")
    tell_apart(found)
    if not found.empty:
        means = found[~both_empty(found)].groupby("class", sort=False)[["dsc", "nsd"]].mean()
        words = "%s: mean DSC %.4f, mean NSD %.4f over %s that are there or were found"
        log.info(words, name, *means.mean(), count(len(means), "class"))


def _score(item: UsableCase, states: States, scheme: ClassScheme, rules: str, files: Files) -> tuple[None, dict]:
    truth = read_truth(item.case, scheme)
    if truth is None:
        raise CaseError("label_missing", item.case.label, "no label to score against", "Give one, or none.")
    predicted = item.id in files
    prediction = read(files.path(item.id)) if predicted else Volume(np.zeros_like(truth.array), truth.geometry)
    scores = score_case(truth, prediction, scheme, rules, states)
    if not predicted:
        scores = [row | dict.fromkeys(("volume_prediction_ml", "volume_error_ml")) for row in scores]
    return None, {"rows": scores, "lesions": lesion_rows(truth, prediction, scheme, states)}
