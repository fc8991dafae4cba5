"""Results of a run whose number of rounds has changed: what was made goes on under the names that its round has now.

The plain names are those of the last round (:mod:`labelloop.recipe.rounds`). With more rounds, what they named is now
an earlier round's, and with fewer, an earlier round is the last. Only work that is found again by its content is moved
(checkpoints, label maps, arrays, journals), so a name that is taken wrongly costs time, and nothing else.
"""

import itertools
import logging
from pathlib import Path
from typing import get_args

from labelloop.base.paths import Paths, journal_of, manifest_of
from labelloop.recipe import in_round, looped
from labelloop.recipe.rounds import ROUND
from labelloop.run.chain import Arrays, images_of
from labelloop.run.run import Run

log = logging.getLogger(__name__)


def move_rounds(run: Run) -> list[str]:
    """Move what a run with another number of rounds has made; return each move in words. Needs the results claimed."""
    told = []
    for name in sorted(looped(run.recipe)):
        places = _of_model(run, name) if name in run.recipe.models else _of_labels(run, name)
        for place in places:
            told += _move(run, place, name)
    return told


def _of_model(run: Run, name: str) -> list[str]:
    """Return the patterns of a model's files and folders, with ``{name}`` for its name."""
    paths: Paths = run.paths
    banks = [paths.objects(plan, "{name}") for plan in _images(run)]
    return [paths.model_folder("{name}"), journal_of(manifest_of(paths.scored, "{name}")), *banks]


def _of_labels(run: Run, name: str) -> list[str]:
    places = [run.paths.labels("{name}")]
    for plan in _images(run):
        places += [run.paths.arrays(plan, kind, "{name}") for kind in get_args(Arrays)]
    return places


def _images(run: Run) -> list[str]:
    return sorted({images_of(run.chain, plan) for plan in run.chain.plans})


def _move(run: Run, place: str, name: str) -> list[str]:
    plain = Path(place.format(name=name))

    def earlier(number: int) -> Path:
        return Path(place.format(name=f"{name}{ROUND}{number}"))

    made = next(number for number in itertools.count(1) if not earlier(number).exists())
    last = Path(place.format(name=in_round(run.recipe, name, run.recipe.rounds)))
    moves = [(plain, earlier(made))] if made != run.recipe.rounds else []
    moves += [(earlier(run.recipe.rounds), last)]
    told = []
    for old, new in moves:
        if old.exists() and not new.exists():
            old.rename(new)
            told.append(f"{old} is of round {made if old == plain else run.recipe.rounds}; it is now {new}")
    return told
