"""``labelloop check``: what the survey refuses is not checked, and an image that does not fit is not looked at."""

import gzip
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.base.tables import read_table
from labelloop.images.volume import write
from labelloop.labels.fit import LEAST_PATIENTS
from labelloop.labels.folder import check_folder, fit_folder


@pytest.fixture
def folder(anatomy, tmp_path):
    """A folder of labels and one of images, with a good case."""
    coarse = replace(anatomy.geometry, size=tuple(n // 4 for n in anatomy.geometry.size), spacing=(12.0, 12.0, 12.0))
    box = tuple(slice(0, 4 * n, 4) for n in coarse.shape)
    noise = np.random.default_rng(0).integers(-9, 10, coarse.shape)
    made = SimpleNamespace(
        labels=tmp_path / "labels", images=tmp_path / "images", grid=coarse,
        array=np.ascontiguousarray(anatomy.labels[box]), image=(anatomy.image[box] + noise).astype(np.int16),
    )  # fmt: skip
    add(made, "good")
    return made


def add(folder, case, array=None, grid=None, image=None, image_grid=None):
    """Write a case, bad in the ways that are given."""
    write(folder.labels / f"{case}.nii.gz", folder.array if array is None else array, grid or folder.grid)
    write(folder.images / f"{case}_0000.nii.gz", folder.image if image is None else image, image_grid or folder.grid)


def spoil(folder):
    """Add a case for each reason and return the code that each must get."""
    raw, moved = folder.image + 1024, tuple(o + 300 for o in folder.grid.origin)
    raw[:, :3] = -2000
    mirrored = (1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)
    add(folder, "cut")
    file = folder.labels / "cut.nii.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:5000]))
    add(folder, "cut_image")
    file = folder.images / "cut_image_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:3000])
    add(folder, "moved", image_grid=replace(folder.grid, origin=moved))
    add(folder, "mirrored", image_grid=replace(folder.grid, direction=mirrored))
    add(folder, "smaller", image=folder.image[:-1], image_grid=replace(folder.grid, size=(*folder.grid.size[:2], 24)))
    add(folder, "raw", image=raw)
    add(folder, "infinite", array=np.where(folder.array == 1, np.inf, folder.array))
    add(folder, "other_ids", array=folder.array * 10)
    return {
        "cut": "label_truncated",
        "cut_image": "image_truncated",
        "moved": "label_origin_differs",
        "mirrored": "label_direction_differs",
        "smaller": "label_size_differs",
        "raw": "image_not_hu",
        "infinite": "label_not_finite",
        "other_ids": "label_unknown_ids",
    }


def test_what_the_survey_refuses_is_not_checked_and_the_others_are(folder, tmp_path, caplog):
    expected = spoil(folder)
    assert check_folder(folder.labels, "flare", tmp_path / "v.csv", folder.images) == len(expected)
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert all(sum(line.startswith(f"{case}: {code}") for line in said) == 1 for case, code in expected.items())
    assert set(read_table(tmp_path / "v.csv", "verdicts")["case"]) == {"good"}


def test_a_case_table_says_what_was_removed_and_of_which_modality_a_case_is(folder, tmp_path, caplog):
    """Where the spleen was removed, no rule misses it; where nobody says so, it fails."""
    without = np.where(folder.array == 3, 0, folder.array)
    for case in ("removed", "missing", "other"):
        add(folder, case, array=without)
    add(folder, "mr", image=np.maximum(folder.image, 0))
    table = tmp_path / "cases.csv"
    rows = ["removed,a.nii.gz,btcv,CT,spleen", "missing,b.nii.gz,btcv,CT,", "mr,c.nii.gz,chaos_mr,MR,"]
    table.write_text("\n".join(["case,image,dataset,modality,surgery", *rows]) + "\n")
    verdicts = tmp_path / "v.csv"
    assert check_folder(folder.labels, "flare", verdicts, folder.images, asked=["spleen"], table=table) == 0
    found = read_table(verdicts, "verdicts")
    failed = found[found["verdict"] == "fail"]
    assert set(failed.loc[failed["class"] == "spleen", "case"]) == {"missing", "other"}
    hu = found[found["rule"] == "intensity"].groupby("case")["verdict"].agg(set)
    assert hu["mr"] == {"not_applicable"} and "pass" in hu["removed"]
    assert "no row of 2 label maps: good, other" in caplog.text


def test_a_case_table_of_other_cases_is_an_error(folder, tmp_path):
    table = tmp_path / "cases.csv"
    table.write_text("case,image,dataset\nb,b.nii.gz,btcv\n")
    with pytest.raises(UserError, match="names none of these label maps"):
        check_folder(folder.labels, "flare", tmp_path / "v.csv", folder.images, table=table)


def test_thresholds_are_fitted_to_what_can_be_used_only(folder, tmp_path):
    for number in range(LEAST_PATIENTS):
        add(folder, f"more_{number}")
    expected = spoil(folder)
    assert fit_folder(folder.labels, "flare", tmp_path / "fitted.yaml", folder.images) == len(expected)


def test_images_of_which_none_fits_are_an_error_and_one_that_is_missing_is_told(folder, tmp_path, caplog):
    add(folder, "unpaired")
    (folder.images / "unpaired_0000.nii.gz").rename(folder.images / "scan_unpaired_0000.nii.gz")
    assert check_folder(folder.labels, "flare", tmp_path / "v.csv", folder.images) == 0
    assert "1 label map without an image" in caplog.text and "unpaired" in caplog.text
    (folder.labels / "good.nii.gz").unlink()
    with pytest.raises(UserError, match="no image of these label maps"):
        check_folder(folder.labels, "flare", tmp_path / "v.csv", folder.images)


def test_where_an_image_is_clipped_its_intensities_do_not_count(folder, tmp_path):
    """A stomach full of gas, in an image saturated to [-125, 275] HU: gas reads as fat there."""
    stomach = folder.array == 11
    gas = folder.image.copy()
    gas[stomach & (np.arange(stomach.size).reshape(stomach.shape) % 10 < 7)] = -900
    add(folder, "good", image=np.clip(gas, -125, 275))
    check_folder(folder.labels, "flare", tmp_path / "v.csv", folder.images)
    table = read_table(tmp_path / "v.csv", "verdicts").set_index(["class", "rule"])
    assert table.loc[("stomach", "fat"), "verdict"] == "pass"
    fat = folder.image.copy()
    fat[stomach] = -90
    add(folder, "good", image=np.clip(fat, -125, 275))
    check_folder(folder.labels, "flare", tmp_path / "v.csv", folder.images)
    table = read_table(tmp_path / "v.csv", "verdicts").set_index(["class", "rule"])
    assert table.loc[("stomach", "fat"), "verdict"] == "fail"


def test_ignored_voxels_of_a_data_set_are_no_reason_to_refuse_a_label_map(folder, tmp_path, caplog):
    some = np.where(folder.array == 1, folder.array, 99)
    some[: len(some) // 2] = folder.array[: len(some) // 2]
    add(folder, "some", array=some)
    labels = {**{i: name for name, i in load_classes("flare").ids.items()}, 99: "ignore"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own", "modality": "CT", "labels": labels}))
    assert check_folder(folder.labels, "flare", tmp_path / "v.csv", folder.images) == 1
    assert "some: label_unknown_ids" in caplog.text
    assert check_folder(folder.labels, "flare", tmp_path / "v.csv", folder.images, str(tmp_path / "own.yaml")) == 0
    table = read_table(tmp_path / "v.csv", "verdicts")
    failed = (
        table[table["verdict"] == "fail"]
        .groupby("case")[["class", "rule"]]
        .apply(lambda part: set(map(tuple, part.to_numpy())))
    )
    assert failed.get("some", set()) <= failed.get("good", set())
    assert (table.loc[table["case"] == "some", "reason"].str.contains("ignored")).any()


def test_a_missing_organ_fails_where_it_was_asked_for(folder, tmp_path):
    add(folder, "good", array=np.where(folder.array == 3, 0, folder.array))  # no spleen

    def failing(**arguments):
        check_folder(folder.labels, "flare", tmp_path / "v.csv", folder.images, **arguments)
        table = read_table(tmp_path / "v.csv", "verdicts")
        return set(table[(table["class"] == "spleen") & (table["verdict"] == "fail")]["rule"])

    assert failing() == set()
    assert failing(asked=["liver"]) == set()
    assert failing(asked=["organs"]) == {"volume", "expected"}
    assert failing(dataset="phantom") == {"expected"}
    with pytest.raises(UserError, match="no class or set named spleeen"):
        failing(asked=["spleeen"])


def test_a_map_of_no_class_is_told_and_fails_where_classes_were_asked_for(folder, tmp_path, caplog):
    add(folder, "bare", array=folder.array * 0)
    check_folder(folder.labels, "flare", tmp_path / "v.csv", folder.images, dataset="phantom")
    assert [r.message for r in caplog.records if "no voxel of any class" in r.message] == [
        "bare: no voxel of any class, so that hardly a rule applies; --asked fails what is missing"
    ]
    check_folder(folder.labels, "flare", tmp_path / "v.csv", folder.images, asked=["organs"])
    table = read_table(tmp_path / "v.csv", "verdicts")
    failed = table[(table["case"] == "bare") & (table["verdict"] == "fail")]
    assert set(failed["class"]) == set(load_classes("flare").select(["organs"]))


def test_a_data_set_does_not_ask_for_what_is_removed_often(folder, tmp_path):
    add(folder, "good", array=np.where(folder.array == 9, 0, folder.array))  # no gallbladder
    check_folder(folder.labels, "flare", tmp_path / "v.csv", folder.images, dataset="phantom")
    table = read_table(tmp_path / "v.csv", "verdicts")
    assert "fail" not in set(table[table["class"] == "gallbladder"]["verdict"])
