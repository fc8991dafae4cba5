"""How a model is run. Apart from the engine, so that a command line can name settings without loading torch."""

from typing import Literal

from pydantic import Field

from labelloop.classes import Strict

Mode = Literal["exact", "fast"]


class Settings(Strict):
    """How a model is run.

    ``mode``: ``exact`` decides as nnU-Net's predictor with the same options does; ``fast`` searches each class only
    around the place where it wins on the network grid, and prefers bf16 on CPUs made for it.
    ``precision``: ``auto`` is fp16 on CUDA, else fp32 (in ``fast``: bf16 on CPUs with AMX or AVX512-bf16).
    """

    step: float = Field(0.5, gt=0, le=1)
    gaussian: bool = True
    mirror_axes: tuple[Literal[0, 1, 2], ...] = ()
    window_batch: int = Field(1, ge=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    mode: Mode = "exact"
