"""The review page in a real browser without a GPU: its pictures, and how fast it loads; and what review buys.

    python benchmarks/review/run.py pictures     # writes docs/images/review*.png
    python benchmarks/review/run.py load         # writes results/review.md: a scan of 512 x 512 x 400 voxels
    python benchmarks/review/run.py buys OUT [--btcv FOLDER]    # the student after K judged labels (buys.py)

The first two draw a synthetic patient, leave out a part of a label as a model would, and make a queue of it.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from labelloop.base.files import write_text
from labelloop.images.volume import write
from labelloop.phantom import draw_patient, field_of_view, render
from labelloop.review.desk import Desk
from labelloop.review.server import PageServer

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "loop")]
import buys  # noqa: E402
from common import RESULTS, written_by  # noqa: E402

from chromium import Chromium  # noqa: E402
from tiny_review import SCHEME, write_results  # noqa: E402

ASKED = ("pancreas", "liver", "left_kidney")
REASONS = "leak: 12 % of the label is outside of soft tissue\npairwise_dice 0.61 below 0.8"
LARGE = (512, 512, 400)
LAPTOP = (1366, 768)
LOOKED_AT_S = 15
"""How long a person looks at a question, while the next one is loaded."""
OF_THE_LABELS = f"""The label set and two models have a label map each. While a person looks at a question, here for
{LOOKED_AT_S} s, the next one is loaded."""


def make(folder: Path, times: int = 1, **grid) -> Path:
    """Write results of one patient: the label set lacks a part of each class, the models parts of their own.

    Args:
        times: each voxel of the grid becomes so many in each direction.
    """
    patient = draw_patient(seed=7, case=2)
    geometry = field_of_view(patient, **grid)
    image, truth = (np.kron(a, np.ones((times,) * 3, a.dtype)) for a in render(patient, geometry))
    spacing = tuple(side / times for side in geometry.spacing)
    geometry = replace(geometry, size=truth.shape[::-1], spacing=spacing)
    write(folder / "case_0002.nii.gz", image, geometry)
    maps = [_without(truth, share) for share in (0.25, 0.1, 0.4)]
    models = {"teacher": {"case_0002": maps[1]}, "student": {"case_0002": maps[2]}}
    asked = [("case_0002", name, "doubt") for name in ASKED]
    images = {"case_0002": folder / "case_0002.nii.gz"}
    return write_results(
        folder, images, {"case_0002": (maps[0], geometry)}, asked, models, reasons=REASONS, modality="CT"
    )


def _without(truth: np.ndarray, share: float) -> np.ndarray:
    """Return a truth in which the lowest slices of the classes asked about are empty."""
    made = truth.copy()
    for name in ASKED:
        where = np.flatnonzero((truth == SCHEME.ids[name]).any(axis=(1, 2)))
        part = made[where[0] : where[0] + round(share * len(where))]
        part[part == SCHEME.ids[name]] = 0
    return made


@contextmanager
def page(results: Path, size: tuple[int, int]) -> Iterator[tuple[Chromium, str]]:
    """Serve a review, with a browser that is not yet there; yield the browser and the address."""
    server = PageServer(Desk(results), "ann")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile, Chromium(Path(profile), size) as browser:
        yield browser, server.address
    server.shutdown()
    server.close()


def ready(browser: Chromium) -> None:
    """Wait until the question is drawn."""
    browser.wait("document.body.dataset.ready", 600)
    browser.picture()


def pictures(folder: Path) -> None:
    """Write the pictures of the documentation."""
    results, out = make(folder, spacing=(1.25, 1.25, 2.5)), ROOT / "docs" / "images"
    with page(results, LAPTOP) as (browser, address):
        browser.open(address)
        ready(browser)
        (out / "review.png").write_bytes(browser.picture())
        browser.press("e")
        browser.wait("!document.getElementById('tools').hidden")
        for _ in range(10):
            browser.press("ArrowDown")
        x, y = 0.26 * LAPTOP[0], 0.5 * LAPTOP[1]
        browser.drag(*((x + 7 * step, y + 3 * step) for step in range(10)))
        browser.wait("strokes.textContent.startsWith('1 ')")
        (out / "review_edit.png").write_bytes(browser.picture())


def load(folder: Path) -> None:
    """Write how long a large scan takes: the organ alone, the next question, and all of the image."""
    results = make(folder, 2, size=tuple(side // 2 for side in LARGE))
    rows = [f"| {' x '.join(map(str, LARGE))} voxels, no GPU | s |", "| --- | ---: |"]
    with page(results, LAPTOP) as (browser, address):
        for text, act in (
            (f"the first question, {ASKED[0]}: files read, cut to the organ", lambda: browser.open(address)),
            (f"the next one, {ASKED[1]}, loaded ahead", lambda: browser.press("n")),
            (f"the next one, {ASKED[2]}, loaded ahead", lambda: browser.press("n")),
            ("all of its image", lambda: browser.press("a")),
        ):
            time.sleep(LOOKED_AT_S)
            began = time.monotonic()
            act()
            time.sleep(0.05)
            ready(browser)
            rows.append(f"| {text} | {time.monotonic() - began:.1f} |")
    window = " x ".join(map(str, LAPTOP))
    head = written_by(__file__, details=f"WebGL2 drawn by software (SwiftShader), window of {window} pixels")
    text = "\n".join([f"# The review page without a GPU\n\n{head}\n\n{OF_THE_LABELS}\n", *rows, ""])
    print(text)
    write_text(RESULTS / "review.md", text)


if __name__ == "__main__":
    if sys.argv[1] == "buys":
        sys.exit(buys.main(sys.argv[2:]))
    with tempfile.TemporaryDirectory() as scratch:
        {"pictures": pictures, "load": load}[sys.argv[1]](Path(scratch))
