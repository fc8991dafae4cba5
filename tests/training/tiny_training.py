"""A data set and a job small enough to train in a second; also run as a script by the test that kills a training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from labelloop.base.paths import OUTPUTS
from labelloop.images.volume import Geometry
from labelloop.inference.prepare import Frame
from labelloop.inference.prepared import write_image_array, write_label_array
from labelloop.networks.plans import Plan
from labelloop.training.job import TrainingCase, TrainingJob
from labelloop.training.settings import TrainingSettings, settings_of, trainer_settings

torch.set_num_threads(1)  # equal bytes need equal numbers of threads, in this process and in the one that is killed

CLASSES = ("liver", "spleen", "left_kidney")
IDS = {"liver": 1, "spleen": 3, "left_kidney": 13, "tumor": 14}
PLAN = Plan(spacing_mm=(3, 3, 3), patch=(16, 24, 24), features=(4, 8, 8, 8), batch_size=2)
PRESENT = dict.fromkeys(CLASSES, "present")
CASES = 4


def write_cases(root: Path, shape=(20, 28, 30)) -> None:
    """Write images and labels with a box per class; the label maps also hold tumor, which the job does not ask for."""
    for number in range(CASES):
        rng = np.random.default_rng(number)
        image = rng.normal(size=shape).astype(np.float32)
        label = np.zeros(shape, np.int16)
        for shift, name in enumerate([*CLASSES, "tumor"]):
            start = [int(rng.integers(0, side - 8)) for side in shape]
            box = tuple(slice(s, s + 8) for s in start)
            label[box], image[box] = IDS[name], image[box] + 1 + shift
        write_image_array(root / "images" / f"case{number}.b2nd", image, frame_of(shape))
        write_label_array(root / "labels" / f"case{number}.b2nd", label)


def frame_of(shape, direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), spacing_mm=PLAN.spacing_mm) -> dict:
    """Return the frame of an image that was prepared without cropping and resampling."""
    grid = Geometry(tuple(shape[::-1]), tuple(spacing_mm[::-1]), direction=direction)
    return Frame.whole(grid).as_dict()


def make_job(root: Path, folder: Path, states=None, **options) -> TrainingJob:
    """Return a job on the cases of ``root``; ``states`` replaces those of single cases, by number."""
    settings = {"epochs": 2, "iterations_per_epoch": 3, "validation_iterations": 2} | options.pop("settings", {})
    cases = tuple(
        TrainingCase(f"case{i}", "validation" if i == 0 else "train", (states or {}).get(i, PRESENT), f"key{i}")
        for i in range(CASES)
    )
    common = {"name": "tiny", "plan": PLAN, "cases": cases, "classes": CLASSES, "device": "cpu", "workers": 0}
    return TrainingJob(
        folder=folder,
        images=root / "images",
        labels=root / "labels",
        class_ids=IDS,
        settings=settings_of(trainer_settings(settings), TrainingSettings),
        **(common | options),
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every declared output of a training."""
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


LONG = {"epochs": 4, "save_every": 2}


def kill_me() -> None:
    """End this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop_the_job() -> None:
    """Send SIGTERM to all processes of this group from another process, as Slurm does at the time limit."""
    subprocess.run(["kill", "-s", "TERM", "--", f"-{os.getpgrp()}"])
    time.sleep(1)  # by now a loader that the signal ended is missed


ENDS = {"kill": kill_me, "stop": stop_the_job}


def train_until(root: Path, folder: Path, step: int, end: str) -> None:
    """Train with the settings LONG and one loader; call one of ENDS in training step number ``step``."""
    from labelloop.training.nnunet import train
    from labelloop.training.trainers.base import Trainer

    original, count = Trainer.train_step, [0]

    def step_and_end(self, batch):
        count[0] += 1
        if count[0] == step:
            ENDS[end]()
        return original(self, batch)

    Trainer.train_step = step_and_end
    train(make_job(root, folder, settings=LONG, workers=1))


if __name__ == "__main__":
    train_until(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
