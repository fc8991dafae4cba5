"""Report section on what went in: cases used and set aside, what is annotated, grids; dictionaries for the template."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from labelloop.base.classes import ClassScheme
from labelloop.base.wording import number
from labelloop.cases.annotation import ABSENT, PRESENT, UNKNOWN
from labelloop.report.results import Results


def intake(results: Results, cases: pd.DataFrame, scheme: ClassScheme) -> dict[str, Any]:
    """Return cases used by data set, cases set aside by reason, groups, annotation states per class, grids.

    Each case is counted once: ``total`` is ``used`` (``train`` and ``test``) and the ``cases`` of each reason in
    ``aside``. A case with several faults is listed with all of them, and counted under the first.
    """
    annotation = results.table(results.paths.table("annotation"), "annotation")
    quarantine = results.table(results.paths.table("quarantine"), "quarantine")
    errors = quarantine[quarantine["severity"] == "error"]
    used = cases[~cases["case"].isin(errors["case"])]
    aside = _by_reason(errors)
    return {
        "total": len(used) + sum(entry["cases"] for entry in aside),
        "used": len(used),
        "train": int((used["role"] == "train").sum()),
        "test": int((used["role"] == "test").sum()),
        "aside": aside,
        "set_aside": errors["case"].nunique(),
        "warnings": _by_reason(quarantine.drop(errors.index)),
        "sources": _sources(used),
        "groups": _groups(results.table(results.paths.table("groups"), "groups"), cases),
        "states": counts(annotation, "state", (PRESENT, ABSENT, UNKNOWN), scheme),
        "grids": _grids(results.table(results.paths.table("geometry"), "geometry"), cases),
    }


def _by_reason(quarantine: pd.DataFrame) -> list[dict[str, Any]]:
    """Return reasons with the number of their cases, what to do (empty where it differs), and a row for each fault."""
    first = quarantine.groupby("case", sort=False)["code"].transform("first")
    entries = []
    for code, part in quarantine.groupby(first, sort=True):
        actions = part["action"].unique()
        same = actions[0] if len(actions) == 1 else ""
        entries.append({"code": code, "cases": part["case"].nunique(), "action": same, "rows": part.to_dict("records")})
    return sorted(entries, key=lambda entry: -entry["cases"])


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


def counts(table: pd.DataFrame, column: str, values: Sequence[str], scheme: ClassScheme) -> list[dict[str, Any]]:
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
