"""What a training step costs in each kind of training, beside nnU-Net's own step, in one process on the same data.

    python benchmarks/training/run.py
    python benchmarks/training/run.py --recipe default --plan fine --device cuda --write

The peer is ``nnUNetTrainer.train_step`` with nnU-Net's loss on the network of the same plan, as nnU-Net lays it out in
memory, fed by the same loader: nnU-Net's, on labeled cases only. An iteration is a step and the making of its batch.
The contestants take turns; medians are printed. On a CPU one thread works and its processor time counts, so that other
processes hardly matter; on a GPU it is wall time, and the ratio leaves batches out, which worker processes make.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from contestants import KINDS, PEER, SMALL, Contestant, contestant, write_data

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import written_by

from labelloop.base.files import write_text
from labelloop.networks.plans import Plan
from labelloop.recipe import load_recipe

RESULT = Path(__file__).resolve().parents[1] / "results" / "training.md"
ALLOWED = {"partial (exact)": 1.15, "partial (max)": 1.15, "partial, CutMix": 1.15} | {
    "mean teacher": 1.6,
    "cross pseudo": 2.2,
}


def measure(contestants: dict[str, Contestant], rounds: int, device: torch.device) -> dict[str, tuple[float, float]]:
    """Return the median seconds of a batch and of a step of each contestant; the first of ``rounds`` is not counted."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, one in contestants.items():
            np.random.seed(number)
            torch.manual_seed(number)
            began = clock()
            batch = one.batch()
            made = clock()
            one.step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                found[name].append((made - began, clock() - made))
    return {name: tuple(map(statistics.median, zip(*rows, strict=True))) for name, rows in found.items()}


def report(found: dict[str, tuple[float, float]], plan: Plan, device: torch.device) -> Iterable[str]:
    """Yield a Markdown table."""
    peer_batch, peer_step = found[PEER]
    cuda = device.type == "cuda"
    yield f"Patch {' x '.join(map(str, plan.patch))}, batch {plan.batch_size}, {plan.features} features."
    yield f"The ratio is of {'steps' if cuda else 'steps and batches together'}."
    yield from ("", "| training | batch (s) | step (s) | ratio | allowed |", "| --- | ---: | ---: | ---: | ---: |")
    for name, (batch, step) in found.items():
        ratio = step / peer_step if cuda else (batch + step) / (peer_batch + peer_step)
        yield f"| {name} | {batch:.3f} | {step:.3f} | {ratio:.2f} | {ALLOWED.get(name, '')} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", help="with --plan: a plan of a recipe; else a small one")
    parser.add_argument("--plan")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULT.parent.name}/{RESULT.name}")
    options = parser.parse_args()
    plan = load_recipe(options.recipe).plans[options.plan] if options.recipe else SMALL
    device = torch.device(options.device)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        bank = write_data(data, plan)
        contestants = {name: contestant(name, data, bank, plan, options.device) for name in KINDS}
        found = measure(contestants, options.rounds, device)
    text = "\n".join(report(found, plan, device)) + "\n"
    print(text)
    if options.write:
        made = written_by(__file__, "torch", gpu=device.type == "cuda", details=f"{options.rounds} rounds")
        write_text(RESULT, f"# What a training step costs\n\n{made}\n\n{text}")


if __name__ == "__main__":
    main()
