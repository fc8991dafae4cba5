"""Tiny models of nnU-Net's with random weights, in its own files; and what its own predictor makes of an image."""

import json
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from unittest import mock

import numpy as np
import torch

NAME = "nnUNetTrainer__nnUNetPlans__3d_fullres"
RESAMPLING = {"is_seg": False, "order_z": 0, "force_separate_z": None}
INTENSITIES = {"mean": 60.0, "std": 90.0, "percentile_00_5": -150.0, "percentile_99_5": 240.0, "median": 60.0,
               "min": -900.0, "max": 900.0}  # fmt: skip
LABELS = {"background": 0, "liver": 1, "left kidney": 2, "tumor": 3}


def configuration(residual=False, **changes):
    """Return a configuration of two stages as nnU-Net's planner writes it."""
    unet = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "median_image_size_in_voxels": [16, 16, 16],
        "spacing": [2.5, 1.5, 1.5],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": RESAMPLING | {"order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": RESAMPLING | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": RESAMPLING | {"order": 1},
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{unet}",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [4, 8],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
                "strides": [[1, 1, 1], [2, 2, 2]],
                "n_blocks_per_stage" if residual else "n_conv_per_stage": [1, 2] if residual else [2, 2],
                "n_conv_per_stage_decoder": [1] if residual else [2],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    } | changes


def plans(given, **changes):
    """Return ``plans.json`` with one configuration, ``3d_fullres``."""
    return {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.5, 1.5, 1.5],
        "original_median_shape_after_transp": [16, 16, 16],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": given},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): INTENSITIES for channel, _ in enumerate(given["normalization_schemes"])
        },
    } | changes


def network_of(given, outputs):
    """Return the untrained network of a configuration, as nnU-Net's ``get_network_from_plans`` builds it."""
    described = given["architecture"]
    arguments = dict(described["arch_kwargs"])
    for key in described["_kw_requires_import"]:
        arguments[key] = arguments[key] and resolve_name(arguments[key])
    network = resolve_name(described["network_class_name"])
    return network(
        input_channels=len(given["normalization_schemes"]), num_classes=outputs, deep_supervision=False, **arguments
    )


def save_nnunet(parent, given=None, folds=(0,), mirror=(0, 1, 2), labels=None, channels=None, more=None, **changes):
    """Write the folder of a model with random weights, and ``more`` in its checkpoints; return it."""
    folder, given = Path(parent) / "Dataset001_Tiny" / NAME, given or configuration()
    described = plans(given, **changes)
    dataset = {"channel_names": channels or {"0": "CT"}, "labels": labels or LABELS, "numTraining": 3,
               "file_ending": ".nii.gz"}  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(described))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for number, fold in enumerate(folds):
        torch.manual_seed(number)
        content = {
            "network_weights": network_of(given, len(dataset["labels"])).state_dict(),
            "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.01}]},
            "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.6)], "train_losses": [1.0]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 2,
            "trainer_name": "nnUNetTrainer",
            "init_args": {"plans": described, "configuration": "3d_fullres", "fold": fold, "dataset_json": dataset,
                          "device": torch.device("cpu")},
            "inference_allowed_mirroring_axes": mirror,
        } | (more or {})  # fmt: skip
        (folder / f"fold_{fold}").mkdir()
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


class FullPrecision:
    """Torch, where ``half`` means float32."""

    half = torch.float32

    def __getattr__(self, name):
        return getattr(torch, name)


def as_nnunet_predicts(folder, images, out, folds=(0,)):
    """Write what nnU-Net's own predictor makes of an image, a file for each channel: ``<out>.nii.gz``.

    It adds up logits in half precision, in which random networks, whose classes are close, lose a voxel in a thousand;
    here it does so in float32.
    """
    import nnunetv2.inference.predict_from_raw_data as stock

    predictor = stock.nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=tuple(folds))
    gaussian = partial(stock.compute_gaussian, dtype=torch.float32)
    gaussian.cache_clear = stock.compute_gaussian.cache_clear
    with mock.patch.multiple(stock, torch=FullPrecision(), compute_gaussian=gaussian):
        predictor.predict_from_files_sequential([list(map(str, images))], [str(out)])
