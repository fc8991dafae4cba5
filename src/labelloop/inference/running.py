"""Many cases: read ahead, compute, write behind, resume.

While one case is computed the next is read and the one before is written, each in a thread of its own; the first image
is read while the model loads. Every case is finished, failed or untouched: see :mod:`labelloop.base.shards`.
"""

import gc
import logging
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from labelloop.base.errors import CaseError, NotTriedError, may_pass
from labelloop.base.files import atomic, digest
from labelloop.base.shards import Ledger
from labelloop.base.wording import count
from labelloop.images.volume import Geometry, Volume, read, upright_volume, write
from labelloop.inference.reading import Image, InputImage, PreparedFile
from labelloop.inference.stages import STAGES, collected
from labelloop.networks.settings import UPRIGHT_BY

if TYPE_CHECKING:
    import numpy as np
    import torch

    from labelloop.inference.export import Prediction

log = logging.getLogger(__name__)
Written = TypeVar("Written")
MEASURED = ("runtime_s", "peak_gpu_mb", "peak_ram_mb", "parameters", "gmacs", "area_gpu_mb_s", "energy_j")


class SideOutput(Protocol):
    """What writes more files of a case beside its label map: masks, DICOM segmentations."""

    def begin(self, cases: Sequence[InputImage], class_ids: Mapping[str, int]) -> None:
        """Take note of cases and classes, before the first case is segmented."""

    def lacks(self, case: InputImage) -> bool:
        """Say whether files of a case whose label map is there are not there, or older."""

    def write(self, case: InputImage, labels: Volume) -> None:
        """Write the files of a case that are missing, from its label map."""


class Segmenter(Protocol):
    """What can be run on cases: a predictor (``engine``) or a chain of them (``postprocess``)."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all, besides the image, that a prediction depends on."""

    @property
    def class_ids(self) -> Mapping[str, int]:
        """Id of each class in label maps."""

    @property
    def upright(self) -> bool:
        """Whether volumes that are stored upside down are to be turned upright."""

    @property
    def device(self) -> "torch.device":
        """What the networks run on; no other GPU is touched."""

    def begin(self, volume: Volume, modality: str) -> Any:
        """Do what can be done before the networks are free: the first preparation of the image, on the CPU."""

    def finish(self, begun: Any) -> "Prediction":
        """Return label map and rows of what was begun."""

    def predict(self, volume: Volume, modality: str) -> "Prediction":
        """Begin and finish at once."""


def rows(ledger: Ledger) -> list[dict]:
    """Return ``{case, class, volume_ml, confidence}`` of the cases that are done."""
    found: list[dict] = []
    for case, extra in sorted(ledger.extras().items()):
        found += [{"case": case, **row} for row in extra["rows"]]
    return found


def efficiency(ledger: Ledger) -> list[dict]:
    """Return what each case that is done has cost, as rows of the table ``efficiency``."""
    return [{"case": case, **{m: extra.get(m) for m in MEASURED}} for case, extra in sorted(ledger.extras().items())]


@dataclass(frozen=True)
class Options:
    """How cases are run.

    Args:
        read_ahead: read the next image while one is computed; costs the memory of an image.
        previews: folder for a PNG of each case, drawn by ``draw``; or None.
        beside: write more files of each case.
        discard: remove what else was made of the label map of a case, before another one takes its place and when the
            case fails.
        progress: show a bar on the terminal.
        meter: measure the GPU's memory over time and its energy while a case is computed.
    """

    read_ahead: bool = True
    previews: Path | None = None
    draw: Callable[[InputImage, Volume, Volume], bytes] | None = None
    beside: Sequence[SideOutput] = ()
    discard: Callable[[str], None] | None = None
    progress: bool = False
    meter: bool = False


def run_cases(
    cases: Sequence[InputImage],
    segmenter: Segmenter | Callable[[], Segmenter],
    ledger: Ledger,
    options: Options | None = None,
) -> None:
    """Segment cases into ``<ledger.folder>/<case>.nii.gz`` and close the ledger.

    A case whose result of the same image, weights and settings is intact is not computed again; one bad case does not
    stop the rest. Those that failed before come last, so that a case that costs the process its GPU costs no other case
    more than a try. Rows, runtime, seconds per stage and peak memory of each case go to the ledger's extras.

    Args:
        segmenter: or a function that loads it, called while the first image is being read.

    Raises:
        UserError: as :meth:`Ledger.close`.
    """
    cases = sorted(cases, key=lambda case: ledger.failures(case.case))
    options = options or Options()
    written: list[Future] = []
    before: set[str] = set()
    with ThreadPoolExecutor(1, "write") as writer, _Reader(cases, ledger, options.read_ahead) as reader:
        loaded = _loaded(segmenter) if callable(segmenter) else segmenter
        reader.segmenter.set_result(loaded)
        with _progress_bar(len(cases), options.progress) as advance:
            for item in reader:
                if item.finished:
                    before.add(item.case.case)
                    write_more = partial(_add_missing, ledger, item.case, loaded, options)
                else:
                    result = _compute(item, loaded, options.meter)
                    write_more = partial(_record, ledger, item.case, item.key, result, options)
                    del result
                while written:  # at most one label map waits to be written; a bug in writing surfaces here
                    written.pop().result()
                written.append(writer.submit(write_more))
                del write_more
                del item  # one volume less while the next is computed
                advance()
        while written:
            written.pop().result()
    ledger.close()
    done = ledger.extras().keys()
    kept = len(before & done)
    log.info(
        "%s: %d computed, %d set aside, %d finished before",
        count(len(cases), "case"), len(done) - kept, len(cases) - len(done), kept,
    )  # fmt: skip


def _loaded(load: Callable[[], Segmenter]) -> Segmenter:
    """Load what segments. Torch makes a million objects, all to stay: the search for garbage passes them over.

    It would cost a tenth of the loading, and half a second when Python ends.
    """
    first = "torch" not in sys.modules
    gc.disable()
    try:
        return load()
    finally:
        if first:
            gc.freeze()
        gc.enable()


@dataclass
class _Item:
    """A case as it comes from the reader: finished before, or with its volume or what went wrong.

    ``begun`` is what its segmenter has begun already, or what was prepared for it, ``seconds`` what was spent on each
    stage.
    """

    case: InputImage
    key: str
    finished: bool = False
    volume: Volume | None = None
    error: Exception | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    stored: Geometry | None = None
    begun: Any = None


@dataclass
class _Result:
    prediction: "Prediction | None"
    volume: Volume | None
    error: Exception | None
    seconds: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float | None] = field(default_factory=dict)
    stored: Geometry | None = None


class _Reader:
    """Iterates over cases as items. A thread reads one case ahead, the first while ``segmenter`` is still loading."""

    def __init__(self, cases: Sequence[InputImage], ledger: Ledger, ahead: bool):
        self._cases, self._ledger, self._ahead = cases, ledger, ahead
        self._pool = ThreadPoolExecutor(1, "read")
        self.segmenter: Future[Segmenter] = Future()

    def __enter__(self) -> "_Reader":
        self._first = self._submit(0)
        return self

    def __exit__(self, *error: object) -> None:
        self.segmenter.cancel()  # if it could not be loaded, the thread waits for it no longer
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[_Item]:
        coming, self._first = self._first, None
        for i, case in enumerate(self._cases):
            item = (coming or self._pool.submit(self._load, case)).result()
            coming = self._submit(i + 1) if self._ahead else None
            yield item
            del item

    def _submit(self, number: int) -> "Future[_Item] | None":
        return self._pool.submit(self._load, self._cases[number]) if number < len(self._cases) else None

    def _load(self, case: InputImage) -> _Item:
        if case.prepared is not None:
            return self._load_prepared(case, case.prepared)
        start = time.perf_counter()
        image = Image.of(case)
        content = _content(case, image)
        read = None if self.segmenter.done() else _volume(image, case.modality)
        waiting = time.perf_counter()
        key = self._key(case, content)
        waited = time.perf_counter() - waiting
        if self._ledger.keep(case.case, key):
            return _Item(case, key, finished=True)
        volume, error = read or _volume(image, case.modality)
        item = _Item(case, key, False, volume, error, {"read": time.perf_counter() - start - waited})
        item.stored = volume.geometry if volume is not None else None
        segmenter = self.segmenter.result()
        if volume is not None and self._ahead and segmenter.device.type == "cuda":
            _begin(item, volume, segmenter)  # the CPU has time while the GPU computes the case before
        return item

    def _load_prepared(self, case: InputImage, prepared: PreparedFile) -> _Item:
        """Return a case whose segmenter finds done what it would begin with."""
        from labelloop.inference.prepared import read_image

        key, start = self._key(case, prepared.sha256), time.perf_counter()
        if self._ledger.keep(case.case, key):
            return _Item(case, key, finished=True)
        item = _Item(case, key)
        try:
            image = read_image(prepared.path)
            item.begun, item.stored = image, image.frame.stored
        except Exception as error:  # the ledger says whose fault it is
            item.error = error
        item.seconds["read"] = time.perf_counter() - start
        return item

    def _key(self, case: InputImage, content: str) -> str:
        known = [fact for fact in ("upside down" if case.upside_down else "", case.sequence) if fact]
        return digest([self.segmenter.result().fingerprint, content, case.modality, *known])


def _content(case: InputImage, image: Image) -> str:
    try:
        return case.image_sha256 or image.sha256()
    except (CaseError, OSError) as error:  # the case will fail when it is read; the others go on
        return f"unreadable: {error}"


def _volume(image: Image, modality: str) -> tuple[Volume | None, Exception | None]:
    try:
        return image.volume(modality), None
    except Exception as error:  # the ledger says whose fault it is
        return None, error


def _begin(item: _Item, volume: Volume, segmenter: Segmenter) -> None:
    """Turn the volume upright and begin with it."""
    with collected() as work:
        try:
            item.volume = standing(item.case, volume, segmenter)
            item.begun = segmenter.begin(item.volume, item.case.modality)
        except Exception as problem:  # the ledger says whose fault it is
            item.error = _light(problem)
    item.seconds |= work.seconds


def _compute(item: _Item, segmenter: Segmenter, metered: bool = False) -> _Result:
    result = _Result(None, item.volume, item.error, item.seconds, stored=item.stored)
    if item.error is not None:
        return result
    device = segmenter.device
    if lost := _lost_gpu(device):
        result.error = NotTriedError(f"this process lost its GPU at an earlier case: {lost}")
        return result
    with _gpu_meter(device, metered) as meter, collected(device) as work:
        try:
            peak_mb = _peak_gpu_mb(device, reset=True)
            if item.begun is not None:
                result.prediction = segmenter.finish(item.begun)
            elif item.volume is not None:
                result.volume = standing(item.case, item.volume, segmenter)
                result.prediction = segmenter.predict(result.volume, item.case.modality)
            peak_mb = _peak_gpu_mb(device)
        except Exception as problem:  # the ledger says whose fault it is
            result.error = _light(problem)
            return result
    result.seconds = item.seconds | work.seconds
    usage = meter.usage() if meter and not meter.failed else None
    result.cost = {
        "peak_gpu_mb": peak_mb,
        "parameters": work.parameters,
        "gmacs": work.macs / 1e9,
        "area_gpu_mb_s": usage.area_gpu_mb_s if usage else None,
        "energy_j": usage.energy_j if usage else None,
    }
    return result


def _light(problem: Exception) -> Exception:
    """Return an error without its frames, which hold the arrays of the failed case; where it came from, in words."""
    if not isinstance(problem, CaseError) and not may_pass(problem):
        problem.add_note("".join(traceback.format_tb(problem.__traceback__)))
    return problem.with_traceback(None)


def _peak_gpu_mb(device: "torch.device", reset: bool = False) -> float:
    """Return the peak of the memory that this process took of a GPU since it was ``reset``; 0 for a CPU."""
    if device.type != "cuda":
        return 0.0
    import torch

    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def _lost_gpu(device: "torch.device") -> str:
    """Say why the GPU that this process works on does not answer any more; empty when it does, and for a CPU."""
    if device.type != "cuda":
        return ""
    import torch

    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def _gpu_meter(device: "torch.device", wanted: bool) -> AbstractContextManager:
    """Return a meter of the GPU that a case is computed on, if one is wanted; measuring never costs a case."""
    if not wanted or device.type != "cuda":
        return nullcontext()
    from labelloop.metrics.efficiency import Gpu, Meter

    try:
        return Meter(gpu=Gpu.of_torch(device.index or 0), children=False)
    except Exception as error:
        log.warning("the GPU's memory over time and energy are not measured: %s", error)
        return nullcontext()


def standing(case: InputImage, volume: Volume, segmenter: Segmenter) -> Volume:
    """Return the volume, turned upright if it is, or seems to be, stored upside down."""
    turned = case.upside_down
    if turned is None and segmenter.upright:
        if case.modality == "CT" or case.sequence in UPRIGHT_BY:
            from labelloop.cases.body import stored_upside_down

            turned = stored_upside_down(volume, case.modality)
            log.info("%s: stored %s", case.case, "upside down" if turned else "upright")
        else:
            log.warning("%s: taken as upright; only %s tell which end is up", case.case, ", ".join(UPRIGHT_BY))
    return upright_volume(volume) if turned else volume


def _record(ledger: Ledger, case: InputImage, key: str, result: _Result, options: Options) -> None:
    """Write the label map of a case, and what else is to be made of it; nothing stays of a label map that it replaces.

    What fails beside a label map fails alone.
    """

    def work() -> tuple[Path, dict]:
        if result.error is not None:
            raise result.error
        prediction, stored = result.prediction, result.stored
        if prediction is None or stored is None:
            raise RuntimeError(f"{case.case}: neither a label map nor an error")
        if options.discard:
            options.discard(case.case)
        start = time.perf_counter()
        path = ledger.folder / f"{case.case}.nii.gz"
        write(path, prediction.labels, stored)
        seconds = result.seconds | {"write": time.perf_counter() - start}
        log.info("%s: %s", case.case, ", ".join(f"{s} {seconds[s]:.1f} s" for s in STAGES if s in seconds))
        return path, {
            "rows": prediction.rows,
            "runtime_s": sum(seconds.values()),
            "seconds": seconds,
            **result.cost,
            "peak_ram_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,  # KiB on Linux
        }

    def more() -> None:
        if result.prediction is None or result.stored is None:
            return
        for writer in options.beside:
            writer.write(case, Volume(result.prediction.labels, result.stored))
        if result.volume is not None:
            _draw(case, result.volume, result.prediction.labels, options)

    row = ledger.run(case.case, key, work)
    if row["status"] == "done":
        ledger.add(case.case, more)
    elif options.discard:
        options.discard(case.case)


def _draw(case: InputImage, volume: Volume, labels: "np.ndarray", options: Options) -> None:
    if options.previews and options.draw:
        with atomic(options.previews / f"{case.case}.png") as temporary:
            temporary.write_bytes(options.draw(case, volume, Volume(labels, volume.geometry)))


def _add_missing(ledger: Ledger, case: InputImage, segmenter: Segmenter, options: Options) -> None:
    """Draw a case that was finished without a picture, and write the files beside it that it was finished without."""
    undrawn = options.previews and not (options.previews / f"{case.case}.png").is_file()
    lacking = [writer for writer in options.beside if writer.lacks(case)]

    def work() -> None:
        labels = read(ledger.folder / f"{case.case}.nii.gz")
        for writer in lacking:
            writer.write(case, labels)
        if undrawn:
            _draw(case, standing(case, Image.of(case).volume(case.modality), segmenter), labels.array, options)

    if undrawn or lacking:
        ledger.add(case.case, work)


@contextmanager
def _progress_bar(total: int, shown: bool) -> Iterator[Callable[[], object]]:
    """Yield a function to call after each case; draw a bar if asked, above which log lines scroll."""
    if not shown:
        yield lambda: None
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm(), tqdm(total=total, unit="case") as bar:
        yield bar.update
