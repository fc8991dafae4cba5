"""Select which pseudo-labels to trust, case by case and class by class, with the reason in words.

Truth is never judged here, nor what reviewers say. The published schemes are settings:

- Zhou: ``rank: unlabeled, keep_least_uncertain: {all: 1000, tumor: 100}, if_refused: {tumor: background}``: 1000
  unlabeled cases, of which 100 with tumor labels and 900 with the tumor set to background.
- He: ``verdicts: [volume, one_component, joined], if_refused: drop``: a case is accepted as a whole or dropped.
- FLARE22: ``drop_most_uncertain: 76``.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import pandas as pd

from labelloop.base.errors import UserError
from labelloop.base.tables import TABLES, by_label
from labelloop.cases.annotation import ABSENT, PRESENT, UNKNOWN, annotated, from_table
from labelloop.labels.agree import ALL
from labelloop.labels.settings import SelectSettings

KEYS = ["case", "class"]


class Reason(NamedTuple):
    """Why a label is as it is: the criterion as data (column ``criterion`` of the table), and in words."""

    criterion: str
    said: str


class Decision(NamedTuple):
    """What becomes of a class in a case."""

    state: str
    decision: str
    reasons: tuple[Reason, ...]

    def row(self) -> tuple[str, str, str, str]:
        """Return state, decision, criteria and reasons as the table holds them.

        No reason holds the semicolon that parts it from the next.
        """
        criteria = ";".join(reason.criterion for reason in self.reasons)
        return self.state, self.decision, criteria, "; ".join(r.said.replace(";", ",") for r in self.reasons)


def _decision(state: str, decision: str, criterion: str, said: str) -> Decision:
    return Decision(state, decision, (Reason(criterion, said),))


@dataclass
class _Judgment:
    """Reasons that speak against pseudo-labels: per (case, class), and per case."""

    refused: dict[tuple[str, str], list[Reason]] = field(default_factory=lambda: defaultdict(list))
    refused_case: dict[str, str] = field(default_factory=dict)


def select(
    annotation: pd.DataFrame,
    provenance: pd.DataFrame,
    verdicts: pd.DataFrame,
    disagreement: pd.DataFrame,
    settings: SelectSettings,
    classes: Sequence[str],
    calibration: pd.DataFrame | None = None,
    reviewed: pd.DataFrame | None = None,
    quality: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the "selected" table: one row per case of ``annotation`` and class, with state, decision and reason.

    - What a reviewer called right, edited or absent is as he says (``reviewer``), whoever labeled it.
    - What a reviewer called wrong, or two reviewers disagree about, is ``demoted`` and unknown, truth too.
    - An annotated class keeps its state (``truth``).
    - A class no model predicted is ``unknown``.
    - A pseudo-label is ``accepted`` (present if the fused and cleaned map has it, else absent) or ``demoted``.
    - A case refused as a whole, or left without a single known class, is ``dropped``: all its classes are unknown.
      Refused by ranking (``all``, ``drop_most_uncertain``), a case that has truth keeps the truth and only loses its
      pseudo-labels.

    Args:
        annotation, provenance, verdicts, disagreement: tables of those kinds (``labelloop.base.tables``).
        classes: the classes that training knows.
        reviewed: what reviewers say; rows that say nothing, or cannot be used, have no state.
        calibration: thresholds, made for ``settings.target_dsc`` and ``confidence``; required with the former.
        quality: predicted DSC, for ``settings.min_quality`` and ``score``.

    Raises:
        UserError: when the calibration table was made for another target or confidence.
    """
    given = from_table(annotation)
    said = {} if reviewed is None else by_label(reviewed[reviewed["state"] != ""])
    states = {case: _with_reviewed(case, known, said) for case, known in given.items()}
    sources, volumes = _provenance(provenance)
    unknown = [(case, name) for case, name in product(states, classes) if states[case].get(name, UNKNOWN) == UNKNOWN]
    pseudo = {pair for pair in unknown if sources.get(pair, "none") != "none" and pair not in said}
    cases = {case for case, _ in pseudo if settings.rank == "all" or not annotated(given[case])}
    found = {key for key in pseudo if volumes.get(key, 0.0) > 0}
    judgment = _judge(pseudo, found, cases, verdicts, disagreement, settings, calibration, by_label(quality))
    rows = []
    for case, known in states.items():
        decided = {
            name: _reviewer_decides(said[case, name], settings.demotion(name))
            if (case, name) in said
            else _decide(case, name, known, pseudo, volumes, judgment, settings)
            for name in classes
        }
        rows += [(case, name, *decision.row()) for name, decision in _whole_case(decided).items()]
    return pd.DataFrame(rows, columns=list(TABLES["selected"]))


def with_acceptance(
    reviewed: pd.DataFrame,
    provenance: pd.DataFrame,
    verdicts: pd.DataFrame,
    quality: pd.DataFrame,
    decide: Callable[[pd.DataFrame, pd.DataFrame, pd.DataFrame], pd.DataFrame],
) -> pd.DataFrame:
    """Return ``reviewed`` with its column ``accepted``: what selection would do if reviewers had said nothing.

    A label that was drawn at random and judged passed what is asked of voxels when it was drawn, and now the map may
    have the reviewer's: rules of anatomy and predicted DSC are not held against it again. All else is.

    Args:
        decide: returns the "selected" table without reviewers (:func:`select`), given the three tables before it.
    """
    if reviewed.empty:
        return reviewed
    drawn = (reviewed["asked"] == "random") & (reviewed["same_label"] == "True") & (reviewed["problem"] == "")
    judged = pd.MultiIndex.from_frame(reviewed.loc[drawn, KEYS])
    redrawn = pd.MultiIndex.from_frame(reviewed.loc[drawn & reviewed["decision"].isin(["edited", "absent"]), KEYS])
    here = pd.MultiIndex.from_frame(provenance[KEYS]).isin(redrawn)
    good = reviewed.loc[drawn, KEYS].assign(dsc=float("inf"), reason="")
    table = decide(
        provenance.assign(volume_ml=provenance["volume_ml"].mask(here, float("inf"))),
        verdicts[~pd.MultiIndex.from_frame(verdicts[KEYS]).isin(judged)],
        pd.concat([quality, good]),
    )
    accepted = pd.MultiIndex.from_frame(table.loc[table["decision"] == "accepted", KEYS])
    found = pd.MultiIndex.from_frame(reviewed[KEYS]).isin(accepted)
    return reviewed.assign(accepted=found.astype(str))


def reviewed_states(reviewed: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return ``{case: {class: state}}`` of what follows from what reviewers say, by a table of the kind "reviewed"."""
    return from_table(reviewed[reviewed["state"] != ""])


def _with_reviewed(case: str, known: Mapping[str, str], said: Mapping[tuple[str, str], Mapping]) -> dict[str, str]:
    return {name: said[case, name]["state"] if (case, name) in said else state for name, state in known.items()}


def _reviewer_decides(row: Mapping[Hashable, Any], demotion: str) -> Decision:
    """Return what becomes of a class that reviewers judged. What is wrong is not learned, as background neither."""
    if row["state"] != UNKNOWN:
        return _decision(row["state"], "reviewer", "", row["reason"])
    criterion = "reviewers_differ" if row["decision"] == "differ" else "reviewer"
    return _decision(UNKNOWN, "dropped" if demotion == "drop" else "demoted", criterion, row["reason"])


def _provenance(table: pd.DataFrame) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], float]]:
    """Return who labeled each (case, class) when it was fused, and its volume in ml after the last step."""
    return _column(table[table["step"] == "fuse"], "source"), _column(table, "volume_ml")


def _column(table: pd.DataFrame, name: str) -> dict[tuple[str, str], Any]:
    """Return the values of a column by case and class, of several the last."""
    return dict(zip(zip(table["case"], table["class"], strict=True), table[name], strict=True))


def _judge(
    pseudo: set[tuple[str, str]],
    found: set[tuple[str, str]],
    ranked: set[str],
    verdicts: pd.DataFrame,
    disagreement: pd.DataFrame,
    settings: SelectSettings,
    calibration: pd.DataFrame | None,
    predicted: Mapping[tuple[str, str], Mapping[Hashable, Any]],
) -> _Judgment:
    judgment = _Judgment()
    _judge_verdicts(judgment, pseudo, verdicts, settings)
    scores = {column: _column(disagreement, column) for column in ("pairwise_dice", "uncertainty")}
    cases = sorted({case for case, _ in pseudo})
    for criterion, column, limits, sign, word in (
        ("agreement", "pairwise_dice", settings.min_pairwise_dice, 1, "below"),
        ("uncertainty", "uncertainty", settings.max_uncertainty, -1, "above"),
    ):
        for case, name in sorted(pseudo) + [(case, ALL) for case in cases if isinstance(limits, dict)]:
            limit = limits.get(name) if isinstance(limits, dict) else limits
            value = scores[column].get((case, name), float("nan"))
            if limit is not None and not sign * value >= sign * limit:  # a missing score (NaN) is not good enough
                said = f"no {column} to judge by" if pd.isna(value) else f"{column} {value:.4g} {word} {limit:g}"
                _refuse(judgment, case, name, criterion, said)
    if settings.target_dsc is not None:
        quality = {key: row["dsc"] for key, row in predicted.items()}
        score = quality if settings.score == "quality" else scores["pairwise_dice"]
        _judge_calibrated(judgment, pseudo, score, settings, calibration)
    _judge_quality(judgment, pseudo, settings, predicted)
    _judge_ranks(judgment, found, ranked, scores["uncertainty"], settings)
    return judgment


def _judge_calibrated(
    judgment: _Judgment,
    pseudo: set[tuple[str, str]],
    scores: Mapping[tuple[str, str], float],
    settings: SelectSettings,
    calibration: pd.DataFrame | None,
) -> None:
    """Refuse what is not above its class's calibrated threshold, and classes without one."""
    if calibration is None:
        raise UserError("select: target_dsc is given, but no calibration table")
    check_calibration(calibration, settings)
    limits = calibration.set_index("class")[["threshold", "reason"]].to_dict("index")
    word = "predicted DSC" if settings.score == "quality" else "pairwise_dice"
    for case, name in sorted(pseudo):
        limit = limits.get(name, {"threshold": float("nan"), "reason": "the class is not in the calibration table"})
        value, least = scores.get((case, name), float("nan")), limit["threshold"]
        if pd.isna(least):
            said = f"DSC {settings.target_dsc:g} cannot be promised: {limit['reason']}"
            _refuse(judgment, case, name, "calibration", said)
        elif not value > least:
            said = f"{word} {value:.4g} not above {least:.4g}, calibrated for DSC {settings.target_dsc:g}"
            said = f"no {word} to judge by" if pd.isna(value) else said
            _refuse(judgment, case, name, settings.score, said)


def _judge_quality(
    judgment: _Judgment,
    pseudo: set[tuple[str, str]],
    settings: SelectSettings,
    predicted: Mapping[tuple[str, str], Mapping[Hashable, Any]],
) -> None:
    """Refuse what is predicted to have a smaller DSC than is asked for, and what nothing is predicted of."""
    limits = settings.min_quality
    for case, name in sorted(pseudo):
        limit = limits.get(name) if isinstance(limits, dict) else limits
        row = predicted.get((case, name), {"dsc": float("nan"), "reason": "no DSC is predicted"})
        if limit and not row["dsc"] >= limit:  # 0 refuses nothing
            _refuse(judgment, case, name, "quality", f"{row['reason']}, where {limit:g} is asked for")


def check_calibration(calibration: pd.DataFrame, settings: SelectSettings) -> None:
    """Raise UserError unless a calibration table was made for what is asked of labels."""
    asked = (settings.target_dsc, settings.confidence)
    confidences = [None if pd.isna(value) else float(value) for value in calibration["confidence"]]
    made = set(zip(calibration["target_dsc"].astype(float), confidences, strict=True))
    if made != {asked}:
        source = settings.calibration or "calibration"
        raise UserError(f"{source}: made for (target_dsc, confidence) {sorted(made, key=str)}, not for {asked}")


def _judge_verdicts(judgment: _Judgment, pseudo: set, verdicts: pd.DataFrame, settings: SelectSettings) -> None:
    failed = verdicts[verdicts["verdict"] == "fail"]
    if settings.verdicts != "all":
        failed = failed[failed["rule"].isin(settings.verdicts)]
    for case, name, rule, reason in failed[["case", "class", "rule", "reason"]].itertuples(index=False):
        if (case, name) in pseudo:
            judgment.refused[case, name].append(Reason(rule, f"{rule}: {reason}"))


def _judge_ranks(
    judgment: _Judgment, found: set, cases: set[str], uncertainty: Mapping, settings: SelectSettings
) -> None:
    """Rank the whole ``cases`` first, then each class among those where it was found and is still accepted.

    Models that agree on finding nothing are not uncertain at all: such cases would take the places of those with
    tumors.
    """
    ranked = sorted(cases, key=lambda case: _rank(uncertainty, case, ALL))
    for place, case in enumerate(ranked, start=1):
        if place > len(ranked) - settings.drop_most_uncertain:
            judgment.refused_case.setdefault(
                case, f"among the {settings.drop_most_uncertain} most uncertain cases (rank {place} of {len(ranked)})"
            )
    keep = {} if settings.keep_least_uncertain is None else settings.keep_least_uncertain
    if not isinstance(keep, dict):
        keep = {name: keep for _, name in found}
    for name in sorted(keep, key=lambda n: n != ALL):
        left = [case for case in sorted(cases) if case not in judgment.refused_case]
        if name != ALL:
            left = [c for c in left if (c, name) in found and not judgment.refused.get((c, name))]
        left.sort(key=lambda case: _rank(uncertainty, case, name))
        for place, case in enumerate(left[keep[name] :], start=keep[name] + 1):
            said = f"not among the {keep[name]} least uncertain (rank {place} of {len(left)})"
            _refuse(judgment, case, name, "rank", said)


def _rank(uncertainty: Mapping, case: str, name: str) -> tuple[float, str]:
    value = uncertainty.get((case, name), float("nan"))
    return (float("inf") if pd.isna(value) else float(value), case)


def _refuse(judgment: _Judgment, case: str, name: str, criterion: str, said: str) -> None:
    if name == ALL:
        judgment.refused_case.setdefault(case, said)
    else:
        judgment.refused[case, name].append(Reason(criterion, said))


def _decide(
    case: str,
    name: str,
    known: Mapping[str, str],
    pseudo: set[tuple[str, str]],
    volumes: Mapping[tuple[str, str], float],
    judgment: _Judgment,
    settings: SelectSettings,
) -> Decision:
    state = known.get(name, UNKNOWN)
    if state != UNKNOWN:
        return _decision(state, "truth", "", f"annotated {state}")
    if (case, name) not in pseudo:
        return _decision(UNKNOWN, "unknown", "not_predicted", "no model predicted it")
    if case in judgment.refused_case:
        return _decision(UNKNOWN, "demoted", "whole_case", f"case refused: {judgment.refused_case[case]}")
    reasons = tuple(judgment.refused.get((case, name), ()))
    if reasons:
        demotion = settings.demotion(name)
        if demotion == "drop":
            return Decision(UNKNOWN, "dropped", reasons)
        return Decision(ABSENT if demotion == "background" else UNKNOWN, "demoted", reasons)
    if volumes.get((case, name), 0.0) > 0:
        return _decision(PRESENT, "accepted", "", "no criterion speaks against it")
    if name in settings.absent_if_not_found:
        return _decision(ABSENT, "accepted", "", "no model found it")
    return _decision(UNKNOWN, "unknown", "not_found", "no model found it, which does not prove that it is absent")


def _whole_case(decided: dict[str, Decision]) -> dict[str, Decision]:
    """Drop the case when a class demands it, or when nothing is known in it."""
    culprits = [f"{name}: {one.reasons[0].said}" for name, one in decided.items() if one.decision == "dropped"]
    if culprits:
        said = f"case dropped because of {culprits[0]}"
        return dict.fromkeys(decided, _decision(UNKNOWN, "dropped", "whole_case", said))
    if all(one.state == UNKNOWN for one in decided.values()):
        nothing = Reason("nothing_known", "no class is known")
        return {name: Decision(UNKNOWN, "dropped", (nothing, *one.reasons)) for name, one in decided.items()}
    return decided
