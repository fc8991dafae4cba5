"""Part 2: seconds a stage, memory, area and energy of the engine, beside nnU-Net's predictor on the same arrays.

All is in memory: a scan as int16 to a label map as bytes. "Cold" is the loading of the model and its first scan of a
size, in a process that has the GPU already; "warm" is the median of those that follow. Files are read and written
besides, where SimpleITK is installed.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from context import Context
from device import forget, metered, peak_mb, synchronize
from equality import agreement
from inputs import architecture, engine_builds, network_of
from record import Step

from labelloop.base.classes import load_classes
from labelloop.base.shards import Ledger
from labelloop.images.volume import Volume, write
from labelloop.inference.engine import Predictor
from labelloop.inference.reading import InputImage
from labelloop.inference.running import run_cases
from labelloop.inference.settings import Settings
from labelloop.inference.stages import collected

MODES = {"exact": {}, "fast": {"mode": "fast"}}
"""Settings of the engine that are timed; all else is the default."""


def steps(context: Context) -> Iterator[Step]:
    """Yield what is timed: the goal's size and network first, then the other networks, nnU-Net's, the other sizes."""
    for slices in context.sizes.heights:
        for name in context.plans:
            for mode in MODES if slices == context.sizes.heights[0] else ("exact",):
                yield Step(f"{name}, {slices} slices, {mode}", partial(engine, context, name, slices, mode))
        for name in context.plans if find_spec("nnunetv2") else ():
            yield Step(f"{name}, {slices} slices, nnU-Net", partial(stock, context, name, slices))
    if find_spec("SimpleITK"):  # last: the writing of the scan takes longer than all that is measured
        yield Step("small, files", partial(files, context, context.sizes.heights[0]))


@lru_cache(maxsize=1)
def scan(context: Context, slices: int) -> Volume:
    """Return a scan of so many slices."""
    size = (context.sizes.plane, context.sizes.plane, slices)
    return context.phantoms[0].volume(size, context.sizes.spacing_mm)


def labels_file(context: Context, name: str, slices: int) -> Path:
    """Return where the engine's label map is kept, for nnU-Net's to be compared with."""
    return context.work / "labels" / f"{name}_{slices}.npz"


def engine(context: Context, name: str, slices: int, mode: str) -> dict[str, Any]:
    """Time the engine."""
    folder, volume, device = context.model(name), scan(context, slices), context.device
    forget(device)
    stages: list[dict[str, float]] = []

    def load() -> Callable[[], np.ndarray]:
        with engine_builds(name):
            predictor = Predictor(folder, str(device), Settings.model_validate(MODES[mode]))

        def segment() -> np.ndarray:
            with collected(device) as work:
                labels = predictor.predict(volume, "CT").labels
            stages.append(work.seconds | {"gmacs": work.macs / 1e9, "parameters": work.parameters})
            return labels

        return segment

    result, labels = timed(context, load, context.sizes.warm)
    kept = labels_file(context, name, slices)
    if mode == "exact":
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(kept, labels=labels)
    warm = stages[1:] or stages
    keys = ("prepare", "network", "export")
    result["stages"] = {key: statistics.median(one.get(key, 0.0) for one in warm) for key in keys}
    return result | {key: stages[-1][key] for key in ("gmacs", "parameters")}


def stock(context: Context, name: str, slices: int) -> dict[str, Any]:
    """Time nnU-Net's predictor at its fastest: resampling by torch, no mirroring, everything on the device."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from labelloop.training.stock import CONFIGURATION, dataset_json, plans_json

    folder, volume, plan = context.model(name), scan(context, slices), context.plans[name]
    scheme = load_classes("flare")
    plans = plans_json(name, plan)
    plans["configurations"][CONFIGURATION]["architecture"] = architecture(name, plan)
    manager = PlansManager(plans)
    forget(context.device)

    def load() -> Callable[[], np.ndarray]:
        on_device = context.device.type == "cuda"
        predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=on_device, device=context.device,
                                    allow_tqdm=False)  # fmt: skip
        weights = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)["weights"]
        network = network_of(name, plan, len(scheme.names) + 1).to(context.device)
        predictor.manual_initialization(
            network, manager, manager.get_configuration(CONFIGURATION), [weights], dataset_json(tuple(scheme.names), 1),
            "nnUNetTrainer", None,
        )  # fmt: skip
        image = volume.array[None].astype(np.float32)
        properties = {"spacing": list(volume.geometry.spacing_zyx)}
        return lambda: predictor.predict_single_npy_array(image, properties)

    result, labels = timed(context, load, 1)  # it takes many times as long
    kept = labels_file(context, name, slices)
    if kept.is_file():
        ids = np.array([0, *(scheme.ids[c] for c in scheme.names)], np.uint8)
        result |= agreement(np.load(kept)["labels"], ids[np.asarray(labels)])
    return result


def timed(
    context: Context, load: Callable[[], Callable[[], np.ndarray]], repeats: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Return cold and warm seconds, memory, area and energy of what ``load`` returns, and its label map."""
    device = context.device
    began = time.perf_counter()
    segment = load()
    labels = segment()
    synchronize(device)
    cold = time.perf_counter() - began
    warm = []
    with metered(device) as told:
        for _ in range(repeats):
            began = time.perf_counter()
            labels = segment()
            synchronize(device)
            warm.append(time.perf_counter() - began)
    each = {key: value / len(warm) if isinstance(value, float) else value for key, value in told.items()}
    return {"cold_s": cold, "warm_s": statistics.median(warm), "all_warm_s": warm, **peak_mb(device), **each}, labels


def files(context: Context, slices: int) -> dict[str, Any]:
    """Time ``run_cases`` on a scan that lies in several files: read ahead, written behind."""
    image = context.work / "files" / f"scan_{slices}_0000.nii.gz"
    if not image.is_file():
        volume = scan(context, slices)
        write(image, volume.array, volume.geometry)
    folder = context.model("small")
    names = [f"case{number}" for number in range(1 + context.sizes.warm)]
    ledger = Ledger(context.work / "files" / "out", "benchmark", resume=False)
    run_cases([InputImage(name, image) for name in names], lambda: Predictor(folder, str(context.device)), ledger)
    costs = [ledger.extras()[name] for name in names]
    stages = {key: statistics.median(c["seconds"].get(key, 0.0) for c in costs[1:]) for key in costs[0]["seconds"]}
    return {"stages": stages, "bytes": image.stat().st_size, "peak_ram_mb": costs[-1]["peak_ram_mb"]}
