"""What a training update costs on this CPU: by precision, by batch, and beside a busy neighbor.

    python benchmarks/cpu/run.py --write
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/cpu/run.py --write

An update is forward, backward and optimizer step of the network of a recipe's plan; the batch is random numbers. Each
row is a process of its own; rows that are compared take turns, medians are printed. Processor time counts; beside a
neighbor, wall time.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from labelloop.base.files import write_text
from labelloop.base.machine import processor
from labelloop.networks.plans import Plan
from labelloop.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
TURNS, UPDATES = 3, 4
PLAIN, BY_ONEDNN = "as torch does", "by oneDNN"


@dataclass(frozen=True)
class Row:
    """One way to take updates.

    Args:
        batch: samples.
        convolutions: of single samples: as torch does, or by oneDNN.
        wait: how threads wait for each other (``OMP_WAIT_POLICY``).
        neighbors: other busy processes.
    """

    name: str
    batch: int = 2
    precision: str = "fp32"
    convolutions: str = BY_ONEDNN
    wait: str = "PASSIVE"
    neighbors: int = 0
    seconds: tuple[float, ...] = field(default=(), compare=False)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


PRECISIONS = [Row("fp32"), Row("bf16", precision="bf16")]
SINGLES = [
    Row("two samples"),
    Row("one sample, as torch does", batch=1, convolutions=PLAIN),
    Row("one sample, by oneDNN", batch=1),
]
NEIGHBORS = [
    Row(f"{neighbors} busy neighbors, waiting threads {how}", wait=wait, neighbors=neighbors)
    for neighbors in (0, 1, 2)
    for how, wait in (("sleep", "PASSIVE"), ("spin", "ACTIVE"))
]


def measure(rows: Sequence[Row], recipe: str) -> list[Row]:
    """Return the rows with the seconds of an update in each turn."""
    times: dict[str, list[float]] = {row.name: [] for row in rows}
    for _ in range(TURNS):
        for row in rows:
            with busy(row.neighbors):
                times[row.name].append(_in_a_process(row, recipe))
    return [replace(row, seconds=tuple(times[row.name])) for row in rows]


@contextmanager
def busy(neighbors: int) -> Iterator[None]:
    """Keep so many processes busy."""
    workers = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(neighbors)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _spin() -> None:
    while True:
        pass


def _in_a_process(row: Row, recipe: str) -> float:
    asked = json.dumps(
        [row.batch, row.precision, row.convolutions, bool(row.neighbors or "waiting" in row.name), recipe]
    )
    environment = os.environ | {"OMP_WAIT_POLICY": row.wait}
    done = subprocess.run([sys.executable, __file__, "--one", asked], env=environment, capture_output=True, check=True)
    return float(done.stdout)


def one(batch: int, precision: str, convolutions: str, wall: bool, recipe: str) -> float:
    """Return the seconds of an update in this process."""
    import time

    import torch
    from torch.nn import functional

    from labelloop.base.precision import DTYPES
    from labelloop.networks.network import build_network
    from labelloop.training.cpu import by_onednn

    plan, last = plan_of(recipe), torch.channels_last_3d
    network = build_network(plan, 15)
    if convolutions == BY_ONEDNN:
        by_onednn(network)
    network.to(memory_format=last)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True)
    image = torch.randn(batch, 1, *plan.patch).to(memory_format=last)
    target = torch.randint(0, 15, (batch, *plan.patch))

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", DTYPES.get(precision), enabled=precision in DTYPES):
            logits = network(image)
        functional.cross_entropy(logits.float(), target).backward()
        optimizer.step()

    update()
    clock = time.perf_counter if wall else time.process_time
    began = clock()
    for _ in range(UPDATES):
        update()
    return (clock() - began) / UPDATES


def plan_of(recipe: str) -> Plan:
    """Return the plan ``fine`` of a recipe."""
    return load_recipe(recipe).plans["fine"]


def table(title: str, rows: Sequence[Row]) -> str:
    """Return a table of seconds an update, and of a sample, as ratios to the first row."""
    first = rows[0].median / rows[0].batch
    lines = [f"### {title}", "", "| | s an update | a sample, relative | lowest, highest |", "|---|---|---|---|"]
    for row in rows:
        spread = f"{min(row.seconds):.2f}, {max(row.seconds):.2f}"
        lines.append(f"| {row.name} | {row.median:.2f} | {row.median / row.batch / first:.1f} | {spread} |")
    return "\n".join(lines)


def machine() -> str:
    """Return the CPU's name, the cores that may be used, and what oneDNN may use of it."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "all that it has")
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores, oneDNN may use: {allowed}"


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="default_demo", help="whose plan `fine` is trained")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/cpu_<instructions>.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(one(*json.loads(options.one)))
        return
    plan = plan_of(options.recipe)
    tables = [
        table("Precision (CPU seconds)", measure(PRECISIONS, options.recipe)),
        table("Batches of one sample, fp32 (CPU seconds)", measure(SINGLES, options.recipe)),
        table("Beside busy processes, fp32 (wall seconds)", measure(NEIGHBORS, options.recipe)),
    ]
    head = f"# Training updates on a CPU\n\n{machine()}. {date.today()}.\n"
    network = (
        f"Recipe {options.recipe}: patch {plan.patch}, features {plan.features}; {UPDATES} updates, {TURNS} turns.\n"
    )
    page = "\n\n".join([head + network, *tables]) + "\n"
    print(page)
    if options.write:
        allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "all").lower()
        write_text(ROOT / "results" / f"cpu_{allowed}.md", page)


if __name__ == "__main__":
    main()
