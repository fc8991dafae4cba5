"""What a run says on the console: how far it is, in words and not in jobs, and at its end what it leaves."""

import csv
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelloop.base.heartbeat import duration
from labelloop.base.paths import Paths
from labelloop.base.wording import count

EVERY_S = 60.0
"""Seconds between two looks at how far the run is; it is said again when something has changed."""
TRAINING = ("train", "train_slices", "train_translator")
CASES = {"predict": "predictions", "predict_external": "external predictions", "infer": "final label maps"}
"""Rules that give cases label maps, and what these are called."""
NOISE = ("Select jobs to execute", "Execute ")
"""How lines of Snakemake's scheduler begin that say nothing about the run."""


@dataclass(frozen=True)
class Work:
    """A job of this run.

    Args:
        size: updates of a training, else cases.
        seconds: how long it took; 0 where nobody knows.
    """

    rule: str
    size: int
    finished: bool
    seconds: float = 0.0


def how_far(jobs: Iterable[Work]) -> str:
    """Say how far a run is, e.g. ``1 of 3 models trained, 18 of 42 predictions; about 2 h 05 min of training left``.

    The time is that of all trainings that have not ended, one after the other, at the speed of those that have.
    """
    jobs = list(jobs)
    trainings = [job for job in jobs if job.rule in TRAINING]
    done = [job for job in trainings if job.finished]
    told = [f"{len(done)} of {count(len(trainings), 'model')} trained"] if trainings else []
    for rule, words in CASES.items():
        mine = [job for job in jobs if job.rule == rule]
        if mine:
            told.append(f"{sum(job.size for job in mine if job.finished)} of {sum(job.size for job in mine)} {words}")
    timed = [job for job in done if job.seconds]
    to_do = sum(job.size for job in trainings if not job.finished)
    left = to_do * sum(job.seconds for job in timed) / max(1, sum(job.size for job in timed))
    time = f"; about {duration(left)} of training left" if left else ""
    return ", ".join(told) + time if told else ""


def work_of(jobs: Iterable[Any], finished: Callable[[Any], bool], size: Callable[[Any], int]) -> list[Work]:
    """Return the jobs that :func:`how_far` speaks of, from Snakemake's.

    Args:
        jobs: Snakemake's jobs. finished: whether one has ended.
        size: updates or cases of a job, from its wildcards.
    """
    found = []
    for job in jobs:
        rule = job.rule.name
        if rule in TRAINING or rule in CASES:
            done = finished(job)
            seconds = _seconds(job.benchmark) if done and rule in TRAINING else 0.0
            found.append(Work(rule, size(job.wildcards), done, seconds))
    return found


def _seconds(benchmark: Any) -> float:
    """Return how long a job took, by Snakemake's file; 0 where it does not tell."""
    path = Path(str(benchmark))
    if not path.is_file():
        return 0.0
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            return sum(float(row["s"]) for row in csv.DictReader(handle, delimiter="\t"))
    except (KeyError, TypeError, ValueError):  # cut short
        return 0.0


def watch(look: Callable[[], Sequence[Work]], every_s: float = EVERY_S) -> None:
    """Say how far a run is when that has changed, from a thread that ends with the process."""

    def tell() -> None:
        waiting, before = threading.Event(), ""
        while not waiting.wait(every_s):
            try:
                told = how_far(look())
            except RuntimeError:  # Snakemake changes its set of jobs at this moment
                continue
            if told and told != before:
                print(f"labelloop: {told}", flush=True)
                before = told

    threading.Thread(target=tell, name="console", daemon=True).start()


def without_noise(record: logging.LogRecord) -> bool:
    """Return whether a line of Snakemake's log says something about the run; a filter for its logger."""
    return not str(record.msg).startswith(NOISE)


def ending(results: Path, done: str, aside: str, seconds: float) -> list[str]:
    """Return what is said when a run has ended well: what needs attention, how long it took, where the page is.

    Args:
        done: what was trained and labeled, in words.
        aside: cases that were set aside, in words; said where there is no page, which says it.
    """
    paths = Paths(str(results))
    page, attention = Path(paths.page), Path(paths.attention)
    lines = [aside] if aside else []
    if attention.is_file():
        lines = attention.read_text(encoding="utf-8").splitlines()
    where = f" Open {page}" if page.is_file() else ""
    told = [done] if done else []
    return [*told, *(f"needs attention: {line}" for line in lines), f"done in {duration(seconds)}.{where}"]
