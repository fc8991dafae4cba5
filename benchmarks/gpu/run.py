"""Everything that a GPU is to show, in minutes and in one call: correct, fast, and what it takes.

    python benchmarks/gpu/run.py --minutes 12 --out build/gpu --write
    python benchmarks/gpu/run.py --device cpu --toy --minutes 3 --out build/gpu_toy    # the same at a toy's size
    python benchmarks/gpu/run.py --prepare --inputs build/gpu_inputs [--btcv FOLDER]   # scans to carry, made beforehand

The parts, the most telling first: ``equality`` (which machine it is; the engine on the device against the CPU),
``speed`` (stages, memory, energy, beside nnU-Net's predictor), ``training`` (each kind at a published size), ``loop``
(does the loop pay?). Each has a process of its own, so that what one does to the GPU is no matter to the next, and a
share of the minutes; what is left over goes to those that did not come to their end. Every step's result is a line of
``results.jsonl`` at once; the same call goes on where one was ended. ``equality`` and the engine's speed need torch,
numpy, scipy, pydantic, yaml and dynamic_network_architectures alone (``bundle.py`` packs what else is missing); what
cannot be imported is a line, too.
A part is a module with ``steps(context)``; another one joins by its name in ``PARTS``.
"""

import argparse
import importlib
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
for place in (ROOT / "src", HERE, HERE.parent / "inference", HERE.parent / "training"):  # nothing needs to be installed
    if str(place) not in sys.path:
        sys.path.append(str(place))

from record import Record, read  # noqa: E402

PARTS = {"equality": 0.2, "speed": 0.3, "training": 0.25, "loop": 0.25}
"""Parts, each a module with ``steps(context)``, and the share of the minutes that each has at first."""
GRACE_S = 30.0
"""A part that is still busy so long after its time is killed."""
LEFT_OUT = 2
"""Exit code of a part that has left out steps, or for which something is not installed."""
SHORTEST_S = 20.0
"""No part begins with less time than this: the imports take seconds."""


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; return 0 when all steps were taken, 1 when some failed or were left out."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    options.inputs = options.inputs or options.out / "inputs"
    if options.prepare:
        from inputs import FULL, TOY, prepare

        made = prepare(options.inputs, TOY if options.toy else FULL)
        if options.btcv:
            from loop import carry

            made += carry(options.btcv, options.inputs / "btcv")
        print("\n".join(map(str, made)))
        return 0
    if options.child:
        return child(options)
    end, session = time.time() + 60 * options.minutes, f"{time.time():.0f}"
    settled = all_parts(options, end, session)
    from table import report, write

    text = report(read(options.out / "results.jsonl"))
    print(text)
    if options.write:
        print(write(text, sys.argv[1:] if arguments is None else arguments))
    return 0 if settled and not failures(options.out) else 1


def all_parts(options: argparse.Namespace, end: float, session: str) -> bool:
    """Run each part in its share of the time, then those that are left in what remains; return whether none is left."""
    left = list(options.parts)
    began, first = time.time(), True
    while left and end - time.time() > SHORTEST_S:
        for part in list(left):
            remaining = end - time.time()
            if remaining <= SHORTEST_S:
                break
            ahead = sum(PARTS[name] for name in left[left.index(part) :])
            seconds = max(SHORTEST_S, remaining * PARTS[part] / ahead) if first else remaining
            if run_part(options, part, time.time() + seconds, session):
                left.remove(part)
        if not first:
            break
        first = False
    print(f"{time.time() - began:.0f} s; not to their end: {', '.join(left) or 'none'}", flush=True)
    return not left


def run_part(options: argparse.Namespace, part: str, until: float, session: str) -> bool:
    """Run a part in a process of its own, again where the device was lost on the way; return whether it is done."""
    command = [sys.executable, str(HERE / "run.py"), "--child", part, "--until", f"{until:.1f}", "--session", session,
               "--out", str(options.out), "--inputs", str(options.inputs), "--device", options.device]  # fmt: skip
    command += ["--toy"] if options.toy else []
    record = Record(options.out / "results.jsonl", part, session)
    while True:
        before = len(record.settled())
        try:
            code = subprocess.run(command, timeout=max(1.0, until - time.time()) + GRACE_S).returncode
        except subprocess.TimeoutExpired:
            record.append(ended="killed: its time was over")
            return False
        if code == 0:
            return True
        if code == LEFT_OUT:
            return False
        record.append(ended=f"exit code {code}")
        if time.time() >= until or len(record.settled()) == before:
            return False


def child(options: argparse.Namespace) -> int:
    """Run one part in this process; return 0 when all steps were taken. A lost device ends the process."""
    record = Record(options.out / "results.jsonl", options.child, options.session)
    try:
        import torch
        from context import Context
        from device import healthy

        module = importlib.import_module(options.child)
    except ImportError as error:
        record.append(ended=f"not run: {error}")
        return LEFT_OUT
    device = torch.device(options.device)
    context = Context(device, options.toy, options.out / "work", options.inputs, options.until)
    done = record.run(module.steps(context), options.until, lambda: healthy(device))
    return 0 if done else LEFT_OUT


def failures(out: Path) -> list[str]:
    """Return the steps whose last line says that they failed or never ended."""
    from record import results

    return [f"{part}: {step}" for (part, step), line in results(read(out / "results.jsonl")).items()
            if line["status"] != "done"]  # fmt: skip


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12, help="after which no step begins")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder for results.jsonl and work")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="small networks, scans and numbers, to try the script")
    parser.add_argument("--inputs", type=Path, help="folder of the scans that --prepare made; default: OUT/inputs")
    parser.add_argument("--prepare", action="store_true", help="make the scans to carry, and end")
    parser.add_argument("--btcv", type=Path, help="with --prepare: <case>_0000.nii.gz and <case>.nii.gz, for the loop")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/gpu.md")
    for hidden, kind in (("--child", str), ("--session", str), ("--until", float)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
