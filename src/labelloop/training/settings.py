"""What a recipe may set for a training. Imports nothing heavy: the Snakefile validates recipes with it."""

from typing import Literal

from pydantic import Field, model_validator

from labelloop.classes import Strict

Axis = Literal["z", "y", "x"]
AXES: tuple[Axis, ...] = ("z", "y", "x")
"""Axes of a canonical array: inferior-superior, posterior-anterior, left-right."""

BELONGS_TO: dict[str, tuple[str, ...]] = {"merge": ("partial",), "unknown": ("supervised",)}
"""Settings that only some trainers read. A setting not named here belongs to all."""


class TrainerSettings(Strict):
    """How a model is trained. The defaults are nnU-Net's (Isensee et al. 2021), except where a comment says so.

    ``kind``: ``supervised`` learns from cases in which every class of the model is annotated; ``partial`` also from
    cases in which some classes are unknown, by merging those into the background (see ``losses``).
    ``unknown`` (supervised): ``exclude`` cases with an unknown class, or take unknown classes for ``background``.
    ``merge`` (partial): ``logsumexp``, the exact probability of the merged classes, or their ``max``.
    ``foreground_fraction``: share of a batch's patches centered on an annotated class.
    ``schedule``: exponent of the polynomial decay of the learning rate.
    ``precision``: ``auto`` is fp16 with gradient scaling on a GPU and fp32 on a CPU.
    ``export``: the weights of the ``final`` epoch, or of the ``best`` by moving average of the validation Dice.
    """

    kind: Literal["supervised", "partial"] = "supervised"
    epochs: int = Field(1000, ge=1)
    iterations_per_epoch: int = Field(250, ge=1)
    validation_iterations: int = Field(50, ge=0)
    learning_rate: float = Field(1e-2, gt=0)
    weight_decay: float = Field(3e-5, ge=0)
    momentum: float = Field(0.99, ge=0, lt=1)
    schedule: float = Field(0.9, ge=0)
    foreground_fraction: float = Field(0.33, ge=0, le=1)
    mirror_axes: tuple[Axis, ...] = ()  # nnU-Net mirrors all three; that makes left and right organs look alike
    augmentation: Literal["nnunet", "none"] = "nnunet"
    deep_supervision: bool = True
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    unknown: Literal["exclude", "background"] = "exclude"
    merge: Literal["logsumexp", "max"] = "logsumexp"
    export: Literal["final", "best"] = "final"
    save_every: int = Field(10, ge=1)  # nnU-Net: 50; a kill then loses fewer epochs
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> "TrainerSettings":
        for name, trainers in BELONGS_TO.items():
            if self.kind not in trainers and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is read by trainer {' and '.join(trainers)} only, not by {self.kind}")
        if len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise ValueError("mirror_axes names an axis twice")
        if self.export == "best" and not self.validation_iterations:
            raise ValueError("export: best needs validation_iterations above 0")
        return self
