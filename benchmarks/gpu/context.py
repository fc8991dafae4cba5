"""What every part is given: the device, the sizes, the inputs and a folder to work in."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from inputs import FULL, TOY, Phantom, Sizes, model_folder, plans, prepare

from labelloop.networks.plans import Plan


@dataclass(frozen=True)
class Context:
    """What every part is given.

    Args:
        work: folder for models, arrays and trainings of this machine.
        inputs: folder of the scans that were carried here; made where they are missing.
        until: time (seconds since the epoch) after which no step begins, and no program that a step started goes on.
    """

    device: torch.device
    toy: bool
    work: Path
    inputs: Path
    until: float = math.inf

    @property
    def sizes(self) -> Sizes:
        """How large everything is."""
        return TOY if self.toy else FULL

    @property
    def plans(self) -> dict[str, Plan]:
        """Plans of the networks that are run."""
        return plans(self.toy)

    @cached_property
    def phantoms(self) -> list[Phantom]:
        """The scans that were carried here."""
        return [Phantom.read(file) for file in prepare(self.inputs, self.sizes)]

    def model(self, name: str) -> Path:
        """Return the folder of a trained network; the first call trains it, in seconds on a GPU."""
        folder = self.work / "models" / name
        return model_folder(name, self.plans[name], self.phantoms, self.sizes, folder, self.device)
