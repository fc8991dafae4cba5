"""From CT to MR, step by step: patients on their feet, aligned cases, a translator, what it makes of CT."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from labelloop.base.errors import UserError
from labelloop.base.files import sha256, write_json
from labelloop.base.paths import manifest_of
from labelloop.base.tables import read_table, write_table
from labelloop.images.volume import canonical, read, write
from labelloop.inference.prepared import open_image, open_label
from labelloop.labels import registration
from labelloop.networks.generator import Generator
from labelloop.networks.plans import Plan
from labelloop.networks.settings import TranslatorSettings
from labelloop.steps import adapt
from labelloop.steps.adapt import aligned, detect_upside_down, structure, upright
from labelloop.steps.arrays import prepare_labels
from labelloop.steps.cases import prepare
from labelloop.steps.common import Files
from survey_files import do_survey, merge_to, tables_of

SHARD = "train-000"
PLAN = Plan(spacing_mm=(12, 12, 12), patch=(16, 16, 24), features=(4, 8), grey={}, upright=True)
FAKE = PLAN.model_copy(update={"translate": "to_mr"})
SETTINGS = TranslatorSettings(patch=(8, 16, 16), features=4, blocks=1, layers=1, epochs=1, iterations_per_epoch=1)


class Archive:
    """CT and MR of a phantom, surveyed and judged; the second MR patient is stored upside down."""

    def __init__(self, folder: Path, table: Path):
        with table.open(newline="") as handle:
            rows = [row | {"role": "train"} for row in csv.DictReader(handle)]
        kept = ("t1w", "in_phase", "arterial")
        self.rows = [row for row in rows if row["modality"] == "CT" or row["sequence"] in kept]
        for row in self.rows:
            row |= {key: str(table.parent / row[key]) if row[key] else "" for key in ("image", "label")}
        self.hidden = pd.read_csv(table.parent / "truth_mr.csv").set_index("case")
        self.truth, self.results = table.parent / "truth", folder / "results"
        do_survey(self.rows, self.results, SHARD)
        merge_to(self.results, [self.results / "survey" / SHARD])
        self.upright(self.rows, self.results)
        self.survey = tables_of(self.results, SHARD)

    def upright(self, rows: list[dict], results: Path) -> None:
        """Decide which of ``rows`` are stored upside down."""
        survey, detected = tables_of(self.results, SHARD), results / "upright" / f"{SHARD}.csv"
        write_table(results / "asked.csv", rows, "cases")
        survey = replace(survey, cases=[results / "asked.csv"], upright=None)
        detect_upside_down(survey, detected, Path(manifest_of(results / "upright", SHARD)), 1)
        upright(results / "asked.csv", self.results / "geometry.csv", [detected], results / "upright.csv")

    def prepare(self, plan: str, settings: Plan, translator: Path | None = None) -> Path:
        out = self.results / "prepared" / plan
        files = [translator / "model.json"] if translator else []
        prepare(self.survey, settings.model_dump(mode="json"), manifest(out), 1, files)
        return out

    def prepare_labels(self, images: Path) -> None:
        out = images / "labels" / "truth"
        prepare_labels(self.survey, manifest(images), "flare", "labels", manifest(out), 1)


def manifest(folder: Path) -> Path:
    return Path(manifest_of(folder, SHARD))


@pytest.fixture(scope="module")
def archive(tmp_path_factory, phantom) -> Archive:
    archive = Archive(tmp_path_factory.mktemp("archive"), phantom)
    archive.grey = archive.prepare("grey", PLAN)
    return archive


def save_translator(folder: Path, seed: int) -> Path:
    """Make a model folder with a generator that learned nothing."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    torch.save({"weights": Generator(SETTINGS.features, SETTINGS.blocks).state_dict()}, folder / "weights.pt")
    content = {"kind": "translator", "settings": SETTINGS.model_dump(mode="json")}
    write_json(folder / "model.json", content | {"weights_sha256": sha256(folder / "weights.pt")})
    return folder


@pytest.fixture(scope="module")
def to_mr(archive) -> Path:
    folder = save_translator(archive.results / "models" / "to_mr", seed=0)
    mr = [{"case": row["case"], "split": "train", "key": ""} for row in archive.rows if row["modality"] == "MR"]
    write_table(folder / "cases.csv", pd.DataFrame(mr), "training_cases")
    return folder


def files(folder: Path, what: str = "prepared_image") -> Files:
    return Files([manifest(folder)], what)


def test_every_patient_upside_down_is_found_and_no_other(archive):
    table = read_table(archive.results / "upright.csv", "upright").set_index("case")
    assert set(table.index) == {row["case"] for row in archive.rows}
    wrong = set(table.index[table["upside_down"] == "True"])
    assert wrong == {case for case in table.index if case in archive.hidden.index and archive.hidden.upside_down[case]}
    assert len(wrong) == 3  # all sequences of one patient
    assert set(table.loc[sorted(wrong), "decided_by"]) == {"mr_001_in_phase"}


def test_a_patient_without_a_witness_is_taken_as_stored_and_the_table_says_why(archive, tmp_path):
    rows = [row for row in archive.rows if row["case"] == "mr_001_arterial"]
    archive.upright(rows, tmp_path)
    [row] = read_table(tmp_path / "upright.csv", "upright").to_dict("records")
    assert row["upside_down"] == "False" and row["decided_by"] == "" and "in_phase" in row["reason"]


def test_image_and_label_are_put_on_their_feet_together(archive):
    """As if the archive had stored the patient the right way up."""
    case = "mr_001_t1w"
    [item] = [item for item in archive.survey.usable() if item.id == case]
    assert item.upside_down and item.image_key != item.image_sha256
    stored = read(item.case.image)
    assert np.array_equal(canonical(item.image()).array, canonical(stored).array[::-1])
    label = item.label(archive.truth / f"{case}.nii.gz")
    assert label.geometry == item.image().geometry
    esophagus, kidneys = (np.argwhere(np.isin(canonical(label).array, ids))[:, 0].mean() for ids in (10, (2, 13)))
    assert esophagus > kidneys
    assert item.as_stored(label).geometry.difference(stored.geometry) is None


def test_a_patient_is_prepared_as_if_stored_the_right_way_up(archive, tmp_path):
    case = "mr_001_t1w"
    row = next(row for row in archive.rows if row["case"] == case)
    stored = read(row["image"])
    write(tmp_path / "image.nii.gz", stored.array[::-1], stored.geometry)
    right = [row | {"image": str(tmp_path / "image.nii.gz")}]
    survey = do_survey(right, tmp_path, SHARD)
    prepare(survey, PLAN.model_dump(mode="json"), manifest(tmp_path / "prepared"), 1)
    expected = open_image(tmp_path / "prepared" / f"{case}.b2nd").array[:]
    np.testing.assert_allclose(open_image(archive.grey / f"{case}.b2nd").array[:], expected, atol=1e-6)


def test_ct_passes_through_the_translator_and_mr_does_not(archive, to_mr):
    fake = archive.prepare("fake", FAKE, translator=to_mr)
    before, after = files(archive.grey), files(fake)
    for row in archive.rows:
        old, new = (open_image(some.path(row["case"])) for some in (before, after))
        assert old.array.shape == new.array.shape and old.frame == new.frame
        assert np.array_equal(old.array[:], new.array[:]) == (row["modality"] == "MR")
        assert -1 <= new.array[:].min() < new.array[:].max() <= 1
    manifest = read_table(fake / "shards" / f"{SHARD}.csv", "manifest").set_index("case")["key"]
    archive.prepare("fake", FAKE, translator=save_translator(to_mr.with_name("other"), seed=1))
    again = read_table(fake / "shards" / f"{SHARD}.csv", "manifest").set_index("case")["key"]
    changed = set(manifest.index[manifest != again])
    assert changed == {row["case"] for row in archive.rows if row["modality"] == "CT"}


def test_cases_are_aligned_once_with_a_named_reference(archive, tmp_path, monkeypatch):
    prepared = files(archive.grey)
    cases = [row["case"] for row in archive.rows if row["sequence"] in ("t1w", "arterial")][:4]
    boxes = aligned(cases, "mr_000_t1w", prepared, PLAN, tmp_path)
    assert set(boxes) == set(cases)
    assert boxes["mr_000_t1w"] == tuple((0, n) for n in open_image(prepared.path("mr_000_t1w")).array.shape[1:])
    assert registration.Transform.load(tmp_path / f"{cases[-1]}.json").degrees == 0
    monkeypatch.setattr(registration, "register", None)
    assert aligned(cases, "mr_000_t1w", prepared, PLAN, tmp_path) == boxes  # nothing is sought again
    with pytest.raises(UserError, match="reference 'mr_00' of the registration"):
        aligned(cases, "mr_00", prepared, PLAN, tmp_path)


@pytest.mark.slow
def test_a_translation_that_loses_the_organs_is_noticed(archive, to_mr, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(adapt, "SHOWN", 1)  # rows of the picture
    archive.prepare_labels(archive.grey)

    def look(images: Path) -> pd.DataFrame:
        structure(
            archive.survey, PLAN.model_dump(mode="json"), "flare", to_mr / "cases.csv", [manifest(images)],
            [manifest(archive.grey)], [manifest(images / "labels" / "truth")], tmp_path / "structure.csv",
            tmp_path / "translated.png", manifest(images / "structure"), 1,
        )  # fmt: skip
        assert (tmp_path / "translated.png").read_bytes().startswith(b"\x89PNG")
        return read_table(tmp_path / "structure.csv", "structure").set_index("case")

    kept = look(archive.grey)
    labels = files(archive.grey / "labels" / "truth", "prepared_label")
    organs = [c for c in kept.index if len(np.unique(open_label(labels.path(c)).array[:])) > 4]
    assert organs and (kept.loc[organs, "fits"] == "True").all()
    lost = archive.prepare("lost", FAKE, translator=to_mr)
    archive.prepare_labels(lost)
    assert (look(lost)["information"] < kept["information"]).all()
    assert "labels do not fit the translation" in caplog.text
