"""A model that nnU-Net plans and trains by its own commands: its label maps here, as a teacher, and fine-tuned.

    python benchmarks/nnunet/run.py OUT --btcv FOLDER             # half an hour or so on one core
    python benchmarks/nnunet/run.py OUT --btcv FOLDER --students  # besides, what learns from them: hours

Stock ``nnUNetv2_plan_and_preprocess`` (default planner and ResEnc M) and ``nnUNetv2_train`` make two models from 4
scans of BTCV, which ``nnUNetv2_predict`` and ``labelloop infer --model`` then run on 4 others, both on one core. They
are small, so that a CPU can train them: 5 mm, features divided by 4 and patches of at most 48 voxels by a configuration
that inherits from the planner's, few updates, no validation. What is there already is not made again.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import stock

from labelloop.base.documents import read_json
from labelloop.base.files import write_json, write_text
from labelloop.cases.table import Case
from labelloop.images.volume import read
from labelloop.inference.nnunet import described_nnunet
from labelloop.networks.network import build_network, count_parameters

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "loop")]
import students
from common import RESULTS, written_by
from folds import btcv_folds

RESULT = RESULTS / "nnunet.md"
PROGRAM = Path(sys.executable).with_name("labelloop")
ABOUT = """Both models are small, so that a CPU can train them: 5 mm, features divided by 4 and patches of at most 48
voxels by a configuration that inherits from the planner's; they learn by AdamW. DSC: mean over structures and scans, by
what annotators drew."""
MODES = {"mirrored": True, "not mirrored": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything that is made")
    parser.add_argument("--btcv", type=Path, required=True, help="folder of <case>_0000.nii.gz and <case>.nii.gz")
    parser.add_argument("--epochs", type=int, default=50, help=f"of the models, {stock.UPDATES_AN_EPOCH} updates each")
    parser.add_argument("--teacher-epochs", type=int, default=125, help="of nnU-Net's model that students learn from")
    parser.add_argument("--students", action="store_true", help="also train what learns from the models")
    parser.add_argument("--seeds", type=int, default=3, help="of the students")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}, too")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # all that is started from here shares one core
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    fold = btcv_folds(options.btcv)[0]
    nnunet = stock.Stock(options.out / "nnunet", options.epochs)
    nnunet.write_raw([case for case in fold.cases if case.case in fold.labeled])
    tested = [case for case in fold.cases if case.role == "test"]
    stock.link_images(tested, options.out / "images")
    updates = options.epochs * stock.UPDATES_AN_EPOCH
    lines = [
        f"{len(fold.labeled)} scans to learn from, {updates} updates; {len(tested)} others are segmented.",
        "",
        "| model | images | equal voxels, % | worst scan, % | DSC of nnU-Net's | of ours "
        "| nnU-Net, s (CPU s) | labelloop, s (CPU s) | times as fast (by CPU) |",
        f"| --- | --- |{' ---: |' * 7}",
    ]
    for plans in stock.PLANNERS:
        nnunet.plan(plans)
        nnunet.train(plans)
        for mode in MODES:
            lines.append(row(nnunet, plans, mode, options.out / f"updates_{updates}", tested))
            print(lines[-1], flush=True)
    if options.students:
        teacher = stock.Stock(options.out / "nnunet", options.teacher_epochs)
        teacher.train("plain")
        amount = (options.teacher_epochs * stock.UPDATES_AN_EPOCH, options.epochs, stock.UPDATES_AN_EPOCH)
        place = options.out / f"students_{updates}"
        lines += ["", *students.report(place, fold, teacher.folder("plain"), *amount, range(options.seeds))]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        write_text(RESULT, f"# A model that nnU-Net trained\n\n{_made()}\n\n{ABOUT}\n\n{text}")


def row(nnunet: stock.Stock, plans: str, mode: str, out: Path, tested: Sequence[Case]) -> str:
    """Let both segment the scans; return the row of the table."""
    images, mirror, folder = out.parent / "images", MODES[mode], nnunet.folder(plans)
    theirs, ours = (out / f"{plans}_{mode.replace(' ', '_')}" / name for name in ("nnunet", "labelloop"))
    command = [str(PROGRAM), "infer", str(images), "--model", str(folder), "--out", str(ours), "--device", "cpu"]
    command.append("--mirror" if mirror else "--no-mirror")
    spent = [
        timed(theirs, lambda: nnunet.predict(plans, images, theirs, mirror)),
        timed(ours, lambda: nnunet.run(command)),
    ]
    found = [compared(case, theirs, ours) for case in tested]
    plan = described_nnunet(folder).plan
    if plan is None:
        raise SystemExit(f"{folder}: no plan")
    cells = [
        f"{plans}, {count_parameters(build_network(plan, len(stock.LABELS) + 1)) / 1e6:.2f} M weights",
        mode,
        f"{100 * sum(one.equal for one in found) / sum(one.voxels for one in found):.4f}",
        f"{100 * min(one.equal / one.voxels for one in found):.4f}",
        *(f"{100 * float(np.nanmean([one.dice[which] for one in found])):.1f}" for which in (0, 1)),
        *(f"{wall:.0f} ({cpu:.0f})" for wall, cpu in spent),
        f"{spent[0][0] / spent[1][0]:.1f} ({spent[0][1] / spent[1][1]:.1f})",
    ]
    return f"| {' | '.join(cells)} |"


def timed(out: Path, work: Callable[[], None]) -> tuple[float, float]:
    """Do the work, or take what it took before; return seconds on the clock and CPU seconds, with all its processes."""
    file = out / "seconds.json"
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        work()
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        write_json(file, {"wall": wall, "cpu": cpu})
    spent = read_json(file)
    return spent["wall"], spent["cpu"]


class Compared(NamedTuple):
    """Label maps of one scan: equal voxels, voxels, and the DSC of each annotated structure, nnU-Net's and ours."""

    equal: int
    voxels: int
    dice: tuple[list[float], list[float]]


def compared(case: Case, theirs: Path, ours: Path) -> Compared:
    """Compare the label maps of a scan with each other, and with the truth."""
    files = (theirs / f"{case.case}.nii.gz", ours / f"{case.case}.nii.gz", case.label)
    first, second, truth = (read(file).array for file in files)
    dice = tuple([dice_of(labels, truth, own) for own in range(1, len(stock.LABELS) + 1)] for labels in (first, second))
    return Compared(int((first == second).sum()), first.size, dice)


def dice_of(labels: np.ndarray, truth: np.ndarray, own: int) -> float:
    """Return the DSC of a structure; NaN where it is not in the scan."""
    found, true = labels == own, truth == own
    return 2 * float((found & true).sum()) / float(found.sum() + true.sum()) if true.any() else np.nan


def _made() -> str:
    shared = f"one core, niceness {os.nice(0)}, load average {os.getloadavg()[2]:.1f}"
    return written_by(__file__, "torch", "nnunetv2", "labelloop", details=shared)


if __name__ == "__main__":
    main()
