import numpy as np
import pytest

from labelloop.base.classes import IGNORED, ClassScheme, load_classes
from labelloop.base.errors import CaseError, UserError
from labelloop.base.lookup import known
from labelloop.images.datasets import label_counts, load_dataset, read_dataset

SCHEME = load_classes("flare")
ORGANS = SCHEME.sets["organs"]


@pytest.fixture
def own(tmp_path):
    def write(text: str):
        path = tmp_path / "own.yaml"
        path.write_text("name: own\nmodality: CT\nsource: made up\n" + text)
        return str(path)

    return write


@pytest.mark.parametrize("name", known("datasets"))
def test_shipped_files_load_and_say_where_their_ids_are_known_from(name):
    dataset = load_dataset(name, SCHEME)
    assert dataset.name == name
    assert dataset.source
    mapped = {c for c in dataset.labels.values() if c}
    assert set(dataset.annotated) <= mapped


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("btcv", {1: "spleen", 2: "right_kidney", 3: "left_kidney", 6: "liver", 10: None, 13: "left_adrenal_gland"}),
        ("amos", {2: "right_kidney", 6: "liver", 10: "pancreas", 11: "right_adrenal_gland", 13: "duodenum", 14: None}),
        ("flare22", {i: SCHEME.names[i - 1] for i in range(1, 14)}),
        ("flare23", {i: SCHEME.names[i - 1] for i in range(1, 15)}),
        ("totalsegmentator", {5: "liver", 10: "pancreas", 42: "esophagus", 56: "duodenum", 104: None}),
        ("totalsegmentator_v2", {5: "liver", 7: "pancreas", 15: "esophagus", 19: "duodenum", 52: "aorta", 117: None}),
        ("totalsegmentator_mr", {9: "left_adrenal_gland", 12: "esophagus", 14: "duodenum", 23: "aorta", 50: None}),
        ("chaos_mr", {1: "liver", 2: "right_kidney", 3: "left_kidney", 4: "spleen", 252: "spleen"}),
        ("ircad", {1: "liver", 2: None, 4: None, 5: "tumor", 6: "tumor"}),
        ("kits", {1: None, 2: "tumor", 3: None}),
    ],
)
def test_ids_mean_what_the_data_set_says(name, ids):
    dataset = load_dataset(name, SCHEME)
    assert {i: dataset.class_of(i) for i in ids} == ids
    mapped = dataset.to_classes(np.array(sorted(ids)))
    assert mapped.tolist() == [SCHEME.ids[ids[i]] if ids[i] else 0 for i in sorted(ids)]


def test_only_what_is_annotated_in_every_case_is_annotated_by_default():
    assert set(load_dataset("btcv", SCHEME).annotated) == set(ORGANS) - {"duodenum"}
    assert set(load_dataset("ircad", SCHEME).annotated) == {"liver", "tumor"}
    assert load_dataset("flare23", SCHEME).annotated == ()  # differs from case to case
    assert load_dataset("lld_mmri", SCHEME).annotated == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int64, np.uint64, np.float32, np.float64])
def test_labels_of_any_number_type_are_mapped_voxel_by_voxel(dtype):
    array = np.random.default_rng(0).integers(0, 14, (5, 6, 7)).astype(dtype)
    dataset = load_dataset("btcv", SCHEME)
    mapped = dataset.to_classes(array)
    assert mapped.dtype == np.uint8 and mapped.shape == array.shape
    for own_id in range(14):
        name = dataset.labels.get(own_id)
        assert (mapped[array == own_id] == (SCHEME.ids[name] if name else 0)).all()


def test_a_label_without_background_and_an_empty_one_are_mapped():
    dataset = load_dataset("btcv", SCHEME)
    assert dataset.to_classes(np.full((2, 2), 6)).tolist() == [[1, 1], [1, 1]]
    assert dataset.to_classes(np.zeros((0, 2), np.uint8)).shape == (0, 2)


def test_unknown_ids_name_the_ids_those_known_and_what_to_do():
    with pytest.raises(CaseError) as caught:
        load_dataset("chaos_mr", SCHEME).to_classes(np.array([0, 1, 9, -3]), "x.nii.gz")
    error = caught.value
    assert (error.code, error.file) == ("label_unknown_ids", "x.nii.gz")
    assert "-3, 9" in error.found and "1, 2, 3, 4" in error.found
    assert "null" in error.action


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([0.5], "label_fractional"),
        ([np.nan], "label_not_finite"),
        ([np.inf], "label_not_finite"),
        ([1e9], "label_unknown_ids"),
    ],
)
def test_values_that_are_no_ids_are_refused(values, code):
    with pytest.raises(CaseError) as caught:
        load_dataset("btcv", SCHEME).to_classes(np.array([0.0, 1.0, *values]))
    assert caught.value.code == code


def test_voxels_are_counted_across_blocks(monkeypatch):
    monkeypatch.setattr("labelloop.images.datasets.BLOCK", 7)
    array = np.random.default_rng(1).integers(-2, 5, (4, 5, 6)).astype(np.int8)
    ids, counts = np.unique(array, return_counts=True)
    assert label_counts(array) == dict(zip(ids.tolist(), counts.tolist(), strict=True))
    assert label_counts(np.asfortranarray(array)) == label_counts(array)


def test_annotated_defaults_to_the_mapped_classes_once_each(own):
    dataset = load_dataset(own("labels: {1: liver, 2: null, 5: tumor, 6: tumor}\n"), SCHEME)
    assert dataset.annotated == ("liver", "tumor")
    assert load_dataset(own("labels: {1: liver, 2: spleen}\nannotated: [liver]\n"), SCHEME).annotated == ("liver",)


def test_a_data_set_file_that_is_wrong_says_all_that_is_wrong(own):
    with pytest.raises(UserError) as caught:
        read_dataset(own("labels: {1: liver, x: spleen}\nannotatd: [liver]\n"))
    assert len(str(caught.value).splitlines()) == 2
    assert "annotatd" in str(caught.value)
    with pytest.raises(UserError) as caught:
        load_dataset(own("labels: {1: livr, 2: spleen}\nannotated: [splen]\n"), SCHEME)
    assert "did you mean 'liver'" in str(caught.value) and "did you mean 'spleen'" in str(caught.value)
    with pytest.raises(UserError, match="background"):
        read_dataset(own("labels: {0: liver}\n"))
    with pytest.raises(UserError, match="not YAML"):
        read_dataset(own("labels: {1: [\n"))


def test_a_data_set_that_is_not_there_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'flare23'"):
        load_dataset("flare2023", SCHEME)


def test_one_file_serves_a_scheme_with_fewer_classes():
    small = ClassScheme(name="lesions", classes=({"name": "tumor", "id": 1, "tolerance_mm": 2, "color": "#000000"},))
    dataset = load_dataset("flare23", small)
    assert dataset.to_classes(np.array([0, 1, 13, 14])).tolist() == [0, 0, 0, 1]
    assert load_dataset("btcv", small).annotated == ()


def test_where_a_data_set_comes_from_need_not_be_said(tmp_path):
    (tmp_path / "own.yaml").write_text("name: own\nmodality: CT\nlabels: {1: liver}\n")
    assert read_dataset(tmp_path / "own.yaml").annotated == ("liver",)


@pytest.mark.parametrize("value", [2.0**32 + 5, -(2.0**31) - 2, 70000.0])
@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_no_value_becomes_another_id_by_overflow(value, dtype):
    array = np.array([0, 1, value]).astype(dtype)
    for read in (load_dataset("btcv", load_classes("flare")).to_classes, label_counts):
        with pytest.raises(CaseError, match=r"label_unknown_ids: .*values from"):
            read(array, "a.nii.gz")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("ignored", [4, 200])
def test_voxels_of_an_id_that_is_ignored_are_no_class_and_no_background(own, dtype, ignored):
    dataset = load_dataset(own(f"labels: {{1: liver, 2: null, {ignored}: ignore}}"), SCHEME)
    assert dataset.annotated == ("liver",) and dataset.named == {1: "liver"}
    assert dataset.to_classes(np.array([0, 1, 2, ignored], dtype)).tolist() == [0, 1, 0, IGNORED]
    assert dataset.class_of(ignored) is None
    with pytest.raises(CaseError, match="label_unknown_ids"):
        dataset.to_classes(np.array([0, ignored + 1], dtype))


def test_255_is_an_id_like_others_in_a_data_set_that_says_so(own):
    dataset = load_dataset(own("labels: {255: liver, 1: ignore}"), SCHEME)
    assert dataset.to_classes(np.array([0, 1, 255])).tolist() == [0, IGNORED, SCHEME.ids["liver"]]


def test_what_is_ignored_is_part_of_what_ids_mean(own):
    meanings = ["{1: liver, 2: null, 3: ignore}", "{1: liver, 2: ignore, 3: ignore}", "{1: liver, 2: null, 3: null}"]
    assert len({load_dataset(own(f"labels: {labels}"), SCHEME).fingerprint for labels in meanings}) == 3


@pytest.mark.parametrize("labels", ["{1: liver, 2: ignored}", "{1: ignore liver}"])
def test_ignore_is_spelled_in_one_way(own, labels):
    with pytest.raises(UserError, match="labels: no class 'ignore"):
        load_dataset(own(f"labels: {labels}"), SCHEME)


def test_an_id_is_ignored_or_a_class_and_no_class_is_called_so(own):
    with pytest.raises(UserError, match="1"):
        load_dataset(own("labels: {1: liver, 1: ignore}"), SCHEME)
    with pytest.raises(UserError, match="no class 'ignore'"):
        load_dataset(own("labels: {1: liver}\nannotated: [liver, ignore]"), SCHEME)
    for info in ({"name": "ignore", "id": 1}, {"name": "liver", "id": IGNORED}):
        with pytest.raises(ValueError, match=r"ignore|255"):
            ClassScheme.model_validate({"name": "s", "classes": [info | {"tolerance_mm": 1, "color": "#000000"}]})
