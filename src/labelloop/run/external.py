"""What a run knows of models that are not trained here before its first job: their files, programs and versions."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import UserError
from labelloop.base.files import digest, stamp
from labelloop.base.sequences import flat
from labelloop.base.wording import count, named
from labelloop.cases.table import Case
from labelloop.images.datasets import called_otherwise, read_dataset
from labelloop.images.detached import known_parts
from labelloop.inference.external import CommandModel, External, FilesModel, NnunetModel, dataset_of
from labelloop.recipe import Recipe, ancestors
from labelloop.run.chain import lineage

VERSION_LIMIT_S = 300.0
"""Seconds that a command may take to print its version: some load torch first."""


class ExternalModels:
    """The models of a run that are not trained here, those that it uses.

    Args:
        chain: the recipe, its rounds written out.
        shards: cases by shard.
        predictions: the (model, shard) of the label maps that the run needs.
        trained: the models that the run trains; they may start from some.
    """

    def __init__(
        self,
        chain: Recipe,
        shards: Mapping[str, Sequence[Case]],
        predictions: Iterable[tuple[str, str]],
        trained: Iterable[str],
    ):
        self._chain, self._shards = chain, shards
        self._asked: dict[str, list[Case]] = {}
        for name, shard in predictions:
            if name in chain.external:
                self._asked.setdefault(name, []).extend(shards[shard])
        for name in filter(None, (chain.models[model].init_from for model in trained)):
            if name in chain.external:
                self._asked.setdefault(name, [])
        self.names = [name for name in chain.external if name in self._asked]

    @property
    def of_nnunet(self) -> list[str]:
        """Those that nnU-Net trained."""
        return [name for name in self.names if isinstance(self._chain.external[name], NnunetModel)]

    def spec(self, model: str) -> External:
        """What the recipe says of a model."""
        return self._chain.external[model]

    def files(self, model: str, shard: str = "") -> list[str]:
        """Return the files that a model is, or that it has of the cases of a shard, those that are there."""
        spec = self.spec(model)
        if isinstance(spec, FilesModel):
            return list(map(str, files_of(spec, self._shards.get(shard, ()))))
        return list(map(str, spec.described.files)) if isinstance(spec, NnunetModel) else []

    def places(self) -> list[str]:
        """Return the folders, zips and label maps that the models are."""
        found: list[str] = []
        for name in self.names:
            spec = self.spec(name)
            if isinstance(spec, NnunetModel):
                found.append(spec.nnunet)
            elif isinstance(spec, FilesModel):
                found += map(str, files_of(spec, self._asked[name]))
        return found

    def stamps(self, model: str, shard: str = "") -> str:
        """Return a fingerprint of size and date of these files: Snakemake takes no notice of files with older dates."""
        return digest({path: stamp(path) for path in self.files(model, shard)})

    def meaning(self, model: str) -> str:
        """Return a fingerprint of what a model's ids mean."""
        return dataset_of(self.spec(model), self._chain.scheme).fingerprint

    def version(self, model: str) -> str:
        """Return what the version's command of a model says; empty for models that have none."""
        spec = self.spec(model)
        return version_of(spec.version) if isinstance(spec, CommandModel) else ""

    def learned_from(self, labels: str) -> list[str]:
        """Return the data sets, as the case table names them, that models behind a label set may have learned from."""
        return may_have_seen(self._chain, behind(self._chain, labels), self._data_sets)

    def seen_before(self, model: str) -> list[str]:
        """Return the data sets that external models whose weights a model starts from may have learned from."""
        before = [name for name in lineage(self._chain, model) if name in self._chain.external]
        return may_have_seen(self._chain, before, self._data_sets)

    def start_names(self, model: str) -> dict[str, str] | None:
        """Return our names of the classes of the external model that a model starts from; None without one."""
        spec = self._chain.external.get(self._chain.models[model].init_from or "")
        return spec.our_names(dataset_of(spec, self._chain.scheme)) if isinstance(spec, NnunetModel) else None

    @cached_property
    def _data_sets(self) -> set[str]:
        return {case.dataset for case in flat(self._shards.values())}

    def problems(self) -> Iterator[str]:
        """Yield a line for all that keeps the models from labeling their cases: key, what was found and expected."""
        for name in self.names:
            model, key, cases = self.spec(name), f"external.{name}", self._asked[name]
            if isinstance(model, NnunetModel):
                yield from _nnunet_problems(key, model, self._chain.classes_of(name), self._chain.scheme)
            elif isinstance(model, CommandModel):
                yield from _command_problems(key, model)
            elif isinstance(model, FilesModel) and not files_of(model, cases):
                yield f"{key}.files: none of {count(len(cases), 'case')} has such a file{_first_place(model, cases)}"

    def notes(self) -> Iterator[str]:
        """Yield what is worth knowing of the models: cases without a file, test cases that they may know."""
        tested = flat(cases for shard, cases in self._shards.items() if shard.startswith("test-"))
        for name in self.names:
            model, cases = self.spec(name), self._asked[name]
            wanted = {c.case: model.file(c.case) for c in cases if isinstance(model, FilesModel)}
            broken = [str(file) for file in wanted.values() if os.path.lexists(file) and not file.is_file()]
            lacking = [case for case, file in wanted.items() if not os.path.lexists(file)]
            if broken:
                found = f"dead links or folders in the place of {count(len(broken), 'label map')}"
                yield f"external.{name}: {found}, which will be set aside: {named(broken)}"
            if lacking:
                found = f"no file for {len(lacking)} of {count(len(cases), 'case')}"
                yield f"external.{name}: {found}, of which it says nothing; first: {lacking[0]}"
            if isinstance(model, NnunetModel):
                yield from self._called_otherwise(name, model)
            known = may_have_seen(self._chain, [name], {case.dataset for case in tested})
            if known:
                number = count(sum(case.dataset in known for case in tested), "test case")
                yield (
                    f"external.{name}: may have learned from {number} ({', '.join(known)}), whose scores then promise "
                    "too much. If it has not, say what it learned from: `learned_from`"
                )

    def _called_otherwise(self, name: str, model: NnunetModel) -> Iterator[str]:
        found = called_otherwise(model.described.class_ids, dataset_of(model, self._chain.scheme))
        if found:
            yield (
                f"external.{name}.dataset: contradicts the names in the model's dataset.json, and counts: "
                f"{'; '.join(found)}"
            )


def _first_place(model: FilesModel, cases: Sequence[Case]) -> str:
    """Say where the label map of the first case was looked for, and what to do where masks are in its place."""
    if not cases:
        return ""
    file = model.file(cases[0].case)
    masks = "; a folder stands there: join the masks of a case to a label map (labelloop cases --merged)"
    return f", e.g. {file}{masks if file.is_dir() else ''}"


def _nnunet_problems(key: str, model: NnunetModel, classes: Sequence[str], scheme: ClassScheme) -> Iterator[str]:
    try:
        class_ids = model.described.class_ids
    except UserError as error:
        yield from error.lines(f"{key}.nnunet")
        return
    dataset = dataset_of(model, scheme)
    said = dataset.labels.keys() - dataset.ignored
    strange = [f"{own} {name}" for name, own in class_ids.items() if own not in said]
    if strange:
        yield (
            f"{key}.dataset: data set {model.dataset} does not say what the model's {', '.join(strange)} are. Add "
            "these ids to a data set file of your own (null for a structure that is no class)"
        )
    elif not classes:
        yield f"{key}.classes: none of the model's labels is one of {', '.join(model.classes)}"


def _command_problems(key: str, model: CommandModel) -> Iterator[str]:
    lacking = []
    for field in ("command", "version"):
        program = shlex.split(getattr(model, field))[0]
        if shutil.which(program) is None:
            lacking.append(program)
            yield f"{key}.{field}: no program {program!r} on the PATH, or it may not be run"
    if not lacking:
        try:
            version_of(model.version)
        except UserError as error:
            yield f"{key}.version: {error}"


@cache
def version_of(command: str) -> str:
    """Return what a command prints, once a process. Raises UserError when it fails, says nothing, or takes too long."""
    try:
        done = subprocess.run(
            shlex.split(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=VERSION_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command!r} took more than {VERSION_LIMIT_S:g} s") from error
    except OSError as error:
        raise UserError(f"{command!r} cannot be run: {error}") from error
    said = done.stdout.strip() or done.stderr.strip()
    if done.returncode or not said:
        last = f": {said.splitlines()[-1]}" if said else ""
        raise UserError(f"{command!r} ended with exit code {done.returncode} and should print a version{last}")
    return said


def files_of(model: FilesModel, cases: Iterable[Case]) -> list[Path]:
    """Return the label maps of ``cases`` that are there, each with the file of its voxels, if that is another."""
    parts = flat(known_parts(model.file(case.case)) for case in cases)
    return [part for part in parts if part.is_file()]


def may_have_seen(chain: Recipe, models: Iterable[str], data_sets: Iterable[str]) -> list[str]:
    """Return those of ``data_sets``, as the case table names them, that any of ``models`` may have learned from."""
    seen = {read_dataset(name).name for name in flat(chain.external[model].may_have_seen for model in models)}
    return sorted(spelled for spelled in set(data_sets) if read_dataset(spelled).name in seen)


def behind(chain: Recipe, name: str) -> list[str]:
    """Return the external models that lead to a model or label set."""
    found = ancestors(chain, name)
    return [model for model in chain.external if model in found]


def licenses(chain: Recipe, model: str, data_sets: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the licenses of what a model learned from: of ``data_sets``, and of external models; "" if not stated.

    Args:
        data_sets: of its cases, and of those of the models before it, as the case table names them.
    """
    read = [read_dataset(name) for name in data_sets]
    return {
        "datasets": {dataset.name: dataset.license for dataset in sorted(read, key=lambda dataset: dataset.name)},
        "models": {name: chain.external[name].license for name in behind(chain, model)},
    }
