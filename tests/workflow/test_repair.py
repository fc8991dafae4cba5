"""What was altered in the results is found and made anew; to look changes nothing, and two runs do not meet."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_project import PLAN, ROOT, Collection, Project

from labelloop.base.locks import hold

MANIFEST = "results/prepared/fine/labels/truth/shards/train-000.csv"
IMAGES = "results/prepared/fine/shards/train-000.csv"
ENDS = ["results/groups.csv", MANIFEST]
RECIPE = {"extends": "default", "plans": {"fine": PLAN}}
ROW = re.compile(r"^(\w+) +(\d+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, collection: Collection) -> Project:
    """A run up to groups and prepared labels of a few cases."""
    folder = tmp_path_factory.mktemp("repaired") / "project"
    project = Project.new(folder, Path("cases.csv"), RECIPE)
    rows = ["case,image,label,dataset,role"]
    for row in list(collection.phantom.values())[:4]:
        rows.append(f"{row['case']},{row['image']},{row['label']},{row['dataset']},train")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    project.snakemake("--cores", "2", *ENDS)
    return project


@pytest.fixture
def project(prepared: Project, tmp_path: Path) -> Iterator[Project]:
    """The run, to change: afterwards all is put back, as Snakemake's notes hold absolute paths."""
    subprocess.run(["cp", "-a", prepared.folder, tmp_path / "kept"], check=True)
    yield prepared
    shutil.rmtree(prepared.results)
    subprocess.run(["cp", "-a", f"{tmp_path / 'kept'}/.", prepared.folder], check=True)


def state(project: Project) -> dict[str, tuple[bytes, int]]:
    files = [file for file in project.results.rglob("*") if file.is_file()]
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def damage(project: Project) -> list[str]:
    """Do damage of each kind: a manifest cut short, an image altered, another one gone. Return what is to be told."""
    manifest = project.folder / MANIFEST
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    altered, gone = sorted(project.results.glob("prepared/fine/*.b2nd"))[:2]
    altered.write_bytes(b"altered")
    gone.unlink()
    names = [f"{MANIFEST}: shards/train-000.csv altered", f"{IMAGES}: {altered.name} altered and 1 more"]
    return [f"{name}; made anew" for name in names]


def start(project: Project, *arguments: str) -> subprocess.CompletedProcess:
    command = project.command(*arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def planned(text: str) -> dict[str, int]:
    return {rule: int(count) for rule, count in ROW.findall(text) if rule != "total"}


QUESTIONS = {
    "dry run": ["--dry-run", "--quiet", "host", "--cores", "1", *ENDS],
    "lint": ["--lint"],
    "dag": ["--dag", "dot", *ENDS],
    "report": ["--report", "../report.html", *ENDS],
    "summary": ["--summary", *ENDS],
    "unlock": ["--unlock"],
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_changes_nothing_but_tells_what_is_damaged(project, question):
    told = damage(project)
    before = state(project)
    asked = start(project, *QUESTIONS[question])
    assert asked.returncode == 0, asked.stderr
    assert all(line in asked.stdout + asked.stderr for line in told)
    assert state(project) == before
    if question == "dry run":
        assert planned(asked.stdout) == {"prepare": 1, "prepare_labels": 1}


def test_what_was_damaged_is_made_anew(project):
    whole = state(project)
    told = damage(project)
    done = start(project, "--cores", "2", *ENDS)
    assert done.returncode == 0, done.stderr
    assert all(line in done.stderr for line in told)
    after = state(project)
    made = [name for name in whole if name.endswith(".b2nd") or name.endswith(MANIFEST)]
    assert {name: after[name][0] for name in made} == {name: whole[name][0] for name in made}
    assert planned(start(project, "--dry-run", "--quiet", "host", "--cores", "1", *ENDS).stdout) == {}


def test_a_second_run_is_refused_before_it_deletes_anything(project):
    damage(project)
    lock = hold(project.results / ".lock", "the first run", wait=False)
    before = state(project)
    second = start(project, "--cores", "1", *ENDS)
    lock.release()
    assert second.returncode == 1 and "another run, process" in second.stderr and "Traceback" not in second.stderr
    assert state(project) == before


def test_results_that_were_copied_without_their_dates_are_not_broken(project, tmp_path):
    shutil.move(project.results, tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", project.results, copy_function=shutil.copy)
    assert "made anew" not in project_output(start(project, "--dry-run", "--cores", "1", *ENDS))


def project_output(done: subprocess.CompletedProcess) -> str:
    return done.stdout + done.stderr
