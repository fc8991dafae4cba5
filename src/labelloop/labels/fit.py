"""Fit thresholds of anatomy rules to fully labeled truth: ``labelloop check --fit``.

A fitted threshold is a tolerance bound: with a stated confidence, at least a stated share of people like those measured
lies inside (NIST/SEMATECH e-Handbook of Statistical Methods, 7.2.6.3: Howe's method for two sides, the noncentral t for
one). It is about people, so it rests on one scan of each: a second scan of a person is no second person. Volumes and
lengths are taken to be log-normal, intensities and positions normal. No bound is tighter than what was observed: the
labels it was fitted to pass, all scans of a person. Bounds stand in a YAML file beside the quantiles they come from.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import Field

from labelloop.base.classes import ClassScheme, Strict
from labelloop.base.documents import read_yaml, validated
from labelloop.base.errors import UserError
from labelloop.base.files import write_text
from labelloop.base.sequences import flat
from labelloop.cases.patients import one_a_patient
from labelloop.images.volume import Geometry
from labelloop.labels.check import NOT_APPLICABLE, check, load_rules
from labelloop.labels.facts import LabelFacts
from labelloop.labels.rules import Limit, Range, Rule

COVERAGE, CONFIDENCE = 0.99, 0.95
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LEAST_PATIENTS = 10
LEAST_NEAR_MM = 10.0
"""No fitted distance is below two slices of 5 mm: a rule may not depend on the voxels of those it was fitted to."""
SIDES = {"volume": "both", "intensity": "both", "near": "upper", "extent": "upper", "position": "lower"}
"""Kinds of rules that are fitted, and on which side their threshold lies.

What is measured at a surface has a long tail, which a normal distribution does not bound."""
HEAD = "# Thresholds fitted by `labelloop check --fit`; see docs/labels.md. `default` is what each stands in for.\n"
LOGARITHMIC = ("volume", "extent")

Threshold = float | tuple[float, float]
Values = dict[tuple[str, str], dict[str, float]]


class Fitted(Strict):
    """Threshold of one rule and class, the one it takes the place of, and the quantiles of what was measured."""

    threshold: Threshold
    default: Threshold
    unit: str
    cases: int = Field(description="cases that it was fitted to, of each patient one")
    quantiles: dict[float, float] = Field(description="of these cases")


class FittedRules(Strict):
    """The file that ``labelloop check --rules`` reads."""

    classes: str
    source: str = Field(description="the label maps that were measured")
    coverage: float
    confidence: float
    thresholds: dict[str, dict[str, Fitted]]


def measure(
    labels: np.ndarray,
    geometry: Geometry,
    scheme: ClassScheme,
    image: np.ndarray | None = None,
    modality: str = "CT",
    surgery: Sequence[str] = (),
) -> dict[tuple[str, str], float]:
    """Return what the rules that can be fitted measure on one fully labeled map, by rule and class.

    Volumes of organs that the field of view cuts say nothing and are left out; so are volumes and lengths of those in
    or beside which voxels are ignored.

    Args:
        labels: canonical uint8 class ids [z, y, x], on the canonical ``geometry`` (mm).
        image: canonical intensities of the same shape.
        surgery: classes that were operated on or removed: rules that are not applied to them measure nothing.
    """
    kinds = {rule.name: rule.kind for rule in load_rules(scheme) if may_be_fitted(rule)}
    facts = LabelFacts(labels, geometry, scheme)
    return {
        (row["rule"], row["class"]): row["value"]
        for row in check(labels, geometry, {}, scheme, image, modality, surgery)
        if row["rule"] in kinds
        and row["verdict"] != NOT_APPLICABLE
        and np.isfinite(row["value"])
        and not (kinds[row["rule"]] == "volume" and facts.cut(row["class"]))
        and not (kinds[row["rule"]] in LOGARITHMIC and facts.beside_ignored([row["class"]]))
    }


def may_be_fitted(rule: Rule) -> bool:
    """Say whether thresholds of a rule are fitted: rules that doubt keep theirs, or they would repeat what fails."""
    return rule.kind in SIDES and rule.verdict == "fail"


def fit(
    measured: Mapping[str, Mapping[tuple[str, str], float]],
    scheme: ClassScheme,
    source: str,
    patients: Mapping[str, str] | None = None,
) -> FittedRules:
    """Fit the thresholds of a scheme's rules to the measurements of several cases.

    A rule that fewer than :data:`LEAST_PATIENTS` patients speak to keeps its default and is not in the result.

    Args:
        measured: what :func:`measure` returns of each case.
        patients: patient of each case; one that it does not name is a patient of its own.

    Raises:
        UserError: when not a single threshold can be fitted.
    """
    values: Values = defaultdict(dict)
    for case, found in measured.items():
        for key, value in found.items():
            values[key][case] = value
    drawn = {key: sorted(one_a_patient(of_case, patients or {})) for key, of_case in values.items()}
    thresholds: dict[str, dict[str, Fitted]] = defaultdict(dict)
    for rule in load_rules(scheme):
        for name in rule.classes if may_be_fitted(rule) else ():
            key = rule.name, name
            if len(drawn.get(key, ())) >= LEAST_PATIENTS:
                chosen, every = [values[key][case] for case in drawn[key]], [*values[key].values()]
                thresholds[rule.name][name] = _fitted(_with_threshold(rule), name, np.array(chosen), every)
    if not thresholds:
        most = max(map(len, drawn.values()), default=0)
        raise UserError(
            f"{source}: at most {most} patients for a rule and class; {LEAST_PATIENTS} are needed to fit it"
        )
    return FittedRules(
        classes=scheme.name, source=source, coverage=COVERAGE, confidence=CONFIDENCE, thresholds=dict(thresholds)
    )


def _fitted(rule: Limit | Range, name: str, values: np.ndarray, every: Sequence[float]) -> Fitted:
    """Fit a threshold to ``values``, one a patient, and widen it to ``every`` value that was measured."""
    bounds = tolerance_bounds(values, SIDES[rule.kind], COVERAGE, CONFIDENCE, rule.kind in LOGARITHMIC)
    bounds = min(bounds[0], *every), max(bounds[1], *every)
    if rule.kind == "near":
        bounds = (bounds[0], max(bounds[1], LEAST_NEAR_MM))
    low, high = (round(float(bound), 3) for bound in (np.floor(bounds[0] * 100) / 100, np.ceil(bounds[1] * 100) / 100))
    default = rule.threshold[name] if isinstance(rule.threshold, dict) else rule.threshold
    return Fitted(
        threshold={"both": (low, high), "upper": high, "lower": low}[SIDES[rule.kind]],
        default=default,
        unit=rule.unit,
        cases=len(values),
        quantiles={q: round(float(v), 3) for q, v in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)},
    )


def tolerance_bounds(
    values: np.ndarray, side: str, coverage: float, confidence: float, logarithmic: bool
) -> tuple[float, float]:
    """Return normal (or log-normal) tolerance bounds, widened to the smallest and largest value.

    With ``confidence``, at least the share ``coverage`` of the population lies between them (``side`` "both"), below
    the higher ("upper") or above the lower ("lower"): mean -+ k standard deviations (NIST/SEMATECH e-Handbook 7.2.6.3).
    """
    from scipy import stats  # slow to import: every step that reads fitted thresholds would wait for it

    logarithmic = logarithmic and values.min() > 0
    scaled = np.log(values) if logarithmic else values
    number = len(values)
    if side == "both":
        chi = stats.chi2.ppf(1 - confidence, number - 1)
        k = stats.norm.ppf((1 + coverage) / 2) * np.sqrt((number - 1) * (1 + 1 / number) / chi)
    else:
        root = np.sqrt(number)
        k = stats.nct.ppf(confidence, number - 1, stats.norm.ppf(coverage) * root) / root
    mean, reach = scaled.mean(), k * scaled.std(ddof=1)
    low, high = (np.exp(bound) if logarithmic else bound for bound in (mean - reach, mean + reach))
    return float(min(low, values.min())), float(max(high, values.max()))


def is_fitted(path: Path) -> bool:
    """Say whether a file begins as :func:`write_fitted` begins it."""
    return path.read_bytes()[: len(HEAD)] == HEAD.encode()


def write_fitted(path: Path, fitted: FittedRules) -> None:
    """Write fitted thresholds and their quantiles as YAML."""
    write_text(path, HEAD + yaml.safe_dump(fitted.model_dump(mode="json"), sort_keys=False, width=120))


def load_fitted(path: Path | str) -> FittedRules:
    """Read a file of fitted thresholds. Raises UserError when it is missing or no such file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of fitted thresholds; `labelloop check --fit` writes one")
    return validated(FittedRules, read_yaml(path), path)


def with_fitted(scheme: ClassScheme, fitted: FittedRules) -> ClassScheme:
    """Return the scheme with fitted thresholds in the place of its own, and their source named in the rules.

    Raises:
        UserError: when the file was fitted for other classes, or names a rule or class that the scheme does not have.
    """
    if fitted.classes != scheme.name:
        raise UserError(f"thresholds fitted for the classes {fitted.classes!r}, used with {scheme.name!r}")
    rules, left = [], set(flat(product([rule], found) for rule, found in fitted.thresholds.items()))
    for raw, rule in zip(scheme.rules, load_rules(scheme), strict=True):
        found = fitted.thresholds.get(rule.name, {})
        used = [name for name in rule.classes if name in found]
        left -= {(rule.name, name) for name in used}
        rules.append(_with_thresholds(raw, _with_threshold(rule), found, fitted.source) if used else raw)
    if left:
        unused = ", ".join(f"{rule} of {name}" for rule, name in sorted(left))
        raise UserError(
            f"fitted thresholds without a rule: {unused}. If another version or scheme named the rules, fit anew "
            "(labelloop check --fit)"
        )
    return scheme.model_copy(update={"rules": tuple(rules)})


def _with_threshold(rule: Rule) -> Limit | Range:
    if not isinstance(rule, Limit | Range):
        raise UserError(f"rule {rule.name}: rules of the kind {rule.kind} have no threshold that can be fitted")
    return rule


def _with_thresholds(
    raw: Mapping[str, Any], rule: Limit | Range, found: Mapping[str, Fitted], source: str
) -> dict[str, Any]:
    default = rule.threshold if isinstance(rule.threshold, dict) else dict.fromkeys(rule.classes, rule.threshold)
    threshold = {name: found[name].threshold if name in found else default[name] for name in rule.classes}
    return {**raw, "threshold": threshold, "source": f"fitted to {source}; else {rule.source}"}
