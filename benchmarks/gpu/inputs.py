"""What is measured on: synthetic scans, small enough to carry and unpacked to any size, and the networks.

    python benchmarks/gpu/run.py --prepare --inputs build/gpu_inputs     # on any machine, beforehand

makes the scans as arrays of one byte a voxel, 3 mm wide, so that no minute of a borrowed GPU is spent on drawing them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import model as trained  # benchmarks/inference
import numpy as np
import torch
from torch.nn import functional

from labelloop.base.classes import load_classes
from labelloop.base.files import atomic
from labelloop.images.volume import RAS, Geometry, Volume
from labelloop.inference.prepare import prepare_image, prepare_label
from labelloop.networks.network import build_network
from labelloop.networks.plans import Plan
from labelloop.phantom import draw_patient, field_of_view, render
from labelloop.recipe import load_recipe

LOW_HU, HU_A_STEP = -200.0, 2.0
"""HU of the byte 0, and HU between two bytes: what networks see of a CT."""
NOISE_HU = 12.0
BLOCKS = (1, 3, 4, 6, 6, 6)
"""Residual blocks of the stages of nnU-Net's ResEnc-M (its ``ResEncUNetPlanner``); one convolution a decoder stage."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is: as published, or a toy's size that two CPU cores run in a minute.

    ``scans``: size (x, y, z) of those that devices are compared on. ``heights``: slices of those that are timed.
    ``steps``: training updates of the networks, and those that are measured, counted once warm.
    """

    phantom_mm: float = 3.0
    phantoms: int = 4
    scans: tuple[tuple[int, int, int], ...] = ((256, 256, 160), (320, 256, 128), (192, 192, 96))
    plane: int = 512
    heights: tuple[int, ...] = (400, 100, 250, 550)
    spacing_mm: tuple[float, float, float] = (0.8, 0.8, 2.0)
    training_steps: int = 300
    crop: tuple[int, int, int] = (32, 96, 96)
    warm: int = 3
    steps: int = 50
    few_steps: int = 20
    resume_steps: int = 4


FULL = Sizes()
TOY = Sizes(
    phantom_mm=12, phantoms=1, scans=((24, 20, 12),) * 3, plane=32, heights=(16, 12), spacing_mm=(12, 12, 12),
    training_steps=3, crop=(8, 16, 16), warm=1, steps=5, few_steps=2, resume_steps=1,
)  # fmt: skip
TOY_PLAN = Plan(spacing_mm=(12, 12, 12), patch=(8, 16, 16), features=(4, 8, 8), batch_size=2)


def plans(toy: bool) -> dict[str, Plan]:
    """Return the plans of the networks: the demo's, 16 to 256 features, nnU-Net's default and its ResEnc-M."""
    if toy:
        return {"small": TOY_PLAN, "resenc_m": TOY_PLAN}
    fine = load_recipe("default").plans["fine"]
    demo = load_recipe("default_demo").plans["fine"]
    return {"small": trained.PLAN, "demo": demo, "nnunet": fine, "resenc_m": fine}


def prepare(folder: Path, sizes: Sizes) -> list[Path]:
    """Write the scans that are carried, where they are not there; return their files."""
    files = [folder / f"phantom_{number}.npz" for number in range(sizes.phantoms)]
    for number, file in enumerate(files):
        if not file.is_file():
            patient = draw_patient(trained.SEED, number)
            geometry = field_of_view(patient, (sizes.phantom_mm,) * 3, orientation="RAS")
            image, truth = render(patient, geometry)
            codes = np.clip((image - LOW_HU) / HU_A_STEP, 0, 255).astype(np.uint8)
            with atomic(file) as temporary, temporary.open("wb") as handle:
                np.savez_compressed(handle, image=codes, truth=truth, spacing=np.array(geometry.spacing))
    return files


@dataclass(frozen=True, eq=False)
class Phantom:
    """A carried scan: HU and label map [z, y, x] on a coarse grid, and its spacing (mm)."""

    image: torch.Tensor
    truth: torch.Tensor
    spacing: float

    @classmethod
    def read(cls, file: Path) -> "Phantom":
        """Unpack a file of :func:`prepare`."""
        with np.load(file) as stored:
            image = torch.from_numpy(stored["image"].astype(np.float32)) * HU_A_STEP + LOW_HU
            return cls(image, torch.from_numpy(stored["truth"]), float(stored["spacing"][0]))

    def volume(self, size: tuple[int, int, int], spacing: tuple[float, float, float], seed: int = 0) -> Volume:
        """Return a scan of ``size`` and ``spacing`` (mm; both x, y, z), int16: the patient, over and over along z."""
        image = self._on(size, spacing)
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
        return Volume((image + NOISE_HU * noise).round().to(torch.int16).numpy(), upright(size, spacing))

    def _on(self, size: tuple[int, int, int], spacing: tuple[float, float, float]) -> torch.Tensor:
        """Resample the image to a spacing, then repeat it along z, and cut or pad with air in plane."""
        shape = [max(1, round(n * self.spacing / mm)) for n, mm in zip(self.image.shape, spacing[::-1], strict=True)]
        fine = functional.interpolate(self.image[None, None], shape, mode="trilinear", align_corners=False)[0, 0]
        fine = fine[torch.arange(size[2]) % len(fine)]
        outside = float(self.image.min())
        for dim, wanted in ((1, size[1]), (2, size[0])):
            missing = max(0, wanted - fine.shape[dim])
            pad = [0, 0, missing // 2, missing - missing // 2] if dim == 1 else [missing // 2, missing - missing // 2]
            fine = functional.pad(fine, pad, value=outside).narrow(dim, 0, wanted)
        return fine


def upright(size: tuple[int, int, int], spacing: tuple[float, float, float]) -> Geometry:
    """Return a grid (x, y, z) in canonical orientation: what nnU-Net sees of the array is what the engine sees."""
    return Geometry(size, spacing, direction=tuple(RAS.ravel().tolist()))


def model_folder(name: str, plan: Plan, scans: list[Phantom], sizes: Sizes, folder: Path, device: torch.device) -> Path:
    """Return the folder of a network that was trained for seconds on ``device``; train it only when it is not there.

    A network with random weights would do for times, not for the agreement of label maps: its classes win in specks.
    """
    if (folder / "model.json").is_file():
        return folder
    torch.manual_seed(trained.SEED)
    outputs = len(load_classes("flare").names) + 1
    network = network_of(name, plan, outputs, deep_supervision=True).to(device)
    trained.train(network, [_seen(scan, plan) for scan in scans], _fitting(sizes.crop, plan), sizes.training_steps,
                  device.type)  # fmt: skip
    trained.write_model(folder, network, plan, {"network": name})
    return folder


@lru_cache
def _seen(scan: Phantom, plan: Plan) -> trained.Scan:
    """Return image and label map as a network of ``plan`` sees them."""
    geometry = upright(tuple(scan.image.shape[::-1]), (scan.spacing,) * 3)
    prepared = prepare_image(Volume(scan.image.numpy(), geometry), plan, "CT")
    return prepared.array[0], prepare_label(Volume(scan.truth.numpy(), geometry), prepared.frame)


def _fitting(crop: tuple[int, int, int], plan: Plan) -> tuple[int, ...]:
    """Return a crop that is no larger than the patch and that the network's strides divide."""
    total = [math.prod(stride[axis] for stride in plan.stage_strides) for axis in range(3)]
    return tuple(min(c, p) // t * t for c, p, t in zip(crop, plan.patch, total, strict=True))


def network_of(name: str, plan: Plan, outputs: int, deep_supervision: bool = False) -> torch.nn.Module:
    """Return an untrained network: that of the plan, or with its features and strides ResEnc-M."""
    if not name.startswith("resenc"):
        return build_network(plan, outputs, deep_supervision)
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    keywords: dict[str, Any] = architecture(name, plan)["arch_kwargs"]
    classes = {"conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    return ResidualEncoderUNet(input_channels=1, num_classes=outputs, deep_supervision=deep_supervision,
                               **(keywords | classes))  # fmt: skip


def architecture(name: str, plan: Plan) -> dict[str, Any]:
    """Return the ``architecture`` entry of an nnU-Net configuration."""
    entry = plan.architecture()
    if name.startswith("resenc"):
        entry["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        keywords = entry["arch_kwargs"]
        keywords["n_blocks_per_stage"] = BLOCKS[: keywords["n_stages"]]
        keywords["n_conv_per_stage_decoder"] = [1] * (keywords["n_stages"] - 1)
        del keywords["n_conv_per_stage"]
    return entry


@contextmanager
def engine_builds(name: str) -> Iterator[None]:
    """Let the engine build the network ``name``, which plans do not know where it is ResEnc-M."""

    def build(plan: Plan, outputs: int, deep_supervision: bool = False) -> torch.nn.Module:
        return network_of(name, plan, outputs, deep_supervision)

    with mock.patch("labelloop.inference.engine.build_network", build):
        yield
