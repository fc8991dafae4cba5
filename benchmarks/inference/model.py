"""The network that the benchmark runs: 16 to 256 features at 2.5 x 1.5 x 1.5 mm, trained for minutes on phantoms.

A network with random weights would do for the times, but not for the agreement of label maps: its classes win in specks
everywhere, while those of a trained one are compact and clear-cut.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from labelloop.base.classes import load_classes
from labelloop.base.files import atomic, sha256, write_json
from labelloop.inference.prepare import scaling
from labelloop.networks.network import build_network
from labelloop.networks.plans import Plan
from labelloop.phantom import draw_patient, field_of_view, render
from labelloop.training.stock import dataset_json, plans_json

PLAN = Plan(spacing_mm=(2.5, 1.5, 1.5), patch=(48, 128, 160), features=(16, 32, 64, 128, 256))
CROP = (32, 96, 96)
LEVELS = 3
"""Resolutions that have a loss of their own (deep supervision)."""
PATIENTS = 8
SEED = 3
Scan = tuple[np.ndarray, np.ndarray]


def trained_model(folder: Path, steps: int) -> Path:
    """Return a model folder with the network after ``steps`` training steps; train it only when it is not there."""
    about = {"benchmark_steps": steps, "plan": PLAN.model_dump(mode="json")}
    described = folder / "model.json"
    if described.is_file() and about.items() <= json.loads(described.read_text()).items():
        return folder
    classes = tuple(load_classes("flare").names)
    torch.manual_seed(SEED)
    network = build_network(PLAN, len(classes) + 1, deep_supervision=True)
    train(network, [_scan(number) for number in range(PATIENTS)], CROP, steps)
    write_json(folder / "plans.json", plans_json("phantom", PLAN))
    write_json(folder / "dataset.json", dataset_json(classes, PATIENTS))
    write_model(folder, network, PLAN, about)
    return folder


def write_model(folder: Path, network: torch.nn.Module, plan: Plan, about: Mapping[str, Any]) -> None:
    """Write weights and ``model.json`` of a network of all FLARE classes."""
    scheme = load_classes("flare")
    with atomic(folder / "weights.pt") as temporary:
        torch.save({"weights": {name: value.cpu() for name, value in network.state_dict().items()}}, temporary)
    content = {"name": folder.name, "classes": scheme.names, "class_ids": {c: scheme.ids[c] for c in scheme.names},
               "plan": plan.model_dump(mode="json"), "mirror_axes": [0, 1, 2],
               "weights_sha256": sha256(folder / "weights.pt")}  # fmt: skip
    write_json(folder / "model.json", dict(about) | content)


def train(
    network: torch.nn.Module, scans: Sequence[Scan], crop: Sequence[int], steps: int, device: str = "cpu"
) -> None:
    """Train as nnU-Net does (SGD, cross-entropy and soft Dice) on crops of phantoms, half of them around an organ.

    Args:
        network: with deep supervision, on ``device``.
        scans: normalized images and label maps [z, y, x], on the grid of the network.
        crop: size (z, y, x) of what an update sees.
    """
    rng = np.random.default_rng(SEED)
    crops = [Crops(image, truth, crop) for image, truth in scans]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    start = time.perf_counter()
    for step in range(steps):
        drawn = crops[rng.integers(len(scans))].draw(rng, step % 2 == 0)
        image, label = (part.to(device) for part in drawn)
        with torch.autocast(device, torch.bfloat16):
            outputs_by_level = network(image)[:LEVELS]
        losses = [_loss(logits.float(), label) / 2**level for level, logits in enumerate(outputs_by_level)]
        loss = sum(losses)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"training step {step}: loss {losses[0].item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)


def _scan(number: int) -> Scan:
    patient = draw_patient(SEED, number)
    image, truth = render(patient, field_of_view(patient, PLAN.spacing_mm[::-1], orientation="RAS"))
    array = image.astype(np.float32)
    scaling(array, PLAN, "CT").apply(array)
    return array, truth


class Crops:
    """Crops of one scan. Where its classes are is looked up once: it takes longer than a step on a GPU."""

    def __init__(self, image: np.ndarray, truth: np.ndarray, size: Sequence[int]):
        self._image, self._truth, self._size = image, truth, np.array(size)
        self._places = [np.flatnonzero(truth == value) for value in np.unique(truth)[1:]]

    def draw(self, rng: np.random.Generator, foreground: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a random crop [1, 1, z, y, x] and its label [1, z, y, x], maybe around a voxel of a random class."""
        highest = np.array(self._truth.shape) - self._size
        corner = rng.integers(0, highest + 1)
        if foreground:
            places = self._places[rng.integers(len(self._places))]
            voxel = np.array(np.unravel_index(places[rng.integers(len(places))], self._truth.shape))
            corner = np.clip(voxel - self._size // 2, 0, highest)
        box = tuple(slice(c, c + n) for c, n in zip(corner, self._size, strict=True))
        image, label = self._image[box].copy(), self._truth[box].astype(np.int64)
        return torch.from_numpy(image)[None, None], torch.from_numpy(label)[None]


def _loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy plus one minus the mean soft Dice of the classes present, on the grid of ``logits``."""
    label = functional.interpolate(label[None].float(), logits.shape[2:], mode="nearest-exact")[0].long()
    probability = logits.softmax(1)
    truth = functional.one_hot(label, logits.shape[1]).movedim(-1, 1)
    axes = (0, 2, 3, 4)
    present = truth.sum(axes) > 0
    dice = (2 * (probability * truth).sum(axes) + 1) / (probability.sum(axes) + truth.sum(axes) + 1)
    return functional.cross_entropy(logits, label) + 1 - dice[present].mean()
