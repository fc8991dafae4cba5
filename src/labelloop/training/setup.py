"""What is settled before a training begins: usable cases, device, precision, determinism."""

import contextlib
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from labelloop.base.errors import UserError
from labelloop.base.precision import Precision, choose_precision
from labelloop.training.job import TrainingCase, TrainingJob
from labelloop.training.settings import Determinism, SegmenterSettings

log = logging.getLogger(__name__)


def usable_cases(
    job: TrainingJob, why_not: Callable[[TrainingCase, TrainingJob], str | None], splits: Sequence[str]
) -> dict[str, tuple[TrainingCase, ...]]:
    """Return the cases of each split that can be used, in the order of their ids; count the others in the log.

    Args:
        why_not: says why a case cannot be used; None if it can.

    Raises:
        UserError: when no case is left to train on.
    """
    reasons = {case.case: why_not(case, job) for case in job.cases}
    for reason, number in sorted(Counter(filter(None, reasons.values())).items()):
        log.info("%s: %d of %d cases left out: %s", job.name, number, len(job.cases), reason)
    kept = {
        split: tuple(sorted((c for c in job.cases if c.split == split and not reasons[c.case]), key=lambda c: c.case))
        for split in splits
    }
    log.info("%s: %d cases to train, %d to validate", job.name, len(kept["train"]), len(kept["validation"]))
    if not kept["train"]:
        raise UserError(
            f"model {job.name}: none of its {len(job.cases)} cases can be used to train ({job.settings.kind}). "
            "Choose other cases or classes, or trainer: partial if some classes are unknown in every case."
        )
    if not kept["validation"]:
        if isinstance(job.settings, SegmenterSettings) and job.settings.export == "best":
            raise UserError(f"model {job.name}: export: best needs at least one validation case")
        log.warning("%s: no validation case, so there will be no validation Dice", job.name)
    return kept


def resolve_device(device: str) -> torch.device:
    """Return the torch device of ``auto``, ``cpu`` or ``cuda``. Raises UserError when there is no GPU for cuda."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: torch finds no GPU here. Set device: cpu or auto, or check the driver.")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def precision_of(job: TrainingJob) -> Precision:
    """Return what the training computes in; ``auto`` is bf16 on CPUs that have units for it."""
    return choose_precision(job.segmenter.precision, resolve_device(job.device), on_cpu="bf16")


def set_determinism(wanted: Determinism, device: torch.device) -> bool:
    """Ask torch for reproducible algorithms, or for the fastest; return which.

    New tensors are filled with NaN only where determinism is asked for by name: it finds code that reads what nobody
    wrote, and costs a pass over all memory that is taken.
    """
    cuda = device.type == "cuda"
    deterministic = not cuda if wanted == "auto" else wanted
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it to be reproducible
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
    # Only a warning on a GPU: it names what has no reproducible form there. Losses do (see ReproducibleCrossEntropy).
    torch.use_deterministic_algorithms(deterministic, warn_only=cuda)
    torch.utils.deterministic.fill_uninitialized_memory = wanted is True  # type: ignore[attr-defined]
    return deterministic


@contextlib.contextmanager
def nnunet_folders_elsewhere() -> Iterator[Path]:
    """Let nnU-Net make its folders and files in a folder that leaves no trace; yield it."""
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            (Path(folder) / name).mkdir()
            os.environ[name] = str(Path(folder) / name)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
