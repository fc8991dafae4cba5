"""A model labels the prepared images of its plan, in every voxel as it labels the files that they were made from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_prepare import random_volume, turned
from tiny_models import save_model, tiny_plan

from labelloop.base.files import sha256
from labelloop.base.paths import manifest_of
from labelloop.base.shards import read_manifests
from labelloop.base.tables import write_table
from labelloop.images.volume import read, write
from labelloop.inference.prepared import open_image
from labelloop.steps.cases import prepare
from labelloop.steps.common import SurveyTables
from labelloop.steps.models import predict
from survey_files import do_survey

SHARD = "train-000"
PLANS = {"own": tiny_plan(), "grey": tiny_plan(grey={}, upright=True)}
MODALITIES = {"ct": "CT", "turned": "CT", "mr": "MR", "wrong": "MR"}
SHAPE, SPACING_MM = (18, 26, 31), (3.0, 1.1, 1.2)


class Scans:
    """A CT, one whose axes are stored in another order, an MR and one stored upside down; of the last two in floats."""

    def __init__(self, folder: Path):
        self.folder, self.results = folder, folder / "results"
        rng = np.random.default_rng(1)
        ct, other = (random_volume(rng, SHAPE, SPACING_MM) for _ in range(2))
        mr, wrong = (random_volume(rng, SHAPE, SPACING_MM, low=1) for _ in range(2))
        self.save("ct", ct)
        self.save("turned", turned(other, (2, 0, 1), (0, 2)))
        self.save("mr", replace(mr, array=np.abs(mr.array) / np.float32(3)))
        self.save("wrong", replace(wrong, array=np.abs(wrong.array) / np.float32(7)))
        write_table(self.results / "upright.csv", self._upside_down(), "upright")

    def save(self, case: str, volume) -> None:
        write(self.folder / f"{case}.nii.gz", volume.array, volume.geometry)

    def _upside_down(self) -> pd.DataFrame:
        unasked = {"dark_low": "", "dark_high": "", "reason": ""}
        rows = [{"case": c, "upside_down": str(c == "wrong"), "decided_by": c, **unasked} for c in MODALITIES]
        return pd.DataFrame(rows)

    def survey(self, without: str = "") -> SurveyTables:
        rows = [
            {"case": case, "image": str(self.folder / f"{case}.nii.gz"), "dataset": "flare22", "modality": modality}
            for case, modality in MODALITIES.items()
            if case != without
        ]
        return do_survey(rows, self.results, SHARD)

    def prepare(self, plan: str, without: str = "") -> Path:
        out = manifest(self.results / "prepared" / plan)
        prepare(self.survey(without), PLANS[plan].model_dump(mode="json"), out, 1)
        return out

    def predict(self, plan: str, out: str, prepared: Path | None = None) -> dict[str, str]:
        """Return the content hash of each label map."""
        model = save_model(self.folder / plan, PLANS[plan])
        made = manifest(self.folder / out)
        files = [model / "model.json", model / "weights.pt"]
        predict(self.survey(), files, {}, made, self.folder / out / "confidence.csv", "cpu", prepared=prepared)
        rows = read_manifests([made])
        assert set(rows["status"]) == {"done"}
        assert all(len(np.unique(read(row.file).array)) > 2 for row in rows.itertuples())
        return {row.case: sha256(Path(row.file)) for row in rows.itertuples()}


def manifest(folder: Path) -> Path:
    return Path(manifest_of(folder, SHARD))


@pytest.fixture
def scans(tmp_path) -> Scans:
    return Scans(tmp_path)


@pytest.mark.parametrize("plan", PLANS)
def test_label_maps_of_prepared_images_are_those_of_the_files(scans, plan):
    from_files = scans.predict(plan, "from_files")
    assert scans.predict(plan, "from_arrays", scans.prepare(plan)) == from_files
    assert len(set(from_files.values())) == len(MODALITIES)
    confidence = [(scans.folder / out / "confidence.csv").read_bytes() for out in ("from_files", "from_arrays")]
    assert confidence[0] == confidence[1]


def test_an_image_is_read_only_where_no_prepared_one_is_at_hand(scans, monkeypatch):
    prepared = scans.prepare("own", without="turned")
    survey, read = scans.survey(), []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self.name) or read_bytes(self))
    monkeypatch.setattr(scans, "survey", lambda: survey)
    scans.predict("own", "out", prepared)
    assert {name for name in read if name.endswith(".nii.gz") and name.split(".")[0] in MODALITIES} == {
        "turned.nii.gz",
        "wrong.nii.gz",  # its label map has the header of the file
    }


def test_a_new_image_gets_a_new_label_map(scans):
    first = scans.predict("own", "out", scans.prepare("own"))
    scans.save("ct", random_volume(np.random.default_rng(2), SHAPE, SPACING_MM))
    second = scans.predict("own", "out", scans.prepare("own"))
    assert {case for case in first if first[case] != second[case]} == {"ct"}


def test_an_image_of_several_channels_is_prepared_and_labeled_by_all_of_them(tmp_path):
    rng, plan = np.random.default_rng(3), tiny_plan(channels=("CT", "PET"))
    files = [tmp_path / f"a_{channel:04d}.nii.gz" for channel in range(2)]
    ct = random_volume(rng, SHAPE, SPACING_MM)
    (tmp_path / "pet.yaml").write_text("{name: pet, modality: CT, channels: [CT, PET], labels: {1: liver}}")
    row = {"case": "a", "image": ";".join(map(str, files)), "dataset": str(tmp_path / "pet.yaml"), "modality": "CT"}
    model = save_model(tmp_path / "model", plan)
    found = []
    for number in range(2):
        for file, volume in zip(files, (ct, random_volume(rng, SHAPE, SPACING_MM, low=1)), strict=True):
            write(file, volume.array, ct.geometry)
        survey = do_survey([row], tmp_path / "results", SHARD)
        arrays = manifest(tmp_path / "prepared")
        prepare(survey, plan.model_dump(mode="json"), arrays, 1)
        (stored,) = read_manifests([arrays]).itertuples()
        assert open_image(stored.file).array.shape[0] == 2
        for out, given in (("from_files", None), ("from_arrays", arrays)):
            made = manifest(tmp_path / f"{out}{number}")
            table = made.parent / "confidence.csv"
            inputs = [model / "model.json", model / "weights.pt"]
            predict(survey, inputs, {}, made, table, "cpu", prepared=given)
            (labels,) = read_manifests([made]).itertuples()
            found.append(sha256(Path(labels.file)))
    assert found[0] == found[1] and found[2] == found[3]
    assert found[0] != found[2]  # the second channel alone is another one
