"""Pictures: the patient's right on the left, square millimetres, equal bytes for equal content."""

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from labelloop.base.classes import IGNORED, load_classes
from labelloop.images.pictures import CLASSES, HEIGHT, case_picture, contact_sheet, for_page
from labelloop.images.volume import Geometry, Volume, canonical

SCHEME = load_classes("flare")
SPACING_XYZ = (2.0, 2.0, 5.0)
LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def _lps(array: np.ndarray) -> Volume:
    """An array [z up, y to the back, x to the left]: ITK's identity direction."""
    return Volume(array, Geometry(array.shape[::-1], SPACING_XYZ, (0.0, 0.0, 0.0), LPS))


def _as_ras(volume: Volume) -> Volume:
    """The same scan stored with x to the right and y to the front."""
    (x, y, _), (dx, dy, _) = volume.geometry.size, volume.geometry.spacing
    origin = ((x - 1) * dx, (y - 1) * dy, 0.0)
    direction = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
    return Volume(volume.array[:, ::-1, ::-1].copy(), Geometry(volume.geometry.size, SPACING_XYZ, origin, direction))


def _as_sagittal(volume: Volume) -> Volume:
    """The same scan stored with axes x = back, y = up, z = left."""
    array = np.ascontiguousarray(volume.array.transpose(2, 0, 1))
    direction = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    dx, dy, dz = SPACING_XYZ
    return Volume(array, Geometry(array.shape[::-1], (dy, dz, dx), (0.0, 0.0, 0.0), direction))


@pytest.fixture
def scan() -> tuple[Volume, Volume]:
    """A scan of -160 HU with a bright block at the patient's right, in front and low; a liver, a spleen."""
    image = np.full((16, 40, 60), -160, np.int16)
    labels = np.zeros(image.shape, np.uint8)
    image[2:5, 4:10, 5:12] = 240  # x runs to the left in LPS, so a small x is the patient's right; y to the back
    labels[2:5, 4:10, 5:12] = SCHEME.ids["liver"]
    labels[9:12, 28:34, 45:50] = SCHEME.ids["spleen"]
    return _lps(image), _lps(labels)


def _gray(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), float)


def _center_of_marker(png: bytes) -> tuple[float, float]:
    """Row and column of the bright block as shares of the picture; letters and lines are thinner than it."""
    gray = _gray(png)
    rows, columns = np.nonzero(gray > 150)
    return np.median(rows) / gray.shape[0], np.median(columns) / gray.shape[1]


def _bright_pixels(png: bytes) -> int:
    return int((_gray(png) > 180).sum())


def _picture(image: Volume, labels: Volume, **options) -> bytes:
    return case_picture(image, labels, SCHEME, panel_width=240, **options)


def test_right_of_patient_is_left_in_axial_and_front_is_up(scan):
    row, column = _center_of_marker(_picture(*scan, views=("axial",)))
    assert column < 0.4
    assert row < 0.4


@pytest.mark.parametrize("view", ["axial", "coronal"])
def test_a_box_is_drawn_around_what_is_looked_at_in_its_middle_slice(scan, view):
    image, labels = scan
    block = np.argwhere(canonical(labels).array == SCHEME.ids["liver"])
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(block.min(axis=0), block.max(axis=0), strict=True))
    options = {"views": (view,), "focus": ["spleen"]}  # which would choose another slice
    drawn = [_picture(image, labels, **options, **more) for more in ({}, {"box": box})]
    pictures = [np.asarray(Image.open(io.BytesIO(png)), int) for png in drawn]
    found = [(p[..., 0] > 200) & (p[..., 2] < 150) & (p[..., 0] - p[..., 2] > 80) for p in pictures]
    assert found[1].sum() > found[0].sum() + 50
    places = np.argwhere(found[1])
    middle = (places.min(axis=0) + places.max(axis=0)) / 2 / found[1].shape
    assert middle == pytest.approx(_center_of_marker(_picture(image, labels, views=(view,), focus=["liver"])), abs=0.03)


def test_right_of_patient_is_left_in_coronal_and_head_is_up(scan):
    row, column = _center_of_marker(_picture(*scan, views=("coronal",)))
    assert column < 0.4
    assert row > 0.6  # the block is low


@pytest.mark.parametrize("stored", [_as_ras, _as_sagittal])
def test_storage_does_not_matter(scan, stored):
    image, labels = scan
    truth = _lps(np.roll(labels.array, 1, axis=2))
    first = _picture(image, labels, truth=truth)
    assert first == _picture(stored(image), stored(labels), truth=stored(truth))


def test_equal_inputs_give_equal_bytes_without_dates(scan):
    assert _picture(*scan) == _picture(*scan)
    assert set(Image.open(io.BytesIO(_picture(*scan))).info) == {CLASSES, HEIGHT}


def test_on_a_page_a_picture_is_without_what_is_written_beneath(scan):
    plain, written = (_picture(*scan, note=note, legend=bool(note)) for note in ((), ("volume: 3 ml",)))
    sizes = [Image.open(io.BytesIO(for_page(png)[0])).size for png in (plain, written)]
    assert sizes[0] == sizes[1] == Image.open(io.BytesIO(plain)).size
    assert for_page(plain)[1] == for_page(written)[1] == ["liver"]  # the spleen lies in none of the slices
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "PNG")
    webp, classes = for_page(buffer.getvalue())
    assert (Image.open(io.BytesIO(webp)).size, classes) == ((30, 20), [])


def test_pixels_are_square_millimetres(scan):
    axial, coronal = (Image.open(io.BytesIO(_picture(*scan, views=(v,)))).size for v in ("axial", "coronal"))
    assert axial == (240, 160)  # 120 x 80 mm
    assert coronal == (240, 160)  # 120 x 80 mm: 16 slices of 5 mm


def test_focus_and_tumor_choose_the_slice(scan):
    image, labels = scan
    with_tumor = labels.array.copy()
    with_tumor[10, 30, 46] = SCHEME.ids["tumor"]
    plain, spleen, tumor = (
        _bright_pixels(_picture(image, shown, views=("axial",), focus=focus))
        for shown, focus in ((labels, None), (labels, ["spleen"]), (_lps(with_tumor), None))
    )
    assert plain > 300 + spleen  # the slice of the liver shows the block: 14 x 12 mm at 4 pixels a mm²
    assert plain > 300 + tumor


def test_slice_of_an_empty_label_map_is_the_middle_one(scan):
    image, labels = scan
    array = image.array.copy()
    array[8, 10:20, 10:20] = 240
    assert _bright_pixels(_picture(_lps(array), _lps(np.zeros_like(labels.array)), views=("axial",))) > 1000


def test_truth_is_dashed_over_or_beside(scan):
    image, labels = scan
    truth = _lps(np.roll(labels.array, 4, axis=2))
    alone, over, beside = (
        _gray(_picture(image, labels, views=("axial",), **options))
        for options in ({}, {"truth": truth}, {"truth": truth, "beside": True})
    )
    assert over.shape == alone.shape
    assert (over != alone).any()
    assert beside.shape[1] > 2 * alone.shape[1]


def test_thin_structures_keep_their_outline():
    image = _lps(np.full((10, 40, 40), 0, np.int16))
    labels = np.zeros(image.array.shape, np.uint8)
    labels[5, 20, 10:30] = SCHEME.ids["right_adrenal_gland"]  # one voxel thin, in one slice
    colors = np.asarray(Image.open(io.BytesIO(_picture(image, _lps(labels), views=("axial",)))), int)
    cyan = (colors[..., 1] - colors[..., 0] > 60).sum()
    assert cyan > 100


def test_mr_window_follows_the_percentiles(scan):
    image, labels = scan
    shifted = Volume(image.array * 7 + 4000, image.geometry)
    assert _picture(image, labels, window=None) == _picture(shifted, labels, window=None)


def test_empty_labels_and_flat_images_are_drawn():
    image = _lps(np.zeros((6, 20, 20), np.int16))
    empty = _lps(np.zeros((6, 20, 20), np.uint8))
    assert _picture(image, empty, window=None).startswith(b"\x89PNG")


def test_wrong_grids_and_views_are_refused(scan):
    image, labels = scan
    with pytest.raises(ValueError, match="share their grid"):
        _picture(image, _lps(labels.array[1:]))
    with pytest.raises(ValueError, match="no view"):
        _picture(image, labels, views=("oblique",))


def test_contact_sheet(scan):
    picture = _picture(*scan)
    sheet = Image.open(io.BytesIO(contact_sheet([("case 1", picture)] * 5, columns=3, cell=100)))
    assert sheet.width == 3 * 110 + 10
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_a_legend_names_the_colors_of_what_is_drawn(scan):
    image, labels = scan
    labels.array[3, 28:34, 45:50] = SCHEME.ids["spleen"]  # in a slice with liver
    labels.array[12, 20, 20] = SCHEME.ids["pancreas"]  # in none of the slices
    pictures = [case_picture(image, labels, SCHEME, panel_width=300, legend=named) for named in (False, True)]
    plain, named = (np.asarray(Image.open(io.BytesIO(p)).convert("RGB")) for p in pictures)
    np.testing.assert_array_equal(named[: len(plain)], plain)
    band = {tuple(color) for color in named[len(plain) :].reshape(-1, 3).tolist()}
    for info in SCHEME.classes:
        assert (ImageColor.getrgb(info.color) in band) is (info.name in ("liver", "spleen"))
    empty = _lps(np.zeros_like(labels.array))
    assert case_picture(image, empty, SCHEME, legend=True) == case_picture(image, empty, SCHEME)


def test_a_note_stands_beneath_the_picture_and_long_lines_are_wrapped(scan):
    plain = _gray(case_picture(*scan, SCHEME, panel_width=300))
    short = _gray(case_picture(*scan, SCHEME, panel_width=300, note=["volume: 3 ml"]))
    long = _gray(case_picture(*scan, SCHEME, panel_width=300, note=["volume: 3 ml " * 12]))
    assert np.array_equal(short[: len(plain)], plain)
    assert plain.shape[1] == long.shape[1]
    assert len(plain) < len(short) < len(long)
    assert (long[len(plain) :, -4:] < 60).all()  # no letter runs out of the picture
    assert (long[len(plain) :] > 150).any()


def test_others_than_the_focus_are_drawn_faintly(scan):
    def colored(name: str, **options) -> int:
        rgb = np.asarray(Image.open(io.BytesIO(case_picture(*both, SCHEME, views=("axial",), **options))), int)
        color = np.array([int(SCHEME[name].color[i : i + 2], 16) for i in (1, 3, 5)])
        return int((np.abs(rgb - color).max(axis=-1) < 40).sum())

    image, labels = scan
    side_by_side = labels.array.copy()
    side_by_side[2:5, 28:34, 45:50] = SCHEME.ids["spleen"]
    both = image, Volume(side_by_side, labels.geometry)
    strong = {name: colored(name, focus=["liver"]) for name in ("liver", "spleen")}
    faint = {name: colored(name, focus=["liver"], faint_others=True) for name in ("liver", "spleen")}
    assert faint["liver"] == strong["liver"] > 0
    assert faint["spleen"] < 0.6 * strong["spleen"]


def test_the_last_view_shows_a_detached_part(scan):
    image, labels = scan
    with_part = labels.array.copy()
    with_part[12:14, 30:33, 20:23] = SCHEME.ids["liver"]
    options = {"focus": ["liver"], "faint_others": True, "views": ("coronal",)}
    parted = Volume(with_part, labels.geometry)
    in_front = case_picture(image, parted, SCHEME, **options | {"views": ("coronal", "axial")})
    behind = case_picture(image, parted, SCHEME, **options)
    bright = [(_gray(png)[:, :700] > 200).sum() for png in (in_front, behind)]
    assert bright[0] > 2 * bright[1]  # the bright block lies in the front; the part behind it is on dark ground


def test_ignored_voxels_are_hatched_and_choose_no_slice(scan):
    image, labels = scan
    ignoring = labels.array.copy()
    ignoring[2:5, 12:34, 20:40] = IGNORED
    far = ignoring.copy()
    far[12:16] = IGNORED  # more than the liver has
    plain, hatched = (_gray(_picture(image, _lps(a), views=("axial",))) for a in (labels.array, ignoring))
    assert plain.shape == hatched.shape  # what is shown follows from the classes
    changed = np.argwhere(np.abs(plain - hatched) > 30)
    assert len(changed) > 100
    assert _picture(image, _lps(far), views=("axial",)) == _picture(image, _lps(ignoring), views=("axial",))
    beside = _gray(_picture(image, labels, truth=_lps(ignoring), views=("axial",)))
    assert (np.abs(plain - beside) > 30).sum() > 100
    heights = [_gray(_picture(image, _lps(a), legend=True)).shape[0] for a in (labels.array, ignoring)]
    assert heights[0] <= heights[1]
