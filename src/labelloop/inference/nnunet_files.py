"""What the files of a model of nnU-Net's say, checked and put in our words; what only nnU-Net can do is refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from labelloop.base.classes import IGNORE, Strict
from labelloop.base.documents import validated
from labelloop.base.errors import UserError
from labelloop.base.wording import named
from labelloop.inference.settings import MirrorAxes
from labelloop.networks.nnunet_plan import NnunetPlan
from labelloop.networks.plans import PLAIN, RESIDUAL, Triple

INSTEAD = "Run it with nnUNetv2_predict instead"
ORIENTATIONS = {
    "SimpleITKIO": "stored",
    "NibabelIO": "stored",
    "NibabelIOWithReorient": "canonical",
    "SimpleITKIOWithReorient": "canonical",
}
"""How nnU-Net's readers of images turn the axes."""
NORMALIZATIONS = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "range",
}
NETWORKS = {
    PLAIN: False,
    RESIDUAL: True,
    "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet": True,
}
"""Networks that are built here, and whether their encoder is residual."""
NAMES_OF_PARTS = {
    "conv_op": ("torch.nn.modules.conv.Conv3d", "torch.nn.Conv3d"),
    "norm_op": ("torch.nn.modules.instancenorm.InstanceNorm3d", "torch.nn.InstanceNorm3d"),
    "nonlin": ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"),
}
"""What a network may be made of. Names in a file choose among these; none is ever looked up."""
SPLINES, LINEAR = "resample_data_or_seg_to_shape", "resample_torch_fornnunet"


class Loose(BaseModel):
    """A part of a file of which other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class DatasetFile(Loose):
    """What is read of ``dataset.json``."""

    channel_names: dict[Annotated[str, Field(pattern=r"^\d{1,3}$")], str] = Field(
        min_length=1, validation_alias=AliasChoices("modality", "channel_names")
    )
    labels: dict[Annotated[str, Field(min_length=1)], int | list[int]]


class InitArgs(Loose):
    """What a trainer was made with."""

    configuration: str


class Checkpoint(Loose):
    """What is read of a checkpoint besides its weights."""

    trainer: str = Field(validation_alias="trainer_name")
    init_args: InitArgs
    mirror_axes: MirrorAxes | None = Field(None, validation_alias="inference_allowed_mirroring_axes")


class Network(Strict):
    """The arguments of a network; any other key is one that is not built here."""

    n_stages: int
    features_per_stage: tuple[int, ...]
    kernel_sizes: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    n_conv_per_stage: tuple[int, ...] | None = None
    n_blocks_per_stage: tuple[int, ...] | None = None
    n_conv_per_stage_decoder: tuple[int, ...]
    conv_bias: bool = False
    conv_op: str
    norm_op: str
    norm_op_kwargs: dict[str, float | bool] | None = None
    dropout_op: None = None
    dropout_op_kwargs: None = None
    nonlin: str
    nonlin_kwargs: dict[str, float | bool] | None = None


class OldNetwork(Loose):
    """A network as plans before nnU-Net 2.4 describe it."""

    kind: Literal["PlainConvUNet", "ResidualEncoderUNet"] = Field(validation_alias="UNet_class_name")
    features: int = Field(validation_alias="UNet_base_num_features")
    most_features: int = Field(validation_alias="unet_max_num_features")
    convs: tuple[int, ...] = Field(validation_alias="n_conv_per_stage_encoder")
    convs_decoder: tuple[int, ...] = Field(validation_alias="n_conv_per_stage_decoder")
    strides: tuple[Triple, ...] = Field(validation_alias="pool_op_kernel_sizes")
    kernels: tuple[Triple, ...] = Field(validation_alias="conv_kernel_sizes")


class Architecture(Loose):
    """The entry ``architecture`` of a configuration."""

    network_class_name: str
    arch_kwargs: dict[str, Any]


class Resampling(Strict):
    """The arguments of a function that resamples."""

    is_seg: Literal[False] = False
    order: int = 3
    order_z: Literal[0] = 0
    force_separate_z: bool | None = None
    memefficient_seg_resampling: bool = False
    num_threads: int = 1
    mode: Literal["linear"] = "linear"
    aniso_axis_mode: Literal["nearest-exact"] = "nearest-exact"


class Configuration(Loose):
    """What is read of a configuration, once it has inherited what it inherits."""

    preprocessor_name: str
    patch_size: tuple[int, ...]
    batch_size: int = 2
    batch_dice: bool = False
    spacing: tuple[float, ...]
    normalization_schemes: tuple[str, ...] = Field(min_length=1)
    use_mask_for_norm: tuple[bool, ...] = Field(min_length=1)
    resampling_fn_data: str
    resampling_fn_data_kwargs: Resampling
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: Resampling
    architecture: Architecture | None = None
    previous_stage: str | None = None


class Intensities(Loose):
    """Intensities inside of what was annotated, of one channel."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class PlansFile(Loose):
    """What is read of ``plans.json``."""

    image_reader_writer: str
    transpose_forward: Triple
    label_manager: str = "LabelManager"
    foreground_intensity_properties_per_channel: dict[str, Intensities] = {}
    configurations: dict[str, dict[str, Any]]


def model_name(path: str | Path) -> str:
    """Return the name of a model: that of its folder or zip.

    nnU-Net's folders are called alike in all data sets, so the data set's folder goes before theirs.
    """
    path = Path(path).resolve()
    if path.suffix == ".zip":
        return path.stem
    return f"{path.parent.name}__{path.name}" if "__" in path.name else path.name


def dataset_of(dataset: DatasetFile, path: Path) -> dict[str, int]:
    """Return the id of each class, in the order of the network's channels.

    Raises:
        UserError: for regions, and for ids that are not 0 (background), 1, 2, 3, ...
    """
    listed = {name: value if isinstance(value, list) else [value] for name, value in dataset.labels.items()}
    regions = [name for name, values in listed.items() if len(values) != 1]
    if regions:
        raise UserError(f"{path}: its labels are regions, which overlap: {named(regions)}. {INSTEAD}")
    ids = {name: values[0] for name, values in listed.items() if name != IGNORE}  # which is no channel of the network
    ids = dict(sorted(ids.items(), key=lambda item: item[1]))
    if list(ids.values()) != list(range(len(ids))) or next(iter(ids), "") != "background":
        expected = "background: 0, and 1, 2, 3, ... of channels of the network"
        raise UserError(f"{path}: dataset.json: labels {ids}; expected {expected}")
    del ids["background"]
    return ids


def channels_of(dataset: DatasetFile) -> tuple[str, ...]:
    """Return the names of the input channels, in the order of their numbers."""
    return tuple(dataset.channel_names[number] for number in sorted(dataset.channel_names, key=int))


def model_plan(
    content: Mapping[str, Any], name: str, folds: int, path: Path, channels: Sequence[str] = ("image",)
) -> NnunetPlan:
    """Return the plan of a configuration of ``plans.json``.

    Args:
        name: of the configuration.
        channels: names of the input channels.

    Raises:
        UserError: when it is not there, is damaged, or asks for what is not done here.
    """
    file = path / "plans.json"
    plans = validated(PlansFile, content, file)
    given = _inherited(plans, name, file)
    if isinstance(given.get("patch_size"), list) and len(given["patch_size"]) == 2:
        raise UserError(f"{path}: {name} segments slices (2d); give a model of 3d_fullres or 3d_lowres. {INSTEAD}")
    given["use_mask_for_norm"] = _as_list(given.get("use_mask_for_norm"))
    one = validated(Configuration, given, file)
    _refuse_unknown(plans, one, name, path)
    network, residual = _network(one, given, path)
    of_channels = (one.normalization_schemes, one.use_mask_for_norm)
    if any(len(values) != len(channels) for values in of_channels):
        found = f"normalization of {len(one.normalization_schemes)} channels (use_mask_for_norm: of "
        found += f"{len(one.use_mask_for_norm)})"
        raise UserError(f"{path}: {found}, and dataset.json names {len(channels)}: {named(channels)}. Copy both again")
    normalizations = [_normalization(plans, one, channel, file) for channel in range(len(channels))]
    by_splines = one.resampling_fn_data == SPLINES and one.resampling_fn_data_kwargs.order != 1
    described = {
        "spacing_mm": one.spacing,
        "patch": one.patch_size,
        "batch_size": one.batch_size,
        "batch_dice": one.batch_dice,
        "features": network.features_per_stage,
        "strides": network.strides,
        "kernels": network.kernel_sizes,
        "residual": residual,
        "convs_per_stage": network.n_blocks_per_stage if residual else network.n_conv_per_stage,
        "convs_per_stage_decoder": network.n_conv_per_stage_decoder,
        "conv_bias": network.conv_bias,
        "norm": network.norm_op_kwargs or {},
        "nonlinearity": network.nonlin_kwargs or {},
        "channels": channels if len(channels) > 1 else (),
        "normalization": normalizations if len(channels) > 1 else normalizations[0],
        "orientation": ORIENTATIONS[plans.image_reader_writer],
        "transpose": plans.transpose_forward,
        "spline": one.resampling_fn_data_kwargs.order if by_splines else None,
        "separate_z": _separate(one.resampling_fn_data, one.resampling_fn_data_kwargs),
        "separate_z_back": _separate(one.resampling_fn_probabilities, one.resampling_fn_probabilities_kwargs),
        "folds": folds,
    }
    return validated(NnunetPlan, described, file)


def _normalization(plans: PlansFile, one: Configuration, channel: int, file: Path) -> dict[str, Any]:
    kind = NORMALIZATIONS[one.normalization_schemes[channel]]
    if kind == "zscore" and one.use_mask_for_norm[channel]:
        return {"kind": "zscore_inside"}
    if kind != "ct":
        return {"kind": kind}
    known = plans.foreground_intensity_properties_per_channel.get(str(channel))
    if known is None:
        raise UserError(f"{file}: CTNormalization without foreground_intensity_properties_per_channel. Copy it again.")
    clip = (known.percentile_00_5, known.percentile_99_5)
    return {"kind": kind, "clip": clip, "mean": known.mean, "std": known.std}


def _separate(function: str, given: Resampling) -> bool | None:
    """Return whether the coarse axis is resampled apart; the two functions differ in what they do unasked."""
    if function == SPLINES and "force_separate_z" not in given.model_fields_set:
        return False
    return given.force_separate_z


def _as_list(value: Any) -> Any:
    return list(value.values()) if isinstance(value, dict) else value


def _inherited(plans: PlansFile, name: str, file: Path) -> dict[str, Any]:
    """Return a configuration with what it inherits; its own keys go before."""
    given: dict[str, Any] = {}
    seen: list[str] = []
    while name:
        if name in seen or name not in plans.configurations:
            known = ", ".join(plans.configurations)
            raise UserError(f"{file}: no configuration {name!r}, or one that inherits from itself; there are: {known}")
        seen.append(name)
        given = plans.configurations[name] | given
        name = str(plans.configurations[name].get("inherits_from", ""))
    return given


def _refuse_unknown(plans: PlansFile, one: Configuration, name: str, path: Path) -> None:
    """Raise UserError for what only nnU-Net can do with images, labels and scores."""
    if one.previous_stage is not None:
        raise UserError(f"{path}: {name} refines what {one.previous_stage} finds (a cascade). {INSTEAD}")
    scores = one.resampling_fn_probabilities_kwargs
    if one.resampling_fn_probabilities == SPLINES and scores.order != 1:
        raise UserError(f"{path}: resampling_fn_probabilities of order {scores.order}, expected 1. {INSTEAD}")
    known: dict[str, tuple[str, object]] = {
        "image_reader_writer": (plans.image_reader_writer, ORIENTATIONS),
        "label_manager": (plans.label_manager, ("LabelManager",)),
        "preprocessor_name": (one.preprocessor_name, ("DefaultPreprocessor",)),
        "resampling_fn_data": (one.resampling_fn_data, (SPLINES, LINEAR)),
        "resampling_fn_probabilities": (one.resampling_fn_probabilities, (SPLINES, LINEAR)),
    }
    for key, (found, these) in known.items():
        _refuse(key, found, these, path)
    for scheme in one.normalization_schemes:
        _refuse("normalization_schemes", scheme, NORMALIZATIONS, path)


def _refuse(key: str, found: str, known: Any, path: Path) -> None:
    if found not in known:
        raise UserError(f"{path}: {key} {found!r}, expected {' or '.join(known)}. {INSTEAD}")


def _network(one: Configuration, given: Mapping[str, Any], path: Path) -> tuple[Network, bool]:
    """Return the arguments of the network, and whether its encoder is residual."""
    file = path / "plans.json"
    if one.architecture is None:
        return _as_today(validated(OldNetwork, given, file), file)
    _refuse("network_class_name", one.architecture.network_class_name, NETWORKS, path)
    network = validated(Network, one.architecture.arch_kwargs, file)
    for key, names in NAMES_OF_PARTS.items():
        _refuse(key, getattr(network, key), names, path)
    return network, NETWORKS[one.architecture.network_class_name]


def _as_today(old: OldNetwork, file: Path) -> tuple[Network, bool]:
    residual = old.kind == "ResidualEncoderUNet"
    stages = len(old.convs)
    content = {
        "n_stages": stages,
        "features_per_stage": [min(old.features * 2**stage, old.most_features) for stage in range(stages)],
        "kernel_sizes": old.kernels,
        "strides": old.strides,
        "n_blocks_per_stage" if residual else "n_conv_per_stage": old.convs,
        "n_conv_per_stage_decoder": old.convs_decoder,
        "conv_bias": True,
        "conv_op": NAMES_OF_PARTS["conv_op"][0],
        "norm_op": NAMES_OF_PARTS["norm_op"][0],
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": NAMES_OF_PARTS["nonlin"][0],
        "nonlin_kwargs": {"inplace": True},
    }
    return validated(Network, content, file), residual
