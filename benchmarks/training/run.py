"""What a training step costs in each kind of training, beside nnU-Net's own step, in one process on the same data.

    python benchmarks/training/run.py
    python benchmarks/training/run.py --recipe default --plan fine --device cuda --write

The peer is ``nnUNetTrainer.train_step`` with nnU-Net's loss on the network of the same plan, as nnU-Net lays it out in
memory, fed by the same loader: nnU-Net's, on labeled cases only. An iteration is a step and the making of its batch.
The contestants take turns; medians are printed. On a CPU one thread works and its processor time counts, so that other
processes hardly matter; on a GPU it is wall time, and the ratio leaves batches out, which worker processes make.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from labelloop.files import sha256, write_text
from labelloop.labels.tumors import cut_tumors, write_objects
from labelloop.plans import Plan
from labelloop.recipe import load_recipe
from labelloop.training.job import TrainingCase, TrainingJob, TumorBank
from labelloop.training.prepared import write_image_array, write_label_array
from labelloop.training.settings import CutMix, TrainerSettings
from labelloop.training.trainers import TRAINERS

RESULT = Path(__file__).resolve().parents[1] / "results" / "training.md"
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
ALLOWED = {"partial (exact)": 1.15, "partial (max)": 1.15, "partial, CutMix": 1.15} | {
    "mean teacher": 1.6,
    "cross pseudo": 2.2,
}
CLASSES = {"liver": 1, "spleen": 3, "left_kidney": 13, "tumor": 14}
SMALL = Plan(spacing_mm=(5, 5, 5), patch=(32, 64, 64), batch_size=2, features=(16, 32, 64, 128))
CASES = 4


class Contestant(NamedTuple):
    """Makes a batch; takes a step."""

    batch: Callable[[], Any]
    step: Callable[[Any], Any]


def write_data(folder: Path, plan: Plan) -> TumorBank:
    """Write prepared cases a third larger than the patch, with a ball of each class, and cut the tumors of two."""
    shape = [side * 4 // 3 for side in plan.patch]
    keys = {}
    for number in range(CASES):
        random = np.random.default_rng(number)
        image, label = random.normal(size=shape).astype(np.float32), np.zeros(shape, np.uint8)
        axes = np.ogrid[tuple(slice(n) for n in shape)]
        for index in CLASSES.values():
            center = [random.integers(n // 4, 3 * n // 4) for n in shape]
            ball = sum(((a - c) / (n / 12)) ** 2 for a, c, n in zip(axes, center, shape, strict=True)) < 1
            label[ball], image[ball] = index, image[ball] + 1
        write_image_array(folder / "images" / f"case{number}.b2nd", image)
        write_label_array(folder / "labels" / f"case{number}.b2nd", label)
        if number < 2:
            path = folder / "bank" / f"case{number}.npz"
            objects = cut_tumors(f"case{number}", image, label, plan.spacing_mm, CLASSES["tumor"], CutMix().cut)
            write_objects(path, objects, dict.fromkeys(CLASSES, "present"))
            keys[f"case{number}"] = sha256(path)
    return TumorBank(folder / "bank", keys)


def states_of(kind: str, number: int) -> dict[str, str]:
    """Return what is known of a case: all, half of it (partial), or nothing of every other one (semi-supervised)."""
    known = dict.fromkeys(CLASSES, "present")
    if kind == "partial":
        return {name: state for name, state in known.items() if name not in ("spleen", "tumor")}
    return {} if kind in ("mean_teacher", "cross_pseudo") and number % 2 else known


def contestant(name: str, data: Path, bank: TumorBank, plan: Plan, device: str) -> Contestant:
    """Return a kind of training, or nnU-Net's own."""
    settings = TrainerSettings.model_validate(KINDS[name])
    cases = tuple(TrainingCase(f"case{n}", "train", states_of(settings.kind, n), str(n)) for n in range(CASES))
    folders = {"folder": data / "model", "images": data / "images", "labels": data / "labels"}
    job = TrainingJob("bench", plan=plan, cases=cases, classes=tuple(CLASSES), class_ids=CLASSES, settings=settings,
                      device=device, workers=0, tumors=bank, **folders)  # fmt: skip
    trainer = TRAINERS[settings.kind].of(job)
    batch = trainer.get_dataloaders()["train"].generate_train_batch
    for network in trainer.trained:
        network.train()
    if name != PEER:
        return Contestant(batch, trainer.train_step)
    trainer.network = trainer.network.to(memory_format=torch.contiguous_format)
    trainer.loss = nnUNetTrainer._build_loss(trainer)
    return Contestant(batch, lambda given: nnUNetTrainer.train_step(trainer, given))


def measure(contestants: dict[str, Contestant], rounds: int, device: torch.device) -> dict[str, tuple[float, float]]:
    """Return the median seconds of a batch and of a step of each contestant; the first of ``rounds`` is not counted."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, one in contestants.items():
            np.random.seed(number)
            torch.manual_seed(number)
            began = clock()
            batch = one.batch()
            made = clock()
            one.step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                found[name].append((made - began, clock() - made))
    return {name: tuple(map(statistics.median, zip(*rows, strict=True))) for name, rows in found.items()}


def report(found: dict[str, tuple[float, float]], plan: Plan, device: torch.device) -> Iterable[str]:
    """Yield a Markdown table."""
    peer_batch, peer_step = found[PEER]
    cuda = device.type == "cuda"
    yield f"Patch {' x '.join(map(str, plan.patch))}, batch {plan.batch_size}, {plan.features} features."
    yield f"The ratio is of {'steps' if cuda else 'steps and batches together'}."
    yield from ("", "| training | batch (s) | step (s) | ratio | allowed |", "| --- | ---: | ---: | ---: | ---: |")
    for name, (batch, step) in found.items():
        ratio = step / peer_step if cuda else (batch + step) / (peer_batch + peer_step)
        yield f"| {name} | {batch:.3f} | {step:.3f} | {ratio:.2f} | {ALLOWED.get(name, '')} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", help="with --plan: a plan of a recipe; else a small one")
    parser.add_argument("--plan")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULT.parent.name}/{RESULT.name}")
    options = parser.parse_args()
    plan = load_recipe(options.recipe).plans[options.plan] if options.recipe else SMALL
    device = torch.device(options.device)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        bank = write_data(data, plan)
        contestants = {name: contestant(name, data, bank, plan, options.device) for name in KINDS}
        found = measure(contestants, options.rounds, device)
    text = "\n".join(report(found, plan, device)) + "\n"
    print(text)
    if options.write:
        where = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores, no GPU"
        versions = f"Python {platform.python_version()}, torch {torch.__version__}"
        head = f"# What a training step costs\n\nWritten by `python benchmarks/training/run.py` on {date.today()}"
        write_text(RESULT, f"{head}: {where}; {versions}; {options.rounds} rounds.\n\n{text}")


if __name__ == "__main__":
    main()
