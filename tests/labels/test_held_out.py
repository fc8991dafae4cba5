"""Held-out labels: labeled cases that no model learned from go the way of unlabeled ones, then their truth is read."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.base.paths import manifest_of
from labelloop.base.tables import TABLES, read_table, write_table
from labelloop.cases.annotation import to_table
from labelloop.images.volume import Geometry, read, write
from labelloop.recipe import ancestors, load_recipe, unroll
from labelloop.steps.held_out import held_out
from labelloop.steps.labels import agree
from labelloop.training.split import order_by, validation_cases
from survey_files import tables_of

SCHEME = load_classes("flare")
GRID = Geometry((30, 24, 16), (4.0, 4.0, 5.0))
CLASSES = ("liver", "spleen")
SHARD = "train-000"
RULES = SCHEME.model_dump(mode="json") | {"rules": []}
"""No anatomy here: of two blocks in a void no rule can approve."""


def label_map(liver: int, spleen: int = 4) -> np.ndarray:
    """Return a map with a liver and a spleen of these widths (voxels)."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:12, 6:18, 2 : 2 + liver] = SCHEME.ids["liver"]
    labels[5:9, 6:12, 20 : 20 + spleen] = SCHEME.ids["spleen"]
    return labels


@dataclass
class Loop:
    """A results folder in which two models have predicted some labeled and unlabeled cases."""

    results: Path
    rows: list[dict] = field(default_factory=list)
    states: dict[str, dict[str, str]] = field(default_factory=dict)
    predictions: dict[str, list[dict]] = field(default_factory=lambda: {"m": [], "n": []})
    patients: dict[str, str] = field(default_factory=dict)
    learned: dict[str, list[str]] = field(default_factory=lambda: {"m": [], "n": []})
    spec: dict = field(default_factory=dict)
    reviewed: list[dict] = field(default_factory=list)

    def add(self, case: str, truth: np.ndarray | None, by_m: np.ndarray, by_n: np.ndarray, **states: str) -> None:
        image, label = self.results / "images" / f"{case}.nii.gz", self.results / "truth" / f"{case}.nii.gz"
        write(image, np.full(GRID.shape, 60, np.float32), GRID)
        if truth is not None:
            write(label, truth, GRID)
        row = dict.fromkeys(TABLES["cases"], "") | {"case": case, "image": str(image), "dataset": "phantom"}
        row |= {"patient": self.patients.get(case, case), "label": str(label) if truth is not None else ""}
        self.rows.append(row | {"modality": "CT"})
        known = dict.fromkeys(CLASSES, "present") if truth is not None else {}
        self.states[case] = dict.fromkeys(SCHEME.names, "unknown") | known | states
        for model, array in (("m", by_m), ("n", by_n)):
            folder = self.results / "models" / model / "predictions"
            write(folder / f"{case}.nii.gz", array, GRID)
            entry = {"case": case, "status": "done", "file": f"{case}.nii.gz", "sha256": "", "key": "", "reason": ""}
            self.predictions[model].append(entry | {"sha256": f"{model}{array.sum()}{case}"})

    def table(self, settings: dict, **more) -> pd.DataFrame:
        """Run the steps, with ``more`` for the last; return the table of held-out labels."""
        self._survey()
        self.spec = {"predict": ["m", "n"], "classes": list(CLASSES), "fuse": "truth_first", "clean": []}
        self.spec |= {"check": "anatomy", "select": settings}
        known, labels = {"m": ["organs"], "n": ["organs"]}, self.results / "labels" / "pseudo"
        volumes = [self._volumes(model) for model in ("m", "n")]
        predictions = [self.results / f"models/{model}/predictions/shards/{SHARD}.csv" for model in ("m", "n")]
        agreement, out = (labels / kind / f"{SHARD}.csv" for kind in ("disagreement", "held_out"))
        manifests = [Path(manifest_of(table.parent, SHARD)) for table in (agreement, out)]
        agree(predictions, ["m", "n"], [], known, "flare", agreement, manifests[0], 1)
        given = {"learned": [self._learned(model) for model in ("m", "n")], "relatives": [self._relatives()]}
        given |= {
            "predictions": predictions,
            "disagreement": agreement,
            "volumes": volumes,
            "reviewed": self._reviewed(),
        } | more
        survey = tables_of(self.results, SHARD, rows=self.rows)
        held_out(survey, spec=self.spec, known=known, rules=RULES, table=out, manifest=manifests[1], version=1, **given)
        return read_table(out, "held_out").set_index(["case", "class"])

    def _reviewed(self) -> Path:
        rows = [dict.fromkeys(TABLES["reviewed"], "") | row for row in self.reviewed]
        write_table(self.results / "reviewed.csv", rows, "reviewed")
        return self.results / "reviewed.csv"

    def _relatives(self) -> Path:
        """Write the case table of all shards: patients may have cases in others, too."""
        own = {row["case"] for row in self.rows}
        others = {case: patient for case, patient in self.patients.items() if case not in own}
        rows = [self.rows[0] | {"case": case, "patient": patient} for case, patient in others.items()]
        write_table(self.results / "all_cases.csv", [*self.rows, *rows], "cases")
        return self.results / "all_cases.csv"

    def _survey(self) -> None:
        survey = self.results / "survey"
        write_table(survey / f"{SHARD}.annotation.csv", to_table(self.states, SCHEME.names), "annotation")
        empty = dict.fromkeys(TABLES["geometry"], 0) | {"image_sha256": "", "label_sha256": ""}
        rows = [empty | {"case": case} for case in self.states]
        write_table(survey / f"{SHARD}.geometry.csv", pd.DataFrame(rows), "geometry")

    def _volumes(self, model: str) -> Path:
        folder = self.results / "models" / model / "predictions"
        write_table(folder / "shards" / f"{SHARD}.csv", pd.DataFrame(self.predictions[model]), "manifest")
        found = []
        for case in self.states:
            array = read(folder / f"{case}.nii.gz").array
            sizes = {name: float((array == SCHEME.ids[name]).sum()) for name in CLASSES}
            found += [{"case": case, "class": n, "volume_ml": v, "confidence": 1.0} for n, v in sizes.items()]
        path = folder / "confidence" / f"{SHARD}.csv"
        write_table(path, pd.DataFrame(found), "confidence")
        return path

    def _learned(self, model: str) -> Path:
        split = dict.fromkeys(self.states, "validation") | dict.fromkeys(self.learned[model], "train")
        rows = [{"case": case, "split": s, "key": ""} for case, s in split.items()]
        path = self.results / "models" / model / "cases.csv"
        write_table(path, pd.DataFrame(rows), "training_cases")
        return path


@pytest.fixture
def loop(tmp_path):
    loop = Loop(tmp_path)
    loop.add("fair", label_map(10), label_map(5), label_map(5))
    loop.add("seen", label_map(10), label_map(10), label_map(10))
    loop.add("seen_by_one", label_map(10), label_map(10), label_map(10))
    loop.add("unlabeled", None, label_map(10), label_map(10))
    loop.learned = {"m": ["seen", "seen_by_one"], "n": ["seen"]}
    return loop


def test_only_labeled_cases_that_no_model_learned_from_are_asked(loop):
    assert set(loop.table({}).index.get_level_values("case")) == {"fair"}


def test_truth_that_reviewers_overruled_is_not_asked_and_what_they_called_right_is(loop):
    said = [("liver", "wrong", "unknown"), ("spleen", "right", "present")]
    loop.reviewed = [{"case": "fair", "class": name, "decision": d, "state": state} for name, d, state in said]
    assert set(loop.table({}).index) == {("fair", "spleen")}
    loop.reviewed[0]["state"] = ""  # it could not be used
    assert set(loop.table({}).index) == {("fair", "liver"), ("fair", "spleen")}


def test_data_sets_that_a_model_from_outside_may_have_seen_are_not_asked(loop):
    assert set(loop.table({}, saw=["amos"]).index.get_level_values("case")) == {"fair"}
    assert not len(loop.table({}, saw=["phantom"]))
    assert set(loop.table({}, learned=[]).index.get_level_values("case")) == {"fair", "seen", "seen_by_one"}


def test_other_scans_of_patients_that_a_model_learned_from_are_not_asked(loop):
    """Wherever the scan lies that was learned from: here one of the same shard, and one of another."""
    loop.patients = {"sibling": "seen", "second": "p", "elsewhere": "p"}
    for case in ("sibling", "second"):
        loop.add(case, label_map(10), label_map(10), label_map(10))
    loop.learned["n"].append("elsewhere")
    assert set(loop.table({}).index.get_level_values("case")) == {"fair"}


def test_the_pseudo_label_is_held_against_the_truth_not_the_truth_against_itself(loop):
    table = loop.table({})
    assert table.loc[("fair", "liver"), "dsc"] == pytest.approx(2 * 5 / 15)
    assert table.loc[("fair", "liver"), "pairwise_dice"] == 1
    assert table.loc[("fair", "spleen"), "dsc"] == 1
    assert set(table["decision"]) == {"accepted"}


def test_other_criteria_refuse_as_they_do_elsewhere_and_thresholds_and_ranks_do_not(loop):
    loop.add("doubtful", label_map(10), label_map(5), label_map(10))
    settings = {"min_pairwise_dice": 0.9, "target_dsc": 0.99, "keep_least_uncertain": 0}
    table = loop.table(settings)["decision"]
    assert table["doubtful", "liver"] == "demoted"
    assert table["doubtful", "spleen"] == table["fair", "liver"] == "accepted"


def test_unanimous_silence_about_an_organ_is_no_accepted_label(loop):
    loop.add("missed", label_map(10), label_map(10, 0), label_map(10, 0))
    row = loop.table({}).loc[("missed", "spleen")]
    assert (row["decision"], row["pairwise_dice"], row["dsc"]) == ("unknown", 1, 0)


def test_a_class_nobody_looked_for_is_not_asked_about(loop):
    loop.add("partial", label_map(10), label_map(10), label_map(10), spleen="unknown")
    assert ("partial", "spleen") not in loop.table({}).index


def test_an_organ_that_was_invented_counts_as_wrong(loop):
    loop.add("operated", label_map(10, 0), label_map(10), label_map(10), spleen="absent")
    row = loop.table({}).loc[("operated", "spleen")]
    assert (row["decision"], row["dsc"]) == ("accepted", 0)


def test_models_behind_a_label_set_are_all_that_it_descends_from():
    chain = unroll(load_recipe("default", rounds=2))
    assert ancestors(chain, "pseudo_round1") & set(chain.models) == {"teacher", "teacher_b"}
    assert ancestors(chain, "pseudo") & set(chain.models) == {"teacher", "teacher_b", "student_round1"}


def test_one_model_cannot_agree_with_itself(tmp_path):
    recipe = tmp_path / "alone.yaml"
    select = "{target_dsc: 0.8, min_pairwise_dice: null}"
    recipe.write_text(f"extends: default\nlabels: {{pseudo: {{predict: teacher, select: {select}}}}}\n")
    with pytest.raises(UserError, match=r"labels\.pseudo\.select\.target_dsc: .* two or more"):
        load_recipe(recipe)


def each_its_own(cases: list[str]) -> dict[str, str]:
    return {case: case for case in cases}


def test_models_of_one_validation_seed_hold_out_nested_cases():
    """So that cases are left that all of several models, or a model and what it descends from, hold out."""
    everyone = [f"case_{i}" for i in range(40)]
    for patients in (each_its_own(everyone), {case: f"patient_{i // 3}" for i, case in enumerate(everyone)}):
        whole = validation_cases(everyone, patients, 0.25, 0)
        for fewer in (everyone[::2], everyone[:7]):
            mine, others = validation_cases(fewer, patients, 0.25, 0), whole & set(fewer)
            assert mine <= others or others <= mine
        assert validation_cases(everyone, patients, 0.25, 1) != whole


def test_a_patient_is_held_out_whole_or_not_at_all():
    patients = {f"case_{i}": f"patient_{i % 7}" for i in range(40)}
    for seed in range(20):
        chosen = validation_cases(patients, patients, 0.25, seed)
        assert 10 <= len(chosen) <= 15
        assert not {patients[case] for case in chosen} & {patients[case] for case in set(patients) - chosen}


def test_a_collection_of_one_scan_a_patient_is_split_by_case():
    """By the order of the cases' own hashes, whatever the patients are called."""
    everyone = [f"case_{i}" for i in range(9)]
    named = {case: f"patient_{9 - i}" for i, case in enumerate(everyone)}
    chosen = validation_cases(everyone, named, 0.25, 3)
    assert chosen == set(sorted(everyone, key=lambda case: order_by(case, 3))[:2])
    assert chosen == validation_cases(everyone, each_its_own(everyone), 0.25, 3)


def test_somebody_is_left_to_learn_from_and_one_patient_is_not_held_out():
    assert validation_cases(["a", "b"], {"a": "p", "b": "p"}, 0.25, 0) == set()
    for seed in range(5):
        assert len(validation_cases(["a", "b"], {"a": "p", "b": "q"}, 0.9, seed)) == 1
    assert validation_cases(["a", "b"], {"a": "p", "b": "q"}, 0, 0) == set()


def test_what_the_truth_ignores_is_no_error_of_the_pseudo_label(loop, tmp_path):
    file, known = loop.results / "truth" / "fair.nii.gz", label_map(10)
    known[:, :, 7:12] = 99
    write(file, known, GRID)
    labels = {**{i: name for name, i in SCHEME.ids.items()}, 99: "ignore"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own", "modality": "CT", "labels": labels}))
    loop.rows[0]["dataset"] = str(tmp_path / "own.yaml")
    table = loop.table({})
    assert table.loc[("fair", "liver"), "dsc"] == table.loc[("fair", "spleen"), "dsc"] == 1
