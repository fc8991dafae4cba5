"""The workflow's script: it hands inputs, outputs and params to the step of a rule, also alone, as in a debugger."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_project import ROOT

from labelloop.steps import MODULE_OF, arguments, handed, step_of
from labelloop.steps.common import SurveyTables

SCRIPT = "workflow/scripts/step.py"
RULES = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))


def test_each_rule_with_a_script_has_a_step_of_its_name_and_nothing_else_is_a_step():
    texts = {text.split(maxsplit=1)[0].rstrip(":"): text for text in re.split(r"\n *rule ", RULES)[1:]}
    steps = {rule for rule, text in texts.items() if "../scripts/step.py" in text}
    assert steps | {"train_slices"} == set(MODULE_OF)  # it is the rule `train` with other outputs
    assert all(step_of(rule) is step_of(f"other_{rule}") for rule in MODULE_OF)


def test_a_step_gets_all_that_it_is_given_and_a_name_means_one_thing():
    def step(tables: SurveyTables, table: Path, version: int, device: str, labels: Path | None = None) -> None: ...

    files = {"cases": ["a.csv"], "geometry": ["b.csv"], "annotation": ["c.csv"], "table": "out.csv", "upright": []}
    rule = SimpleNamespace(rule="step", input=files, output={}, params={"version": 2, "trigger": "x", "number": 3})
    found = arguments(step, handed(rule), {"device": "cpu", "threads": 1})
    tables = SurveyTables([Path("a.csv")], [Path("b.csv")], [Path("c.csv")])
    assert found == {"tables": tables, "table": Path("out.csv"), "version": 2, "device": "cpu"}
    with pytest.raises(TypeError, match="takes no never_read"):
        arguments(step, handed(rule) | {"never_read": Path("d.csv")}, {"device": "cpu"})
    with pytest.raises(TypeError, match="the name 'table' twice"):
        handed(SimpleNamespace(rule="step", input={"table": "a.csv"}, output={"table": "b.csv"}, params={}))


def test_scripts_run_alone_on_the_debugging_session_of_the_demo(copied, tmp_path):
    project = tmp_path / "labelloop"
    for part in ("workflow", "profiles", "config"):
        shutil.copytree(ROOT / part, project / part)
    shutil.copy(ROOT / "Snakefile", project)
    config = json.loads((copied.folder / "config.yaml").read_text())
    config |= {"results": str(copied.results), "recipe": str(copied.folder / "recipe.yaml")}
    (project / "config" / "demo.yaml").write_text(json.dumps(config))
    before, old = copied.contents(), copied.times("labels/pseudo/verdicts/train-000.csv")
    for step in (["check", "labels=pseudo", "shard=train-000"], ["summarize"]):
        done = subprocess.run([sys.executable, project / SCRIPT, *step], cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    assert copied.times("labels/pseudo/verdicts/train-000.csv") != old  # written anew
    assert copied.contents() == before
