"""The network alone, in other ways than the engine's: CPU seconds of a window, share of the peak, agreement.

    pip install --target build/backends --no-deps openvino openvino-telemetry nncf ninja pydot
    PYTHONPATH=build/backends python benchmarks/inference/backends.py --write        # 20 minutes on one quiet core

All windows of each scan run in one thread, each way in a process of its own. A backend that is not installed is named
and left out. DSC is that of the label maps on the network's grid against those of ``exact``: the mean over classes,
and the lowest mean of the scans.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from model import trained_model
from peak import DTYPES, peak_gmacs
from scans import BUILD, REAL, RESULTS, ROOT, SIZES, machine, scan

from labelloop.base.files import write_text
from labelloop.base.precision import Precision, has_units
from labelloop.images.volume import read
from labelloop.inference.cpu import channels_last, keep_freed_memory
from labelloop.inference.engine import Predictor, cast_weights, read_model
from labelloop.inference.locate import box_of_mask
from labelloop.inference.steps import Locate
from labelloop.inference.windows import Network, Window, slide_blocks
from labelloop.networks.network import build_network, count_macs, load_network
from labelloop.networks.plans import Plan
from run import TRAINING_STEPS, agreement

MARGIN_MM = 30.0
"""Around what ``exact`` found, for the row that is told where to look."""
MOVED = 4
"""Voxels by which the image is moved under the windows: how much the label map depends on where they lie."""
CALIBRATED_ON = 3
"""Windows of the first scan that show the range of activations to the network of 8 bits."""
Build = Callable[[torch.nn.Module, torch.Tensor], Network]
Outcome = tuple[list[float], dict[str, np.ndarray]]
"""CPU seconds of each window, and the label map [z, y, x] of each scan."""


@dataclass(frozen=True)
class Backend:
    """A way to run the network.

    Args:
        build: makes the network that runs from nnU-Net's, and windows of the first scan.
        precision: of the multiply-adds.
        quantized: the multiply-adds are of 8 bits, what is between them of ``precision``.
        told: only the box around what ``exact`` found is segmented.
    """

    build: Build
    precision: Precision = "fp32"
    quantized: bool = False
    batch: int = 1
    step: float = 0.5
    moved: int = 0
    told: bool = False


def as_torch(network: torch.nn.Module, _: torch.Tensor, last: bool = False) -> Network:
    """The network as nnU-Net builds and runs it, or with channels last."""
    return network.to(memory_format=torch.channels_last_3d if last else torch.contiguous_format)


def engine(network: torch.nn.Module, _: torch.Tensor, dtype: torch.dtype = torch.float32) -> Network:
    """The network as the engine runs it."""
    ours = cast_weights(channels_last(network), dtype)
    return lambda x: ours(x.to(dtype))


def coarse_bf16(network: torch.nn.Module, _: torch.Tensor) -> Network:
    """As the engine, in bf16 but for the finest resolution, which has half of the multiply-adds."""
    ours = channels_last(network)
    for part in (*network.encoder.stages[1:], network.decoder.transpconvs, *network.decoder.stages[:-1]):
        cast_weights(part, torch.bfloat16)
    return ours


def rounded_inputs(network: torch.nn.Module, _: torch.Tensor) -> Network:
    """As the engine, all tensors fp32, but oneDNN may round what a convolution multiplies to bf16."""
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    return channels_last(network)


def inductor(network: torch.nn.Module, _: torch.Tensor) -> Network:
    """The engine's network compiled, norms and activations fused, weights packed for oneDNN beforehand."""
    import torch._inductor.config as inductor_config

    inductor_config.freezing = True
    return torch.compile(channels_last(network), dynamic=False)


def onednn_graph(network: torch.nn.Module, windows: torch.Tensor) -> Network:
    """nnU-Net's network as a graph that oneDNN partitions and fuses."""
    torch.jit.enable_onednn_fusion(True)
    with torch.no_grad():
        graph = torch.jit.freeze(torch.jit.trace(network, windows[:1], check_trace=False))
        graph(windows[:1])
    return graph


def openvino(network: torch.nn.Module, windows: torch.Tensor, precision: str, quantized: bool = False) -> Network:
    """The network by OpenVINO; ``quantized`` to 8 bits by NNCF."""
    import openvino as ov

    model = ov.convert_model(network, example_input=windows[:1], input=list(windows[:1].shape))
    if quantized:
        import nncf

        seen = nncf.Dataset([one[None].numpy() for one in windows])
        model = nncf.quantize(model, seen, subset_size=len(windows))
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda x: torch.from_numpy(request.infer({0: x.contiguous().numpy()})[0])


BACKENDS = {
    "exact": Backend(engine),
    "exact, 2 windows a pass": Backend(engine, batch=2),
    "torch, channels first": Backend(as_torch),
    "torch, channels last": Backend(partial(as_torch, last=True)),
    "torch.compile of exact": Backend(inductor),
    "oneDNN graph": Backend(onednn_graph),
    "OpenVINO": Backend(partial(openvino, precision="f32")),
    "bf16": Backend(partial(engine, dtype=torch.bfloat16), "bf16"),
    "bf16 but for the finest resolution": Backend(coarse_bf16, "bf16"),
    "bf16 inside convolutions": Backend(rounded_inputs, "bf16"),
    "OpenVINO bf16": Backend(partial(openvino, precision="bf16"), "bf16"),
    "OpenVINO int8": Backend(partial(openvino, precision="f32", quantized=True), quantized=True),
    "OpenVINO int8, rest bf16": Backend(partial(openvino, precision="bf16", quantized=True), "bf16", quantized=True),
    "exact, windows 0.8 apart": Backend(engine, step=0.8),
    "exact, windows 1 apart": Backend(engine, step=1.0),
    "exact, told where to look": Backend(engine, told=True),
    f"exact, moved by {MOVED} voxels": Backend(engine, moved=MOVED),
    "exact, again": Backend(engine),
}
"""The first is what the others are compared with; the last two show how much time and label map mean."""


def run_one(name: str, model: Path, folder: Path) -> None:
    """Segment the arrays in ``folder`` in one way; write label maps, and the CPU seconds of each window."""
    torch.set_num_threads(1)
    keep_freed_memory()
    backend, about = BACKENDS[name], read_model(model)
    plan, outputs = about.plan, len(about.classes) + 1
    arrays = {path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))}
    first = torch.from_numpy(next(iter(arrays.values())))
    network = load_network(lambda: build_network(plan, outputs), model / "weights.pt").eval()
    timed = Timed(backend.build(network, some_windows(first, plan)))
    timed(some_windows(first, plan)[: backend.batch])  # what is compiled or packed at the first pass
    timed.seconds.clear()
    labels = {}
    for case, array in arrays.items():
        exact = folder / f"{case}.npz"
        box = box_to_look_at(np.load(exact)["exact"], plan) if backend.told else (slice(None),) * 3
        labels[case] = np.zeros(array.shape, np.uint8)
        labels[case][box] = segmented(timed, array[box], plan, outputs, backend)
    np.savez(folder / "labels.npz", **labels)
    print(json.dumps(timed.seconds))


class Timed:
    """A network, and the CPU seconds of each window that it saw."""

    def __init__(self, network: Network):
        self._network = network
        self.seconds: list[float] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        start = time.process_time()
        with torch.inference_mode():
            logits = self._network(x)
        self.seconds += [(time.process_time() - start) / len(x)] * len(x)
        return logits.float()


def segmented(network: Network, array: np.ndarray, plan: Plan, outputs: int, backend: Backend) -> np.ndarray:
    """Return the label map of a normalized image [z, y, x]."""
    moved = np.pad(array, [(backend.moved, 0)] * 3, mode="edge")
    window = Window(plan.patch, outputs, backend.step, batch=backend.batch)
    blocks = slide_blocks(network, torch.from_numpy(moved)[None], window)
    labels = np.concatenate([block.argmax(0).numpy().astype(np.uint8) for block in blocks])
    return labels[(slice(backend.moved, None),) * 3]


def box_to_look_at(exact: np.ndarray, plan: Plan) -> tuple[slice, ...]:
    """Return the box of what ``exact`` found, as a model that locates would say at best."""
    box = box_of_mask(exact > 0, plan.spacing_mm, Locate(locate="exact", margin_mm=MARGIN_MM))
    return tuple(slice(*part) for part in box or ((0, n) for n in exact.shape))


def some_windows(image: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Return windows [n, 1, z, y, x] of an image, from its first corner to its last."""
    room = [max(0, n - p) for n, p in zip(image.shape, plan.patch, strict=True)]
    corners = [[r * i // (CALIBRATED_ON - 1) for r in room] for i in range(CALIBRATED_ON)]
    boxes = [tuple(slice(c, c + p) for c, p in zip(corner, plan.patch, strict=True)) for corner in corners]
    return torch.stack([image[box] for box in boxes])[:, None]


def measured(name: str, model: Path, folder: Path) -> Outcome | str:
    """Run one way in a process of its own: return seconds and label maps, or why it does not run here."""
    if not has_units(BACKENDS[name].precision, torch.device("cpu")):
        return f"left out: no units for {BACKENDS[name].precision}"
    command = [sys.executable, __file__, "--one", name, "--model", str(model), "--folder", str(folder)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        return f"not installed ({reason.split(chr(39))[1]})" if "No module named" in reason else f"fails: {reason}"
    with np.load(folder / "labels.npz") as labels:
        return json.loads(done.stdout.splitlines()[-1]), dict(labels)


def report(model: Path, names: Sequence[str], scans: Sequence[str]) -> str:
    """Run all ways; return the text of the result."""
    about = read_model(model)
    macs = count_macs(build_network(about.plan, len(about.classes) + 1), about.plan.patch) / 1e9
    voxel_ml = float(np.prod(about.plan.spacing_mm)) / 1000
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in scans:
            image = scan(name, BUILD)
            if image is None:
                raise SystemExit(f"{name}: not beside the project")
            np.save(folder / f"{name}.npy", Predictor(model, "cpu").prepare(read(image), "CT").array[0])
        first = measured("exact", model, folder)
        if isinstance(first, str):
            raise SystemExit(f"exact {first}")
        for case, labels in first[1].items():
            np.savez(folder / f"{case}.npz", exact=labels)
        for name in ["exact", *(n for n in names if n != "exact")]:
            found = first if name == "exact" else measured(name, model, folder)
            peak = peak_gmacs("int8" if BACKENDS[name].quantized else BACKENDS[name].precision)
            rows.append(row(name, found, first, macs / peak, voxel_ml))
            print(rows[-1], flush=True)
    return TEXT.format(
        model=model.name, macs=macs, found=classes_in(first[1], voxel_ml), scans=", ".join(scans), machine=machine(),
        moved=MOVED, margin=MARGIN_MM, calibrated=CALIBRATED_ON, rows="\n".join(rows),
        **{precision: peak_gmacs(precision) for precision in DTYPES},
    )  # fmt: skip


def classes_in(labels: dict[str, np.ndarray], voxel_ml: float) -> str:
    """Say in words what was found in each scan: with few or small classes, DSC tells of specks."""
    said = []
    for case, array in labels.items():
        volumes_ml = np.bincount(array[array > 0]) * voxel_ml
        volumes_ml = volumes_ml[volumes_ml > 0]
        smallest = f", the smallest of {volumes_ml.min():.1f} ml" if len(volumes_ml) else ""
        said.append(f"{len(volumes_ml)} classes in {case}{smallest}")
    return "; ".join(said)


def row(name: str, found: Outcome | str, first: Outcome, floor_s: float, voxel_ml: float) -> str:
    """Return a line of the table; ``floor_s`` are the seconds of a window at the machine's peak."""
    if isinstance(found, str):
        return f"| {name} | {found} | | | | | | | |"
    (seconds, labels), (exact_seconds, exact) = found, first
    one = statistics.median(seconds)
    agreed = [agreement(exact[case], labels[case], voxel_ml) for case in exact]
    equal, dice, large = (min(values) for values in zip(*agreed, strict=True))
    times = sum(exact_seconds) / sum(seconds)
    return (
        f"| {name} | {len(seconds)} | {one:.3f} | {100 * floor_s / one:.0f} | {sum(seconds):.1f} | {times:.2f} "
        f"| {100 * equal:.3f} | {dice:.4f} | {large:.4f} |"
    )


TEXT = """Model `{model}`, {macs:.1f} GMAC a window; all windows of {scans} on the network's grid, one thread.
Machine: {machine}.

Peak of one thread, measured in this run: {fp32:.0f} GMAC a CPU second in fp32, {bf16:.0f} in bf16, {int8:.0f} in int8.
`s` is the median of a window; `peak` the share of the peak, of its precision, that the network reaches; `times` how
many times as fast as `exact` all windows together are. `equal`, `DSC` and `large` (DSC of classes of at least 1 ml):
the label maps on the network's grid against `exact`, of the scan that agrees least. `told where to look`: only the box
of what `exact` found, and {margin:g} mm around it. `moved`: the image lies {moved} voxels farther along each axis
under the windows. int8 was calibrated on {calibrated} windows of the first scan. `exact` finds {found}.

| network | windows | s | peak, % | all, s | times | equal % | DSC | large |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", nargs="+", choices=[*SIZES, *REAL], default=list(REAL))
    parser.add_argument("--ways", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--model", type=Path, help="model folder; default: train one, or the one trained before")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULTS.name}/")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = arguments.model or trained_model(ROOT / "build" / "benchmark_model", TRAINING_STEPS)
    if arguments.one:
        run_one(arguments.one, model, arguments.folder)
        return
    text = report(model, arguments.ways, arguments.scans)
    print(f"\n{text}")
    if arguments.write:
        command = f"python benchmarks/inference/backends.py {shlex.join(sys.argv[1:])}"
        head = f"# Backends of the network\n\nWritten by `{command}` on {time.strftime('%Y-%m-%d')}.\n\n"
        write_text(RESULTS / f"inference_backends_{model.name}.md", head + text)


if __name__ == "__main__":
    main()
