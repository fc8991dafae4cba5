"""The command ``labelloop infer``: a folder or file in, label maps and tables out."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from labelloop.classes import ClassScheme
from labelloop.errors import UserError
from labelloop.heartbeat import counted
from labelloop.inference.budget import Budget
from labelloop.inference.reading import Case, find_cases
from labelloop.inference.running import Options, Segmenter, efficiency, rows, run_cases
from labelloop.inference.settings import Settings
from labelloop.inference.steps import InferenceStep
from labelloop.shards import Ledger
from labelloop.tables import write_table
from labelloop.volume import Volume

log = logging.getLogger(__name__)
ALL_FINE, SOME_FAILED, NOTHING_USABLE = 0, 1, 2


def infer(
    inputs: Path,
    model_folders: Path | Sequence[Path] | Mapping[str, Path],
    out: Path,
    *,
    steps: Sequence[Mapping | InferenceStep] | None = None,
    scheme: ClassScheme | None = None,
    settings: Settings | None = None,
    device: str = "auto",
    modality: str = "CT",
    sequence: str = "",
    resume: bool = True,
    budget: Budget | None = None,
    preview: bool = False,
    progress: bool = False,
) -> int:
    """Segment all images of ``inputs`` into ``out``: ``<case>.nii.gz``, ``summary.csv`` and ``efficiency.csv``.

    Args:
        inputs: see :func:`~labelloop.inference.reading.find_cases`.
        model_folders: one, several, or a mapping of names (those in ``steps``) to folders. Unnamed folders go by the
            folder's name.
        steps: an ``inference`` chain; default: one ``segment`` step with all models.
        scheme: names of class sets in ``steps``, and the colors of previews.
        sequence: MR sequence of the images, for models that want them upright: some sequences tell which end is up.
        resume: keep the cases that an earlier run finished with the same image, models and settings.
        budget: memory to keep. With a limit on RAM, images are not read ahead.
        preview: draw ``previews/<case>.png``.
        progress: show a bar, if standard error is a terminal.

    Returns:
        Exit code: 0 all cases are done, 1 some failed (``shards/infer.csv`` in ``out`` says why), 2 none is done.

    Raises:
        UserError: when the inputs or the models cannot be used at all.
    """
    cases = [replace(case, sequence=sequence) for case in find_cases(inputs, modality)]
    folders = _named(model_folders)
    budget, out = budget or Budget(), Path(out)
    if preview and scheme is None:
        raise UserError("previews need a class scheme for names and colors")
    ledger = Ledger(out, "infer", tries=0, resume=resume)
    options = Options(
        read_ahead=budget.max_ram_mb is None,
        previews=out / "previews" if preview else None,
        draw=partial(_picture, scheme) if scheme else None,
        progress=progress and sys.stderr.isatty(),
    )
    with counted("case", len(cases)):
        run_cases(cases, partial(_load_models, folders, steps, scheme, settings, device, budget), ledger, options)
    extras = ledger.extras()
    write_table(out / "summary.csv", rows(ledger), "summary")
    write_table(out / "efficiency.csv", efficiency(ledger), "efficiency")
    failed = len(cases) - len(extras)
    log.info("%d of %d cases done, results in %s", len(extras), len(cases), out)
    if failed:
        log.warning("%d cases failed, see %s", failed, ledger.manifest)
    return ALL_FINE if not failed else SOME_FAILED if extras else NOTHING_USABLE


def _load_models(
    folders: Mapping[str, Path],
    steps: Sequence[Mapping | InferenceStep] | None,
    scheme: ClassScheme | None,
    settings: Settings | None,
    device: str,
    budget: Budget,
) -> Segmenter:
    from labelloop.inference.postprocess import Chain, load_model  # torch: imported while the first image is read

    models = {name: load_model(folder, device, settings, budget) for name, folder in folders.items()}
    chain = Chain(steps or [{"segment": list(models)}], models, scheme)
    return chain.predictor(next(iter(models))) if steps is None and len(models) == 1 else chain


def _picture(scheme: ClassScheme, case: Case, image: Volume, labels: Volume) -> bytes:
    from labelloop.report.pictures import CT_WINDOW, case_picture

    return case_picture(image, labels, scheme, window=CT_WINDOW if case.modality == "CT" else None, legend=True)


def _named(folders: Path | Sequence[Path] | Mapping[str, Path]) -> dict[str, Path]:
    if isinstance(folders, Mapping):
        return {name: Path(folder) for name, folder in folders.items()}
    some = [folders] if isinstance(folders, (str, Path)) else list(folders)
    named = {Path(folder).resolve().name: Path(folder) for folder in some}
    if not named or len(named) < len(some):
        raise UserError(f"model folders must have different names: {', '.join(map(str, some)) or 'none given'}")
    return named
