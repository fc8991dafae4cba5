"""Many cases: find, read ahead, resume, fail one by one."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_prepare import random_volume
from tiny_dicom import body_hu, write_series
from tiny_models import IDS, save_model, tiny_plan

from labelloop.base.classes import load_classes
from labelloop.base.documents import read_json
from labelloop.base.errors import CaseError, UserError
from labelloop.base.outputs import claim
from labelloop.base.shards import Ledger
from labelloop.base.tables import read_table
from labelloop.images.pictures import CLASSES
from labelloop.images.volume import Geometry, canonical, read, read_geometry, restore, write
from labelloop.inference import infer as infer_module
from labelloop.inference import running as module
from labelloop.inference.engine import Predictor
from labelloop.inference.export import Prediction
from labelloop.inference.find_cases import case_name, find_cases
from labelloop.inference.infer import infer
from labelloop.inference.reading import InputImage
from labelloop.inference.running import Options, efficiency, rows, run_cases
from labelloop.metrics import efficiency as efficiency_module


@pytest.fixture
def folder(tmp_path, rng):
    for i in range(3):
        volume = random_volume(rng, (8, 10 + i, 12))
        write(tmp_path / "in" / f"case_{i}_0000.nii.gz", volume.array, volume.geometry)
    return tmp_path / "in"


@pytest.fixture
def counted(monkeypatch):
    """Names of the cases that were computed."""
    seen = []
    original = module._compute
    monkeypatch.setattr(module, "_compute", lambda item, *a: seen.append(item.case.case) or original(item, *a))
    return seen


def test_folder(folder, model_folder, tmp_path):
    out = tmp_path / "out"
    assert infer(folder, model_folder, out, device="cpu") == 0
    for i in range(3):
        stored = out / f"case_{i}.nii.gz"
        assert read_geometry(stored).difference(read_geometry(folder / f"case_{i}_0000.nii.gz")) is None
        assert set(np.unique(read(stored).array)) <= {0, *IDS.values()}
    summary, efficiency = read_table(out / "summary.csv", "summary"), read_table(out / "efficiency.csv", "efficiency")
    assert list(summary["case"].unique()) == [f"case_{i}" for i in range(3)] and len(summary) == 9
    assert (efficiency["runtime_s"] > 0).all() and (efficiency["peak_ram_mb"] > 10).all()


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_one_file_of_any_format(folder, model_folder, tmp_path, suffix):
    volume = read(folder / "case_0_0000.nii.gz")
    write(tmp_path / f"scan{suffix}", volume.array, volume.geometry)
    assert infer(tmp_path / f"scan{suffix}", model_folder, tmp_path / "out", device="cpu") == 0
    assert read(tmp_path / "out" / "scan.nii.gz").array.shape == volume.array.shape


def test_rerun_does_only_what_is_missing_or_changed(folder, model_folder, tmp_path, counted):
    out = tmp_path / "out"
    infer(folder, model_folder, out, device="cpu")
    first = (out / "summary.csv").read_bytes()
    counted.clear()
    assert infer(folder, model_folder, out, device="cpu") == 0 and counted == []
    (out / "case_1.nii.gz").write_bytes(b"cut")
    assert infer(folder, model_folder, out, device="cpu") == 0 and counted == ["case_1"]
    assert (out / "summary.csv").read_bytes() == first
    counted.clear()
    volume = read(folder / "case_2_0000.nii.gz")
    write(folder / "case_2_0000.nii.gz", volume.array + 1, volume.geometry)
    infer(folder, model_folder, out, device="cpu")
    assert counted == ["case_2"]
    counted.clear()
    infer(folder, model_folder, out, device="cpu", resume=False)
    assert len(counted) == 3
    counted.clear()
    other = save_model(tmp_path / "other", seed=9)
    infer(folder, other, out, device="cpu")
    assert len(counted) == 3


def test_one_bad_case_does_not_stop_the_rest(folder, model_folder, tmp_path):
    (folder / "bad_0000.nii.gz").write_bytes(b"not an image")
    volume = read(folder / "case_1_0000.nii.gz")
    array = volume.array.astype(np.float32)
    array[0, 0, 0] = np.nan
    (folder / "case_1_0000.nii.gz").unlink()
    write(folder / "case_1_0000.nrrd", array, volume.geometry)  # ITK reads NaN in a NIfTI file as 0
    assert infer(folder, model_folder, tmp_path / "out", device="cpu") == 1
    manifest = read_table(tmp_path / "out" / "shards" / "infer.csv", "manifest").set_index("case")
    assert dict(manifest["status"]) == {"bad": "failed", "case_0": "done", "case_1": "failed", "case_2": "done"}
    assert "image_not_finite" in manifest.loc["case_1", "reason"]
    assert not (tmp_path / "out" / "bad.nii.gz").exists()


class Fragile:
    """Labels nothing. Something goes wrong with volumes of so many rows as ``breaks`` says."""

    upright, fingerprint, device = False, "fragile", torch.device("cpu")
    class_ids = MappingProxyType({"liver": 1})

    def __init__(self, breaks):
        self.breaks, self.broke = breaks, []

    def predict(self, volume, modality):
        if error := self.breaks.get(volume.array.shape[1]):
            self.broke.append(str(error))
            raise error
        return Prediction(np.zeros(volume.array.shape, np.uint8), [])


def cases_of(folder):
    return [InputImage(f"case_{i}", folder / f"case_{i}_0000.nii.gz") for i in range(3)]


def test_in_the_workflow_a_full_gpu_fails_the_job_after_all_other_cases(folder, tmp_path, counted):
    out, full = tmp_path / "out", Fragile({10: torch.cuda.OutOfMemoryError("CUDA out of memory")})
    with pytest.raises(UserError, match="case_0: OutOfMemoryError: CUDA out of memory"):
        run_cases(cases_of(folder), full, Ledger(out, "s"))
    assert counted == ["case_0", "case_1", "case_2"] and not (out / "shards" / "s.csv").exists()
    counted.clear()
    run_cases(cases_of(folder), Fragile({}), Ledger(out, "s"))
    assert counted == ["case_0"] and read_table(out / "shards" / "s.csv", "manifest")["status"].eq("done").all()


def test_on_the_command_line_a_full_gpu_fails_one_case_and_a_rerun_tries_it_again(folder, tmp_path, monkeypatch):
    breaks = {10: torch.cuda.OutOfMemoryError("CUDA out of memory")}
    monkeypatch.setattr(infer_module, "_load_models", lambda *_: Fragile(breaks))
    for _ in range(3):
        assert infer(folder, tmp_path, tmp_path / "out") == 1
    breaks.clear()
    assert infer(folder, tmp_path, tmp_path / "out") == 0


def test_a_case_that_costs_the_process_its_gpu_costs_no_other_case(folder, tmp_path, monkeypatch):
    """As an error inside a kernel does: every later call fails, too, until the process ends."""
    out, fragile = tmp_path / "out", Fragile({10: RuntimeError("CUDA error: device-side assert")})
    monkeypatch.setattr(module, "_lost_gpu", lambda device: "".join(fragile.broke))
    with pytest.raises(UserError, match="case_1: NotTriedError: this process lost its GPU"):
        run_cases(cases_of(folder), fragile, Ledger(out, "s"))
    fragile.broke.clear()  # a new process
    run_cases(cases_of(folder), fragile, Ledger(out, "s"))
    manifest = read_table(out / "shards" / "s.csv", "manifest").set_index("case")
    assert dict(manifest["status"]) == {"case_0": "failed", "case_1": "done", "case_2": "done"}


class Noted:
    """A segmenter on the second GPU that notes who begins and finishes, and what of CUDA is called for which GPU."""

    upright, fingerprint, device = False, "noted", torch.device("cuda", 1)

    def __init__(self, monkeypatch):
        self.threads, self.devices = [], []
        for name in ("synchronize", "reset_peak_memory_stats", "max_memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, lambda device=None: self.devices.append(device) or 0)

    def begin(self, volume, modality):
        self.threads.append(threading.current_thread().name)
        if volume.array.shape[1] == 10:
            raise CaseError("image_odd", "case_0", "odd", "Do something.")
        return volume

    def finish(self, begun):
        self.threads.append(threading.current_thread().name)
        return Prediction(np.zeros(begun.array.shape, np.uint8), [])


def test_beside_a_gpu_the_next_image_is_prepared_by_the_thread_that_reads_it(folder, tmp_path, monkeypatch):
    segmenter = Noted(monkeypatch)
    run_cases(cases_of(folder), segmenter, Ledger(tmp_path / "out", "s"))
    assert [name.split("_")[0] for name in sorted(segmenter.threads)] == ["MainThread"] * 2 + ["read"] * 3
    manifest = read_table(tmp_path / "out" / "shards" / "s.csv", "manifest").set_index("case")
    assert dict(manifest["status"]) == {"case_0": "failed", "case_1": "done", "case_2": "done"}
    assert "image_odd" in manifest.loc["case_0", "reason"]


def test_only_the_gpu_of_the_models_is_asked_and_measured(folder, tmp_path, monkeypatch):
    segmenter, metered = Noted(monkeypatch), []
    monkeypatch.setattr(efficiency_module.Gpu, "of_torch", lambda number: metered.append(number) or Broken())
    run_cases(cases_of(folder), segmenter, Ledger(tmp_path / "out", "s"), Options(meter=True))
    assert set(segmenter.devices) == {torch.device("cuda", 1)} and metered == [1, 1]
    costs = efficiency(Ledger(tmp_path / "out", "s"))
    run_cases(cases_of(folder), segmenter, Ledger(tmp_path / "unmetered", "s"))
    assert metered == [1, 1] and all(row["area_gpu_mb_s"] is None for row in costs)


class Broken(efficiency_module.Gpu):
    """A GPU that cannot be looked at."""

    def __init__(self):
        super().__init__(None, 0)

    def used_mb(self):
        raise RuntimeError("NVML: not supported")


def test_a_meter_that_cannot_be_made_costs_no_case(folder, tmp_path, monkeypatch):
    def of_torch(number):
        raise RuntimeError("NVML: no such GPU")

    monkeypatch.setattr(efficiency_module.Gpu, "of_torch", of_torch)
    run_cases(cases_of(folder), Noted(monkeypatch), Ledger(tmp_path / "out", "s"), Options(meter=True))
    assert read_table(tmp_path / "out" / "shards" / "s.csv", "manifest")["status"].eq("done").sum() == 2


def test_a_run_on_the_cpu_touches_no_gpu(folder, model_folder, tmp_path, monkeypatch):
    """Seen: it made a context on the first GPU, without a lease."""

    def touched(*_, **__):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("_lazy_init", "synchronize", "reset_peak_memory_stats", "max_memory_allocated", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, touched)
    assert infer(folder, model_folder, tmp_path / "out", device="cpu", meter=True) == 0


def test_an_interruption_forgets_no_finished_case(folder, tmp_path, counted):
    run_cases(cases_of(folder), Fragile({}), Ledger(tmp_path / "out", "s"))
    (tmp_path / "out" / "case_0.nii.gz").unlink()
    with pytest.raises(KeyboardInterrupt):
        run_cases(cases_of(folder), Fragile({10: KeyboardInterrupt()}), Ledger(tmp_path / "out", "s"))
    counted.clear()
    run_cases(cases_of(folder), Fragile({}), Ledger(tmp_path / "out", "s"))
    assert counted == ["case_0"]


def test_nothing_usable(tmp_path, model_folder):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"no")
    assert infer(tmp_path / "in", model_folder, tmp_path / "out", device="cpu") == 2
    with pytest.raises(UserError, match="no image"):
        find_cases(model_folder)
    with pytest.raises(UserError, match="no such file"):
        find_cases(tmp_path / "nowhere")


@pytest.mark.slow
def test_kill_keeps_what_is_finished(folder, model_folder, tmp_path, counted):
    """A process is killed after its first case; the rerun leaves that case alone."""
    out = tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path; from labelloop.inference import running as m\n"
        "from labelloop.inference.infer import infer\n"
        "real = m._compute\n"
        "def slow(item, *a):\n"
        "    if item.case.case != 'case_0': time.sleep(600)\n"
        "    return real(item, *a)\n"
        "m._compute = slow\n"
        "infer(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), device='cpu')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, folder, model_folder, out])
    journal = out / "shards" / ".infer.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.read_text().count("\n")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = (out / "case_0.nii.gz").stat().st_mtime_ns
    assert sorted(p.name for p in out.glob("*.nii.gz")) == ["case_0.nii.gz"]
    assert infer(folder, model_folder, out, device="cpu") == 0
    assert counted == ["case_1", "case_2"]
    assert (out / "case_0.nii.gz").stat().st_mtime_ns == before


def test_cases_of_a_shard(folder, model_folder, tmp_path, counted):
    predictor = Predictor(model_folder, "cpu")
    cases = [InputImage(f"p{i}", folder / f"case_{i}_0000.nii.gz", "CT", f"hash {i}") for i in range(2)]
    for _ in range(2):
        ledger = Ledger(tmp_path / "out", "train-000")
        run_cases(cases, predictor, ledger)
        found = rows(ledger)
        assert set(found[0]) == {"case", "class", "volume_ml", "confidence"} and len(found) == 6
    assert counted == ["p0", "p1"]
    assert read_table(tmp_path / "out" / "shards" / "train-000.csv", "manifest")["status"].eq("done").all()


class Upper:
    """Labels the upper half of what it is shown; wants its patients upright."""

    upright, fingerprint, device = True, "upper", torch.device("cpu")

    def predict(self, volume, modality):
        half = np.zeros(canonical(volume).array.shape, np.uint8)
        half[len(half) // 2 :] = 1
        return Prediction(restore(half, volume.geometry), [])


@pytest.mark.parametrize(
    ("told", "sequence", "found"), [(True, "", True), (False, "t1w", False), (None, "t1w", None), (None, "dwi", False)]
)
def test_a_patient_stored_upside_down_is_labeled_upright_in_the_order_of_the_file(tmp_path, told, sequence, found):
    """None: found out by itself; diffusion-weighted images cannot tell."""
    z, y, x = np.ogrid[:24, :32, :40]
    body = np.where(((y - 16) / 13) ** 2 + ((x - 20) / 17) ** 2 < 1, 100, 0) + 0 * z
    body[(((y - 16) / 7) ** 2 + ((abs(x - 20) - 8) / 4) ** 2 < 1) & (z > 16)] = 1  # lungs, at the upper end
    grid = Geometry((40, 32, 24), (8.0, 8.0, 8.0))  # z goes up
    for name, array in (("good", body), ("wrong", body[::-1])):
        write(tmp_path / f"{name}.nii.gz", array.astype(np.int16), grid)
        case = InputImage(name, tmp_path / f"{name}.nii.gz", "MR", upside_down=told, sequence=sequence)
        run_cases([case], Upper(), Ledger(tmp_path / f"{name}_{told}", "s"))
        labels = read(tmp_path / f"{name}_{told}" / f"{name}.nii.gz")
        assert labels.geometry.difference(grid) is None
        turned = name == "wrong" if found is None else found
        assert bool(labels.array[0].any()) == turned and bool(labels.array[-1].any()) != turned


def test_several_models(folder, tmp_path):
    models = [save_model(tmp_path / n, seed=i) for i, n in enumerate("ab")]
    assert infer(folder / "case_0_0000.nii.gz", models, tmp_path / "out", device="cpu") == 0
    steps = [{"segment": ["x", "y"]}, {"clean": {"keep_largest": ["liver"]}}]
    named = dict(zip("xy", models, strict=True))
    assert infer(folder / "case_0_0000.nii.gz", named, tmp_path / "chain", steps=steps, device="cpu") == 0
    assert len(pd.read_csv(tmp_path / "chain" / "summary.csv")) == 3
    with pytest.raises(UserError, match="different names"):
        infer(folder, [models[0], models[0]], tmp_path / "out")


def test_names_of_cases(folder):
    assert [c.case for c in find_cases(folder)] == ["case_0", "case_1", "case_2"]
    label = read(folder / "case_0_0000.nii.gz")
    write(folder / "case_0.nii.gz", label.array, label.geometry)  # the label beside its image
    assert [c.image.name for c in find_cases(folder)] == [f"case_{i}_0000.nii.gz" for i in range(3)]
    write(folder / "case_0_0000.nrrd", label.array, label.geometry)
    with pytest.raises(UserError, match="keep one"):
        find_cases(folder)
    assert case_name(folder / "FLARE_12_0000.NII.GZ") == "FLARE_12"


def test_a_dicom_series_becomes_a_label_map(tmp_path, model_folder):
    write_series(tmp_path / "dicom" / "patient" / "series", body_hu())
    assert infer(tmp_path / "dicom", model_folder, tmp_path / "out", device="cpu") == 0
    assert read(tmp_path / "out" / "patient_series.nii.gz").array.shape == body_hu().shape
    write_series(tmp_path / "dicom" / "other", body_hu()[:2])
    assert infer(tmp_path / "dicom", model_folder, tmp_path / "out", device="cpu") == 1  # the rest is done


# --------------------------------------------------------------------------------------- what is there is not destroyed


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def plain(folder):
    """The images under the names that most converters give them: those of label maps."""
    for i in range(3):
        (folder / f"case_{i}_0000.nii.gz").rename(folder / f"case_{i}.nii.gz")
    return folder


@pytest.mark.parametrize("out", ["in", "link", "in/../in"])
@pytest.mark.parametrize("given", ["in", "in/case_0.nii.gz", "link"])
def test_images_are_not_written_over(plain, tmp_path, model_folder, given, out):
    (tmp_path / "link").symlink_to(plain)
    before = contents(plain)
    with pytest.raises(UserError, match="holds the inputs"):
        infer(tmp_path / given, model_folder, tmp_path / out, device="cpu")
    assert contents(plain) == before


def test_files_that_others_wrote_are_not_written_over(folder, tmp_path, model_folder):
    for name in ("case_1.nii.gz", "summary.csv"):
        out = tmp_path / f"out of {name}"
        out.mkdir()
        (out / name).write_bytes(b"theirs")
        with pytest.raises(UserError, match=rf"{name}: exists, and labelloop did not write it"):
            infer(folder, model_folder, out, device="cpu")
        assert contents(out) == {name: b"theirs"}


def test_own_files_are_written_anew_also_after_other_cases_and_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(infer_module, "_load_models", lambda *_: Fragile({}))
    out = tmp_path / "out"
    for number in (0, 1, 0):
        assert infer(folder / f"case_{number}_0000.nii.gz", tmp_path, out) == 0
    assert infer(folder, tmp_path, out, resume=False) == 0
    for name in ("shards/.infer.names", "dataset.json"):
        (out / name).unlink()  # as an older version left it
    assert infer(folder, tmp_path, out) == 0


# --------------------------------------------------------------------------------- what is there is of one label map


class Liver:
    """Finds a liver of some ml; no spleen."""

    upright, fingerprint, device = False, "liver", torch.device("cpu")
    class_ids = MappingProxyType({"liver": 1, "spleen": 3})

    def predict(self, volume, modality):
        labels = np.zeros(volume.array.shape, np.uint8)
        labels[2:6, 2:6, 2:6] = self.class_ids["liver"]
        rows = [{"class": name, "volume_ml": ml, "confidence": 1.0} for name, ml in (("liver", 1.0), ("spleen", 0.0))]
        return Prediction(labels, rows)


class Swapped(Liver):
    """Finds the same, in ids that mean other organs in the class scheme."""

    fingerprint, class_ids = "swapped", MappingProxyType({"spleen": 1, "liver": 3})


class Failing(Liver):
    """Finds the same, but cannot use the first case."""

    def __init__(self, fingerprint):
        self.fingerprint = fingerprint

    def predict(self, volume, modality):
        if volume.array.shape[1] == 10:
            raise CaseError("odd", "case_0", "odd", "Do something.")
        return super().predict(volume, modality)


@pytest.fixture
def segmented(folder, tmp_path, monkeypatch):
    """Segment by a segmenter, into one output folder; return the exit code."""

    def run(segmenter, images=folder, **options):
        monkeypatch.setattr(infer_module, "_load_models", lambda *_: segmenter)
        return infer(images, tmp_path, tmp_path / "out", scheme=load_classes("flare"), **options)

    return run


def files_of(case, out):
    """Return what lies in an output folder of a case, and the verdicts, which judge all cases."""
    found = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    return {str(path) for path in found if case in str(path) or path.name == "verdicts.csv"}


ALL_FILES = {
    "case_0.nii.gz", "dicom_seg/case_0.dcm", "masks/case_0/segmentations/liver.nii.gz",
    "masks/case_0/segmentations/spleen.nii.gz", "previews/case_0.png", "verdicts.csv",
}  # fmt: skip


@pytest.fixture
def everything(segmented, folder, tmp_path):
    """The output folder of a first model, with all that can be made of a label map."""
    out = tmp_path / "out"
    assert segmented(Liver(), folder / "case_0_0000.nii.gz", masks=True, preview=True, check=True) == 0
    claim(out, ["dicom_seg/case_0.dcm"])
    (out / "dicom_seg").mkdir()
    (out / "dicom_seg" / "case_0.dcm").touch()
    (out / "masks" / "case_0" / "notes.txt").touch()
    assert files_of("case_0", out) == ALL_FILES | {"masks/case_0/notes.txt"}
    return out


@pytest.mark.parametrize("between", [False, True], ids=["at once", "after other images"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_case_that_fails_leaves_nothing_of_an_earlier_model(everything, segmented, folder, resume, between):
    if between:
        assert segmented(Liver(), folder / "case_1_0000.nii.gz") == 0
    assert segmented(Failing("another"), resume=resume) == 1
    assert files_of("case_0", everything) == {"masks/case_0/notes.txt"}
    assert (everything / "case_1.nii.gz").is_file()


def test_a_case_that_is_to_be_made_anew_in_vain_keeps_all_it_has(everything, segmented):
    before = {path: path.read_bytes() for path in everything.rglob("*case_0*") if path.is_file()}
    assert segmented(Failing(Liver.fingerprint), resume=False) == 1
    assert {path: path.read_bytes() for path in before} == before and "odd" in (
        everything / "shards/infer.csv"
    ).read_text()
    assert files_of("case_0", everything) == ALL_FILES | {"masks/case_0/notes.txt"}


def test_verdicts_on_other_images_stay(segmented, folder, tmp_path):
    assert segmented(Liver(), folder / "case_0_0000.nii.gz", check=True) == 0
    assert segmented(Liver(), folder / "case_1_0000.nii.gz") == 0
    assert set(read_table(tmp_path / "out" / "verdicts.csv", "verdicts")["case"]) == {"case_0"}


def test_a_case_that_is_made_anew_keeps_nothing_of_an_earlier_model(everything, segmented):
    assert segmented(Liver(), preview=True) == 0
    assert files_of("case_0", everything) >= ALL_FILES - {"verdicts.csv"}  # the same label map
    assert segmented(Swapped()) == 0
    assert files_of("case_0", everything) == {"case_0.nii.gz", "masks/case_0/notes.txt"}


@pytest.mark.parametrize("resume", [True, False])
def test_label_maps_of_other_images_keep_the_meaning_of_their_ids(segmented, folder, tmp_path, resume, counted):
    first, second, out = folder / "case_0_0000.nii.gz", folder / "case_1_0000.nii.gz", tmp_path / "out"
    assert segmented(Liver(), first) == segmented(Liver(), second) == 0
    before = contents(out)
    with pytest.raises(
        UserError, match=r"dataset.json.*1 label map of other images \(case_0.nii.gz\).*1 liver, 3 spleen"
    ):
        segmented(Swapped(), second, resume=resume)
    assert contents(out) == before
    counted.clear()
    assert segmented(Liver(), second) == 0 and counted == []  # what was refused has cost nothing
    assert segmented(Swapped(), folder) == 0
    assert read_json(out / "dataset.json")["labels"] == {"background": 0, "spleen": 1, "liver": 3}


class Beside:
    """Writes a file beside each label map, but for one case."""

    def __init__(self, out):
        self.out = out

    def lacks(self, case):
        return not (self.out / f"{case.case}.txt").is_file()

    def write(self, case, labels):
        if case.case == "case_0":
            raise CaseError("odd", case.case, "odd", "Do something.")
        (self.out / f"{case.case}.txt").write_text(str(labels.array.max()))


@pytest.mark.parametrize("finished", [False, True])
def test_what_cannot_be_made_of_a_label_map_is_told_and_the_label_map_stays(folder, tmp_path, finished, caplog):
    caplog.set_level("INFO")
    out = tmp_path / "out"
    if finished:
        run_cases(cases_of(folder), Liver(), Ledger(out, "s"))
    run_cases(cases_of(folder), Liver(), Ledger(out, "s"), Options(beside=[Beside(out)]))
    manifest = read_table(out / "shards" / "s.csv", "manifest").set_index("case")
    assert set(manifest["status"]) == {"done"}
    assert "odd. Do something." in manifest.loc["case_0", "reason"] and "odd. Do something." in caplog.text
    told = "0 computed, 0 set aside, 3 finished before" if finished else "3 computed, 0 set aside, 0 finished before"
    assert any(told in line for line in caplog.messages)
    maps, beside = {f"case_{i}.nii.gz" for i in range(3)}, {"case_1.txt", "case_2.txt"}
    assert {path.name for path in out.iterdir() if path.is_file()} == maps | beside
    run_cases(cases_of(folder), Liver(), Ledger(out, "s"))  # the label map alone
    assert read_table(out / "shards" / "s.csv", "manifest")["reason"].eq("").all()


# ------------------------------------------------------------------------------------------------- what was found


def test_classes_that_were_found_nowhere_are_named(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(infer_module, "_load_models", lambda *_: Liver())
    for _ in range(2):  # computed, and finished before
        caplog.clear()
        assert infer(folder, tmp_path, tmp_path / "out") == 0
        assert "found in no case: spleen (1 of 2 classes)" in caplog.messages


def test_label_maps_are_held_against_the_rules_of_anatomy(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(infer_module, "_load_models", lambda *_: Liver())
    out, scheme = tmp_path / "out", load_classes("flare")
    assert infer(folder, tmp_path, out) == 0 and not (out / "verdicts.csv").exists()
    assert infer(folder, tmp_path, out, check=True, scheme=scheme) == 0  # of finished cases, too
    verdicts = read_table(out / "verdicts.csv", "verdicts")
    assert verdicts["case"].nunique() == 3
    failed = {(row["class"], row["rule"]) for _, row in verdicts.iterrows() if row["verdict"] == "fail"}
    assert {("liver", "flat_end"), ("spleen", "volume")} <= failed  # a spleen that the model knows and did not find
    assert sum("case_1: spleen, volume: 0.0 ml" in line for line in caplog.messages) == 1
    with pytest.raises(UserError, match="class scheme"):
        infer(folder, tmp_path, out, check=True)


def test_verdicts_and_previews_go_by_the_names_of_classes_whatever_their_ids(folder, tmp_path, monkeypatch):
    found = {}
    for segmenter in (Liver(), Swapped()):
        monkeypatch.setattr(infer_module, "_load_models", lambda *_, made=segmenter: made)
        out, scheme = tmp_path / segmenter.fingerprint, load_classes("flare")
        assert infer(folder / "case_0_0000.nii.gz", tmp_path, out, check=True, preview=True, scheme=scheme) == 0
        files = ("verdicts.csv", "previews/case_0.png")
        found[segmenter.fingerprint] = [(out / file).read_bytes() for file in files]
    assert found["swapped"] == found["liver"]
    assert set(np.unique(read(tmp_path / "swapped" / "case_0.nii.gz").array)) == {0, 3}  # label maps keep theirs


def test_classes_that_the_scheme_lacks_are_not_drawn_as_others(folder, tmp_path, caplog):
    stranger = save_model(tmp_path / "stranger", classes=("mesh", "liver"), ids={"mesh": 3, "liver": 1})
    own = {"scheme": load_classes("flare"), "device": "cpu", "preview": True}
    assert infer(folder / "case_0_0000.nii.gz", stranger, tmp_path / "out", **own) == 0
    assert "--preview: classes flare lack mesh, so these are not drawn" in caplog.messages
    with Image.open(tmp_path / "out" / "previews" / "case_0.png") as picture:
        assert "spleen" not in picture.text[CLASSES].split(";")


def test_rules_of_other_classes_are_refused_before_anything_is_computed(folder, tmp_path, model_folder, counted):
    lungs = "{name: lungs, classes: [{name: lung, id: 1, tolerance_mm: 3, color: '#4fc3f7'}]}"
    (tmp_path / "lungs.yaml").write_text(lungs)
    with pytest.raises(UserError, match="classes lungs lack liver, spleen, tumor"):
        infer(folder, model_folder, tmp_path / "out", check=True, scheme=load_classes(tmp_path / "lungs.yaml"))
    assert counted == []


@pytest.mark.parametrize(("bad", "words"), [(0, "3 cases: 3 computed, 0 set aside"), (1, "1 case: 0 computed, 1 set")])
def test_cases_are_counted_in_plain_words(folder, tmp_path, monkeypatch, caplog, bad, words):
    monkeypatch.setattr(
        infer_module, "_load_models", lambda *_: Fragile({10: CaseError("odd", "x", "y", "z")} if bad else {})
    )
    with caplog.at_level("INFO"):
        infer(folder / "case_0_0000.nii.gz" if bad else folder, tmp_path, tmp_path / "out")
    assert any(line.startswith(words) for line in caplog.messages)


def test_inputs_that_cannot_be_read_are_a_failure(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(infer_module, "_load_models", lambda *_: Fragile({}))
    (folder / "gone_0000.nii.gz").symlink_to("/annex/gone.nii.gz")
    assert infer(folder, tmp_path, tmp_path / "out") == 1
    assert any("dead link" in line and "gone_0000.nii.gz" in line for line in caplog.messages)
    assert read_table(tmp_path / "out" / "shards" / "infer.csv", "manifest")["status"].eq("done").all()


def test_a_case_without_all_channels_fails_alone_and_a_folder_of_such_cases_is_refused(tmp_path, model_folder, rng):
    two, images = save_model(tmp_path / "two", tiny_plan(channels=("T1", "T2"))), tmp_path / "in"
    volume = random_volume(rng)
    for name in ("a_0000", "a_0001", "b_0000"):
        write(images / f"{name}.nii.gz", volume.array, volume.geometry)
    assert infer(images, two, tmp_path / "out", device="cpu", modality="MR") == 1
    failed = pd.read_csv(tmp_path / "out" / "shards" / "infer.csv").set_index("case")
    assert failed["status"].to_dict() == {"a": "done", "b": "failed"}
    assert "an image of 1 channel, and the model takes 2 channels (T1, T2)" in failed["reason"]["b"]
    with pytest.raises(UserError, match=r"takes images of 2 channels \(T1, T2\), and a has 1 file"):
        infer(images / "a_0000.nii.gz", two, tmp_path / "one", device="cpu", modality="MR")
    (images / "b_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=r"takes images of 1 channel, and a has 2 files.*rename the files"):
        infer(images, model_folder, tmp_path / "other", device="cpu", modality="MR")


def test_channels_on_two_grids_fail_as_one_case_of_a_model_of_two_channels(tmp_path, rng):
    two, images = save_model(tmp_path / "two", tiny_plan(channels=("T1", "T2"))), tmp_path / "in"
    for channel, shape in enumerate(((16, 16, 16), (16, 16, 12))):
        volume = random_volume(rng, shape)
        write(images / f"p_{channel:04d}.nii.gz", volume.array, volume.geometry)
    assert infer(images, two, tmp_path / "out", device="cpu", modality="MR") == 2
    failed = pd.read_csv(tmp_path / "out" / "shards" / "infer.csv").set_index("case")
    assert list(failed.index) == ["p"] and "first channel (p_0000.nii.gz): size (12, 16, 16)" in failed["reason"]["p"]
