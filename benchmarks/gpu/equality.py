"""Part 1: which machine this is, and whether the engine on the device gives the label maps that it gives on the CPU."""

from collections.abc import Iterator
from typing import Any

import machine
import numpy as np
from context import Context
from device import forget
from record import Step

from labelloop.images.volume import Volume
from labelloop.inference.engine import Predictor
from labelloop.inference.settings import Settings

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "fp32, fast": {"precision": "fp32", "mode": "fast"},
    "fp32, 4 windows at once": {"precision": "fp32", "window_batch": 4},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "default": {},
}
"""Settings on the device; on the CPU it is fp32, exact."""


def steps(context: Context) -> Iterator[Step]:
    """Yield what is asked of the machine, then a step for each scan and network."""
    yield from machine.steps(context)
    for name in context.plans:
        if name in ("small", "demo"):
            for number in range(len(context.sizes.scans)):
                yield Step(f"{name}, scan {number + 1}", lambda n=name, i=number: compare(context, n, i))


def scan(context: Context, number: int) -> Volume:
    """Return the scan of that number: another patient, size and seed each."""
    size = context.sizes.scans[number]
    extent = 400.0 if not context.toy else size[0] * context.sizes.spacing_mm[0]
    side = extent / size[0]
    spacing = (side, side, extent / size[2] if not context.toy else context.sizes.spacing_mm[2])
    return context.phantoms[number % len(context.phantoms)].volume(size, spacing, seed=number)


def compare(context: Context, name: str, number: int) -> dict[str, Any]:
    """Return share of equal voxels and mean DSC of each variant against the CPU."""
    folder, volume = context.model(name), scan(context, number)
    expected = Predictor(folder, "cpu", Settings(precision="fp32")).predict(volume, "CT").labels
    result: dict[str, Any] = {"size": list(volume.geometry.size), "classes": len(np.unique(expected)) - 1}
    for variant, settings in VARIANTS.items():
        predictor = Predictor(folder, str(context.device), Settings.model_validate(settings))
        result[variant] = agreement(expected, predictor.predict(volume, "CT").labels)
        del predictor
        forget(context.device)
    return result


def agreement(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Return the share of equal voxels, the number of others, and the mean DSC of the classes that either map has."""
    confusion = np.bincount(first.ravel().astype(np.uint16) * 256 + second.ravel(), minlength=1 << 16).reshape(256, 256)
    totals = confusion.sum(0) + confusion.sum(1)
    dice = [2 * confusion[i, i] / totals[i] for i in range(1, 256) if totals[i]]
    equal = int(np.trace(confusion))
    return {
        "equal": equal / first.size,
        "different": first.size - equal,
        "dsc": float(np.mean(dice)) if dice else 1.0,
    }
