"""The built-in data set: deterministic, anatomically sound, and as incomplete as real sets are."""

import itertools
from pathlib import Path

import cc3d
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.ndimage import distance_transform_edt

from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.base.files import sha256
from labelloop.base.lookup import CONFIG
from labelloop.base.tables import read_table
from labelloop.images.volume import Geometry, Volume, canonical, read, read_geometry
from labelloop.phantom import collection as collection_module
from labelloop.phantom import draw_patient, field_of_view, render, tissue_map, write_phantom
from labelloop.phantom.collection import plan_cases
from labelloop.phantom.patient import ORIENTATIONS
from labelloop.phantom.tissues import CODE, class_ids

CLASSES = load_classes("flare")
IDS = CLASSES.ids
CASES, SEED = 8, 7
RANGES_ML = {
    "liver": (1000, 2000), "spleen": (100, 350), "right_kidney": (110, 220), "left_kidney": (110, 220),
    "pancreas": (50, 120), "gallbladder": (15, 60), "right_adrenal_gland": (3, 8), "left_adrenal_gland": (3, 8),
    "stomach": (150, 500), "duodenum": (40, 100), "aorta": (60, 150), "inferior_vena_cava": (40, 120),
    "esophagus": (15, 50),
}  # fmt: skip


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Eight cases: the folder, the case table and the hidden table, both by case."""
    out = tmp_path_factory.mktemp("phantom")
    table = read_table(write_phantom(out, CASES, SEED), "cases").set_index("case")
    return out, table, pd.read_csv(out / "truth.csv", keep_default_na=False).set_index("case")


@pytest.fixture(scope="module")
def truths(collection):
    """Canonical truth of each case."""
    out, table, hidden = collection
    return {case: canonical(read(out / hidden.file[case])) for case in table.index}


def mask(volume: Volume, *names: str) -> np.ndarray:
    return np.isin(volume.array, [IDS[name] for name in names])


def centroid(volume: Volume, name: str) -> np.ndarray:
    """(z, y, x) in mm; canonical x grows to the patient's right, y to the front, z upwards."""
    return np.argwhere(mask(volume, name)).mean(0) * volume.geometry.spacing_zyx


def whole(collection, truths):
    """Cases whose field of view cuts nothing."""
    return {case: truth for case, truth in truths.items() if not collection[2].special[case].startswith("cut")}


@pytest.fixture
def volumes(tmp_path, monkeypatch):
    """Write a collection, but draw two cases of it only; return the hash of each volume, by its place."""

    def write(name, cases, seed, first=0):
        plans = plan_cases(cases)[first : first + 2]
        monkeypatch.setattr(collection_module, "plan_cases", lambda _: plans)
        write_phantom(tmp_path / name, cases, seed)
        return {p.relative_to(tmp_path / name): sha256(p) for p in (tmp_path / name).rglob("*.nii.gz")}

    return write


def test_equal_arguments_give_equal_bytes(collection, volumes):
    again, other = volumes("again", CASES, SEED), volumes("other", CASES, SEED + 1)
    assert again == {place: sha256(collection[0] / place) for place in again}
    assert again.keys() == other.keys() and {place.parts[0] for place in again} == {"images", "labels", "truth"}
    assert not {again[place] for place in again if place.parts[0] == "images"} & set(other.values())


def test_a_patient_does_not_depend_on_how_many_cases_there_are(collection, volumes):
    plans = [
        {p.index: (p.kind, p.half, p.special, p.noise, p.tumors) for p in plan_cases(n)} for n in (CASES, CASES + 1)
    ]
    same = [index for index, plan in plans[0].items() if plan == plans[1][index]]
    image = Path(f"images/phantom_{same[0]:03d}_0000.nii.gz")
    assert volumes("more", CASES + 1, SEED, same[0])[image] == sha256(collection[0] / image)


@pytest.mark.parametrize("cases", [8, 9, 12, 17, 24, 60])
def test_every_kind_is_present(cases):
    plans = plan_cases(cases)
    kinds = [p.kind for p in plans]
    assert [p.index for p in plans] == list(range(cases))
    assert set(kinds) == {"test", "organs", "partial", "tumor", "unlabeled"}
    assert kinds.count("organs") >= 2
    test_halves = [p.half for p in plans if p.kind == "test"]
    assert abs(test_halves.count("easy") - test_halves.count("hard")) <= 1
    assert {p.special for p in plans} >= {"splenectomy", "no_gallbladder", "cut_field_of_view"}
    assert {p.noise for p in plans} >= {"islands", "swapped_sides"}


def test_too_small_a_collection_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least 8"):
        write_phantom(tmp_path, 7, 0)
    with pytest.raises(UserError, match="spacing"):
        write_phantom(tmp_path, 8, 0, spacing_mm=0)
    assert not any(tmp_path.iterdir())


def test_case_table_and_files(collection):
    out, table, hidden = collection
    assert list(table.index) == [f"phantom_{i:03d}" for i in range(CASES)]
    assert set(table.dataset) == {"phantom"} and set(table.modality) == {"CT"}
    assert (table.role[hidden.kind == "test"] == "test").all() and (table.role[hidden.kind != "test"] == "train").all()
    assert (table.annotated[hidden.kind == "organs"] == ";".join(CLASSES.select("organs"))).all()
    assert (table.annotated[hidden.kind == "test"] == ";".join(CLASSES.names)).all()
    assert (table.label[hidden.kind == "unlabeled"] == "").all() and (
        table.label[hidden.kind != "unlabeled"] != ""
    ).all()
    for case in table.index:
        image = read(out / table.image[case])
        assert image.array.dtype == np.int16 and image.array.min() < -900 and image.array.max() > 300
        for file in filter(None, (table.label[case], hidden.file[case])):
            assert image.geometry.difference(read_geometry(out / file)) is None


def test_orientations_and_spacings_vary(collection):
    out, table, _ = collection
    geometries = [read_geometry(out / image) for image in table.image]
    assert len({tuple(np.round(g.direction)) for g in geometries}) == 3
    assert len({g.spacing for g in geometries}) > 6
    assert all(g.spacing[0] >= 5.0 and max(g.size) <= 80 for g in geometries)


def test_labels_are_the_truth_of_what_was_annotated_but_for_declared_noise(collection):
    out, table, hidden = collection
    for case in table.index[table.label != ""]:
        truth, label = (read(out / f).array for f in (hidden.file[case], table.label[case]))
        kept = [IDS[name] for name in table.annotated[case].split(";")]
        expected = np.where(np.isin(truth, kept), truth, 0)
        if hidden.noise[case] == "swapped_sides":
            assert ((label == IDS["right_kidney"]) == (truth == IDS["left_kidney"])).all()
            assert ((label == IDS["left_kidney"]) == (truth == IDS["right_kidney"])).all()
            rest = ~np.isin(truth, [IDS["left_kidney"], IDS["right_kidney"]])
            assert (label[rest] == expected[rest]).all()
        elif hidden.noise[case] == "islands":
            changed = label != expected
            assert 0 < changed.sum() < 0.01 * changed.size
            assert cc3d.connected_components(label == IDS["liver"], connectivity=26, return_N=True)[1] > 1
        else:
            assert hidden.noise[case] == "" and (label == expected).all()


def test_absent_organs_are_annotated_absent(collection, truths):
    _, table, hidden = collection
    for special, organ in (("splenectomy", "spleen"), ("no_gallbladder", "gallbladder")):
        case = hidden.index[hidden.special == special][0]
        assert not mask(truths[case], organ).any()
        assert organ in table.annotated[case].split(";")
        assert all(mask(t, organ).any() for c, t in truths.items() if hidden.special[c] == "")
    assert table.surgery[hidden.special == "splenectomy"].tolist() == ["spleen"]


def test_the_cut_field_of_view_cuts(collection, truths):
    case = collection[2].index[collection[2].special == "cut_field_of_view"][0]
    bottom = Volume(truths[case].array[0], truths[case].geometry)
    assert mask(bottom, "liver").any() and mask(bottom, "right_kidney", "left_kidney").any()
    for truth in whole(collection, truths).values():
        ends = Volume(truth.array[[0, -1]], truth.geometry)
        assert not mask(ends, "liver", "spleen", "right_kidney", "left_kidney", "stomach", "pancreas", "tumor").any()


def test_volumes_are_those_of_adults(collection, truths):
    for case, truth in whole(collection, truths).items():
        for name, (low, high) in RANGES_ML.items():
            volume = mask(truth, name).sum() * truth.geometry.voxel_ml
            assert low <= volume <= high or (volume == 0 and collection[2].special[case]), (case, name, volume)


def test_tumors(collection, truths):
    _, _, hidden = collection
    counts = {}
    for case, truth in truths.items():
        lesions, counts[case] = cc3d.connected_components(mask(truth, "tumor"), connectivity=26, return_N=True)
        volumes = np.bincount(lesions.ravel())[1:] * truth.geometry.voxel_ml
        assert (volumes < 150).all() and (not volumes.size or volumes.max() > 0.5)
    assert all(counts[case] >= 1 for case in hidden.index[hidden.kind == "tumor"])
    assert max(counts.values()) >= 2 and min(counts.values()) == 0
    assert max(counts.values()) <= 4


def test_anatomy_rules_hold(collection, truths):
    for case, truth in whole(collection, truths).items():
        place = {name: centroid(truth, name) for name in CLASSES.select("organs") if mask(truth, name).any()}
        assert place["liver"][2] > place["stomach"][2]
        if "spleen" in place:
            assert place["liver"][2] > place["spleen"][2] + 80
        assert place["inferior_vena_cava"][2] > place["aorta"][2] + 10
        assert place["liver"][0] > place["duodenum"][0] and place["esophagus"][0] > place["stomach"][0]
        for side in ("right", "left"):
            kidney, adrenal = place[f"{side}_kidney"], place[f"{side}_adrenal_gland"]
            assert adrenal[0] > kidney[0] + 15, (case, side)
            assert abs(adrenal[2] - place["aorta"][2]) < abs(kidney[2] - place["aorta"][2])
            away = distance_transform_edt(~mask(truth, f"{side}_kidney"), sampling=truth.geometry.spacing_zyx)
            assert away[mask(truth, f"{side}_adrenal_gland")].min() < 10, (case, side)
        gut = mask(truth, "esophagus", "stomach", "duodenum")
        assert cc3d.connected_components(gut, connectivity=26, return_N=True)[1] == 1, case
        for tube in ("aorta", "inferior_vena_cava", "esophagus"):
            levels = np.flatnonzero(mask(truth, tube).any((1, 2)))
            assert (np.diff(levels) == 1).all(), (case, tube)


def test_organs_are_one_piece(collection, truths):
    for case, truth in whole(collection, truths).items():
        for name in ("liver", "spleen", "stomach", "right_kidney", "left_kidney", "aorta"):
            pieces = cc3d.connected_components(mask(truth, name), connectivity=26)
            sizes = np.sort(np.bincount(pieces.ravel())[1:])[::-1] * truth.geometry.voxel_ml
            assert sizes[1:].sum() < 1.0 + 0.01 * sizes.sum(), (case, name, sizes)


def test_hounsfield_units_are_those_of_ct(collection, truths):
    out, table, hidden = collection
    noise = {"easy": [], "hard": []}
    for case, truth in truths.items():
        image = canonical(read(out / table.image[case])).array
        liver, aorta = (np.median(image[mask(truth, name)]) for name in ("liver", "aorta"))
        assert 50 < liver < 140 and 80 < aorta < 400
        inside = distance_transform_edt(mask(truth, "liver"), sampling=truth.geometry.spacing_zyx) > 12
        noise[hidden.half[case]].append(np.std((image[1:] - image[:-1])[inside[1:] & inside[:-1]]))
        if mask(truth, "gallbladder").any():
            assert -5 < np.median(image[mask(truth, "gallbladder")]) < 40
    assert np.mean(noise["hard"]) > 1.3 * np.mean(noise["easy"])


def test_a_patient_looks_the_same_on_any_grid():
    patient = draw_patient(0, 1)
    stored = {}
    for orientation in ORIENTATIONS:
        geometry = field_of_view(patient, spacing=(10, 10, 10), orientation=orientation)
        image, truth = render(patient, geometry)
        stored[orientation] = canonical(Volume(truth, geometry))
        slabs = render(patient, geometry, slab_voxels=5000)
        assert (slabs[0] == image).all() and (slabs[1] == truth).all()
        assert (class_ids(IDS)[tissue_map(patient, geometry)] == truth).all()
    for one, other in itertools.pairwise(stored.values()):
        assert (one.array == other.array).mean() > 0.99
    fine = field_of_view(patient, size=(72, 72, 60))
    assert fine.size == (72, 72, 60)
    ml = (render(patient, fine)[1] == IDS["liver"]).sum() * fine.voxel_ml
    coarse = stored["LPS"]
    assert ml == pytest.approx(mask(coarse, "liver").sum() * coarse.geometry.voxel_ml, rel=0.03)
    assert (tissue_map(patient, fine) == CODE["lung"]).any()


def test_oblique_grids_are_refused():
    c, s = np.cos(0.2), np.sin(0.2)
    with pytest.raises(ValueError, match="axes"):
        render(draw_patient(0, 0), Geometry((4, 4, 4), (5, 5, 5), direction=(c, -s, 0, s, c, 0, 0, 0, 1)))


def test_data_set_file_has_the_ids_of_the_scheme():
    content = yaml.safe_load((CONFIG / "datasets" / "phantom.yaml").read_text())
    assert content["labels"] == {i: name for name, i in IDS.items()}
    assert tuple(content["annotated"]) == CLASSES.names
