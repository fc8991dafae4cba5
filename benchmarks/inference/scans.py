"""The scans that are measured, the model as nnU-Net reads it, and the machine, in words."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

from labelloop.base.files import write_json
from labelloop.base.machine import processor
from labelloop.images.volume import write
from labelloop.phantom import draw_patient, field_of_view, render

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "benchmark_inference"
RESULTS = ROOT / "benchmarks" / "results"
REAL = {"hcc_048": "hcc/hcc_048_0000.nii.gz", "ircad_17": "ircad/ircad_17_0000.nii.gz"}
SIZES = {"tiny": (96, 96, 60), "small": (256, 256, 160), "full": (512, 512, 400)}


def scan(name: str, build: Path) -> Path | None:
    """Return an image; draw a phantom where it is not there. None for a real scan that is not there."""
    if name in REAL:
        path = ROOT.parent / "shared" / "data" / REAL[name]
        return path if path.is_file() else None
    path = build / f"phantom_{'x'.join(map(str, SIZES[name]))}_0000.nii.gz"
    if not path.is_file():
        patient = draw_patient(3, 100)
        geometry = field_of_view(patient, size=SIZES[name])
        print(f"drawing a phantom of {SIZES[name]} voxels, which is kept in {build}", flush=True)
        write(path, render(patient, geometry)[0], geometry)
    return path


def stock_models(model: Path, build: Path) -> dict[bool, Path]:
    """Return model folders for nnU-Net, by whether images and logits are resampled as its planner chooses."""
    from labelloop.training.export import export_nnunet

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


def machine() -> str:
    """Return the processor, what it is busy with besides, and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "nnunetv2", "SimpleITK", "numpy"))
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} CPU cores"
    kind = f"{processor()}, {cores} ({platform.machine()}), no GPU used"
    shared = f"niceness {os.nice(0)}, load average {os.getloadavg()[2]:.1f}"
    return f"{kind}; {shared}; Python {platform.python_version()}, {versions}"
