"""What each model is expected to learn from, by case table and recipe alone, before any image is opened.

Of a label set that models make, all is expected that may become known: every class that they predict, in every case
that they are asked for. So what is not expected will not come.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import UserError
from labelloop.base.sequences import flat
from labelloop.cases.annotation import PRESENT, States
from labelloop.cases.groups import canonical_name, memberships, with_data_sets
from labelloop.cases.table import Case
from labelloop.images.datasets import load_dataset
from labelloop.recipe import TRUTH, Recipe, ancestors
from labelloop.run.chain import lineage
from labelloop.run.external import may_have_seen
from labelloop.training.settings import (
    SEMI_SUPERVISED,
    SLICE_CLASSIFIER,
    TRANSLATOR,
    CrossPseudoSettings,
    SupervisedSettings,
    TrainerSettings,
)
from labelloop.training.split import held_out_cases

Known = dict[str, frozenset[str]]
"""Classes that are known, or may become so, of each case."""


@dataclass(frozen=True)
class Split:
    """Cases that a training learns from, those of them whose labels it uses, and those that it is validated on."""

    train: frozenset[str]
    labeled: frozenset[str]
    validation: frozenset[str]


def expected_states(cases: Sequence[Case], scheme: ClassScheme) -> dict[str, States]:
    """Return the classes that are said to be annotated in each case; ``present`` stands for either.

    Cases whose row names unknown classes are left out: the survey will set them aside.

    Raises:
        UserError: when a data set file cannot be used.
    """
    by_default = {name: load_dataset(name, scheme).annotated for name in {case.dataset for case in cases}}
    states: dict[str, States] = {}
    for case in cases:
        try:
            scheme.select(case.surgery_names)
            named = scheme.select(case.annotated_names(by_default[case.dataset]))
        except UserError:
            continue
        states[case.case] = dict.fromkeys(named if case.label else (), PRESENT)
    return states


def needs_all_classes(trainer: TrainerSettings) -> bool:
    """Say whether a training uses no labels of cases in which a class of its model is unknown."""
    excludes = isinstance(trainer, SupervisedSettings) and trainer.unknown == "exclude"
    ignores = isinstance(trainer, CrossPseudoSettings) and trainer.partly_labeled == "unlabeled"
    return excludes or ignores or trainer.kind == SLICE_CLASSIFIER


class Expected:
    """The train cases of a table, as a chain will see them.

    Args:
        cases: usable rows of the case table.
        chain: a recipe with its rounds written out. A model may be exchanged for one of the same name, as long as
            nothing was asked of what is made from it.
    """

    def __init__(self, cases: Sequence[Case], chain: Recipe):
        groups = with_data_sets(chain.groups, (case.dataset for case in cases))
        self.chain, self.scheme = chain.model_copy(update={"groups": groups}), chain.scheme
        self.cases = {case.case: case for case in cases if case.role == "train"}
        states = expected_states([*self.cases.values()], self.scheme)
        self.groups = memberships(states, self.cases, self.scheme, groups)
        self.annotated: Known = {case: frozenset(known) for case, known in states.items()}
        self._members: dict[frozenset[str], list[str]] = {}
        self._labels: dict[str, Known] = {}
        self._splits: dict[str, Split] = {}

    def members(self, groups: Iterable[str]) -> list[str]:
        """Return the cases in any of ``groups``."""
        wanted = frozenset(map(canonical_name, groups))
        if wanted not in self._members:
            self._members[wanted] = [case for case, names in self.groups.items() if names & wanted]
        return self._members[wanted]

    def fit_for(self, model: str) -> list[str]:
        """Return the cases in the groups of a model that its kind of training can use; a slice classifier: CT alone."""
        spec = self.chain.models[model]
        found = self.members(spec.cases)
        if spec.trainer.kind != SLICE_CLASSIFIER:
            return found
        return [case for case in found if self.cases[case].modality == "CT"]

    def outputs(self, model: str) -> frozenset[str]:
        """Return the classes of a model."""
        return frozenset(self.scheme.select(self.chain.classes_of(model)))

    def known(self, model: str) -> Known:
        """Return what may be known of the classes of a model in the cases of its groups; not those with nothing."""
        spec, outputs = self.chain.models[model], self.outputs(model)
        given = self.annotated if spec.labels == TRUTH else self.labels(spec.labels)
        mine = {case: given.get(case, frozenset()) & outputs for case in self.fit_for(model)}
        return {case: names for case, names in mine.items() if names}

    def drawn(self, model: str) -> Known:
        """Return what of it annotators give: nothing where the label set takes predictions alone."""
        labels = self.chain.models[model].labels
        asked = labels == TRUTH or self.chain.labels[labels].fuse == "truth_first"
        return {c: self.annotated[c] & names if asked else frozenset() for c, names in self.known(model).items()}

    def labels(self, name: str) -> Known:
        """Return what may be known in the cases of a label set."""
        if name not in self._labels:
            self._labels[name] = self._labels_of(name)
        return self._labels[name]

    def _labels_of(self, name: str) -> Known:
        spec = self.chain.labels[name]
        covered = frozenset(self.scheme.select(spec.classes))
        predicted = covered.intersection(*[frozenset().union(*map(self.outputs, spec.predict))])
        asked = set(self.members(spec.predict_for or ("all",)))
        found: Known = {}
        for case in self.members(spec.cases):
            known = self.annotated[case] & covered if spec.fuse == "truth_first" else frozenset()
            found[case] = known | predicted if case in asked else known
        return found

    def split(self, model: str) -> Split:
        """Return what a model is expected to be trained and validated on, chosen as the training will choose."""
        if model not in self._splits:
            self._splits[model] = self._split(model)
        return self._splits[model]

    def _split(self, model: str) -> Split:
        spec, outputs = self.chain.models[model], self.outputs(model)
        members = self.members(spec.cases)
        if spec.trainer.kind == TRANSLATOR:
            return Split(frozenset(members), frozenset(), frozenset())
        known, patients = self.known(model), {case: row.patient for case, row in self.cases.items()}
        drawn = {case: names for case, names in self.drawn(model).items() if names}
        scorable = known if spec.validate_on == "labels" else drawn
        seen = self.seen_by(lineage(self.chain, model))
        held_out = held_out_cases(known, scorable, patients, seen, spec.validation_fraction, spec.validation_seed)
        away = {patients[case] for case in held_out}
        whole = needs_all_classes(spec.trainer)
        labeled = [c for c, names in known.items() if patients[c] not in away and (names == outputs or not whole)]
        if spec.trainer.kind in SEMI_SUPERVISED:
            train = [case for case in members if patients[case] not in away]
            return Split(frozenset(train), frozenset(labeled), frozenset(held_out))
        if whole:
            held_out = {case for case in held_out if scorable[case] == outputs}
        return Split(frozenset(labeled), frozenset(labeled), frozenset(held_out))

    def learned_from(self, models: Iterable[str]) -> set[str]:
        """Return the patients that any of ``models`` is expected to learn from."""
        return {self.cases[case].patient for case in flat(self.split(model).train for model in models)}

    def seen_by(self, models: Iterable[str]) -> set[str]:
        """Return the patients that any of ``models``, trained here or not, learned from, or may have."""
        asked = list(models)
        ours = [model for model in asked if model in self.chain.models]
        return self.learned_from(ours) | self.may_have_seen([model for model in asked if model not in ours])

    def may_have_seen(self, models: Iterable[str]) -> set[str]:
        """Return the patients that any of ``models``, those that are external, may have learned from."""
        seen = may_have_seen(self.chain, models, {row.dataset for row in self.cases.values()})
        return {row.patient for row in self.cases.values() if row.dataset in seen}

    def data_sets(self, model: str) -> set[str]:
        """Return the data sets, as the case table names them, that a model and those before it learn from."""
        found = ancestors(self.chain, model) | {model}
        groups = [spec.cases for name, spec in self.chain.models.items() if name in found]
        groups += [spec.cases for name, spec in self.chain.labels.items() if name in found]
        return {self.cases[case].dataset for case in flat(map(self.members, groups))}
