"""Whether a review is done, and still there: what a run asks at its start, without pandas."""

import csv
from pathlib import Path

from labelloop.base.sequences import flat
from labelloop.base.wording import count
from labelloop.review.decisions import FILE, Reviews


def left_to_answer(queue: Path, reviews: Reviews, labels: str, limit: int) -> int | None:
    """Return how many answers a review queue still lacks; None when there is no queue yet.

    A queue is made anew from what is left to ask, so that it is answered, too, once as many labels as it can hold were.

    Args:
        queue: table of the queue. labels: name of the label set. limit: labels that a queue holds, at most.
    """
    if not queue.is_file():
        return None
    said = reviews.settled
    with queue.open(newline="", encoding="utf-8") as file:
        asked = {(row.get("case", ""), row.get("class", "")): row.get("sha256", "") for row in csv.DictReader(file)}
    settled = dict(flat([((case, name), one) for name, one in found.items()] for case, found in said.items()))
    answered = {label: one for label, one in settled.items() if one.answers(asked.get(label, ""))}
    given = sum(any(by.labels == labels for by in one.by) for one in answered.values())
    return min(len(asked.keys() - answered.keys()), max(0, limit - given))


def decisions_gone(folder: Path, reviewed: Path) -> list[str]:
    """Return, in a line, that the decisions are gone from which label maps were made; nothing while they are there.

    Args:
        folder: of the decisions about a label set. reviewed: table of what reviewers said when its maps were made.
    """
    if (folder / FILE).exists() or not reviewed.is_file():
        return []
    with reviewed.open(newline="", encoding="utf-8") as file:
        lost = sum(1 for _ in csv.DictReader(file))
    told = f"{folder / FILE}: not there, though label maps were made from {count(lost, 'decision')} of it ({reviewed})"
    return [f"{told}. Put it back, or name its folder (`reviews`): without it, they are made anew."] if lost else []
