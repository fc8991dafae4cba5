"""Part 4: does the loop pay? The experiment of ``benchmarks/loop`` at its GPU size, fold by fold, as time allows.

Its scans are those that ``--prepare --btcv FOLDER`` made to be carried, else the phantom. A step is a fold and a seed,
a run of Snakemake in a process group of its own. The folders under the work folder are those of ``benchmarks/loop``,
whose ``run.py --print`` makes tables of them with intervals.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import SimpleITK as sitk
from context import Context
from record import Step

from labelloop.base.files import atomic
from labelloop.cases.folders import pair_folders

LOOP = Path(__file__).resolve().parents[1] / "loop"
sys.path.append(str(LOOP))
from folds import resampled  # noqa: E402

ARMS = ("labels_only", "control", "continued", "default", "oracle")
SCHEDULE = 0.2
"""Share of the updates of the GPU size: 1,000 of 5,000, so that ten minutes hold some folds."""
SEEDS = 3
SPACING_MM = 2.5
STEP_HU = 2
"""In plane, and between two grey values of the scans that are carried: a third of their bytes, below their noise."""


def steps(context: Context) -> Iterator[Step]:
    """Yield all folds of a seed, then those of the next."""
    folds = ["phantom"] if scans(context) is None else [f"fold{number}" for number in range(4)]
    for seed in range(1 if context.toy else SEEDS):
        for fold in folds:
            yield Step(f"{fold}, seed {seed}", partial(train, context, fold, seed))


def scans(context: Context) -> Path | None:
    """Return the folder of the real scans that were carried here, if there is one."""
    folder = context.inputs / "btcv"
    return folder if folder.is_dir() else None


def train(context: Context, fold: str, seed: int) -> dict[str, Any]:
    """Train and score the arms of a fold, up to this seed; return each arm's mean DSC of the organs."""
    schedule = 1.0 if context.toy else SCHEDULE
    size = "tiny" if context.toy else "gpu"
    out = context.work / "loop"
    command = [sys.executable, str(LOOP / "run.py"), str(out), "--size", size, "--seeds", str(seed + 1)]
    command += ["--schedules", str(schedule), "--arms", *ARMS, "--device", context.device.type]
    folder = scans(context)
    if folder is not None:
        command += ["--btcv", str(folder), "--folds", fold.removeprefix("fold")]
    run(command, max(1.0, context.until - time.time()))
    results = out / f"schedule_{schedule:g}"
    return {arm: organ_mean(results, fold, arm, seed) for arm in ARMS}


def run(command: list[str], seconds: float) -> None:
    """Run a command, and end with it all that it has started, whatever happens.

    Raises:
        RuntimeError: with the end of what it printed, where it fails.
        subprocess.TimeoutExpired: after so many seconds; the same command goes on from the last checkpoints.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        printed = process.communicate(timeout=min(seconds, threading.TIMEOUT_MAX))[0]
    finally:
        end_group(process)
    if process.returncode:
        raise RuntimeError(printed[-2000:])


def end_group(process: subprocess.Popen) -> None:
    """Kill what is left of a process and of all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def organ_mean(results: Path, fold: str, arm: str, seed: int) -> float:
    """Return the mean DSC of an arm's organs over the test cases of a fold."""
    loop = experiment()
    folder = f"{fold}_{loop.ORACLE}" if arm == loop.ORACLE else fold
    table = loop.read_table(results / folder / "results" / "evaluation" / f"{loop.named(arm, seed)}.csv", "scores")
    return float(table[table["class"].isin(loop.ORGANS)].groupby("class")["dsc"].mean().mean())


@lru_cache
def experiment() -> ModuleType:
    """Return ``benchmarks/loop/run.py`` as a module."""
    spec = importlib.util.spec_from_file_location("loop_experiment", LOOP / "run.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{LOOP / 'run.py'} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def carry(source: Path, folder: Path) -> list[Path]:
    """Write the labeled scans of a folder coarser in plane, in few bytes; return the files."""
    files: list[Path] = []
    for case, ((image,), label) in sorted(pair_folders(source.resolve(), source.resolve()).items()):
        if label is None:
            continue
        read = sitk.ReadImage(str(image), sitk.sitkFloat32)
        spacing = (SPACING_MM, SPACING_MM, read.GetSpacing()[2])
        scan = resampled(read, sitk.sitkLinear, spacing)
        few_values = sitk.Cast(sitk.Round(scan / STEP_HU) * STEP_HU, sitk.sitkInt16)
        files.append(write(few_values, folder / f"{case}_0000.nii.gz"))
        labels = resampled(sitk.ReadImage(str(label)), sitk.sitkNearestNeighbor, spacing)
        files.append(write(labels, folder / f"{case}.nii.gz"))
    return files


def write(image: sitk.Image, file: Path) -> Path:
    """Write a compressed file, whole or not at all; return it."""
    with atomic(file) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)
    return file
