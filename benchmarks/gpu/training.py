"""Part 3: each kind of training at the size of a published recipe: does it learn, how fast, does it wait for data?

Steps are the trainer's own, on batches of its own loaders and workers. The first of them are not timed: libraries
choose their algorithms then, and compiled networks are compiled. nnU-Net's own step has the same network and batches.
"""

import contextlib
import hashlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from contestants import step_of_nnunet, training_job, write_data  # benchmarks/training
from context import Context
from device import forget, peak_mb, synchronize
from inputs import TOY_PLAN
from record import Step

from labelloop.base.classes import load_classes
from labelloop.networks.plans import Plan
from labelloop.networks.settings import TranslatorSettings
from labelloop.recipe import load_recipe
from labelloop.training.job import TrainingJob
from labelloop.training.loading import Draw, iterate
from labelloop.training.loop import Losses, Pause, run_updates
from labelloop.training.settings import PartialSettings, SegmenterSettings, SliceClassifierSettings, TrainerSettings
from labelloop.training.slices import SliceTraining
from labelloop.training.trainers import TRAINERS
from labelloop.training.trainers.base import Trainer
from labelloop.training.translator import GreyCase, TranslatorJob, TranslatorTraining
from labelloop.training.work import Work

PUBLISHED = {
    "partial": ("default", "student"),
    "mean teacher": ("ct_to_mr", "stage1"),
    "cross pseudo": ("progressive", "os"),
    "supervised": ("coarse_to_fine", "tumors_seed1"),
    "partial (max), CutMix": ("merge_max", "coarse"),
    "slice classifier": ("two_stage", "abdomen"),
    "translator": ("ct_to_mr", "to_t1w"),
}
"""Kinds of training, and the recipe and model whose plan and settings they take."""
NETWORKS = [kind for kind in PUBLISHED if kind not in ("slice classifier", "translator")]
WORKERS = 12
"""Processes that make batches, at most (nnU-Net's default)."""
UNCOUNTED = 0.2
"""Share of the steps that is not timed."""


class Variant(NamedTuple):
    """How a training runs: compiled, deterministic, with nnU-Net's own step."""

    name: str
    compiled: bool = False
    deterministic: bool = False
    nnunet: bool = False


PLAIN, COMPILED = Variant("plain"), Variant("compiled", compiled=True)
DETERMINISTIC = Variant("deterministic", deterministic=True)
NNUNET, NNUNET_COMPILED = Variant("nnU-Net's step", nnunet=True), Variant("nnU-Net's step, compiled", True, False, True)


def steps(context: Context) -> Iterator[Step]:
    """Yield every kind as it comes first; then determinism, resuming, and what takes long to compile."""
    first, *others = NETWORKS
    for variant in (PLAIN, NNUNET, DETERMINISTIC):
        yield Step(f"{first}, {variant.name}", partial(train, context, first, variant))
    yield Step("resume", partial(resume, context))
    for kind in others:
        yield Step(f"{kind}, {PLAIN.name}", partial(train, context, kind, PLAIN))
    for kind in PUBLISHED:
        if kind not in NETWORKS:
            yield Step(f"{kind}, {PLAIN.name}", partial(train_other, context, kind))
    compiled = (COMPILED, NNUNET_COMPILED) if context.device.type == "cuda" else ()  # nnU-Net compiles on GPUs alone
    for variant in compiled:
        yield Step(f"{first}, {variant.name}", partial(train, context, first, variant))
    for kind in others:
        for variant in (*compiled[:1], DETERMINISTIC):
            yield Step(f"{kind}, {variant.name}", partial(train, context, kind, variant))


def classes() -> Mapping[str, int]:
    """Return the ids of all FLARE classes."""
    return load_classes("flare").ids


def published(context: Context, kind: str) -> tuple[Plan, TrainerSettings]:
    """Return plan and settings of a kind of training, without what the made data lack: groups, cases to validate on."""
    recipe, model = PUBLISHED[kind]
    chain = load_recipe(recipe)
    spec = chain.models[model]
    plan = TOY_PLAN if context.toy else chain.plans[spec.plan]
    settings = spec.trainer
    changes: dict[str, Any] = {"epochs": 1, "iterations_per_epoch": context.sizes.few_steps}
    if isinstance(settings, SegmenterSettings):
        changes = {"export": "final"} | ({"batches": None} if isinstance(settings, PartialSettings) else {})
    elif isinstance(settings, SliceClassifierSettings):
        changes |= {"size": 32, "batch_size": 4} if context.toy else {}
    else:
        changes |= {"patch": TOY_PLAN.patch, "features": 4, "blocks": 1, "layers": 1} if context.toy else {}
    return plan, settings.model_copy(update=changes)


@lru_cache
def made(context: Context, plan: Plan) -> tuple[Path, Any]:
    """Return the folder of the made data of a plan, and its bank of tumors."""
    folder = context.work / "data" / "x".join(map(str, plan.patch))
    return folder, write_data(folder, plan, classes())


def workers(context: Context) -> int:
    """Return how many processes make batches."""
    return 0 if context.toy else max(1, min(WORKERS, len(os.sched_getaffinity(0)) - 1))


@contextlib.contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Tell nnU-Net's trainer, which labelloop asks, whether to compile."""
    with mock.patch.dict(os.environ, {"nnUNet_compile": "true" if wanted else "false"}):
        yield
    if wanted:
        torch._dynamo.reset()  # what was compiled holds memory


def train(context: Context, kind: str, variant: Variant) -> dict[str, Any]:
    """Take steps of a kind of training; return losses, seconds a step, share of waiting, and memory."""
    plan, settings = published(context, kind)
    folder, bank = made(context, plan)
    job = training_job(
        settings, folder, bank, plan, classes(), device=context.device.type, workers=workers(context),
        deterministic=variant.deterministic,
    )  # fmt: skip
    forget(context.device)
    with compiling(variant.compiled):
        trainer = TRAINERS[settings.kind].of(job)
        for network in trainer.trained:
            network.train()
        trainer.lr_scheduler.step(0)
        step = step_of_nnunet(trainer) if variant.nnunet else trainer.train_step
        number = context.sizes.steps if variant == PLAIN else context.sizes.few_steps
        loaders = trainer.get_dataloaders()
        draws = [Draw(trainer.stream_of(0, i), 0, i) for i in range(number)]
        batches = iterate(loaders, draws, settings.seed, job.workers, context.device.type == "cuda")
        with contextlib.closing(batches):
            found = take(context, number, lambda: next(batches), step)
    return found | {"patch": list(plan.patch), "batch": plan.batch_size, "workers": job.workers}


def take(
    context: Context, number: int, batch: Callable[[], Any], step: Callable[[Any], Mapping[str, Any]]
) -> dict[str, Any]:
    """Take ``number`` steps; return their losses, and of those that count the median seconds and share of waiting."""
    losses, waited, taken = [], [], []
    for _ in range(number):
        began = time.perf_counter()
        given = batch()
        made_at = time.perf_counter()
        loss = step(given)["loss"]
        synchronize(context.device)
        waited.append(made_at - began)
        taken.append(time.perf_counter() - made_at)
        losses.append(float(loss))
    counted = slice(math.ceil(UNCOUNTED * number), None)
    waiting = sum(waited[counted]) / (sum(waited[counted]) + sum(taken[counted]))
    return summary(losses, taken) | {"waiting": waiting, **peak_mb(context.device)}


def summary(losses: Sequence[float], taken: Sequence[float]) -> dict[str, Any]:
    """Return what the losses did, and the median seconds of the steps that count."""
    part = max(1, len(losses) // 5)
    first, last = (statistics.fmean(some) for some in (losses[:part], losses[-part:]))
    return {
        "finite": all(map(math.isfinite, losses)),
        "first_loss": first,
        "last_loss": last,
        "falls": last < first,
        "step_s": statistics.median(taken[math.ceil(UNCOUNTED * len(taken)) :]),
        "first_step_s": taken[0],
    }


def train_other(context: Context, kind: str) -> dict[str, Any]:
    """Train what is no U-Net, a slice classifier or a translator; a step is then with its batch."""
    plan, settings = published(context, kind)
    folder, bank = made(context, plan)
    forget(context.device)
    training: SliceTraining | TranslatorTraining
    if isinstance(settings, SliceClassifierSettings):
        options = {"device": context.device.type, "workers": workers(context)}
        training = SliceTraining(training_job(settings, folder, bank, plan, classes(), **options))
    elif isinstance(settings, TranslatorSettings):
        looks = {
            look: tuple(GreyCase(f"case{n}", folder / "images" / f"case{n}.b2nd", str(n)) for n in numbers)
            for look, numbers in (("ct", (0, 1)), ("mr", (2, 3)))
        }
        options = {"device": context.device.type, "workers": workers(context)}
        job = TranslatorJob("bench", folder, plan, **looks, settings=settings, **options)
        training = TranslatorTraining(job)
    else:
        raise ValueError(f"{kind}: a training of a kind that is not known here, {settings.kind}")
    losses, taken = updates_of(context, training, context.work / "other" / settings.kind)
    return summary(losses, taken) | peak_mb(context.device)


def updates_of(
    context: Context, training: SliceTraining | TranslatorTraining, folder: Path
) -> tuple[list[float], list[float]]:
    """Train from start to end; return the loss (of a translator, the cycle's) and the seconds of each update."""
    losses, taken = [], []

    def timed(before: list[Losses], total: int, update: Callable[[int], Losses], pause: Pause) -> list[Losses]:
        def one(number: int) -> Losses:
            began = time.perf_counter()
            found = update(number)
            synchronize(context.device)
            taken.append(time.perf_counter() - began)
            losses.append(float(found["cycle" if "cycle" in found else "loss"]))
            return found

        return run_updates(before, total, one, pause)

    work = Work(folder, training.job.fingerprint, "benchmark")
    work.checkpoint.unlink(missing_ok=True)
    with mock.patch.object(sys.modules[type(training).__module__], "run_updates", timed):
        training.fit(work)
    return losses, taken


class Killed(BaseException):
    """Ends a training as abruptly as a process can from inside."""


def resume(context: Context) -> dict[str, Any]:
    """Return whether a deterministic training that was killed and resumed ends with the bytes of a whole one."""
    plan, settings = published(context, "partial")
    folder, bank = made(context, plan)
    number = context.sizes.resume_steps
    short = {"epochs": 2, "iterations_per_epoch": number, "validation_iterations": 0, "save_every": 1}
    settings = settings.model_copy(update=short)
    options = {"device": context.device.type, "workers": workers(context), "deterministic": True}
    job = training_job(settings, folder, bank, plan, classes(), **options)
    with compiling(False):
        whole = finished(job, context.work / "resume" / "whole")
        again = finished(job, context.work / "resume" / "again")
        with mock.patch.object(Trainer, "train_step", _dies_at(number + 1)), contextlib.suppress(Killed):
            finished(job, context.work / "resume" / "killed")
        resumed = finished(job, context.work / "resume" / "killed", clear=False)
    return {"same_twice": whole == again, "same_resumed": whole == resumed}


def _dies_at(number: int) -> Callable[..., Any]:
    """Return a training step that ends the training when it is called for the ``number``-th time."""
    original, count = Trainer.train_step, 0

    def step(trainer: Trainer, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        nonlocal count
        count += 1
        if count == number:
            raise Killed
        return original(trainer, batch)

    return step


def finished(job: TrainingJob, folder: Path, clear: bool = True) -> str:
    """Train to the end, from the start or from the folder's last checkpoint; return a fingerprint of the weights."""
    job = replace(job, folder=folder)
    trainer = TRAINERS[job.settings.kind].of(job)
    work = Work(folder, job.fingerprint, trainer.precision)
    if clear:
        work.checkpoint.unlink(missing_ok=True)
    trainer.fit(work)
    digest = hashlib.sha256()
    for name, value in sorted(trainer.exported_weights().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()
