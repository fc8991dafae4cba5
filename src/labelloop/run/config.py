"""What to run: the configuration, ``config/config.yaml`` and what a command line puts in its place."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from labelloop.base.classes import Strict
from labelloop.base.errors import UserError
from labelloop.inference.settings import Device
from labelloop.recipe import form_errors
from labelloop.training.settings import Determinism


class RunConfig(Strict):
    """What to run: ``config/config.yaml``, overridden by a file named on the command line and by single keys."""

    cases: str = Field(description="case table (CSV)")
    recipe: str = Field("default", description="name of a recipe (`labelloop recipe list`), or a file")
    results: str = Field("results/run", description="folder for everything produced")
    rounds: int | None = Field(None, ge=1, description="overrides the recipe's number of rounds")
    device: Device = Field("auto", description="auto: a GPU where there is one")
    shard_size: int = Field(
        64, ge=1, description="cases handled by one job, at most; more, where there would be above 512 jobs of a step"
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        "auto", description="processes that load training batches; auto: one less than the threads of the training"
    )
    gpus_per_training: int = Field(
        1, ge=1, description="cards of one node that share the batches of a training; the model is the same"
    )
    stage: str | None = Field(
        None, description="folder on each node's own disk, e.g. $TMPDIR, to which a training copies its arrays first"
    )
    deterministic: Determinism = Field(
        "auto",
        description="equal runs give equal bytes; auto: on a CPU; true: on a GPU, too, where it costs speed",
    )
    meter: bool = Field(False, description="measure the GPU's memory over time and the energy of each final label map")
    review: int = Field(30, ge=0, description="labels in the review queue of a label set, each with a picture")
    reviews: str | None = Field(
        None,
        description="folder of what people decide about labels, outside the results; none: RESULTS-reviews",
    )
    infer_roles: tuple[Literal["train", "test"], ...] = Field(
        ("test",), description="roles whose cases get final label maps; all cases when there is no test case"
    )

    @field_validator("results")
    @classmethod
    def _can_be_a_folder(cls, results: str) -> str:
        """Say no to what Snakemake would take for wildcards, and to a file."""
        if not results.strip("/") or set(results) & set("{}\n"):
            raise ValueError("the folder's name must not be empty or hold braces: Snakemake takes them for wildcards")
        path = Path(results)
        if os.path.lexists(path) and not path.is_dir():
            raise ValueError("there is a file, or a dead link, of this name; choose a folder")
        return results


def load_config(content: dict[str, Any]) -> RunConfig:
    """Validate Snakemake's config dictionary. Raises UserError with all errors, one a line."""
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"config: {line}" for line in form_errors(error, RunConfig))) from None
