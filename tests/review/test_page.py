"""The page in a real browser: ten labels judged by keys, one edited with the brush, and exactly that is on disk."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from scipy import ndimage

import chromium
from labelloop.images.volume import canonical, read, write
from labelloop.metrics.surface import dice
from labelloop.phantom import draw_patient, field_of_view, render
from labelloop.review.decisions import read as read_decisions
from labelloop.review.desk import Desk
from labelloop.review.server import PageServer
from tiny_review import SCHEME, write_results

pytestmark = pytest.mark.skipif(chromium.find() is None, reason=f"no browser: none of {', '.join(chromium.NAMES)}")
CASES = ("one", "two", "three")
CLASSES = ("liver", "spleen", "pancreas", "stomach")
KEYS = {"1": "right", "2": "wrong", "3": "absent", "4": "unsure"}
TYPED = "1243121142"
"""What is answered to the questions, the edited one left out."""
EDITED = 6
"""Place in the queue of the label that is edited: the pancreas of the second case."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results with a queue of twelve labels of three synthetic patients; the model's liver is a voxel larger."""
    root = tmp_path_factory.mktemp("review")
    images, maps, models = {}, {}, {}
    for number, case in enumerate(CASES):
        patient = draw_patient(seed=5, case=number)
        grid = field_of_view(patient, (7.0, 7.0, 9.0))
        image, truth = render(patient, grid)
        images[case] = root / f"{case}.nii.gz"
        write(images[case], image, grid)
        maps[case] = truth.astype(np.uint8), grid
        larger = ndimage.binary_dilation(truth == SCHEME.ids["liver"]) & (truth == 0)
        models[case] = np.where(larger, SCHEME.ids["liver"], truth).astype(np.uint8)
    asked = [(case, name, "doubt") for case in CASES for name in CLASSES]
    return write_results(root, images, maps, asked, {"m": models}, modality="CT")


@contextmanager
def serving(results, reviewer: str) -> Iterator[str]:
    """Serve the page; yield its address."""
    server = PageServer(Desk(results), reviewer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server.address
    server.shutdown()
    server.close()


def shown(tab: chromium.Chromium, number: int) -> None:
    """Wait until a question is shown."""
    tab.wait(f"document.body.dataset.ready === '{number}'", 120)


def brush(tab: chromium.Chromium) -> None:
    """Paint a stroke in the large plane, from its middle to the right."""
    box = tab.ask("(({left, top, width, height}) => ({left, top, width, height}))(canvas.getBoundingClientRect())")
    x, y = box["left"] + 0.32 * box["width"], box["top"] + 0.5 * box["height"]
    tab.drag((x, y), (x + 30, y), (x + 60, y + 20), (x + 90, y + 20))


def test_ten_labels_are_judged_and_one_is_edited(results, tmp_path):
    with serving(results, "ann") as address, chromium.Chromium(tmp_path / "profile") as tab:
        tab.open(address)
        typed = iter(TYPED)
        for number in range(1, 12):
            shown(tab, number)
            if number - 1 != EDITED:
                tab.press(next(typed))
                continue
            tab.press("e")
            tab.wait("!tools.hidden")
            for _ in range(9):
                tab.press("]")
            brush(tab)
            tab.wait("strokes.textContent.startsWith('1 ')")
            tab.press("s")
        shown(tab, 12)
        assert "11 of 12 answered" not in tab.ask("document.body.innerText")  # one is unsure
        origin = address[: address.index("/", 8)]
        assert all(one.startswith((origin, "data:", "blob:")) for one in tab.requests), tab.requests
        assert not tab.said
        tab.close()
    check(results)


def check(results) -> None:
    """Hold decisions and the edited map against what was typed and drawn."""
    desk = Desk(results)
    decisions, problems = read_decisions(desk.folder)
    decisions = [one for one in decisions if one.reviewer == "ann"]
    asked = [(case, name) for case in CASES for name in CLASSES]
    assert not problems and [(one.case, one.name) for one in decisions] == asked[:11]
    said = [one.decision for one in decisions]
    assert said.pop(EDITED) == "edited" and said == [KEYS[key] for key in TYPED]
    assert max(one.seconds for one in decisions) > 0
    before = read(results / "labels/pseudo/two.nii.gz")
    after = read(desk.folder / decisions[EDITED].file)
    assert after.geometry == before.geometry and (desk.folder / "edited/two.nii.gz").is_file()
    changed, pancreas = after.array != before.array, SCHEME.ids["pancreas"]
    assert 5 < changed.sum() < 2000 and set(after.array[changed]) == {pancreas} and set(before.array[changed]) == {0}
    image = canonical(after)
    assert sum(np.ptp(line) == 0 for line in np.nonzero(canonical(before).array != image.array)) == 1  # in one slice


def test_strokes_are_taken_back_and_a_models_class_is_taken(results, tmp_path):
    """The liver of the model, with all voxels but those of other classes, is what is saved."""
    with serving(results, "bob") as address, chromium.Chromium(tmp_path / "profile", (1920, 1080)) as tab:
        tab.open(address)
        tab.wait("document.body.dataset.ready")
        tab.ask("document.querySelector('#progress i').click()")
        shown(tab, 1)
        tab.press("m")
        tab.wait("maps.querySelector('.on').textContent.startsWith('m')")
        tab.press("1")
        tab.wait("note.textContent.startsWith('This is the map m')")
        tab.press("m")
        tab.wait("maps.querySelector('.on').textContent.startsWith('this label')")
        tab.press(" ")
        tab.press("e")
        tab.wait("!tools.hidden")
        tab.press("x")
        brush(tab)
        tab.wait("strokes.textContent === '1 so far'")
        tab.press("z")
        tab.wait("strokes.textContent === 'nothing yet'")
        tab.press("s")
        tab.wait("note.textContent === 'Nothing was changed.'")
        tab.press("t")
        tab.wait("strokes.textContent === '1 so far'")
        tab.press("s")
        tab.wait("document.body.dataset.ready && !place.textContent.startsWith('Question 1 ')")
        assert not tab.said
    [decision] = [one for one in read_decisions(Desk(results).folder)[0] if one.reviewer == "bob"]
    before, after = read(results / "labels/pseudo/one.nii.gz").array, read(Desk(results).folder / decision.file).array
    model, liver = read(results / "models/m/predictions/one.nii.gz").array, SCHEME.ids["liver"]
    assert (after == np.where((model == liver) & (before == 0), liver, before)).all() and (after != before).any()


def test_an_edit_goes_on_where_a_server_was_killed(results, tmp_path):
    def third(tab: chromium.Chromium, address: str) -> None:
        tab.open(address)
        tab.wait("document.body.dataset.ready")
        tab.ask("document.querySelectorAll('#progress i')[2].click()")
        shown(tab, 3)

    with chromium.Chromium(tmp_path / "profile") as tab:
        with serving(results, "zoe") as address:
            third(tab, address)
            tab.press("e")
            tab.wait("!tools.hidden")
            brush(tab)
            tab.wait("strokes.textContent.startsWith('1 ')")
            folder = Desk(results).folder / "drafts"
            wait_for(lambda: list(folder.rglob("*.nii.gz")))
        tab.press("s")
        tab.wait("note.textContent.startsWith('The review has ended')")
    with serving(results, "zoe") as address, chromium.Chromium(tmp_path / "other") as tab:
        third(tab, address)
        tab.wait("note.textContent.startsWith('An edit of yours was not saved')")
        tab.press("e")
        tab.wait("strokes.textContent.startsWith('1 ')")
        tab.press("s")
        tab.wait("document.body.dataset.ready && !place.textContent.startsWith('Question 3 ')")
        assert not tab.said and not list(folder.rglob("*.nii.gz"))
    [decision] = [one for one in read_decisions(Desk(results).folder)[0] if one.reviewer == "zoe"]
    before, after = read(results / "labels/pseudo/one.nii.gz").array, read(Desk(results).folder / decision.file).array
    assert decision.name == "pancreas" and set(after[after != before]) == {SCHEME.ids["pancreas"]}


def wait_for(found: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something is found."""
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until
        time.sleep(0.05)


def large_plane(tab: chromium.Chromium, *places: tuple[float, float]) -> list[tuple[float, float]]:
    """Return points of the window; places count from the middle of the large plane, in shares of the canvas."""
    box = tab.ask("(({left, top, width, height}) => ({left, top, width, height}))(canvas.getBoundingClientRect())")
    across, down = (0.32, 0.5)
    return [(box["left"] + (across + x) * box["width"], box["top"] + (down + y) * box["height"]) for x, y in places]


def test_outlines_are_erased_and_filled_and_slices_are_filled_between(results, tmp_path):
    """A hole is solid; F fills what R erases; a slice that is erased comes back from those beside it."""
    outline = [(-0.04, -0.05), (0.04, -0.05), (0.04, 0.05), (-0.04, 0.05), (-0.04, -0.05)]
    lines = [[(x, -0.35), (x, -0.1), (x, 0.1), (x, 0.35)] for x in (-0.12, 0.0, 0.12)]
    liver, spleen = 9, 10
    with serving(results, "kim") as address, chromium.Chromium(tmp_path / "profile", (1920, 1080)) as tab:
        tab.open(address)
        for number, keys in ((liver, "r"), (liver, "rf"), (spleen, "x")):
            tab.wait("document.body.dataset.ready")
            tab.ask(f"document.querySelectorAll('#progress i')[{number - 1}].click()")
            shown(tab, number)
            tab.press("e")
            tab.wait("!tools.hidden")
            tab.press("i")
            tab.wait("note.textContent.startsWith('No slice between')")
            for done, key in enumerate(keys, start=1):
                tab.press(key)
                for _ in range(30 if key == "x" else 0):
                    tab.press("]")
                for points in lines if key == "x" else [outline]:
                    tab.drag(*large_plane(tab, *points))
                tab.wait(f"parseInt(strokes.textContent) >= {done}")
            if number == spleen:
                tab.picture()
                drawn = int(tab.ask("parseInt(strokes.textContent)"))
                tab.press("i")
                tab.wait(f"strokes.textContent === '{drawn + 1} so far'")
            tab.press("s")
            tab.wait(f"document.body.dataset.ready && document.body.dataset.ready !== '{number}'")
        assert not tab.said
    desk = Desk(results)
    made = [desk.folder / one.file for one in read_decisions(desk.folder)[0] if one.reviewer == "kim"]
    before, cut, same, filled = (canonical(read(p)).array for p in (results / "labels/pseudo/three.nii.gz", *made))
    hole = (before == SCHEME.ids["liver"]) & (cut == 0)
    [place] = np.flatnonzero((before != cut).any(axis=(1, 2)))
    assert hole.sum() >= 9 and (hole == (before != cut)).all()
    assert (ndimage.binary_fill_holes(hole[place]) == hole[place]).all()
    assert (same == before).all()
    [place] = np.flatnonzero((before != filled).any(axis=(1, 2)))
    assert 0.6 < dice(*(array[place] == SCHEME.ids["spleen"] for array in (before, filled))) < 1


def test_a_browser_that_cannot_show_volumes_takes_decisions(results, tmp_path):
    with (
        serving(results, "eve") as address,
        chromium.Chromium(tmp_path / "profile", flags=("--disable-3d-apis",)) as tab,
    ):
        tab.open(address)
        tab.wait("document.body.dataset.ready")
        assert "--export" in tab.ask("note.textContent")
        tab.press("e")
        tab.wait("note.className === 'bad'")
        tab.press("2", repeats=30)
        tab.wait(
            "left.textContent.includes('answered') && document.querySelectorAll('#progress i.wrong, i.differ').length"
        )
    assert [one.decision for one in read_decisions(Desk(results).folder)[0] if one.reviewer == "eve"] == ["wrong"]
