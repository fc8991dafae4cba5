"""One run at a time works in a folder of results."""

from pathlib import Path

from labelloop.base.errors import UserError
from labelloop.base.locks import Lock, TakenError, hold
from labelloop.base.outputs import one_on_this_disk
from labelloop.run.run import Run

_held: list[Lock] = []


def claim(run: Run) -> None:
    """Keep other runs out of the results folder of ``run`` until this process ends.

    Unlike Snakemake's own lock, which the profiles switch off, it leaves nothing to unlock after a kill.

    Raises:
        UserError: when another run works here, the folder cannot be written, or its disk takes cases for one.
    """
    try:
        _held.append(hold(Path(run.paths.lock), f"results {run.results}", wait=False))
    except TakenError as taken:
        raise UserError(
            f"{run.results}: another run, {taken.holder}, works here. Wait for it or end it, or change results."
        ) from None
    one = one_on_this_disk((case.case for case in run.cases), lambda _: Path(run.results))
    if one:
        raise UserError("\n".join(one))
