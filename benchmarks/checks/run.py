"""The whole verdict table of a big label map: labelloop against the same rules written with scipy.ndimage.

    python benchmarks/checks/run.py                  # 128x128x100, seconds
    python benchmarks/checks/run.py --full --write   # 512x512x400, minutes because of the peer

The map is a phantom with all 14 classes. The peer (``peer.py``) is the same rules as one would write them down with
NumPy and scipy.ndimage: find_objects(), label(), center_of_mass(), distance_transform_edt() on the boxes of the
structures. It must find the same values. It has the rules on labels and on single intensities; those on the
surface and on holes it lacks: the line "all rules" is labelloop's with them, and "all evidence" what the quality of
labels is predicted from, the rules among it. All run in processes of their own on one core, so that peak memory is
theirs alone; it counts the arrays of labels and image as well.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import written_by

from labelloop.base.classes import load_classes
from labelloop.base.files import write_text
from labelloop.images.volume import Geometry, Volume, canonical
from labelloop.labels.check import check
from labelloop.labels.measured import measured as measure

HERE = Path(__file__).resolve().parent
RESULT = HERE.parent / "results" / "checks.md"
SIZES = {False: (128, 128, 100), True: (512, 512, 400)}
ALL, EVIDENCE = "all rules", "all evidence"
ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def draw(size: tuple[int, int, int], folder: Path) -> None:
    """Write labels and image of a phantom patient, canonical, and their spacing.

    It is drawn on half the voxels per axis, each of which then becomes eight: drawing all takes minutes.
    """
    from labelloop.phantom import draw_patient, field_of_view, render

    patient = draw_patient(3, 0)
    geometry = field_of_view(patient, size=tuple(n // 2 for n in size))
    for name, array in zip(("image", "labels"), render(patient, geometry), strict=True):
        turned = canonical(Volume(array, geometry))
        np.save(folder / f"{name}.npy", turned.array.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    spacing = tuple(s / 2 for s in turned.geometry.spacing)
    (folder / "geometry.json").write_text(json.dumps([size, spacing]))


def work(who: str, folder: Path) -> dict:
    """Check the map once; return the values by rule and class, seconds and peak memory."""
    labels, image = np.load(folder / "labels.npy"), np.load(folder / "image.npy")
    geometry = Geometry(*map(tuple, json.loads((folder / "geometry.json").read_text())))
    sys.path.insert(0, str(HERE))
    import peer

    scheme = load_classes("flare")
    if who not in (ALL, EVIDENCE):
        scheme = scheme.model_copy(update={"rules": tuple(r for r in scheme.rules if r["kind"] in peer.KINDS)})
    run = peer.check if who == "peer" else check
    wall, cpu = time.perf_counter(), time.process_time()
    if who == EVIDENCE:
        found = measure(labels, image, geometry, "CT", scheme, scheme.names)
        rows = [{"rule": row["measure"], "verdict": "", **row} for row in found]
    else:
        rows = run(labels, geometry, {}, scheme, image, overlap={})
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    values = {f"{row['rule']} {row['class']}": [row["value"], row["verdict"]] for row in rows}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"values": values, "wall_s": seconds[0], "cpu_s": seconds[1], "peak_mb": peak}


def measured(who: str, folder: Path) -> dict:
    """Run :func:`work` in a process of its own on one core."""
    command = [sys.executable, __file__, "--work", who, "--folder", str(folder)]
    done = subprocess.run(command, env={**os.environ, **ONE_CORE}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def difference(ours: dict, theirs: dict) -> float:
    """Return the largest difference of a value; raise when the two do not answer, or judge, the same."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"rows differ: {sorted(ours.keys() ^ theirs.keys())}")
    odd = {key: (ours[key], theirs[key]) for key in ours if ours[key][1] != theirs[key][1]}
    if odd:
        raise SystemExit(f"verdicts differ: {odd}")
    judged = [key for key in ours if ours[key][1] != "not_applicable"]
    return max(abs(ours[key][0] - theirs[key][0]) for key in judged)


def compare(size: tuple[int, int, int], repeats: int) -> list[str]:
    """Return the lines of the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("drawing the phantom", flush=True)
        draw(size, folder)
        voxels = "x".join(map(str, size))
        runs = [measured("labelloop", folder) for _ in range(repeats)]
        ours = min(runs, key=lambda run: run["cpu_s"])
        peer, whole, evidence = (measured(who, folder) for who in ("peer", ALL, EVIDENCE))
    counted = [verdict for _, verdict in ours["values"].values()]
    return [
        f"{len(counted)} rows, {counted.count('not_applicable')} not applicable, {counted.count('fail')} failing.",
        f"Both give the same verdicts; values differ by at most {difference(ours['values'], peer['values']):.1e}.",
        "",
        "| voxels | implementation | CPU s | wall s | peak MB | times |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {voxels} | {who} | {run['cpu_s']:.2f} | {run['wall_s']:.2f} | {run['peak_mb']:.0f} |"
            f" {run['cpu_s'] / ours['cpu_s']:.1f} |"
            for who, run in (
                ("labelloop", ours),
                (f"scipy.ndimage {version('scipy')}", peer),
                (f"labelloop, {ALL}", whole),
                (f"labelloop, {EVIDENCE}", evidence),
            )
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="512x512x400 instead of 128x128x100")
    parser.add_argument("--repeats", type=int, default=3, help="runs of labelloop; the one with least CPU time counts")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULT.parent.name}/{RESULT.name}")
    parser.add_argument("--work", choices=("labelloop", "peer", ALL, EVIDENCE), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(options.work, options.folder)))
        return
    text = "\n".join(
        [
            f"{written_by(__file__, 'numpy', details='one core used')} `times`: CPU seconds over labelloop's.",
            "",
            *compare(SIZES[options.full], options.repeats),
        ]
    )
    print(text)
    if options.write:
        write_text(RESULT, f"# Anatomy verdicts of one label map\n\n{text}\n")


if __name__ == "__main__":
    main()
