"""What the loops of all trainings share: updates that are counted, and a stop between two of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from labelloop.base import stopping
from labelloop.base.heartbeat import counted

Losses = dict[str, Tensor]
"""Loss of an update and its terms, by name."""
Pause = Callable[[], None]
"""Called between two updates: saves and ends the process if that was asked."""


@contextmanager
def stoppable(save: Callable[[], None], agreed: Callable[[int], int] = int) -> Iterator[Pause]:
    """Let Ctrl-C and SIGTERM end the process at the next pause, after ``save``.

    Args:
        agreed: returns the signal that any of several processes got, given this one's; so all stop at the same pause.
    """
    with stopping.deferred() as asked:

        def pause() -> None:
            number = agreed(asked.signal)
            if number:
                save()
                raise stopping.exit_by(number)

        yield pause


def run_updates(losses: list[Losses], total: int, update: Callable[[int], Losses], pause: Pause) -> list[Losses]:
    """Take those of an epoch's ``total`` updates that are not among ``losses`` yet; add theirs to it and return it."""
    with counted("update", total, len(losses)) as count:
        for number in range(len(losses), total):
            pause()
            losses.append(update(number))
            count.advance()
    return losses


def means(rows: list[Losses]) -> dict[str, float]:
    """Return the mean of each loss term over the updates where it is a number; NaN where it never is."""
    # Some are numbers of the GPU, some of the CPU, and a checkpoint brings them all to one.
    return {name: _mean(torch.stack([row[name].cpu() for row in rows])) for name in (rows[0] if rows else ())}


def _mean(values: Tensor) -> float:
    return values[values.isfinite()].double().mean().item()
