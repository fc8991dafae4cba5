"""Models that are not trained here, when a run starts: all that keeps them from labeling is told at once."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from tiny_nnunet import NAME, configuration, save_nnunet

from labelloop.base.errors import UserError
from labelloop.inference.nnunet import described_nnunet
from labelloop.run.run import Run

ROWS = [
    "case,image,label,dataset,annotated,role",
    *(f"a{n},a{n}.nii.gz,a{n}_label.nii.gz,btcv,all,train" for n in range(3)),
    *(f"b{n},b{n}.nii.gz,b{n}_label.nii.gz,flare22,all,train" for n in range(3)),
    *(f"c{n},c{n}.nii.gz,,amos,,train" for n in range(3)),
    "t0,t0.nii.gz,t0_label.nii.gz,btcv,all,test",
]
LABELS = {"background": 0, "Leber": 1, "Milz": 2, "Rest": 3}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a case table, a model of nnU-Net's, and a data set file for its ids."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cases.csv").write_text("\n".join(ROWS) + "\n")
    save_nnunet(tmp_path, labels=LABELS)
    labels = {1: "liver", 2: "spleen", 3: None}
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump({"name": "zoo", "modality": "CT", "labels": labels}))
    return tmp_path


def run(external, **changes) -> Run:
    """Return the run of a recipe like `default` whose label set is made by the teacher and an external model."""
    labels = {"pseudo": {"predict": ["teacher", *external]}}
    recipe = {"extends": "default", "external": external, "labels": labels} | changes
    Path("own.yaml").write_text(json.dumps(recipe))
    return Run(
        {"cases": "cases.csv", "recipe": "own.yaml", "results": str(Path("results").absolute()), "device": "cpu"}
    )


def zoo(**changes):
    return {"nnunet": "Dataset001_Tiny", "dataset": "zoo.yaml"} | changes


def command(**changes):
    python = sys.executable
    given = {"command": f"{python} {{image}} {{output}}", "version": f"{python} --version", "dataset": "flare22"}
    return given | changes


def test_what_is_not_there_is_told_at_once_with_key_and_place(place):
    (place / "other.yaml").write_text("{name: other, modality: CT, labels: {1: liver}}")
    save_nnunet(place / "slices", configuration(patch_size=[16, 16]), labels=LABELS)
    external = {
        "gone": zoo(nnunet="nowhere"),
        "no_fold": zoo(folds=[3]),
        "slices": zoo(nnunet="slices"),
        "strange": zoo(dataset="other.yaml"),
        "useless": zoo(classes=["pancreas", "liver"]),
        "no_program": command(command="no_such_tool {image} {output}"),
        "no_version": command(version=f"{sys.executable} -c 'import sys; sys.exit(3)'"),
        "no_files": {"files": "made/{case}.nii.gz", "dataset": "flare22"},
    }
    (place / "zoo.yaml").write_text("{name: zoo, modality: CT, labels: {1: liver, 2: spleen, 3: null, 4: pancreas}}")
    found = run(external).problems()
    expected = {
        "gone.nnunet: nowhere: no such file or folder",
        "no_fold.nnunet: Dataset001_Tiny: found no fold_3",
        "slices.nnunet: slices: 3d_fullres segments slices (2d)",
        "strange.dataset: data set other.yaml does not say what the model's 2 Milz, 3 Rest are",
        "no_program.command: no program 'no_such_tool' on the PATH",
        "no_version.version: ",
        "no_files.files: none of 9 cases has such a file, e.g. made/",
    }
    assert len(found) == len(expected)
    for line in expected:
        assert any(problem.startswith(f"recipe own: external.{line}") for problem in found), (line, found)


def test_a_model_is_useless_when_none_of_its_classes_counts(place):
    (place / "zoo.yaml").write_text("{name: zoo, modality: CT, labels: {1: null, 2: spleen, 3: null, 4: liver}}")
    assert run({"zoo": zoo()}).chain.classes_of("zoo") == ("spleen",)  # no output of the model is a liver
    assert any("external.zoo.classes: none" in line for line in run({"zoo": zoo(classes="liver")}).problems())


def test_a_zip_says_what_its_folder_says(place):
    with zipfile.ZipFile("model.zip", "w") as archive:
        for file in sorted((place / "Dataset001_Tiny").rglob("*.*")):
            archive.write(file, file.relative_to(place))
    folder, packed = described_nnunet("Dataset001_Tiny", ["0"]), described_nnunet("model.zip", ["0"])
    assert folder.class_ids == packed.class_ids == {"Leber": 1, "Milz": 2, "Rest": 3}
    assert [file.name for file in packed.files] == ["model.zip"]
    assert [file.name for file in folder.files] == ["plans.json", "dataset.json", "checkpoint_final.pth"]
    with pytest.raises(UserError, match=r"model\.zip: found no fold_1"):
        described_nnunet("model.zip", ["1"])
    assert run({"zoo": zoo(nnunet="model.zip")}).problems() == []


def test_models_that_are_not_used_are_not_asked_for(place):
    ours = {"pseudo": {"predict": ["teacher", "teacher_b"]}}
    assert run({"gone": zoo(nnunet="nowhere")}, labels=ours).problems() == []


def test_what_the_run_would_write_over_is_no_model(place):
    own = place / "results" / "models" / "made"
    own.mkdir(parents=True)
    (own / "a0.nii.gz").touch()
    found = run({"made": {"files": f"{own}/{{case}}.nii.gz", "dataset": "flare22"}}).problems()
    assert len(found) == 1 and "would write over its inputs" in found[0]


def test_another_version_or_another_file_is_noticed(place):
    (place / "version").write_text("1")
    external = {"tool": command(version="cat version"), "zoo": zoo()}
    first = run(external).external
    assert first.version("tool") == "1"
    before, meaning = first.stamps("zoo"), first.meaning("zoo")
    shutil.copy(place / "zoo.yaml", place / "Dataset001_Tiny" / NAME / "fold_0" / "checkpoint_final.pth")
    assert first.stamps("zoo") != before
    (place / "zoo.yaml").write_text("{name: zoo, modality: CT, labels: {1: spleen, 2: liver, 3: null}}")
    assert run(external).external.meaning("zoo") != meaning


def test_cases_without_a_file_and_test_cases_that_a_model_may_know_are_told(place):
    (place / "made").mkdir()
    for case in ("a0", "a1", "b0", "c0"):
        (place / "made" / f"{case}.nii.gz").touch()
    made = {"files": "made/{case}.nii.gz", "dataset": "flare22"}
    assert list(run({"made": made}).external.notes()) == [
        "external.made: no file for 5 of 9 cases, of which it says nothing; first: a2"
    ]
    (place / "made" / "a2.nii.gz").symlink_to("nowhere")
    assert list(run({"made": made}).external.notes()) == [
        "external.made: dead links or folders in the place of 1 label map, which will be set aside: made/a2.nii.gz",
        "external.made: no file for 4 of 9 cases, of which it says nothing; first: b1",
    ]
    [line] = [line for line in run({"made": made | {"learned_from": "btcv"}}).external.notes() if "test case" in line]
    assert line.startswith("external.made: may have learned from 1 test case (btcv)")


def test_names_of_a_model_that_contradict_its_data_set_are_told(place):
    """As where somebody names the data set of another model: its ids are all valid."""
    save_nnunet(place / "named", labels={"background": 0, "liver": 1, "kidney_left": 2, "Rest": 3})
    [line] = run({"zoo": zoo(nnunet="named", learned_from=[])}).external.notes()
    assert line == (
        "external.zoo.dataset: contradicts the names in the model's dataset.json, and counts: 2 is kidney_left, and "
        "spleen in data set zoo"
    )
    assert list(run({"zoo": zoo(learned_from=[])}).external.notes()) == []  # words that no scheme has say nothing


def test_a_promise_is_not_made_by_cases_that_a_model_may_have_seen(place):
    """Of each data set some patients are held out by the teacher: those of `learned_from` do not count."""
    promise = {"predict": ["teacher", "zoo"], "select": {"target_dsc": 0.9, "min_pairwise_dice": None}}

    def promised(*learned_from: str) -> list[str]:
        found = run({"zoo": zoo(learned_from=list(learned_from))}, labels={"pseudo": promise})
        return [line for line in found.problems() if "target_dsc" in line]

    assert not promised()
    assert promised("btcv", "flare22")
    assert run({"zoo": zoo(learned_from=["btcv"])}).external.learned_from("pseudo") == ["btcv"]


def test_licenses_of_all_that_a_student_learned_from_reach_it(place):
    (place / "config" / "datasets").mkdir(parents=True)
    (place / "config" / "datasets" / "btcv.yaml").write_text(
        "{name: btcv, modality: CT, license: terms of Synapse, labels: {6: liver, 1: spleen}}"
    )
    found = run({"zoo": zoo(license="Apache-2.0")})
    datasets = {"amos": "", "btcv": "terms of Synapse", "flare22": ""}
    assert found.licenses("student") == {"datasets": datasets, "models": {"zoo": "Apache-2.0"}}
    assert found.licenses("teacher")["models"] == {}


def starting(**changes) -> Run:
    """Return a run whose student starts from the model of nnU-Net's, which labels nothing."""
    models = {"student": {"init_from": "zoo", "validation_fraction": 0.5}}
    ours = {"pseudo": {"predict": ["teacher", "teacher_b"]}, "later": {"predict": ["student", "teacher"]}}
    models["last"] = {"like": "student", "init_from": "student", "labels": "later"}
    plans = {"fine": {"like": "zoo"}}
    return run({"zoo": zoo(license="MIT", **changes)}, labels=ours, models=models, plans=plans, inference=LAST)


LAST = [{"segment": "last"}]


def test_what_descends_from_a_model_has_seen_what_that_saw(place):
    found = starting(learned_from=["btcv"])
    assert found.external.names == ["zoo"] and found.problems() == []
    assert [found.external.seen_before(name) for name in ("student", "last", "teacher")] == [["btcv"], ["btcv"], []]
    assert (found.external.learned_from("later"), found.external.learned_from("pseudo")) == (["btcv"], [])
    assert found.licenses("last")["models"] == {"zoo": "MIT"} != found.licenses("teacher")["models"]
    assert found.updates()["final"] == 0  # nobody knows how many are behind the first weights
    assert any("external.zoo: may have learned from 1 test case" in note for note in found.external.notes())


def test_patients_that_the_first_weights_know_validate_nothing(place):
    for learned_from, seen in ((["btcv"], True), ([], False)):
        held_out = starting(learned_from=learned_from)._expected.split("last").validation
        assert held_out and seen != any(case.startswith("a") for case in held_out)


def test_the_classes_of_the_first_weights_go_by_the_data_set_file(place):
    found = starting(classes=["liver"])
    assert found.external.start_names("student") == {"Leber": "liver"}
    assert found.external.start_names("last") is found.external.start_names("teacher") is None


def test_images_that_a_plan_takes_for_another_modality_are_told_before_they_are_prepared(place):
    plan = {"like": "zoo", "normalization": {"kind": "zscore"}}
    assert not any("plans.fine" in line for line in starting().warnings())
    [line] = [line for line in run({"zoo": zoo()}, plans={"fine": plan}).warnings() if "plans.fine" in line]
    assert line.startswith("plans.fine: normalizes every image by its own mean") and line.endswith("images of CT")
