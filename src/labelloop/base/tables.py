"""Every CSV that labelloop writes: its columns and meaning in one place, written atomically and in a fixed order.

Units stand in the column names. Tables never hold measured times or dates, so that equal runs give equal bytes;
those go to ``benchmarks/`` and ``efficiency.csv``. A column holds text, or numbers where its meaning is a
:class:`Number`; an entry that is no number is refused when a table is written and when it is read.

Pandas is imported by what works with tables, not by the module: an inference has its first label map before it needs
one.
"""

import csv
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from labelloop.base.errors import UserError
from labelloop.base.files import atomic

if TYPE_CHECKING:
    import pandas as pd


class Number(str):
    """The meaning of a column that holds numbers; empty entries are NaN."""

    __slots__ = ()


WORKBOOK = b"PK\x03\x04"
"""How a workbook of Excel's (.xlsx) begins: it is a zip."""

CASES = {
    "case": "unique id; letters, digits, '.', '_' and '-' only",
    "image": "image file, absolute or relative to the table; of several channels, a file for each, separated by ';'",
    "label": "label file, empty when there is none",
    "dataset": "what the label ids mean: name of a data set (`labelloop dataset list`), or a data set file",
    "modality": "CT or MR; of several channels, that of the first",
    "sequence": "MR sequence or CT phase, may be empty",
    "patient": "patient id; no patient is in both train and test",
    "role": "train or test",
    "annotated": "classes annotated in this case, separated by ';'; none: not one; empty: as the data set file says",
    "surgery": "organs removed by surgery, separated by ';'",
}

TABLES: dict[str, dict[str, str]] = {
    "cases": CASES,
    "geometry": {
        "case": "case id",
        "size_x": Number("voxels"),
        "size_y": Number("voxels"),
        "size_z": Number("voxels"),
        "spacing_x_mm": Number("voxel size"),
        "spacing_y_mm": Number("voxel size"),
        "spacing_z_mm": Number("voxel size"),
        "orientation": "axis codes of the stored grid, e.g. LPS",
        "minimum": Number("smallest intensity"),
        "maximum": Number("largest intensity"),
        "clipped_hu": "HU below and above which a CT was clipped (saturated); empty: at neither end",
        "image_sha256": "of the image file; of several channels, a fingerprint of their files",
        "image_voxels": "fingerprint of the (first channel's) voxels, whatever the format, header and order of axes",
        "label_sha256": "of the label file, empty without",
        "label_ids": "fingerprint of what the label's ids mean: the class id of each id of the data set; empty without",
    },
    "tested": {"image_voxels": "fingerprint of the voxels of an image that is tested on", "case": "case id"},
    "annotation": {"case": "case id", "class": "class name", "state": "present, absent or unknown"},
    "profiles": {
        "case": "case id",
        "profile": "perceptual hash of the image every 5 mm (labelloop.cases.alike), in base 85",
    },
    "upright": {
        "case": "case id",
        "upside_down": "True or False: the header takes head for foot; corrected wherever the case is read",
        "decided_by": "case whose image decided; empty: none could tell, and the case is taken as it is stored",
        "dark_low": Number("share of the body that is dark in the lowest 30 mm of that image, as stored"),
        "dark_high": Number("the same in the highest 30 mm, where lungs are"),
        "reason": "why nothing could tell",
    },
    "quarantine": {
        "case": "case id",
        "file": "file at fault",
        "code": "stable reason code",
        "severity": "error (case set aside) or warning (case kept)",
        "found": "what was found",
        "action": "what to do about it",
    },
    "groups": {"case": "case id", "group": "a group that the case belongs to"},
    "manifest": {
        "case": "case id",
        "status": "done or failed",
        "file": "file produced, relative to the manifest's parent folder; empty if failed",
        "sha256": "of that file",
        "key": "fingerprint of all that the file was made from",
        "reason": "why it failed",
    },
    "confidence": {
        "case": "case id",
        "class": "class name",
        "volume_ml": Number("volume of the predicted class"),
        "confidence": Number("mean softmax probability inside the predicted class; empty if nothing is predicted"),
    },
    "provenance": {
        "case": "case id",
        "class": "class name",
        "source": "truth, reviewer, a model's name, or none",
        "step": "fuse, overlap (predicted voxels that another organ was given), tumor_to_organs, a cleaning step, or "
        "ignored (voxels that annotators ignored)",
        "voxels_changed": Number("voxels that the step gave to or took from the class"),
        "volume_ml": Number("volume of the class after the step"),
    },
    "disagreement": {
        "case": "case id",
        "class": "class name",
        "pairwise_dice": Number("mean over pairs of predictions; 1 when all are empty"),
        "uncertainty": Number("FLARE22 u = mean over consecutive predictions of |A!=B| / |B>0|"),
        "predictions": Number("how many predictions were compared"),
        "stability": Number("Dice of the leading prediction with that of the round before; empty in round 1"),
    },
    "verdicts": {
        "case": "case id",
        "class": "class name",
        "rule": "rule name",
        "verdict": "pass, doubt (worth a look), fail (refused) or not_applicable",
        "value": Number("what was measured"),
        "threshold": Number("what it was held against"),
        "unit": "unit of both",
        "reason": "in words",
        "box": "where, of what is broken: center x y z (mm, LPS; of a case stored upside down, as it truly lies) and "
        "sides left-right, front-back, up-down (mm)",
    },
    "evidence": {
        "case": "case id",
        "map": "which label map: unaltered (the truth), corrupted-0, corrupted-1, ... (the truth with known errors), "
        "held_out (predictions for labeled patients that no model learned from), or pseudo",
        "class": "class name, or (body)",
        "measure": "what was measured: a column of labelloop.labels.evidence, place.* (where the class lies), or dsc",
        "value": Number("in the unit of the measure"),
    },
    "quality": {
        "case": "case id",
        "map": "pseudo: a label of the set; held_out: as in evidence, and predicted from other patients",
        "class": "class name",
        "dsc": Number("predicted DSC of the label with the truth that nobody has"),
        "low": Number("lower end of the interval of 80 %"),
        "high": Number("upper end"),
        "reason": "in words: the prediction, and what lowers it",
    },
    "decisions": {
        "time": "when it was made, as ISO 8601",
        "reviewer": "who made it",
        "case": "case id",
        "class": "class name",
        "decision": "right, wrong, absent, edited or unsure",
        "sha256": "of the label map that was judged; empty where there was none",
        "seconds": Number("how long it took; empty: not measured"),
        "comment": "in words, one line",
        "file": "map that was judged or, if edited, the edited one, relative to the table's folder",
        "labels": "label set that was judged, as its run names it",
        "asked": "doubt or random, as in review; empty: not asked for",
    },
    "reviewed": {
        "case": "case id",
        "class": "class name",
        "decision": "right, wrong, absent, edited, unsure, or differ (two reviewers say different things)",
        "state": "present, absent or unknown: what follows for the label; empty: nothing",
        "reviewer": "who decided, separated by ';'",
        "same_label": "True or False: what models or annotators say here is what was judged, voxel by voxel",
        "asked": "doubt or random: why it was asked for in this label set; empty: it was not",
        "accepted": "True or False: selection would accept the label if reviewers had said nothing; empty in tables of "
        "shards",
        "reason": "who said what, in words",
        "problem": "why the decision is not used; empty: it is",
    },
    "selected": {
        "case": "case id",
        "class": "class name",
        "state": "annotation state that training uses: present, absent or unknown",
        "decision": "reviewer, truth, accepted, demoted, dropped or unknown",
        "criterion": "what speaks against it, separated by ';': a rule of anatomy, agreement, uncertainty, "
        "quality, calibration, rank, reviewer, reviewers_differ, whole_case, nothing_known, not_predicted or "
        "not_found; empty: nothing",
        "reason": "in words, separated by '; ' in the same order; no reason holds a semicolon itself",
    },
    "held_out": {
        "case": "case id, labeled, but no model behind the label set learned from its patient",
        "patient": "patient id; calibration counts each patient once",
        "class": "class name, annotated",
        "pairwise_dice": Number("as in disagreement"),
        "quality": Number("predicted DSC, learned from other patients; empty: none is predicted"),
        "dsc": Number("Dice similarity coefficient of the pseudo-label with the truth; 1 when both are empty"),
        "decision": "what selection makes of the pseudo-label, calibrated threshold and ranks left out",
        "reason": "why",
    },
    "calibration": {
        "class": "class name",
        "target_dsc": Number("mean DSC that accepted labels are to reach"),
        "confidence": Number("probability with which they do; empty: on average over such runs"),
        "threshold": Number("labels with a larger score (as `select` says) are accepted; empty: none can be"),
        "cases": Number("held-out cases with truth, of each patient one"),
        "accepted": Number("of these, cases that the threshold accepts"),
        "coverage": Number("accepted by cases"),
        "mean_dsc": Number("mean DSC of the accepted held-out cases"),
        "aurc": Number("area under the risk-coverage curve, risk = mean 1 - DSC"),
        "reason": "in words",
    },
    "objects": {
        "case": "case id",
        "object": "number in the case's file, the largest tumor first",
        "tumor_ml": Number("volume of the class inside the object's box"),
        "box_ml": Number("volume of the box, surroundings included"),
    },
    "review": {
        "rank": Number("place in the queue"),
        "case": "case id",
        "class": "class name",
        "decision": "as in selected",
        "pairwise_dice": Number("as in disagreement; empty for truth"),
        "quality": Number("predicted DSC; empty: none is predicted"),
        "failed": "rules of anatomy that failed, separated by ';'",
        "doubted": "rules of anatomy that doubt it and refuse nothing, separated by ';'",
        "reasons": "in words, one a line",
        "box": "as in verdicts: where the first of these rules that names a place found it",
        "asked": "doubt, or random: drawn from the accepted labels, whatever is known of them",
        "sha256": "of the label map; empty when nothing was predicted",
        "file": "label map, relative to the table's folder; empty when nothing was predicted",
        "image": "image, as in cases.csv; of several channels, the first",
        "picture": "picture with the reasons written on it, relative to the table's folder",
    },
    "structure": {
        "case": "case id of a labeled CT",
        "information": Number("share of its labels' entropy that its translation explains, 0 to 1"),
        "shifted": Number("largest of the same for labels moved by 6 mm along an axis"),
        "fits": "True or False: the labels explain the translation best where they are",
    },
    "training_cases": {"case": "case id", "split": "train or validation", "key": "fingerprint of image and label"},
    "slice_scores": {
        "split": "validation: slices of cases that the slice classifier did not learn from",
        "cases": Number("cases"),
        "slices": Number("slices of these cases"),
        "positive": Number("slices that show a class of the model"),
        "auc": Number("area under the receiver operating characteristic; empty where all slices are of one kind"),
        "accuracy": Number("share of the slices that are told right at a probability of 0.5"),
        "sensitivity": Number("of the slices with a class, the share told right"),
        "specificity": Number("of the slices without, the share told right"),
    },
    "scores": {
        "case": "case id",
        "class": "class name",
        "dsc": Number("Dice similarity coefficient; of tubes, on the slices of the truth alone (FLARE)"),
        "nsd": Number("normalized surface Dice at the class's tolerance"),
        "volume_truth_ml": Number("volume in the truth"),
        "volume_prediction_ml": Number(
            "volume in the prediction; empty: there is no prediction, and the case is scored as if nothing was found"
        ),
        "volume_error_ml": Number("prediction minus truth; empty without a prediction"),
    },
    "lesions": {
        "case": "case id",
        "class": "class name, of the scheme's set tumor",
        "lesions": Number("lesions in the truth: connected components (26 neighbors)"),
        "detected": Number("of these, lesions that a predicted one matches, one to one, with an IoU of at least 0.1"),
        "false_positives": Number("predicted lesions that match none"),
        "sensitivity": Number("detected by lesions; empty on a tumor-free scan"),
        "precision": Number("detected by predicted lesions; empty when none is predicted"),
        "dsc": Number("mean over the detected lesions; empty when none is"),
        "missed_ml": Number("volume of the lesions that were not detected"),
        "false_positive_ml": Number("volume of the predicted lesions that match none"),
    },
    "summary": {
        "case": "case id",
        "class": "class name",
        "volume_ml": Number("volume of the final label map"),
        "confidence": Number("mean softmax probability inside the predicted class"),
    },
    "transfers": {
        "case": "case id of the sequence that labels were carried to",
        "source": "case id of the T1W image that they come from",
        "sequence": "MR sequence of the case",
        "decision": "accepted or refused",
        "right_kidney_dsc": Number(
            "of the carried label with the kidney as this image shows it; empty: no such kidney"
        ),
        "left_kidney_dsc": Number("likewise"),
        "rotation_degrees": Number("angle of the rotation that was found"),
        "translation_mm": Number("how far the middle of the image was moved"),
        "criterion": "no_source, not_registered, no_kidney, one_kidney or both_kidneys; empty: accepted",
        "reason": "in words",
    },
    "efficiency": {
        "case": "case id",
        "runtime_s": Number("wall time of reading, computing and writing"),
        "peak_gpu_mb": Number("peak GPU memory allocated"),
        "peak_ram_mb": Number("peak resident memory of the process so far"),
        "parameters": Number("of the networks that ran, each tensor counted once"),
        "gmacs": Number(
            "multiply-accumulates of the networks, in 10^9, all windows and flips; FLOPs are twice as many"
        ),
        "area_gpu_mb_s": Number(
            "area under the curve of GPU memory over time while it was computed; empty unless metered"
        ),
        "energy_j": Number("energy of the GPU; empty unless metered, or where its driver does not tell"),
    },
}


def write_table(path: str | Path, table: "pd.DataFrame | Sequence[dict]", kind: str) -> None:
    """Write a table or its rows as a ``kind`` of :data:`TABLES`: its columns alone, sorted rows, 6 significant digits.

    Raises:
        UserError: when a column is missing or is not part of the schema, or when a number is none.
    """
    import pandas as pd

    columns = list(TABLES[kind])
    table = pd.DataFrame(table)
    if table.empty:
        table = pd.DataFrame(columns=columns)
    if set(table.columns) != set(columns):
        raise UserError(f"{path}: columns {sorted(table.columns)}; a {kind} table has {sorted(columns)}")
    keys = [c for c in ("case", "map", "class", "measure", "group", "rule", "step", "code") if c in columns]
    if kind not in ("cases", "provenance", "review"):  # their rows have an order of their own
        table = table.sort_values(keys, kind="stable")
    for name in numeric(kind):
        _as_numbers(table[name], Path(path))
    with atomic(path) as temporary:
        table[columns].to_csv(temporary, index=False, float_format="%.6g")


def read_table(path: str | Path, kind: str) -> "pd.DataFrame":
    """Read a ``kind`` of :data:`TABLES`; text columns keep empty strings, numbers become floats with NaN.

    Raises:
        UserError: when the file is missing or no table, its columns are not the schema's, or a number is none.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such {kind} table")
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, strict=True)
            width = len(next(reader, []))
            odd = next((reader.line_num for row in reader if row and len(row) != width), None)
        if odd is not None:  # pandas fills up, or takes the first column for names of rows
            raise UserError(f"{path}: line {odd}: more or fewer fields than the header's {width} columns")
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (csv.Error, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise no_table(path, error) from None
    missing = set(TABLES[kind]) - set(table.columns)
    if missing:
        found = ", ".join(map(str, table.columns[:20]))
        raise UserError(
            f"{path}: a {kind} table lacks the columns {sorted(missing)}; its columns are {found[:200]}. If an earlier "
            "version wrote it, run what wrote it again"
        )
    for name in numeric(kind):
        table[name] = _as_numbers(table[name], path)
    return table[list(TABLES[kind])]


def no_table(path: Path, error: Exception) -> UserError:
    """Return the error of a file that cannot be read as a table, with what to do about it."""
    with path.open("rb") as handle:
        workbook = handle.read(4) == WORKBOOK
    found = "an Excel workbook" if workbook else " ".join(str(error).split())
    what = "; in Excel, save it as CSV UTF-8" if workbook or isinstance(error, UnicodeDecodeError) else ""
    return UserError(f"{path}: not a CSV table in UTF-8: {found}{what}")


def delimiter_of(handle: TextIO) -> str:
    """Return what separates the columns of a table that a spreadsheet may have saved, by its header.

    Where a comma is the decimal mark, Excel separates by ``;``, or by tabs. No name of a column holds any of them.
    """
    first = handle.readline()
    header = handle.readline() if first.strip().strip('"').lower().startswith("sep=") else first
    handle.seek(0)
    return next((sign for sign in ",;\t" if sign in header), ",")


def of_spreadsheet(path: Path) -> tuple[list[str], list[tuple[list[str], int]]]:
    """Return the columns of a table that a spreadsheet may have saved, and its filled rows, each with its line.

    What spreadsheets add is passed over: a line ``sep=,``, capitals in column names, empty rows. Where a comma is the
    decimal mark, Excel separates by ``;`` (or tabs), and puts a field that holds one in quotes.

    Raises:
        UserError: the file is no table in UTF-8.
        OSError: it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, delimiter=delimiter_of(handle), strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            if header and header[0].startswith("sep="):
                header = [name.strip().lower() for name in next(reader, [])]
            return header, [(fields, reader.line_num) for fields in reader if any(f.strip() for f in fields)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise no_table(path, error) from error


def numeric(kind: str) -> list[str]:
    """Return the columns of a ``kind`` of :data:`TABLES` that hold numbers."""
    return [name for name, meaning in TABLES[kind].items() if isinstance(meaning, Number)]


def by_label(table: "pd.DataFrame | None") -> dict[tuple[str, str], dict[Hashable, Any]]:
    """Return the rows of a table by case and class; none without a table."""
    rows = [] if table is None else table.to_dict("records")
    return {(row["case"], row["class"]): row for row in rows}


def upside_down(path: str | Path) -> set[str]:
    """Return the cases that an ``upright`` table says are stored upside down."""
    table = read_table(path, "upright")
    return set(table.loc[table["upside_down"] == "True", "case"])


def _as_numbers(column: "pd.Series", path: Path) -> "pd.Series":
    """Return a column as floats. Raises UserError for entries that are no numbers."""
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce")
    said = column[numbers.isna() & column.notna()].astype(str)
    wrong = said[~said.str.strip().str.lower().isin(("", "nan"))]
    if len(wrong):
        row, found = list(column.index).index(wrong.index[0]) + 2, str(wrong.iloc[0])[:40]
        raise UserError(f"{path}: row {row}: {column.name} is {found!r}, where a number is expected")
    return numbers
