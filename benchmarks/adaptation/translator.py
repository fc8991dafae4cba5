"""The translator in use: windows through the engine's walk, against a plain loop over the same windows.

    python benchmarks/adaptation/translator.py [--write]
    python benchmarks/adaptation/translator.py --device cuda --features 64 --blocks 9 --patch 48 160 160

The plain loop is the one that is usually written down: each window through the network by itself, added to a sum and a
count of the whole volume, the mean at the end. Both see the same network, windows and volume, each in a process of its
own; memory is the process's peak less what it had before, that of the GPU where there is one. The means differ from
the engine's Gaussian blending, so that results are compared where windows do not overlap: with ``overlap`` 0.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import written_by

from labelloop.base.files import write_text
from labelloop.inference.translate import translate
from labelloop.inference.windows import window_starts
from labelloop.networks.generator import Generator

RESULT = Path(__file__).resolve().parents[1] / "results" / "translator.md"
SHAPE = (96, 192, 224)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--patch", type=int, nargs=3, default=(16, 64, 64))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--contestant", choices=("plain", "engine"), help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULT.name}")
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(measured(options)))
        return
    found = {name: contestant(name) for name in ("plain", "engine")}
    text = "\n".join(table(found, options)) + "\n"
    print(text)
    if options.write:
        gpu = options.device == "cuda"
        head = f"# The translator in use\n\n{written_by(__file__, 'torch', gpu=gpu)}"
        write_text(RESULT, f"{head}\n\n{text}")


def contestant(name: str) -> dict:
    """Measure one contestant in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--contestant", name]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measured(options: argparse.Namespace) -> dict:
    """Return CPU or GPU seconds and peak memory (MiB) of a contestant, and its result without overlap."""
    torch.manual_seed(0)
    network = Generator(options.features, options.blocks).to(options.device).eval()
    image = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
    run = plain if options.contestant == "plain" else translate
    run(network, image[:16, :64, :64], options.patch)  # loads libraries
    before, start = memory(options.device), clock(options.device)
    run(network, image, options.patch)
    seconds, peak = clock(options.device) - start, memory(options.device) - before
    small = image[: options.patch[0], : options.patch[1], : 2 * options.patch[2]]
    return {"seconds": seconds, "peak": peak, "sample": run(network, small, options.patch, 0.0)[::4, ::8, ::8].tolist()}


@torch.inference_mode()
def plain(network, image: np.ndarray, patch: tuple[int, int, int], overlap: float = 0.5) -> np.ndarray:
    """Translate window by window, into a sum and a count of the whole volume."""
    device = next(network.parameters()).device
    padded = np.pad(image, [(0, max(0, p - n)) for n, p in zip(image.shape, patch, strict=True)], constant_values=-1)
    total, count = torch.zeros(padded.shape), torch.zeros(padded.shape)
    for start in product(*window_starts(padded.shape, patch, 1 - overlap)):
        part = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
        total[part] += network(torch.from_numpy(padded[part].copy())[None, None].to(device))[0, 0].cpu()
        count[part] += 1
    z, y, x = image.shape
    return (total / count)[:z, :y, :x].clamp(-1, 1).numpy()


def clock(device: str) -> float:
    """Return seconds: of the processor, or of the wall when a GPU works."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def memory(device: str) -> float:
    """Return the peak memory so far, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def table(found: dict[str, dict], options: argparse.Namespace) -> Iterable[str]:
    """Yield a Markdown table."""
    z, y, x = SHAPE
    patch = "x".join(map(str, options.patch))
    difference = np.abs(np.subtract(*(np.array(f["sample"]) for f in found.values()))).max()
    yield f"A volume of {z}x{y}x{x}, windows of {patch} that overlap by half, {options.features} features, "
    yield f"{options.blocks} residual blocks. Without overlap the two differ by at most {difference:.1e} (on -1 to 1)."
    yield ""
    yield f"| | {'wall' if options.device == 'cuda' else 'CPU'} seconds | ratio | peak MiB | ratio |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    base = found["plain"]
    for name, row in found.items():
        times = f"{row['seconds']:.1f} | {base['seconds'] / row['seconds']:.2f}"
        yield f"| {name} | {times} | {row['peak']:.0f} | {base['peak'] / row['peak']:.2f} |"


if __name__ == "__main__":
    main()
