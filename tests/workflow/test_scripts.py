"""Workflow scripts: thin, one a rule, and runnable alone, as in a debugger."""

import json
import shutil
import subprocess
import sys

import pytest
from tiny_project import ROOT

SCRIPTS = sorted((ROOT / "workflow" / "scripts").glob("*.py"))
RULES = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
LONGEST = 32


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_is_thin_and_belongs_to_a_rule(script):
    rule = script.stem.removesuffix("_classes")  # a script called select.py would hide the standard library's select
    assert len(script.read_text().splitlines()) <= LONGEST
    assert f'"../scripts/{script.name}"' in RULES
    assert f"rule {rule}:" in RULES
    assert f'job(globals(), "{rule}"' in script.read_text()


def test_scripts_run_alone_on_the_debugging_session_of_the_demo(copied, tmp_path):
    project = tmp_path / "labelloop"
    for part in ("workflow", "profiles", "config"):
        shutil.copytree(ROOT / part, project / part)
    shutil.copy(ROOT / "Snakefile", project)
    config = json.loads((copied.folder / "config.yaml").read_text())
    config |= {"results": str(copied.results), "recipe": str(copied.folder / "recipe.yaml")}
    (project / "config" / "demo.yaml").write_text(json.dumps(config))
    before, old = copied.contents(), copied.times("labels/pseudo/verdicts/train-000.csv")
    for name in ("check.py", "summarize.py"):
        script = project / "workflow" / "scripts" / name
        done = subprocess.run([sys.executable, script], cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    assert copied.times("labels/pseudo/verdicts/train-000.csv") != old  # written anew
    assert copied.contents() == before
