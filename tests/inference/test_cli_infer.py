"""``labelloop infer`` and the container's entry script, from the command line."""

import errno
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from test_prepare import random_volume
from tiny_models import save_model

from labelloop.base.classes import load_classes
from labelloop.base.lookup import find
from labelloop.base.tables import read_table
from labelloop.cli import main as cli
from labelloop.images import volume
from labelloop.images.volume import read, write
from labelloop.inference import infer as module
from labelloop.inference.postprocess import Chain, load_model
from labelloop.inference.settings import Settings
from labelloop.inference.steps import FinishedInference

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def images(tmp_path, rng):
    for name in ("a", "b"):
        volume = random_volume(rng, (8, 10, 12))
        write(tmp_path / "in" / f"{name}_0000.nii.gz", volume.array, volume.geometry)
    return tmp_path / "in"


@pytest.fixture
def one_image(images):
    """A single image of two areas, so that there is little to draw."""
    (images / "b_0000.nii.gz").unlink()
    volume = read(images / "a_0000.nii.gz")
    array = np.where(np.arange(volume.array.shape[1])[:, None] < 5, -1000, 60) + 0 * volume.array
    write(images / "a_0000.nii.gz", array.astype(np.int16), volume.geometry)


@pytest.fixture
def command(images, model_folder, tmp_path):
    """Run the command on the images; return its exit code."""

    def run(*more):
        options = ["infer", images, "--model", model_folder, "--out", tmp_path / "out", "--device", "cpu", *more]
        return cli.main([str(o) for o in options])

    return run


@pytest.mark.usefixtures("one_image")
def test_every_option_at_once(command, tmp_path):
    options = ("--mode", "fast", "--step", 1, "--precision", "fp32", "--max-ram-mb", 4000, "--max-gpu-mb", 4000)
    assert command(*options, "--preview", "--again") == 0
    out = tmp_path / "out"
    found = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and not p.name.startswith("."))
    assert found == ["a.nii.gz", "dataset.json", "efficiency.csv", "previews/a.png", "shards/infer.csv", "summary.csv"]
    assert set(read_table(out / "efficiency.csv", "efficiency")["case"]) == {"a"}


@pytest.mark.usefixtures("one_image")
def test_pictures_of_finished_cases_are_drawn_later(command, tmp_path):
    assert command() == 0
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")}
    assert command("--preview") == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "out" / "previews").iterdir()}
    assert command("--preview", "--again") == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "previews").iterdir()} == drawn
    assert set(drawn) == {"a.png"}


def test_a_device_that_is_not_there_is_told_in_a_line(command, capsys):
    wrong = ["gpu"] if torch.cuda.is_available() else ["gpu", "cuda"]
    for device in wrong:
        assert command("--device", device) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "labelloop: no device 'gpu'; take auto, cpu, cuda, or cuda:1 for the second GPU" in lines
    assert len(wrong) == 1 or any(line.startswith("labelloop: no GPU is usable here") for line in lines)


def test_a_ct_that_is_not_in_hu_is_refused_and_as_mr_it_is_not(command, images, caplog):
    volume = read(images / "a_0000.nii.gz")
    write(images / "a_0000.nii.gz", np.abs(volume.array), volume.geometry)
    assert command() == 1
    assert [r.getMessage().split(" ")[0] for r in caplog.records if "image_not_hu" in r.getMessage()] == ["a"]
    assert command("--modality", "MR") == 0


def test_a_scheme_with_a_wrong_rule_is_refused_before_a_case_is_computed(command, tmp_path, capsys):
    scheme = tmp_path / "mine.yaml"
    scheme.write_text(find("classes", "flare").read_text(encoding="utf-8").replace("muscle_hu", "unlike_hu"))
    assert command("--check", "--classes", scheme) == 2
    assert "unlike_hu is now called muscle_hu. Write that" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_options_reach_the_engine(command, monkeypatch):
    seen = {}
    monkeypatch.setattr(module, "infer", lambda *a, **k: seen.update(k) or 0)
    command("--check", "--series", 2)
    assert (seen["check"], seen["series"], seen["scheme"].name, seen["preview"]) == (True, "2", "flare", False)
    command("--mode", "fast", "--max-ram-mb", 3000)
    assert (seen["settings"].mode, seen["settings"].step) == ("fast", 0.5)
    assert (seen["budget"].max_ram_mb, seen["budget"].max_gpu_mb, seen["resume"]) == (3000, None, True)
    command("--again", "--step", 0.25)
    assert (seen["settings"].mode, seen["settings"].step, seen["resume"]) == ("exact", 0.25, False)


def test_the_chain_of_a_run(images, tmp_path, capsys, monkeypatch):
    """The label maps are those of the chain; what is named on the command line overrides the run's engine."""
    results, scheme = tmp_path / "results", load_classes("flare")
    models = {name: save_model(results / "models" / name, seed=i) for i, name in enumerate("ab")}
    steps = [{"segment": ["a", "b"], "merge": {"tumor": "union"}, "step": 1, "as": "all"}, {"segment": ["b"]},
             {"compose": {"spleen": "b", "liver": "all"}}, {"clean": {"keep_largest": ["liver"]}}]  # fmt: skip
    engine = Settings(gaussian=False)
    FinishedInference(classes=scheme, engine=engine, steps=steps).write(results / "inference.json")
    options = ["infer", images, "--results", results, "--out", tmp_path / "out", "--device", "cpu"]
    assert cli.main([str(o) for o in options]) == 0
    chain = Chain(steps, {n: load_model(folder, "cpu", engine) for n, folder in models.items()}, scheme)
    expected = chain.predict(read(images / "a_0000.nii.gz"), "CT").labels
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.nii.gz").array, expected)
    assert set(np.unique(expected)) <= {0, scheme.ids["liver"], scheme.ids["spleen"]} and expected.any()
    seen = {}
    monkeypatch.setattr(module, "infer", lambda *a, **k: seen.update(k) or 0)
    cli.main([str(o) for o in [*options, "--mode", "fast"]])
    assert (seen["settings"].mode, seen["settings"].gaussian) == ("fast", False)
    (results / "inference.json").unlink()
    assert cli.main([str(o) for o in options]) == 2
    assert "inference.json" in capsys.readouterr().err


def test_exit_codes(command, images, capsys):
    assert command("--step", 1) == 0
    (images / "a_0000.nii.gz").write_bytes(b"cut")
    assert command("--step", 1) == 1
    (images / "b_0000.nii.gz").write_bytes(b"cut")
    assert command("--step", 1) == 2
    for wrong, word in ((("--step", 2), "--step 2"), (("--max-ram-mb", -1), "--max-ram-mb")):
        assert command(*wrong) == 2
        assert word in capsys.readouterr().err


BLOCKED = """
import sys
class Absent:
    def find_spec(self, name, *more):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from labelloop.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_the_packages_of_the_container_suffice(images, model_folder, tmp_path):
    container = re.sub("(?m)^#.*", "", (ROOT / "envs" / "Dockerfile").read_text())
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    left_out = [name for line in wanted if (name := re.match(r"[\w-]+", line)[0]) not in container]
    assert "nnunetv2" in left_out and "torch" not in left_out
    modules = ",".join([*left_out, "PIL", "skimage", "timm", "torchvision"])
    options = ["infer", images, "--model", model_folder, "--out", tmp_path / "out", "--step", "1"]
    done = subprocess.run([sys.executable, "-c", BLOCKED, modules, *options], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("chain", [False, True])
def test_the_containers_entry_script(images, model_folder, tmp_path, chain):
    """Only label maps are left in the output folder; the exit code is that of the command."""
    out = tmp_path / "outputs"
    out.mkdir()
    models = model_folder.parent
    if chain:
        models, steps = models.parent, [{"segment": ["tiny"], "step": 1}, {"compose": {"liver": "tiny"}}]
        FinishedInference(classes=load_classes("flare"), engine=Settings(), steps=steps).write(
            models / "inference.json"
        )
    folders = {"FLARE_INPUTS": images, "FLARE_OUTPUTS": out, "FLARE_MODELS": models}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {k: str(v) for k, v in folders.items()} | {"PATH": path}
    script = ["sh", str(ROOT / "envs" / "predict.sh")]
    assert subprocess.run(script, env=environment, capture_output=True, check=False).returncode == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.nii.gz", "b.nii.gz"]
    assert (np.unique(read(out / "a.nii.gz").array).size > 2) != chain  # the chain keeps one class only
    for wrong in ({"FLARE_MODELS": str(images)}, {"FLARE_OUTPUTS": str(images)}):
        assert subprocess.run(script, env=environment | wrong, capture_output=True, check=False).returncode == 2
    assert sorted(p.name for p in images.iterdir()) == ["a_0000.nii.gz", "b_0000.nii.gz"]


def test_a_full_disk_ends_in_a_line_and_the_same_command_goes_on(command, tmp_path, monkeypatch, capsys):
    opened = Path.open

    def full(path, *args, **kwargs):
        handle = opened(path, *args, **kwargs)
        if path.suffix == ".jsonl" and handle.writable():
            handle.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return handle

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        assert command() == 2
    said = capsys.readouterr().err
    assert "cannot be written: No space left on device. Free some space there" in said and "Traceback" not in said
    assert command() == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz"]


def test_a_label_map_that_the_disk_cut_short_is_not_taken_for_done(command, tmp_path, monkeypatch, capsys):
    """ITK says nothing when the disk is full: the file ends early, and is read as if the rest were 0."""
    written = sitk.WriteImage

    def cut(image, path, **options):
        written(image, path, **options)
        os.truncate(path, Path(path).stat().st_size // 2)

    with monkeypatch.context() as patch:
        patch.setattr(sitk, "WriteImage", cut)
        patch.setattr(volume.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        assert command() == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.nii.gz")) and not list((tmp_path / "out").rglob(".tmp-*"))
    assert command() == 0


WAIT = """
import sys, time
from labelloop.cli.main import main
from labelloop.inference import running
compute = running._compute
def slowly(*arguments):
    print("computing", flush=True)
    time.sleep(0.5)
    return compute(*arguments)
running._compute = slowly
sys.exit(main(sys.argv[1:]))
"""


def test_two_commands_in_one_folder_do_the_work_once(images, model_folder, tmp_path):
    options = ["infer", images, "--model", model_folder, "--out", tmp_path / "out", "--device", "cpu"]
    start = [sys.executable, "-c", WAIT, *map(str, options)]
    first, second = (subprocess.Popen(start, stdout=subprocess.PIPE, text=True) for _ in range(2))
    computed = sorted(process.communicate()[0].count("computing") for process in (first, second))
    assert (first.returncode, second.returncode, computed) == (0, 0, [0, 2])
