"""Train models and let them predict: the steps of ``workflow/rules/models.smk``."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.errors import UserError
from labelloop.base.files import digest
from labelloop.base.paths import folder_of, model_of
from labelloop.base.shards import Ledger, read_manifests
from labelloop.base.tables import write_table
from labelloop.cases.annotation import UNKNOWN, annotated
from labelloop.cases.usable import UsableCase
from labelloop.inference.settings import Device
from labelloop.networks.nnunet_plan import parse_plan
from labelloop.recipe import TRUTH, ModelSpec
from labelloop.run.resources import Workers, loader_workers
from labelloop.steps.common import (
    Files,
    SurveyTables,
    in_groups,
    input_image,
    learned_patients,
    read_cases,
    table_of,
    trusted,
)
from labelloop.training.settings import (
    SEMI_SUPERVISED,
    SLICE_CLASSIFIER,
    Determinism,
    PartialSettings,
    TrainingSettings,
    settings_of,
)
from labelloop.training.split import held_out_cases

log = logging.getLogger(__name__)


def train(
    survey: SurveyTables,
    images: Sequence[Path],
    labels: Sequence[Path],
    name: str,
    spec: dict[str, Any],
    plan: dict[str, Any],
    classes: str,
    groups: dict[str, dict],
    model: Path,
    device: Device,
    deterministic: Determinism,
    workers: Workers,
    threads: int,
    gpu: int = 1,
    stage: str | None = None,
    selected: Path | None = None,
    init_from: Sequence[Path] = (),
    learned: Sequence[Path] = (),
    objects: Sequence[Path] = (),
    licenses: dict[str, dict[str, str]] | None = None,
    start_names: dict[str, str] | None = None,
    learned_from: Sequence[str] = (),
) -> None:
    """Train one model on its label set. Raises UserError when no case is left to learn from.

    Args:
        images, labels: manifests of what was prepared: images of the model's plan, labels that the model learns from.
        model: the model's ``model.json``, to write with what lies beside it.
        threads: of the job; they load batches where ``workers`` is ``auto``. gpu: cards that share them; 0 for none.
        stage: folder on this node's own disk for a copy of the arrays (see ``training.staging``).
        selected: which labels are trusted; None for the truth.
        init_from: files of the model whose weights it starts from.
        learned: tables of the cases that that model, and those it started from, were trained with.
        objects: manifests of the tumor objects that the training pastes, if it does.
        licenses: of the data sets and the external models that it learns from, for ``model.json``.
        start_names: which of our classes the classes of the model that it starts from are, where that is external.
        learned_from: data sets that external models that it starts from may have learned from.
    """
    from labelloop.training.nnunet import TrainingJob

    asked, scheme = ModelSpec.model_validate(spec), load_classes(classes)
    usable = _fit_for(asked, in_groups(survey.usable(), asked.cases, scheme, groups), name)
    full, outputs = _full(asked, usable, scheme, groups), scheme.select(asked.classes)
    rows = read_cases(survey.cases)
    patients, seen = {case.case: case.patient for case in rows}, learned_patients(rows, learned, learned_from)
    files = Files(images, "prepared_image"), Files(labels, "prepared_label")
    cases = _training_cases(usable, patients, seen, full, asked, outputs, name, files, *trusted(selected, usable))
    _trainer(asked)(
        TrainingJob(
            name=name,
            folder=model_of(model),
            plan=parse_plan(plan),
            images=folder_of(images[0]),
            labels=folder_of(labels[0]),
            cases=cases,
            classes=outputs,
            class_ids=scheme.ids,
            licenses=licenses or {},
            settings=settings_of(asked.trainer, TrainingSettings),
            init_from=model_of(init_from[0]) if init_from else None,
            start_names=start_names,
            tumors=_tumor_bank(objects, {c.case for c in cases}) if objects else None,
            device=device,
            deterministic=deterministic,
            workers=loader_workers(workers, threads // max(1, gpu)),
            cards=max(1, gpu),
            stage=stage,
        )
    )


train_slices = train
"""A slice classifier leaves other files beside its ``model.json``."""


def _fit_for(model: ModelSpec, cases: Sequence[UsableCase], name: str) -> Sequence[UsableCase]:
    """Return the cases that a kind of training can use: a slice classifier windows Hounsfield units, which CT has."""
    if model.trainer.kind != SLICE_CLASSIFIER:
        return cases
    kept = [item for item in cases if item.case.modality == "CT"]
    if len(kept) < len(cases):
        others = len(cases) - len(kept)
        log.info("model %s: %d of %d cases left out: a slice classifier learns from CT alone", name, others, len(cases))
    return kept


def _full(model: ModelSpec, cases: Sequence[UsableCase], scheme: ClassScheme, groups: dict[str, dict]) -> set[str]:
    """Return the cases that alternate with all others in the batches, where a trainer asks for it."""
    batches = model.trainer.batches if isinstance(model.trainer, PartialSettings) else None
    return {case.id for case in in_groups(cases, batches.full, scheme, groups)} if batches else set()


def _trainer(model: ModelSpec) -> Callable:
    """Return what trains a model of this kind."""
    if model.trainer.kind == SLICE_CLASSIFIER:
        from labelloop.training.slices import train
    else:
        from labelloop.training.nnunet import train
    return train


def _training_cases(
    usable: Sequence[UsableCase],
    patients: Mapping[str, str],
    seen: Collection[str],
    full: set[str],
    model: ModelSpec,
    outputs: Sequence[str],
    name: str,
    files: tuple[Files, Files],
    states: Mapping[str, Mapping[str, str]],
    by_people: Mapping[str, Mapping[str, str]],
) -> tuple:
    """Return the cases of a training: those with a known class and, for trainers that use them, the unlabeled ones.

    Other cases of patients that are validated on are left out.

    Args:
        seen: patients that the model's weights know already, so that it is not validated on them.
        files: prepared images and labels. states: what is known of each case, or trusted.
        by_people: what of it annotators and reviewers say. A case is validated on where annotators looked, so that what
            a reviewer adds is learned from.
    """
    from labelloop.training.nnunet import TrainingCase

    image_files, label_files = files
    asked = {
        c.id: {o: states.get(c.id, {}).get(o, UNKNOWN) if c.id in label_files else UNKNOWN for o in outputs}
        for c in usable
        if c.id in image_files
    }
    known = {case: state for case, state in asked.items() if annotated(state)}
    drawn = {c.id: {o: by_people[c.id].get(o, UNKNOWN) for o in outputs} for c in usable if c.id in known}
    looked = {c.id: annotated(c.states) for c in usable}
    truth = {case: {o: s if o in looked[case] else UNKNOWN for o, s in state.items()} for case, state in drawn.items()}
    scorable = known if model.validate_on == "labels" else {c: state for c, state in truth.items() if annotated(state)}
    share, seed = model.validation_fraction, model.validation_seed
    held_out = held_out_cases(known, scorable, patients, seen, share, seed)
    away = {patients[case] for case in held_out}
    more = asked if model.trainer.kind in SEMI_SUPERVISED else known
    learning = {case: state for case, state in more.items() if patients[case] not in away}
    used = learning | {case: scorable[case] for case in held_out}
    if model.validation_fraction and not held_out:
        log.warning("model %s: no patient to validate on: %s", name, _why_none(scorable, patients, seen))
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


def _why_none(scorable: Collection[str], patients: Mapping[str, str], seen: Collection[str]) -> str:
    """Say why none of the cases that a model could be scored on is kept for that."""
    if not scorable:
        return "annotators looked for its classes in none of its cases"
    if all(patients[case] in seen for case in scorable):
        return "the models that it starts from learned from all of them, or may have"
    return "there is one alone, and the model learns from that"


def _tumor_bank(manifests: Sequence[Path], cases: Collection[str]):
    """Return the tumor objects that were cut from ``cases``; the bank holds those of all cases of the shards."""
    from labelloop.training.nnunet import TumorBank

    rows = read_manifests(manifests)
    found = zip(rows["case"], rows["file"], rows["sha256"], strict=True)
    return TumorBank(folder_of(manifests[0]), {case: sha256 for case, file, sha256 in found if file and case in cases})


def predict(
    survey: SurveyTables,
    model: Sequence[Path],
    engine: dict[str, Any],
    manifest: Path,
    confidence: Path,
    device: str,
    deterministic: int = 0,
    prepared: Path | None = None,
) -> None:
    """Let a model label the cases of one shard; write label maps, manifest and confidence.

    CT is left out where the model knows CT in the look of MR only.

    Args:
        model: its files.
        prepared: manifest of the shard's images as the model's plan prepares them; cases that are not in it are read
            from their files.
    """
    from labelloop.inference.engine import Predictor
    from labelloop.inference.running import run_cases
    from labelloop.inference.settings import Settings

    ledger, settings = Ledger.of(manifest), Settings.model_validate(engine)
    predictor = Predictor(model_of(model[0]), device, settings, deterministic=bool(deterministic))
    items = [item for item in survey.usable() if item.case.modality in predictor.modalities]
    files = Files([prepared] if prepared else [], "prepared_image")
    run_cases([input_image(item, files) for item in items], predictor, ledger)
    write_table(confidence, table_of(ledger.extras(), "rows"), "confidence")
