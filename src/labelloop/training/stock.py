"""A plan in nnU-Net's words: the ``plans.json`` and ``dataset.json`` that it reads.

Canonical orientation is ``NibabelIOWithReorient``, linear resampling is ``resample_torch_fornnunet``, intensity
properties are the plan's pinned ones. A plan that came from nnU-Net goes back as it came.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from labelloop.inference.nnunet_files import LINEAR, NORMALIZATIONS, SPLINES
from labelloop.networks.nnunet_plan import NnunetPlan
from labelloop.networks.plans import Plan

CONFIGURATION = "3d_fullres"
PLANS = "labelloop"
SCHEMES = {kind: scheme for scheme, kind in NORMALIZATIONS.items()}
READERS = {"stored": "SimpleITKIO", "canonical": "NibabelIOWithReorient"}
"""nnU-Net's readers of images, by the orientation in which they give them."""


def plans_json(name: str, plan: Plan, modality: str = "CT") -> dict[str, Any]:
    """Return nnU-Net's ``plans.json`` for ``plan``.

    Args:
        modality: of the images, CT or MR, which nnU-Net normalizes alike. A plan of nnU-Net's, or one with
            ``channels``, says itself how.
    """
    configuration: dict[str, Any] = {
        "data_identifier": "labelloop",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": plan.batch_size,
        "patch_size": list(plan.patch),
        "median_image_size_in_voxels": list(plan.patch),  # only ever printed
        "spacing": list(plan.spacing_mm),
        "architecture": plan.architecture(),
        "batch_dice": plan.batch_dice,
    }
    prepared = _as_nnunet(plan) if isinstance(plan, NnunetPlan) else _as_ours(plan, modality)
    transpose = list(prepared.transpose)
    return {
        "dataset_name": name,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": list(plan.spacing_mm),
        "original_median_shape_after_transp": list(plan.patch),
        "image_reader_writer": prepared.reader,
        "transpose_forward": transpose,
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "experiment_planner_used": "labelloop",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): found for channel, found in enumerate(prepared.intensities)
        },
        "configurations": {CONFIGURATION: configuration | prepared.configuration},
    }


class Preparation(NamedTuple):
    """How nnU-Net is told to prepare images: reader, axes, intensities of channels, keys of a configuration."""

    reader: str
    transpose: Sequence[int]
    intensities: list[dict[str, float]]
    configuration: dict[str, Any]


def _as_ours(plan: Plan, modality: str) -> Preparation:
    """Return what makes nnU-Net prepare images as plans of our own do."""
    kinds = ["ct" if of_channel == "CT" else "zscore" for of_channel in plan.modalities(modality)]
    hows = [plan.ct_of(channel if kind == "ct" else 0) for channel, kind in enumerate(kinds)]
    intensities = [_intensities(how.clip_hu, how.mean, how.std) for how in hows]
    return Preparation(
        READERS["canonical"], (0, 1, 2), intensities, _configuration(kinds, _linear(False), _linear(False))
    )


def _as_nnunet(plan: NnunetPlan) -> Preparation:
    """Return what makes nnU-Net prepare images as a plan of its own says."""
    given = _linear(plan.separate_z)
    if plan.spline is not None:
        given = SPLINES, {"order": plan.spline, "order_z": 0, "force_separate_z": plan.separate_z}
    intensities = [_intensities(how.clip or (0.0, 0.0), how.mean, how.std) for how in plan.normalizations]
    kinds = [how.kind for how in plan.normalizations]
    configuration = _configuration(kinds, given, _linear(plan.separate_z_back))
    return Preparation(READERS[plan.orientation], plan.transpose, intensities, configuration)


Function = tuple[str, dict[str, Any]]
"""A function of nnU-Net's that resamples, and its arguments but for ``is_seg``."""


def _linear(separate_z: bool | None) -> Function:
    return LINEAR, {"force_separate_z": separate_z, "memefficient_seg_resampling": False}


def _configuration(kinds: Sequence[str], images: Function, scores: Function) -> dict[str, Any]:
    """Return keys of a configuration; ``kinds`` are those of the normalization of each channel."""
    inside = [kind == "zscore_inside" for kind in kinds]
    content: dict[str, Any] = {
        "normalization_schemes": [SCHEMES["zscore" if kind == "zscore_inside" else kind] for kind in kinds],
        "use_mask_for_norm": inside,
    }
    for what, (function, arguments) in (("data", images), ("seg", _linear(False)), ("probabilities", scores)):
        content[f"resampling_fn_{what}"] = function
        content[f"resampling_fn_{what}_kwargs"] = {"is_seg": what == "seg", **arguments}
    return content


def _intensities(clip: tuple[float, float], mean: float, std: float) -> dict[str, float]:
    low, high = clip
    quantiles = {"percentile_00_5": low, "percentile_99_5": high, "min": low, "median": mean, "max": high}
    return quantiles | {"mean": mean, "std": std}


def dataset_json(
    classes: tuple[str, ...], cases: int, modality: str = "CT", channels: Sequence[str] = ()
) -> dict[str, Any]:
    """Return nnU-Net's ``dataset.json`` for a model of ``classes``; label ``i`` is output channel ``i``.

    Args:
        modality: of images of one channel.
        channels: names of the channels, where they are several.
    """
    return {
        "channel_names": {str(channel): name for channel, name in enumerate(channels or (modality,))},
        "labels": {"background": 0} | {name: i for i, name in enumerate(classes, start=1)},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
