"""The step that carries labels: across shards, upside-down patients, and only what changed is done again."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.files import sha256
from labelloop.base.paths import manifest_of
from labelloop.base.shards import Ledger, read_manifests
from labelloop.base.tables import TABLES, read_table, write_table
from labelloop.cases.annotation import UNKNOWN
from labelloop.cases.table import Case, write_cases
from labelloop.images.volume import Volume, canonical, read, write
from labelloop.phantom.mr import MrPatient
from labelloop.run.run import Run
from labelloop.steps.transfer import transfer
from survey_files import tables_of

SHARDS = ("train-000", "train-001")
SPEC = {
    "predict": ["m"],
    "cases": ["all"],
    "transfer": {},
    "clean": [{"keep_slices": ["spleen"], "of": ["liver"], "above_mm": 0}],
}
SCHEME = load_classes("flare")
LIVER, SPLEEN = SCHEME.ids["liver"], SCHEME.ids["spleen"]


class Archive:
    """A patient's T1W in the first shard and its arterial phase in the second; T1W has its truth as prediction."""

    def __init__(self, folder: Path, upside_down: bool):
        self.results, self.truth, self.rows = folder / "results", {}, {}
        sequences = MrPatient(3, 2).render(8.0)
        for shard, name in zip(SHARDS, ("t1w", "arterial"), strict=True):
            image, truth, geometry = sequences[name]
            if upside_down:
                image, truth = image[::-1].copy(), truth[::-1].copy()
            path = folder / f"{name}.nii.gz"
            write(path, image, geometry)
            about = {"dataset": "phantom", "modality": "MR", "sequence": name, "patient": "p"}
            self.rows[shard] = Case(case=name, image=str(path), **about).model_dump()
            self.truth[name] = truth
            self._survey(shard, name, sha256(path))
        self.predict(self.truth["t1w"])
        if upside_down:
            turned = [{"case": name, "upside_down": True, "decided_by": name, "reason": ""} for name in self.truth]
            table = pd.DataFrame(turned).reindex(columns=list(TABLES["upright"]))
            write_table(self.results / "upright.csv", table, "upright")

    def _survey(self, shard: str, case: str, image_sha256: str) -> None:
        geometry = dict.fromkeys(TABLES["geometry"], 1) | {
            "case": case,
            "image_sha256": image_sha256,
            "label_sha256": "",
        }
        write_table(self.results / "survey" / f"{shard}.geometry.csv", pd.DataFrame([geometry]), "geometry")
        states = [{"case": case, "class": name, "state": UNKNOWN} for name in SCHEME.names]
        write_table(self.results / "survey" / f"{shard}.annotation.csv", pd.DataFrame(states), "annotation")
        write_table(self.results / "survey" / f"{shard}.cases.csv", [self.rows[shard]], "cases")

    def predict(self, label: np.ndarray) -> None:
        """Let the model have predicted ``label`` on T1W."""
        for shard in SHARDS[1:]:
            Ledger(self.results / "models" / "m" / "predictions", shard).close()
        ledger = Ledger(self.results / "models" / "m" / "predictions", SHARDS[0])
        path = ledger.folder / "t1w.nii.gz"
        write(path, label, read(self.rows[SHARDS[0]]["image"]).geometry)
        ledger.run("t1w", sha256(path), lambda: (path, {}))
        ledger.close()

    def transfer(self) -> Path:
        """Carry labels to the second shard; return the folder of what was carried."""
        out = self.results / "labels" / "carried" / "transferred"
        survey = tables_of(self.results, *SHARDS)
        predictions = [Path(manifest_of(self.results / "models" / "m" / "predictions", shard)) for shard in SHARDS]
        files = {"manifest": Path(manifest_of(out, SHARDS[1])), "carried": out / "confidence" / f"{SHARDS[1]}.csv"}
        files["transfers"] = out.parent / "transfers" / f"{SHARDS[1]}.csv"
        transfer(survey.cases[1], survey, predictions, SPEC, ["all"], "flare", {}, **files, version=1)
        return out


@pytest.fixture(scope="module", params=[False, True], ids=["stands", "upside_down"])
def archive(request, tmp_path_factory):
    return Archive(tmp_path_factory.mktemp("archive"), request.param)


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_labels_come_from_another_shard_and_lie_as_the_image_is_stored(archive):
    out = archive.transfer()
    found = read(out / "arterial.nii.gz")
    assert found.geometry.difference(read(archive.rows[SHARDS[1]]["image"]).geometry) is None
    assert dice(found.array == LIVER, archive.truth["arterial"] == LIVER) > 0.85
    (row,) = read_table(out.parent / "transfers" / f"{SHARDS[1]}.csv", "transfers").to_dict("records")
    assert (row["case"], row["source"], row["decision"]) == ("arterial", "t1w", "accepted")
    volumes = read_table(out / "confidence" / f"{SHARDS[1]}.csv", "confidence").set_index("class")["volume_ml"]
    assert volumes["liver"] == pytest.approx((found.array == LIVER).sum() * found.geometry.voxel_ml, rel=1e-5)


def test_only_a_new_prediction_is_carried_again(archive):
    """It has a lump of spleen above the liver, by the body's sense of above: cleaning takes it before it is carried."""
    out = archive.transfer()
    before = (out / "arterial.nii.gz").stat().st_mtime_ns
    assert (archive.transfer() / "arterial.nii.gz").stat().st_mtime_ns == before
    label = archive.truth["t1w"].copy()
    by_header = canonical(Volume(label, read(archive.rows[SHARDS[0]]["image"]).geometry)).array  # a view
    levels = np.flatnonzero((by_header == LIVER).any((1, 2)))
    upside_down = (archive.results / "upright.csv").is_file()
    lump = by_header[: levels[0]] if upside_down else by_header[levels[-1] + 1 :]
    lump[:, :9, :9] = SPLEEN
    assert (label == SPLEEN).sum() > 1.5 * (archive.truth["t1w"] == SPLEEN).sum()
    archive.predict(label)
    found = read(archive.transfer() / "arterial.nii.gz")
    assert (out / "arterial.nii.gz").stat().st_mtime_ns > before
    assert (found.array == SPLEEN).sum() <= 1.15 * (archive.truth["arterial"] == SPLEEN).sum()
    status = read_manifests([out / "shards" / f"{SHARDS[1]}.csv"])
    assert list(status["status"]) == ["done"]


def test_a_shard_asks_only_those_that_hold_its_patients(tmp_path):
    cases = [
        Case(case=f"{patient}_{name}", image=str(tmp_path / "x.nii.gz"), dataset="phantom", modality="MR",
             sequence=name, patient=patient)
        for patient in map(str, range(12)) for name in ("t1w", "t2w")
    ]  # fmt: skip
    (tmp_path / "x.nii.gz").touch()
    write_cases(tmp_path / "cases.csv", cases)
    run = Run(
        {"cases": str(tmp_path / "cases.csv"), "recipe": "default", "shard_size": 2, "results": str(tmp_path / "run")}
    )
    smaller = 0
    for shard, own in run.shards.cases.items():
        homes = run.shards.of_same_patients(shard)
        patients = {case.patient for case in own}
        wanted = {case.case for case in cases if case.patient in patients}
        held = [{case.case for case in run.shards.cases[home]} for home in homes]
        assert wanted <= set().union(*held) and all(wanted & some for some in held)
        smaller += len(homes) < len(run.shards.all)
    assert smaller
