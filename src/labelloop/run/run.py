"""A run: configuration, recipe, case table and shards. All that the DAG is made from; no image is opened here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from labelloop.base.classes import Strict
from labelloop.base.errors import UserError
from labelloop.base.files import digest, stamp
from labelloop.base.locks import TakenError, hold
from labelloop.base.outputs import one_on_this_disk, refuse_inputs_among
from labelloop.base.paths import WRITTEN, Paths
from labelloop.base.shards import assign_shards
from labelloop.base.tables import read_table
from labelloop.base.wording import count
from labelloop.cases.table import Case, load_cases
from labelloop.images.datasets import read_dataset
from labelloop.images.detached import known_parts
from labelloop.inference.settings import Device
from labelloop.inference.steps import Compose, Segment
from labelloop.recipe import (
    TRUTH,
    LabelSetSpec,
    ModelSpec,
    Recipe,
    ancestors,
    form_errors,
    load_recipe,
    round_before,
    unroll,
)
from labelloop.run import preflight, problems
from labelloop.run.chain import arrays_of, bank_of, images_of, lineage, needed, own_updates, updates
from labelloop.run.expected import Expected
from labelloop.run.resources import loader_workers, training_mb, training_threads
from labelloop.training.settings import SEMI_SUPERVISED, SLICE_CLASSIFIER, TRANSLATOR, CutMix, Determinism, cutmix_of


class RunConfig(Strict):
    """What to run: ``config/config.yaml``, overridden by a file named on the command line and by single keys."""

    cases: str = Field(description="case table (CSV)")
    recipe: str = Field("default", description="name of a recipe (`labelloop recipe list`), or a file")
    results: str = Field("results/run", description="folder for everything produced")
    rounds: int | None = Field(None, ge=1, description="overrides the recipe's number of rounds")
    device: Device = Field("auto", description="auto: a GPU where there is one")
    shard_size: int = Field(64, ge=1, description="cases handled by one job, at most")
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


@contextmanager
def _collected(errors: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        errors.append(str(error))


class Run:
    """The run that a configuration describes. Raises UserError, with all errors, when it cannot start."""

    def __init__(self, config: dict[str, Any]):
        self.config = load_config(config)
        self.results = self.config.results.rstrip("/")
        self.paths = Paths(self.results)
        errors: list[str] = []
        with _collected(errors):
            self.recipe: Recipe = load_recipe(self.config.recipe, rounds=self.config.rounds)
        with _collected(errors):
            self.cases, self.rejected = load_cases(self.config.cases)
        if errors:
            raise UserError("\n".join(errors))
        if not self.cases:
            reasons = "\n".join(f"  {row['case']}: {row['code']}: {row['found']}" for row in self.rejected)
            raise UserError(f"{self.config.cases}: no usable case\n{reasons}")
        files = [file for case in self.cases for file in (case.image, case.label) if file]
        refuse_inputs_among(Path(self.results), WRITTEN, [self.config.cases, *files])
        self._expected = Expected(self.cases, unroll(self.recipe))
        self.notes = preflight.fit(self._expected)
        self.chain: Recipe = self._expected.chain
        self.scheme = self.chain.scheme
        shard_of = assign_shards([(case.case, case.role) for case in self.cases], self.config.shard_size)
        self.shards: dict[str, list[Case]] = {}
        for case in self.cases:
            self.shards.setdefault(shard_of[case.case], []).append(case)

    def problems(self) -> list[str]:
        """Return what of the recipe cannot be done with these cases, or with the files that it names, a line each."""
        found = [*problems.of_cases(self._expected), *problems.of_files(self.chain)]
        return [f"recipe {self.recipe.name}: {problem}" for problem in found]

    @cached_property
    def train_shards(self) -> list[str]:
        """Shards whose cases models learn from."""
        return sorted(s for s in self.shards if s.startswith("train-"))

    @cached_property
    def test_shards(self) -> list[str]:
        """Shards whose truth is hidden from the loop and used for evaluation only."""
        return sorted(s for s in self.shards if s.startswith("test-"))

    @cached_property
    def infer_shards(self) -> list[str]:
        """Shards that get final label maps."""
        chosen = [s for s in self.shards if s.split("-")[0] in self.config.infer_roles]
        return sorted(chosen or self.shards)

    def rows(self, shard: str) -> list[dict[str, str]]:
        """Rows of the case table of one shard, as plain dictionaries; the survey writes them down for all steps."""
        return [case.model_dump() for case in self.shards[shard]]

    def files(self, shard: str) -> list[str]:
        """Image and label files of a shard that exist; the survey sets aside the cases of those that do not."""
        named = [path for case in self.shards[shard] for path in (case.image, case.label) if path]
        return [str(part) for path in named for part in known_parts(path) if part.is_file()]

    def stamps(self, shard: str) -> str:
        """Fingerprint of size and date of a shard's files, as Snakemake takes no notice of files with older dates."""
        return digest({path: stamp(path) for path in self.files(shard)})

    def datasets(self, shard: str) -> dict[str, str]:
        """Fingerprint of what each data set file says that a shard's cases name."""
        return {name: self._datasets[name] for name in sorted({case.dataset for case in self.shards[shard]})}

    @cached_property
    def _datasets(self) -> dict[str, str]:
        return {name: digest(read_dataset(name).model_dump()) for name in {case.dataset for case in self.cases}}

    def known(self, name: str) -> list[str]:
        """Return the classes (or class sets) that scored label maps can hold: a model's, or those of the final ones.

        What is composed holds the composed classes; otherwise what was segmented counts, not what was only located.
        """
        if name != "final":
            return list(self.model(name).classes)
        segmenters = [model for model in self.inference_models() if model in self.segmenters]
        held = self.scheme.select([c for model in segmenters for c in self.model(model).classes])
        composed = [step.compose for step in self.chain.inference if isinstance(step, Compose)]
        segmenting = [step for step in self.chain.inference if isinstance(step, Segment)]
        last = [model for step in segmenting for model in step.segment]
        shown = list(composed[-1]) if composed else [c for model in last for c in self.model(model).classes]
        return [c for c in self.scheme.select(shown) if c in held]

    def model(self, name: str) -> ModelSpec:
        """A model of the chain."""
        return self.chain.models[name]

    def label_set(self, name: str) -> LabelSetSpec:
        """A label set of the chain."""
        return self.chain.labels[name]

    def cards(self, name: str) -> int:
        """Cards that train a model: as many as the configuration says, if a batch has so many samples."""
        if name not in self.segmenters or self.config.device == "cpu":
            return 1
        return min(self.config.gpus_per_training, self.chain.plans[self.model(name).plan].batch_size)

    def fewer_cards(self) -> list[str]:
        """Return which models are trained on fewer cards than the configuration says, and why, a line each."""
        asked = self.config.gpus_per_training if self.config.device != "cpu" else 1
        few = {name: self.cards(name) for name in self.used_models if self.cards(name) < asked}
        return [
            f"model {name}: trained on {count(cards, 'card')}, not on {asked}: "
            + ("a batch has no more samples" if name in self.segmenters else "its kind of training is not shared out")
            for name, cards in few.items()
        ]

    def training_threads(self, name: str) -> int:
        """Threads of the training of a model, where the machine has so many."""
        return training_threads(self.config.device != "cpu", self.cards(name))

    def training_mb(self, name: str, threads: int) -> int:
        """Memory in MiB of the training of a model on ``threads``."""
        spec = self.model(name)
        trainer, known = spec.trainer, spec.labels == TRUTH
        labeled_only = known and trainer.kind not in (*SEMI_SUPERVISED, TRANSLATOR)
        cases = sum(bool(c.label) or not labeled_only for s in self.train_shards for c in self.shards[s])
        cards = self.cards(name)
        workers = loader_workers(self.config.workers, threads // cards)
        return training_mb(self.chain.plans[spec.plan], trainer, cases, workers, self.config.device != "cpu", cards)

    def images(self, model: str) -> str:
        """Name under which the prepared images of a model's plan lie."""
        return images_of(self.chain, self.model(model).plan)

    def arrays(self, model: str) -> str:
        """Kind of label arrays that a model learns from."""
        return arrays_of(self.chain, model)

    def lineage(self, model: str) -> list[str]:
        """Models whose weights a model starts from."""
        return lineage(self.chain, model)

    def cutmix(self, model: str) -> CutMix | None:
        """Return which tumor objects a model pastes, and how; None where it pastes none."""
        return cutmix_of(self.model(model).trainer)

    def bank(self, model: str) -> str:
        """Name under which the tumor objects that a model pastes lie: the first model's that cuts the same ones."""
        return bank_of(self.chain, model)

    @cached_property
    def used_models(self) -> list[str]:
        """Models that the final label maps or a score lead back to, in the order of the chain."""
        used = needed(self.chain)
        return [name for name in self.chain.models if name in used]

    @cached_property
    def used_labels(self) -> list[str]:
        """Label sets that the final label maps or a score lead back to, in the order of the chain."""
        used = needed(self.chain)
        return [name for name in self.chain.labels if name in used]

    def compared(self) -> list[str]:
        """Return the label sets whose models are compared: those of several models."""
        return [name for name in self.used_labels if len(self.label_set(name).predict) > 1]

    def behind(self, labels: str) -> list[str]:
        """Return the models that make a label set and those that they descend from, in the order of the chain."""
        found = ancestors(self.chain, labels)
        return [name for name in self.chain.models if name in found]

    def leading_before(self, labels: str) -> list[str]:
        """Return the leading model of a label set one round earlier; none in round 1."""
        earlier = round_before(self.recipe, labels)
        return [self.label_set(earlier).predict[0]] if earlier else []

    def transferring(self) -> list[str]:
        """Return the label sets that carry labels from one MR sequence to others."""
        return [name for name in self.used_labels if self.label_set(name).transfer]

    def relatives(self, shard: str) -> dict[str, list[Case]]:
        """Return all cases of a shard's patients, by the shard that holds them."""
        patients = dict.fromkeys(case.patient for case in self.shards[shard])
        found: dict[str, list[Case]] = {}
        for home, case in (pair for patient in patients for pair in self._of_patient[patient]):
            found.setdefault(home, []).append(case)
        return dict(sorted(found.items()))

    @cached_property
    def _of_patient(self) -> dict[str, list[tuple[str, Case]]]:
        found: dict[str, list[tuple[str, Case]]] = {}
        for shard, cases in self.shards.items():
            for case in cases:
                found.setdefault(case.patient, []).append((shard, case))
        return found

    def checked_final(self) -> list[str]:
        """Return the shards whose final label maps are held against rules."""
        return self.infer_shards if self.chain.evaluate.check else []

    def checked(self) -> list[str]:
        """Return the label sets that are held against rules."""
        return [name for name in self.used_labels if self.label_set(name).check]

    def predictions(self) -> list[tuple[str, str]]:
        """Return the (model, shard) of each model's own label maps: those for label sets and those to be scored."""
        labeling = dict.fromkeys(m for name in self.used_labels for m in self.label_set(name).predict)
        pairs = [(model, shard) for model in labeling for shard in self.train_shards]
        return pairs + [(model, shard) for model in self.chain.evaluate.models for shard in self.test_shards]

    def inference_models(self) -> list[str]:
        """Models that the inference chain loads."""
        return list(dict.fromkeys(m for step in self.chain.inference for m in step.models))

    @cached_property
    def slice_classifiers(self) -> list[str]:
        """Models that look for slices."""
        return [name for name, spec in self.chain.models.items() if spec.trainer.kind == SLICE_CLASSIFIER]

    @cached_property
    def translators(self) -> list[str]:
        """Models that give CT the look of MR."""
        return [name for name, spec in self.chain.models.items() if spec.trainer.kind == TRANSLATOR]

    @cached_property
    def segmenters(self) -> list[str]:
        """Models that label voxels: all others."""
        return [name for name in self.chain.models if name not in (*self.slice_classifiers, *self.translators)]

    @cached_property
    def upright(self) -> bool:
        """Whether volumes that are stored upside down are put on their feet wherever they are read."""
        return any(self.chain.plans[self.model(name).plan].upright for name in self.used_models)

    @cached_property
    def translations(self) -> dict[str, str]:
        """Names of prepared images with translated CT, and under which the same CT lies as it was."""
        used = {self.images(m): self.chain.plans[self.model(m).plan].translate for m in self.used_models}
        return {images: self.images(translator) for images, translator in used.items() if translator}

    def evaluated(self) -> list[str]:
        """What is scored: models of the recipe and the final label maps, where there are test cases."""
        return [*self.chain.evaluate.models, "final"] if self.test_shards else []

    def updates(self) -> dict[str, int]:
        """Return the updates behind what is scored; behind the final label maps those of the longest trained model."""
        behind = {name: [name] for name in self.chain.evaluate.models} | {"final": self.inference_models()}
        return {name: max(updates(self.chain, model) for model in behind[name]) for name in self.evaluated()}

    def work(self, model: str = "", shard: str = "") -> int:
        """Return the updates of the training of a model, or the cases of a shard: what a job has to do."""
        return len(self.shards[shard]) if shard else own_updates(self.chain, model)

    def groups(self) -> dict[str, dict]:
        """The recipe's own groups, as plain data."""
        return {name: group.model_dump(mode="json") for name, group in self.chain.groups.items()}

    def warnings(self) -> list[str]:
        """Return what the case table tells of cases that are, or will be, set aside, and of classes, a line each."""
        return [*preflight.warnings(self.cases, self.rejected, self.scheme), *self.notes]

    def refuse_problems(self) -> None:
        """Raise UserError with all that keeps the recipe from being run on these cases, a line each."""
        found = self.problems()
        if found:
            raise UserError("\n".join(found))

    def summary(self) -> str:
        """Return recipe, cases, shards and the groups that matter, in a line."""
        groups = preflight.group_sizes(self._expected)
        sizes = ", ".join(f"{name} {size}" for name, size in groups.items())
        total = f"{count(len(self.cases), 'case')} in {count(len(self.shards), 'shard')}"
        return f"recipe {self.recipe.name}, {total} (to learn from: {sizes}) -> {self.results}"

    def set_aside(self) -> str:
        """Return how many cases the survey has set aside, by reason; empty when none or when it has not ended."""
        table = Path(self.paths.table("quarantine"))
        if not table.is_file():
            return ""
        errors = read_table(table, "quarantine").query("severity == 'error'")
        reasons = ", ".join(f"{code} {count}" for code, count in errors["code"].value_counts().items())
        return f"{count(errors['case'].nunique(), 'case')} set aside ({reasons}), see {table}" if reasons else ""

    def claim(self) -> None:
        """Keep other runs out of the results folder until this process ends.

        Unlike Snakemake's own lock, which the profiles switch off, it leaves nothing to unlock after a kill.

        Raises:
            UserError: when another run works here, the folder cannot be written, or its disk takes cases for one.
        """
        try:
            self._lock = hold(Path(self.paths.lock), f"results {self.results}", wait=False)
        except TakenError as taken:
            raise UserError(
                f"{self.results}: another run, {taken.holder}, works here. Wait for it or end it, or change results."
            ) from None
        one = one_on_this_disk((case.case for case in self.cases), lambda _: Path(self.results))
        if one:
            raise UserError("\n".join(one))
