"""Report section on a label set: which labels were trusted, and why others were not."""

from collections import Counter, defaultdict
from typing import Any

import pandas as pd

from labelloop.base.classes import ClassScheme
from labelloop.labels.settings import PSEUDO
from labelloop.report.calibration import calibration_of
from labelloop.report.intake import counts
from labelloop.report.results import Results
from labelloop.review.audit import error_rate

DECISIONS = ("reviewer", "truth", "accepted", "demoted", "dropped", "unknown")
REASONS_SHOWN = 8


def label_set(results: Results, name: str, scheme: ClassScheme) -> dict[str, Any]:
    """Return acceptance per class, frequent reasons, failures per rule, calibration and review queue of a label set."""
    kinds = ("selected", "verdicts", "provenance", "held_out", "calibration", "reviewed")
    tables = (results.table(results.paths.label_table(kind, name), kind) for kind in kinds)
    selected, verdicts, provenance, held_out, calibration, reviewed = tables
    decisions = {d: int((selected["decision"] == d).sum()) for d in DECISIONS}
    judged = decisions["accepted"] + decisions["demoted"] + decisions["dropped"]
    shown = [d for d in DECISIONS if d != "reviewer" or decisions[d]]
    why, counted = _why(selected), counts(selected, "decision", shown, scheme)
    return {
        "name": name,
        "cases": selected["case"].nunique(),
        "decisions": decisions,
        "shown": shown,
        "judged": judged,
        "accepted_share": decisions["accepted"] / judged if judged else None,
        "classes": [row | {"why": why.get(row["name"], {})} for row in counted],
        "reasons": _reasons(selected),
        "rules": _rules(verdicts),
        "sources": _label_sources(provenance),
        "cleaning": _cleaning(provenance),
        "quality": _quality(results.table(results.paths.label_table("quality", name), "quality"), scheme),
        "calibration": calibration_of(held_out, calibration, scheme),
        "queue": results.table(results.paths.review(name), "review").to_dict("records"),
        "reviewed": _reviewed(reviewed),
        "error_rate": error_rate(selected, reviewed, name),
    }


def _why(selected: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return per class which criteria speak against labels, and against how many; against a label several may."""
    found: dict[str, Counter] = defaultdict(Counter)
    for name, criteria in zip(selected["class"], selected["criterion"], strict=True):
        found[name].update({criterion for criterion in criteria.split(";") if criterion})
    return {name: dict(sorted(found[name].items(), key=lambda item: (-item[1], item[0]))) for name in found}


def _reasons(selected: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the most frequent reasons of mistrust, by criteria, each with the words of the first label."""
    doubted = selected[selected["decision"].isin(["demoted", "dropped"])]
    rows = []
    for (decision, _), part in doubted.groupby(["decision", "criterion"], sort=True):
        classes = part["class"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
        example = part["reason"].iloc[0]
        rows.append({"decision": decision, "reason": example, "count": len(part), "classes": classes.to_dict()})
    return sorted(rows, key=lambda row: -row["count"])[:REASONS_SHOWN]


def _reviewed(reviewed: pd.DataFrame) -> dict[str, Any]:
    """Return how many labels reviewers called what, and what of it cannot be used."""
    counted = reviewed.loc[reviewed["problem"] == "", "decision"].value_counts(sort=False).sort_index()
    problems = reviewed[reviewed["problem"] != ""]
    return {
        "decisions": {str(decision): int(number) for decision, number in counted.items()},
        "problems": problems[["case", "class", "problem"]].to_dict("records"),
    }


def _rules(verdicts: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for rule, part in verdicts.groupby("rule", sort=True):
        broken = part[part["verdict"].isin(["fail", "doubt"])]
        classes = broken["class"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
        rows.append(
            {
                "rule": rule,
                "tested": int((part["verdict"] != "not_applicable").sum()),
                "failed": int((part["verdict"] == "fail").sum()),
                "doubted": int((part["verdict"] == "doubt").sum()),
                "not_applicable": int((part["verdict"] == "not_applicable").sum()),
                "classes": classes.to_dict(),
            }
        )
    return sorted(rows, key=lambda row: (-row["failed"], -row["doubted"]))


def _quality(quality: pd.DataFrame, scheme: ClassScheme) -> list[dict[str, Any]]:
    """Return a row a class: how many labels a DSC is predicted for, its quartiles, and the median interval's ends."""
    rows, judged = [], quality[quality["map"] == PSEUDO]
    for info in scheme.classes:
        part = judged[judged["class"] == info.name]
        if len(part):
            quartiles = part["dsc"].quantile([0.25, 0.5, 0.75]).tolist()
            row = {"name": info.name, "color": info.color, "labels": len(part), "quartiles": quartiles}
            rows.append(row | {"low": part["low"].median(), "high": part["high"].median()})
    return rows


def _label_sources(provenance: pd.DataFrame) -> dict[str, int]:
    """Return how many case-class labels came from each source."""
    counts = provenance.loc[provenance["step"] == "fuse", "source"].value_counts(sort=False).sort_index()
    return {str(source): int(number) for source, number in counts.items()}


def _cleaning(provenance: pd.DataFrame) -> list[dict[str, Any]]:
    cleaned = provenance[~provenance["step"].isin(["fuse", "overlap"]) & (provenance["voxels_changed"] > 0)]
    return [
        {"step": step, "labels": len(part), "voxels": int(part["voxels_changed"].sum())}
        for step, part in cleaned.groupby("step", sort=True)
    ]
