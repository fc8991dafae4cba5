"""The steps of an inference chain as a recipe writes them. Imports nothing heavy: the Snakefile validates recipes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from labelloop.base.classes import ClassScheme, Names, Strict
from labelloop.base.documents import read_json, validated
from labelloop.base.errors import UserError
from labelloop.base.files import write_text
from labelloop.base.paths import Paths
from labelloop.base.sequences import flat
from labelloop.base.unions import Verb, by_verb, tag
from labelloop.inference.settings import Settings
from labelloop.labels.settings import CleanSteps


class Step(Verb):
    """One step of the inference chain."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that this step runs or asks."""
        return ()

    @property
    def results(self) -> tuple[str, ...]:
        """The names under which the step files what it segments, of every image."""
        return ()


class Locate(Step):
    """Cut the image down for the steps after it, to what a model finds."""

    verb = "locate"
    locate: str = Field(description="model that finds the part of the image that later steps segment")
    classes: Names = Field((), description="classes that count; none named: all that the model knows")
    axes: Literal["z", "all"] = Field("all", description="axes that are cut; a slice classifier cuts z alone")
    margin_mm: float = Field(0.0, ge=0, description="kept on either side of what was found")
    gap_mm: float | None = Field(
        None, ge=0, description="finds farther apart along z are not one part, the longest stays; none: any gap"
    )
    min_height_mm: float = Field(0.0, ge=0, description="images that are shorter along z are segmented whole")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.locate,)

    @property
    def results(self) -> tuple[str, ...]:
        return () if self.min_height_mm else (self.locate,)


class Segment(Step):
    """Segment the image, or what was located in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    verb = "segment"
    segment: Names = Field(min_length=1, description="models that segment; of several of one plan, the mean")
    merge: dict[str, Literal["union"]] = Field({}, description="classes for which any model's voxel counts")
    step: float | None = Field(None, gt=0, le=1, description="distance of windows; none: as the engine says")
    mirror: bool | None = Field(None, description="average over mirrored images; none: as the engine says")
    result: str | None = Field(None, alias="as", description="name under which `compose` finds what was segmented")

    @property
    def models(self) -> tuple[str, ...]:
        return self.segment

    @property
    def results(self) -> tuple[str, ...]:
        return (*self.segment, *([self.result] if self.result else []))


class Compose(Step):
    """Paint classes of earlier results over each other, in the order written."""

    verb = "compose"
    compose: dict[str, str] = Field(min_length=1, description="class or class set, and the result that it comes from")


class Clean(Step):
    """Take voxels away from the latest result."""

    verb = "clean"
    clean: CleanSteps = Field(
        min_length=1, description="cleaning steps, or the name of a label set that has them: its cleaning"
    )


INFERENCE_STEPS: dict[str, type[Step]] = {kind.verb: kind for kind in (Locate, Segment, Compose, Clean)}
"""Steps of an inference chain by their verbs."""
InferenceStep = Annotated[
    Annotated[Locate, tag("locate")]
    | Annotated[Segment, tag("segment")]
    | Annotated[Compose, tag("compose")]
    | Annotated[Clean, tag("clean")],
    by_verb(tuple(INFERENCE_STEPS)),
]
"""One step of the inference chain, as it stands in a recipe."""


def read_step(content: Mapping[str, Any]) -> InferenceStep:
    """Return a step of this content. Raises pydantic's ValidationError."""
    return TypeAdapter(InferenceStep).validate_python(dict(content))


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
        try:
            return validated(cls, read_json(path), path)
        except UserError as error:
            raise UserError(f"{error}\nIf another version wrote it, finish the run with this one.") from None

    def write(self, path: Path) -> None:
        """Write it; keys stay in order, because that of ``compose`` decides."""
        write_text(path, self.model_dump_json(indent=2, by_alias=True) + "\n")

    def folders(self, results: Path) -> dict[str, Path]:
        """Return the folder of each model that the steps name."""
        paths = Paths(str(results))
        names = flat(step.models for step in self.steps)
        return {name: Path(paths.model_folder(name)) for name in names}
