"""A run: configuration, recipe, case table and shards. All that the DAG is made from; no image is opened here."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from labelloop.base.errors import UserError
from labelloop.base.outputs import refuse_inputs_among
from labelloop.base.paths import WRITTEN, Paths, reviews_of
from labelloop.base.sequences import flat
from labelloop.base.tables import read_table
from labelloop.base.wording import count
from labelloop.cases.table import load_cases
from labelloop.recipe import Recipe, load_recipe, plain_name, unroll
from labelloop.review.decisions import Reviews
from labelloop.review.waiting import decisions_gone, left_to_answer
from labelloop.run import checks, preflight
from labelloop.run.chain import own_updates, updates
from labelloop.run.config import load_config
from labelloop.run.expected import Expected
from labelloop.run.external import ExternalModels, licenses
from labelloop.run.resources import TrainingResources
from labelloop.run.shards import Shards
from labelloop.run.wiring import Wiring


@contextmanager
def _collected(errors: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        errors.append(str(error))


class Run:
    """The run that a configuration describes.

    ``recipe`` is as it was written, ``chain`` the same with its rounds written out, of the classes that the cases can
    teach. ``cases`` are the usable rows of the case table, ``rejected`` says of the others why not. ``shards``,
    ``wiring`` and ``trainings`` answer what the rules ask of cases, of the chain, and of threads and memory.

    Raises:
        UserError: with all errors, when it cannot start.
    """

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
        files = flat(case.files for case in self.cases)
        files += [self.config.cases, *filter(None, [self.config.reviews])]
        refuse_inputs_among(Path(self.results), WRITTEN, files)
        self._expected = Expected(self.cases, unroll(self.recipe))
        self.notes = preflight.fit(self._expected)
        self.chain: Recipe = self._expected.chain
        self.scheme = self.chain.scheme
        self.shards = Shards(self.cases, self.config.shard_size, self.config.infer_roles)
        self.wiring = Wiring(self.recipe, self.chain)
        self.trainings = TrainingResources(self.config, self.chain, self.wiring, self.shards)
        self.external = ExternalModels(self.chain, self.shards.cases, self.predictions(), self.wiring.used_models)
        self._reviews: dict[str, Reviews] = {}

    def problems(self) -> list[str]:
        """Return what of the recipe cannot be done with these cases, or with the files that it names, a line each."""
        found = [*checks.of_groups(self.cases, self.chain), *checks.of_cases(self._expected)]
        found += [*checks.of_channels(self.cases, self.chain), *checks.of_files(self.chain), *self.external.problems()]
        with _collected(found):
            refuse_inputs_among(Path(self.results), WRITTEN, self.external.places())
        return [f"recipe {self.recipe.name}: {problem}" for problem in found]

    def licenses(self, model: str) -> dict[str, dict[str, str]]:
        """Licenses of the data sets and of the external models that a model learned from."""
        return licenses(self.chain, model, self._expected.data_sets(model))

    def refuse_problems(self) -> None:
        """Raise UserError with all that keeps the recipe from being run on these cases, a line each."""
        found = self.problems()
        if found:
            raise UserError("\n".join(found))

    def warnings(self) -> list[str]:
        """Return what the case table tells of cases set aside, now or later, of classes and of plans, a line each."""
        unfit = preflight.unfit_plans(self._expected)
        return [*preflight.warnings(self.cases, self.rejected, self.scheme), *self.notes, *unfit]

    def reviews(self, labels: str) -> Reviews:
        """Return what people decided about a label set; its rounds share that."""
        if labels not in self._reviews:
            folder = reviews_of(self.results, plain_name(self.recipe, labels), self.config.reviews)
            train = {case.case for case in self.cases if case.role == "train"}
            self._reviews[labels] = Reviews(folder, train, self.scheme.select(self.wiring.label_set(labels).classes))
        return self._reviews[labels]

    @cached_property
    def waits_for(self) -> str | None:
        """The first label set whose review the run waits for; None when there is nothing to wait for."""
        return next(filter(self.left_to_review, self.wiring.used_label_sets), None)

    def left_to_review(self, labels: str) -> str:
        """Return what is left to do before a run goes on beyond a label set, in words; empty when nothing is."""
        if self.wiring.label_set(labels).review != "wait" or not self.config.review:
            return ""
        left = left_to_answer(Path(self.paths.review(labels)), self.reviews(labels), labels, self.config.review)
        what = "the queue is made first" if left is None else f"{count(left, 'label')} left to look at"
        told = f"label set {labels} waits for its review: {what}. labelloop review {self.results} --labels {labels}"
        return "" if left == 0 else f"{told} --export DIR, then --import DIR --reviewer NAME, then this command again"

    def reviewed(self, labels: str, shard: str) -> list[str]:
        """Return the fingerprint of what people decided about a label set's cases of a shard; none without any."""
        found = self.reviews(labels).fingerprint(case.case for case in self.shards.cases[shard])
        return [found] if found else []

    def unused_decisions(self) -> list[str]:
        """Return the decisions of people that are not used, each with its file, row and reason."""
        problems = map(str, flat(self.reviews(labels).problems for labels in self.wiring.used_label_sets))
        gone = flat(
            decisions_gone(self.reviews(labels).folder, Path(self.paths.label_table("reviewed", labels)))
            for labels in self.wiring.used_label_sets
        )
        return list(dict.fromkeys([*gone, *problems]))

    def predictions(self) -> list[tuple[str, str]]:
        """Return the (model, shard) of each model's own label maps: those for label sets and those to be scored."""
        labeling = product(self.wiring.predicting_models, self.shards.train)
        return [*labeling, *product(self.chain.evaluate.models, self.shards.test)]

    def checked_shards(self) -> list[str]:
        """Return the shards whose final label maps are held against rules."""
        return self.shards.final if self.chain.evaluate.check else []

    def evaluated(self) -> list[str]:
        """What is scored: models of the recipe and the final label maps, where there are test cases."""
        return [*self.chain.evaluate.models, "final"] if self.shards.test else []

    def updates(self) -> dict[str, int]:
        """Return the updates behind what is scored; behind the final label maps those of the longest trained model."""
        behind = {name: [name] for name in self.chain.evaluate.models} | {"final": self.wiring.inference_models}
        return {name: max(updates(self.chain, model) for model in behind[name]) for name in self.evaluated()}

    def work(self, model: str = "", shard: str = "") -> int:
        """Return the updates of the training of a model, or the cases of a shard: what a job has to do."""
        return self.shards.size(shard) if shard else own_updates(self.chain, model)

    def summary(self) -> str:
        """Return recipe, cases, shards and the groups that matter, in a line."""
        groups = preflight.group_sizes(self._expected)
        sizes = ", ".join(f"{name} {size}" for name, size in groups.items())
        total = f"{count(len(self.cases), 'case')} in {count(len(self.shards.all), 'shard')}"
        return f"recipe {self.recipe.name}, {total} (to learn from: {sizes}) -> {self.results}"

    def set_aside(self) -> str:
        """Return how many cases the survey has set aside, by reason; empty when none or when it has not ended."""
        table = Path(self.paths.table("quarantine"))
        if not table.is_file():
            return ""
        errors = read_table(table, "quarantine").query("severity == 'error'")
        reasons = ", ".join(f"{code} {count}" for code, count in errors["code"].value_counts().items())
        return f"{count(errors['case'].nunique(), 'case')} set aside ({reasons}), see {table}" if reasons else ""
