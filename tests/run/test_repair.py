"""What of a run's results is broken, as the rules spell it; to look changes nothing and imports nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

from labelloop.base.seals import put_seal_of_files
from labelloop.base.shards import Ledger
from labelloop.run.repair import Repair
from labelloop.run.run import Run


@pytest.fixture(params=["results", "./results", "my results/"])
def run(tmp_path, monkeypatch, request) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("cases.csv").write_text("case,image,label,dataset,role\na,a.nii.gz,a_label.nii.gz,flare22,train\n")
    return Run({"cases": "cases.csv", "results": request.param})


def finish(folder: Path, name: str = "train-000") -> Path:
    def work():
        (folder / "a.nii.gz").write_text("content")
        return folder / "a.nii.gz", {}

    ledger = Ledger(folder, name)
    ledger.run("a", "key", work)
    ledger.close()
    return ledger.manifest


FOLDERS = ["prepared/{plan}", "prepared/{plan}/labels/truth", "prepared/{plan}/labels/pseudo", "labels/pseudo",
           "models/teacher/predictions", "models/student/predictions", "predictions"]  # fmt: skip


def test_every_kind_of_manifest_is_looked_at(run):
    plan = run.wiring.images("teacher")
    manifests = [finish(Path(run.results) / folder.format(plan=plan)) for folder in FOLDERS]
    assert Repair(run).broken == {}
    for manifest in manifests:
        (manifest.parents[1] / "a.nii.gz").write_text("altered")
    names = [f"{run.results}/{folder.format(plan=plan)}/shards/train-000.csv" for folder in FOLDERS]
    assert Repair(run).broken == dict.fromkeys(names, "a.nii.gz altered")
    assert all(manifest.is_file() for manifest in manifests)


def test_manifests_of_shards_that_are_no_more_are_not_looked_at(run):
    manifest = finish(Path(run.results) / "predictions", "train-005")
    (manifest.parents[1] / "a.nii.gz").write_text("altered")
    assert Repair(run).broken == {}


def test_models_and_review_queues_are_looked_at(run):
    model, queue = Path(run.results, "models/teacher"), Path(run.results, "review/pseudo.csv")
    for file in (model / "model.json", model / "weights.pt", queue, queue.parent / "pseudo" / "1.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("content")
    put_seal_of_files(model / "model.json", model, ["model.json", "weights.pt"])
    put_seal_of_files(queue, queue.parent, ["pseudo.csv", "pseudo/1.png"])
    assert Repair(run).broken == {}
    (model / "weights.pt").write_text("altered")
    (queue.parent / "pseudo" / "1.png").unlink()
    assert Repair(run).broken == {
        f"{run.results}/models/teacher/weights.pt": "weights.pt altered",
        f"{run.results}/review/pseudo.csv": "pseudo/1.png gone",
    }


def test_to_look_imports_nothing_heavy(run):
    finish(Path(run.results) / "predictions")
    code = """
import sys
from labelloop.run.repair import Repair
from labelloop.run.run import Run
Repair(Run({"cases": "cases.csv", "results": sys.argv[1]}))
print([m for m in ("SimpleITK", "torch", "pandas", "nibabel", "scipy") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code, run.results], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
