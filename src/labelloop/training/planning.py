"""Plans that fit a collection and a card: nnU-Net's own planners on what the labeled cases of a table look like.

nnU-Net (Isensee et al. 2021) chooses spacing, patch, batch and network from the spacings and sizes of the images, from
the intensities inside the annotated structures, and from the memory of the card. Here its planners do that, on images
in canonical orientation; the result is a :class:`~labelloop.networks.plans.Plan` to be written into a recipe.
"""

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from labelloop.base.channels import modality_of
from labelloop.base.classes import IGNORED, ClassScheme
from labelloop.base.documents import validated
from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import write_json
from labelloop.base.wording import count
from labelloop.cases.survey import read_truth
from labelloop.cases.table import Case
from labelloop.images.scan import check_same_grid
from labelloop.images.volume import Volume, canonical
from labelloop.inference.prepare import nonzero_box
from labelloop.inference.reading import Image
from labelloop.networks.plans import Plan
from labelloop.training.setup import nnunet_folders_elsewhere

log = logging.getLogger(__name__)
PlannedNetwork = Literal["plain", "resenc_m", "resenc_l", "resenc_xl"]
Configuration = Literal["3d_fullres", "3d_lowres"]
FOREGROUND_VOXELS = 10**8
"""Voxels of annotated structures, of all cases together, whose intensities are looked at (nnU-Net)."""
DATASET = "Dataset001_Cases"
PERCENTILES = {"percentile_00_5": 0.5, "median": 50.0, "percentile_99_5": 99.5}
DIGITS = 6


@dataclass(frozen=True)
class CaseShape:
    """What a planner asks of one case.

    Args:
        spacing_mm: voxel size (z, y, x).
        shape: voxels (z, y, x) of the box around all voxels that are not zero in any channel.
        share: that box, as a share of the image.
        intensities: a sample [channel, number] of those inside the annotated structures, drawn with replacement.
    """

    modality: str
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    share: float
    intensities: np.ndarray


def case_shape(image: Volume, labels: Volume, modality: str, samples: int) -> CaseShape:
    """Return what nnU-Net's ``DatasetFingerprintExtractor.analyze_case`` says of an image and its label map.

    Args:
        image, labels: axes as stored, on one grid; whatever is not 0 in ``labels`` is an annotated structure.
        samples: intensities to draw.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    oriented, truth = canonical(image), canonical(labels).array
    box = tuple(slice(*part) for part in nonzero_box(*oriented.channels))
    cropped = np.stack([channel[box].astype(np.float32) for channel in oriented.channels])
    drawn, _ = DatasetFingerprintExtractor.collect_foreground_intensities(
        truth[box][None], cropped, num_samples=samples
    )
    _, z, y, x = cropped.shape
    share = cropped[0].size / oriented.array.size
    return CaseShape(modality, oriented.geometry.spacing_zyx, (z, y, x), share, np.asarray(drawn, np.float32))


def shapes_of(cases: Sequence[Case], scheme: ClassScheme, classes: Sequence[str], most: int) -> list[CaseShape]:
    """Read labeled cases; return what a planner asks of those whose label shows one of ``classes``.

    Of more than ``most`` cases, so many are read, evenly over the table. A case that cannot be read is told in the log
    and left out.

    Raises:
        UserError: when no case is left.
    """
    chosen = cases[:: -(-len(cases) // most)] if cases else []
    samples = FOREGROUND_VOXELS // max(1, len(chosen))
    found = list(_read(chosen, scheme, classes, samples))
    if not found:
        raise UserError(
            f"none of {len(cases)} labeled train cases can be read and shows one of {', '.join(classes)}; a plan is "
            "made from such cases"
        )
    return found


def _read(cases: Sequence[Case], scheme: ClassScheme, classes: Sequence[str], samples: int) -> Iterator[CaseShape]:
    wanted = np.zeros(IGNORED + 1, np.uint8)
    wanted[[scheme.ids[name] for name in classes]] = 1
    for number, case in enumerate(cases, start=1):
        try:
            truth = read_truth(case, scheme)
            image = Image(case.images[0], more=case.images[1:]).volume(case.modality)
            if truth is None:
                continue
            check_same_grid(truth.geometry, image.geometry, case.label)
        except CaseError as error:
            log.warning("%s left out: %s", case.case, error)
            continue
        foreground = Volume(wanted[truth.array], truth.geometry)
        if not foreground.array.any():
            log.info("%s left out: none of the classes is in its label", case.case)
            continue
        log.info("case %d of %d: %s", number, len(cases), case.case)
        yield case_shape(image, foreground, case.modality, samples)


def plan_for(
    shapes: Sequence[CaseShape],
    classes: int,
    labeled: int,
    network: PlannedNetwork = "plain",
    gpu_memory_gb: float | None = None,
    configuration: Configuration = "3d_fullres",
    channels: Sequence[str] = (),
) -> Plan:
    """Return the plan that nnU-Net's planner makes.

    Args:
        classes: of the model, background left out.
        labeled: cases that it will learn from: nnU-Net shows at most 5 % of their voxels in one batch.
        network: planner: nnU-Net's default, or its residual encoders M, L and XL.
        gpu_memory_gb: of the card; None: what the planner is made for.
        channels: names of the channels of the images, where they have several.

    Raises:
        UserError: when the images have no plan of that configuration, or of such channels.
    """
    with nnunet_folders_elsewhere() as folder, _silent():
        raw, prepared = folder / "nnUNet_raw" / DATASET, folder / "nnUNet_preprocessed" / DATASET
        write_json(raw / "dataset.json", _dataset(classes, labeled, channels or [shapes[0].modality]))
        write_json(prepared / "dataset_fingerprint.json", _fingerprint(shapes))
        memory = {} if gpu_memory_gb is None else {"gpu_memory_target_in_gb": gpu_memory_gb}
        planned = _planner(network)(DATASET, suppress_transpose=True, **memory).plan_experiment()
    found = planned["configurations"].get(configuration)
    if found is None:
        known = ", ".join(planned["configurations"])
        raise UserError(f"nnU-Net plans no {configuration} for these images, but {known}")
    return _plan(found, channels, list(_of_ct(shapes, channels)))


def _of_ct(shapes: Sequence[CaseShape], channels: Sequence[str]) -> Iterator[dict[str, float]]:
    """Yield the intensities of each channel that is CT; of images of one channel, those of the cases that are."""
    for number, name in enumerate(channels):
        if modality_of(name) == "CT":
            found = intensity_properties(shapes, number)
            if not found["std"]:
                raise UserError(
                    f"channel {number + 1} ({name}): every value inside the annotated structures of "
                    f"{count(len(shapes), 'case')} is {found['mean']:g}, which no plan can normalize. Export the "
                    "channel again, or leave it out"
                )
            yield found
    ct = [shape for shape in shapes if shape.modality == "CT"]
    if ct and not channels:
        yield intensity_properties(ct)


def usual_memory_gb(network: PlannedNetwork) -> float:
    """Return the memory of the card that a planner plans for where none is named."""
    return inspect.signature(_planner(network)).parameters["gpu_memory_target_in_gb"].default


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep back what nnU-Net prints, and its warning that a card is not the usual one."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _planner(network: PlannedNetwork) -> Any:
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as plain
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners as resenc

    return {
        "plain": plain.ExperimentPlanner,
        "resenc_m": resenc.nnUNetPlannerResEncM,
        "resenc_l": resenc.nnUNetPlannerResEncL,
        "resenc_xl": resenc.nnUNetPlannerResEncXL,
    }[network]


def _dataset(classes: int, labeled: int, channels: Sequence[str]) -> dict[str, Any]:
    """Return a ``dataset.json``; nnU-Net asks of its files only how they would be read."""
    images = [f"image_{number:04d}.nii.gz" for number, _ in enumerate(channels)]
    named = {"image": {"images": images, "label": "label.nii.gz"}}
    return {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0} | {f"class_{number}": number for number in range(1, classes + 1)},
        "numTraining": labeled,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": named,
    }


def _fingerprint(shapes: Sequence[CaseShape]) -> dict[str, Any]:
    """Return a ``dataset_fingerprint.json``."""
    return {
        "spacings": [list(map(float, shape.spacing_mm)) for shape in shapes],
        "shapes_after_crop": [list(map(int, shape.shape)) for shape in shapes],
        "median_relative_size_after_cropping": float(np.median([shape.share for shape in shapes])),
        "foreground_intensity_properties_per_channel": {
            str(number): intensity_properties(shapes, number) for number, _ in enumerate(shapes[0].intensities)
        },
    }


def intensity_properties(shapes: Sequence[CaseShape], channel: int = 0) -> dict[str, float]:
    """Return what nnU-Net's fingerprint says of the intensities inside the annotated structures of all cases."""
    values = np.concatenate([shape.intensities[channel] for shape in shapes])
    percentiles = np.percentile(values, list(PERCENTILES.values()))
    described = {name: float(value) for name, value in zip(PERCENTILES, percentiles, strict=True)}
    return described | {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def _plan(configuration: dict[str, Any], channels: Sequence[str], ct: Sequence[Mapping[str, float]]) -> Plan:
    architecture = configuration["architecture"]
    network = architecture["arch_kwargs"]
    blocks = network.get("n_blocks_per_stage")
    content: dict[str, Any] = {
        "spacing_mm": [_rounded(side) for side in configuration["spacing"]],
        "patch": [int(side) for side in configuration["patch_size"]],
        "batch_size": int(configuration["batch_size"]),
        "features": network["features_per_stage"],
        "strides": network["strides"],
        "kernels": network["kernel_sizes"],
        "residual": blocks is not None,
        "convs_per_stage": network["n_conv_per_stage"] if blocks is None else blocks,
        "convs_per_stage_decoder": network["n_conv_per_stage_decoder"],
        "batch_dice": bool(configuration["batch_dice"]),
    }
    if channels:
        content["channels"] = list(channels)
    if ct:
        normalizations = [_ct_normalization(found) for found in ct]
        content["ct"] = normalizations if len(normalizations) > 1 else normalizations[0]
    return validated(Plan, content, "nnU-Net's plan for these images cannot be used here")


def _ct_normalization(properties: Mapping[str, float]) -> dict[str, Any]:
    found = {name: _rounded(value) for name, value in properties.items()}
    clip = [found["percentile_00_5"], found["percentile_99_5"]]
    return {"clip_hu": clip, "mean": found["mean"], "std": found["std"]}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
