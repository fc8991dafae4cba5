"""What a training asks of the machine follows from its plan and its cases."""

import psutil
import pytest

from labelloop.base.machine import memory_mb
from labelloop.networks.plans import Plan
from labelloop.run.resources import CACHE_MB, LEAST_MB, cache_mb, loader_workers, training_mb, training_threads
from labelloop.run.run import Run
from labelloop.training.settings import SupervisedSettings, trainer_settings

FINE = Plan(spacing_mm=(2.5, 1.5, 1.5), patch=(48, 128, 160))
SETTINGS = SupervisedSettings()


@pytest.mark.parametrize(
    ("asked", "threads", "workers"), [("auto", 2, 1), ("auto", 1, 1), ("auto", 12, 11), (0, 12, 0), (5, 2, 5)]
)
def test_workers_follow_the_threads_unless_they_are_given(asked, threads, workers):
    assert loader_workers(asked, threads) == workers


def test_memory_grows_with_cases_workers_and_networks_up_to_a_bound_for_the_cache():
    def need(cases=500, workers=11, gpu=True, plan=FINE, **settings):
        return training_mb(plan, trainer_settings(settings), cases, workers, gpu)

    assert need(200) < need(1000) < need(4000) == need(400_000) <= CACHE_MB + 12_000
    assert need(workers=4) < need(workers=11)
    assert need(gpu=True) < need(gpu=False)  # activations of a CPU are RAM
    assert need(gpu=False) < need(gpu=False, kind="cross_pseudo")
    assert need(momentum=0) < need() < need(optimizer="adamw")
    finer = FINE.model_copy(update={"spacing_mm": (1.0, 0.8, 0.8)})
    assert need() < need(plan=finer)
    assert need(cases=1, workers=0, plan=Plan(spacing_mm=(6, 5, 5), patch=(32, 48, 56))) == LEAST_MB


def test_the_cache_holds_the_prepared_arrays():
    """1,000 scans of 400x400x450 mm at 2.5x1.5x1.5 mm: 12.8 million voxels each, and a label map."""
    assert cache_mb(FINE, 1000) == pytest.approx(1000 * (12.8e6 * 1.5 / 2**20 + 0.25), rel=0.01)


def test_page_cache_is_asked_for_only_where_it_counts(run_of):
    trainings = run_of().trainings
    cached, own = (trainings.mb("teacher", 8, page_cache) for page_cache in (True, False))
    assert LEAST_MB <= own <= cached


def test_the_memory_of_this_machine_is_known():
    assert 0 < memory_mb() <= psutil.virtual_memory().total / 2**20


def test_each_card_has_its_own_threads_and_program_and_all_share_the_cache():
    assert [training_threads(gpu, cards=2) for gpu in (True, False)] == [24, 8]
    one, two = (training_mb(FINE, SETTINGS, 500, 11, True, cards) for cards in (1, 2))
    assert two - cache_mb(FINE, 500) == pytest.approx(2 * (one - cache_mb(FINE, 500)), abs=2)


@pytest.fixture
def run_of(tmp_path):
    """Return a function that makes a run of three labeled and four unlabeled cases."""

    def make(**config):
        table = tmp_path / "cases.csv"
        rows = [
            f"c{i},c{i}.nii.gz,{f'l{i}.nii.gz' if i < 3 else ''},flare22,train,{'all' if i < 3 else ''}"
            for i in range(7)
        ]
        table.write_text("\n".join(["case,image,label,dataset,role,annotated", *rows]) + "\n")
        return Run({"cases": str(table), "results": str(tmp_path / "results")} | config)

    return make


@pytest.mark.parametrize(("asked", "cards"), [(1, 1), (2, 2), (8, 2)])
def test_a_training_has_as_many_cards_as_asked_and_as_a_batch_has_samples(run_of, asked, cards):
    run = run_of(gpus_per_training=asked)
    assert run.chain.plans[run.wiring.model("student").plan].batch_size == 2
    assert (run.trainings.cards("student"), run.trainings.threads("student")) == (cards, 12 * cards)
    told = run.trainings.fewer_cards()
    assert ("model student: trained on 2 cards, not on 8: a batch has no more samples" in told) == (asked > cards)
    assert asked > cards or not told


def test_a_training_that_cannot_be_shared_out_has_one_card(run_of):
    run = run_of(recipe="two_stage", gpus_per_training=2)
    (name,) = run.wiring.slice_classifiers
    assert (run.trainings.cards(name), run.trainings.threads(name)) == (1, 12)
    assert run.trainings.fewer_cards() == [
        f"model {name}: trained on 1 card, not on 2: its kind of training is not shared out"
    ]


@pytest.mark.parametrize(("recipe", "counted"), [("default", {"teacher": 3, "student": 7})])
@pytest.mark.parametrize("cards", [1, 2])
def test_a_model_of_the_truth_is_sized_by_labeled_cases(run_of, monkeypatch, recipe, counted, cards):
    run = run_of(recipe=recipe, gpus_per_training=cards)
    seen = []
    monkeypatch.setattr(
        "labelloop.run.resources.training_mb", lambda plan, trainer, *numbers: seen.append(numbers) or 1
    )
    for model, number in counted.items():
        run.trainings.mb(model, 12 * cards)
        assert seen.pop() == (number, 11, True, cards)
