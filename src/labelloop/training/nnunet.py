"""Train a model: the way into this package.

:func:`train` does nothing when a finished training of the same data and settings is there, goes on where a killed one
stopped, and otherwise starts. On a CPU, equal jobs give bit-identical weights on equal machines with equally many
threads; ``deterministic: true`` asks the same of a GPU, and ``model.json`` says whether they are. The number of cards
changes the last bits.
"""

import logging
from importlib.metadata import version
from typing import Any

from labelloop.base.files import write_json
from labelloop.base.paths import OUTPUTS
from labelloop.base.sequences import flat
from labelloop.base.tables import write_table
from labelloop.training.job import TrainingCase, TrainingJob, TumorBank, described, mirror_axes_of
from labelloop.training.progress import Progress, draw_curve
from labelloop.training.settings import TRAINING_VERSION
from labelloop.training.staging import staged_job
from labelloop.training.stock import dataset_json, plans_json
from labelloop.training.work import Work

__all__ = ["OUTPUTS", "TrainingCase", "TrainingJob", "TumorBank", "train"]

log = logging.getLogger(__name__)


def train(job: TrainingJob) -> None:
    """Train the model of ``job`` and write the files of :data:`OUTPUTS` into ``job.folder``.

    ``model.json`` describes the model, ``weights.pt`` holds ``{"weights": state_dict}`` of ``network.build_network``
    without deep supervision, ``plans.json`` and ``dataset.json`` are in nnU-Net's format (see
    :func:`~labelloop.training.export.export_nnunet`), ``training.jsonl`` has a line an epoch, ``curve.png`` draws it,
    ``cases.csv`` says which cases were used. None of them holds a time.

    Raises:
        UserError: when no case can be trained on, when the device cannot do what is asked, or when the work folder
            claims progress that it does not have.
    """
    work = work_of(job)
    if work.begin():
        log.info("%s: nothing changed, reusing the finished training", job.name)
    else:
        from labelloop.training.distributed import together
        from labelloop.training.trainers import TRAINERS

        with staged_job(job) as near:
            trainer = TRAINERS[job.settings.kind].of(near)
            log.info(
                "%s: %s training on %s (%s), fingerprint %s",
                job.name, job.settings.kind, trainer.device, work.precision, job.fingerprint,
            )  # fmt: skip
            with together(near, trainer.device) as trainer.team:
                progress = trainer.fit(work)
        _write_finished(job, work, trainer, progress)
        work.finish(len(progress.epochs))
    work.publish(job.folder, job.name, job.licenses)


def work_of(job: TrainingJob) -> Work:
    """Return the work folder of a training."""
    from labelloop.training.setup import precision_of

    return Work(job.folder / "work", job.fingerprint, precision_of(job))


def _write_finished(job: TrainingJob, work: Work, trainer: Any, progress: Progress) -> None:
    folder, weights_sha256 = work.finished, work.write_weights(trainer.exported_weights())
    cases = {split: len(trainer.cases[split]) for split in trainer.SPLITS}
    write_json(folder / "plans.json", plans_json(job.name, job.plan))
    write_json(folder / "dataset.json", dataset_json(job.classes, cases["train"], channels=job.plan.channels))
    progress.write(folder / "training.jsonl")
    draw_curve(folder / "curve.png", progress.epochs)
    learned = flat(trainer.cases[split] for split in trainer.SPLITS)
    rows = [{"case": case.case, "split": case.split, "key": case.key} for case in learned]
    write_table(folder / "cases.csv", rows, "training_cases")
    description = (
        _describe(job, work.precision, progress, cases)
        | {"deterministic": trainer.deterministic}
        | trainer.description()
        | {"weights_sha256": weights_sha256}
    )
    write_json(folder / "model.json", description)


def _describe(job: TrainingJob, precision: str, progress: Progress, cases: dict[str, int]) -> dict[str, Any]:
    """Return what ``model.json`` says of a model, apart from the hash of its weights."""
    best = progress.best_epoch if job.segmenter.export == "best" else None
    exported = best or len(progress.epochs)  # where no epoch had a Dice, the last was exported
    origin = described(job.init_from) if job.init_from else {}
    return {
        "name": job.name,
        "classes": list(job.classes),
        "class_ids": {name: job.class_ids[name] for name in job.classes},
        "channels": ["background", *job.classes],
        "plan": job.plan.model_dump(mode="json"),
        "settings": job.settings.model_dump(mode="json"),
        "mirror_axes": mirror_axes_of(job),
        "fingerprint": job.fingerprint,
        "precision": precision,
        "training_version": TRAINING_VERSION,
        "versions": {name: version(name) for name in ("labelloop", "torch", "nnunetv2")},
        "init_from": {key: origin[key] for key in ("name", "weights_sha256")} if origin else None,
        "cases": cases,
        "epoch": exported,
        "best_epoch": progress.best_epoch,
        "validation_dice": progress.epochs[exported - 1]["dice"],
    }
