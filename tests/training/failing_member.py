"""What runs in the other process of a training in a test: it fails, or is asked to stop, in its second update."""

import os
import signal

from labelloop.training import member
from labelloop.training.trainers.base import Trainer

original, count = Trainer.train_step, [0]


def step(self, batch):
    count[0] += 1
    if count[0] == 2 and os.environ["IN_UPDATE_2"] == "fail":
        raise ValueError("the second process fails")
    if count[0] == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return original(self, batch)


Trainer.train_step = step
member.main()
