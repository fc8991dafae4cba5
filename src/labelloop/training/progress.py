"""The numbers of each epoch: moving averages, the training log, the curve, one line for the reader."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labelloop.base.files import atomic, write_text
from labelloop.base.heartbeat import duration

SMOOTHING = 0.9
"""Weight of the past in the moving average of the validation Dice (nnU-Net)."""


@dataclass
class Progress:
    """What is known of a training so far. Holds nothing measured in seconds, so that equal runs are equal."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    best_average: float | None = None

    def add(self, rate: float, train: Mapping[str, float], validation: Mapping[str, float], dice: dict) -> bool:
        """Add an epoch; return True when the moving average of its Dice is the best so far.

        Args:
            rate: learning rate.
            train, validation: loss and its terms, averaged over the epoch.
            dice: class name to validation Dice, None where no annotated case had or was given the class.
        """
        known = [value for value in dice.values() if value is not None]
        mean = sum(known) / len(known) if known else None
        average: float | None = self.epochs[-1]["dice_average"] if self.epochs else None
        if mean is not None:
            average = mean if average is None else SMOOTHING * average + (1 - SMOOTHING) * mean
        number = len(self.epochs) + 1
        self.epochs.append(
            {
                "epoch": number,
                "learning_rate": rate,
                "train": dict(train),
                "validation": dict(validation),
                "dice": dict(dice),
                "dice_mean": mean,
                "dice_average": average,
            }
        )
        new = average if mean is not None else None
        better = new is not None and (self.best_average is None or new > self.best_average)
        if better:
            self.best_epoch, self.best_average = number, average
        return better

    def line(self, total: int, seconds: float) -> str:
        """Say in one line where the training stands; ``seconds`` is the time of an epoch of late."""
        last = self.epochs[-1]
        dice = "none" if last["dice_mean"] is None else f"{last['dice_mean']:.3f}"
        return (
            f"epoch {last['epoch']}/{total}: loss {last['train']['loss']:.4f}, validation Dice {dice}, "
            f"learning rate {last['learning_rate']:.2e}, {seconds:.1f} s/epoch, "
            f"{duration((total - last['epoch']) * seconds)} to go"
        )

    def write(self, path: str | Path) -> None:
        """Write one JSON line an epoch."""
        write_text(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in self.epochs))


def dice_scores(counts: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """Return the Dice of each class from its (true positive, false positive, false negative) voxels; None for 0/0."""
    return {name: 2 * tp / (2 * tp + fp + fn) if tp + fp + fn > 0 else None for name, (tp, fp, fn) in counts.items()}


def draw_curve(path: str | Path, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Draw loss and Dice over the epochs as a PNG; equal numbers give equal bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, scores = figure.subplots(2, 1, sharex=True)
    numbers = [row["epoch"] for row in epochs]
    for part, color in (("train", "tab:blue"), ("validation", "tab:orange")):
        values = [row[part].get("loss", math.nan) for row in epochs]
        losses.plot(numbers, values, color=color, label=part)
    classes = epochs[-1]["dice"] if epochs else {}
    for name in classes:
        scores.plot(numbers, [_or_nan(row["dice"].get(name)) for row in epochs], lw=0.8, alpha=0.7, label=name)
    scores.plot(numbers, [_or_nan(row["dice_average"]) for row in epochs], color="black", label="moving average")
    losses.set_ylabel("loss (Dice + cross-entropy)")
    scores.set(xlabel="epoch", ylabel="validation Dice (patches)", ylim=(-0.02, 1.02))
    for axes in (losses, scores):
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
        axes.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=100, metadata={"Software": None})


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
