"""The loop of all trainings: epochs and updates that are counted, checkpoints, a stop between two updates."""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import Tensor

from labelloop.base import stopping
from labelloop.base.heartbeat import counted

log = logging.getLogger(__name__)

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


def run_epochs(
    numbers: range,
    save_every: int,
    stream: Generator[Any, None, None],
    run: Callable[[int, Iterator[Any], Pause], None],
    save: Callable[[], None],
    agreed: Callable[[int], int] = int,
) -> None:
    """Run the epochs of ``numbers``; Ctrl-C and SIGTERM end the process after the update at hand, at a checkpoint.

    Args:
        save_every: epochs between two checkpoints; there is one after the last as well.
        stream: all batches that are still to come; closed in the end, which ends its workers.
        run: takes the updates of an epoch, given the stream and what to call between two of them.
        save: writes a checkpoint.
        agreed: as in :func:`stoppable`.
    """
    with (
        stoppable(save, agreed) as pause,
        closing(stream) as batches,
        counted("epoch", numbers.stop, numbers.start) as count,
    ):
        for epoch in numbers:
            run(epoch, batches, pause)
            count.advance()
            if (epoch + 1) % save_every == 0 or epoch + 1 == numbers.stop:
                save()


def tell_resumed(name: str, numbers: range, losses: list[Losses]) -> None:
    """Say at which update of which epoch a training goes on."""
    log.info("%s: resuming after epoch %d of %d, update %d", name, numbers.start, numbers.stop, len(losses))


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
