"""Models that are not trained here, as a recipe names them: one of nnU-Net's, a command, or label maps that are there.

Imports nothing heavy: the Snakefile validates recipes.
"""

import re
import shlex
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, field_validator

from labelloop.base.classes import ClassScheme, Names
from labelloop.base.errors import UserError, nearest
from labelloop.base.unions import Verb, by_verb, tag
from labelloop.images.datasets import Dataset, load_dataset
from labelloop.inference.nnunet import NnunetFiles, described_nnunet

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
IN_COMMAND = ("image", "output", "case", "device", "torch_device")
IN_FILES = ("case",)
EXTERNAL_VERSION = 1
"""Raised when the same files, or the same command, are read as other label maps."""


class External(Verb):
    """A model that is not trained here."""

    what = "model"

    dataset: str = Field(description="data set whose ids its label maps have; a class that it does not name is unknown")
    classes: Names = Field(("all",), min_length=1, description="classes or class sets that count, of those it names")
    license: str = Field("", description="its license; told in `model.json` of what learns from it, and on the page")
    learned_from: Names | None = Field(
        None,
        description="data sets that it may have learned from, which are then not held out for it; none: its `dataset`",
    )

    @property
    def may_have_seen(self) -> tuple[str, ...]:
        """The data sets that it may have learned from."""
        return (self.dataset,) if self.learned_from is None else self.learned_from

    def own_ids(self, dataset: Dataset) -> frozenset[int]:
        """Return the ids, in those of its data set, that its label maps may hold."""
        return frozenset(dataset.labels)


class NnunetModel(External):
    """A model that nnU-Net v2 trained; it runs in our engine, as the recipe's ``engine`` says."""

    verb = "nnunet"
    nnunet: str = Field(description="folder `<trainer>__<plans>__<configuration>` of a trained model, or its zip")
    folds: tuple[int | str, ...] = Field((), description="folds of which the mean is taken; none: all, as nnU-Net does")

    @property
    def fold_names(self) -> tuple[str, ...]:
        """The folds as :func:`~labelloop.inference.nnunet.import_nnunet` takes them."""
        return tuple(map(str, self.folds))

    @cached_property
    def described(self) -> NnunetFiles:
        """What its files say, read once. Raises UserError when they cannot be read, or cannot be run here."""
        return described_nnunet(Path(self.nnunet), self.fold_names)

    def own_ids(self, dataset: Dataset) -> frozenset[int]:
        """Return the ids of the network's outputs; of a model that cannot be read, all of the data set."""
        try:
            return frozenset(self.described.class_ids.values())
        except UserError:  # told when a run starts (``run.external``)
            return super().own_ids(dataset)

    def our_names(self, dataset: Dataset) -> dict[str, str]:
        """Return the class that each of the network's outputs is, by their own names; those that are none are left out.

        Raises:
            UserError: when the model cannot be read.
        """
        found = {own: dataset.class_of(number) for own, number in self.described.class_ids.items()}
        return {own: name for own, name in found.items() if name is not None}


class CommandModel(External):
    """A command that writes the label map of one image. No shell reads it; quotes keep words together."""

    verb = "command"
    command: str = Field(
        description="with {image}, the image's file, and {output}, the label map to write (.nii.gz); also {case}, "
        "{device} (cpu or gpu) and {torch_device} (cpu or cuda)"
    )
    version: str = Field(
        description="command that prints the version, e.g. `TotalSegmentator --version`, or `sha256sum FILE` for a "
        "script; another answer makes the predictions anew"
    )
    limit_s: float = Field(1800.0, gt=0, description="time for one case, after which the command is ended")

    @field_validator("command")
    @classmethod
    def _known_placeholders(cls, command: str) -> str:
        _check_placeholders(command, IN_COMMAND, needed=("image", "output"))
        return _check_words(command)

    @field_validator("version")
    @classmethod
    def _words(cls, version: str) -> str:
        return _check_words(version)

    def words(self, values: Mapping[str, str]) -> list[str]:
        """Return the command, a word an argument, with ``values`` put in: each stays within its word."""
        return [_filled(word, values) for word in shlex.split(self.command)]


class FilesModel(External):
    """Label maps that another model has made. A case without a file is one that it says nothing about."""

    verb = "files"
    files: str = Field(description="pattern of the label maps, with {case}, e.g. `pseudo/{case}.nii.gz`")

    @field_validator("files")
    @classmethod
    def _known_placeholders(cls, files: str) -> str:
        _check_placeholders(files, IN_FILES, needed=IN_FILES)
        return files

    def file(self, case: str) -> Path:
        """Return the label map of a case, whether or not it is there."""
        return Path(_filled(self.files, {"case": case}))


EXTERNAL_KINDS: dict[str, type[External]] = {kind.verb: kind for kind in (NnunetModel, CommandModel, FilesModel)}
"""Models that are not trained here, by their verbs."""
ExternalModel = Annotated[
    Annotated[NnunetModel, tag("nnunet")]
    | Annotated[CommandModel, tag("command")]
    | Annotated[FilesModel, tag("files")],
    by_verb(tuple(EXTERNAL_KINDS), "a model"),
]
"""A model that is not trained here, as it stands in a recipe."""


def read_external(content: Mapping[str, Any]) -> ExternalModel:
    """Return a model of this content. Raises pydantic's ValidationError."""
    return TypeAdapter(ExternalModel).validate_python(dict(content))


def dataset_of(model: External, scheme: ClassScheme) -> Dataset:
    """Return the data set of a model, in which classes that do not count are structures that are no class.

    Raises:
        UserError: see :func:`~labelloop.images.datasets.load_dataset`; also for classes that the scheme does not have.
    """
    dataset, wanted = load_dataset(model.dataset, scheme), scheme.select(model.classes)
    labels = {own: None if name in scheme.ids and name not in wanted else name for own, name in dataset.labels.items()}
    return dataset.model_copy(update={"labels": labels})


def classes_of(model: External, scheme: ClassScheme) -> tuple[str, ...]:
    """Return the classes that a model knows, in the order of the scheme; all others are unknown to it.

    Raises:
        UserError: see :func:`dataset_of`.
    """
    dataset = dataset_of(model, scheme)
    known = {dataset.class_of(own) for own in model.own_ids(dataset)}
    return tuple(name for name in scheme.names if name in known)


def _check_placeholders(text: str, known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    found = PLACEHOLDER.findall(text)
    for name in found:
        if name not in known:
            raise ValueError(f"no placeholder {{{name}}}{nearest(name, known)}")
    missing = [f"{{{name}}}" for name in needed if name not in found]
    if missing:
        raise ValueError(f"lacks {' and '.join(missing)}")


def _check_words(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {error}") from error
    if not words:
        raise ValueError("names no program")
    return command


def _filled(text: str, values: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda found: values[found[1]], text)
