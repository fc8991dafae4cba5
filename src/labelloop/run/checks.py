"""What of a chain cannot be done: with the cases of a table, or with the files that the recipe names.

What the survey and the selection leave of the cases can only be less than is expected here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import UserError, nearest
from labelloop.base.lookup import SUFFIXES
from labelloop.base.wording import count
from labelloop.cases.groups import data_set_problems
from labelloop.cases.table import Case
from labelloop.images.datasets import read_dataset
from labelloop.labels.settings import LEAST_PATIENTS, SelectSettings
from labelloop.networks.settings import TranslatorSettings
from labelloop.recipe import TRUTH, ModelSpec, Recipe, ancestors
from labelloop.recipe.channel_checks import listed
from labelloop.recipe.training_checks import exports_best
from labelloop.run import external
from labelloop.run.chain import needed, ordered
from labelloop.run.expected import Expected, Known, needs_all_classes
from labelloop.training.settings import (
    SLICE_CLASSIFIER,
    TRANSLATOR,
    CrossPseudoSettings,
    PartialSettings,
    settings_of,
)


def of_cases(expected: Expected) -> Iterator[str]:
    """Yield a line for each model and label set of a chain that will find nothing to learn from, or to be judged by."""
    recipe, used = expected.chain, needed(expected.chain)
    for model in (name for name in ordered(recipe) if name in used & recipe.models.keys()):
        spec, key = recipe.models[model], f"models.{model}"
        if spec.trainer.kind == TRANSLATOR:
            yield from _translator_problems(key, spec, expected)
        elif not expected.known(model):
            yield _nothing(key, model, expected)
        else:
            yield from _training_problems(key, model, expected)
    for name in (name for name in recipe.labels if name in used):
        yield from _label_set_problems(f"labels.{name}", name, expected)


def of_groups(cases: Sequence[Case], recipe: Recipe) -> list[str]:
    """Return a line for each data set that a group of a chain names and no case is of, whatever its role."""
    return data_set_problems(recipe.groups, {case.dataset for case in cases})


def of_channels(cases: Sequence[Case], recipe: Recipe) -> Iterator[str]:
    """Yield a line for each data set whose images have other channels than the models of a chain take."""
    used = needed(recipe)
    plans = [spec.plan for name, spec in recipe.models.items() if name in used]
    taken = recipe.plans[plans[0]].channels if plans else ()
    for name in sorted({case.dataset for case in cases} if plans else ()):
        found = read_dataset(name)
        if found.channels != taken:
            keys = " and ".join(f"plans.{plan}" for plan in dict.fromkeys(plans))
            write = f"channels: [{', '.join(found.channels)}]" if found.channels else "no `channels`"
            yield (
                f"{keys}: images of data set {found.name} have {listed(found.channels)}, and the models take "
                f"{listed(taken)}. Write {write} there, or leave its cases out"
            )


def _nothing(key: str, model: str, expected: Expected) -> str:
    spec, outputs = expected.chain.models[model], expected.outputs(model)
    members, total = expected.fit_for(model), len(expected.cases)
    groups = " or ".join(spec.cases)
    if not members and expected.members(spec.cases):
        return f"{key}.cases: a slice classifier learns from CT, and no train case in {groups} is CT"
    found = f"none of {total} train cases is in {groups}"
    if members and spec.labels == TRUTH:
        found = f"in none of the {len(members)} train cases in {groups} is one of its classes annotated"
    elif members:
        found = f"none of the {len(members)} train cases in {groups} gets a label of its classes in {spec.labels}"
    everywhere = frozenset().union(*set(expected.annotated.values()))
    missing = [name for name in expected.scheme.names if name in outputs and name not in everywhere]
    found += f"; in no case is annotated: {', '.join(missing)}" if missing else ""
    return (
        f"{key}.cases: {found}. Choose another group or fewer classes (as the recipe btcv does), or correct what the "
        "case table or the data set file says is annotated"
    )


def _training_problems(key: str, model: str, expected: Expected) -> Iterator[str]:
    """Yield a line for what a trainer asks of its cases and none of them has."""
    spec, known = expected.chain.models[model], expected.known(model)
    trainer = spec.trainer
    if needs_all_classes(trainer) and not expected.split(model).labeled:
        yield _no_whole_case(f"{key}.trainer", model, expected)
    elif exports_best(spec) and not expected.split(model).validation:
        yield (
            f"{key}.trainer.export: best needs a validation case, and none of {len(known)} can be one: an annotated "
            "case whose patient neither this model nor one that it starts from learns from. Set export: final, with a "
            "label set validate_on: labels, or validation_fraction above 0 for all of these models"
        )
    if isinstance(trainer, PartialSettings):
        yield from _partial_problems(f"{key}.trainer", trainer, model, expected, known)


def _no_whole_case(key: str, model: str, expected: Expected) -> str:
    """Say why a training that learns from cases of which all is known has none."""
    spec, known, outputs = expected.chain.models[model], expected.known(model), expected.outputs(model)
    place, instead = "kind", "kind: partial"
    if isinstance(spec.trainer, CrossPseudoSettings):
        place, instead = "partly_labeled", "partly_labeled: labeled"
    elif spec.trainer.kind == SLICE_CLASSIFIER:
        instead = "other cases"
    whole = sum(names == outputs for names in known.values())
    if whole:
        found = f"all of these, {count(whole, 'case')}, are of patients that are kept for validation"
        advice = f"Set validation_fraction: 0, label more, or take {instead}"
    else:
        nowhere = sorted(name for name in outputs if not any(name in names for names in known.values()))
        unknown = f"{', '.join(nowhere)} is unknown in all" if nowhere else "in each, one is unknown"
        found = f"of {count(len(known), 'case')} with labels {spec.labels} {unknown}"
        advice = f"Take {instead}, or fewer classes"
    return (
        f"{key}.{place}: {spec.trainer.kind} learns from cases in which all classes of the model are known, and "
        f"{found}. {advice}"
    )


def _partial_problems(
    key: str, trainer: PartialSettings, model: str, expected: Expected, known: Known
) -> Iterator[str]:
    spec = expected.chain.models[model]
    if trainer.batches:
        types = Counter(known.values())
        if spec.labels == TRUTH and max(types.values()) < trainer.batches.min_cases:
            yield (
                f"{key}.batches.min_cases: {trainer.batches.min_cases} cases annotated alike, and the "
                f"most frequent type has {max(types.values())}"
            )
        full = trainer.batches.full
        if full and known.keys().isdisjoint(expected.members(full)):
            yield f"{key}.batches.full: none of {count(len(known), 'case')} is in {' or '.join(full)}"
    if trainer.cutmix and trainer.cutmix.source == "truth":
        name = trainer.cutmix.name
        if not any(name in names for names in expected.drawn(model).values()):
            cases = f"{count(len(known), 'case')} with labels {spec.labels}"
            yield f"{key}.cutmix: {name} is annotated in none of its {cases}; write from: labels"


def _translator_problems(key: str, spec: ModelSpec, expected: Expected) -> Iterator[str]:
    members = expected.members(spec.cases)
    for modality in ("CT", "MR"):
        if not any(expected.cases[case].modality == modality for case in members):
            yield f"{key}.cases: a translator learns from CT and MR, and no train case in them is {modality}"
    reference = settings_of(spec.trainer, TranslatorSettings).reference
    if reference and reference not in members:
        found = f"no train case {reference!r} in {' or '.join(spec.cases)}{nearest(reference, members)}"
        yield f"{key}.trainer.reference: {found}"


def _label_set_problems(key: str, name: str, expected: Expected) -> Iterator[str]:
    spec = expected.chain.labels[name]
    if spec.transfer:
        sequences = {case.sequence for case in expected.cases.values() if case.modality == "MR"}
        if spec.transfer.source not in sequences:
            found = nearest(spec.transfer.source, sequences - {""})
            yield f"{key}.transfer.source: no train case is of the sequence {spec.transfer.source!r}{found}"
    if spec.select.target_dsc is not None and not spec.select.calibration:
        behind = [model for model in expected.chain.models if model in ancestors(expected.chain, name)]
        seen = expected.learned_from(behind) | expected.may_have_seen(external.behind(expected.chain, name))
        if all(expected.cases[case].patient in seen for case, known in expected.annotated.items() if known):
            trained = ", ".join(behind) or "models that are trained"
            yield (
                f"{key}.select.target_dsc: asks labeled patients that no model behind the label set learned from, and "
                f"there are none. Set validation_fraction above 0 for {trained}, leave patients out, or set "
                "`learned_from` of the external models"
            )
    if spec.select.asks_quality:
        patients = {expected.cases[case].patient for case, known in expected.annotated.items() if known}
        asking = "score" if spec.select.min_quality is None else "min_quality"
        if len(patients) < LEAST_PATIENTS:
            yield (
                f"{key}.select.{asking}: asks {LEAST_PATIENTS} labeled patients to learn the quality of labels from, "
                f"and there are {len(patients)}. Leave it out, or label more"
            )


def of_files(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each file that a recipe names and that is not what it is named for.

    Snakemake tells which are not there. What reads them is slow to import, so it is imported for those that are named.
    """
    used = needed(recipe)
    checks: dict[str, Callable[[], object]] = {}
    if recipe.classes.endswith(SUFFIXES):  # our own are tested
        checks["classes"] = partial(_read_rules, recipe.scheme)
    for name, spec in recipe.labels.items():
        if name in used and spec.thresholds and Path(spec.thresholds).is_file():
            checks[f"labels.{name}.thresholds"] = partial(_read_rules, recipe.scheme, spec.thresholds)
        if name in used and spec.select.calibration and Path(spec.select.calibration).is_file():
            checks[f"labels.{name}.select.calibration"] = partial(_read_calibration, spec.select)
    for key, check in checks.items():
        try:
            check()
        except UserError as error:
            yield from error.lines(key)


def _read_rules(scheme: ClassScheme, thresholds: str | None = None) -> None:
    if thresholds is None:
        from labelloop.labels.check import load_rules

        load_rules(scheme)
    else:
        from labelloop.labels.fit import load_fitted, with_fitted

        with_fitted(scheme, load_fitted(thresholds))


def _read_calibration(settings: SelectSettings) -> None:
    from labelloop.base.tables import read_table
    from labelloop.labels.select import check_calibration

    check_calibration(read_table(settings.calibration or "", "calibration"), settings)
