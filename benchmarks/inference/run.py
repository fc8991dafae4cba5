"""End-to-end inference: labelloop against nnU-Net's own predictor, on the same model, scans and machine.

    python benchmarks/inference/run.py                         # a phantom of 256x256x160, minutes
    python benchmarks/inference/run.py --scans full hcc_048 ircad_17 --write    # half an hour on two quiet cores
    python benchmarks/inference/run.py --skipping --write      # what skipping windows saves and costs

Every contestant runs in a process of its own, by default on the same image twice in a row: "first" is from the start of
Python to the first label map, "next" from there to the second. Peak memory is that of the process, or of it and its
children together, memory they share counted once, if that is more. Where other work shares the machine, CPU seconds
tell more than wall seconds. The model is trained by the command itself (``model.py``) and kept in ``build``.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import skipping
from contestant import STOCK
from model import trained_model

from labelloop.files import link, write_json, write_text
from labelloop.inference.reading import case_name
from labelloop.metrics.efficiency import Meter, count_macs, count_parameters
from labelloop.phantom import draw_patient, field_of_view, render
from labelloop.volume import Geometry, Volume, read, read_geometry, write

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
RESULTS = HERE.parents[1] / "results"
CONTESTANTS = ("stock_fastest", "stock_planner", "stock_default", "exact", "exact_bf16", "fast")
REAL = {"hcc_048": "hcc/hcc_048_0000.nii.gz", "ircad_17": "ircad/ircad_17_0000.nii.gz"}
SIZES = {"tiny": (96, 96, 60), "small": (256, 256, 160), "full": (512, 512, 400)}
TRAINING_STEPS = 700


@dataclass
class Result:
    """What one contestant did with one scan."""

    name: str
    first_s: float
    next_s: float | None
    cpu_s: float
    peak_mb: float
    stages: dict[str, float]
    labels: np.ndarray


def scan(name: str, build: Path) -> Path | None:
    """Return an image; draw a phantom where it is not there. None for a real scan that is not there."""
    if name in REAL:
        path = ROOT.parent / "shared" / "data" / REAL[name]
        return path if path.is_file() else None
    path = build / f"phantom_{name}_0000.nii.gz"
    if not path.is_file():
        if name == "full":
            volume = enlarged(read(scan("small", build)), SIZES["full"])
        else:
            patient = draw_patient(3, 100)
            geometry = field_of_view(patient, size=SIZES[name])
            volume = Volume(render(patient, geometry)[0], geometry)
        write(path, volume.array, volume.geometry)
    return path


def enlarged(volume: Volume, size: tuple[int, int, int]) -> Volume:
    """Return a volume of ``size`` (x, y, z) over about the same box, by nearest neighbor."""
    array, g = volume.array, volume.geometry
    for axis, n in enumerate(reversed(size)):
        array = array.take(np.arange(n) * array.shape[axis] // n, axis)
    spacing = tuple(s * old / new for s, old, new in zip(g.spacing, g.size, size, strict=True))
    return Volume(array, Geometry(size, spacing, g.origin, g.direction))


def stock_models(model: Path, build: Path) -> dict[bool, Path]:
    """Return model folders for nnU-Net, by whether images and logits are resampled as its planner chooses."""
    from labelloop.training.stock import export_nnunet

    folders = {}
    for planner in (False, True):
        folders[planner] = export_nnunet(model, build / f"nnunet_{'planner' if planner else 'torch'}")
        plans = json.loads((folders[planner] / "plans.json").read_text())
        for configuration in plans["configurations"].values():
            for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
                keywords = {"is_seg": what == "seg", "force_separate_z": None}
                if planner:
                    configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
                    keywords |= {"order": order, "order_z": 0}
                configuration[f"resampling_fn_{what}_kwargs"] = keywords
        write_json(folders[planner] / "plans.json", plans)
    return folders


def run(name: str, model: Path, image: Path, repeats: int) -> Result:
    """Run a contestant on ``repeats`` copies of an image."""
    with tempfile.TemporaryDirectory() as folder:
        images = [Path(folder) / "in" / f"{case_name(image)}_{i}_0000.nii.gz" for i in range(repeats)]
        for copy in images:
            link(image, copy)
        out = Path(folder) / "out"
        command = [sys.executable, str(HERE.with_name("contestant.py")), name, str(model), str(out), *map(str, images)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.time()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with Meter(process.pid, interval_s=3, shared=True) as meter:
            printed, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"{name} failed:\n{errors}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        maps = sorted(out.glob("*.nii.gz"), key=lambda path: path.stat().st_mtime)
        times = [path.stat().st_mtime for path in maps]
        told = json.loads(printed.splitlines()[-1])
        return Result(
            name, times[0] - start, times[1] - times[0] if repeats > 1 else None, cpu / repeats,
            max(meter.usage().peak_ram_mb, told["peak_mb"]), told["seconds"].get(case_name(images[-1]), {}),
            read(maps[0]).array,
        )  # fmt: skip


def agreement(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the share of equal voxels, and the mean DSC of the classes that either label map has."""
    confusion = np.bincount(first.ravel().astype(np.uint16) * 256 + second.ravel(), minlength=1 << 16)
    confusion = confusion.reshape(256, 256)
    totals = confusion.sum(0) + confusion.sum(1)
    present = [i for i in range(1, 256) if totals[i]]
    dice = [2 * confusion[i, i] / totals[i] for i in present]
    return float(np.trace(confusion) / confusion.sum()), float(np.mean(dice)) if dice else 1.0


def floor(image: Path, network_s: float) -> str:
    """Return the floor in words: decompressing the file, and the network alone."""
    from labelloop.inference.reading import gunzip

    content = image.read_bytes()
    start = time.perf_counter()
    gunzip(content)
    unzip = time.perf_counter() - start
    return f"{unzip:.1f} + {network_s:.1f} = {unzip + network_s:.1f}"


def compare(title: str, image: Path, names: list[str], model: Path, stock: dict[bool, Path], repeats: int) -> tuple:
    """Run all contestants on one image and return the rows of its table, and those of the stages."""
    about = json.loads((model / "model.json").read_text())
    ids = np.array([0, *(about["class_ids"][c] for c in about["classes"])], np.uint8)
    done: dict[str, Result] = {}
    for name in names:
        folder = stock[STOCK[name][1]] if name in STOCK else model
        done[name] = run(name, folder, image, 1 if name == "stock_default" else repeats)
        r = done[name]
        if name in STOCK:  # nnU-Net numbers the classes of a model without gaps
            r.labels = ids[r.labels]
        print(f"{title}: {name}: first {r.first_s:.1f} s, CPU {r.cpu_s:.1f} s, {r.peak_mb:.0f} MB", flush=True)
    exact = next((done[n] for n in ("exact", *names) if n in done), None)
    rows = []
    for name, r in done.items():
        equal, dice = agreement(exact.labels, r.labels)
        warm = f"{r.next_s:.1f}" if r.next_s is not None else "-"
        ratios = " | ".join(f"{done[s].cpu_s / r.cpu_s:.1f}" if s in done else "-" for s in CONTESTANTS[:3])
        rows.append(
            f"| {title} | {name} | {r.first_s:.1f} | {warm} | {r.cpu_s:.1f} | {r.peak_mb / 1024:.2f} | {ratios} | "
            f"{100 * equal:.4f} | {dice:.5f} |"
        )
    stages = []
    for name, r in done.items():
        if r.stages:
            cells = " | ".join(f"{r.stages.get(s, 0):.1f}" for s in ("read", "prepare", "network", "export", "write"))
            stages.append(f"| {title} | {name} | {cells} | {floor(image, r.stages['network'])} |")
    return rows, stages


def machine() -> str:
    """Return kind of machine, what it is busy with besides, and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "nnunetv2", "SimpleITK", "numpy"))
    kind = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} CPU cores ({platform.machine()}), no GPU used"
    shared = f"niceness {os.nice(0)}, load average {os.getloadavg()[2]:.1f}"
    return f"{kind}; {shared}; Python {platform.python_version()}, {versions}"


def report(arguments: argparse.Namespace, model: Path) -> str:
    """Run everything and return the text of the result."""
    from labelloop.inference.engine import Predictor

    build = ROOT / "build" / "benchmark_inference"
    predictor = Predictor(model, "cpu")
    plan, network = predictor.plan, predictor.network
    macs = count_macs(network, plan.patch)
    stock = stock_models(model, build)
    tables: list[list[str]] = [[], []]
    for name in arguments.scans:
        if (image := scan(name, build)) is None:
            print(f"skipped {name}: not beside the project")
            continue
        title = f"{name} ({'x'.join(map(str, read_geometry(image).size))})"
        found = compare(title, image, arguments.contestants, model, stock, arguments.repeats)
        for table, rows in zip(tables, found, strict=True):
            table += rows
    network_size = (
        f"Model `{model.name}`: {count_parameters(network) / 1e6:.2f} M parameters, {len(predictor.classes)} classes, "
        f"voxels of {'x'.join(f'{mm:g}' for mm in plan.spacing_mm)} mm, {macs / 1e9:.1f} GMAC a window of "
        f"{'x'.join(map(str, plan.patch))}."
    )
    rows, stages = ("\n".join(table) for table in tables)
    return TEXT.format(size=network_size, machine=machine(), rows=rows, stages=stages)


TEXT = """{size}
Machine: {machine}.

`first` and `next`: wall seconds. `CPU`: CPU seconds per case, with its share of the start of Python (all of it where
there is no `next`). Peak memory in GiB. The three ratios are CPU seconds of a stock predictor over those of the row:
fastest (torch resampling, no mirroring, in one process), planner (resampling as nnU-Net's planner writes it, no
mirroring), default (the same with mirroring). `equal` (percent of voxels) and `DSC` (mean over classes) are against
`exact`.

| scan | contestant | first | next | CPU | peak | x fastest | x planner | x default | equal % | DSC |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{rows}

Wall seconds per stage of the last case, and the floor: gunzip + network.

| scan | setting | read | prepare | network | export | write | floor |
| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |
{stages}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", nargs="+", choices=[*SIZES, *REAL], default=["small"])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, help="default: all but those that mirror")
    parser.add_argument("--repeats", type=int, default=2, help="times the image is segmented in a row")
    parser.add_argument("--model", type=Path, help="model folder; default: train one, or the one trained before")
    parser.add_argument("--steps", type=int, default=TRAINING_STEPS, help="training steps of the model")
    parser.add_argument("--skipping", action="store_true", help="measure the skipping of windows instead")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {RESULTS.name}/")
    arguments = parser.parse_args()
    arguments.contestants = arguments.contestants or [n for n in CONTESTANTS if n != "stock_default"]
    if arguments.skipping:
        text, name = skipping.report(machine()), "inference_skipping"
    else:
        model = arguments.model or trained_model(ROOT / "build" / "benchmark_model", arguments.steps)
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
