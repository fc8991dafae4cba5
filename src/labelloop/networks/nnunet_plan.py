"""Plans of models that nnU-Net trained: networks and preparations of images that our own plans do not have."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from labelloop.base.classes import Idle, Strict
from labelloop.base.unions import Family, by_form, tag
from labelloop.networks.plans import ADAPTATION, Finite, Plan, Triple

SOURCE: Literal["nnunet"] = "nnunet"
NormArguments = dict[
    Literal["eps", "momentum", "affine", "track_running_stats"],
    Annotated[float, Field(ge=0, allow_inf_nan=False)] | bool,
]
NonlinearityArguments = dict[Literal["negative_slope", "inplace"], Finite | bool]


class Normalization(Strict):
    """How an image is normalized, whatever its modality."""

    kind: Literal["ct", "zscore", "zscore_inside", "range", "none"] = Field(
        description="`ct`: clip, subtract `mean`, divide by `std`. `zscore`: over the image; `zscore_inside`: over its "
        "body of voxels that are not zero, holes included, with 0 elsewhere. `range`: from 0 to 1. `none`: as stored"
    )
    clip: tuple[Finite, Finite] | None = Field(None, description="values outside of these become the nearer one")
    mean: Finite = Field(0.0, description="value that becomes 0")
    std: Finite = Field(1.0, ge=0, description="value that becomes 1 unit")

    def unfit_for(self, modality: str) -> str:
        """Say how images of a modality (CT, MR) are taken for those of the other one; empty where they are not."""
        if self.kind == "ct" and modality != "CT":
            return f"normalizes every image as CT, and there are images of {modality}"
        if self.kind in ("zscore", "zscore_inside") and modality == "CT":
            return (
                "normalizes every image by its own mean and deviation, as is usual for MR, and there are images of CT"
            )
        return ""

    @model_validator(mode="after")
    def _clipped(self) -> "Normalization":
        if self.kind == "ct" and (self.clip is None or self.clip[0] > self.clip[1]):
            raise ValueError("ct needs a range to clip to, from a lower to a higher value")
        return self


def _form_of_normalization(content: Any) -> str:
    return "each" if isinstance(content, (list, tuple)) else "one"


class NnunetPlan(Plan):
    """A plan of nnU-Net's: images are prepared as nnU-Net does; ``ct`` and ``mr`` do not count.

    ``spacing_mm`` and ``patch`` are in the order of ``transpose``, and so is the network grid.
    """

    smallest_side: ClassVar[int] = 1
    idle = (Idle((*ADAPTATION, "ct"), lambda _: True, "in a plan of nnU-Net's, whose images are prepared as it does"),)

    source: Literal["nnunet"] = Field(SOURCE, description="tells it from a plan of labelloop's")
    conv_bias: bool = Field(True, description="convolutions have a bias")
    norm: NormArguments = Field(description="arguments of the instance norms")
    nonlinearity: NonlinearityArguments = Field(description="arguments of the leaky ReLUs")
    normalization: Annotated[
        Annotated[Normalization, tag("one")] | Annotated[tuple[Normalization, ...], tag("each")],
        by_form(_form_of_normalization, "expected a normalization, or a list with one for each channel"),
    ] = Field(description="of intensities, whatever the modality; of several `channels`, a list with one for each")
    orientation: Literal["stored", "canonical"] = Field(
        "stored", description="of the axes, before `transpose`: as the file stores them, or as labelloop's own plans"
    )
    transpose: Triple = Field((0, 1, 2), description="order in which the network sees the axes z, y, x")
    spline: int | None = Field(
        None, ge=0, le=5, description="order of the splines by which images are resampled; none: linear"
    )
    separate_z: bool | None = Field(
        None,
        description="images are resampled by nearest neighbor along their coarse axis; none: where a grid is strongly "
        "anisotropic",
    )
    separate_z_back: bool | None = Field(None, description="the same of scores, on their way back")
    folds: int = Field(1, ge=1, le=100, description="networks of which the mean is taken; of a training, one")

    @model_validator(mode="after")
    def _fits(self) -> "NnunetPlan":
        if sorted(self.transpose) != [0, 1, 2]:
            raise ValueError(f"transpose: {self.transpose} is no order of three axes")
        if self.strides is None or self.kernels is None:
            raise ValueError("strides and kernels must be given")
        if len(self.normalizations) != self.inputs:
            raise ValueError(
                f"normalization: {len(self.normalizations)}, expected one for each of {self.inputs} channels"
            )
        return self

    def _check_channel_names(self) -> None:
        """Take all names: ``normalization`` says what is done."""

    @property
    def normalizations(self) -> tuple[Normalization, ...]:
        """Normalization of each channel."""
        return (self.normalization,) if isinstance(self.normalization, Normalization) else self.normalization

    def __hash__(self) -> int:  # its arguments are mappings, which have none
        return hash(self.model_dump_json())

    def axis(self, canonical: int) -> int:
        """Return the place of an axis, given by its place in z, y, x, among those of the network."""
        return self.transpose.index(canonical)

    @property
    def images(self) -> dict[str, Any]:
        """The fields that decide how an image is prepared."""
        more = {"source", "normalization", "orientation", "transpose", "spline", "separate_z", "separate_z_back"}
        return self.model_dump(mode="json", include={"spacing_mm", *more})

    def architecture(self) -> dict[str, Any]:
        """Return the ``architecture`` entry of an nnU-Net configuration for this plan."""
        described = super().architecture()
        described["arch_kwargs"] |= {
            "conv_bias": self.conv_bias,
            "norm_op_kwargs": dict(self.norm),
            "nonlin_kwargs": dict(self.nonlinearity),
        }
        return described


def _form_of(content: Any) -> str:
    source = content.get("source") if isinstance(content, Mapping) else getattr(content, "source", None)
    return "nnunet_plan" if source == SOURCE else "plan"


PLANS: Family = {"plan": Plan, "nnunet_plan": NnunetPlan}
AnyPlan = Annotated[
    Annotated[Plan, tag("plan")] | Annotated[NnunetPlan, tag("nnunet_plan")], by_form(_form_of, "expected a plan")
]
"""A plan as it stands in a recipe."""


def unfit_for(plan: Plan, modalities: Iterable[str]) -> list[str]:
    """Say how a plan of nnU-Net's takes images of one modality (CT, MR) for those of the other, a line each.

    Of several channels, a case's modality is that of the first.
    """
    found = (
        [plan.normalizations[0].unfit_for(m) for m in sorted(set(modalities))] if isinstance(plan, NnunetPlan) else []
    )
    return list(filter(None, found))


def parse_plan(content: Mapping[str, Any]) -> Plan:
    """Return the plan that a ``model.json`` holds, ours or nnU-Net's. Raises ValidationError when it is no plan."""
    return (NnunetPlan if content.get("source") == SOURCE else Plan).model_validate(content)
