"""A GPU whose memory does not suffice: what fits is chosen, and what does not fit after all is done with less."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_budget import LARGE
from test_prepare import random_volume
from tiny_models import tiny_plan

from labelloop.base.errors import UserError
from labelloop.inference.budget import CUDA_MB, LARGEST_BATCH, Budget, Choice, best_batch, choices, gpu_mb
from labelloop.inference.engine import Predictor, cast_weights, choose_device
from labelloop.inference.out_of_memory import first_that_fits, free_mb
from labelloop.inference.windows import _chunks
from labelloop.networks.network import build_network
from labelloop.networks.plans import Plan

FULL = torch.cuda.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("free", [80_000, 8000, 3000, 1000, 0])
def test_what_the_gpu_has_free_is_the_limit_but_refuses_no_case(free):
    found = choices(LARGE, Budget(), gpu=True, batch=16, free_gpu_mb=free)
    needs = [gpu_mb(LARGE, choice) for choice in found]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == len(needs)
    least = Choice(1, False, min(choice.slab_voxels for choice in found))
    assert needs[0] <= free or found == [found[-1]]
    assert needs[-1] <= gpu_mb(LARGE, least) + 1 and not found[-1].on_gpu


def test_a_limit_of_the_user_counts_more_than_what_is_free():
    given = choices(LARGE, Budget(max_gpu_mb=2000), gpu=True, batch=16, free_gpu_mb=80_000)
    assert gpu_mb(LARGE, given[0]) <= 2000
    assert choices(LARGE, Budget(max_gpu_mb=4000), True, 16, 900) == choices(LARGE, Budget(max_gpu_mb=4000), True, 16)


@pytest.mark.parametrize(("patch", "batch"), [((32, 48, 56), LARGEST_BATCH), ((48, 128, 160), 4), ((160, 256, 256), 1)])
def test_a_gpu_looks_at_more_small_windows_at_once_than_large_ones(patch, batch):
    plan = Plan(spacing_mm=(1, 1, 1), patch=patch, features=(8, 16))
    assert (best_batch(plan, gpu=True), best_batch(plan, gpu=False)) == (batch, 1)


def test_memory_is_released_before_the_next_try(caplog):
    held = []

    def work(setting):
        assert not any(reference() is not None for reference in held)
        tensor = torch.zeros(10)
        held.append(weakref.ref(tensor))
        if setting != "small":
            raise FULL
        return tensor.sum()

    assert first_that_fits(["large", "middle", "small"], work) == 0
    assert caplog.messages == [
        "out of GPU memory with large; again with middle",
        "out of GPU memory with middle; again with small",
    ]


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (FULL, 2),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), 2),
        (RuntimeError("CUDA error: out of memory"), 2),
        (RuntimeError("CUDA error: device-side assert triggered"), 1),
        (ValueError("out of memory"), 1),
    ],
)
def test_other_errors_are_not_tried_again_and_the_last_one_is_raised(error, tries):
    seen = []

    def work(setting):
        seen.append(setting)
        raise error

    with pytest.raises(type(error), match=str(error)[:20]):
        first_that_fits([1, 2], work)
    assert seen == [1, 2][:tries]


@pytest.mark.parametrize("breaks", ["batch", "sums", "ensemble"])
def test_a_case_is_done_with_less_and_gets_the_same_labels(model_folder, rng, monkeypatch, breaks, caplog):
    volume = random_volume(rng, (30, 50, 50))
    predictor, network = Predictor(model_folder, "cpu"), Predictor(model_folder, "cpu").network
    prepared = predictor.prepare(volume, "CT")
    expected = predictor.finish(prepared)
    logits, _ = predictor.logits(prepared)
    used = []

    def crowded(windows):
        if len(windows) > 1:
            raise FULL
        return network(windows)

    def home(choice):
        used.append(choice)
        if breaks != "batch" and choice.on_gpu:
            raise FULL
        return torch.device("cpu")

    settings = [Choice(4, True), Choice(1, True), Choice(1, False)]
    monkeypatch.setattr(predictor, "choices", lambda *_, **__: settings)
    monkeypatch.setattr(predictor, "network", torch.nn.Module())
    monkeypatch.setattr(predictor.network, "forward", crowded)
    monkeypatch.setattr(predictor, "_home", home)
    if breaks == "ensemble":
        again, choice = predictor.logits(prepared)
        torch.testing.assert_close(again, logits)
        assert choice == settings[-1]
    else:
        np.testing.assert_array_equal(predictor.finish(prepared).labels, expected.labels)
    assert set(used) == set(settings[: 2 if breaks == "batch" else 3])
    assert sum("out of GPU memory" in line for line in caplog.messages) == len(set(used)) - 1


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs; the current one is noted."""
    gpus = SimpleNamespace(current=None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: setattr(gpus, "current", number))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 * 2**20, 9000 * 2**20))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700 * 2**20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200 * 2**20)
    return gpus


@pytest.mark.parametrize(("name", "number"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_the_gpu_that_was_named_is_made_the_current_one(two_gpus, name, number):
    assert choose_device(name) == torch.device("cuda", number)
    assert two_gpus.current == number


def test_the_cpu_touches_no_gpu_and_a_gpu_that_is_not_there_is_refused(two_gpus):
    assert choose_device("cpu") == torch.device("cpu") and two_gpus.current is None
    with pytest.raises(UserError, match=r"cuda:2.*2 GPUs are usable here"):
        choose_device("cuda:2")


def test_memory_that_this_process_has_taken_and_does_not_use_is_free(two_gpus):
    assert free_mb(torch.device("cuda", 1)) == pytest.approx(CUDA_MB + 0.9 * 1500)
    assert free_mb(torch.device("cpu")) is None


def test_weights_that_are_cast_once_give_what_autocast_gives():
    torch.manual_seed(0)
    network = build_network(tiny_plan(features=(8, 16, 32)), 4).eval()
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.inference_mode():
        exact = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            expected = network(image)
        result = cast_weights(network, torch.bfloat16)(image.bfloat16())
    assert result.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected, atol=2e-2 * float(exact.abs().max()), rtol=2e-2)
    kinds = {name.rsplit(".", 2)[-2]: p.dtype for name, p in network.named_parameters()}
    assert kinds["norm"] == torch.float32 and kinds["conv"] == torch.bfloat16


@pytest.mark.parametrize("size", [1, 3, 4, 7, 30])
def test_parts_of_a_level_are_of_nearly_one_size(size):
    parts = list(_chunks([(0, 0, x) for x in range(13)], size))
    assert [at for part in parts for at in part] == [(0, 0, x) for x in range(13)]
    sizes = {len(part) for part in parts}
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
