"""Plans of models that nnU-Net trained: networks and preparations of images that our own plans do not have."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from labelloop.base.classes import Strict
from labelloop.networks.plans import Finite, Plan, Triple

SOURCE: Literal["nnunet"] = "nnunet"
NormArguments = dict[
    Literal["eps", "momentum", "affine", "track_running_stats"],
    Annotated[float, Field(ge=0, allow_inf_nan=False)] | bool,
]
NonlinearityArguments = dict[Literal["negative_slope", "inplace"], Finite | bool]


class Normalization(Strict):
    """How an image is normalized, whatever its modality.

    ``ct``: clip, subtract ``mean``, divide by ``std``. ``zscore``: over the image; ``zscore_inside``: over its body of
    voxels that are not zero, holes included, with 0 elsewhere. ``range``: from 0 to 1. ``none``: as stored.
    """

    kind: Literal["ct", "zscore", "zscore_inside", "range", "none"]
    clip: tuple[Finite, Finite] | None = None
    mean: Finite = 0.0
    std: Finite = Field(1.0, ge=0)

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


class NnunetPlan(Plan):
    """A plan of nnU-Net's. ``ct`` and ``mr`` of :class:`Plan` do not count.

    ``spacing_mm`` and ``patch`` are in the order of ``transpose``, and so is the network grid.

    Args:
        orientation: of the axes, before ``transpose``: as stored, or canonical.
        transpose: order in which the network sees the axes z, y, x.
        spline: order of the splines by which images are resampled; None: linear.
        norm, nonlinearity: their arguments.
        separate_z, separate_z_back: whether images, and scores, are resampled by nearest neighbor along their coarse
            axis; None: where a grid is strongly anisotropic.
        folds: networks of which the mean is taken.
    """

    smallest_side: ClassVar[int] = 1

    source: Literal["nnunet"] = SOURCE
    conv_bias: bool = True
    norm: NormArguments
    nonlinearity: NonlinearityArguments
    normalization: Normalization
    orientation: Literal["stored", "canonical"] = "stored"
    transpose: Triple = (0, 1, 2)
    spline: int | None = Field(None, ge=0, le=5)
    separate_z: bool | None = None
    separate_z_back: bool | None = None
    folds: int = Field(1, ge=1, le=100)

    @model_validator(mode="after")
    def _fits(self) -> "NnunetPlan":
        if sorted(self.transpose) != [0, 1, 2]:
            raise ValueError(f"transpose: {self.transpose} is no order of three axes")
        if self.strides is None or self.kernels is None:
            raise ValueError("strides and kernels must be given")
        return self

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


def parse_plan(content: Mapping[str, Any]) -> Plan:
    """Return the plan that a ``model.json`` holds, ours or nnU-Net's. Raises ValidationError when it is no plan."""
    return (NnunetPlan if content.get("source") == SOURCE else Plan).model_validate(content)
