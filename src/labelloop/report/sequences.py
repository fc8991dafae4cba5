"""Report sections on MR sequences: scores by sequence, labels that were carried, a patient's sequences side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import CaseError, UserError
from labelloop.base.sequences import flat
from labelloop.images.pictures import contact_sheet
from labelloop.metrics.compare import organs_of
from labelloop.report.gallery import Atlas, data_uri
from labelloop.report.results import Results
from labelloop.report.scores import Scored

TABLE = "transfers"


def about_cases(cases: pd.DataFrame) -> dict[str, str]:
    """Return sequence and patient in words, for each MR case."""
    mr = cases[cases["modality"] == "MR"]
    return {
        case: ", ".join(filter(None, (sequence.replace("_", " "), f"patient {patient}")))
        for case, sequence, patient in zip(mr["case"], mr["sequence"], mr["patient"], strict=True)
    }


def scores_by_sequence(scored: Sequence[Scored], cases: pd.DataFrame, scheme: ClassScheme) -> list[dict] | None:
    """Return the mean organ DSC of each evaluated model by modality and sequence; None where no MR was scored.

    The mean is over cases first and over classes second, as everywhere on the page.
    """
    organs = organs_of(scheme)
    tested = set(flat(one.per_case(organs).index for one in scored))
    rows = zip(cases["case"], cases["modality"], cases["sequence"], strict=True)
    kinds = {case: _kind(modality, sequence) for case, modality, sequence in rows if case in tested}
    names = sorted({*kinds.values()}, key=lambda kind: (kind == "CT", kind))
    if not any(name.startswith("MR") for name in names):
        return None
    whole = [("all MR", [c for c, kind in kinds.items() if kind != "CT"])]
    parts = [(name, [c for c, kind in kinds.items() if kind == name]) for name in names]
    return [
        {"name": name, "n": len(part), "dsc": [one.some(part).mean(organs, "dsc") for one in scored]}
        for name, part in [*whole, *parts]
    ]


def _kind(modality: str, sequence: str) -> str:
    return f"MR {sequence.replace('_', ' ')}".strip() if modality == "MR" else modality


def transfers(results: Results, atlas: Atlas, name: str) -> dict[str, Any] | None:
    """Return how labels fared that were carried from one sequence to others; None where none were."""
    path = results.paths.label_table(TABLE, name)
    if path not in results:
        return None
    table = results.table(path, TABLE)
    if table.empty:
        return None
    rows = []
    for sequence, part in table.groupby("sequence", sort=True):
        accepted = part["decision"] == "accepted"
        refused = part[~accepted].groupby("criterion", sort=True)["reason"]
        why = dict(zip(refused.first(), refused.size().tolist(), strict=True))
        measured = ("right_kidney_dsc", "left_kidney_dsc", "translation_mm", "rotation_degrees")
        row = {"sequence": sequence, "cases": len(part), "accepted": int(accepted.sum()), "why": why}
        rows.append(row | {column: float(part[column].astype(float).median()) for column in measured})
    return {"rows": rows, "sheet": _sheet(atlas, table, results.paths.labels(name))}


def _sheet(atlas: Atlas, table: pd.DataFrame, folder: str) -> dict[str, str] | None:
    """Return the sequences of one patient with their labels, those refused without: the patient with most of both."""
    sources = table[table["source"] != ""].groupby("source")["decision"].agg(["nunique", "size"])
    if sources.empty:
        return None
    source = sources.sort_values(["nunique", "size"], ascending=False, kind="stable").index[0]
    part = table[table["source"] == source].sort_values("sequence")
    titles = {source: "source of the labels"} | {row["case"]: _title(row) for row in part.to_dict("records")}
    return sheet(atlas, titles, folder, str(source))


def _title(row: Mapping[str, Any]) -> str:
    kidneys = [f"{dsc:.2f}" for dsc in (row["right_kidney_dsc"], row["left_kidney_dsc"]) if dsc == dsc]
    return f"{row['sequence'].replace('_', ' ')}: {row['decision']}, kidneys {' and '.join(kidneys) or 'not seen'}"


def sheet(atlas: Atlas, titles: Mapping[str, str], folder: str, name: str) -> dict[str, str] | None:
    """Return pictures of several cases side by side, each with its label map in ``folder``, if it has one."""
    pictures = []
    for case, title in titles.items():
        try:
            pictures.append((title, atlas.picture(case, f"{folder}/{case}.nii.gz")))
        except (CaseError, KeyError, OSError, RuntimeError, UserError, ValueError):
            continue  # the table says what became of it
    return {"name": name, "src": data_uri(contact_sheet(pictures, columns=3))} if pictures else None
