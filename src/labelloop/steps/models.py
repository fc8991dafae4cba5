"""Train models and let them predict: the steps of ``workflow/rules/models.smk``."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labelloop.annotation import UNKNOWN, annotated
from labelloop.classes import load_classes
from labelloop.errors import UserError
from labelloop.files import digest
from labelloop.inference.settings import Device
from labelloop.plans import Plan
from labelloop.recipe import TRUTH, ModelSpec
from labelloop.resources import Workers, loader_workers
from labelloop.shards import Ledger, read_manifests
from labelloop.steps.common import Files, Rows, Surveyed, engine_case, in_groups, surveyed, trusted
from labelloop.tables import read_table, write_table
from labelloop.training.settings import SEMI_SUPERVISED, SLICE_CLASSIFIER, Determinism
from labelloop.training.split import held_out_cases

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
    labels: Path,
    learned: Iterable[str | Path],
    objects: Sequence[str | Path],
    device: Device,
    deterministic: Determinism,
    workers: Workers,
    threads: int,
    cards: int = 1,
    stage: str | None = None,
) -> None:
    """Train one model on its label set.

    Args:
        images: folder of the prepared images of the model's plan.
        labels: folder of the prepared labels that the model learns from.
        learned: tables of the cases that the models were trained with whose weights it starts from.
        objects: manifests of the tumor objects that the training pastes, if it does.
        threads: of the job; they load batches where ``workers`` is ``auto``.
        cards: that share the batches, at most; 0 for none.
        stage: folder on this node's own disk for a copy of the arrays (see ``training.staging``).

    Raises:
        UserError: when no case is left to learn from.
    """
    from labelloop.training.nnunet import TrainingJob

    model, scheme = ModelSpec.model_validate(spec), load_classes(classes)
    usable = in_groups(surveyed(rows, results / "survey", shards), model.cases, scheme, groups)
    batches = model.trainer.batches
    full = {c.id for c in in_groups(usable, batches.full, scheme, groups)} if batches else set()
    outputs, patients = scheme.select(model.classes), {row["case"]: row["patient"] for row in rows}
    seen = {patients[case] for case in _learned(learned) if case in patients}
    cases = _training_cases(usable, patients, seen, full, model, outputs, name, results, images, labels, shards)
    _trainer(model)(
        TrainingJob(
            name=name,
            folder=results / "models" / name,
            plan=Plan.model_validate(plan),
            images=images,
            labels=labels,
            cases=cases,
            classes=outputs,
            class_ids=scheme.ids,
            settings=model.trainer,
            init_from=results / "models" / model.init_from if model.init_from else None,
            tumors=_tumor_bank(Path(objects[0]).parents[1], shards, {c.case for c in cases}) if objects else None,
            device=device,
            deterministic=deterministic,
            workers=loader_workers(workers, threads // max(1, cards)),
            cards=max(1, cards),
            stage=stage,
        )
    )


def _trainer(model: ModelSpec) -> Callable:
    """Return what trains a model of this kind."""
    if model.trainer.kind == SLICE_CLASSIFIER:
        from labelloop.training.slices import train
    else:
        from labelloop.training.nnunet import train
    return train


def _learned(tables: Iterable[str | Path]) -> list[str]:
    """Return the cases that models were trained with."""
    return [case for path in tables for case in read_table(path, "training_cases").query("split == 'train'")["case"]]


def _training_cases(
    usable: Sequence[Surveyed],
    patients: Mapping[str, str],
    seen: Collection[str],
    full: set[str],
    model: ModelSpec,
    outputs: Sequence[str],
    name: str,
    results: Path,
    images: Path,
    labels: Path,
    shards: Sequence[str],
) -> tuple:
    """Return the cases of a training: those with a known class and, for trainers that use them, the unlabeled ones.

    Other cases of patients that are validated on are left out.

    Args:
        seen: patients that the model's weights know already, so that it is not validated on them.
    """
    from labelloop.training.nnunet import TrainingCase

    image_files = Files([images / "shards" / f"{s}.csv" for s in shards], "prepared_image")
    label_files = Files([labels / "shards" / f"{s}.csv" for s in shards], "prepared_label")
    states = trusted(model.labels, results, usable)
    asked = {
        c.id: {o: states.get(c.id, {}).get(o, UNKNOWN) if c.id in label_files else UNKNOWN for o in outputs}
        for c in usable
        if c.id in image_files
    }
    known = {case: state for case, state in asked.items() if annotated(state)}
    drawn = {c.id: {o: c.states[o] for o in outputs} for c in usable if c.id in known}
    judged = known if model.validate_on == "labels" else {c: state for c, state in drawn.items() if annotated(state)}
    share, seed = model.validation_fraction, model.validation_seed
    held_out = held_out_cases(known, judged, patients, seen, share, seed)
    away = {patients[case] for case in held_out}
    more = asked if model.trainer.kind in SEMI_SUPERVISED else known
    learning = {case: state for case, state in more.items() if patients[case] not in away}
    used = learning | {case: judged[case] for case in held_out}
    if model.validation_fraction and not held_out:
        log.warning("model %s: no patient is left whose truth no model behind it knows: nothing to validate on", name)
    log.info(
        "model %s: %d cases to learn from, %d of them for validation, %d unlabeled",
        name, len(used), len(held_out), len(learning.keys() - known.keys()),
    )  # fmt: skip
    if not known:
        raise UserError(
            f"model {name}: none of {len(usable)} cases in {' or '.join(model.cases)} has a known class of "
            f"{', '.join(outputs)} in labels {model.labels}. See quarantine.csv, groups.csv and selected.csv."
        )
    return tuple(
        TrainingCase(
            case=case,
            split="validation" if case in held_out else "train",
            states=used[case],
            key=digest([image_files.key(case), *([label_files.key(case)] if case in known else [])]),
            full=case in full,
            truth=tuple(annotated(drawn.get(case, {}))) if model.labels != TRUTH else None,
        )
        for case in sorted(used)
    )


def _tumor_bank(folder: Path, shards: Sequence[str], cases: Collection[str]):
    """Return the tumor objects that were cut from ``cases``; the bank holds those of all cases of the shards."""
    from labelloop.training.nnunet import TumorBank

    rows = read_manifests([folder / "shards" / f"{s}.csv" for s in shards])
    found = zip(rows["case"], rows["file"], rows["sha256"], strict=True)
    return TumorBank(folder, {case: sha256 for case, file, sha256 in found if file and case in cases})


def predict(
    rows: Rows,
    model: Path,
    shard: str,
    survey_folder: Path,
    engine: dict[str, Any],
    device: str,
    deterministic: bool = False,
) -> None:
    """Let a model label the cases of one shard; write label maps, manifest and confidence.

    CT is left out where the model knows CT in the look of MR only.
    """
    from labelloop.inference.engine import Predictor
    from labelloop.inference.running import predict_cases
    from labelloop.inference.settings import Settings

    out = model / "predictions"
    ledger = Ledger(out, shard)
    predictor = Predictor(model, device, Settings.model_validate(engine), deterministic=deterministic)
    items = [i for i in surveyed(rows, survey_folder, [shard]) if i.case.modality in predictor.modalities]
    found = predict_cases([engine_case(item) for item in items], predictor, ledger)
    write_table(out / "confidence" / f"{shard}.csv", found, "confidence")
