"""The wheel is a product: built, installed and run from an empty folder, without a checkout."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import yaml

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
TRAINER = {"epochs": 1, "iterations_per_epoch": 1, "validation_iterations": 1}
RECIPE = {
    "extends": "default",
    "plans": {"fine": {"spacing_mm": [12, 12, 12], "patch": [16, 16, 24], "features": [4, 8]}},
    "models": {"teacher": {"trainer": TRAINER}, "student": {"trainer": TRAINER}},
    "labels": {"pseudo": {"predict": ["teacher"], "select": {"min_pairwise_dice": None}}},
    "evaluate": {"models": []},
}
"""One teacher, one update a model: the loop in few jobs."""
HELP = """
import contextlib, io, sys
import labelloop
from labelloop.cli.main import main
print(labelloop.__file__)
for words in [line.split() for line in sys.argv[1:]]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main([*words, "--help"])
    assert " ".join(["Usage: labelloop", *words]) in said.getvalue(), words
"""


@pytest.fixture(scope="module")
def brought() -> tuple[str, ...]:
    """Files and folders at the root that setup.py puts into the wheel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **_: None)
        return runpy.run_path(str(ROOT / "setup.py"))["BROUGHT"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory, brought) -> Path:
    """Folder into which the wheel was installed, alone."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in (*brought, "src", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)  # setuptools leaves its folders beside the sources
    subprocess.run(
        [*PIP, "wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(source)], check=True
    )
    wheel = next(source.glob("*.whl"))
    subprocess.run([*PIP, "install", str(wheel), "--no-deps", "--no-index", "--target", str(out)], check=True)
    return out


@pytest.fixture(scope="module")
def shell(installed, tmp_path_factory):
    """Return what runs a command in one empty folder with the installed package, and returns what it printed."""
    folder = tmp_path_factory.mktemp("empty folder")

    def run(*command: str, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": str(installed)}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout[-6000:]
        return done.stdout

    run.folder, run.labelloop = folder, str(installed / "bin" / "labelloop")
    return run


def contents(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if "__pycache__" not in file.parts}


def test_the_wheel_holds_what_the_root_holds(installed, brought):
    for name in brought:
        file, packed = ROOT / name, installed / "labelloop" / "project" / name
        if file.is_file():
            assert packed.read_bytes() == file.read_bytes()
        else:
            assert contents(packed) == contents(file)


def test_the_wheel_holds_the_pages(installed):
    for folder in ("report", "review/page"):
        packed, source = installed / "labelloop" / folder, ROOT / "src" / "labelloop" / folder
        assert contents(packed) == contents(source) and (packed / next(iter(contents(source)))).is_file()


def test_every_command_can_be_asked_for_help(shell, installed):
    commands = re.search(r"Commands (.*)", shell(shell.labelloop, "--help"), re.DOTALL)[1]
    names = re.findall(r"^\W (\w+) +[A-Z]", commands, re.MULTILINE)
    assert {"run", "init", "recipe", "infer", "classes"} <= set(names)
    said = shell(sys.executable, "-c", HELP, *names, *(f"recipe {a}" for a in ("list", "copy", "check", "cost")))
    assert Path(said.strip()) == installed / "labelloop" / "__init__.py"


def test_the_loop_runs_to_its_end_in_an_empty_folder(shell, installed):
    before = contents(installed)
    shell(shell.labelloop, "init", ".")
    shell(shell.labelloop, "phantom", "scans", "--cases", "8")
    recipes = shell.folder / "config" / "recipes"
    recipes.mkdir()
    (recipes / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    assert "tiny " in shell(shell.labelloop, "recipe", "list")
    where = ("--cases", "scans/cases.csv", "--recipe", "tiny", "--results", "my results")
    run = (shell.labelloop, "run", *where, "--config", "device=cpu", "workers=0", "review=1", "--cores", "1")
    dry = shell(*run, "-n", "--", "--quiet", "rules")
    assert "recipe 'tiny': config/recipes/tiny.yaml of this folder is used" in dry
    assert not (shell.folder / "my results").exists()
    shell(*run)
    results = shell.folder / "my results"
    assert (results / "report" / "index.html").is_file() and (results / "models" / "student" / "weights.pt").is_file()
    assert len(list((results / "predictions").glob("*.nii.gz"))) == 2
    assert contents(installed) == before, "nothing is written beside site-packages"
    assert "needs a checkout" in shell(shell.labelloop, "schema", code=2)


@pytest.mark.parametrize("container", ["Dockerfile", "workflow.Dockerfile"])
def test_the_containers_build_the_wheel_from_all_that_it_holds(container, brought):
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", (ROOT / "envs" / container).read_text(), re.MULTILINE)
    assert {*brought, "src", "setup.py", "pyproject.toml"} <= {name for line in copied for name in line.split()}
