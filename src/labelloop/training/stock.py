"""Files that stock nnU-Net reads, so that a model of labelloop can be used without labelloop.

The equivalent nnU-Net configuration of a plan: canonical orientation is ``NibabelIOWithReorient``, resampling is
``resample_torch_fornnunet`` (linear), intensity properties are the plan's pinned ones. It describes CT; a model for MR
needs ``ZScoreNormalization`` in its place.
"""

from pathlib import Path
from typing import Any

from labelloop.errors import UserError
from labelloop.files import atomic, write_text
from labelloop.plans import Plan

CONFIGURATION = "3d_fullres"
CHECKPOINT = "checkpoint_final.pth"


def plans_json(name: str, plan: Plan) -> dict[str, Any]:
    """Return nnU-Net's ``plans.json`` for ``plan``."""
    low, high = plan.ct.clip_hu
    resampling = {"force_separate_z": False, "memefficient_seg_resampling": False}
    configuration: dict[str, Any] = {
        "data_identifier": "labelloop",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": plan.batch_size,
        "patch_size": list(plan.patch),
        "median_image_size_in_voxels": list(plan.patch),  # only ever printed
        "spacing": list(plan.spacing_mm),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": plan.architecture(),
        "batch_dice": plan.batch_dice,
    }
    for what, labels in (("data", False), ("seg", True), ("probabilities", False)):
        configuration[f"resampling_fn_{what}"] = "resample_torch_fornnunet"
        configuration[f"resampling_fn_{what}_kwargs"] = {"is_seg": labels, **resampling}
    return {
        "dataset_name": name,
        "plans_name": "labelloop",
        "original_median_spacing_after_transp": list(plan.spacing_mm),
        "original_median_shape_after_transp": list(plan.patch),
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "labelloop",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "percentile_00_5": low,
                "percentile_99_5": high,
                "mean": plan.ct.mean,
                "std": plan.ct.std,
                "median": plan.ct.mean,
                "min": low,
                "max": high,
            }
        },
        "configurations": {CONFIGURATION: configuration},
    }


def dataset_json(classes: tuple[str, ...], cases: int) -> dict[str, Any]:
    """Return nnU-Net's ``dataset.json`` for a model of ``classes``; label ``i`` is output channel ``i``."""
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {name: i for i, name in enumerate(classes, start=1)},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }


def export_nnunet(model: str | Path, out: str | Path) -> Path:
    """Write ``model`` as a folder that ``nnUNetPredictor.initialize_from_trained_model_folder`` takes.

    Args:
        model: a model folder, with ``plans.json``, ``dataset.json`` and ``weights.pt``.
        out: folder to write: ``plans.json``, ``dataset.json`` and ``fold_0/checkpoint_final.pth``.

    Raises:
        UserError: when the model is not finished.
    """
    import json

    import torch

    model, out = Path(model), Path(out)
    for name in ("model.json", "plans.json", "dataset.json", "weights.pt"):
        if not (model / name).is_file():
            raise UserError(f"{model}: no {name} there; is this a finished model?")
    for name in ("plans.json", "dataset.json"):
        write_text(out / name, (model / name).read_text(encoding="utf-8"))
    mirrored = json.loads((model / "model.json").read_text(encoding="utf-8"))["mirror_axes"]
    checkpoint = {
        "network_weights": torch.load(model / "weights.pt", map_location="cpu", weights_only=True)["weights"],
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": CONFIGURATION, "fold": 0},
        "inference_allowed_mirroring_axes": mirrored or None,
    }
    with atomic(out / "fold_0" / CHECKPOINT) as temporary:
        torch.save(checkpoint, temporary)
    return out
