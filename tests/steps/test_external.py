"""Models that are not trained here label the cases of a shard: files, commands, and models of nnU-Net's."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_nnunet import save_nnunet

from labelloop.base.classes import load_classes
from labelloop.base.paths import WEIGHTS, Paths, manifest_of
from labelloop.base.shards import read_manifests
from labelloop.base.tables import read_table
from labelloop.images.volume import Geometry, read, write
from labelloop.inference.settings import Settings
from labelloop.steps.external import import_nnunet, predict_external
from labelloop.steps.labels import agree, fuse
from survey_files import do_survey

SHARD, SCHEME = "train-000", load_classes("flare")
GRID = Geometry((24, 20, 16), (3.0, 3.0, 5.0), (-30.0, 20.0, 5.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
OTHER = Geometry((24, 20, 16), (3.0, 3.0, 4.0), (-30.0, 20.0, 5.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
CASES = ("good", "bad", "worse", "last")
LABELS = {1: "spleen", 2: "liver", 3: None}
"""Ids of the models: other ones than the scheme's."""
TOOL = """
import shutil, sys, time
from pathlib import Path
folder, case, image, out, device = sys.argv[1:]
with open(f"{folder}/called", "a") as log:
    log.write(f"{case} {device} {Path(image).is_file()}\\n")
if case == "slow":
    time.sleep(60)
if case == "broken":
    sys.exit("no weights for this one")
if case == "overwrites":
    shutil.copy(f"{folder}/good.nii.gz", image)
if case == "masks":
    Path(out).mkdir()
elif case != "silent":
    shutil.copy(f"{folder}/{case}.nii.gz", out)
"""


def label_map(liver: int) -> np.ndarray:
    """Return a map in ids of the models, with a liver of that width, a spleen and something else."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:12, 4:18, 2 : 2 + liver], labels[5:9, 6:12, 18:22], labels[0:2] = 2, 1, 3
    return labels


class Shard:
    """A surveyed shard of cases without labels, a data set file, and a folder ``made`` of label maps."""

    def __init__(self, folder: Path, cases: tuple[str, ...] = CASES):
        self.folder, self.paths = folder, Paths(str(folder / "results"))
        self.dataset = folder / "own.yaml"
        self.dataset.write_text(yaml.safe_dump({"name": "own", "modality": "CT", "labels": LABELS}))
        rows = []
        for number, case in enumerate(cases):
            image = np.random.default_rng(number).integers(-150, 250, GRID.shape).astype(np.int16)
            write(folder / "my images" / f"{case}.nii.gz", image, GRID)
            row = {"case": case, "image": str(folder / "my images" / f"{case}.nii.gz"), "dataset": "flare22"}
            rows.append(row | {"modality": "CT", "patient": case, "role": "train"})
        self.survey = do_survey(rows, folder / "results", SHARD)

    def make(self, case: str, array: np.ndarray, geometry: Geometry = GRID) -> None:
        """Write the label map of a case into ``made``."""
        write(self.folder / "made" / f"{case}.nii.gz", array, geometry)

    def predict(self, spec: dict, answer: str = "", **more) -> dict[str, dict]:
        """Run the step of a model ``m``; return the rows of its manifest by case."""
        folder = Path(self.paths.predictions("m"))
        files = Path(manifest_of(folder, SHARD)), folder / "confidence" / f"{SHARD}.csv"
        spec = spec | {"dataset": str(self.dataset)}
        predict_external(self.survey, spec, answer, "flare", more.pop("engine", {}), *files, "cpu", **more)
        return read_manifests(files[:1]).to_dict("index")

    def files(self, **spec) -> dict[str, dict]:
        """Run it with the label maps in ``made``."""
        there = sorted(file for file in (self.folder / "made").glob("*.nii.gz") if file.is_file())
        return self.predict({"files": str(self.folder / "made" / "{case}.nii.gz")} | spec, files=there)

    def command(self, answer: str = "1.0", **spec) -> dict[str, dict]:
        """Run it with a script that copies label maps from ``made``."""
        (self.folder / "tool.py").write_text(TOOL)
        words = f"{sys.executable} -S {self.folder}/tool.py {self.folder}/made {{case}} {{image}} {{output}} {{device}}"
        return self.predict({"command": words, "version": "tool --version"} | spec, answer)

    def called(self) -> list[str]:
        """Return the lines that the script noted, and forget them."""
        log = self.folder / "made" / "called"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def volumes(self) -> dict[tuple[str, str], float]:
        """Return the volumes in ml by case and class."""
        table = read_table(Path(self.paths.predictions("m")) / "confidence" / f"{SHARD}.csv", "confidence")
        return {(row["case"], row["class"]): row["volume_ml"] for row in table.to_dict("records")}


def wrong_grid_and_ids(shard: Shard) -> None:
    shard.make("good", label_map(6))
    shard.make("bad", label_map(6), OTHER)
    shard.make("worse", label_map(6) * 2)


def test_files_are_taken_refused_or_missing_case_by_case(tmp_path):
    shard = Shard(tmp_path)
    wrong_grid_and_ids(shard)
    rows = shard.files()
    assert {case: row["status"] for case, row in rows.items()} == {
        "good": "done", "bad": "failed", "worse": "failed", "last": "done",
    }  # fmt: skip
    assert "label_spacing_differs" in rows["bad"]["reason"] and "bad.nii.gz" in rows["bad"]["reason"]
    assert "label_unknown_ids" in rows["worse"]["reason"] and "data set own knows 1, 2, 3" in rows["worse"]["reason"]
    assert not rows["last"]["file"]  # there is no such file: the model says nothing of the case
    found = read(rows["good"]["file"])
    assert found.geometry == GRID
    expected = np.select([label_map(6) == 2, label_map(6) == 1], [SCHEME.ids["liver"], SCHEME.ids["spleen"]])
    np.testing.assert_array_equal(found.array, expected)
    ml = GRID.voxel_ml
    assert shard.volumes() == pytest.approx(
        {("good", "liver"): (label_map(6) == 2).sum() * ml, ("good", "spleen"): (label_map(6) == 1).sum() * ml}
    )


def test_a_dead_link_or_a_folder_is_not_a_model_that_says_nothing(tmp_path):
    shard = Shard(tmp_path)
    shard.make("good", label_map(6))
    (tmp_path / "made" / "bad.nii.gz").symlink_to("nowhere")
    (tmp_path / "made" / "worse.nii.gz").mkdir()
    rows = shard.files()
    assert {case for case, row in rows.items() if row["status"] == "failed"} == {"bad", "worse"}
    assert "a dead link" in rows["bad"]["reason"] and "a folder that is named like a file" in rows["worse"]["reason"]


def test_only_classes_that_count_are_in_the_label_maps(tmp_path):
    shard = Shard(tmp_path, ("good",))
    shard.make("good", label_map(6))
    rows = shard.files(classes=["liver"])
    assert set(np.unique(read(rows["good"]["file"]).array)) == {0, SCHEME.ids["liver"]}
    assert set(shard.volumes()) == {("good", "liver")}


def test_ids_that_a_data_set_ignores_are_no_prediction(tmp_path):
    shard = Shard(tmp_path, ("good",))
    shard.dataset.write_text(yaml.safe_dump({"name": "own", "modality": "CT", "labels": LABELS | {3: "ignore"}}))
    shard.make("good", label_map(6))
    assert "label_ignored" in shard.files()["good"]["reason"]


def test_a_changed_or_removed_file_changes_its_case_alone(tmp_path):
    shard = Shard(tmp_path)
    for case in CASES:
        shard.make(case, label_map(6))
    before = shard.files()
    times = {case: Path(row["file"]).stat().st_mtime_ns for case, row in before.items()}
    assert shard.files() == before
    assert {case: Path(row["file"]).stat().st_mtime_ns for case, row in before.items()} == times
    shard.make("bad", label_map(7))
    (tmp_path / "made" / "last.nii.gz").unlink()
    after = shard.files()
    assert {case for case in CASES if after[case]["key"] != before[case]["key"]} == {"bad", "last"}
    assert Path(after["good"]["file"]).stat().st_mtime_ns == times["good"]
    assert not after["last"]["file"] and not Path(before["last"]["file"]).exists()


def test_a_command_that_fails_is_the_failure_of_one_case(tmp_path):
    shard = Shard(tmp_path, ("good", "slow", "broken", "silent", "masks", "overwrites", "bad", "worse", "last"))
    wrong_grid_and_ids(shard)
    shard.make("last", label_map(5))
    shard.make("overwrites", label_map(5))
    rows = shard.command(limit_s=5)
    assert {case for case, row in rows.items() if row["status"] == "done"} == {"good", "last"}
    said = {
        "slow": "command_slow: slow: .* took more than 5 s, and said nothing",
        "broken": "command_failed: broken: .* ended with exit code 1; it said: no weights for this one",
        "silent": "command_no_output: silent: .* wrote no silent.nii.gz",
        "masks": "command_no_output: masks: .* wrote a folder masks.nii.gz, .*--ml",
        "overwrites": "command_altered_image: .*overwrites.*: .* wrote to {image}. .*Restore the image",
        "bad": "label_spacing_differs: .*label against image: spacing",
        "worse": "label_unknown_ids: .*label ids 4, 6",
    }
    for case, words in said.items():
        assert re.match(words, rows[case]["reason"]), rows[case]["reason"]
    assert all(line.endswith(" cpu True") for line in shard.called())


def test_a_command_runs_again_for_what_failed_and_when_its_version_is_another(tmp_path):
    shard = Shard(tmp_path, ("good", "last", "broken"))
    for case in ("good", "last"):
        shard.make(case, label_map(6))
    before = shard.command()
    shard.called()
    assert shard.command() == before
    assert [line.split()[0] for line in shard.called()] == ["broken"]
    after = shard.command("1.1")
    assert sorted(line.split()[0] for line in shard.called()) == ["broken", "good", "last"]
    assert after["good"]["key"] != before["good"]["key"] and after["good"]["sha256"] == before["good"]["sha256"]


def test_a_model_of_nnunet_labels_in_the_ids_of_its_data_set(tmp_path):
    labels = {"background": 0, "Milz": 1, "Leber": 2, "Rest": 3}
    shard, theirs = Shard(tmp_path, ("good",)), save_nnunet(tmp_path, labels=labels, folds=(0, 1))
    files = [Path(shard.paths.model(name, "m")) for name in WEIGHTS]
    about = {"engine": Settings().model_dump(mode="json"), "model": files}
    spec = {"nnunet": str(theirs), "dataset": str(shard.dataset)}

    def predicted(fold: int) -> dict[str, str]:
        import_nnunet([theirs / "plans.json"], spec | {"folds": [fold]}, *files)
        return shard.predict(spec | {"folds": [fold]}, **about)["good"]

    row = predicted(0)
    found = read(row["file"])
    assert found.geometry == GRID
    assert {0, SCHEME.ids["liver"], SCHEME.ids["spleen"]} >= set(np.unique(found.array)) > {0}
    assert {name for _, name in shard.volumes()} == {"liver", "spleen"}
    assert json.loads(files[0].read_text())["nnunet"]["folds"] == ["fold_0"]
    made = Path(row["file"]).stat().st_mtime_ns
    assert predicted(0) == row and Path(row["file"]).stat().st_mtime_ns == made  # the same weights: nothing is computed
    assert predicted(1)["key"] != row["key"]


def test_models_that_say_nothing_of_a_case_leave_it_to_the_others(tmp_path, caplog):
    shard = Shard(tmp_path)
    wrong_grid_and_ids(shard)
    shard.files()
    other = Path(shard.paths.predictions("n"))
    shutil.copytree(shard.paths.predictions("m"), other)
    for case in ("good", "bad", "worse"):
        shard.make(case, label_map(8))
    shard.files()  # of m; n says what it said before
    manifests = [Path(manifest_of(shard.paths.predictions(name), SHARD)) for name in ("m", "n")]
    spec = {"predict": ["m", "n"], "cases": ["all"], "classes": ["organs"], "clean": [], "fuse": "truth_first"}
    known = {"m": ["liver", "spleen"], "n": ["liver", "spleen"]}
    labels = Path(shard.paths.labels("pseudo"))
    files = Path(manifest_of(labels, SHARD)), labels / "provenance" / f"{SHARD}.csv"
    fuse(shard.survey, manifests, spec, known, "flare", {}, *files, labels / "reviewed.csv", "nowhere", 1)
    assert "model n has no prediction of 2 cases; the others label them" in caplog.text
    assert set(read_manifests(files[:1])["case"]) == {"good", "bad", "worse"}  # nobody says anything of the last
    source = read_table(files[1], "provenance").query("step == 'fuse'").set_index(["case", "class"])["source"]
    assert {source[case, "liver"] for case in ("bad", "worse")} == {"m"}
    assert source["good", "liver"] == "m+n"
    assert source["bad", "pancreas"] == source["good", "pancreas"] == "none"
    table = labels / "disagreement" / f"{SHARD}.csv"
    agree(manifests, ["m", "n"], [], known, "flare", table, Path(manifest_of(table.parent, SHARD)), 1)
    assert set(read_table(table, "disagreement")["case"]) == {"good"}
