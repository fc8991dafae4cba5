"""DSC and exact NSD of 14 classes: labelloop against the definition and maintained peers, on the same masks.

    python benchmarks/metrics/run.py              # small volumes, seconds
    python benchmarks/metrics/run.py --full       # 512x512x200 and x500, minutes, 12 GB
    python benchmarks/metrics/run.py --full --write

The definition takes every class on the full volume: neighbor codes, two distance transforms, no cropping. It uses the
same ``edt`` as labelloop on one thread, not scipy's much slower transform, so the ratio is that of the method alone.
Peers run when they can be imported (see README.md); each is timed once, labelloop as the median of ``--repeats``.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import edt
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import written_by

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.files import write_text
from labelloop.images.volume import Geometry, Volume
from labelloop.metrics.flare import score_case
from labelloop.metrics.surface import CORNERS, surfel_areas

RESULT = Path(__file__).resolve().parents[1] / "results" / "metrics.md"
SPACING_ZYX = (2.5, 0.8, 0.8)
SMALL, FULL = ((40, 128, 128), (80, 128, 128)), ((200, 512, 512), (500, 512, 512))
# Half axes in mm (z, then y and x), about true sizes; drawn in this order, so that small organs stay visible.
HALF_AXES_MM = {
    "liver": (70, 80), "stomach": (50, 40), "spleen": (45, 32), "right_kidney": (50, 27), "left_kidney": (50, 27),
    "duodenum": (35, 17), "pancreas": (18, 30), "aorta": (60, 10), "inferior_vena_cava": (60, 11),
    "esophagus": (40, 9), "gallbladder": (25, 15), "tumor": (15, 16), "right_adrenal_gland": (12, 8),
    "left_adrenal_gland": (12, 8),
}  # fmt: skip
Score = tuple[float, float]


def synthetic_case(shape: tuple[int, int, int], scheme: ClassScheme) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and prediction: wobbly ellipsoids at random places, and the same shifted, wobbling otherwise.

    In volumes narrower than 512 voxels the organs shrink with the width.
    """
    rng = np.random.default_rng(0)
    maps = np.zeros((2, *shape), np.uint8)
    for name, (half_z, half_xy) in HALF_AXES_MM.items():
        half = np.array([half_z, half_xy, half_xy]) / SPACING_ZYX * shape[1] / 512
        center = rng.uniform(1.2 * half, np.array(shape) - 1.2 * half)
        for label_map in maps:
            _draw(label_map, scheme.ids[name], center + rng.normal(0, 1, 3), half, rng.uniform(0, 6, 3))
    return maps[0], maps[1]


def _draw(labels: np.ndarray, value: int, center: np.ndarray, half: np.ndarray, phase: np.ndarray) -> None:
    low = np.maximum(np.floor(center - 1.2 * half).astype(int), 0)
    high = np.minimum(np.ceil(center + 1.2 * half).astype(int) + 1, labels.shape)
    grids = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    z, y, x = ((g - c) / h for g, c, h in zip(grids, center, half, strict=True))
    wobble = 1 + 0.12 * np.sin(5 * z + phase[0]) * np.sin(4 * y + phase[1]) + 0.06 * np.sin(9 * x + phase[2])
    box = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    box[z**2 + y**2 + x**2 < wobble] = value


def ours(truth: np.ndarray, prediction: np.ndarray, scheme: ClassScheme) -> list[Score]:
    geometry = Geometry(truth.shape[::-1], SPACING_ZYX[::-1], direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    rows = score_case(Volume(truth, geometry), Volume(prediction, geometry), scheme, "corrected")
    return [(row["dsc"], row["nsd"]) for row in rows]


def per_class(nsd: Callable[[np.ndarray, np.ndarray, float], float]) -> Callable[..., list[Score]]:
    """Return the loop over classes that every other implementation needs around its NSD."""

    def run(truth: np.ndarray, prediction: np.ndarray, scheme: ClassScheme) -> list[Score]:
        scores = []
        for info in scheme.classes:
            t, p = truth == info.id, prediction == info.id
            dsc = 2 * np.count_nonzero(t & p) / (np.count_nonzero(t) + np.count_nonzero(p))
            # the rule of FLARE 2024, as in ours
            scores.append((dsc, nsd(t, p, info.tolerance_mm) if dsc >= 0.2 else 0.0))
        return scores

    return run


def definition(truth: np.ndarray, prediction: np.ndarray, tolerance: float) -> float:
    """NSD by its definition, on the full volume."""
    areas = surfel_areas(SPACING_ZYX)
    codes, borders, distances = [], [], []
    for mask in (truth, prediction):
        padded = np.pad(mask, 1).view(np.uint8)
        size = [n + 1 for n in mask.shape]
        code = np.zeros(size, np.uint8)
        for bit, start in enumerate(CORNERS):
            code |= padded[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] << bit
        codes.append(code)
        borders.append((code != 0) & (code != 255))
        distances.append(edt.edt(~borders[-1], anisotropy=SPACING_ZYX, black_border=False, parallel=1))
    total = close = 0.0
    for code, border, distance in zip(codes, borders, distances[::-1], strict=True):
        area = areas[code[border]]
        total += area.sum()
        close += area[distance[border] <= tolerance].sum()
    return close / total


def surface_distance_peer() -> Callable:
    import surface_distance

    def nsd(truth: np.ndarray, prediction: np.ndarray, tolerance: float) -> float:
        distances = surface_distance.compute_surface_distances(truth, prediction, SPACING_ZYX)
        return float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance))

    return per_class(nsd)


def monai_peer() -> Callable:
    import torch
    from monai.metrics import compute_surface_dice

    def nsd(truth: np.ndarray, prediction: np.ndarray, tolerance: float) -> float:
        first, second = (torch.from_numpy(m)[None, None] for m in (prediction, truth))
        settings = {"include_background": True, "spacing": SPACING_ZYX, "use_subvoxels": True}
        return float(compute_surface_dice(first, second, [tolerance], **settings))

    return per_class(nsd)


PEERS = {
    "Surface-Distance-Based-Measures": surface_distance_peer,
    "monai": monai_peer,
}


def contestants() -> dict[str, Callable]:
    """Return what can run here by name: the definition, and the peers that are installed."""
    result = {"definition, full volume": per_class(definition)}
    for package, build in PEERS.items():
        try:
            result[f"{package} {version(package)}"] = build()
        except (ImportError, PackageNotFoundError) as error:
            print(f"skipped {package}: {error}")
    return result


def timed(run: Callable[[], list[Score]]) -> tuple[float, float, np.ndarray]:
    """Return CPU seconds (of all threads), wall seconds and the scores."""
    wall, cpu = time.perf_counter(), time.process_time()
    scores = run()
    return time.process_time() - cpu, time.perf_counter() - wall, np.array(scores)


def compare(shape: tuple[int, int, int], scheme: ClassScheme, repeats: int) -> list[str]:
    """Return the table rows of one volume size."""
    truth, prediction = synthetic_case(shape, scheme)
    size = "x".join(map(str, shape[::-1]))
    runs = [timed(lambda: ours(truth, prediction, scheme)) for _ in range(repeats)]
    cpu, wall = (statistics.median(run[i] for run in runs) for i in (0, 1))
    expected = runs[0][2]
    if not ((expected[:, 1] > 0) & (expected[:, 1] < 1)).any():
        raise SystemExit("every NSD is 0 or 1: these masks compare nothing")
    rows = [f"| {size} | labelloop | {cpu:.2f} | {wall:.2f} | 1.0 | 0 |"]
    for name, run in contestants().items():
        its_cpu, its_wall, scores = timed(lambda run=run: run(truth, prediction, scheme))
        difference = np.abs(scores - expected).max()
        rows.append(f"| {size} | {name} | {its_cpu:.2f} | {its_wall:.2f} | {its_cpu / cpu:.1f} | {difference:.1e} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="512x512x200 and 512x512x500 instead of small volumes")
    parser.add_argument("--repeats", type=int, default=3, help="runs of labelloop; the median counts")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULT.parent.name}/{RESULT.name}")
    arguments = parser.parse_args()
    scheme = load_classes("flare")
    # Tubes are scored on the truth's z-range by the rules of FLARE, not by the definition of NSD.
    scheme = scheme.model_copy(update={"classes": tuple(c.model_copy(update={"tube": False}) for c in scheme.classes)})
    lines = [
        "DSC and NSD of 14 classes, spacing 0.8 x 0.8 x 2.5 mm, arrays in memory, one process. `times`: CPU seconds of",
        "a row over labelloop's. `difference`: largest from labelloop over all classes and both scores.",
        "",
        "| voxels | implementation | CPU s | wall s | times | difference |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for shape in FULL if arguments.full else SMALL:
        lines += compare(shape, scheme, arguments.repeats)
    text = "\n".join(lines) + "\n"
    print(f"\n{text}")
    if arguments.write:
        write_text(RESULT, f"# Metrics\n\n{written_by(__file__, 'numpy', 'edt')}\n\n{text}")


if __name__ == "__main__":
    main()
