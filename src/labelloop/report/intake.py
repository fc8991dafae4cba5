"""Report sections on what went in and which labels were trusted: plain dictionaries for the template."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from labelloop.annotation import ABSENT, PRESENT, UNKNOWN
from labelloop.classes import ClassScheme
from labelloop.report.calibration import calibration_of
from labelloop.report.results import Results
from labelloop.wording import number

DECISIONS = ("truth", "accepted", "demoted", "dropped", "unknown")
REASONS_SHOWN = 8
CRITERIA = {
    "pairwise_dice": "agreement",
    "no pairwise_dice": "agreement",
    "uncertainty": "uncertainty",
    "no uncertainty": "uncertainty",
    "DSC ": "not calibrated",
    "not among": "rank",
    "case ": "whole case",
    "no class": "whole case",
}
"""How a reason of selection begins, and what it is called in a word; other reasons begin with the name of a rule."""


def intake(results: Results, cases: pd.DataFrame, scheme: ClassScheme) -> dict[str, Any]:
    """Return cases by data set, groups, annotation states per class, grids, and what was set aside."""
    annotation = results.table("annotation.csv", "annotation")
    quarantine = results.table("quarantine.csv", "quarantine")
    errors = quarantine["severity"] == "error"
    return {
        "total": len(set(cases["case"]) | set(quarantine.loc[errors, "case"])),
        "set_aside": quarantine[errors].to_dict("records"),
        "set_aside_count": quarantine.loc[errors, "case"].nunique(),
        "warnings": quarantine[~errors].to_dict("records"),
        "codes": quarantine.loc[errors, "code"].value_counts(sort=False).sort_index().to_dict(),
        "sources": _sources(cases),
        "groups": _groups(results.table("groups.csv", "groups"), cases),
        "states": _counts(annotation, "state", (PRESENT, ABSENT, UNKNOWN), scheme),
        "grids": _grids(results.table("geometry.csv", "geometry"), cases),
    }


def _sources(cases: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for (dataset, modality), part in cases.groupby(["dataset", "modality"], sort=True):
        roles = part["role"].value_counts()
        rows.append(
            {
                "dataset": dataset or "(none named)",
                "modality": modality,
                "cases": len(part),
                "train": int(roles.get("train", 0)),
                "test": int(roles.get("test", 0)),
                "labels": int((part["label"] != "").sum()),
                "patients": part["patient"].nunique(),
            }
        )
    return rows


def _groups(groups: pd.DataFrame, cases: pd.DataFrame) -> list[dict[str, Any]]:
    known = groups.merge(cases[["case", "modality", "role"]], on="case", how="left")
    rows = []
    for name, part in known.groupby("group", sort=True):
        rows.append(
            {
                "group": name,
                "cases": part["case"].nunique(),
                "train": int((part["role"] == "train").sum()),
                "test": int((part["role"] == "test").sum()),
                "ct": int((part["modality"] == "CT").sum()),
                "mr": int((part["modality"] == "MR").sum()),
            }
        )
    return rows


def _counts(table: pd.DataFrame, column: str, values: Sequence[str], scheme: ClassScheme) -> list[dict[str, Any]]:
    """Return per class how often each value occurs."""
    rows = []
    for info in scheme.classes:
        part = table.loc[table["class"] == info.name, column]
        counts = {value: int((part == value).sum()) for value in values}
        if len(part):
            rows.append({"name": info.name, "color": info.color, "total": len(part), "counts": counts})
    return rows


def _grids(geometry: pd.DataFrame, cases: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the spread of voxel sizes (mm), extents (mm) and intensities per modality."""
    known = geometry.merge(cases[["case", "modality"]], on="case", how="left")
    rows = []
    for modality, part in known.groupby("modality", sort=True):
        row = {"modality": modality, "cases": len(part), "orientations": ", ".join(sorted(set(part["orientation"])))}
        for axis in "xyz":
            row[f"spacing_{axis}"] = _spread(part[f"spacing_{axis}_mm"])
            row[f"extent_{axis}"] = _spread(part[f"spacing_{axis}_mm"] * part[f"size_{axis}"], digits=3)
        rows.append(row)
    return rows


def _spread(values: pd.Series, digits: int = 3) -> str:
    low, middle, high = (number(v, digits) for v in (values.min(), values.median(), values.max()))
    return low if low == high else f"{low} – {middle} – {high}"


def label_set(results: Results, name: str, scheme: ClassScheme) -> dict[str, Any]:
    """Return acceptance per class, frequent reasons, failures per rule, calibration and review queue of a label set."""
    folder = f"labels/{name}"
    selected = results.table(f"{folder}/selected.csv", "selected")
    verdicts = results.table(f"{folder}/verdicts.csv", "verdicts")
    provenance = results.table(f"{folder}/provenance.csv", "provenance")
    held_out = results.table(f"{folder}/held_out.csv", "held_out")
    calibration = results.table(f"{folder}/calibration.csv", "calibration")
    decisions = {d: int((selected["decision"] == d).sum()) for d in DECISIONS}
    judged = decisions["accepted"] + decisions["demoted"] + decisions["dropped"]
    why, counted = _why(selected, set(verdicts["rule"])), _counts(selected, "decision", DECISIONS, scheme)
    return {
        "name": name,
        "cases": selected["case"].nunique(),
        "decisions": decisions,
        "judged": judged,
        "accepted_share": decisions["accepted"] / judged if judged else None,
        "classes": [row | {"why": why.get(row["name"], {})} for row in counted],
        "reasons": _reasons(selected),
        "rules": _rules(verdicts),
        "sources": _label_sources(provenance),
        "cleaning": _cleaning(provenance),
        "calibration": calibration_of(held_out, calibration, scheme),
        "queue": results.table(f"review/{name}.csv", "review").to_dict("records"),
    }


def _why(selected: pd.DataFrame, rules: set[str]) -> dict[str, dict[str, int]]:
    """Return per class by which criteria labels were refused, and how many by each; a label may fail several."""
    doubted = selected[selected["decision"].isin(["demoted", "dropped"])]
    counts: dict[str, Counter] = defaultdict(Counter)
    for name, reason in zip(doubted["class"], doubted["reason"], strict=True):
        counts[name].update({_criterion(part, rules) for part in reason.split("; ")} - {""})
    return {name: dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))) for name, found in counts.items()}


def _criterion(part: str, rules: set[str]) -> str:
    """Return what a part of a reason is called; empty for the rest of a reason that holds a semicolon itself."""
    head = part.partition(":")[0]
    return head if head in rules else next((word for start, word in CRITERIA.items() if part.startswith(start)), "")


def _reasons(selected: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the most frequent reasons of mistrust; reasons that differ in their numbers only are counted together."""
    doubted = selected[selected["decision"].isin(["demoted", "dropped"])]
    kind = doubted["reason"].map(lambda text: re.sub(r"\d+(\.\d+)?", "…", text))
    rows = []
    for (decision, _), part in doubted.groupby([doubted["decision"], kind], sort=True):
        classes = part["class"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
        example = part["reason"].iloc[0]
        rows.append({"decision": decision, "reason": example, "count": len(part), "classes": classes.to_dict()})
    return sorted(rows, key=lambda row: -row["count"])[:REASONS_SHOWN]


def _rules(verdicts: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for rule, part in verdicts.groupby("rule", sort=True):
        failed = part[part["verdict"] == "fail"]
        classes = failed["class"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
        rows.append(
            {
                "rule": rule,
                "tested": int(part["verdict"].isin(["pass", "fail"]).sum()),
                "failed": len(failed),
                "not_applicable": int((part["verdict"] == "not_applicable").sum()),
                "classes": classes.to_dict(),
            }
        )
    return sorted(rows, key=lambda row: -row["failed"])


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
