"""A memory budget is kept, and changes nothing but the memory."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from test_prepare import random_volume
from tiny_models import save_model, tiny_plan

from labelloop.base.errors import CaseError, UserError
from labelloop.base.tables import read_table
from labelloop.images.volume import Geometry, write
from labelloop.inference import engine
from labelloop.inference.budget import PROGRAM_MB, SMALLEST_SLAB, Budget, Choice, Held, Sizes, choices, gpu_mb, ram_mb
from labelloop.inference.engine import Predictor
from labelloop.inference.infer import infer
from labelloop.inference.settings import Settings
from labelloop.networks.plans import Plan

PLAN = Plan(spacing_mm=(2.5, 1.5, 1.5), patch=(48, 128, 160), features=(16, 32, 64, 128, 256))
LARGE = Sizes(512 * 512 * 1000, 2, (400, 273, 273), 15, PLAN)  # 0.8 x 0.8 x 1 mm


def test_a_large_scan_fits_24_gib_and_far_less():
    choice = choices(LARGE, Budget(max_ram_mb=24 * 1024), gpu=False, batch=1)[0]
    assert ram_mb(LARGE, choice, gpu=False) < 6 * 1024
    on_gpu = choices(LARGE, Budget(max_gpu_mb=4096), gpu=True, batch=8)[0]
    assert gpu_mb(LARGE, on_gpu) <= 4096 and on_gpu.on_gpu


@pytest.mark.parametrize("gpu", [False, True])
def test_a_tighter_budget_never_takes_more(gpu):
    needs = []
    for limit in (None, 20000, 8000, 6000, 5000, 4000, 3500, 3000, 2000, 1500, 1200, 1000, 900):
        budget = Budget(max_gpu_mb=limit) if gpu else Budget(max_ram_mb=limit)
        need = gpu_mb if gpu else lambda s, c: ram_mb(s, c, gpu=False)
        try:
            choice = choices(LARGE, budget, gpu, batch=16)[0]
        except CaseError as error:
            assert "at the smallest setting" in str(error) and f"{limit}" in str(error)
            break
        assert limit is None or need(LARGE, choice) <= limit
        needs.append(need(LARGE, choice))
    else:
        pytest.fail("no budget was too small")
    assert needs == sorted(needs, reverse=True) and needs[-1] < 0.6 * needs[0]


def test_sums_leave_the_gpu_before_the_window_batch_is_given_up_altogether():
    smallest = choices(LARGE, Budget(max_gpu_mb=1400), gpu=True, batch=8)[0]
    assert not smallest.on_gpu
    assert choices(LARGE, Budget(), gpu=True, batch=8)[0].batch == 8


def test_ensembles_need_all_logits():
    choice, all_mb = choices(LARGE, Budget(), gpu=False, batch=1)[0], 15 * 400 * 273 * 273 * 4 / 2**20
    needs = [ram_mb(replace(LARGE, held=Held(held)), choice, False) for held in range(3)]
    assert needs[1] - needs[0] >= all_mb and needs[2] - needs[1] >= all_mb  # the sum, and those of a model


def test_of_what_is_free_on_the_gpu_the_sum_of_logits_is_not_asked_for_twice(model_folder, rng, monkeypatch):
    predictor = Predictor(model_folder, "cpu")
    frame = predictor.prepare(random_volume(rng), "CT").frame
    asked = []
    monkeypatch.setattr(engine, "free_mb", lambda device: 1000.0)
    monkeypatch.setattr(engine, "choices", lambda *arguments: asked.append(arguments[-1]))
    for there in (0, 4 << 20):
        predictor.choices(frame, held=Held(2, gpu_bytes=there))
    assert asked == [1000.0, 1004.0]


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_is_positive(limit):
    with pytest.raises(UserError, match="above 0"):
        Budget(max_ram_mb=limit)


def test_a_small_budget_gives_the_same_labels(model_folder, rng, caplog):
    volume = random_volume(rng, (30, 50, 50))
    free = Predictor(model_folder, "cpu", Settings(window_batch=4))
    frame = free.prepare(volume, "CT").frame
    large = free.choices(frame)[0]
    sizes = Sizes(volume.array.size, 2, frame.shape, 4, free.plan)
    limit = ram_mb(sizes, type(large)(1, False, SMALLEST_SLAB), gpu=False) + 0.01
    assert limit < ram_mb(sizes, large, gpu=False)
    tight = Predictor(model_folder, "cpu", Settings(window_batch=4), Budget(max_ram_mb=limit))
    with caplog.at_level("INFO"):
        result = tight.predict(volume, "CT")
    assert "memory budget: 1 windows at a time" in caplog.text
    assert (result.labels == free.predict(volume, "CT").labels).mean() > 0.999  # batches round differently
    assert tight.fingerprint == free.fingerprint


def test_a_case_that_cannot_fit_is_set_aside(model_folder, tmp_path, rng):
    for name, shape in (("small", (8, 9, 10)), ("large", (200, 200, 200))):
        volume = random_volume(rng, (8, 9, 10))
        array = np.full(shape, -1000, volume.array.dtype)
        array[:8, :9, :10] = volume.array
        geometry = type(volume.geometry)(shape[::-1], volume.geometry.spacing)
        write(tmp_path / "in" / f"{name}_0000.nii.gz", array, geometry)
    assert (
        infer(tmp_path / "in", model_folder, tmp_path / "out", device="cpu", budget=Budget(max_ram_mb=PROGRAM_MB + 15))
        == 1
    )
    manifest = read_table(tmp_path / "out" / "shards" / "infer.csv", "manifest").set_index("case")
    assert dict(manifest["status"]) == {"small": "done", "large": "failed"}
    assert "smallest setting" in manifest.loc["large", "reason"]


MEASURE = """
import re, sys; from pathlib import Path
import labelloop.inference.engine, scipy.ndimage
from labelloop.inference.budget import Budget
from labelloop.inference.infer import infer
from labelloop.inference.settings import Settings
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
image, out, *models = map(Path, sys.argv[2:])
assert infer(image, models, out, device="cpu", settings=Settings(step=1), budget=Budget(float(sys.argv[1]))) == 0
print(before, peak())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_a_process_keeps_its_budget(tmp_path, number):
    """128 x 128 x 1000 voxels at the smallest setting: the peak of a process of its own against the estimate."""
    plan = tiny_plan(patch=(32, 64, 64))
    models = [save_model(tmp_path / f"model_{seed}", plan, seed=seed) for seed in range(number)]
    shape, spacing = (1000, 128, 128), (1.5, 1.5, 1.0)
    array = (np.arange(np.prod(shape), dtype=np.int64) % 977 - 500).astype(np.int16).reshape(shape)
    image = tmp_path / "long_0000.nii.gz"
    write(image, array, Geometry(shape[::-1], spacing))
    sizes = Sizes(array.size, 2, (400, 128, 128), 4, plan, Held(0 if number == 1 else 2))
    limit = ram_mb(sizes, Choice(1, False, SMALLEST_SLAB), gpu=False) + 0.1
    command = [sys.executable, "-c", MEASURE, str(limit), image, tmp_path / "out", *models]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, peak = map(float, done.stdout.split())
    larger = max(0, before - 680)  # of a torch that is larger than the one that was measured
    assert peak <= limit + larger
    assert limit - PROGRAM_MB <= 3 * (peak - before), "the estimate of what a case adds is needlessly large"
