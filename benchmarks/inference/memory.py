"""``labelloop infer`` on a scan of 512x512x1000 voxels within limits of memory: is what was asked for kept?"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from labelloop.base.files import link
from labelloop.images.volume import Geometry, Volume, read, write
from labelloop.inference.find_cases import case_name

PLANES = 1000
LIMITS_MB = (None, 3000, 2500)
"""None: what the engine takes when nothing is said."""
CASES = 2


def long_scan(full: Path, build: Path) -> Path:
    """Return a scan of as many voxels in plane as ``full`` has, and of :data:`PLANES` planes; kept in ``build``."""
    path = build / f"phantom_{PLANES}_planes_0000.nii.gz"
    if not path.is_file():
        volume = stretched(read(full), PLANES)
        write(path, volume.array, volume.geometry)
    return path


def stretched(volume: Volume, planes: int) -> Volume:
    """Return a volume of so many planes over about the same box, by nearest neighbor."""
    depth, g = len(volume.array), volume.geometry
    spacing = (*g.spacing[:2], g.spacing[2] * depth / planes)
    array = volume.array[np.arange(planes) * depth // planes]
    return Volume(array, Geometry((*g.size[:2], planes), spacing, g.origin, g.direction))


def measured(model: Path, image: Path, limit_mb: int | None, work: Path) -> tuple[float, float, np.ndarray]:
    """Run the command on :data:`CASES` copies; return wall seconds, peak resident MiB, and the first label map."""
    for number in range(CASES):
        link(image, work / "in" / f"{case_name(image)}_{number}_0000.nii.gz")
    limit = ["--max-ram-mb", str(limit_mb)] if limit_mb else []
    labelloop = str(Path(sys.executable).with_name("labelloop"))
    options = ["--model", str(model), "--out", str(work / "out"), "--device", "cpu", *limit]
    start = time.perf_counter()
    process = subprocess.Popen([labelloop, "infer", str(work / "in"), *options])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"labelloop infer failed with {process.returncode} at a limit of {limit_mb} MB")
    seconds = time.perf_counter() - start
    return seconds, usage.ru_maxrss / 1024, read(min((work / "out").glob("*.nii.gz"))).array


def report(machine: str, model: Path, full: Path, build: Path) -> str:
    """Run all limits; return the text of the result."""
    from tempfile import TemporaryDirectory

    image = long_scan(full, build)
    rows, first = [], None
    for limit in LIMITS_MB:
        with TemporaryDirectory() as folder:
            seconds, peak, labels = measured(model, image, limit, Path(folder))
        first = labels if first is None else first
        same = f"{100 * (labels == first).mean():.4f}"
        rows.append(f"| {limit or 'none'} | {peak:.0f} | {seconds:.1f} | {same} |")
        print(rows[-1], flush=True)
    size = "x".join(map(str, reversed(first.shape)))
    return "\n".join([
        f"`labelloop infer --mode exact` with the model `{model.name}`, {CASES} scans of {size} voxels (int16,",
        f"{first.size * 2 / 1e6:.0f} MB each) in one run. Peak: largest resident set of the process, in MiB.",
        f"Machine: {machine}.",
        "",
        "| --max-ram-mb | peak MiB | wall s | voxels as without limit, % |",
        "| ---: | ---: | ---: | ---: |",
        *rows,
        "",
    ])  # fmt: skip
