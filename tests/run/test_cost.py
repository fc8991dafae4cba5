"""What a recipe costs on paper: the numbers hang together as times, cards and cases do."""

import importlib
from dataclasses import replace

import pytest

from labelloop.base.errors import UserError
from labelloop.base.lookup import CONFIG
from labelloop.cli.main import main
from labelloop.networks.network import build_network, count_macs, count_parameters
from labelloop.networks.plans import Plan
from labelloop.recipe import load_recipe
from labelloop.run.cost import LIVER_EPOCH_S, Setting, assumptions, cost_of, lines, measure, wall_hours
from labelloop.training.settings import trainer_settings

SETTING = Setting(cases=400, cards=2)


@pytest.fixture(scope="module")
def demo():
    return load_recipe("default_demo")


@pytest.fixture(scope="module")
def cost(demo):
    return cost_of(demo, SETTING)


def test_the_rate_is_the_one_that_nnunet_publishes():
    """nnU-Net's benchmark, as a recipe, takes the seconds that it was measured to take."""
    plan = {"spacing_mm": [1, 0.77, 0.77], "patch": [128, 128, 128], "batch_size": 2}
    settings = {"kind": "supervised", "epochs": 1}
    model = {"plan": "liver", "classes": ["liver", "tumor"], "trainer": settings}
    recipe = load_recipe("default_demo").model_validate(
        {"name": "liver", "plans": {"liver": plan}, "models": {"m": model}, "inference": [{"segment": ["m"]}]}
    )
    (training,) = cost_of(recipe, replace(SETTING, workers=1000)).trainings
    assert training.hours * 3600 == pytest.approx(LIVER_EPOCH_S)


def test_more_cards_are_faster_but_not_by_more_than_their_number(cost):
    hours = [wall_hours(cost, cards) for cards in (1, 2, 4, 8)]
    assert hours == sorted(hours, reverse=True)
    assert all(hours[0] / more <= cards for cards, more in zip((1, 2, 4, 8), hours, strict=True))
    assert hours[-1] >= max(t.hours for t in cost.trainings)
    assert hours[0] >= cost.gpu_hours - cost.final_s * SETTING.test_cases / 3600


def test_twice_the_cases_are_labeled_and_stored_twice(demo, cost):
    more = cost_of(demo, replace(SETTING, cases=800))
    before, after = (sum(p.hours for p in c.predictions if p.cases > SETTING.test_cases) for c in (cost, more))
    assert after == pytest.approx(2 * before)
    assert more.disk_mb["prepared images"] == pytest.approx(2 * cost.disk_mb["prepared images"])
    assert [t.hours for t in more.trainings] == [t.hours for t in cost.trainings]


def test_the_slower_of_card_and_batches_sets_the_pace(demo, cost):
    slow_card = cost_of(demo, replace(SETTING, tflops=0.001)).trainings
    starved = cost_of(demo, replace(SETTING, tflops=1e6, workers=1)).trainings
    for known, slow, fed in zip(cost.trainings, slow_card, starved, strict=True):
        assert slow.hours == pytest.approx(slow.updates * slow.card_s / 3600) and slow.hours > known.hours
        assert fed.hours == pytest.approx(fed.updates * fed.batch_s / 3600)


def test_a_checkpoint_holds_what_the_optimizer_keeps(demo):
    """Weights, those and the best ones in the checkpoint, and one momentum of SGD or two moments of AdamW."""
    settings = [trainer_settings(given) for given in ({"momentum": 0.0}, {}, {"optimizer": "adamw"})]
    trained = [{n: m.model_copy(update={"trainer": one}) for n, m in demo.models.items()} for one in settings]
    found = [cost_of(demo.model_copy(update={"models": m}), SETTING).disk_mb["models"] for m in trained]
    assert found == pytest.approx([found[0], found[0] * 4 / 3, found[0] * 5 / 3])


def test_two_networks_cost_twice_one(demo):
    kinds = ("cross_pseudo", "partial")
    pair, one = (demo.models["teacher"].model_copy(update={"trainer": trainer_settings({"kind": k})}) for k in kinds)
    costs = [
        cost_of(demo.model_copy(update={"models": demo.models | {"teacher": m}}), SETTING).trainings
        for m in (pair, one)
    ]
    seconds = [next(t.card_s for t in trainings if t.model == "teacher") for trainings in costs]
    assert seconds[0] == pytest.approx(2 * seconds[1])


def test_unknown_gpu_is_refused_in_words(demo):
    with pytest.raises(UserError, match=r"A101: known are A100.*--tflops"):
        cost_of(demo, replace(SETTING, gpu="A101"))
    assert cost_of(demo, replace(SETTING, gpu="A101", tflops=10.0)).gpu_hours > 0


def test_prepared_size_is_measured(demo, phantom):
    scans = (
        sorted((phantom.parent / "images").glob("*_000_0000.nii.gz"))[:1]
        or sorted((phantom.parent / "images").iterdir())[:1]
    )
    found = list(measure(demo, scans))
    assert found and all(0 < one.bytes <= 4 * one.voxels + 20_000 for one in found)


def test_the_command_says_what_it_assumes(capsys):
    assert main(["recipe", "cost", "default_demo", "--cases", "400", "--cards", "2"]) == 0
    told = capsys.readouterr().out
    assert all(sentence in told for sentence in assumptions(SETTING))
    assert main(["recipe", "cost", "default_demo", "--cases", "0"]) == 2
    assert main(["recipe", "cost", "default_demo", "--cases", "4", "--scans", "nowhere.nii.gz"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(p.stem for p in (CONFIG / "recipes").glob("*.yaml") if not p.stem.endswith("demo"))
)
def test_every_recipe_has_a_cost(name):
    cost = cost_of(load_recipe(name), Setting(cases=4000))
    assert cost.gpu_hours > 0 and sum(cost.jobs.values()) > 0 and list(lines(cost))


def test_the_floor_counts_what_the_network_does(monkeypatch):
    """Operations are those that inference counts; passes of their own move more; a larger scan takes longer."""
    monkeypatch.syspath_prepend(str(CONFIG.parent / "benchmarks" / "costs"))
    floor = importlib.import_module("floor")
    monkeypatch.setattr(floor, "PLAN", Plan(spacing_mm=(6, 5, 5), patch=(16, 32, 32), features=(4, 8, 16)))
    one = floor.traffic(floor.PLAN, 3)
    network = build_network(floor.PLAN, 3)
    assert (one.macs, one.parameters) == (count_macs(network, floor.PLAN.patch), count_parameters(network))
    assert one.fused < one.eager
    parts, windows, *_ = floor.rows()
    monkeypatch.setattr(floor, "SIZE", (800, 512, 512))
    higher, more, *_ = floor.rows()
    assert more > windows and all(b.seconds >= a.seconds for a, b in zip(parts, higher, strict=True))
    assert any("sum" in line for line in floor.lines())
