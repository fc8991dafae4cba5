"""DICOM: a series is read as the volume that it is, or refused with a reason that says what to do."""

import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from tiny_dicom import SHAPE, body_hu, write_series, write_slice

from labelloop.base.errors import CaseError, UserError
from labelloop.cases.folders import pair_folders
from labelloop.cases.table import SAFE_ID, load_cases
from labelloop.cli import main as cli
from labelloop.images.volume import read, write
from labelloop.inference.convert import convert_for_table
from labelloop.inference.dicom import LEAST_SLICES, REASONS, read_dicom, read_series
from labelloop.inference.find_cases import find_cases
from labelloop.inference.reading import Image


def names(folder, **options):
    return [case.case for case in find_cases(folder, **options)]


def reason(folder, series=""):
    with pytest.raises(CaseError) as caught:
        read_dicom(folder, series)
    return caught.value


def test_a_series_is_read_with_its_place_and_its_values(tmp_path):
    volume = read_dicom(write_series(tmp_path / "s"))
    np.testing.assert_array_equal(volume.array, body_hu())
    assert volume.geometry.spacing == pytest.approx((4, 4, 5))
    assert volume.geometry.origin == pytest.approx((-90, -60, -300))


UNSIGNED, TWELVE_BITS = {(0x28, 0x103): ("US", b"\0\0")}, {(0x28, 0x101): ("US", b"\x0c\0")}
SCALED = {
    "intercept of unsigned values": (("1", "0"), ("1", "-1024"), UNSIGNED),
    "slope": (("1", "0"), ("0.37", "0"), {}),
    "both": (("1", "-1024"), ("2.5", "-3000.5"), {}),
    "large slope": (("1", "0"), ("100", "7"), {}),
    "bits": (("1", "0"), ("-20", "0"), TWELVE_BITS),
    "alike": (("0.37", "-1024"), ("0.37", "-1024"), UNSIGNED),
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("other", [0, 3, 5])
def test_each_slice_is_scaled_as_its_own_header_says(tmp_path, kind, other):
    """ITK writes the values of all slices as the type of those of the first."""
    *scales, more = SCALED[kind]
    stored = body_hu(60)[:6] // 10 + 100
    expected = np.empty(stored.shape)
    for k, plane in enumerate(stored):
        slope, intercept = scales[0] if k == other else scales[1]
        told = {(0x28, 0x1053): ("DS", slope), (0x28, 0x1052): ("DS", intercept), **(more if k == other else {})}
        write_slice(tmp_path / f"{k}.dcm", plane - 1024, (-90, -60, 5 * k), k + 1, modality="MR", more=told)
        expected[k] = plane * float(slope) + float(intercept)
    np.testing.assert_allclose(read_dicom(tmp_path).array, expected, rtol=0, atol=1e-3)


def test_reversed_numbers_and_slices_stored_from_head_to_foot_are_read(tmp_path):
    volume = read_dicom(write_series(tmp_path / "s", step=-5.0))
    np.testing.assert_array_equal(volume.array, body_hu()[::-1])
    assert volume.geometry.origin[2] == pytest.approx(-300 - 5 * 29)


def test_an_oblique_series_whose_table_follows_its_normal_is_read(tmp_path):
    turn = np.deg2rad(20)
    normal = np.array([0, np.sin(turn), np.cos(turn)])
    for k, plane in enumerate(body_hu()):
        write_slice(tmp_path / f"{k}.dcm", plane, np.array([-90, -60, -300]) + 5 * k * normal, k + 1,
                    orientation=(1, 0, 0, 0, np.cos(turn), -np.sin(turn)))  # fmt: skip
    assert read_dicom(tmp_path).geometry.spacing == pytest.approx((4, 4, 5), abs=1e-3)


@pytest.mark.parametrize("degrees", [3, 20])
def test_a_tilted_gantry_is_refused_by_its_name(tmp_path, degrees):
    turn = np.deg2rad(degrees)
    tilted = (1, 0, 0, 0, np.cos(turn), -np.sin(turn))
    found = reason(write_series(tmp_path / "s", orientation=tilted))
    assert found.code == "dicom_gantry_tilt" and f"{degrees}.0 degrees" in found.found and "gantry" in found.action


def test_pixel_sizes_that_change_half_way_are_refused(tmp_path):
    write_series(tmp_path, body_hu()[:15])
    write_series(tmp_path, body_hu()[15:], start=15, first=-300 + 5.0 * 15, spacing=3.5)
    found = reason(tmp_path)
    assert found.code == "dicom_sizes_differ" and "3.5 x 3.5 mm" in found.found and "4 x 4 mm" in found.found


@pytest.mark.parametrize("kind", ["ORIGINAL\\PRIMARY\\AXIAL", "ORIGINAL\\PRIMARY\\LOCALIZER"])
def test_a_scout_in_the_series_is_refused(tmp_path, kind):
    """Seen: at slice distance, its orientation became that of the volume."""
    write_series(tmp_path)
    write_slice(tmp_path / "scout.dcm", body_hu()[0], (-90, -60, -305), 0, orientation=(1, 0, 0, 0, 0, -1), kind=kind)
    found = reason(tmp_path)
    assert found.code == ("dicom_localizer" if "LOCALIZER" in kind else "dicom_orientations_differ")
    assert "1 of 31 slices" in found.found and "scout.dcm" in found.found


ACQUISITION = {(0x20, 0x12): ("IS", "1")}, {(0x20, 0x12): ("IS", "2")}


@pytest.mark.parametrize("told_by", ["tag", "numbers", "contrast"])
@pytest.mark.parametrize("offset", [0.0, 2.5])
def test_two_phases_that_lie_in_each_other_are_refused(tmp_path, told_by, offset):
    """Seen: with half a slice between them they passed for one volume of thin slices."""
    tags = ACQUISITION if told_by == "tag" else ({}, {})
    for phase, (more, soft_tissue) in enumerate(zip(tags, (40, 110), strict=True)):
        for k, plane in enumerate(body_hu(soft_tissue)):
            number = 30 * phase + k + 1 if told_by == "numbers" else 2 * k + phase + 1
            place = (-90, -60, -300 + 5.0 * k + offset * phase)
            write_slice(tmp_path / f"{phase}_{k}.dcm", plane, place, number, more=more)
    assert reason(tmp_path).code == "dicom_phases"


def test_acquisitions_one_after_the_other_are_one_volume(tmp_path):
    write_series(tmp_path, body_hu()[:15], more=ACQUISITION[0])
    write_series(tmp_path, body_hu()[15:], start=15, first=-300 + 5.0 * 15, more=ACQUISITION[1])
    assert read_dicom(tmp_path).array.shape == SHAPE


def test_a_slice_that_is_unlike_all_around_it_is_refused(tmp_path):
    """Seen: damaged bytes in a slice of JPEG 2000 are unpacked to something else, without an error."""
    hu = body_hu()
    hu[12] = np.random.default_rng(0).integers(-1000, 1000, hu.shape[1:])
    found = reason(write_series(tmp_path, hu))
    assert found.code == "dicom_damaged" and "1 of 30 slices are unlike" in found.found and "012.dcm" in found.found


def test_missing_slices_are_refused(tmp_path):
    next(iter(sorted(write_series(tmp_path).glob("*_012.dcm")))).unlink()
    assert reason(tmp_path).code == "dicom_irregular_slices"


@pytest.mark.parametrize("slices", [1, LEAST_SLICES - 1])
def test_few_slices_are_refused_and_counted(tmp_path, slices):
    found = reason(write_series(tmp_path, body_hu()[:slices]))
    assert found.code == "dicom_few_slices" and found.found == ("1 slice" if slices == 1 else f"{slices} slices")


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path):
    write_series(tmp_path, body_hu(40), series="1.2.3.7", description="Arterial 5.0")
    write_series(tmp_path, body_hu(90)[:20], series="1.2.3.8", description="Portal 5.0")
    found = reason(tmp_path)
    for words in ('1: "Arterial 5.0", 30 slices, 1.2.3.7', '2: "Portal 5.0", 20 slices, 1.2.3.8'):
        assert words in found.found
    assert "--series" in found.action
    for wanted in ("2", "1.2.3.8"):
        assert read_dicom(tmp_path, wanted).array.shape[0] == 20
        assert [(c.case, c.series) for c in find_cases(tmp_path, series=wanted)] == [
            (f"{tmp_path.name}_series2", wanted)
        ]
    assert Image(tmp_path, "1").sha256() != Image(tmp_path, "2").sha256()
    assert reason(tmp_path, "3").code == "dicom_series"
    with pytest.raises(UserError, match=r"--series 9\.9 is in 0 folders"):
        find_cases(tmp_path, series="9.9")


def test_several_series_in_a_folder_are_a_case_each(tmp_path, caplog):
    """As a flat export has them: two phases, a scout, and a picture of the dose."""
    write_series(tmp_path / "P1", body_hu(40), series="1.2.3.7", description="Arterial")
    write_series(tmp_path / "P1", body_hu(90)[:20], series="1.2.3.8", description="Portal")
    write_series(tmp_path / "P1", body_hu()[:1], series="1.2.3.9", description="Dose", kind="DERIVED\\SECONDARY")
    write_series(tmp_path / "P2", body_hu()[:20], series="1.2.4.7")
    write_series(tmp_path / "P2", body_hu()[:1], series="1.2.4.8", description="Dose", kind="DERIVED\\SECONDARY")
    with caplog.at_level(logging.INFO):
        found = {case.case: case for case in find_cases(tmp_path)}
    assert sorted(found) == ["P1_series1", "P1_series2", "P2"]
    assert any("no volume, beside others" in line and '"Dose", 1 slice' in line for line in caplog.messages)
    heights = [Image.of(case).volume("CT").array.shape[0] for _, case in sorted(found.items())]
    assert heights == [30, 20, 20]
    assert len({Image.of(case).sha256() for case in found.values()}) == 3


def test_series_are_counted_by_number_and_time_whatever_their_uids(tmp_path):
    told = {"1.2.3.6": ("", ""), "1.2.3.7": ("12", "080000"), "1.2.3.8": ("3", "100000"), "1.2.3.9": ("3", "090000.5"),
            "1.2.3.10": ("3", "100000")}  # fmt: skip
    for uid, (number, time) in told.items():
        tags = {(8, 0x21): ("DA", "20260102"), (8, 0x31): ("TM", time), (0x20, 0x11): ("IS", number)}
        write_series(tmp_path, body_hu()[:6], series=uid, more=tags)
    expected = ["1.2.3.9", "1.2.3.10", "1.2.3.8", "1.2.3.7", "1.2.3.6"]
    assert list(read_series(tmp_path)) == expected
    found = {case.case: case.series for case in find_cases(tmp_path)}
    assert found == {f"{tmp_path.name}_series{n}": uid for n, uid in enumerate(expected, start=1)}


def test_of_several_series_only_the_one_that_is_split_is_put_aside(tmp_path):
    slices = sorted(write_series(tmp_path / "1", series="1.2.3.7").iterdir())
    (tmp_path / "2").mkdir()
    for file in slices[15:]:
        file.rename(tmp_path / "2" / file.name)
    write_series(tmp_path / "1", body_hu(90), series="1.2.3.8")
    lost: list = []
    assert [(case.case, case.series) for case in find_cases(tmp_path, lost=lost)] == [("1", "1.2.3.8")]
    assert sorted(entry.path.name for entry in lost) == ["1", "2"]


def test_a_case_table_of_a_tree_of_series(tmp_path, caplog):
    pacs, scans, out = tmp_path / "pacs", tmp_path / "scans", tmp_path / "cases.csv"
    for patient, place, series in (("A", "1/CT/arterial", "1"), ("A", "1/CT/portal", "2"), ("B", "2/CT", "3")):
        write_series(pacs / place, body_hu(40 + 10 * int(series)), series=f"1.2.{series}",
                     more={(0x10, 0x20): ("LO", patient)})  # fmt: skip
    write_series(pacs / "2" / "MR", series="1.2.4", modality="MR", more={(0x10, 0x20): ("LO", "B")})
    write_series(pacs / "2" / "PET", series="1.2.5", modality="PT")
    write_series(pacs / "3", body_hu()[:3], series="1.2.6")
    (tmp_path / "labels").mkdir()
    asked = ["cases", "--images", pacs, "--labels", tmp_path / "labels", "--convert", scans, "--dataset", "flare22",
             "--out", out, "--test-fraction", "0.5"]  # fmt: skip
    volume = read_dicom(pacs / "2" / "CT")
    for case in ("1_CT_arterial", "2_CT"):
        write(tmp_path / "labels" / f"{case}.nii.gz", (volume.array > 0).astype(np.uint8), volume.geometry)
    with caplog.at_level(logging.INFO):
        assert cli.main(list(map(str, asked))) == 1
    assert any("2_PET: left out, PT" in line for line in caplog.messages)
    assert any(line.startswith("3: dicom_few_slices") for line in caplog.messages)
    cases = {case.case: case for case in load_cases(out)[0]}
    assert sorted(cases) == ["1_CT_arterial", "1_CT_portal", "2_CT", "2_MR"]
    assert [case.modality for _, case in sorted(cases.items())] == ["CT", "CT", "CT", "MR"]
    assert len({cases[case].patient for case in ("1_CT_arterial", "1_CT_portal")}) == 1
    assert cases["2_CT"].patient == cases["2_MR"].patient not in ("B", cases["1_CT_portal"].patient)
    assert sorted([cases["1_CT_portal"].role, cases["2_MR"].role]) == ["test", "train"]  # patients stay together
    assert {(case.patient, case.role) for case in cases.values()} == {
        (cases[case].patient, cases[case].role) for case in ("1_CT_portal", "2_MR")
    }
    assert read(cases["2_CT"].image).geometry.difference(volume.geometry) is None
    with pytest.raises(UserError, match="no DICOM series of MR can be used"):
        convert_for_table(pacs / "1", tmp_path / "other", "MR", [])


def test_a_series_is_found_in_its_folder_and_the_others_are_told(tmp_path, caplog):
    for number in range(2):
        write_series(tmp_path / f"P{number}", body_hu()[:5], series=f"1.2.{number}")
    with caplog.at_level(logging.INFO):
        assert names(tmp_path, series="1.2.1") == ["P1_series1"]
    assert any("1 left out, no DICOM series 1.2.1 in it: P0" in line for line in caplog.messages)
    with pytest.raises(UserError, match="--series 1 is in 2 folders"):
        find_cases(tmp_path, series="1")


def test_a_localizer_beside_the_series_is_told_and_left_out(tmp_path, caplog):
    scout = {"kind": "ORIGINAL\\PRIMARY\\LOCALIZER", "orientation": (1, 0, 0, 0, 0, -1)}
    write_series(tmp_path / "p", series="1.2.3.8")
    write_series(tmp_path / "p", body_hu()[:2], series="1.2.3.7", **scout)
    write_series(tmp_path / "q" / "scout", body_hu()[:2], series="1.2.3.9", **scout)
    with caplog.at_level(logging.INFO):
        assert names(tmp_path) == ["p"]
        assert read_dicom(tmp_path / "p").array.shape == SHAPE
    assert any("1 left out, a localizer" in line and "q/scout" in line for line in caplog.messages)
    assert any("1 other series" in line for line in caplog.messages)
    assert reason(tmp_path / "q" / "scout").code == "dicom_localizer"


@pytest.mark.parametrize(
    "told", [{"kind": "DERIVED\\SECONDARY\\AXIAL\\CSA MIP"}, {"more": {(8, 0x9207): ("CS", "MIN_IP")}}]
)
def test_a_projection_is_no_volume(tmp_path, caplog, told):
    """Slabs of the brightest voxels lie as slices do; organs in them are no organs."""
    write_series(tmp_path / "p", series="1.2.3.8")
    write_series(tmp_path / "p", body_hu() + 10, series="1.2.3.7", **told)
    write_series(tmp_path / "q", series="1.2.3.9", **told)
    with caplog.at_level(logging.INFO):
        assert names(tmp_path) == ["p"]
    assert any("1 left out, a projection of DICOM" in line for line in caplog.messages)
    np.testing.assert_array_equal(read_dicom(tmp_path / "p").array, body_hu())
    assert reason(tmp_path / "p", "1.2.3.7").code == reason(tmp_path / "q").code == "dicom_projection"


def test_reformatted_slices_are_a_volume(tmp_path):
    assert read_dicom(write_series(tmp_path, kind="DERIVED\\SECONDARY\\MPR\\CSA MPR")).array.shape == SHAPE


def test_folders_are_walked_to_any_depth_beside_other_inputs(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"x")
    for place in ("flat", "P1/STUDY/SER1", "P1/STUDY/SER2", "P2/STUDY/SER1"):
        write_series(tmp_path / place, body_hu()[:5])
    write_series(tmp_path, body_hu()[:5])
    found = ["flat", "P1_STUDY_SER1", "P1_STUDY_SER2", "P2_STUDY_SER1", "scan", tmp_path.name]
    assert sorted(names(tmp_path)) == sorted(found)
    (tmp_path / "flat" / "back").symlink_to(tmp_path)  # a link that leads in a circle
    assert sorted(names(tmp_path)) == sorted(found)


def test_names_that_come_together_are_refused(tmp_path):
    for place in ("P1_A/B", "P1/A_B"):
        write_series(tmp_path / place, body_hu()[:5])
    with pytest.raises(UserError, match="several inputs for P1_A_B"):
        find_cases(tmp_path)


def test_a_single_file_of_a_series_is_refused_with_its_folder(tmp_path):
    file = sorted(write_series(tmp_path / "s").iterdir())[3]
    with pytest.raises(UserError, match=rf"one of 30 slices.*give its folder {tmp_path / 's'}"):
        find_cases(file)
    alone = sorted(write_series(tmp_path / "one", body_hu()[:1]).iterdir())[0]
    with pytest.raises(UserError, match="a single DICOM slice"):
        find_cases(alone)


def test_what_is_no_slice_is_told_and_itk_says_nothing_itself(tmp_path, capfd, caplog):
    write_series(tmp_path / "s")
    (tmp_path / "s" / "report.pdf").write_bytes(b"%PDF")
    (tmp_path / "s" / "structured.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\1" * 40)
    (tmp_path / "empty").mkdir()
    with caplog.at_level(logging.INFO):
        assert names(tmp_path) == ["s"]
        read_dicom(tmp_path / "s")
    assert any("report.pdf" in line for line in caplog.messages)
    assert any("structured.dcm" in line for line in caplog.messages)
    assert any("1 left out" in line and "empty" in line for line in caplog.messages)
    with pytest.raises(UserError, match="no image, and no DICOM series"):
        find_cases(tmp_path / "empty")
    assert read_series(tmp_path / "empty") == {}
    assert capfd.readouterr().err == ""


def test_slices_that_are_dead_links_or_have_odd_names_are_lost(tmp_path):
    """As DataLad leaves them before it is asked for the files."""
    write_series(tmp_path / "some")
    (tmp_path / "some" / "more").symlink_to("/annex/gone")
    (tmp_path / "some" / "1.2.3.5_004.dcm").rename(tmp_path / "some" / os.fsdecode(b"\xff.dcm"))
    (tmp_path / "none").mkdir()
    for place in ("none", "."):
        (tmp_path / place / "1.dcm").symlink_to("/annex/gone")
    lost: list = []
    assert names(tmp_path, lost=lost) == ["some"]
    with pytest.raises(UserError, match=r"1 left out, a dead link.*1\.dcm"):
        find_cases(tmp_path / "none")
    assert sorted(os.fsencode(entry.path.relative_to(tmp_path)) for entry in lost) == [
        b"1.dcm", b"none/1.dcm", b"some/more", b"some/\xff.dcm"
    ]  # fmt: skip


def test_the_fingerprint_is_that_of_the_slices_alone(tmp_path):
    before = Image(write_series(tmp_path / "s")).sha256()
    (tmp_path / "s" / "notes.txt").write_text("seen")
    assert Image(tmp_path / "s").sha256() == before
    write_slice(tmp_path / "s" / "1.2.3.5_003.dcm", body_hu(90)[3], (-90, -60, -285), 4)
    assert Image(tmp_path / "s").sha256() != before


def test_series_are_converted_for_a_case_table(tmp_path, caplog):
    for patient in ("P1", "P2"):
        write_series(tmp_path / "pacs" / patient / "series")
    write_series(tmp_path / "pacs" / "P3", body_hu()[:2])
    arguments = ["convert", str(tmp_path / "pacs"), "--out", str(tmp_path / "images")]
    assert cli.main(arguments) == 1
    assert any(line.startswith("P3: dicom_few_slices") for line in caplog.messages)
    assert list(pair_folders(tmp_path / "images")) == ["P1_series", "P2_series"]
    volume = read(tmp_path / "images" / "P1_series_0000.nii.gz")
    np.testing.assert_array_equal(volume.array, body_hu())
    assert volume.geometry.difference(read_dicom(tmp_path / "pacs" / "P1" / "series").geometry) is None
    (tmp_path / "images" / "P1_series_0000.nii.gz").write_bytes(b"mine")
    assert cli.main(arguments) == 1 and (tmp_path / "images" / "P1_series_0000.nii.gz").read_bytes() == b"mine"
    assert cli.main(["convert", str(tmp_path / "pacs" / "P3"), "--out", str(tmp_path / "p3")]) == 2
    for wrong in (["convert", str(tmp_path / "images"), "--out", str(tmp_path / "x")], [*arguments[:3], arguments[1]]):
        assert cli.main(wrong) == 2


@pytest.mark.parametrize("value", ["", "0\\0", "4,0\\4,0", "4"])
def test_pixels_without_a_size_are_refused(tmp_path, value):
    """ITK takes 1 mm. A scanner's own size, ImagerPixelSpacing, is that of its detector."""
    write_series(tmp_path, more={(0x28, 0x30): ("DS", value), (0x18, 0x1164): ("DS", "4\\4")})
    found = reason(tmp_path)
    assert found.code == "dicom_no_geometry" and "30 of 30 slices do not say their PixelSpacing" in found.found


@pytest.mark.parametrize("tag", [0x32, 0x37])
def test_slices_that_do_not_say_where_they_lie_are_refused(tmp_path, tag):
    write_series(tmp_path, more={(0x20, tag): ("DS", "")})
    assert reason(tmp_path).code == "dicom_no_geometry"


MIXED = {
    "inverted": (0, 30, {(0x28, 4): ("CS", "MONOCHROME1")}),
    "one inverted": (9, 10, {(0x28, 4): ("CS", "MONOCHROME1")}),
    "one without scale": (9, 10, {(0x28, 0x1052): ("DS", ""), (0x28, 0x1053): ("DS", "")}),
    "another patient": (15, 30, {(0x10, 0x20): ("LO", "p2")}),
    "another frame of reference": (15, 30, {(0x20, 0x52): ("UI", "1.2.9")}),
}


@pytest.mark.parametrize("kind", MIXED)
def test_slices_of_several_kinds_are_no_volume(tmp_path, kind):
    first, last, more = MIXED[kind]
    write_series(tmp_path)
    for k in range(first, last):
        write_slice(tmp_path / f"1.2.3.5_{k:03d}.dcm", body_hu()[k], (-90, -60, -300 + 5 * k), k + 1, more=more)
    assert reason(tmp_path).code == "dicom_mixed"


@pytest.mark.parametrize("content", [b"", b"<html>", None])
def test_a_last_slice_that_cannot_be_read_is_not_left_out(tmp_path, content):
    """At the end of a series, no distance of slices tells."""
    last = sorted(write_series(tmp_path).iterdir())[-1]
    last.write_bytes(last.read_bytes()[:500] if content is None else content)
    assert reason(tmp_path).code == "dicom_damaged"


@pytest.mark.parametrize("scout", [False, True])
@pytest.mark.parametrize("left", [0, 700])
def test_a_series_without_a_slice_that_can_be_read_is_lost(tmp_path, scout, left, caplog):
    write_series(tmp_path / "P1" / "good", body_hu()[:6])
    cut = sorted(write_series(tmp_path / "P1" / "cut", body_hu()[:6]).iterdir())
    for file in cut:
        file.write_bytes(file.read_bytes()[:left])
    if scout:
        write_series(tmp_path / "P1" / "cut", body_hu()[:1], series="1.2.3.9", kind="ORIGINAL\\PRIMARY\\LOCALIZER")
    lost: list = []
    assert names(tmp_path, lost=lost) == ["P1_good"]
    assert [entry.path for entry in lost] == cut
    assert any("6 left out, a DICOM file that is cut or damaged" in line for line in caplog.messages)
    assert cli.main(["convert", str(tmp_path), "--out", str(tmp_path / "images")]) == 1


def test_a_report_alone_in_its_folder_is_told_and_not_lost(tmp_path, caplog):
    write_series(tmp_path / "s", body_hu()[:6])
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "structured.dcm").write_bytes(
        b"\0" * 128 + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0"
    )
    lost: list = []
    with caplog.at_level(logging.INFO):
        assert names(tmp_path, lost=lost) == ["s"]
    assert lost == [] and any("without an image" in line and "structured.dcm" in line for line in caplog.messages)


def test_a_modality_that_the_headers_contradict_is_refused(tmp_path):
    write_series(tmp_path, modality="MR")
    with pytest.raises(CaseError, match=r"dicom_modality: .*MR, not CT"):
        Image(tmp_path).volume("CT")
    assert read_dicom(tmp_path).array.shape == SHAPE


@pytest.mark.parametrize("own", [slice(0, 15), slice(0, 30, 2)])
def test_a_series_in_two_folders_is_put_aside_and_copies_are_not(tmp_path, own):
    slices = sorted(write_series(tmp_path / "in" / "1").iterdir())
    (tmp_path / "in" / "2").mkdir()
    for file in slices[own]:
        file.rename(tmp_path / "in" / "2" / file.name)
    write_series(tmp_path / "in" / "whole", series="1.2.3.6")
    write_series(tmp_path / "in" / "copy", series="1.2.3.6")
    lost: list = []
    assert names(tmp_path / "in", lost=lost) == ["copy", "whole"]
    assert [entry.path.name for entry in lost] == ["1", "2"]


def test_a_volume_among_slices_and_a_link_in_a_circle_are_told(tmp_path, caplog):
    write_series(tmp_path / "s" / "t")
    (tmp_path / "s" / "t" / "label.nii.gz").write_bytes(b"x")
    (tmp_path / "s" / "circle").symlink_to("circle")
    with caplog.at_level(logging.INFO):
        assert names(tmp_path / "s") == ["t"]
    assert any("among the slices" in line and "label.nii.gz" in line for line in caplog.messages)


def test_every_reason_is_explained():
    page = (Path(__file__).parents[2] / "docs" / "inference.md").read_text()
    assert [code for code in REASONS if f"`{code}`" not in page] == []


def test_folders_of_any_name_become_case_ids(tmp_path, caplog):
    for place in ("Pat 1/CT  Abdomen", "Müller", "Möller"):
        write_series(tmp_path / "pacs" / place)
    lost: list = []
    with caplog.at_level(logging.INFO):
        made = [one.case for one in convert_for_table(tmp_path / "pacs", tmp_path / "scans", "CT", lost)]
    assert made[0].startswith("M_ller_") and made[1].startswith("M_ller_") and made[0] != made[1]
    assert made[2] == "Pat_1_CT_Abdomen" and lost == [] and "Pat 1_CT  Abdomen is Pat_1_CT_Abdomen" in caplog.text
    assert all(SAFE_ID.fullmatch(case) and (tmp_path / "scans" / f"{case}_0000.nii.gz").is_file() for case in made)
    write_series(tmp_path / "pacs" / "Pat_1" / "CT_Abdomen")
    with pytest.raises(UserError, match="several inputs for Pat_1_CT_Abdomen"):
        convert_for_table(tmp_path / "pacs", tmp_path / "scans", "CT", lost)


@pytest.mark.parametrize("other", [{"first": -250}, {"spacing": 3.0}, {"hu": body_hu()[:20]}])
def test_a_file_of_another_series_is_not_kept_for_this_one(tmp_path, other):
    """Folders of two exports have one name."""
    write_series(tmp_path / "pacs" / "CT")
    write_series(tmp_path / "more" / "CT", **other)
    for _ in range(2):
        assert len(convert_for_table(tmp_path / "pacs", tmp_path / "scans", "CT", [])) == 1
    lost: list = []
    with pytest.raises(UserError, match="no DICOM series"):
        convert_for_table(tmp_path / "more", tmp_path / "scans", "CT", lost)
    assert "dicom_converted" in lost[0].reason
    np.testing.assert_array_equal(read(tmp_path / "scans" / "CT_0000.nii.gz").array, body_hu())


def test_what_labels_mean_is_asked_before_images_are_written(tmp_path, capsys):
    write_series(tmp_path / "pacs" / "CT")
    asked = ["cases", "--images", tmp_path / "pacs", "--convert", tmp_path / "scans", "--out", tmp_path / "c.csv"]
    for given in ([], ["--dataset", "nowhere.yaml"]):
        assert cli.main(list(map(str, [*asked, *given]))) == 2
        assert "data set" in capsys.readouterr().err and not (tmp_path / "scans").exists()


def test_one_patient_for_all_leaves_none_to_train_on(tmp_path, capsys):
    for case in "abc":
        folder = write_series(tmp_path / "pacs" / case, more={(0x10, 0x20): ("LO", "ANONYMOUS")})
        volume = read_dicom(folder)
        (tmp_path / "labels").mkdir(exist_ok=True)
        write(tmp_path / "labels" / f"{case}.nii.gz", (volume.array > 0).astype(np.uint8), volume.geometry)
    asked = ["cases", "--images", tmp_path / "pacs", "--labels", tmp_path / "labels", "--convert", tmp_path / "scans",
             "--dataset", "flare22", "--test-fraction", "0.3", "--out", tmp_path / "c.csv"]  # fmt: skip
    assert cli.main(list(map(str, asked))) == 2
    assert "one PatientID for all" in capsys.readouterr().err and not (tmp_path / "c.csv").exists()


def test_a_folder_that_cannot_be_looked_into_is_lost(tmp_path, close):
    for place in ("a", "b"):
        write_series(tmp_path / place)
    close("b")
    lost: list = []
    assert names(tmp_path, lost=lost) == ["a"]
    assert [(entry.path.name, entry.reason.endswith("Permission denied")) for entry in lost] == [("b", True)]


def test_what_systems_leave_at_the_root_of_a_disk_is_passed_over(tmp_path, close):
    write_series(tmp_path / "a")
    (tmp_path / "lost+found").mkdir()
    write_series(tmp_path / "$RECYCLE.BIN")
    close("lost+found")
    lost: list = []
    assert names(tmp_path, lost=lost) == ["a"] and lost == []
