"""What a training asks of torch."""

from dataclasses import replace

import pytest
import torch
from tiny_training import make_job

from labelloop.training.setup import set_determinism


@pytest.fixture(autouse=True)
def torch_as_it_was():
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    cudnn.deterministic, cudnn.benchmark = before[:2]
    torch.use_deterministic_algorithms(before[2])
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.mark.parametrize(
    ("wanted", "device", "deterministic"),
    [
        ("auto", "cpu", True),
        ("auto", "cuda", False),
        (True, "cpu", True),
        (True, "cuda", True),
        (False, "cpu", False),
        (False, "cuda", False),
    ],
)
def test_a_gpu_is_fast_unless_determinism_is_asked_for(wanted, device, deterministic, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert set_determinism(wanted, torch.device(device)) is deterministic
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    if device == "cuda":
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (
            deterministic,
            not deterministic,
        )


@pytest.mark.parametrize(("wanted", "filled"), [("auto", False), (True, True), (False, False)])
def test_new_tensors_are_filled_with_nan_only_on_request(wanted, filled):
    torch.utils.deterministic.fill_uninitialized_memory = True  # torch's default
    set_determinism(wanted, torch.device("cpu"))
    assert torch.utils.deterministic.fill_uninitialized_memory is filled


def test_what_is_asked_for_is_part_of_the_fingerprint_and_the_device_is_not(data, tmp_path):
    """Else a model from a GPU would be trained anew where a run goes on without one."""
    jobs = [make_job(data, tmp_path, deterministic=wanted) for wanted in ("auto", True, False)]
    assert len({job.fingerprint for job in jobs}) == 3
    assert replace(jobs[0], device="cuda").fingerprint == jobs[0].fingerprint
