import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from tiny_training import PLAN, make_job

from labelloop.base.errors import UserError
from labelloop.training.job import TrainingCase
from labelloop.training.loading import PreparedDataset
from labelloop.training.nnunet import train
from labelloop.training.sampling import evenly, one_type, streams, two_parts
from labelloop.training.settings import SEMI_SUPERVISED, Favor, Sampling
from labelloop.training.trainers import TRAINERS

LIVER_ONLY = {"liver": "present"}


def partial(data, folder, full=(), states=None, **settings):
    job = make_job(data, folder, states=states, settings={"kind": "partial"} | settings)
    cases = tuple(TrainingCase(c.case, c.split, c.states, c.key, full=c.case in full) for c in job.cases)
    return make_job(data, folder, cases=cases, settings={"kind": "partial"} | settings)


def test_types_are_drawn_in_proportion_to_their_cases():
    np.random.seed(0)
    types = [[f"a{i}" for i in range(6)], ["b0", "b1", "b2"], ["c0"]]
    batches = [[pick.case for pick in one_type(types, 4)()] for _ in range(3000)]
    assert all(len(batch) == 4 and len({case[0] for case in batch}) == 1 for batch in batches)
    shares = Counter(batch[0][0] for batch in batches)
    assert [shares[name] / 3000 for name in "abc"] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    assert {case for batch in batches for case in batch} == {case for cases in types for case in cases}


def test_two_parts():
    batch = [pick.case for pick in two_parts(evenly(["a", "b"], 3), evenly(["x", "y", "z"], 2))()]
    assert set(batch[:3]) <= {"a", "b"}
    assert set(batch[3:]) <= {"x", "y", "z"}
    assert len(batch) == 5


ABDOMEN = ("liver", "spleen", "tumor")


def case_of(name, truth, **states):
    """A case of the classes ``ABDOMEN``: what annotators looked for, and what is present (p) or absent (a)."""
    meaning = {"p": "present", "a": "absent"}
    return TrainingCase(name, "train", {c: meaning[s] for c, s in states.items()}, "", truth=tuple(truth.split()))


STUDENTS = [
    case_of("full", "liver spleen", liver="p", spleen="p"),
    case_of("half", "liver", liver="p", spleen="p"),  # its spleen is a model's
    case_of("tumor", "tumor", tumor="p", liver="p"),
    *(case_of(f"pseudo{n}", "", liver="p", spleen="a", **({"tumor": "p"} if n == 0 else {})) for n in range(6)),
]


def drawn(stream, sampling=None, favor=None, cases=STUDENTS, number=6000):
    """Return the shares of cases and of classes among the draws of a stream."""
    np.random.seed(0)
    choose = streams(cases, ABDOMEN, Sampling(**sampling or {}), favor, number)[stream]
    picks = choose()
    shares = [Counter(picked) for picked in zip(*picks, strict=True)]
    return [{key: count / number for key, count in share.items()} for share in shares]


def test_of_the_truth_a_case_weighs_by_what_is_known_of_it():
    cases, classes = drawn("truth")
    assert cases == pytest.approx({"full": 1 / 2, "half": 1 / 4, "tumor": 1 / 4}, abs=0.03)
    assert classes == pytest.approx({1: 1 / 2, 2: 1 / 4, 3: 1 / 4}, abs=0.03)


def test_classes_are_drawn_with_pseudo_labels_as_often_as_without_and_the_truth_in_half_of_the_draws():
    cases, classes = drawn("train")
    assert classes == pytest.approx(drawn("truth")[1], abs=0.03)
    for share in (0.5, 0.8):
        picks = streams(STUDENTS, ABDOMEN, Sampling(truth_share=share), None, 6000)["train"]()
        by_truth = np.mean(
            [next(c for c in STUDENTS if c.case == p.case).is_truth(ABDOMEN[p.channel - 1]) for p in picks]
        )
        assert by_truth == pytest.approx(share, abs=0.04)
    # of the half that is pseudo-labels: liver 1/2 in 7 cases, spleen 1/4 in one, tumor 1/4 in one
    assert cases["pseudo1"] == pytest.approx(1 / 2 * 1 / 2 / 7, abs=0.01)
    assert cases["pseudo0"] == pytest.approx(1 / 2 * (1 / 2 / 7 + 1 / 4), abs=0.03)


def test_a_class_that_models_found_nowhere_is_not_drawn_less():
    without = [case for case in STUDENTS if case.case != "pseudo0"]
    assert drawn("train", cases=without)[1] == pytest.approx(drawn("truth", cases=without)[1], abs=0.03)


def test_a_favored_class_draws_its_cases_too():
    cases, classes = drawn("truth", favor=Favor(name="tumor", drop_others=0.5))
    assert classes[3] == cases["tumor"] == pytest.approx(1 / (1 + 3 / 2), abs=0.03)
    _, classes = drawn("truth", favor=Favor(name="tumor", drop_others=1.0))
    assert classes == {3: 1.0}


def test_where_nothing_is_there_to_center_on_a_patch_lies_anywhere():
    cases, classes = drawn("train", cases=[case_of("a", "liver", liver="a"), case_of("b", "liver", liver="p")])
    assert cases == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.03)
    assert classes == pytest.approx({0: 0.5, 1: 0.5}, abs=0.03)


def test_without_truth_or_without_anything_favored_there_is_one_stream():
    only = [case for case in STUDENTS if case.case.startswith("pseudo")]
    assert set(streams(only, ABDOMEN, Sampling(), None, 2)) == {"train"}
    assert set(streams(STUDENTS[:1], ABDOMEN, Sampling(), Favor(name="tumor", drop_others=1.0), 2)) == {"train"}
    teacher = [
        TrainingCase("a", "train", {"liver": "present"}, ""),
        TrainingCase("b", "train", {"liver": "present"}, ""),
    ]
    assert set(streams(teacher, ABDOMEN, Sampling(), None, 2)) == {"train"}


def test_a_student_begins_with_the_truth_alone(data, tmp_path):
    job = partial(data, tmp_path, epochs=4)
    mixed = tuple(dataclasses.replace(c, truth=() if c.case == "case1" else ("liver",)) for c in job.cases)
    trainer = TRAINERS["partial"].of(dataclasses.replace(job, cases=mixed))
    assert [trainer.stream_of(epoch, 0) for epoch in range(4)] == ["truth", "truth", "train", "train"]
    loaders = trainer.get_dataloaders()
    assert {case for _ in range(20) for case in loaders["truth"].get_indices()} == {"case2", "case3"}
    assert {case for _ in range(40) for case in loaders["train"].get_indices()} == {"case1", "case2", "case3"}
    alike = TRAINERS["partial"].of(
        dataclasses.replace(job, cases=mixed, settings=partial(data, tmp_path, sampling="uniform").settings)
    )
    assert set(alike.streams) == {"train"}


def test_a_patch_is_centered_on_the_class_that_was_drawn(data, tmp_path):
    loader = TRAINERS["partial"].of(partial(data, tmp_path, augmentation="none")).get_dataloaders()["train"]
    places = {channel: np.array([[0, 10, 14, 9 + channel]]) for channel in (1, 2, 3)}
    for _ in range(10):
        loader.get_indices()
        for pick in list(loader._picks):
            start = loader.get_bbox((20, 28, 30), True, places)[0]
            assert pick.channel in places
            alone = {pick.channel: places[pick.channel]}
            assert list(map(int, start)) == list(map(int, loader.get_bbox((20, 28, 30), True, alone)[0]))


def test_schedule_begins_with_full_labels_and_then_alternates(data, tmp_path):
    batches = {"full": ["organs_full"], "full_first_epochs": 2}
    trainer = TRAINERS["partial"].of(partial(data, tmp_path, full=("case1",), batches=batches))
    assert [trainer.stream_of(epoch, i) for epoch in (0, 1) for i in range(3)] == ["full"] * 6
    assert [trainer.stream_of(2, i) for i in range(4)] == ["full", "train", "full", "train"]
    once = {"full": ["organs_full"], "full_first_epochs": 2, "alternate": False}
    trainer = TRAINERS["partial"].of(partial(data, tmp_path, full=("case1",), batches=once))
    assert [trainer.stream_of(epoch, i) for epoch in (1, 2) for i in (0, 1)] == ["full", "full", "train", "train"]


def test_batches_are_of_one_type(data, tmp_path):
    job = partial(data, tmp_path, full=("case2", "case3"), states={1: LIVER_ONLY}, batches={"full": ["organs_full"]})
    loaders = TRAINERS["partial"].of(job).get_dataloaders()
    np.random.seed(0)
    drawn = [tuple(map(str, loaders["train"].get_indices())) for _ in range(40)]
    assert all(("case1" in batch) == (set(batch) == {"case1"}) for batch in drawn)
    assert {case for batch in drawn for case in batch} == {"case1", "case2", "case3"}
    assert {str(case) for _ in range(20) for case in loaders["full"].get_indices()} == {"case2", "case3"}


@pytest.mark.slow
def test_a_training_with_both_streams(data, tmp_path):
    batches = {"full": ["organs_full"], "full_first_epochs": 1}
    train(partial(data, tmp_path, full=("case2",), states={1: LIVER_ONLY}, batches=batches))
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)["weights"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_types_with_too_few_cases_are_left_out(data, tmp_path):
    job = partial(data, tmp_path, states={1: LIVER_ONLY}, batches={"min_cases": 2})
    loader = TRAINERS["partial"].of(job).get_dataloaders()["train"]
    assert {str(case) for _ in range(30) for case in loader.get_indices()} == {"case2", "case3"}
    nobody = partial(data, tmp_path, batches={"min_cases": 9})
    with pytest.raises(UserError, match="no type has so many"):
        TRAINERS["partial"].of(nobody).get_dataloaders()
    nobody = partial(data, tmp_path, batches={"full": ["organs_full"]})
    with pytest.raises(UserError, match="no training case is in organs_full"):
        TRAINERS["partial"].of(nobody).get_dataloaders()


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize(("size", "share"), [(1, 0.33), (1, 0.5), (2, 0.33), (2, 0.67), (4, 0.7)])
def test_the_share_of_centered_patches_is_the_one_asked_for(data, tmp_path, kind, size, share):
    if size < 2 and kind in SEMI_SUPERVISED:
        return  # such a batch has no room for labeled and unlabeled
    settings = {"kind": kind, "foreground_fraction": share}
    job = make_job(data, tmp_path, plan=PLAN.model_copy(update={"batch_size": size}), settings=settings)
    for loader in TRAINERS[kind].of(job).get_dataloaders().values():
        np.random.seed(0)
        asked = [loader.get_do_oversample(n) for _ in range(2000 // size) for n in range(len(loader.get_indices()))]
        assert np.mean(asked) == pytest.approx(share, abs=0.04)


def test_favored_class_is_centered_on(data, tmp_path):
    job = make_job(data, tmp_path, settings={"favor": {"name": "spleen", "drop_others": 1.0}, "augmentation": "none"})
    loader = TRAINERS["supervised"].of(job).get_dataloaders()["train"]
    places = {channel: np.array([[0, 10, 14, 9 + channel]]) for channel in (1, 2, 3)}
    starts = {tuple(map(int, loader.get_bbox((20, 28, 30), True, places)[0])) for _ in range(10)}
    assert starts == {tuple(map(int, loader.get_bbox((20, 28, 30), True, {2: places[2]})[0]))}
    job = make_job(data, tmp_path, settings={"favor": {"name": "tumor", "drop_others": 1.0}})
    with pytest.raises(UserError, match="'tumor' is none of"):
        TRAINERS["supervised"].of(job).get_dataloaders()


def test_a_case_without_known_classes_needs_no_label(data, tmp_path):
    dataset = PreparedDataset(data / "images", tmp_path / "nowhere", {"case1": {}})
    image, label, _, properties = dataset.load_case("case1")
    assert label.shape == image.shape
    assert (label[:, 2:9, :, 5:] == 0).all()
    assert label[:, 2:9, :, 5:].shape == (1, 7, 28, 25)
    assert properties == {"class_locations": {}}


def test_full_cases_are_part_of_the_fingerprint_only_when_read(data, tmp_path):
    ways = [partial(data, tmp_path, full=full) for full in ((), ("case1",))]
    assert ways[0].fingerprint == ways[1].fingerprint
    ways = [partial(data, tmp_path, full=full, batches={"full": ["organs_full"]}) for full in ((), ("case1",))]
    assert ways[0].fingerprint != ways[1].fingerprint
