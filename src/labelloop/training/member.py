"""Another process of a training on several cards (see ``distributed``); started as ``python -m``, told by its input."""

import faulthandler
import logging
import os
import pickle
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from labelloop.base.errors import UserError

if TYPE_CHECKING:
    from labelloop.training.distributed import Seat

log = logging.getLogger("labelloop")
LOOK_S = 1.0
"""Between two looks whether the first process lives."""


def main() -> None:
    """Train, as the first process does; write nothing but errors.

    Ctrl-C and SIGTERM are left to the first process, which tells the others, unless they come in the midst of the
    training.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    seat: Seat = pickle.load(sys.stdin.buffer)
    _log_to(seat)
    threading.Thread(target=_end_with, args=(seat.owner,), daemon=True).start()
    try:
        _train(seat)
    except SystemExit:  # all stop at a checkpoint, which is the first process's work
        pass
    except BaseException as error:
        told = not isinstance(error, UserError)
        name = f"process {seat.rank + 1} of {seat.size} of this training"
        log.critical("%s has failed: %s", name, "" if told else error, exc_info=told)
        os._exit(1)  # not by way of a group of which others may be dead


def _train(seat: "Seat") -> None:
    from labelloop.training.distributed import joined
    from labelloop.training.nnunet import work_of
    from labelloop.training.trainers import TRAINERS

    trainer = TRAINERS[seat.job.settings.kind].of(seat.job)
    with joined(seat.rank, seat.size, seat.meeting, trainer.device) as trainer.team:
        trainer.fit(work_of(seat.job))


def _log_to(seat: "Seat") -> None:
    from labelloop.base.scripting import FORMAT

    handlers: list[logging.Handler] = [logging.StreamHandler(), *map(logging.FileHandler, seat.logs)]
    logging.basicConfig(format=FORMAT, handlers=handlers, level=logging.ERROR)
    streams = [handler.stream for handler in handlers if isinstance(handler, logging.StreamHandler)]
    faulthandler.enable(streams[-1])


def _end_with(owner: int) -> None:
    """End this process as soon as the one that has started it is gone."""
    while os.getppid() == owner:
        time.sleep(LOOK_S)
    os._exit(1)


if __name__ == "__main__":
    main()
