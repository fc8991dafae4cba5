"""What a page shows of a label, and the way back of an edited cut, in every orientation."""

import gzip
import tracemalloc
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from labelloop.base.errors import CaseError
from labelloop.images import nifti
from labelloop.images.boxes import box_text
from labelloop.images.volume import Geometry, Volume, canonical, read, upright_volume, write
from labelloop.review.desk import Desk
from labelloop.review.views import CROP, MAP_OF_SET, WHOLE, Case
from tiny_review import GRID, LIVER, SCHEME, SPLEEN, write_results

IDS = SCHEME.ids
LPS = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)
SAR = (0.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0, 0.0, 0.0)
TILTED = (-1.0, 0, 0, 0, 0.9848, 0.17365, 0, -0.17365, 0.9848)


def shown(tmp_path, direction=LPS, upside_down: bool = False, size=(60, 50, 40)) -> Case:
    """Return a case whose liver is a box and whose spleen is another one; the model's liver is a voxel larger."""
    grid = Geometry(size, (2.0, 3.0, 4.0), origin=(10.0, -20.0, 30.0), direction=direction)
    array = np.zeros(grid.shape, np.uint8)
    array[20:23, 20:24, 25:31], array[21:23, 24:27, 25:31], array[39, 49, 59] = LIVER, SPLEEN, SPLEEN
    larger = array.copy()
    larger[23, 20:24, 25:31] = LIVER
    image = tmp_path / "a.nii.gz"
    write(image, np.random.default_rng(0).integers(-900, 900, grid.shape).astype(np.int16), grid)
    root = write_results(
        tmp_path, {"a": image}, {"a": (array, grid)}, [("a", "liver", "doubt")], {"m": {"a": larger}}, modality="CT"
    )
    one = replace(Desk(root).asked()[0], upside_down=upside_down)
    return Case.read(one, list(IDS.values()))


def file_of(case: Case, kind: str, array: np.ndarray) -> bytes:
    """Return an edited cut as the page sends it: behind the header that came with it, gzipped."""
    cut = case.cut(LIVER, kind)
    return gzip.compress(cut.map_file(MAP_OF_SET)[:352] + array.tobytes(), 1)


@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize("direction", [LPS, SAR, GRID.direction, TILTED])
def test_an_edited_cut_comes_back_where_it_was(tmp_path, direction, upside_down):
    case = shown(tmp_path, direction, upside_down)
    cut, stored = case.cut(LIVER, CROP), read(case.asked.map)
    edited = cut.map(MAP_OF_SET).copy()
    edited[tuple(np.argwhere(edited == LIVER)[0])], edited[0, 0, 0] = 0, LIVER
    back = case.cut(LIVER, CROP).take_back(file_of(case, CROP, edited), IDS)
    assert back.geometry == stored.geometry and (back.array != stored.array).sum() == 2
    turn = upright_volume if upside_down else lambda volume: volume
    assert (canonical(turn(back)).array[cut.box] == edited).all()
    assert cut.take_back(file_of(case, CROP, cut.map(MAP_OF_SET)), IDS).array.tobytes() == stored.array.tobytes()


@pytest.mark.parametrize("kind", [CROP, WHOLE])
@pytest.mark.parametrize("direction", [SAR, TILTED])
def test_what_is_sent_is_upright_and_lies_where_the_image_lies(tmp_path, direction, kind):
    case = shown(tmp_path, direction)
    cut, original = case.cut(LIVER, kind), nibabel.load(case.asked.image)
    image = nibabel.Nifti1Image.from_bytes(cut.image_file())
    label = nibabel.Nifti1Image.from_bytes(cut.map_file(MAP_OF_SET))
    assert nibabel.aff2axcodes(image.affine) == tuple("RAS") and np.array_equal(image.affine, label.affine)
    assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
    voxel = np.array(cut.about()["start"])
    where = np.linalg.inv(original.affine) @ image.affine @ [*voxel, 1]
    assert image.dataobj[tuple(voxel)] == original.dataobj[tuple(np.rint(where[:3]).astype(int))]
    assert label.dataobj[tuple(voxel)] == LIVER
    corner = tuple(slice(side.stop - 1, side.stop) for side in case.cut(LIVER, CROP).box)
    voxel = np.array(cut.about(box_text(corner, case.image.geometry))["start"])
    assert [n + (side.start or 0) for n, side in zip(voxel[::-1], cut.box, strict=True)] == [c.start for c in corner]
    assert label.shape == cut.map(MAP_OF_SET).shape[::-1] == image.shape


def test_a_place_that_cannot_be_read_costs_nothing_but_itself(tmp_path, caplog):
    cut = shown(tmp_path).cut(LIVER, CROP)
    assert cut.about("0 0 nowhere") == cut.about()
    assert "a: the place of the doubt is not shown" in caplog.text


def test_the_cut_holds_the_organ_of_all_maps_and_a_margin(tmp_path):
    case = shown(tmp_path)
    cut, about = case.cut(LIVER, CROP), case.cut(LIVER, CROP).about()
    assert cut.map("m").shape == cut.map(MAP_OF_SET).shape < case.image.array.shape
    assert (cut.map("m") == LIVER).sum() == (case.maps["m"] == LIVER).sum()
    assert [one["name"] for one in about["maps"]] == [MAP_OF_SET, "m"] and not about["all"]
    assert about["maps"][0] == {"name": MAP_OF_SET, "ml": pytest.approx(72 * 0.024), "dice": 1.0}
    assert about["maps"][1]["dice"] == pytest.approx(2 * 72 / (72 + 96))
    assert case.cut(LIVER, WHOLE).about()["all"]
    nowhere = case.cut(IDS["pancreas"], CROP)
    assert (nowhere.map(MAP_OF_SET) == LIVER).any() and nowhere.about()["maps"][0]["dice"] is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a, case: a.__setitem__((0, 0, 0), 200), "label ids 200"),
        (lambda a, case: a.__setitem__(a == SPLEEN, LIVER), "36 voxels differ in other classes \\(spleen\\)"),
        (lambda a, case: a.__setitem__(a == SPLEEN, 0), "Only liver and background may change"),
        (lambda a, case: a.__setitem__((0, 0, 0), IDS["pancreas"]), "1 voxel differ in other classes \\(pancreas\\)"),
    ],
)
def test_other_classes_are_locked(tmp_path, change, told):
    case = shown(tmp_path)
    edited = case.cut(LIVER, CROP).map(MAP_OF_SET).copy()
    change(edited, case)
    with pytest.raises(CaseError, match=told):
        case.cut(LIVER, CROP).take_back(file_of(case, CROP, edited), IDS)


def zeros(start: bytes = b"") -> bytes:
    """Return 2 GB of zeros behind ``start``, gzipped: 2 MB, in as many members as MB."""
    return gzip.compress(start) + gzip.compress(bytes(1 << 20)) * 2048


@pytest.mark.parametrize("header", ["none", "true", "too large"])
def test_two_gigabytes_of_zeros_are_refused_before_they_are_unpacked(tmp_path, header):
    case = shown(tmp_path)
    cut = case.cut(LIVER, CROP)
    start = bytearray(cut.map_file(MAP_OF_SET)[:352])
    if header == "too large":
        start[40:48] = np.array([3, 1280, 1280, 1280], "<i2").tobytes()
    content = zeros(b"" if header == "none" else bytes(start))
    tracemalloc.start()
    with pytest.raises(CaseError, match=r"no NIfTI header|and more in the file|are expected"):
        cut.take_back(content, IDS)
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


def test_a_map_on_another_grid_or_of_another_type_is_refused(tmp_path):
    case = shown(tmp_path)
    cut = case.cut(LIVER, CROP)
    good = cut.map_file(MAP_OF_SET)
    same = nibabel.Nifti1Image.from_bytes(good)
    floats = nibabel.Nifti1Image(np.asarray(same.dataobj).astype(np.float32), same.affine)
    whole = case.cut(LIVER, WHOLE).map_file(MAP_OF_SET)
    for content in (whole, floats.to_bytes(), good[:-1], b"", b"no image", good[:300], gzip.compress(good)[:-9]):
        with pytest.raises(CaseError):
            cut.take_back(content, IDS)
    moved = bytearray(good)
    moved[292:296] = np.array([500.0], "<f4").tobytes()
    with pytest.raises(CaseError):
        cut.take_back(bytes(moved), IDS)
    assert nifti.read_header(good).shape == cut.geometry.size


def test_a_label_map_that_was_made_anew_is_not_shown(tmp_path):
    case = shown(tmp_path)
    write(case.asked.map, np.zeros(case.stored.shape, np.uint8), case.stored)
    with pytest.raises(CaseError, match="made anew"):
        Case.read(case.asked, list(IDS.values()))


def test_nothing_predicted_is_an_empty_map(tmp_path):
    one = shown(tmp_path).asked
    case = Case.read(replace(one, map=None, sha256="", models={}), list(IDS.values()))
    assert not case.maps[MAP_OF_SET].any() and case.cut(LIVER, CROP).about()["all"]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1000.0])
def test_windows_of_mr_follow_its_values_whatever_their_scale(tmp_path, scale):
    case = shown(tmp_path)
    values = np.random.default_rng(0).normal(0, scale, case.image.array.shape).astype(np.float32)
    mr = replace(case, asked=replace(case.asked, modality="MR"), image=Volume(values, case.image.geometry))
    for _, low, high in mr.cut(LIVER, WHOLE).about()["windows"]:
        assert -4 * scale < low < high < 4 * scale
