"""Where ``exact`` and nnU-Net's predictor differ: the logits of both on the middle of a scan, in several arithmetics.

    python benchmarks/inference/agreement.py --write           # 8 windows of the benchmark's model on hcc_048, minutes

nnU-Net adds up weighted logits, and their weights, in half precision (``predict_from_raw_data.py``); labelloop in
float32. The predictor is therefore run twice: as it is, and with the word ``half`` replaced by ``float32``.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from scans import BUILD, RESULTS, ROOT, machine, scan, stock_models

from labelloop.base.files import write_text
from labelloop.images.volume import read
from labelloop.inference.engine import Predictor
from labelloop.inference.prepare import Prepared

PATCHES = 1.5
"""Size of the part that is looked at, in patches: two windows along each axis."""


class FullPrecision:
    """Torch, where ``half`` means float32."""

    half = torch.float32

    def __getattr__(self, name: str):
        return getattr(torch, name)


def middle(array: np.ndarray, patch: tuple[int, int, int]) -> np.ndarray:
    """Return the middle of an array, of :data:`PATCHES` patches where it is that large."""
    sizes = [min(n, int(PATCHES * p)) for n, p in zip(array.shape, patch, strict=True)]
    return array[tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(array.shape, sizes, strict=True))].copy()


def stock_logits(folder: Path) -> Callable[[np.ndarray, AbstractContextManager], torch.Tensor]:
    """Return a function from an array and a context to the logits of nnU-Net's predictor."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=(0,))

    def logits(array: np.ndarray, context: AbstractContextManager) -> torch.Tensor:
        with context:
            return predictor.predict_logits_from_preprocessed_data(torch.from_numpy(array.copy())[None]).cpu()

    return logits


def row(name: str, logits: torch.Tensor, exact: torch.Tensor) -> str:
    """Return a line of the table: how logits differ from those of ``exact``."""
    logits = logits.float()
    difference = (logits - exact).abs()
    other = logits.argmax(0) != exact.argmax(0)
    best, second = exact.topk(2, 0).values
    lead = f"{(best - second)[other].median():.1e}" if other.any() else "-"
    equal = 100 * (1 - other.float().mean().item())
    return f"| {name} | {difference.mean():.1e} | {difference.max():.1e} | {equal:.4f} | {lead} |"


def report(model: Path, name: str, image: Path) -> str:
    """Compute everything; return the text of the result."""
    import nnunetv2.inference.predict_from_raw_data as stock

    predictor = Predictor(model, "cpu")
    prepared = predictor.prepare(read(image), "CT")
    array = middle(prepared.array[0], predictor.plan.patch)
    exact = torch.cat(
        list(predictor.logit_blocks(Prepared(array[None], prepared.frame), predictor.choices(prepared.frame)[0])), 1
    )
    logits = stock_logits(stock_models(model, BUILD)[False])
    rows = [
        row("nnU-Net's predictor", logits(array, nullcontext()), exact),
        row("the same, sums in float32", logits(array, mock.patch.object(stock, "torch", FullPrecision())), exact),
        row("`exact`, each result rounded to half precision once", exact.half(), exact),
    ]
    size = "x".join(map(str, array.shape))
    return "\n".join([
        f"Model `{model.name}`, the middle {size} voxels (z, y, x) of {name} on the network's grid; logits against",
        f"those of `exact`, the largest of which is {exact.abs().max():.0f}. `lead`: of the best over the second best",
        "class, median over the voxels that differ.",
        f"Machine: {machine()}.",
        "",
        "| logits | mean difference | largest | equal argmax, % | lead |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "build" / "benchmark_model")
    parser.add_argument("--scan", default="hcc_048", help="as in run.py")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULTS.name}/")
    arguments = parser.parse_args()
    if (image := scan(arguments.scan, BUILD)) is None:
        raise SystemExit(f"{arguments.scan}: not beside the project")
    text = report(arguments.model, arguments.scan, image)
    print(text)
    if arguments.write:
        command = "python benchmarks/inference/agreement.py " + " ".join(sys.argv[1:])
        head = f"# Agreement of logits\n\nWritten by `{command}` on {time.strftime('%Y-%m-%d')}.\n\n"
        write_text(RESULTS / f"inference_agreement_{arguments.model.name}.md", head + text)


if __name__ == "__main__":
    main()
