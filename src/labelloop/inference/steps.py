"""The steps of an inference chain as a recipe writes them. Imports nothing heavy: the Snakefile validates recipes."""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from labelloop.classes import ClassScheme, Names, Strict
from labelloop.documents import read_json, validated
from labelloop.errors import UserError
from labelloop.files import write_text
from labelloop.inference.settings import Settings
from labelloop.labels.settings import CleanStep
from labelloop.paths import Paths

OPTIONS: dict[str, tuple[str, ...]] = {
    "locate": ("classes", "axes", "margin_mm", "gap_mm", "from_mm"),
    "segment": ("merge", "step", "mirror", "result"),
    "compose": (),
    "keep_largest": ("near", "within_z_mm"),
    "clean": (),
}
"""The verbs of a chain, and the keys that each may carry."""


class InferenceStep(Strict):
    """One step of the inference chain; exactly one of `locate`, `segment`, `compose`, `keep_largest` and `clean`."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    locate: str | None = Field(None, description="model that finds the part of the image that later steps segment")
    classes: Names = Field((), description="locate: classes that count; none named: all that the model knows")
    axes: Literal["z", "all"] = Field("all", description="locate: axes that are cut; a slice classifier cuts z alone")
    margin_mm: float = Field(0.0, ge=0, description="locate: kept on either side of what was found")
    gap_mm: float | None = Field(
        None, ge=0, description="locate: finds farther apart along z are not one part, the longest stays; none: any gap"
    )
    from_mm: float = Field(0.0, ge=0, description="locate: images that are shorter along z are segmented whole")
    segment: Names | None = Field(None, description="models that segment; several are averaged")
    merge: dict[str, Literal["union"]] = Field({}, description="classes for which any model's voxel counts")
    step: float | None = Field(None, gt=0, le=1, description="segment: distance of windows; none: as the engine says")
    mirror: bool | None = Field(None, description="segment: average over mirrored images; none: as the engine says")
    compose: dict[str, str] | None = Field(None, description="classes or class sets taken from each result")
    keep_largest: Names | None = Field(None, description="classes of which one component stays")
    near: str | None = Field(None, description="keep_largest: class that everything has to be near (`within_z_mm`)")
    within_z_mm: float | None = Field(
        None, gt=0, description="keep_largest: components whose centroid is farther along z from `near` are removed"
    )
    clean: tuple[CleanStep, ...] | None = Field(None, description="cleaning steps, as of a label set")
    result: str | None = Field(None, alias="as", description="name under which `compose` finds what was segmented")

    @model_validator(mode="after")
    def _consistent(self) -> "InferenceStep":
        verbs = [verb for verb in OPTIONS if getattr(self, verb)]
        if len(verbs) != 1:
            raise ValueError(f"a step needs exactly one of {', '.join(OPTIONS)}; found {' and '.join(verbs) or 'none'}")
        others = [key for verb, keys in OPTIONS.items() if verb != verbs[0] for key in keys]
        wrong = [key for key in others if getattr(self, key) != type(self).model_fields[key].default]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot go with {verbs[0]}")
        if (self.near is None) != (self.within_z_mm is None):
            raise ValueError("near and within_z_mm go together")
        return self

    @property
    def verb(self) -> str:
        """The verb of this step."""
        return next(verb for verb in OPTIONS if getattr(self, verb))

    @property
    def models(self) -> tuple[str, ...]:
        """The models that this step runs or asks."""
        return self.segment or ((self.locate,) if self.locate else ())


class FinishedInference(Strict):
    """What a finished run segments with, apart from its models: the file ``inference.json`` of its results."""

    classes: ClassScheme
    engine: Settings
    steps: tuple[InferenceStep, ...]

    @classmethod
    def read(cls, results: Path) -> "FinishedInference":
        """Read it from a results folder. Raises UserError when it is missing or cannot be understood."""
        path = Path(Paths(str(results)).inference)
        if not path.is_file():
            hint = "give the results folder of a finished run; Snakemake writes the file when it finishes one"
            raise UserError(f"{path}: no such file; {hint}")
        return validated(cls, read_json(path), path)

    def write(self, path: Path) -> None:
        """Write it; keys stay in order, because that of ``compose`` decides."""
        write_text(path, self.model_dump_json(indent=2, by_alias=True) + "\n")

    def folders(self, results: Path) -> dict[str, Path]:
        """Return the folder of each model that the steps name."""
        paths = Paths(str(results))
        return {name: Path(paths.model_folder(name)) for step in self.steps for name in step.models}
