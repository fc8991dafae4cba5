"""``benchmarks/inference``: ways to run a network see the same image, and the floor is that of the windows that ran."""

from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from tiny_models import tiny_plan

PLAN = tiny_plan()


@pytest.fixture(scope="module")
def backends(load_benchmark):
    return load_benchmark("inference", "backends")


@pytest.fixture
def image():
    shape = [2 * n + 3 for n in PLAN.patch]
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def local(x: torch.Tensor) -> torch.Tensor:
    """A network that looks at single voxels: its label map does not depend on where windows lie."""
    return torch.cat([0.3 - x, x - 0.3], 1)


@pytest.mark.parametrize("changed", [{}, {"batch": 2}, {"step": 1.0}, {"moved": 3}])
def test_all_ways_see_the_image_in_its_place(backends, image, changed):
    timed = backends.Timed(local)
    labels = backends.segmented(timed, image, PLAN, 2, backends.Backend(backends.engine, **changed))
    np.testing.assert_array_equal(labels, image > 0.3)
    assert len(timed.seconds) > 1 and min(timed.seconds) >= 0


def test_who_is_told_where_to_look_sees_all_that_was_found(backends, image):
    exact = np.zeros(image.shape, np.uint8)
    exact[5:8, 9:11, 4] = 2
    box = backends.box_to_look_at(exact, PLAN)
    assert exact[box].sum() == exact.sum()
    assert all(part.stop <= n for part, n in zip(box, exact.shape, strict=True))


def test_it_says_how_many_classes_decide(backends):
    labels = np.array([0, 0, 2, 2, 7], np.uint8)
    assert (
        backends.classes_in({"a": labels, "b": labels * 0}, 0.5)
        == "2 classes in a, the smallest of 0.5 ml; 0 classes in b"
    )


def test_a_backend_that_is_not_installed_is_named(backends, monkeypatch, tmp_path):
    failed = CompletedProcess([], 1, "", "Traceback\nModuleNotFoundError: No module named 'openvino'")
    monkeypatch.setattr(backends.subprocess, "run", lambda *_, **__: failed)
    assert backends.measured("OpenVINO", tmp_path, tmp_path) == "not installed (openvino)"


def test_the_floor_is_that_of_the_windows_that_ran(load_benchmark, monkeypatch):
    benchmark = load_benchmark("inference")
    monkeypatch.setattr(benchmark, "peak_gmacs", lambda precision: 100.0)

    def result(name, cpu_s, gmacs):
        return benchmark.Result(name, 1.0, None, cpu_s, None, 1.0, 1.0, 1.0, {}, gmacs, np.zeros(1))

    done = [result("stock_fastest", 40.0, None), result("stock_default", 320.0, None), result("exact", 20.0, 1000.0)]
    rows = benchmark.floors("scan", {r.name: r for r in done})
    assert [row.split(" | ")[1:] for row in rows] == [  # the first has the windows of exact; the second mirrors
        ["stock_fastest", "fp32", "1000", "10.0", "40.0", "4.0 |"],
        ["exact", "fp32", "1000", "10.0", "20.0", "2.0 |"],
    ]
