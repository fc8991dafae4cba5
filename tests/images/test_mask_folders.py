"""A folder a case with a mask an organ: joined into label maps, and unknown where there is none."""

import logging

import numpy as np
import pytest

from bad_inputs import AFFINE, SHAPE, ct_values, save
from labelloop.base.errors import UserError
from labelloop.cases.make_table import Options, make_table
from labelloop.cases.table import load_cases
from labelloop.images.scan import read_label

DATASET = "{name: mine, modality: CT, source: here, labels: {3: liver, 7: left_kidney, 300: spleen, 9: tumor}}"


def box(*planes: int, value: int = 1) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:9, 5:9, list(planes)] = value
    return mask


@pytest.fixture
def tree(tmp_path):
    """Two cases as in TotalSegmentator's data set: b has no mask of a tumor, and an empty one of the spleen."""
    organs = {"liver": box(2, 3, 4), "kidney_left": box(6, value=255), "spleen": box()}
    for case, masks in (("a", organs | {"tumor": box(4), "livr": box(9), "heart": box(8)}), ("b", organs)):
        save(tmp_path / "tree" / case / "ct.nii.gz", ct_values())
        for name, mask in masks.items():
            save(tmp_path / "tree" / case / "segmentations" / f"{name}.nii.gz", mask)
    (tmp_path / "mine.yaml").write_text(DATASET)
    return tmp_path / "tree"


def join(tree, **options):
    out = tree.parent
    lost: list = []
    made = Options(**{"merged": out / "merged", "overwrite": True} | options)
    make_table(tree, tree, str(out / "mine.yaml"), out / "cases.csv", made, lost)
    cases, rejected = load_cases(out / "cases.csv")
    assert rejected == []
    return {case.case: case for case in cases}, lost


def test_masks_become_label_maps_in_the_ids_of_the_data_set(tree, caplog):
    with caplog.at_level(logging.INFO):
        cases, lost = join(tree)
    assert lost == [] and sorted(cases) == ["a", "b"]
    expected = np.zeros(SHAPE, np.uint8)
    expected[5:9, 5:9, 2:4], expected[5:9, 5:9, 4], expected[5:9, 5:9, 6] = 3, 9, 7  # the tumor stays in the liver
    labels = read_label(cases["a"].label)
    np.testing.assert_array_equal(labels.array, expected.T)
    assert read_label(cases["b"].label).geometry.difference(labels.geometry) is None
    shared = 16 * abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    assert f"a: {shared:.2f} ml lie in several masks" in caplog.text and "b: " not in caplog.text
    assert "livr; did you mean 'liver'?" in caplog.text and "heart" in caplog.text


def test_a_class_without_a_mask_is_unknown_and_one_with_an_empty_mask_is_annotated(tree):
    cases, _ = join(tree)
    assert cases["a"].annotated == "liver;left_kidney;spleen;tumor"
    assert cases["b"].annotated == "liver;left_kidney;spleen"


@pytest.mark.parametrize("fault", ["grid", "values", "dead", "unnamed", "two", "formats"])
def test_a_case_whose_masks_cannot_be_used_is_left_out_and_never_unlabeled(tree, fault):
    place = tree / "a" / "segmentations"
    (place / "liver.nii.gz").unlink()
    if fault == "grid":
        save(place / "liver.nii.gz", box(2), np.diag([1.0, 1.0, 7.0, 1.0]))
    elif fault == "values":
        save(place / "liver.nii.gz", box(2) + box(3, value=2))
    elif fault == "two":
        save(place / "left_kidney.nii.gz", box(6))  # beside kidney_left
    elif fault == "formats":
        for ending in ("nii", "nii.gz"):
            save(place / f"liver.{ending}", box(2))
    elif fault == "dead":
        (place / "liver.nii.gz").symlink_to("nowhere")
    else:
        for path in place.iterdir():
            path.rename(place / f"x{path.name}")
    cases, lost = join(tree)
    assert list(cases) == ["b"] and len(lost) == 1 and "a" in str(lost[0].path)


@pytest.mark.parametrize("place", ["a", "a/segmentations"])
def test_a_case_that_cannot_be_looked_into_is_lost_and_never_unlabeled(tree, close, place):
    close(place)
    cases, lost = join(tree)
    assert list(cases) == ["b"]
    assert {(entry.path.name, entry.reason.endswith("denied")) for entry in lost} == {("a", True)}


def test_an_image_that_cannot_be_read_or_chosen_takes_its_case_along(tree):
    (tree / "a" / "ct.nii.gz").unlink()
    (tree / "a" / "ct.nii.gz").symlink_to("nowhere")
    assert [list(found) for found in join(tree)[:1]] == [["b"]]
    (tree / "a" / "ct.nii.gz").unlink()
    for name in ("ct", "pet"):
        save(tree / "a" / f"{name}.nii.gz", ct_values())
    cases, lost = join(tree)
    assert list(cases) == ["b"] and [entry.path.name for entry in lost] == ["a"]


def test_the_folder_of_label_maps_holds_nobody_elses_files(tree):
    save(tree.parent / "merged" / "a.nii.gz", box(1))
    with pytest.raises(UserError, match="labelloop did not write it"):
        join(tree)
    assert not (tree.parent / "cases.csv").exists()
    with pytest.raises(UserError, match="labelloop cases --merged"):
        join(tree, merged=None)


def test_one_mask_a_case_is_enough(tree):
    """As where somebody drew the liver alone, or kidneys under the names that TotalSegmentator gives them."""
    save(tree.parent / "drawn" / "a" / "liver.nii.gz", box(2))
    save(tree.parent / "drawn" / "b" / "kidney_left.nii.gz", box(6))
    out = tree.parent
    make_table(tree, out / "drawn", str(out / "mine.yaml"), out / "cases.csv", Options(merged=out / "merged"))
    found = {case.case: case.annotated for case in load_cases(out / "cases.csv")[0]}
    assert found == {"a": "liver", "b": "left_kidney"}
