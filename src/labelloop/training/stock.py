"""A plan in nnU-Net's words: the ``plans.json`` and ``dataset.json`` that it reads.

Canonical orientation is ``NibabelIOWithReorient``, resampling is ``resample_torch_fornnunet`` (linear), intensity
properties are the plan's pinned ones.
"""

from typing import Any

from labelloop.networks.plans import Plan

CONFIGURATION = "3d_fullres"
PLANS = "labelloop"
NORMALIZATION = {"CT": "CTNormalization", "MR": "ZScoreNormalization"}


def plans_json(name: str, plan: Plan, modality: str = "CT") -> dict[str, Any]:
    """Return nnU-Net's ``plans.json`` for ``plan`` on images of one modality, CT or MR."""
    low, high = plan.ct.clip_hu
    resampling = {"force_separate_z": False, "memefficient_seg_resampling": False}
    configuration: dict[str, Any] = {
        "data_identifier": "labelloop",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": plan.batch_size,
        "patch_size": list(plan.patch),
        "median_image_size_in_voxels": list(plan.patch),  # only ever printed
        "spacing": list(plan.spacing_mm),
        "normalization_schemes": [NORMALIZATION[modality]],
        "use_mask_for_norm": [False],
        "architecture": plan.architecture(),
        "batch_dice": plan.batch_dice,
    }
    for what, labels in (("data", False), ("seg", True), ("probabilities", False)):
        configuration[f"resampling_fn_{what}"] = "resample_torch_fornnunet"
        configuration[f"resampling_fn_{what}_kwargs"] = {"is_seg": labels, **resampling}
    return {
        "dataset_name": name,
        "plans_name": PLANS,
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


def dataset_json(classes: tuple[str, ...], cases: int, modality: str = "CT") -> dict[str, Any]:
    """Return nnU-Net's ``dataset.json`` for a model of ``classes``; label ``i`` is output channel ``i``."""
    return {
        "channel_names": {"0": modality},
        "labels": {"background": 0} | {name: i for i, name in enumerate(classes, start=1)},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
