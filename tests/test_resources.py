"""What a training asks of the machine follows from its plan and its cases."""

import pytest

from labelloop.plans import Plan
from labelloop.resources import CACHE_MB, LEAST_MB, cache_mb, loader_workers, training_mb
from labelloop.run import Run
from labelloop.training.settings import TrainerSettings

FINE = Plan(spacing_mm=(2.5, 1.5, 1.5), patch=(48, 128, 160))
SETTINGS = TrainerSettings()


@pytest.mark.parametrize(
    ("asked", "threads", "workers"), [("auto", 2, 1), ("auto", 1, 1), ("auto", 12, 11), (0, 12, 0), (5, 2, 5)]
)
def test_workers_follow_the_threads_unless_they_are_given(asked, threads, workers):
    assert loader_workers(asked, threads) == workers


def test_memory_grows_with_cases_workers_and_networks_up_to_a_bound_for_the_cache():
    def need(cases=500, workers=11, gpu=True, plan=FINE, **settings):
        return training_mb(plan, TrainerSettings(**settings), cases, workers, gpu)

    assert need(200) < need(1000) < need(4000) == need(400_000) <= CACHE_MB + 12_000
    assert need(workers=4) < need(workers=11)
    assert need(gpu=True) < need(gpu=False)  # activations of a CPU are RAM
    assert need(gpu=False) < need(gpu=False, kind="cross_pseudo")
    finer = FINE.model_copy(update={"spacing_mm": (1.0, 0.8, 0.8)})
    assert need() < need(plan=finer)
    assert need(cases=1, workers=0, plan=Plan(spacing_mm=(6, 5, 5), patch=(32, 48, 56))) == LEAST_MB


def test_the_cache_holds_the_prepared_arrays():
    """1,000 scans of 400x400x450 mm at 2.5x1.5x1.5 mm: 12.8 million voxels each, and a label map."""
    assert cache_mb(FINE, 1000) == pytest.approx(1000 * (12.8e6 * 1.5 / 2**20 + 0.25), rel=0.01)


@pytest.mark.parametrize(("recipe", "counted"), [("default", {"teacher": 3, "student": 7})])
def test_a_model_of_the_truth_is_sized_by_labeled_cases(tmp_path, monkeypatch, recipe, counted):
    table = tmp_path / "cases.csv"
    rows = [
        f"c{i},c{i}.nii.gz,{f'l{i}.nii.gz' if i < 3 else ''},flare22,train,{'all' if i < 3 else ''}" for i in range(7)
    ]
    table.write_text("\n".join(["case,image,label,dataset,role,annotated", *rows]) + "\n")
    run = Run({"cases": str(table), "results": str(tmp_path / "results"), "recipe": recipe})
    seen = {}
    monkeypatch.setattr(
        "labelloop.run.training_mb", lambda plan, trainer, cases, workers, gpu: seen.update(n=cases, w=workers) or 1
    )
    for model, cases in counted.items():
        run.training_mb(model, 12)
        assert seen == {"n": cases, "w": 11}
