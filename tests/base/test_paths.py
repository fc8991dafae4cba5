"""Paths below the results are spelled in one module, and inputs may lie in none of them."""

import inspect
import re
from pathlib import Path

from labelloop.base.paths import WRITTEN, Paths, folder_of, manifest_of, shard_of

ROOT = Path(__file__).parents[2]
TABLES = ("cases", "annotation", "geometry", "quarantine", "groups", "upright")


def test_no_input_may_lie_where_a_rule_writes():
    paths, found = Paths("results"), set()
    for name, method in inspect.getmembers(
        Paths, lambda member: inspect.isfunction(member) or type(member) is property
    ):
        if name.startswith("_") or name in ("table", "lock"):
            continue
        needed = [] if isinstance(method, property) else list(inspect.signature(method).parameters.values())[1:]
        given = ["x" for parameter in needed if parameter.default is inspect.Parameter.empty]
        path = getattr(paths, name) if isinstance(method, property) else getattr(paths, name)(*given)
        found.add(Path(path).parts[1])
    assert found | {Path(paths.table(name)).name for name in TABLES} == set(WRITTEN)


def test_a_manifest_tells_its_folder_and_shard():
    folder = Paths("results").arrays("fine", "labels", "truth")
    manifest = manifest_of(folder, "train-000")
    assert (folder_of(manifest), shard_of(manifest)) == (Path(folder), "train-000")


def test_neither_rules_nor_steps_spell_paths_or_climb_folders():
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    steps = "".join(path.read_text() for path in (ROOT / "src" / "labelloop" / "steps").glob("*.py"))
    script = (ROOT / "workflow" / "scripts" / "step.py").read_text()
    assert not re.findall(r"\.parents?\b", rules + steps + script)
    code = re.sub(r'""".*?"""', "", rules + steps, flags=re.DOTALL)
    folders = [
        name for name in WRITTEN if "." not in name and name not in ("report", "labels", "models", "predictions")
    ]
    assert not re.findall(rf"""["'/]({"|".join(folders)}|shards)/""", code)
