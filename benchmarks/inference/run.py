"""End-to-end inference: labelloop against nnU-Net's own predictor, on the same model, scans and machine.

    python benchmarks/inference/run.py                         # a phantom of 256x256x160, minutes
    python benchmarks/inference/run.py --scans full hcc_048 ircad_17 --write    # half an hour on two quiet cores
    python benchmarks/inference/run.py --memory --write        # 512x512x1000 voxels within limits of memory
    python benchmarks/inference/run.py --skipping --write      # what skipping windows saves and costs

Every contestant runs in a process of its own, by default on the same image three times in a row: "cold" is from the
start of Python to the first label map, "warm" half of the time from there to the third. Several scans are also
segmented as a folder, one after the other in one process: from the start of Python to the last label map. Peak memory
is that of the process, or of it and its children together, memory they share counted once, if that is more. Where other
work shares the machine, CPU seconds tell more than wall seconds. The model is trained by the command itself
(``model.py``) and kept in ``build``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import memory
import numpy as np
import psutil
import skipping
import torch
from contestant import STOCK
from model import trained_model
from peak import peak_gmacs
from scans import BUILD, REAL, RESULTS, ROOT, SIZES, machine, scan, stock_models

from labelloop.base.files import link, write_text
from labelloop.base.precision import choose_precision
from labelloop.images.volume import read, read_geometry
from labelloop.inference.find_cases import case_name
from labelloop.metrics.efficiency import Meter
from labelloop.networks.network import build_network, count_macs, count_parameters

HERE = Path(__file__).resolve()
MEASURED = ("cold_s", "warm_s", "cold_cpu_s", "warm_cpu_s")
CONTESTANTS = ("stock_fastest", "stock_planner", "stock_default", "exact", "exact_0.8", "fast", "fast_bf16")
ONCE = ("stock_planner", "stock_default")
"""Contestants that segment the image only once: minutes a case."""
SMALLEST_ML = 1.0
"""Classes of less than this in both label maps are left out of the second mean DSC: specks decide the first."""
LOOK_S = 0.02
"""Pause between two looks at whether the first label map is there."""
TRAINING_STEPS = 700


@dataclass
class Result:
    """What one contestant did: wall and CPU seconds of the first case, of each after it, and of all; the first map."""

    name: str
    cold_s: float
    warm_s: float | None
    cold_cpu_s: float
    warm_cpu_s: float | None
    peak_mb: float
    total_s: float
    total_cpu_s: float
    stages: dict[str, float]
    gmacs: float | None
    labels: np.ndarray


def run(name: str, model: Path, scans: list[Path], threads: int | None) -> Result:
    """Run a contestant on scans, one after the other; a scan may come more than once."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with tempfile.TemporaryDirectory() as folder:
        images = [Path(folder) / "in" / f"{case_name(image)}_{i}_0000.nii.gz" for i, image in enumerate(scans)]
        for image, copy in zip(scans, images, strict=True):
            link(image, copy)
        out = Path(folder) / "out"
        command = [sys.executable, str(HERE.with_name("contestant.py")), name, str(model), str(out), *map(str, images)]
        start = time.perf_counter()
        with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, stdout=printed, stderr=errors, env=environment)
            with Meter(process.pid, interval_s=3, shared=True) as meter:
                cold = _spent_until(1, process.pid, out, start)
                last = _spent_until(len(images), process.pid, out, start)
                process.wait()
            told, failure = (_text(file) for file in (printed, errors))
        if process.returncode:
            raise SystemExit(f"{name} failed:\n{failure}")
        told = json.loads(told.splitlines()[-1])
        case = told["cases"].get(case_name(images[-1]), {})
        more = len(images) - 1
        warm = [(b - a) / more if more else None for a, b in zip(cold, last, strict=True)]
        return Result(
            name, cold[0], warm[0], cold[1], warm[1], max(meter.usage().peak_ram_mb, told["peak_mb"]), *last,
            case.get("seconds", {}), case.get("gmacs"), read(min(out.glob("*.nii.gz"))).array,
        )  # fmt: skip


def _text(file: TextIO) -> str:
    file.seek(0)
    return file.read()


def _spent_until(maps: int, pid: int, out: Path, start: float) -> tuple[float, float]:
    """Wait for so many label maps, or the end of the process; return wall and CPU seconds until then."""
    process = psutil.Process(pid)
    while process.status() != psutil.STATUS_ZOMBIE and len([*out.glob("[!.]*.nii.gz")]) < maps:
        time.sleep(LOOK_S)
    spent = 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            times = one.cpu_times()
            spent += times.user + times.system + (times.children_user + times.children_system) * (one is process)
    return time.perf_counter() - start, spent


def agreement(first: np.ndarray, second: np.ndarray, voxel_ml: float) -> tuple[float, float, float]:
    """Return the share of equal voxels, and the mean DSC of the classes that either has: of all, and of large ones."""
    confusion = np.bincount(first.ravel().astype(np.uint16) * 256 + second.ravel(), minlength=1 << 16)
    confusion = confusion.reshape(256, 256)
    totals = confusion.sum(0) + confusion.sum(1)
    dice = {i: 2 * confusion[i, i] / totals[i] for i in range(1, 256) if totals[i]}
    large = [dice[i] for i in dice if max(confusion.sum(0)[i], confusion.sum(1)[i]) * voxel_ml >= SMALLEST_ML]
    means = (float(np.mean(some)) if some else 1.0 for some in ([*dice.values()], large))
    return float(np.trace(confusion) / confusion.sum()), *means


def floor(image: Path, network_s: float) -> str:
    """Return the floor in words: decompressing the file, and the network alone."""
    from labelloop.images.nifti import begin, read_header, voxels

    content = image.read_bytes()
    start = time.perf_counter()
    voxels(content, read_header(begin(content)))
    unzip = time.perf_counter() - start
    return f"{unzip:.1f} + {network_s:.1f} = {unzip + network_s:.1f}"


def compare(title: str, image: Path, model: Path, stock: dict[bool, Path], arguments: argparse.Namespace) -> tuple:
    """Run all contestants on one image and return the rows of its tables."""
    names, repeats = arguments.contestants, arguments.repeats
    about = json.loads((model / "model.json").read_text())
    ids = np.array([0, *(about["class_ids"][c] for c in about["classes"])], np.uint8)
    done: dict[str, Result] = {}
    for name in names:
        images = [image] * (1 if name in ONCE else repeats)
        done[name] = run(name, _folder(name, model, stock), images, arguments.threads)
        r = done[name]
        if name in STOCK:  # nnU-Net numbers the classes of a model without gaps
            r.labels = ids[r.labels]
        print(f"{title}: {name}: {r.cold_s:.1f} s, CPU {r.cold_cpu_s:.1f} s, {r.peak_mb:.0f} MB", flush=True)
    exact = next((done[n] for n in ("exact", *names) if n in done), None)
    rows, ratios = [], []
    voxel_ml = read_geometry(image).voxel_ml
    for name, r in done.items():
        equal, dice, large = agreement(exact.labels, r.labels, voxel_ml)
        measured = " | ".join("-" if (s := getattr(r, what)) is None else f"{s:.1f}" for what in MEASURED)
        rows.append(
            f"| {title} | {name} | {measured} | {r.peak_mb / 1024:.2f} | {100 * equal:.4f} | {dice:.4f} | {large:.4f} |"
        )
        for stock in [done[n] for n in STOCK if n in done and name not in STOCK]:
            ratios.append(f"| {title} | {name} | {stock.name} | {_ratios(stock, r)} |")
    stages = []
    for name, r in done.items():
        if r.stages:
            cells = " | ".join(f"{r.stages.get(s, 0):.1f}" for s in ("read", "prepare", "network", "export", "write"))
            stages.append(f"| {title} | {name} | {cells} | {floor(image, r.stages['network'])} |")
    return rows, ratios, stages, floors(title, done)


def floors(title: str, done: dict[str, Result]) -> list[str]:
    """Return the rows of multiply-adds: how long they take at the peak of one thread, and the case as a whole."""
    exact, rows = done.get("exact"), []
    for name, r in done.items():
        windows_of = exact if name in STOCK and not STOCK[name][0] else r
        spent = r.warm_cpu_s or r.cold_cpu_s
        if windows_of is not None and windows_of.gmacs:
            wanted = "bf16" if name.endswith("bf16") else "fp32"
            precision = choose_precision(wanted, torch.device("cpu"), on_cpu="fp32")
            seconds = windows_of.gmacs / peak_gmacs(precision)
            cells = f"{precision} | {windows_of.gmacs:.0f} | {seconds:.1f} | {spent:.1f} | {spent / seconds:.1f}"
            rows.append(f"| {title} | {name} | {cells} |")
    return rows


def _folder(name: str, model: Path, stock: dict[bool, Path]) -> Path:
    return stock[STOCK[name][1]] if name in STOCK else model


def together(images: list[Path], model: Path, stock: dict[bool, Path], arguments: argparse.Namespace) -> list[str]:
    """Run all contestants on a folder of the images, and return the rows of the table."""
    images, rows, done = sorted(images, key=lambda image: image.name), [], {}
    for name in arguments.contestants:
        r = done[name] = run(name, _folder(name, model, stock), images, arguments.threads)
        print(f"folder: {name}: {r.total_s:.1f} s, CPU {r.total_cpu_s:.1f} s, {r.peak_mb:.0f} MB", flush=True)
        others = [None if name in STOCK else done.get(other) for other in ("stock_fastest", "stock_default")]
        ratios = [f"{o.total_s / r.total_s:.1f} ({o.total_cpu_s / r.total_cpu_s:.1f})" if o else "" for o in others]
        spent = f"{r.total_s:.1f} ({r.total_cpu_s:.1f})"
        rows.append(f"| {name} | {spent} | {r.peak_mb / 1024:.2f} | {' | '.join(ratios)} |")
    return rows


def _ratios(stock: Result, ours: Result) -> str:
    """Return how many times faster ours is: wall and CPU seconds, cold and warm."""
    pairs = [(getattr(stock, what), getattr(ours, what)) for what in MEASURED]
    return " | ".join(f"{a / b:.1f}" if a is not None and b is not None else "-" for a, b in pairs)


def report(arguments: argparse.Namespace, model: Path) -> str:
    """Run everything and return the text of the result."""
    from labelloop.inference.engine import read_model

    build = BUILD
    about = read_model(model)
    plan = about.plan
    network = build_network(plan, len(about.classes) + 1)
    macs = count_macs(network, plan.patch)
    stock = stock_models(model, build)
    tables: list[list[str]] = [[], [], [], []]
    images: list[Path] = []
    for name in arguments.scans:
        if (image := scan(name, build)) is None:
            print(f"skipped {name}: not beside the project")
            continue
        title = f"{name} ({'x'.join(map(str, read_geometry(image).size))})"
        found = compare(title, image, model, stock, arguments)
        images.append(image)
        for table, rows in zip(tables, found, strict=True):
            table += rows
    network_size = (
        f"Model `{model.name}`: {count_parameters(network) / 1e6:.2f} M parameters, {len(about.classes)} classes, "
        f"voxels of {'x'.join(f'{mm:g}' for mm in plan.spacing_mm)} mm, {macs / 1e9:.1f} GMAC a window of "
        f"{'x'.join(map(str, plan.patch))}."
    )
    rows, ratios, stages, floors = ("\n".join(table) for table in tables)
    text = TEXT.format(
        size=network_size, machine=machine(), threads=arguments.threads or "as many as torch takes", rows=rows,
        ratios=ratios, stages=stages, floors=floors, smallest=f"{SMALLEST_ML:g}",
        peaks=", ".join(f"{peak_gmacs(precision):.0f} in {precision}" for precision in ("fp32", "bf16")),
    )  # fmt: skip
    if len(images) > 1:
        text += FOLDER.format(rows="\n".join(together(images, model, stock, arguments)))
    return text


TEXT = """{size}
Machine: {machine}. Threads of a contestant: {threads}.

Seconds of the first case, with the start of Python and the loading of the model (cold), and the mean of a second
and third in the same process (warm). Peak memory in GiB. `equal` (percent of voxels) and `DSC` (mean over classes;
`large`: of those of at least {smallest} ml) are against `exact`.

| scan | contestant | wall cold | wall warm | CPU cold | CPU warm | peak | equal % | DSC | DSC large |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{rows}

How many times as fast as a stock predictor: fastest (torch resampling, no mirroring, in one process), planner
(resampling as nnU-Net's planner writes it, no mirroring), default (as planner, with mirroring).

| scan | setting | against | wall cold | wall warm | CPU cold | CPU warm |
| --- | --- | --- | ---: | ---: | ---: | ---: |
{ratios}

Wall seconds per stage of the last case, and the floor: gunzip + network.

| scan | setting | read | prepare | network | export | write | floor |
| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |
{stages}

The multiply-adds of the windows, the CPU seconds that they take at this machine's peak (measured in this run: {peaks},
10^9 a second of one thread), and the CPU seconds of a warm case, or of a cold one that is the only one.

| scan | setting | precision | GMAC | floor s | CPU s | times the floor |
| --- | --- | --- | ---: | ---: | ---: | ---: |
{floors}
"""

FOLDER = """
The scans as a folder, in one process, from the start of Python to the last label map; in brackets: CPU seconds.

| contestant | seconds | peak | times as fast as stock_fastest | as stock_default |
| --- | ---: | ---: | ---: | ---: |
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", nargs="+", choices=[*SIZES, *REAL], default=["small"])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, help="default: all but those that mirror")
    parser.add_argument("--repeats", type=int, default=3, help="times the image is segmented in a row")
    parser.add_argument("--threads", type=int, help="threads of a contestant's network; default: as torch takes them")
    parser.add_argument("--model", type=Path, help="model folder; default: train one, or the one trained before")
    parser.add_argument("--steps", type=int, default=TRAINING_STEPS, help="training steps of the model")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--skipping", action="store_true", help="measure the skipping of windows instead")
    other.add_argument("--memory", action="store_true", help="measure a large scan within limits of memory instead")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {RESULTS.name}/")
    arguments = parser.parse_args()
    arguments.contestants = arguments.contestants or [n for n in CONTESTANTS if n != "stock_default"]
    if arguments.skipping:
        text, name = skipping.report(machine()), "inference_skipping"
    else:
        model = arguments.model or trained_model(ROOT / "build" / "benchmark_model", arguments.steps)
        if arguments.memory:
            text, name = memory.report(machine(), model, scan("full", BUILD), BUILD), f"inference_memory_{model.name}"
        else:
            text, name = report(arguments, model), "_".join(["inference", model.name, *arguments.scans])
    print(f"\n{text}")
    if arguments.write:
        command = "python benchmarks/inference/run.py " + " ".join(a for a in sys.argv[1:] if a != "--write")
        date = time.strftime("%Y-%m-%d")
        write_text(
            RESULTS / f"{name}.md",
            f"# {name.capitalize().replace('_', ' ')}\n\nWritten by `{command} --write` on {date}.\n\n{text}",
        )


if __name__ == "__main__":
    main()
