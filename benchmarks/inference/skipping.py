"""What skipping windows saves and costs: windows computed, and organs lost, with a network that makes no mistakes.

A network that did would blur the answer: its specks in the air keep a rule from skipping.
"""

import numpy as np
import torch
from model import PLAN

from labelloop.base.classes import load_classes
from labelloop.inference.settings import CenterFirst, ProbeFirst
from labelloop.inference.skipping import skipping_walk
from labelloop.inference.windows import Window, slide_blocks
from labelloop.phantom import draw_patient, field_of_view, render

STEP = 0.6
"""Distance of windows (luckieucas/FLARE23)."""
BELOW_MM, ABOVE_MM, WIDTH_MM = 250, 350, 420
"""Space below, above and around the abdomen that holds none of the organs."""
RULES = {
    "all windows": None,
    "probe_first, 0.56 ml": ProbeFirst(),
    "probe_first, 5.6 ml": ProbeFirst(min_foreground_ml=5.625),
    "center_first, 5.76 ml": CenterFirst(),
    "center_first, 0.56 ml": CenterFirst(min_foreground_ml=0.5625),
}


class Knowing(torch.nn.Module):
    """A network that is shown the truth, says it, and counts its windows."""

    def __init__(self, outputs: int):
        super().__init__()
        self.outputs, self.windows = outputs, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.windows += len(x)
        return torch.nn.functional.one_hot(x[:, 0].long(), self.outputs).movedim(-1, 1).float()


def long_scan(number: int) -> np.ndarray:
    """Return the truth [z, y, x] of a phantom on the grid of ``PLAN``, in a scan from the neck to the thighs."""
    patient = draw_patient(3, number)
    _, truth = render(patient, field_of_view(patient, PLAN.spacing_mm[::-1], orientation="RAS"))
    depth, *sides = PLAN.spacing_mm
    around = [max(0, round(WIDTH_MM / mm) - n) for mm, n in zip(sides, truth.shape[1:], strict=True)]
    ends = (round(BELOW_MM / depth), round(ABOVE_MM / depth))
    return np.pad(truth, [ends, *((n // 2, n - n // 2) for n in around)])


def report(machine: str) -> str:
    """Apply all rules to one scan; return the text of the result."""
    classes = load_classes("flare").names
    truth = long_scan(100)
    voxel_ml = float(np.prod(PLAN.spacing_mm)) / 1000
    rows, every = [], 0
    for name, skip in RULES.items():
        network = Knowing(len(classes) + 1)
        walk = skipping_walk(skip, truth.shape, PLAN.patch, STEP, PLAN.spacing_mm, classes)
        window = Window(PLAN.patch, network.outputs, STEP)
        blocks = slide_blocks(network, torch.from_numpy(truth.astype(np.float32))[None], window, walk)
        labels = np.concatenate([block.argmax(0).numpy() for block in blocks])
        every = every or network.windows
        total, lost = (int(part.sum()) * voxel_ml for part in (truth > 0, (truth > 0) & (labels == 0)))
        rows.append(f"| {name} | {network.windows} | {100 * network.windows / every:.0f} | {lost:.1f} of {total:.0f} |")
        print(rows[-1], flush=True)
    size, patch, mm = ("x".join(f"{n:g}" for n in some) for some in (truth.shape, PLAN.patch, PLAN.spacing_mm))
    return "\n".join([
        f"A phantom in a scan of {size} voxels (z, y, x) of {mm} mm, windows of {patch} voxels {STEP} patches apart,",
        "a network that makes no mistakes. `lost`: organs that become background.",
        f"Machine: {machine}.",
        "",
        "| rule | windows | % of all | lost ml |",
        "| --- | ---: | ---: | ---: |",
        *rows,
        "",
    ])  # fmt: skip
