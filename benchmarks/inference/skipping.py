"""What skipping windows saves and costs: windows computed, network seconds, agreement with computing all."""

import time
from pathlib import Path

import numpy as np

from labelloop.inference.engine import Predictor
from labelloop.inference.settings import CenterFirst, ProbeFirst, Settings
from labelloop.inference.stages import collected
from labelloop.phantom import draw_patient, field_of_view, render
from labelloop.volume import Volume

SPACING = (1.5, 1.5, 2.5)
BELOW_MM, ABOVE_MM = 250, 350
"""Empty space below and above the abdomen: a phantom has no legs and no chest, a whole-body scan has."""
TESTS = {
    "all windows": None,
    "probe_first, 0.56 ml": ProbeFirst(),
    "probe_first, 5.6 ml": ProbeFirst(min_foreground_ml=5.625),
    "center_first, 5.76 ml": CenterFirst(),
    "center_first, 0.56 ml": CenterFirst(min_foreground_ml=0.5625),
}


def long_scan() -> Volume:
    """Return a phantom with air around it: 60 cm taller than the abdomen and 50 cm wide."""
    patient = draw_patient(3, 100)
    geometry = field_of_view(patient, SPACING)
    image, _ = render(patient, geometry)
    wide = [(0, 0), *(((334 - n) // 2, 334 - n - (334 - n) // 2) for n in image.shape[1:])]
    wide[0] = (round(BELOW_MM / SPACING[2]), round(ABOVE_MM / SPACING[2]))
    padded = np.pad(image, wide, constant_values=-1000)
    return Volume(padded, field_of_view(patient, SPACING, size=padded.shape[::-1]))


def report(model: Path, machine: str) -> str:
    """Run all tests on one scan; return the text of the result."""
    volume = long_scan()
    predictor = Predictor(model, "cpu", Settings(mode="fast", step=0.5))
    rows, reference = [], None
    for name, skip in TESTS.items():
        changed = predictor.with_settings(skip=skip.model_dump() if skip else None)
        windows = _counted(changed)
        start = time.process_time()
        with collected() as seconds:
            labels = changed.predict(volume, "CT").labels
        cpu = time.process_time() - start
        reference = labels if reference is None else reference
        lost = int(((reference > 0) & (labels == 0)).sum()) * volume.geometry.voxel_ml
        total = int((reference > 0).sum()) * volume.geometry.voxel_ml
        equal = 100 * (labels == reference).mean()
        rows.append(
            f"| {name} | {len(windows)} | {cpu:.1f} | {seconds['network']:.1f} "
            f"| {equal:.4f} | {lost:.1f} of {total:.0f} |"
        )
        print(rows[-1], flush=True)
    size = "x".join(map(str, volume.geometry.size))
    return "\n".join([
        f"A phantom of {size} voxels of 1.5 x 1.5 x 2.5 mm, air above, below and around it; step 0.5.",
        f"Machine: {machine}.",
        "`lost`: foreground that becomes background.",
        "",
        "| test | windows | CPU s | network s | equal % | lost ml |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
    ])  # fmt: skip


def _counted(predictor: Predictor) -> list:
    """Return a list that grows with every window the predictor computes."""
    seen: list[int] = []
    predictor.network.register_forward_pre_hook(lambda module, inputs: seen.extend([1] * len(inputs[0])))
    return seen
