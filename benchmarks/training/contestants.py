"""Trainings to be measured: made data, and each kind of training as something that makes a batch and takes a step."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from labelloop.base.files import sha256
from labelloop.images.volume import Geometry
from labelloop.inference.prepare import Frame
from labelloop.inference.prepared import write_image_array, write_label_array
from labelloop.labels.tumors import cut_tumors, write_objects
from labelloop.networks.plans import Plan
from labelloop.training.job import TrainingCase, TrainingJob, TumorBank
from labelloop.training.settings import CutMix, SegmenterSettings, TrainingSettings, settings_of, trainer_settings
from labelloop.training.trainers import TRAINERS
from labelloop.training.trainers.base import Trainer

PEER = "nnU-Net's own step"
KINDS: dict[str, dict[str, Any]] = {
    PEER: {"kind": "supervised"},
    "supervised": {"kind": "supervised"},
    "partial (exact)": {"kind": "partial"},
    "partial (max)": {"kind": "partial", "merge": "max"},
    "partial, CutMix": {"kind": "partial", "cutmix": {}},
    "mean teacher": {"kind": "mean_teacher"},
    "cross pseudo": {"kind": "cross_pseudo"},
}
CLASSES = {"liver": 1, "spleen": 3, "left_kidney": 13, "tumor": 14}
SMALL = Plan(spacing_mm=(5, 5, 5), patch=(32, 64, 64), batch_size=2, features=(16, 32, 64, 128))
CASES = 4


Classes = Mapping[str, int]


class Contestant(NamedTuple):
    """Makes a batch; takes a step."""

    batch: Callable[[], Any]
    step: Callable[[Any], Any]


def write_data(folder: Path, plan: Plan, classes: Classes = CLASSES) -> TumorBank:
    """Write prepared cases a third larger than the patch, with a ball of each class, and cut the tumors of two."""
    shape = [side * 4 // 3 for side in plan.patch]
    z, y, x = plan.spacing_mm
    frame, keys = Frame.whole(Geometry(tuple(shape[::-1]), (x, y, z))).as_dict(), {}
    for number in range(CASES):
        random = np.random.default_rng(number)
        image, label = random.normal(size=shape).astype(np.float32), np.zeros(shape, np.uint8)
        axes = np.ogrid[tuple(slice(n) for n in shape)]
        for index in classes.values():
            center = [random.integers(n // 4, 3 * n // 4) for n in shape]
            ball = sum(((a - c) / (n / 12)) ** 2 for a, c, n in zip(axes, center, shape, strict=True)) < 1
            label[ball], image[ball] = index, image[ball] + 1
        write_image_array(folder / "images" / f"case{number}.b2nd", image, frame)
        write_label_array(folder / "labels" / f"case{number}.b2nd", label)
        if number < 2:
            path = folder / "bank" / f"case{number}.npz"
            objects = cut_tumors(f"case{number}", image, label, plan.spacing_mm, classes["tumor"], CutMix().cut)
            write_objects(path, objects, dict.fromkeys(classes, "present"))
            keys[f"case{number}"] = sha256(path)
    return TumorBank(folder / "bank", keys)


def states_of(kind: str, number: int, classes: Classes = CLASSES) -> dict[str, str]:
    """Return what is known of a case: all, a part of it (partial), or nothing of every other one (semi-supervised)."""
    known = dict.fromkeys(classes, "present")
    if kind == "partial":
        return {name: state for name, state in known.items() if name not in ("spleen", "tumor")}
    return {} if kind in ("mean_teacher", "cross_pseudo") and number % 2 else known


def training_job(
    settings: TrainingSettings, data: Path, bank: TumorBank, plan: Plan, classes: Classes = CLASSES, **options: Any
) -> TrainingJob:
    """Return a job on the data of :func:`write_data`; ``options`` are further fields of it."""
    cases = tuple(TrainingCase(f"case{n}", "train", states_of(settings.kind, n, classes), str(n)) for n in range(CASES))
    folders = {"folder": data / "model", "images": data / "images", "labels": data / "labels"}
    return TrainingJob("bench", plan=plan, cases=cases, classes=tuple(classes), class_ids=dict(classes),
                       settings=settings, tumors=bank, **(folders | options))  # fmt: skip


def contestant(name: str, data: Path, bank: TumorBank, plan: Plan, device: str) -> Contestant:
    """Return a kind of training, or nnU-Net's own."""
    settings = settings_of(trainer_settings(KINDS[name]), SegmenterSettings)
    trainer = TRAINERS[settings.kind].of(training_job(settings, data, bank, plan, device=device, workers=0))
    batch = trainer.get_dataloaders()["train"].generate_train_batch
    for network in trainer.trained:
        network.train()
    return Contestant(batch, step_of_nnunet(trainer) if name == PEER else trainer.train_step)


def step_of_nnunet(trainer: Trainer) -> Callable[[Any], Any]:
    """Return nnU-Net's own step, with its loss, on the network of a trainer as nnU-Net lays it out in memory."""
    trainer.network = trainer.network.to(memory_format=torch.contiguous_format)
    trainer.loss = nnUNetTrainer._build_loss(trainer)
    return partial(nnUNetTrainer.train_step, trainer)
