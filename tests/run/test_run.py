"""A run: what its configuration may say, its shards, its lock, and files that are no longer what was made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from labelloop.base.errors import UserError
from labelloop.base.outputs import refuse_inputs_among
from labelloop.base.paths import WRITTEN
from labelloop.base.tables import TABLES, write_table
from labelloop.cases.groups import Group, memberships
from labelloop.review.decisions import Decision, append
from labelloop.run.claim import claim
from labelloop.run.config import load_config
from labelloop.run.run import Run

CONFIG = Path(__file__).parents[2] / "config"
HEADER = "case,image,label,dataset,role,annotated"


def make(tmp_path: Path, *rows: str, **config) -> Run:
    table = tmp_path / "cases.csv"
    table.write_text("\n".join([HEADER, *rows]) + "\n")
    return Run({"cases": str(table), "results": str(tmp_path / "results/")} | config)


def rows(count: int, role: str = "train") -> list[str]:
    return [f"{role}_{i},{role}_{i}.nii.gz,,flare22,{role}," for i in range(count)]


@pytest.mark.parametrize("file", sorted(CONFIG.glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_configuration_is_valid(file):
    load_config(yaml.safe_load(file.read_text()))


def test_all_errors_of_a_configuration_are_told_at_once():
    with pytest.raises(UserError) as error:
        load_config({"cases": "cases.csv", "recipee": "default", "shard_size": 0, "device": "gpu"})
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert "config: recipee: unknown key; did you mean 'recipe'?" in lines
    assert any("shard_size" in line and "found 0" in line for line in lines)
    assert any("device" in line and "'gpu'" in line for line in lines)


OF_DATA_SETS = ["a,a.nii.gz,,own.yaml,train,", "b,b.nii.gz,,own.yaml,test,", "c,c.nii.gz,,flare22,train,"]
ALSO_OTHERS = [*OF_DATA_SETS, "d,d.nii.gz,,deeper/other.yaml,train,"]


def of_groups(tmp_path: Path, groups: dict, table: str | Path = "cases.csv") -> tuple[Run, dict[str, set[str]]]:
    """Return the run of a table with data set files of one's own, and the cases of each group of its recipe."""
    (tmp_path / "deeper").mkdir(exist_ok=True)
    for name, file in (("ours", "own.yaml"), ("theirs", "deeper/other.yaml")):
        (tmp_path / file).write_text(f"{{name: {name}, modality: CT, labels: {{1: liver}}}}")
    (tmp_path / "cases.csv").write_text("\n".join([HEADER, *ALSO_OTHERS]) + "\n")
    (tmp_path / "mine.yaml").write_text(json.dumps({"extends": "default", "groups": groups}))
    run = Run({"cases": str(table), "recipe": str(tmp_path / "mine.yaml"), "results": str(tmp_path / "results")})
    own = {name: Group.model_validate(group) for name, group in run.wiring.groups().items()}
    cases = {case.case: case for case in run.cases}
    found = memberships({case: {} for case in cases}, cases, run.scheme, own)
    return run, {name: {case for case, names in found.items() if name in names} for name in groups}


@pytest.mark.parametrize("table", ["cases.csv", "./cases.csv", "deeper/../cases.csv", "whole"])
def test_data_sets_of_groups_are_meant_by_name_or_file_however_the_table_is_named(tmp_path, monkeypatch, table):
    monkeypatch.chdir(tmp_path)
    asked = {
        "by_name": {"dataset": "ours"},
        "by_file": {"dataset": "./own.yaml"},
        "several": {"dataset": ["flare22", "ours", str(tmp_path / "deeper" / "other.yaml")]},
        "others": {"not_in": "by_name"},
    }
    run, found = of_groups(tmp_path, asked, tmp_path / "cases.csv" if table == "whole" else table)
    assert found == {"by_name": {"a", "b"}, "by_file": {"a", "b"}, "several": set("abcd"), "others": {"c", "d"}}
    assert not [line for line in run.problems() if "no case is of data set" in line]
    whole, _ = of_groups(tmp_path, asked, tmp_path / "cases.csv")
    assert whole.shards.rows("train-000") == run.shards.rows("train-000")  # no job runs again
    assert whole.wiring.groups() == run.wiring.groups()


def test_data_sets_of_groups_that_no_case_is_of_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, found = of_groups(tmp_path, {"mine": {"dataset": ["our", "flare22"]}, "none": {"dataset": "btcv"}})
    assert found == {"mine": {"c"}, "none": set()}
    told = [line for line in run.problems() if "no case is of data set" in line]
    assert [line.partition("groups.")[2] for line in told] == [
        "mine.dataset: no case is of data set 'our'; did you mean 'ours'?",
        "none.dataset: no case is of data set 'btcv'; known: flare22, ours, theirs",
    ]


def test_a_run_without_usable_case_says_why(tmp_path):
    with pytest.raises(UserError, match=r"no usable case\n  a: dataset_unknown: .*flare99"):
        make(tmp_path, "a,a.nii.gz,,flare99,train,")


def test_decisions_lie_beside_the_results_and_are_those_of_all_rounds(tmp_path):
    one = make(tmp_path, *rows(5), "x,x.nii.gz,x_label.nii.gz,flare22,train,liver", shard_size=4)
    folder = one.reviews("pseudo").folder
    assert folder == tmp_path / "results-reviews" / "pseudo"
    assert {tuple(one.reviewed("pseudo", shard)) for shard in one.shards.train} == {()}
    append(folder, [Decision("ann", case, "liver", "wrong") for case in ("x", "nobody")])
    rounds = make(tmp_path, *rows(5), "x,x.nii.gz,x_label.nii.gz,flare22,train,liver", shard_size=4, rounds=2)
    touched = [shard for shard in rounds.shards.train if rounds.reviewed("pseudo_round1", shard)]
    assert touched == [shard for shard in rounds.shards.train if "x" in {c.case for c in rounds.shards.cases[shard]}]
    [told] = rounds.unused_decisions()
    assert told.startswith(f"{folder / 'decisions.csv'}: row 3: case 'nobody'")
    made = [dict.fromkeys(TABLES["reviewed"], "") | {"case": "x", "class": "liver"}]
    write_table(Path(rounds.paths.label_table("reviewed", "pseudo_round1")), made, "reviewed")
    folder.rename(tmp_path / "moved")
    [told] = make(tmp_path, *rows(5), rounds=2).unused_decisions()
    assert told.startswith(f"{folder / 'decisions.csv'}: not there, though label maps were made from 1 decision of it")
    elsewhere = make(tmp_path, *rows(5), reviews=str(tmp_path / "mine"))
    assert elsewhere.reviews("pseudo").folder == tmp_path / "mine" / "pseudo"
    with pytest.raises(UserError, match="models"):
        make(tmp_path, *rows(5), reviews=str(tmp_path / "results" / "models"))


def test_final_label_maps_are_for_test_cases_or_else_for_all(tmp_path):
    both = make(tmp_path, *rows(5), *rows(2, "test"), shard_size=4)
    assert both.shards.test == both.shards.final == ["test-000"]
    assert both.shards.train == ["train-000", "train-001"]
    assert both.evaluated() == ["teacher", "final"]
    alone = make(tmp_path, *rows(5), shard_size=4)
    assert alone.shards.final == alone.shards.train and alone.evaluated() == []
    everything = make(tmp_path, *rows(5), *rows(2, "test"), shard_size=4, infer_roles=["train", "test"])
    assert everything.shards.final == ["test-000", "train-000", "train-001"]


def test_what_every_job_starts_with_imports_nothing_heavy(tmp_path):
    make(tmp_path, *rows(1))
    code = f"""
import sys
from labelloop.run.run import Run
Run({{"cases": {str(tmp_path / "cases.csv")!r}}})
print([m for m in ("SimpleITK", "torch", "pandas", "nibabel", "scipy", "cc3d", "edt") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_steps_that_run_often_import_neither_torch_nor_statistics():
    steps = ", ".join(f"labelloop.steps.{module}" for module in ("labels", "arrays", "held_out"))
    code = f"import sys, {steps}; print([m for m in ('torch', 'scipy.stats', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rounds_of_the_configuration_win(tmp_path):
    run = make(tmp_path, *rows(1), rounds=2)
    assert run.recipe.rounds == 2
    assert (
        run.wiring.model("student").labels == "pseudo" and run.wiring.model("student_round1").labels == "pseudo_round1"
    )
    assert run.wiring.inference_models == ["student"] and run.wiring.leading_model_before("pseudo") == ["teacher"]


@pytest.mark.parametrize(("recipe", "tumor"), [("ct_to_mr_demo", False), ("two_stage_demo", True), ("default", True)])
def test_final_label_maps_are_scored_on_classes_that_they_can_hold(tmp_path, recipe, tumor):
    run = make(tmp_path, "a,a.nii.gz,a_label.nii.gz,flare22,train,all", recipe=recipe)
    known = run.scheme.select(run.wiring.classes("final"))
    assert ("tumor" in known) is tumor and set(run.scheme.select(("organs",))) <= set(known)


def test_models_that_only_locate_are_trained_and_loaded_too(tmp_path):
    two_stage, coarse_to_fine = (make(tmp_path, *rows(1), recipe=name) for name in ("two_stage", "coarse_to_fine"))
    assert two_stage.wiring.inference_models == ["abdomen", "student"]
    assert (two_stage.wiring.slice_classifiers, coarse_to_fine.wiring.slice_classifiers) == (["abdomen"], [])
    assert {"abdomen", "organs_small", "teacher", "student"} == set(two_stage.wiring.used_models)
    assert coarse_to_fine.wiring.inference_models == ["coarse", "tumors_seed1", "tumors_seed2", "organs_fine"]
    assert "abdomen" not in {model for model, _ in two_stage.predictions()}


def test_only_one_run_at_a_time_works_in_a_results_folder(tmp_path):
    first, second = (make(tmp_path, *rows(1)) for _ in range(2))
    claim(first)
    with pytest.raises(UserError, match=f"another run, process {os.getpid()} on .*, works here"):
        claim(second)
    claim(make(tmp_path, *rows(1), results=str(tmp_path / "elsewhere")))


def test_a_killed_run_leaves_nothing_to_unlock(tmp_path):
    run = make(tmp_path, *rows(1))
    claim_and_die = f"""
import os, signal
from labelloop.run.claim import claim
from labelloop.run.run import Run
run = Run({{"cases": {run.config.cases!r}, "results": {run.results!r}}})
claim(run)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", claim_and_die]).returncode == -9
    assert (Path(run.results) / ".lock").read_text() != ""
    claim(run)


@pytest.mark.parametrize("results", ["my {sample} results", "a/{x}", "", "/"])
def test_results_that_snakemake_would_misread_are_refused(results):
    with pytest.raises(UserError, match=r"config: results: .*must not be empty or hold braces"):
        load_config({"cases": "cases.csv", "results": results})


def test_results_that_are_a_file_or_a_dead_link_are_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    for name in ("file", "dead"):
        with pytest.raises(UserError, match=r"config: results: .*choose a folder"):
            load_config({"cases": "cases.csv", "results": str(tmp_path / name)})


def test_results_that_cannot_be_made_are_told_in_a_line(tmp_path):
    (tmp_path / "file").touch()
    run = make(tmp_path, *rows(1), results=str(tmp_path / "file" / "results"))
    with pytest.raises(UserError, match=r"results.*: cannot be written: .*type the same command again"):
        claim(run)


def test_a_run_does_not_write_over_its_inputs(tmp_path):
    """Seen: a case table in the results folder; label maps of the results, corrected by hand and named as labels."""
    for inside in ("cases.csv", "labels/pseudo/a.nii.gz", "predictions/a.nii.gz"):
        results = tmp_path / "results"
        table = results / "cases.csv" if inside == "cases.csv" else tmp_path / "cases.csv"
        (tmp_path / "link").unlink(missing_ok=True)
        table.parent.mkdir(exist_ok=True)
        (tmp_path / "link").symlink_to(results)
        label = "" if inside == "cases.csv" else f"{tmp_path}/link/{inside}"
        table.write_text(f"{HEADER}\na,a.nii.gz,{label},flare22,train,\n")
        with pytest.raises(UserError, match=rf"would write over its inputs: .*{Path(inside).name}"):
            Run({"cases": str(table), "results": str(results)})
    make(tmp_path, *(row.replace(",train_0.nii.gz", f",{tmp_path}/results/phantom/x.nii.gz") for row in rows(2)))


def test_final_label_maps_are_checked_where_the_recipe_says_so(tmp_path):
    (tmp_path / "own.yaml").write_text("extends: default\nname: own\nevaluate: {check: true}\n")
    assert make(tmp_path, *rows(5), *rows(2, "test"), recipe=str(tmp_path / "own.yaml")).checked_shards() == [
        "test-000"
    ]
    assert make(tmp_path, *rows(5), *rows(2, "test")).checked_shards() == []


@pytest.mark.parametrize("file", sorted(CONFIG.glob("*.yaml")), ids=lambda file: file.name)
def test_a_shipped_configuration_writes_over_none_of_its_inputs(file):
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    refuse_inputs_among(Path(config["results"]), WRITTEN, [config["cases"]])
