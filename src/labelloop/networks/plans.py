"""Plans: spacing, patch, network and normalization of a model, pinned in the recipe and never guessed from the data.

A plan is the part of an nnU-Net configuration that decides a result. Spacing, patch and strides are in array order
(z, y, x) of the canonical orientation (see :mod:`labelloop.images.volume`).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from labelloop.base.channels import NORMALIZED_OTHERWISE, ChannelNames, modality_of
from labelloop.base.classes import Idle, Strict
from labelloop.base.sequences import flat
from labelloop.base.unions import by_form, tag
from labelloop.networks.settings import GreySettings

Triple = tuple[int, int, int]
Finite = Annotated[float, Field(allow_inf_nan=False)]
ANISOTROPY = 2.0
"""An axis is pooled and convolved while its voxel is less than this many times the finest one (nnU-Net)."""
LARGEST_VOXEL_MM = 100.0
"""Larger voxels show no organ."""
LARGEST_PATCH = 1 << 27
"""Voxels of a patch: 512 x 512 x 512. A network of 32 features would hold 16 GiB of them in its first stage."""
SMALLEST_FEATURE_MAP = 4
SMALLEST_ALONE = 3 * SMALLEST_FEATURE_MAP
"""Side of a feature map from which an axis is pooled while no other is (nnU-Net)."""
ADAPTATION = ("grey", "upright", "translate")
"""Keys of a plan that adapts CT to MR."""
OPTIONAL = (*ADAPTATION, "residual", "channels")
"""Keys that are no part of the fingerprint of a plan that does not ask for them."""
PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
Count = Annotated[int, Field(ge=1, le=64)]


class CtNormalization(Strict):
    """Clip to ``clip_hu`` (HU), subtract ``mean``, divide by ``std``: nnU-Net's CTNormalization with pinned values."""

    clip_hu: tuple[Finite, Finite] = Field((-200.0, 300.0), description="HU outside of these become the nearer one")
    mean: Finite = Field(60.0, description="HU that become 0")
    std: Finite = Field(100.0, gt=0, description="HU that become 1 unit")

    @model_validator(mode="after")
    def _low_is_below_high(self) -> "CtNormalization":
        if self.clip_hu[0] >= self.clip_hu[1]:
            raise ValueError(f"clip_hu: {self.clip_hu[0]:g} is not below {self.clip_hu[1]:g}")
        if not self.clip_hu[0] <= self.mean <= self.clip_hu[1]:
            raise ValueError(f"mean: {self.mean:g} lies outside of clip_hu, {self.clip_hu[0]:g} to {self.clip_hu[1]:g}")
        return self


def _form_of_ct(content: Any) -> str:
    return "each" if isinstance(content, (list, tuple)) else "one"


class Plan(Strict):
    """What a network is and what it sees. Two models with the same ``images`` fields share their prepared images."""

    smallest_side: ClassVar[int] = 8
    idle = (Idle(("ct",), lambda p: p.grey is not None, "with `grey`, the scale of CT and MR"),)

    spacing_mm: tuple[Finite, Finite, Finite] = Field(description="voxels of the network (z, y, x)")
    patch: Triple = Field(description="voxels that the network sees at a time (z, y, x)")
    batch_size: int = Field(2, ge=1, le=1024, description="patches in an update")
    features: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (32, 64, 128, 256, 320, 320), min_length=2, max_length=10, description="channels of each stage of the U-Net"
    )
    strides: tuple[Triple, ...] | None = Field(None, description="of each stage (z, y, x); none: by nnU-Net's rule")
    kernels: tuple[Triple, ...] | None = Field(None, description="of each stage (z, y, x); none: by nnU-Net's rule")
    residual: bool = Field(False, description="the encoder is made of residual blocks (nnU-Net's ResEnc), not plain")
    convs_per_stage: Count | tuple[Count, ...] = Field(
        2,
        description="convolutions of each stage of the encoder, or residual blocks: one number, or one for each stage",
    )
    convs_per_stage_decoder: Count | tuple[Count, ...] = Field(
        2, description="convolutions of each stage of the decoder: one number, or one for each stage but the last"
    )
    channels: ChannelNames = Field(
        (),
        description="what the channels of an image are, in order, as the data set file says, where they are several: "
        "`CT` is normalized as CT, and any other channel as MR. None: images of one channel, normalized by the "
        "modality of each case",
    )
    ct: Annotated[
        Annotated[CtNormalization, tag("one")] | Annotated[tuple[CtNormalization, ...], tag("each")],
        by_form(_form_of_ct, "expected a normalization, or a list with one for each channel that is CT"),
    ] = Field(
        CtNormalization(),
        description="how CT is normalized; of several `channels` that are CT, one for all, or a list with one for each",
    )
    mr: Literal["zscore"] = Field("zscore", description="how MR is normalized: each volume to mean 0 and deviation 1")
    batch_dice: bool = Field(False, description="Dice loss of a whole batch, not the mean of its patches")
    grey: GreySettings | None = Field(
        None, description="CT and MR on one grey scale, which the network sees from -1 to 1; `ct` and `mr` do not count"
    )
    upright: bool = Field(False, description="volumes that are stored upside down are turned upright")
    translate: str | None = Field(
        None, description="translator that makes CT look like MR; its plan has the same voxels and grey scale"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Plan":
        if not all(0 < side <= LARGEST_VOXEL_MM for side in self.spacing_mm):
            raise ValueError(f"spacing_mm must be above 0 and at most {LARGEST_VOXEL_MM:g} on every axis")
        if any(side < self.smallest_side for side in self.patch):
            raise ValueError(f"every side of the patch must be at least {self.smallest_side} voxels")
        if math.prod(self.patch) > LARGEST_PATCH:
            raise ValueError(f"patch {self.patch}: {math.prod(self.patch)} voxels, expected at most {LARGEST_PATCH}")
        for name, given in (("strides", self.strides), ("kernels", self.kernels)):
            if given is not None and len(given) != len(self.features):
                raise ValueError(f"{name} has {len(given)} entries for {len(self.features)} stages (features)")
        for name, stages in (("convs_per_stage", len(self.features)), ("convs_per_stage_decoder", self.decoder_stages)):
            counts = getattr(self, name)
            if not isinstance(counts, int) and len(counts) != stages:
                raise ValueError(f"{name} has {len(counts)} entries, expected {stages}, or one number for all stages")
        self._check_stages()
        total = [1, 1, 1]
        for stride in self.stage_strides:
            total = [t * s for t, s in zip(total, stride, strict=True)]
        for axis, side, factor in zip("zyx", self.patch, total, strict=True):
            if side % factor:
                below = side // factor * factor
                fits = " or ".join(str(n) for n in (below, below + factor) if n)
                found = f"patch {self.patch}: side {axis}, {side}, is not divisible by {factor}"
                raise ValueError(f"{found}, the product of the strides of {len(self.features)} stages; take {fits}")
        if list(self.patch) == total:
            raise ValueError(
                f"patch {self.patch}: one voxel is left in the last of {len(self.features)} stages, and none can be "
                "normalized by itself; take a larger patch or fewer features"
            )
        if self.translate and self.grey is None:
            raise ValueError("translate needs `grey`: {} for the published scale")
        asked = [key for key in ADAPTATION if getattr(self, key)]
        if self.channels and asked:
            raise ValueError(f"{', '.join(asked)}: done to images of one channel; leave `channels` or this out")
        self._check_channel_names()
        tomographies = self.modalities("").count("CT")
        if not isinstance(self.ct, CtNormalization) and len(self.ct) != max(1, tomographies):
            raise ValueError(
                f"ct: {len(self.ct)} normalizations, expected one, or one for each of {tomographies} channels CT"
            )
        return self

    def _check_channel_names(self) -> None:
        """Refuse names by which nnU-Net asks for another normalization than this plan has."""
        others = [name for name in self.channels if name.casefold() in NORMALIZED_OTHERWISE]
        if others:
            raise ValueError(
                f"channels: {others[0]} asks nnU-Net for another normalization, and this plan normalizes all but CT by "
                "mean and deviation; call the channel by what it shows, here and in the data set file, if that will do"
            )

    def _check_stages(self) -> None:
        strides, kernels = self.strides or (), self.kernels or ()
        if any(step < 1 for step in flat(strides)):
            raise ValueError("strides: every step must be 1 or more")
        if strides and strides[0] != (1, 1, 1):
            raise ValueError(f"strides: the first stage has {strides[0]}, expected (1, 1, 1): labels lie on its voxels")
        if any(side < 1 or side % 2 == 0 for side in flat(kernels)):
            raise ValueError("kernels: every side must be odd; even ones shift what they see by half a voxel")

    @model_serializer(mode="wrap")
    def _what_is_asked(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value or key not in OPTIONAL}

    @property
    def images(self) -> dict[str, Any]:
        """The fields that decide how an image is prepared."""
        return self.model_dump(mode="json", include={"spacing_mm", "channels", "ct", "mr", *ADAPTATION})

    @property
    def inputs(self) -> int:
        """Channels of an image, and of the network's input."""
        return len(self.channels) or 1

    def modalities(self, modality: str) -> tuple[str, ...]:
        """Return the modality (CT, MR) by which each channel is normalized; of one channel, that of the case."""
        return tuple(map(modality_of, self.channels)) or (modality,)

    def ct_of(self, channel: int = 0) -> CtNormalization:
        """Return how a channel, counted from 0, is normalized that is CT."""
        if isinstance(self.ct, CtNormalization):
            return self.ct
        return self.ct[self.modalities("")[:channel].count("CT")]

    @property
    def stage_strides(self) -> tuple[Triple, ...]:
        """Strides of each stage: as pinned, or nnU-Net's rule (see :func:`_topology`)."""
        return self.strides or tuple(s for s, _ in _topology(self))

    @property
    def stage_kernels(self) -> tuple[Triple, ...]:
        """Convolution kernels of each stage: as pinned, or nnU-Net's rule (see :func:`_topology`)."""
        return self.kernels or tuple(k for _, k in _topology(self))

    def axis(self, canonical: int) -> int:
        """Return the place of an axis, given by its place in z, y, x, among those of the network."""
        return canonical

    @property
    def decoder_stages(self) -> int:
        """Stages of the decoder: one for each of the encoder but the last."""
        return len(self.features) - 1

    @property
    def encoder_counts(self) -> tuple[int, ...]:
        """Convolutions, or residual blocks, of each stage of the encoder."""
        return _for_each(self.convs_per_stage, len(self.features))

    @property
    def decoder_counts(self) -> tuple[int, ...]:
        """Convolutions of each stage of the decoder."""
        return _for_each(self.convs_per_stage_decoder, self.decoder_stages)

    def architecture(self) -> dict[str, Any]:
        """Return the ``architecture`` entry of an nnU-Net configuration for this plan."""
        return {
            "network_class_name": RESIDUAL if self.residual else PLAIN,
            "arch_kwargs": {
                "n_stages": len(self.features),
                "features_per_stage": list(self.features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [list(k) for k in self.stage_kernels],
                "strides": [list(s) for s in self.stage_strides],
                "n_blocks_per_stage" if self.residual else "n_conv_per_stage": list(self.encoder_counts),
                "n_conv_per_stage_decoder": list(self.decoder_counts),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }


def _for_each(counts: int | tuple[int, ...], stages: int) -> tuple[int, ...]:
    return (counts,) * stages if isinstance(counts, int) else counts


def _topology(plan: Plan) -> list[tuple[Triple, Triple]]:
    """Return (stride, kernel) of each stage by nnU-Net's rules (Isensee et al. 2021, supplementary note 2.4).

    They are those of ``get_pool_and_conv_props`` of nnunetv2. A kernel is 3 along an axis from the stage on whose
    voxels are fine enough there, counted after the pooling that opens the stage, and along all axes in the last stage.
    How many stages there are is the plan's affair: stages beyond nnU-Net's pool nothing.
    """
    spacing, size = list(plan.spacing_mm), list(plan.patch)
    stride, kernel = [1, 1, 1], [1, 1, 1]
    stages: list[tuple[Triple, Triple]] = []
    for stage, _ in enumerate(plan.features, start=1):
        pooled = _pooled(spacing, size)
        kernel = [3 if s / min(spacing) < ANISOTROPY else k for s, k in zip(spacing, kernel, strict=True)]
        last = stage == len(plan.features) or not pooled
        stages.append((_triple(stride), (3, 3, 3) if last else _triple(kernel)))
        stride = [2 if axis in pooled else 1 for axis in range(3)]
        spacing = [s * f for s, f in zip(spacing, stride, strict=True)]
        size = [-(-n // f) for n, f in zip(size, stride, strict=True)]
    return stages


def _pooled(spacing: Sequence[float], size: Sequence[int]) -> list[int]:
    """Return the axes that nnU-Net pools next: large enough, and fine beside the finest of these."""
    large = [axis for axis in range(3) if size[axis] >= 2 * SMALLEST_FEATURE_MAP]
    finest = min((spacing[axis] for axis in large), default=0.0)
    fine = [axis for axis in large if spacing[axis] / finest < ANISOTROPY]
    return [] if len(fine) == 1 and size[fine[0]] < SMALLEST_ALONE else fine


def _triple(values: Iterable[int]) -> Triple:
    z, y, x = values
    return z, y, x
