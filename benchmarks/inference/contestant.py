"""One contestant in a process of its own: segment images, print seconds per stage and multiply-adds of each case.

    python benchmarks/inference/contestant.py NAME MODEL OUT IMAGE...

NAME is ``exact`` or ``fast``, with ``_`` and another precision or step if so wanted, or a stock predictor of
:data:`STOCK`; MODEL is a model folder, for stock ones as exported.
"""

import json
import re
import sys
from pathlib import Path

STOCK = {  # mirroring, resampling as nnU-Net's planner chooses it (else with torch), processes
    "stock_default": (True, True, True),
    "stock_planner": (False, True, True),
    "stock_fastest": (False, False, False),
}


def run_ours(mode: str, model: Path, out: Path, images: list[Path]) -> dict:
    from labelloop.base.shards import Ledger
    from labelloop.inference.find_cases import case_name
    from labelloop.inference.reading import InputImage
    from labelloop.inference.running import Options, run_cases
    from labelloop.inference.settings import Settings

    def load():
        from labelloop.inference.engine import Predictor

        kind, _, change = mode.partition("_")
        changed = {"step": change} if change[:1].isdigit() else {"precision": change or "auto"}
        return Predictor(model, "cpu", Settings.model_validate({"mode": kind} | changed))

    ledger = Ledger(out, "benchmark")
    run_cases([InputImage(case_name(image), image) for image in images], load, ledger, Options())
    return {case: {"seconds": extra["seconds"], "gmacs": extra["gmacs"]} for case, extra in ledger.extras().items()}


def run_stock(name: str, model: Path, out: Path, images: list[Path]) -> dict:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    mirror, _, processes = STOCK[name]
    predictor = nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), use_folds=(0,))
    if mirror:  # as nnU-Net's own training allows
        predictor.allowed_mirroring_axes = (0, 1, 2)
    files = [[str(image)] for image in images]
    names = [str(out / image.name.replace("_0000.nii.gz", "")) for image in images]
    predict = predictor.predict_from_files if processes else predictor.predict_from_files_sequential
    # predict_from_files with its defaults starts 8 processes for each of preparing and exporting; 1 suits two cores
    extra = {"num_processes_preprocessing": 1, "num_processes_segmentation_export": 1} if processes else {}
    predict(files, names, save_probabilities=False, overwrite=True, **extra)
    return {}


def main() -> None:
    name, model, out, *images = sys.argv[1:]
    run = run_stock if name in STOCK else run_ours
    Path(out).mkdir(parents=True, exist_ok=True)
    cases = run(name, Path(model), Path(out), [Path(image) for image in images])
    peak_kb = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
    print(json.dumps({"cases": cases, "peak_mb": int(peak_kb) / 1024}))


if __name__ == "__main__":
    main()
