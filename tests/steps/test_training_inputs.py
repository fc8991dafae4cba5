"""From the survey to a training: which cases it gets, what is known of them, what it pastes."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import ndimage

from labelloop.base.classes import IGNORED, load_classes
from labelloop.base.errors import CaseError
from labelloop.base.paths import manifest_of
from labelloop.base.shards import Ledger, read_manifests
from labelloop.base.tables import read_table, write_table
from labelloop.cases.annotation import from_table
from labelloop.images.volume import read, write
from labelloop.inference.prepared import open_label
from labelloop.labels.tumors import read_contents, read_object
from labelloop.networks.plans import Plan
from labelloop.recipe import ModelSpec, load_recipe, unroll
from labelloop.run.chain import arrays_of
from labelloop.steps.arrays import cut_objects, prepare_labels
from labelloop.steps.cases import prepare
from labelloop.steps.common import SurveyTables
from labelloop.steps.labels import fuse, selection
from labelloop.steps.models import train
from labelloop.training import nnunet, slices
from labelloop.training.settings import CutMix
from labelloop.training.trainers import TRAINERS
from survey_files import do_survey, tables_of

SHARD = "train-000"
PLAN = Plan(spacing_mm=(12, 12, 12), patch=(16, 16, 24), features=(4, 8))
CUT = CutMix(min_ml=0.1).cut.model_dump(mode="json")


class Prepared:
    """Prepared images and true labels of a tiny phantom, and what the annotators looked for."""

    def __init__(self, folder: Path, table: Path):
        with table.open(newline="") as handle:
            rows = [row for row in csv.DictReader(handle) if row["role"] == "train" and row["modality"] == "CT"]
        for row in rows:
            row |= {key: str(table.parent / row[key]) if row[key] else "" for key in ("image", "label")}
        self.rows, self.results = rows, folder / "results"
        self.groups: dict[str, dict] = {}
        self.images = self.results / "prepared" / "fine"
        prepare(do_survey(rows, self.results, SHARD), PLAN.model_dump(mode="json"), manifest(self.images), 1)
        self.prepare_labels("truth", "labels")
        self.states = from_table(read_table(self.results / "survey" / f"{SHARD}.annotation.csv", "annotation"))

    @property
    def survey(self) -> SurveyTables:
        """The tables of the survey, with the rows as they are now."""
        return tables_of(self.results, SHARD, rows=self.rows)

    def prepare_labels(self, labels: str, kind: str) -> None:
        """Prepare the truth or a label set."""
        maps = None if labels == "truth" else manifest(self.results / "labels" / labels)
        out = manifest(self.images / kind / labels)
        prepare_labels(self.survey, manifest(self.images), "flare", kind, out, 1, maps)

    def selected(self, labels: str) -> Path | None:
        """The table of a label set; none of the truth."""
        return None if labels == "truth" else self.results / "labels" / labels / "selected.csv"

    def select(self, labels: str, states: dict[str, dict], given: dict[str, dict]) -> None:
        """Write what is known of a label set: what annotators gave is truth, models say the rest. Its maps are true."""
        columns = ("case", "class", "state", "decision", "criterion", "reason")
        rows = [
            (case, name, state, "truth" if name in looked(given[case]) else "accepted", "", "")
            for case, known in states.items()
            for name, state in known.items()
        ]
        write_table(self.results / "labels" / labels / "selected.csv", pd.DataFrame(rows, columns=columns), "selected")
        (self.images / "labels" / labels).unlink(missing_ok=True)
        (self.images / "labels" / labels).symlink_to("truth")

    def fuse(self, labels: str, spec: dict) -> Path:
        """Fuse predictions of models that know all classes; return the label set's folder."""
        folders = [self.results / "models" / model / "predictions" for model in spec["predict"]]
        known, out = {model: ["all"] for model in spec["predict"]}, self.results / "labels" / labels
        files = manifest(out), out / "provenance" / f"{SHARD}.csv", out / "reviewed" / f"{SHARD}.csv", "nowhere"
        fuse(self.survey, [manifest(folder) for folder in folders], spec, known, "flare", {}, *files, 1)
        return out

    def looked_for(self, *names: str) -> set[str]:
        """Cases in which all of these classes are annotated; all classes when none is named."""
        return {c for c, s in self.states.items() if all(s[n] != "unknown" for n in names or s)}

    def cut(self, labels: str = "truth", **settings) -> Path:
        """Cut the tumor objects; return the bank's folder."""
        bank = self.images / "objects" / "m"
        arrays = manifest(self.images), manifest(self.images / "labels" / labels)
        files = {
            "manifest": manifest(bank),
            "index": bank / "index" / f"{SHARD}.csv",
            "selected": self.selected(labels),
        }
        cut_objects(self.survey, *arrays, CUT | settings, "flare", PLAN.spacing_mm, version=1, **files)
        return bank

    def job(self, monkeypatch, bank: Path | None = None, learned: Sequence[Path] = (), **spec):
        """Return the job that the step hands to the training."""
        jobs = []
        for module in (nnunet, slices):
            monkeypatch.setattr(module, "train", jobs.append)
        model = ModelSpec.model_validate({"plan": "fine"} | spec)
        dumped = model.model_dump(mode="json", exclude_none=True)
        arrays = [manifest(self.images)], [manifest(self.images / "labels" / model.labels)]
        train(
            self.survey, *arrays, "m", dumped, PLAN.model_dump(mode="json"), "flare", self.groups,
            self.results / "models" / "m" / "model.json", "cpu", True, 0, 1, learned=learned,
            objects=[manifest(bank)] if bank else [], selected=self.selected(model.labels),
        )  # fmt: skip
        return jobs[0]


def manifest(folder: Path) -> Path:
    return Path(manifest_of(folder, SHARD))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, phantom) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"), phantom)


def unlabeled_of(prepared: Prepared) -> set[str]:
    return {case for case, known in prepared.states.items() if set(known.values()) == {"unknown"}}


def looked(known: dict[str, str]) -> dict[str, str]:
    """Return the states of the classes that somebody looked for."""
    return {name: state for name, state in known.items() if state != "unknown"}


def cases(job) -> set[str]:
    return {case.case for case in job.cases}


@pytest.mark.parametrize("kind", ["mean_teacher", "cross_pseudo"])
def test_unlabeled_cases_reach_the_trainers_that_use_them(prepared, monkeypatch, kind):
    job = prepared.job(monkeypatch, trainer=kind)
    unlabeled = {case.case for case in job.cases if not case.known(job.classes)}
    assert cases(job) == set(prepared.states)
    assert unlabeled == {case for case, known in prepared.states.items() if set(known.values()) == {"unknown"}} != set()
    assert all(case.split == "train" for case in job.cases if case.case in unlabeled)
    assert cases(prepared.job(monkeypatch, trainer="partial")) == set(prepared.states) - unlabeled


def test_slice_classifiers_leave_out_what_has_no_hounsfield_units(prepared, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    labeled = cases(prepared.job(monkeypatch, trainer="slice_classifier"))
    mr = min(labeled)
    rows = [row | ({"modality": "MR", "sequence": "t1w"} if row["case"] == mr else {}) for row in prepared.rows]
    monkeypatch.setattr(prepared, "rows", rows)
    assert cases(prepared.job(monkeypatch, trainer="slice_classifier")) == labeled - {mr}
    assert f"1 of {len(rows)} cases left out: a slice classifier learns from CT alone" in caplog.text
    assert mr in cases(prepared.job(monkeypatch, trainer="partial"))


def test_unlabeled_scans_of_patients_that_are_validated_on_are_left_out(prepared, monkeypatch):
    def splits() -> dict[str, set[str]]:
        job = prepared.job(monkeypatch, trainer="mean_teacher", validation_fraction=0.2)
        return {split: {case.case for case in job.cases if case.split == split} for split in ("train", "validation")}

    before = splits()
    unlabeled = {case for case, known in prepared.states.items() if set(known.values()) == {"unknown"}}
    held_out, sibling = min(before["validation"]), min(unlabeled & before["train"])
    rows = [row | ({"patient": held_out} if row["case"] == sibling else {}) for row in prepared.rows]
    monkeypatch.setattr(prepared, "rows", rows)
    assert splits()["train"] == before["train"] - {sibling}


def validated(job) -> dict[str, dict[str, str]]:
    return {case.case: case.states for case in job.cases if case.split == "validation"}


def test_a_student_is_not_validated_on_patients_that_its_weights_know(prepared, monkeypatch, tmp_path):
    labeled = sorted(prepared.states.keys() - unlabeled_of(prepared))
    kept, table = labeled[0], tmp_path / "cases.csv"
    rows = [{"case": case, "split": "validation" if case == kept else "train", "key": ""} for case in labeled]
    write_table(table, pd.DataFrame(rows), "training_cases")
    job = prepared.job(monkeypatch, learned=[table], trainer="partial", validation_fraction=0.3)
    assert set(validated(job)) == {kept}
    assert cases(job) == set(labeled)
    write_table(table, pd.DataFrame(rows).assign(split="train"), "training_cases")
    assert validated(prepared.job(monkeypatch, learned=[table], trainer="partial", validation_fraction=0.3)) == {}


def test_why_nobody_is_validated_on_is_told_as_it_is(prepared, monkeypatch, tmp_path, caplog):
    labeled, asked = sorted(prepared.states.keys() - unlabeled_of(prepared)), {"trainer": "partial"}
    table = tmp_path / "cases.csv"
    write_table(table, pd.DataFrame([{"case": c, "split": "train", "key": ""} for c in labeled]), "training_cases")
    prepared.job(monkeypatch, learned=[table], **asked)
    assert "no patient to validate on: the models that it starts from learned from all of them" in caplog.text
    caplog.clear()
    monkeypatch.setattr(prepared, "rows", [row | {"patient": "one"} for row in prepared.rows])
    prepared.job(monkeypatch, **asked)
    assert "no patient to validate on: there is one alone, and the model learns from that" in caplog.text


def test_a_student_is_validated_on_what_annotators_gave_not_on_pseudo_labels(prepared, monkeypatch):
    """A label set in which everything is known of every case."""
    complete = {case: dict.fromkeys(known, "present") | looked(known) for case, known in prepared.states.items()}
    prepared.select("complete", complete, prepared.states)
    job = prepared.job(monkeypatch, labels="complete", trainer="partial", validation_fraction=0.5)
    assert validated(job) == {case: prepared.states[case] for case in validated(job)} != {}
    assert unlabeled_of(prepared).isdisjoint(validated(job))
    looked_for = {
        case: {n for n, state in known.items() if state != "unknown"} for case, known in prepared.states.items()
    }
    assert {case.case: set(case.truth) for case in job.cases} == {case: looked_for[case] for case in cases(job)}
    asked = {"labels": "complete", "trainer": "partial", "validation_fraction": 0.5, "validate_on": "labels"}
    assert all("unknown" not in states.values() for states in validated(prepared.job(monkeypatch, **asked)).values())


def test_what_models_say_of_annotated_cases_is_no_truth_where_predictions_alone_count(prepared, monkeypatch):
    nobody = {case: dict.fromkeys(known, "unknown") for case, known in prepared.states.items()}
    prepared.select("alone", prepared.states, nobody)
    asked = {"labels": "alone", "trainer": "partial", "validation_fraction": 0.5}
    job = prepared.job(monkeypatch, **asked)
    assert validated(job) == {} and not any(case.is_truth(name) for case in job.cases for name in job.classes)
    assert validated(prepared.job(monkeypatch, **asked, validate_on="labels")) != {}
    assert read_manifests([manifest(prepared.cut("alone"))]).empty
    assert not read_manifests([manifest(prepared.cut("alone", source="labels"))]).empty


def test_the_partial_trainer_is_told_which_cases_are_full(prepared, monkeypatch):
    batches = {"full": "organs_full_no_tumor", "full_first_epochs": 1}
    job = prepared.job(monkeypatch, cases="labeled", trainer={"kind": "partial", "batches": batches})
    organs = load_classes("flare").select("organs")
    assert {case.case for case in job.cases if case.full} == prepared.looked_for(*organs) - prepared.looked_for("tumor")
    assert not any(case.full for case in prepared.job(monkeypatch, trainer="partial").cases)


def test_objects_are_cut_where_the_tumor_is_present_and_kept_by_content(prepared, monkeypatch):
    bank = prepared.cut()
    present = {case for case, known in prepared.states.items() if known["tumor"] == "present"}
    manifest = read_manifests([bank / "shards" / f"{SHARD}.csv"])
    assert set(manifest["case"]) == present != set()
    index = read_table(bank / "index" / f"{SHARD}.csv", "objects")
    for row in manifest.itertuples():
        number, states = read_contents(Path(row.file))
        assert states == prepared.states[row.case]
        mine = index[index["case"] == row.case]
        assert len(mine) == number
        for place, (tumor_ml, box_ml) in enumerate(zip(mine["tumor_ml"], mine["box_ml"], strict=True)):
            _, ids = read_object(Path(row.file), place)
            assert np.isclose(tumor_ml, (ids == 14).sum() * 12**3 / 1000)
            assert np.isclose(box_ml, ids.size * 12**3 / 1000)

    before = {path: path.stat().st_mtime_ns for path in bank.glob("*.npz")}
    prepared.cut()
    assert {path: path.stat().st_mtime_ns for path in bank.glob("*.npz")} == before

    job = prepared.job(monkeypatch, bank, trainer={"kind": "partial", "cutmix": {}})
    assert job.tumors.folder == bank
    assert job.tumors.keys == dict(zip(manifest["case"], manifest["sha256"], strict=True))
    assert job.fingerprint != prepared.job(monkeypatch, trainer={"kind": "partial", "cutmix": {}}).fingerprint


def test_objects_of_cases_that_a_model_does_not_learn_from_are_not_handed_to_its_training(prepared, monkeypatch):
    bank, present = prepared.cut(), {case for case, known in prepared.states.items() if known["tumor"] == "present"}
    rows = [row | {"sequence": "late"} if row["case"] == min(present) else row for row in prepared.rows]
    monkeypatch.setattr(prepared, "rows", rows)
    monkeypatch.setattr(prepared, "groups", {"late": {"sequence": ["late"]}})
    job = prepared.job(monkeypatch, bank, cases="late", trainer={"kind": "partial", "cutmix": {}})
    assert set(job.tumors.keys) == present & cases(job)
    assert present & cases(job) and present - cases(job)


def test_only_trusted_tumors_of_a_label_set_are_cut(prepared):
    """A label set whose arrays are the truth's, and whose selection refuses the tumor of one case."""
    present = sorted(case for case, known in prepared.states.items() if known["tumor"] == "present")
    rows = []
    for case, known in prepared.states.items():
        states = known | ({"tumor": "unknown"} if case == present[0] else {})
        rows += [
            {"case": case, "class": n, "state": s, "decision": "truth", "criterion": "", "reason": ""}
            for n, s in states.items()
        ]
    write_table(prepared.results / "labels" / "pseudo" / "selected.csv", pd.DataFrame(rows), "selected")
    (prepared.images / "labels" / "pseudo").symlink_to("truth")
    manifest = read_manifests([prepared.cut("pseudo") / "shards" / f"{SHARD}.csv"])
    assert set(manifest["case"]) == set(present[1:])


@pytest.mark.parametrize(("source", "found"), [("truth", False), ("labels", True)])
def test_tumors_that_models_found_are_cut_only_where_the_recipe_says_so(prepared, source, found):
    """A label set whose arrays are the truth's, in one case taken from a model."""
    present = sorted(case for case, known in prepared.states.items() if known["tumor"] == "present")
    survey = prepared.results / "survey" / f"{SHARD}.annotation.csv"
    before = read_table(survey, "annotation")
    guessed = (before["case"] == present[0]) & (before["class"] == "tumor")
    given = before.assign(state=before["state"].mask(guessed, "unknown"))
    prepared.select("guessed", prepared.states, from_table(given))
    write_table(survey, given, "annotation")
    try:
        bank = prepared.cut("guessed", source=source)
    finally:
        write_table(survey, before, "annotation")
    cut = set(read_manifests([bank / "shards" / f"{SHARD}.csv"])["case"])
    assert cut == set(present if found else present[1:])


def test_a_model_of_organs_is_given_label_arrays_without_holes_for_tumors(prepared):
    """A label set that sees the lower half of every case as liver, with a tumor in it and another one in the air."""
    ids = load_classes("flare").ids
    ledger = Ledger(prepared.results / "labels" / "lesions", SHARD)
    for row in prepared.rows[:2]:

        def work(row=row):
            image, path = read(row["image"]), prepared.results / "labels" / "lesions" / f"{row['case']}.nii.gz"
            labels, middle = np.zeros(image.array.shape, np.uint8), image.array.shape[0] // 2
            labels[:middle] = ids["liver"]
            labels[middle // 4 : middle // 2, 20:40, 20:40] = ids["tumor"]
            labels[-middle // 4 :, 20:40, 20:40] = ids["tumor"]
            write(path, labels, image.geometry)
            return path, {}

        ledger.run(row["case"], "key", work)
    ledger.close()
    for kind in ("labels", "organs"):
        prepared.prepare_labels("lesions", kind)
    for row in prepared.rows[:2]:
        files = (prepared.images / kind / "lesions" / f"{row['case']}.b2nd" for kind in ("labels", "organs"))
        before, after = (open_label(file).array[0] for file in files)
        tumor = before == ids["tumor"]
        np.testing.assert_array_equal(after[~tumor], before[~tumor])
        assert set(np.unique(after[tumor])) == {0, ids["liver"]}
        parts = ndimage.label(tumor)[0]
        assert sorted(set(np.unique(after[parts == n])) == {0} for n in (1, 2)) == [False, True]


def test_models_without_tumor_classes_learn_from_arrays_without_holes():
    chain = unroll(load_recipe("coarse_to_fine"))
    kinds = {name: arrays_of(chain, name) for name in chain.models}
    assert kinds == {"coarse": "organs", "tumors_seed1": "labels", "tumors_seed2": "labels", "organs_fine": "organs"}


def test_only_the_cases_asked_for_get_predictions(prepared):
    """A model that sees spleen everywhere, asked about some cases."""
    spleen, organs = load_classes("flare").ids["spleen"], set(load_classes("flare").select("organs"))
    folder = prepared.results / "models" / "m" / "predictions"
    ledger = Ledger(folder, SHARD)
    for row in prepared.rows:

        def work(row=row):
            image, path = read(row["image"]), folder / f"{row['case']}.nii.gz"
            write(path, np.full(image.array.shape, spleen, np.uint8), image.geometry)
            return path, {}

        ledger.run(row["case"], "key", work)
    ledger.close()
    unlabeled = {case for case, known in prepared.states.items() if set(known.values()) == {"unknown"}}
    for asked, expected in (("unlabeled", set(prepared.states)), ("labeled", set(prepared.states) - unlabeled)):
        spec = {"predict": ["m"], "predict_for": [asked], "cases": ["all"], "classes": ["organs"], "clean": []}
        spec |= {"fuse": "truth_first"}
        out = prepared.fuse(asked, spec)
        assert set(read_manifests([out / "shards" / f"{SHARD}.csv"])["case"]) == expected
        table = read_table(out / "provenance" / f"{SHARD}.csv", "provenance").query("step == 'fuse'")
        for case, rows in table.groupby("case"):
            known = {name for name in organs if prepared.states[case][name] != "unknown"}
            said = dict(zip(rows["class"], rows["source"], strict=True))
            silence = "m" if (case in unlabeled) == (asked == "unlabeled") else "none"
            assert said == {name: "truth" if name in known else silence for name in organs}
            if silence == "none" and "spleen" not in known:
                assert not (read(out / f"{case}.nii.gz").array == spleen).any()


def test_without_a_prediction_the_truth_stands_alone_and_provenance_says_so(prepared, caplog):
    """A model whose prediction of every case failed."""

    def fail():
        raise CaseError("modality", "CT", "not known", "Take another model.", common=True)

    ledger = Ledger(prepared.results / "models" / "broken" / "predictions", SHARD)
    for case in prepared.states:
        ledger.run(case, "key", fail)
    ledger.close()
    spec = {"predict": ["broken"], "cases": ["all"], "classes": ["organs"], "clean": [], "fuse": "truth_first"}
    out = prepared.fuse("alone", spec)
    status = dict(read_manifests([out / "shards" / f"{SHARD}.csv"])["status"])
    labeled = {case for case, known in prepared.states.items() if set(known.values()) != {"unknown"}}
    assert status == {case: "done" if case in labeled else "failed" for case in prepared.states}
    assert "the truth stands alone" in caplog.text
    table = read_table(out / "provenance" / f"{SHARD}.csv", "provenance")
    for row in table.to_dict("records"):
        assert row["source"] == ("none" if prepared.states[row["case"]][row["class"]] == "unknown" else "truth")
    truth = {row["case"]: row["label"] for row in prepared.rows if row["case"] in labeled}
    assert all(read(out / f"{case}.nii.gz").geometry == read(label).geometry for case, label in truth.items())


def test_sets_of_classes_may_count_as_absent():
    scheme = load_classes("flare")
    assert selection({"select": {"absent_if_not_found": ["organs"]}}, scheme).absent_if_not_found == scheme.select(
        "organs"
    )


def test_voxels_that_a_data_set_ignores_reach_the_training_as_such(phantom, tmp_path, monkeypatch):
    """Of one case the lower half is ignored: what is seen only there is unknown, and the trainer leaves it out."""
    scheme, table = load_classes("flare"), tmp_path / "cases.csv"
    labels = {**{i: name for name, i in scheme.ids.items()}, 99: "ignore"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own", "modality": "CT", "labels": labels}))
    with phantom.open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["role"] == "train" and row["modality"] == "CT"]
    row = next(row for row in rows if row["label"])
    drawn = read(phantom.parent / row["label"])
    half, array = len(drawn.array) // 2, drawn.array.astype(np.uint8)
    array[:half] = 99
    write(tmp_path / "half.nii.gz", array, drawn.geometry)
    about = {"image": str(phantom.parent / row["image"]), "label": "half.nii.gz", "dataset": str(tmp_path / "own.yaml")}
    with table.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(row))
        writer.writeheader()
        writer.writerow(row | about)
    made = Prepared(tmp_path, table)
    held = set(np.unique(drawn.array[half:]).tolist())
    looked_for = scheme.select(row["annotated"].split(";"))
    assert made.states[row["case"]] == {
        name: "present" if name in looked_for and scheme.ids[name] in held else "unknown" for name in scheme.names
    }
    stored = np.array(open_label(made.images / "labels" / "truth" / f"{row['case']}.b2nd").array[0])
    assert (stored == IGNORED).mean() == pytest.approx(0.5, abs=0.1)
    trainer = TRAINERS["partial"].of(made.job(monkeypatch, trainer="partial"))
    (case,) = trainer.cases["train"]
    assert trainer.channels_of(case.states)[IGNORED] == trainer.ignored == len(trainer.job.classes) + 1
