"""What the ids of a label mean is read from files of the user: a step whose result depends on it does its work anew."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from labelloop.base.classes import IGNORED, load_classes
from labelloop.base.files import sha256
from labelloop.base.paths import manifest_of
from labelloop.base.shards import Ledger
from labelloop.base.tables import read_table
from labelloop.cases.table import Case
from labelloop.cases.usable import UsableCase
from labelloop.images.volume import Geometry, read, restore, write
from labelloop.inference.prepared import open_label
from labelloop.networks.plans import Plan
from labelloop.steps.arrays import prepare_labels
from labelloop.steps.cases import prepare
from labelloop.steps.common import Files
from labelloop.steps.inference import evaluate
from labelloop.steps.labels import fuse, fused_map
from survey_files import do_survey, tables_of

SHARD = "test-000"
PLAN = Plan(spacing_mm=(3, 3, 3), patch=(16, 16, 16), features=(4, 8))
GRID = Geometry((24, 20, 16), (3.0, 3.0, 3.0))
CLASSES = [
    {"name": "liver", "id": 1, "tolerance_mm": 5.0, "color": "#dd8265"},
    {"name": "spleen", "id": 2, "tolerance_mm": 3.0, "color": "#9dc5c9"},
]
SPEC = {"predict": [], "cases": ["all"], "classes": ["seen"], "fuse": "truth_first", "clean": []}


@dataclass
class Edited:
    """One labeled case, with a data set file and a class scheme of its own, and the steps that read them."""

    folder: Path

    def __post_init__(self):
        image = np.random.default_rng(0).integers(-1000, 200, GRID.shape).astype(np.int16)
        label = np.zeros(GRID.shape, np.uint8)
        label[2:12, 4:12, 4:12], label[4:8, 4:8, 16:20] = 1, 2
        self.write("dataset.yaml", name="own", modality="CT", source="a test", labels={1: "liver", 2: "spleen"})
        self.scheme(CLASSES)
        files = {"image": self.save("a_0000.nii.gz", image), "label": self.save("a.nii.gz", label)}
        about = {"dataset": str(self.folder / "dataset.yaml"), "modality": "CT", "patient": "a"}
        self.rows = [Case(case="a", **{k: str(v) for k, v in files.items()}, **about).model_dump()]
        prediction = label.copy()
        prediction[2], prediction[12] = 0, label[11]  # a slice too little below, one too many above
        ledger = Ledger(self.folder / "predictions", SHARD)
        ledger.run("a", "key", lambda: (self.save("predictions/a.nii.gz", prediction), {}))
        ledger.close()

    def save(self, name: str, array: np.ndarray) -> Path:
        write(self.folder / name, array, GRID)
        return self.folder / name

    def write(self, file: str, **content) -> None:
        (self.folder / file).write_text(yaml.safe_dump(content), encoding="utf-8")

    def scheme(self, classes: list[dict], seen: tuple[str, ...] = ("liver", "spleen"), **more: list[str]) -> None:
        sets = {"organs": ["liver", "spleen"], "seen": list(seen)} | more
        self.write("scheme.yaml", name="own", classes=classes, sets=sets)

    def fused(self) -> np.ndarray:
        """Return the case's map in a label set, after a run of the steps that lead to it."""
        classes, results = str(self.folder / "scheme.yaml"), self.folder / "results"
        survey, out = do_survey(self.rows, results, SHARD, classes), results / "labels"
        files = Path(manifest_of(out, SHARD)), out / "provenance.csv", out / "reviewed.csv"
        fuse(survey, [], SPEC, {}, classes, {}, *files, "nowhere", 1)
        return read(results / "labels" / "a.nii.gz").array

    def organs(self) -> np.ndarray:
        """Return the case's array for models of organs, after a run of the steps that lead to it."""
        classes, results = str(self.folder / "scheme.yaml"), self.folder / "results"
        survey, images = do_survey(self.rows, results, SHARD, classes), Path(manifest_of(results / "prepared", SHARD))
        prepare(survey, PLAN.model_dump(mode="json"), images, 1)
        prepare_labels(survey, images, classes, "organs", Path(manifest_of(results / "organs", SHARD)), 1)
        return open_label(results / "organs" / "a.b2nd").array[0][:]

    def nsd(self) -> dict[str, float]:
        """Return the NSD of the prediction, after a run of the steps that lead to it."""
        classes, results = str(self.folder / "scheme.yaml"), self.folder / "results"
        survey = do_survey(self.rows, results, SHARD, classes)
        maps, out = Path(manifest_of(self.folder / "predictions", SHARD)), self.folder / "scores.csv"
        files = out, self.folder / "lesions.csv", Path(manifest_of(self.folder / "scored", "final"))
        evaluate(survey, [maps], classes, ["all"], "corrected", *files, 1)
        return read_table(out, "scores").set_index("class")["nsd"].to_dict()

    def truth_key(self) -> str:
        """Return the fingerprint of the truth that the last survey gives."""
        return self.surveyed().truth_key

    def surveyed(self) -> UsableCase:
        """Return the case as the last survey found it."""
        return tables_of(self.folder / "results", SHARD).usable()[0]


@pytest.fixture
def edited(tmp_path) -> Edited:
    return Edited(tmp_path)


def test_ids_that_are_swapped_in_the_data_set_file_are_swapped_in_label_maps(edited):
    before, key = edited.fused(), edited.truth_key()
    edited.fused()
    assert edited.truth_key() == key
    edited.write("dataset.yaml", name="own", modality="CT", source="a test", labels={1: "spleen", 2: "liver"})
    after = edited.fused()
    assert (after[before == 1] == 2).all() and (after[before == 2] == 1).all()
    assert edited.truth_key() != key


def test_ids_that_are_swapped_in_the_class_scheme_are_swapped_in_label_maps(edited):
    before = edited.fused()
    edited.scheme([CLASSES[0] | {"id": 2}, CLASSES[1] | {"id": 1}])
    after = edited.fused()
    assert (after[before == 1] == 2).all() and (after[before == 2] == 1).all()


def test_a_set_of_classes_that_changes_changes_the_label_sets_that_name_it(edited):
    assert set(np.unique(edited.fused())) == {0, 1, 2}
    edited.scheme(CLASSES, seen=("liver",))
    assert set(np.unique(edited.fused())) == {0, 1}


def test_a_class_that_becomes_a_tumor_becomes_organ_in_arrays_for_models_of_organs(edited):
    label = np.zeros(GRID.shape, np.uint8)
    label[2:12, 4:12, 4:12], label[4:8, 6:10, 6:10] = 1, 2  # inside the liver
    edited.save("a.nii.gz", label)
    assert set(np.unique(edited.organs())) == {0, 1, 2}
    edited.scheme(CLASSES, organs=["liver"], tumor=["spleen"])
    after = edited.organs()
    assert set(np.unique(after)) == {0, 1} and (after == 1).sum() == (label > 0).sum()


def test_tolerances_and_tubes_that_change_change_the_scores(edited):
    before = edited.nsd()
    edited.scheme([CLASSES[0] | {"tolerance_mm": 0.1}, CLASSES[1]])
    strict = edited.nsd()
    assert strict["liver"] < before["liver"] and strict["spleen"] == before["spleen"]
    edited.scheme([CLASSES[0] | {"tolerance_mm": 0.1, "tube": True}, CLASSES[1]])
    assert edited.nsd()["liver"] != strict["liver"]


def test_notes_in_a_data_set_file_and_colors_change_no_label_map(edited):
    edited.fused()
    maps, key = edited.folder / "results" / "labels" / "a.nii.gz", edited.truth_key()
    before = maps.stat().st_mtime_ns, sha256(maps)
    labels = {1: "liver", 2: "spleen"}
    edited.write("dataset.yaml", name="own", modality="CT", source="elsewhere", labels=labels)
    edited.scheme([one | {"color": "#000000"} for one in CLASSES])
    edited.fused()
    assert (maps.stat().st_mtime_ns, sha256(maps)) == before and edited.truth_key() == key


def test_an_id_that_is_ignored_is_ignored_in_label_maps_and_what_depends_on_it_is_made_anew(edited):
    before, key = edited.fused(), edited.truth_key()
    edited.write("dataset.yaml", name="own", modality="CT", source="a test", labels={1: "liver", 2: "ignore"})
    after = edited.fused()
    assert set(np.unique(after)) == {0, 1, IGNORED}
    assert (after[before == 1] == 1).all() and (after[before == 2] == IGNORED).all()
    assert edited.truth_key() != key
    states = edited.surveyed().states
    assert states == {"liver": "present", "spleen": "unknown"}
    assert set(edited.nsd()) == {"liver"}
    edited.write("dataset.yaml", name="own", modality="CT", source="a test", labels={1: "ignore", 2: "spleen"})
    other = edited.fused()
    assert (other[before == 1] == IGNORED).all() and (other[before == 2] == 2).all()
    states = edited.surveyed().states
    assert states == {"liver": "unknown", "spleen": "present"}


def test_labels_of_models_are_cleaned_before_ignored_voxels_cut_them(edited):
    """A spleen that nobody looked for reaches through ignored voxels: neither end of it is a detached part."""
    labels, liver = {1: "liver", 2: "ignore"}, ["liver"]
    edited.write("dataset.yaml", name="own", modality="CT", source="a test", labels=labels, annotated=liver)
    prediction = np.zeros(GRID.shape, np.uint8)
    prediction[4:8, 4:8, 13:22], prediction[2:12, 4:12, 4:11] = 2, 1  # voxels 16 to 19 are ignored
    edited.save("predictions/a.nii.gz", prediction)
    edited.fused()
    item = edited.surveyed()
    files = Files([edited.folder / "predictions" / "shards" / f"{SHARD}.csv"], "prediction")
    spec = SPEC | {"predict": ["m"], "clean": [{"keep_largest": ["spleen"]}]}
    scheme = load_classes(str(edited.folder / "scheme.yaml"))
    label, grid, provenance = fused_map(item, spec, {"m": ["seen"]}, scheme, {"m": files})
    truth, found = read(edited.folder / "a.nii.gz").array, restore(label.array, grid)
    np.testing.assert_array_equal(found == IGNORED, truth == 2)
    np.testing.assert_array_equal(found == 2, (prediction == 2) & (truth != 2))
    np.testing.assert_array_equal(found == 1, truth == 1)
    lost = [(row["class"], row["voxels_changed"]) for row in provenance if row["step"] == "ignored"]
    assert lost == [("spleen", 4 * 4 * 4)]
