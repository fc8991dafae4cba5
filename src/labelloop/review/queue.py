"""The review queue: labels that a radiologist should look at, each with a picture.

Two thirds are asked because they are doubtful, the most suspicious first. One third is drawn at random from the
accepted labels: how many of those are wrong says how many the loop lets through (:mod:`labelloop.review.audit`).
"""

import itertools
import logging
import os
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import atomic
from labelloop.base.seals import put_seal_of_files
from labelloop.base.tables import TABLES, by_label, write_table
from labelloop.base.wording import plain
from labelloop.images.boxes import box_or_none
from labelloop.images.pictures import CT_WINDOW, case_picture
from labelloop.images.scan import read_surveyed
from labelloop.images.volume import canonical, read, upright_volume
from labelloop.review.audit import RANDOM, in_order_of_draw, was_drawn
from labelloop.review.decisions import AGAIN

log = logging.getLogger(__name__)
DISAGREE = 0.8
"""Mean pairwise Dice below which predictions are called doubtful without a failed rule."""
ALIKE = 2
PANEL_PIXELS = 560
KEYS = ["case", "class"]
DOUBT = "doubt"
EVERY = 3
"""One of so many labels of the queue is drawn at random."""
BY_REVIEWERS = {"reviewer", "reviewers_differ"}
"""Criteria of selection that reviewers gave."""


def queue(
    selected: pd.DataFrame,
    verdicts: pd.DataFrame,
    disagreement: pd.DataFrame,
    reviewed: pd.DataFrame | None = None,
    labels: str = "",
    limit: int = 0,
    quality: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the labels of a set to ask about, as a "review" table that names no files yet.

    Each third one of the first ``limit`` is drawn at random from the accepted labels: those with the smallest hash of
    label set, case and class. So a queue that is made again asks for the same ones, less those that were answered by
    then: together they are one draw. The others are doubtful: those about which reviewers are asked again, then
    those with the lowest predicted DSC, where one is predicted, then most failed rules, then most rules that doubt it,
    then the lowest mean pairwise Dice of the predictions. Classes take turns, ``ALIKE`` labels each: what a model does
    wrong in every case shall not hide the rest. Agreement says nothing about a label that an annotator drew; such a
    label is listed only when it fails a rule. What reviewers settled is not asked again; a label that is called wrong
    is, once it is another one.

    Args:
        selected, verdicts, disagreement: tables of those kinds (:mod:`labelloop.base.tables`).
        reviewed: what reviewers say; None: nothing.
        labels: name of the label set. limit: length of the queue; 0: without random ones.
        quality: predicted DSC of labels; None: not predicted.
    """
    fails, doubts = (_by_label(verdicts, verdict) for verdict in ("fail", "doubt"))
    agreement = disagreement.set_index(KEYS)["pairwise_dice"].to_dict()
    chosen, said, predicted = (by_label(table) for table in (selected, reviewed, quality))
    drawn = _draw(chosen, said, labels, limit // EVERY)
    doubtful: list[dict[str, Any]] = []
    random: dict[tuple[str, str], dict[str, Any]] = {}
    for key, row in sorted(chosen.items()):
        dice = float("nan") if row["decision"] == "truth" else agreement.get(key, float("nan"))
        made = _row(key, row, fails.get(key, []), doubts.get(key, []), dice, said.get(key), predicted.get(key))
        if key in drawn:
            random[key] = made | {"asked": RANDOM}
        elif _is_doubtful(row["decision"], key in fails, key in doubts, _least(dice, made["quality"]), said.get(key)):
            doubtful.append(made)
    rows = _mixed(_in_turns(doubtful).to_dict("records"), [random[key] for key in drawn])
    table = pd.DataFrame(rows, columns=list(TABLES["review"]))
    return table.assign(rank=range(1, len(table) + 1))


def _draw(
    chosen: Mapping[Any, Mapping], said: Mapping[Any, Mapping], labels: str, number: int
) -> list[tuple[str, str]]:
    """Return the accepted labels that are asked about whatever is known of them: of the first, those still unseen."""
    first = itertools.islice(in_order_of_draw(chosen, said, labels).items(), number)
    return [key for key, row in first if row is None]


def _least(*values: float) -> float:
    """Return the smallest of the values that are known."""
    return min((value for value in values if value == value), default=float("nan"))


def _is_doubtful(decision: str, failed: bool, doubted: bool, dice: float, said: Mapping[Hashable, Any] | None) -> bool:
    """Say whether a label should be looked at, which reviewers did not settle."""
    if said is not None and not said["problem"]:
        return said["decision"] in AGAIN or (said["decision"] == "wrong" and said["same_label"] != "True")
    refused = decision in ("demoted", "dropped")
    return failed or refused or (decision == "accepted" and (doubted or dice < DISAGREE))


def _in_turns(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the rows with the most suspicious first, in which classes take turns."""
    ordered: list[dict[str, Any]] = sorted(rows, key=by_doubt)
    table = pd.DataFrame(ordered, columns=list(TABLES["review"]))
    turn = table.groupby("class").cumcount() // ALIKE
    return table.loc[turn.sort_values(kind="stable").index].reset_index(drop=True)


def _mixed(doubtful: list[dict[Any, Any]], random: list[dict[str, Any]]) -> Iterator[dict[Any, Any]]:
    """Yield two doubtful rows, a random one, and so on; at the end, what is left of either."""
    left = iter(random)
    for number, row in enumerate(doubtful, start=1):
        yield row
        if number % (EVERY - 1) == 0:
            yield from itertools.islice(left, 1)
    yield from left


def _by_label(verdicts: pd.DataFrame, verdict: str) -> dict[Any, list[dict[Hashable, Any]]]:
    """Return the rows of a verdict by case and class."""
    parts = verdicts[verdicts["verdict"] == verdict].groupby(KEYS, sort=True)
    return {key: part.to_dict("records") for key, part in parts}


def by_doubt(row: Mapping[str, Any]) -> tuple[bool, float, int, int, float, str, str]:
    """Return what rows of a queue are sorted by so that the most suspicious label is first."""
    again = row["reasons"].startswith("review: ")
    failed, doubted = (len(list(filter(None, row[column].split(";")))) for column in ("failed", "doubted"))
    dice, quality = row["pairwise_dice"], row["quality"]
    dice, quality = dice if dice == dice else 2.0, quality if quality == quality else float(not failed)
    return not again, quality, -failed, -doubted, dice, row["case"], row["class"]


def _row(
    key: tuple[str, str],
    chosen: Mapping[Hashable, Any],
    fails: list[dict[Hashable, Any]],
    doubts: list[dict[Hashable, Any]],
    dice: float,
    reviewed: Mapping[Hashable, Any] | None,
    predicted: Mapping[Hashable, Any] | None,
) -> dict[str, Any]:
    """Return a row of the table.

    ``reasons`` has what reviewers said, a rule a line, what else selection said, and the predicted DSC.
    """
    rules = {fail["rule"] for fail in fails}
    refused = chosen["decision"] in ("demoted", "dropped")
    said = list(zip(chosen["criterion"].split(";"), chosen["reason"].split("; "), strict=True)) if refused else []
    lines = [f"review: {reviewed['reason']}"] if reviewed else []
    lines += [f"{broken['rule']}: {broken['reason']}" for broken in (*fails, *doubts)]
    lines += [words for criterion, words in said if criterion not in rules | BY_REVIEWERS]
    if dice < DISAGREE and "agreement" not in dict(said):
        lines.append(f"pairwise_dice {dice:.4g} below {DISAGREE:g}")
    if predicted and "quality" not in dict(said):
        lines.append(predicted["reason"])
    return {
        "case": key[0],
        "class": key[1],
        "decision": chosen["decision"],
        "pairwise_dice": dice,
        "quality": predicted["dsc"] if predicted else float("nan"),
        "failed": ";".join(fail["rule"] for fail in fails),
        "doubted": ";".join(doubt["rule"] for doubt in doubts),
        "reasons": "\n".join(lines),
        "box": next((broken["box"] for broken in (*fails, *doubts) if broken["box"]), ""),
        "asked": RANDOM if was_drawn(reviewed) else DOUBT,
    }


@dataclass(frozen=True)
class CaseFiles:
    """What there is of a case: its image and modality (CT or MR), and its label map in the set under review.

    ``sha256``: of the label map. ``turned``: both are stored upside down.
    """

    image: Path
    modality: str
    labels: Path
    sha256: str = ""
    turned: bool = False


def write_review(
    table: pd.DataFrame, files: Mapping[str, CaseFiles], scheme: ClassScheme, out: Path, pictures: Path, limit: int
) -> None:
    """Write the first ``limit`` rows of a queue as ``out``, and a picture of each to the folder ``pictures``.

    Label maps and pictures are named relative to the folder of ``out``. A picture that cannot be drawn is left out;
    the log says why.

    Args:
        files: by case; a case that is not there has no label map, because nothing was predicted.
    """
    shown = table.head(limit).assign(file="", image="", picture="", sha256="")
    pictures.mkdir(parents=True, exist_ok=True)
    for case in sorted(files.keys() & set(shown["case"])):
        mine = shown["case"] == case
        shown.loc[mine, "image"] = str(files[case].image)
        shown.loc[mine, "sha256"] = files[case].sha256
        shown.loc[mine, "file"] = os.path.relpath(files[case].labels, out.parent)
        for rank, png in _pictures(shown[mine], files[case], scheme).items():
            row = shown["rank"] == rank
            path = pictures / f"{rank:03d}_{case}_{shown.loc[row, 'class'].iloc[0]}.png"
            with atomic(path) as temporary:
                temporary.write_bytes(png)
            shown.loc[row, "picture"] = os.path.relpath(path, out.parent)
    write_table(out, shown, "review")
    put_seal_of_files(out, out.parent, [out.name, *filter(None, shown["picture"])])
    log.info("review: %d of %d labels to look at, %d pictures", len(shown), len(table), (shown["picture"] != "").sum())


def _pictures(rows: pd.DataFrame, files: CaseFiles, scheme: ClassScheme) -> dict[int, bytes]:
    """Return the picture of each row of one case by its rank; none when a file is missing or unreadable."""
    window = CT_WINDOW if files.modality == "CT" else None
    options: dict[str, Any] = {"window": window, "faint_others": True, "panel_width": PANEL_PIXELS}
    try:
        read_both = read_surveyed(files.image), read(files.labels)
        image, labels = (upright_volume(v) if files.turned else v for v in read_both)
        grid, pictures = canonical(image).geometry, {}
        for row in rows.to_dict("records"):
            box = box_or_none(row["box"], grid, f"{row['case']}, {row['class']}")
            found = bool((labels.array == scheme.ids[row["class"]]).any())
            told = options | {"focus": [row["class"]], "box": box, "note": _note(row, found)}
            pictures[row["rank"]] = case_picture(image, labels, scheme, **told)
        return pictures
    except (CaseError, OSError, RuntimeError, UserError, ValueError) as error:
        log.warning("no picture of %s: %s", rows["case"].iloc[0], error)
        return {}


def _note(row: Mapping[Hashable, Any], found: bool) -> list[str]:
    """Return what is written on a picture: which label, what became of it, why it is doubted.

    Args:
        found: whether the label has a voxel; models that agree on an empty one did not find the class.
    """
    lines = [line.partition(": ") for line in row["reasons"].splitlines()]
    said = [row["case"], plain(row["class"]), row["decision"], _agreement(row["pairwise_dice"], found)]
    return [
        f"{row['rank']}.  {' · '.join(filter(None, said))}",
        *(f"{plain(head)}{colon}{rest}" for head, colon, rest in lines),
    ]


def _agreement(dice: float, found: bool) -> str:
    if dice != dice:
        return ""
    return f"agreement of the models {100 * dice:.0f} %" if found or dice < 1 else "no model found it"
