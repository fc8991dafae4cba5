"""A model that nnU-Net plans, trains and runs by its own commands, small enough for one core of a CPU."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from labelloop.base.documents import read_json
from labelloop.base.files import link, write_json
from labelloop.cases.table import Case

TRAINERS = Path(__file__).resolve().parent / "trainer"
TRAINER = "nnUNetTrainerShort"
UPDATES_AN_EPOCH = 20
"""Those of the trainer."""
NUMBER, DATASET = 801, "Dataset801_BTCV"
PLANNERS = {"plain": "ExperimentPlanner", "resenc": "nnUNetPlannerResEncM"}
"""nnU-Net's planners, by the names that their plans get here."""
CONFIGURATION = "3d_small"
SPACING_MM = 5
MEMORY_GB = 1
SHARE, SIDE = 4, 48
"""Features are divided by ``SHARE``; no side of a patch is longer than ``SIDE``."""
LABELS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "vena cava",
    "portal vein", "pancreas", "right adrenal", "left adrenal",
)  # fmt: skip
"""BTCV's own ids, from 1 on, in words of its own: nothing but the data set file may say what they mean."""


class Stock:
    """nnU-Net in a folder of its own; what is there already is not made again.

    Args:
        folder: for its raw, preprocessed and trained data.
        epochs: of a training.
    """

    def __init__(self, folder: Path, epochs: int):
        self._raw, self._prepared = (folder / name for name in ("raw", "preprocessed"))
        self._trained = folder / f"trained_{epochs * UPDATES_AN_EPOCH}"
        self._environment = os.environ | {
            "nnUNet_raw": str(self._raw.resolve()),
            "nnUNet_preprocessed": str(self._prepared.resolve()),
            "nnUNet_results": str(self._trained.resolve()),
            "nnUNet_extTrainer": str(TRAINERS),
            "SHORT_EPOCHS": str(epochs),
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "1",  # 0 would break planning
            "nnUNet_compile": "f",
            "OMP_NUM_THREADS": "1",
        }

    def folder(self, plans: str) -> Path:
        """Return the folder of a trained model."""
        return self._trained / DATASET / f"{TRAINER}__{plans}__{CONFIGURATION}"

    def write_raw(self, cases: Sequence[Case]) -> None:
        """Write the data set of labeled cases; images and labels stay where they are."""
        content = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0} | {name: own for own, name in enumerate(LABELS, start=1)},
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
            "dataset": {case.case: {"images": [case.image], "label": case.label} for case in cases},
        }
        write_json(self._raw / DATASET / "dataset.json", content)

    def plan(self, plans: str) -> None:
        """Plan and preprocess, and add the narrower configuration to the plans."""
        file = self._prepared / DATASET / f"{plans}.json"
        if file.is_file() and CONFIGURATION in read_json(file)["configurations"]:
            return
        shutil.rmtree(self._prepared / DATASET / f"{plans}_3d_fullres", ignore_errors=True)
        self.nnunet(
            "plan_and_preprocess", "-d", NUMBER, "-pl", PLANNERS[plans], "-overwrite_plans_name", plans,
            "-gpu_memory_target", MEMORY_GB, "-overwrite_target_spacing", *[SPACING_MM] * 3,
            "-c", "3d_fullres", "-np", 1, "-npfp", 1,
        )  # fmt: skip
        content = read_json(file)
        content["configurations"][CONFIGURATION] = narrower(content["configurations"]["3d_fullres"])
        write_json(file, content)

    def train(self, plans: str) -> None:
        """Train on all cases of the data set, or go on with that."""
        fold = self.folder(plans) / "fold_all"
        if (fold / "checkpoint_final.pth").is_file():
            return
        begun = ["--c"] if (fold / "checkpoint_latest.pth").is_file() else []
        command = ("train", NUMBER, CONFIGURATION, "all", "-tr", TRAINER, "-p", plans, "-device", "cpu")
        self.nnunet(*command, *begun, nnUNet_n_proc_DA="0")

    def predict(self, plans: str, images: Path, out: Path, mirror: bool) -> None:
        """Segment a folder of images."""
        self.nnunet(
            "predict", "-i", images, "-o", out, "-d", NUMBER, "-c", CONFIGURATION, "-p", plans, "-tr", TRAINER,
            "-f", "all", "-device", "cpu", "-npp", 1, "-nps", 1, *([] if mirror else ["--disable_tta"]),
        )  # fmt: skip

    def nnunet(self, command: str, *words: object, **environment: str) -> None:
        """Run a command of nnU-Net's."""
        self.run([str(Path(sys.executable).with_name(f"nnUNetv2_{command}")), *map(str, words)], **environment)

    def run(self, command: Sequence[str], **environment: str) -> None:
        """Run a command; what it prints goes to a log. Raises CalledProcessError when it fails."""
        with (self._raw.parent / "commands.log").open("a") as log:
            subprocess.run(command, env=self._environment | environment, stdout=log, stderr=log, check=True)


def narrower(given: dict) -> dict:
    """Return a configuration that inherits all but a patch of at most ``SIDE`` voxels and fewer features."""
    architecture = json.loads(json.dumps(given["architecture"]))
    features = architecture["arch_kwargs"]["features_per_stage"]
    architecture["arch_kwargs"]["features_per_stage"] = [count // SHARE for count in features]
    patch = [min(side, SIDE) for side in given["patch_size"]]
    return {"inherits_from": "3d_fullres", "patch_size": patch, "architecture": architecture}


def link_images(cases: Sequence[Case], folder: Path) -> None:
    """Link the images of cases into a folder, as nnU-Net names them."""
    for case in cases:
        target = folder / f"{case.case}_0000.nii.gz"
        if not target.exists():
            link(Path(case.image), target)
