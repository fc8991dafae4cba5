from collections import Counter

import numpy as np
import pytest
import torch
from tiny_training import PLAN, make_job

from labelloop.errors import UserError
from labelloop.training.job import TrainingCase
from labelloop.training.loading import PreparedDataset
from labelloop.training.nnunet import train
from labelloop.training.sampling import halves, one_type
from labelloop.training.settings import SEMI_SUPERVISED
from labelloop.training.trainers import TRAINERS

LIVER_ONLY = {"liver": "present"}


def partial(data, folder, full=(), states=None, **settings):
    job = make_job(data, folder, states=states, settings={"kind": "partial"} | settings)
    cases = tuple(TrainingCase(c.case, c.split, c.states, c.key, full=c.case in full) for c in job.cases)
    return make_job(data, folder, cases=cases, settings={"kind": "partial"} | settings)


def test_types_are_drawn_in_proportion_to_their_cases():
    np.random.seed(0)
    types = [[f"a{i}" for i in range(6)], ["b0", "b1", "b2"], ["c0"]]
    batches = [one_type(types, 4)() for _ in range(3000)]
    assert all(len(batch) == 4 and len({case[0] for case in batch}) == 1 for batch in batches)
    shares = Counter(batch[0][0] for batch in batches)
    assert [shares[name] / 3000 for name in "abc"] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    assert {case for batch in batches for case in batch} == {case for cases in types for case in cases}


@pytest.mark.parametrize(("size", "labeled"), [(2, 1), (4, 2), (5, 3)])
def test_halves(size, labeled):
    batch = halves(["a", "b"], ["x", "y", "z"], size)()
    assert set(batch[:labeled]) <= {"a", "b"}
    assert set(batch[labeled:]) <= {"x", "y", "z"}
    assert len(batch) == size


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


def test_a_training_with_both_streams(data, tmp_path):
    batches = {"full": ["organs_full"], "full_first_epochs": 1}
    train(partial(data, tmp_path, full=("case2",), states={1: LIVER_ONLY}, batches=batches))
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)["weights"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_types_with_too_few_cases_are_left_out(data, tmp_path):
    job = partial(data, tmp_path, states={1: LIVER_ONLY}, batches={"fewest_cases": 2})
    loader = TRAINERS["partial"].of(job).get_dataloaders()["train"]
    assert {str(case) for _ in range(30) for case in loader.get_indices()} == {"case2", "case3"}
    nobody = partial(data, tmp_path, batches={"fewest_cases": 9})
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
        asked = [loader.get_do_oversample(n) for _ in range(4000 // size) for n in range(size)]
        assert np.mean(asked) == pytest.approx(share, abs=0.03)


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
