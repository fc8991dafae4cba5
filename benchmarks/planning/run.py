"""Are plans those of nnU-Net's own commands? For each collection and planner, both, beside each other.

    python benchmarks/planning/run.py OUT --btcv FOLDER --chaos FOLDER [--write]

The phantom, BTCV (CT) and CHAOS (MR) are written as data sets of nnU-Net's, in canonical orientation, and planned by
``DatasetFingerprintExtractor`` and the planners behind ``nnUNetv2_plan_experiment``. Takes some minutes.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from labelloop.base.classes import load_classes
from labelloop.base.files import write_json, write_text
from labelloop.base.machine import processor
from labelloop.cases.folders import pair_folders
from labelloop.cases.survey import read_truth
from labelloop.cases.table import Case, load_cases
from labelloop.images.volume import Volume, canonical, read, write
from labelloop.networks.plans import Plan
from labelloop.phantom import write_phantom
from labelloop.training.planning import plan_for, shapes_of

RESULTS = Path(__file__).resolve().parents[1] / "results"
SCHEME = load_classes("flare")
PLANNERS = ("plain", "resenc_m")
HEADER = [
    "| collection | planner | spacing z, y, x (mm) | patch | batch | stages | the same as nnU-Net's |",
    "|---|---|---|---|---:|---:|---|",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for data sets of nnU-Net's")
    parser.add_argument("--btcv", type=Path, help="folder of <case>_0000.nii.gz and <case>.nii.gz")
    parser.add_argument("--chaos", type=Path, help="the same, of MR")
    parser.add_argument("--write", action="store_true", help="write planning.md, too")
    options = parser.parse_args()
    collections = {"phantom": phantom(options.out / "phantom")}
    if options.btcv:
        collections["BTCV"] = folder(options.btcv, "btcv", "CT")
    if options.chaos:
        collections["CHAOS"] = folder(options.chaos, "chaos_mr", "MR")
    lines = list(HEADER)
    for number, (name, cases) in enumerate(collections.items(), start=1):
        print(f"planning for {name}", flush=True)
        lines += compared(name, cases, options.out / f"Dataset{number:03d}_{name}")
    print("\n".join(lines))
    if options.write:
        about = f"`benchmarks/planning/run.py`, {date.today()}, {processor()}. Plans of `labelloop recipe plan`"
        head = ["# Plans", "", f"{about}, beside those of nnU-Net's own planners for the same cases.", ""]
        write_text(RESULTS / "planning.md", "\n".join([*head, *lines, ""]))


def phantom(place: Path) -> list[Case]:
    """Return CT of the phantom with all their labels."""
    table = place / "cases.csv"
    if not table.is_file():
        write_phantom(place, cases=8, seed=3)
    return complete(table)


def complete(table: Path) -> list[Case]:
    """Return the CT cases of a phantom's table with all their labels, to learn from."""
    known = {"annotated": "all", "role": "train"}
    cases = [case for case in load_cases(table)[0] if case.modality == "CT"]
    truth = table.parent.resolve() / "truth"
    return [case.model_copy(update=known | {"label": str(truth / f"{case.case}.nii.gz")}) for case in cases]


def folder(place: Path, dataset: str, modality: str) -> list[Case]:
    """Return the cases of a folder of images and labels."""
    found = pair_folders(place.resolve(), place.resolve())
    common = {"dataset": dataset, "modality": modality, "role": "train"}
    files = [(case, str(image), str(label)) for case, ((image,), label) in found.items()]
    return [Case(case=case, patient=case, image=image, label=label, **common) for case, image, label in files]


def compared(name: str, cases: Sequence[Case], place: Path) -> Iterator[str]:
    """Yield a row of the table for each planner."""
    shapes = shapes_of(cases, SCHEME, SCHEME.names, most=len(cases))
    theirs = stock_plans(cases, place)
    for network in PLANNERS:
        plan = plan_for(shapes, len(SCHEME.names), len(cases), network)
        wrong = differences(plan, theirs[network]["configurations"]["3d_fullres"])
        spacing, patch = (" x ".join(f"{n:g}" for n in sides) for sides in (plan.spacing_mm, plan.patch))
        same = "yes" if not wrong else f"no: {', '.join(wrong)}"
        yield f"| {name} | {network} | {spacing} | {patch} | {plan.batch_size} | {len(plan.features)} | {same} |"


def stock_plans(cases: Sequence[Case], place: Path) -> dict[str, Any]:
    """Return what nnU-Net's own code plans for cases, by planner, and its ``fingerprint``.

    Args:
        place: folder for the data set, whose name is one that nnU-Net takes.
    """
    before = dict(os.environ)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(place / name)
    try:
        return _planned(cases, place)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _planned(cases: Sequence[Case], place: Path) -> dict[str, Any]:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

    raw = place / "nnUNet_raw" / place.name
    for case in cases:
        truth = read_truth(case, SCHEME)
        for volume, file in ((read(case.image), f"imagesTr/{case.case}_0000"), (truth, f"labelsTr/{case.case}")):
            _write_canonical(volume, raw / f"{file}.nii.gz")
    labels = {"background": 0} | {name: number for number, name in enumerate(SCHEME.names, start=1)}
    described = {"channel_names": {"0": cases[0].modality}, "labels": labels, "numTraining": len(cases)}
    write_json(raw / "dataset.json", described | {"file_ending": ".nii.gz"})
    return {
        "fingerprint": DatasetFingerprintExtractor(place.name, num_processes=1).run(),
        "plain": ExperimentPlanner(place.name).plan_experiment(),
        "resenc_m": residual_encoder_unet_planners.nnUNetPlannerResEncM(place.name).plan_experiment(),
    }


def _write_canonical(volume: Volume | None, file: Path) -> None:
    assert volume is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    turned = canonical(volume)
    write(file, turned.array, turned.geometry)


def differences(plan: Plan, configuration: Mapping[str, Any]) -> list[str]:
    """Return the keys in which a plan differs from a configuration of nnU-Net's."""
    theirs, ours = plain(configuration["architecture"]), plain(plan.architecture())
    same = {
        "spacing": np.allclose(plan.spacing_mm, configuration["spacing"], rtol=1e-5),
        "patch": list(plan.patch) == plain(configuration["patch_size"]),
        "batch_size": plan.batch_size == configuration["batch_size"],
        "batch_dice": plan.batch_dice == configuration["batch_dice"],
        "network": ours["network_class_name"] == theirs["network_class_name"],
        **{key: value == theirs["arch_kwargs"].get(key) for key, value in ours["arch_kwargs"].items()},
    }
    return [key for key, equal in same.items() if not equal]


def plain(value: Any) -> Any:
    """Return tuples as lists, numbers of numpy as Python's."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


if __name__ == "__main__":
    main()
