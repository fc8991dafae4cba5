"""Train models and let them predict: the steps of ``workflow/rules/models.smk``."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from labelloop.annotation import UNKNOWN, from_table
from labelloop.classes import load_classes
from labelloop.errors import UserError
from labelloop.files import digest
from labelloop.plans import Plan
from labelloop.recipe import ModelSpec
from labelloop.shards import Ledger
from labelloop.steps.common import Files, Rows, Surveyed, in_groups, order_by, surveyed
from labelloop.tables import read_table, write_table

log = logging.getLogger(__name__)


def train(
    rows: Rows,
    name: str,
    spec: dict[str, Any],
    plan: dict[str, Any],
    classes: str,
    groups: dict[str, dict],
    shards: Sequence[str],
    results: Path,
    images: Path,
    device: str,
    deterministic: bool,
    workers: int,
) -> None:
    """Train one model on its label set.

    Raises:
        UserError: when no case is left to learn from.
    """
    from labelloop.training.nnunet import TrainingJob
    from labelloop.training.nnunet import train as run_training

    model, scheme = ModelSpec.model_validate(spec), load_classes(classes)
    usable = in_groups(surveyed(rows, results / "survey", shards), model.cases, scheme, groups)
    outputs = scheme.select(model.classes)
    run_training(
        TrainingJob(
            name=name,
            folder=results / "models" / name,
            plan=Plan.model_validate(plan),
            images=images,
            labels=images / "labels" / model.labels,
            cases=_training_cases(usable, model, outputs, name, results, images, shards),
            classes=outputs,
            class_ids=scheme.ids,
            settings=model.trainer,
            init_from=results / "models" / model.init_from if model.init_from else None,
            device=device,
            deterministic=deterministic,
            workers=workers,
        )
    )


def _training_cases(
    usable: Sequence[Surveyed],
    model: ModelSpec,
    outputs: Sequence[str],
    name: str,
    results: Path,
    images: Path,
    shards: Iterable[str],
) -> tuple:
    from labelloop.training.nnunet import TrainingCase

    shards = list(shards)
    image_files = Files([images / "shards" / f"{s}.csv" for s in shards], "prepared_image")
    label_files = Files([images / "labels" / model.labels / "shards" / f"{s}.csv" for s in shards], "prepared_label")
    states = {c.id: c.states for c in usable}
    if model.labels != "truth":
        chosen = from_table(read_table(results / "labels" / model.labels / "selected.csv", "selected"))
        states = {case: chosen[case] for case in states if case in chosen}
    known = {
        case: {c: state.get(c, UNKNOWN) for c in outputs}
        for case, state in states.items()
        if case in image_files and case in label_files and any(state.get(c, UNKNOWN) != UNKNOWN for c in outputs)
    }
    held_out = validation_cases(known, model.validation_fraction, model.trainer.seed)
    log.info("model %s: %d cases to learn from, %d of them for validation", name, len(known), len(held_out))
    if not known:
        raise UserError(
            f"model {name}: none of {len(usable)} cases in {' or '.join(model.cases)} has a known class of "
            f"{', '.join(outputs)} in labels {model.labels}. See quarantine.csv, groups.csv and selected.csv."
        )
    return tuple(
        TrainingCase(
            case=case,
            split="validation" if case in held_out else "train",
            states=known[case],
            key=digest([image_files.key(case), label_files.key(case)]),
        )
        for case in sorted(known)
    )


def validation_cases(cases: Iterable[str], fraction: float, seed: int) -> set[str]:
    """Choose the cases kept for validation: at least one of two or more, none when ``fraction`` is 0.

    Whether a case is chosen before another follows from the two ids and the seed alone.
    """
    cases = sorted(cases, key=lambda case: order_by(case, seed))
    count = max(1, round(fraction * len(cases))) if fraction and len(cases) > 1 else 0
    return set(cases[:count])


def predict(rows: Rows, model: Path, shard: str, survey_folder: Path, engine: dict[str, Any], device: str) -> None:
    """Let a model label the cases of one shard; write label maps, manifest and confidence."""
    from labelloop.inference.engine import Predictor
    from labelloop.inference.infer import Case, predict_cases
    from labelloop.inference.settings import Settings

    out = model / "predictions"
    ledger = Ledger(out, shard)
    items = surveyed(rows, survey_folder, [shard])
    cases = [Case(i.id, Path(i.case.image), i.case.modality, i.image_sha256) for i in items]
    found = predict_cases(cases, Predictor(model, device, Settings.model_validate(engine)), ledger)
    write_table(out / "confidence" / f"{shard}.csv", pd.DataFrame(found), "confidence")
