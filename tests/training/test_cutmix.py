import numpy as np
import pytest
import torch
from tiny_training import CLASSES, IDS, PRESENT, make_job

from labelloop.base.errors import UserError
from labelloop.inference.prepared import open_image, open_label
from labelloop.labels.settings import CutSettings
from labelloop.labels.tumors import cut_tumors, write_objects
from labelloop.training.cutmix import Paster, Stored, split_regions
from labelloop.training.job import TumorBank
from labelloop.training.nnunet import train
from labelloop.training.sampling import Pick
from labelloop.training.settings import CutMix
from labelloop.training.trainers import TRAINERS

ALL = (*CLASSES, "tumor")
WIDTH = len(ALL) + 2  # channels, and what ignored voxels are
LIVER, TUMOR = 1, len(ALL)
SMALL = CutSettings(margin_mm=((6, 6), (6, 6), (6, 6)))
KNOWN_IN_BANK = {"tumor": "present", "spleen": "present"}  # liver and left kidney are unknown there


@pytest.fixture(scope="module")
def bank(data, tmp_path_factory):
    """Objects of case0 and case1."""
    folder = tmp_path_factory.mktemp("bank")
    for case in ("case0", "case1"):
        image, label = open_image(data / "images" / f"{case}.b2nd"), open_label(data / "labels" / f"{case}.b2nd")
        objects = cut_tumors(case, image.array[0], label.array[0], (3, 3, 3), IDS["tumor"], SMALL)
        write_objects(folder / f"{case}.npz", objects, KNOWN_IN_BANK)
    return TumorBank(folder, {"case0": "a", "case1": "b"})


def job_of(data, folder, bank, states=None, cutmix=None, **settings):
    """case1 has a tumor; in the others (PRESENT names no tumor) it is unknown."""
    settings = {"kind": "partial", "cutmix": cutmix or {}} | settings
    states = {1: PRESENT | {"tumor": "present"}} | (states or {})
    return make_job(data, folder, states=states, classes=ALL, tumors=bank, settings=settings)


def paster(bank, patch=(20, 20, 20), cases=("x",), **settings):
    channels = {"case1": {IDS["tumor"]: TUMOR, IDS["spleen"]: 2}}
    objects = [Stored("case1", bank.folder / "case1.npz", 0)]
    return Paster(CutMix(**settings), objects, channels, WIDTH, frozenset(cases), patch)


def patch_of(seed=0, organs=None):
    image = np.full((20, 24, 26), -5.0, np.float32)
    image[:, 6:18, 6:20] = np.random.default_rng(seed).normal(2, 0.1, (20, 12, 14))  # a body in air
    label = np.zeros(image.shape, np.int16)
    if organs:
        label[organs] = LIVER
    label[:2] = -1  # outside the volume
    image[:2] = 0
    return image, label


# --- pasting


def test_pasted_region_is_the_object_and_all_else_is_untouched(bank):
    np.random.seed(0)
    image, label = patch_of(organs=np.s_[8:14, 8:14, 8:14])
    before = image.copy(), label.copy()
    assert paster(bank)("x", image, label) == ["case1"]
    pasted = label >= WIDTH
    assert pasted.any()
    assert np.array_equal(image[~pasted], before[0][~pasted])
    assert np.array_equal(label[~pasted], before[1][~pasted])
    assert (label[:2] == -1).all()
    with np.load(bank.folder / "case1.npz") as stored:
        source = stored["image0"]
    assert np.isin(image[pasted], source).all()
    assert (label[pasted] - WIDTH == TUMOR).any()
    assert set(np.unique(label[pasted] - WIDTH)) <= {0, 2, TUMOR}  # what is unknown in the bank has no label


@pytest.mark.parametrize("placement", ["organs", "body"])
def test_objects_are_centered_in_the_abdomen(bank, placement, monkeypatch):
    organs = np.s_[10:14, 8:11, 15:19]
    allowed = organs if placement == "organs" else np.s_[2:20, 6:18, 6:20]
    centers = []
    monkeypatch.setattr(Paster, "_paste", lambda self, stored, region, center, *_: centers.append(center))
    np.random.seed(0)
    for _ in range(100):
        paster(bank, placement=placement)("x", *patch_of(organs=organs))
    low, high = np.array([(s.start, s.stop) for s in allowed]).T
    assert (centers >= low).all()
    assert (centers < high).all()
    assert len({tuple(c) for c in centers}) > 20


def test_objects_lie_in_what_augmentation_leaves_over(bank, monkeypatch):
    centers = []
    monkeypatch.setattr(Paster, "_paste", lambda self, stored, region, center, *_: centers.append(center))
    for _ in range(50):
        paster(bank, patch=(8, 12, 12), placement="body")("x", *patch_of())
    margins = (np.array((20, 24, 26)) - (8, 12, 12)) // 2
    assert (centers >= margins).all()
    assert (centers < np.array((20, 24, 26)) - margins).all()


def test_who_gets_objects_how_often_and_how_many(bank):
    np.random.seed(0)
    assert paster(bank)("y", *patch_of()) == []
    assert paster(bank, probability=0.0)("x", *patch_of()) == []
    share = np.mean([bool(paster(bank, probability=0.3)("x", *patch_of())) for _ in range(300)])
    assert share == pytest.approx(0.3, abs=0.08)
    image, label = patch_of()
    assert paster(bank, objects_per_patch=3)("x", image, label) == ["case1"] * 3
    assert label.max() // WIDTH == 3


def test_a_patch_outside_the_volume_stays_empty(bank):
    image, label = np.zeros((8, 8, 8), np.float32), np.full((8, 8, 8), -1, np.int16)
    assert paster(bank)("x", image, label) == []


def test_regions_come_apart_again():
    generator = torch.Generator().manual_seed(0)
    channel = torch.randint(0, WIDTH, (2, 1, 4, 5, 6), generator=generator)
    region = torch.randint(0, 3, (2, 1, 4, 5, 6), generator=generator)
    table = torch.rand(2, 3, WIDTH - 1, generator=generator) < 0.5
    target, unknown = split_regions((channel + WIDTH * region).to(torch.int16), table)
    assert torch.equal(target.long(), channel)
    for sample in range(2):
        for number in range(3):
            inside = region[sample, 0] == number
            assert (unknown[sample][:, inside] == table[sample, number][:, None]).all()


# --- training with pasted objects


def pasted_batch(trainer, seed=0):
    np.random.seed(seed)
    torch.manual_seed(seed)
    loader = trainer.get_dataloaders()["train"]
    loader._choose = lambda: [Pick("case2"), Pick("case3")]
    return loader.generate_train_batch()


def loss_of(trainer, logits, targets, unknown):
    return trainer.compute_loss(logits, targets, unknown).item()


def test_surroundings_keep_their_own_annotation_state(data, tmp_path, bank):
    trainer = TRAINERS["partial"].of(job_of(data, tmp_path, bank))
    batch = pasted_batch(trainer)
    assert batch["pasted"] == [["case1"], ["case1"]]
    region = batch["target"][0] // WIDTH
    _, targets, unknown = trainer.on_device(batch)
    assert all(int(target.max()) < WIDTH - 1 for target in targets)
    inside, outside = region[:, 0] == 1, region[:, 0] == 0
    assert inside.any()
    for channel, known_inside, known_outside in ((LIVER, False, True), (2, True, True), (TUMOR, True, False)):
        assert (unknown[0][:, channel][inside] == (not known_inside)).all()
        assert (unknown[0][:, channel][outside] == (not known_outside)).all()

    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, WIDTH - 1, *t.shape[2:], generator=generator) for t in targets]
    plain = loss_of(trainer, logits, targets, unknown)

    def swapped(channel, where):
        finest = logits[0].clone()
        change = where[:, None].expand_as(finest[:, :1])
        finest[:, :1][change], finest[:, channel : channel + 1][change] = (
            logits[0][:, channel : channel + 1][change],
            logits[0][:, :1][change],
        )
        return loss_of(trainer, [finest, *logits[1:]], targets, unknown)

    # calling background what nobody looked for, or the other way round, costs nothing
    assert swapped(LIVER, inside) == pytest.approx(plain, abs=1e-6)
    assert swapped(TUMOR, outside) == pytest.approx(plain, abs=1e-6)
    assert abs(swapped(LIVER, outside) - plain) > 1e-3
    assert abs(swapped(TUMOR, inside) - plain) > 1e-4


def test_augmented_patches_show_tumors_only_where_pasted(data, tmp_path, bank):
    trainer = TRAINERS["partial"].of(job_of(data, tmp_path, bank))
    shown = 0
    for seed in range(6):
        batch = pasted_batch(trainer, seed)
        _, targets, unknown = trainer.on_device(batch)
        tumor = targets[0] == TUMOR
        shown += int(tumor.flatten(1).any(1).sum())
        assert (batch["target"][0] // WIDTH == 1)[tumor].all()
        assert not unknown[0][:, TUMOR][tumor[:, 0]].any()
    assert shown >= 8  # of 12 patches


def test_cases_with_a_tumor_are_left_alone(data, tmp_path, bank):
    trainer = TRAINERS["partial"].of(job_of(data, tmp_path, bank))
    loader = trainer.get_dataloaders()["train"]
    loader._choose = lambda: [Pick("case1"), Pick("case1")]
    batch = loader.generate_train_batch()
    assert batch["pasted"] == [[], []]
    assert int(batch["target"][0].max()) < WIDTH
    assert "validation" in trainer.get_dataloaders()
    assert "pasted" not in trainer.get_dataloaders()["validation"].generate_train_batch()


def test_objects_of_validation_cases_are_not_pasted(data, tmp_path, bank):
    trainer = TRAINERS["partial"].of(job_of(data, tmp_path, bank))
    sources = {source for seed in range(5) for sources in pasted_batch(trainer, seed)["pasted"] for source in sources}
    assert sources == {"case1"}
    only = TumorBank(bank.folder, {"case0": "a"})
    with pytest.raises(UserError, match="no object of 'tumor'"):
        TRAINERS["partial"].of(job_of(data, tmp_path, only))


def test_only_objects_of_the_model_s_own_cases_are_pasted(data, tmp_path, bank):
    """A bank serves models that learn from other cases, too."""
    for case in ("case1", "elsewhere"):
        (tmp_path / f"{case}.npz").write_bytes((bank.folder / "case1.npz").read_bytes())
    trainer = TRAINERS["partial"].of(job_of(data, tmp_path, TumorBank(tmp_path, {"case1": "b", "elsewhere": "c"})))
    sources = {source for seed in range(9) for sources in pasted_batch(trainer, seed)["pasted"] for source in sources}
    assert sources == {"case1"}


def test_what_is_missing_is_named(data, tmp_path, bank):
    with pytest.raises(UserError, match="no bank of objects for its class 'tumor'"):
        TRAINERS["partial"].of(job_of(data, tmp_path, None))
    with pytest.raises(UserError, match="no class 'cyst'"):
        TRAINERS["partial"].of(job_of(data, tmp_path, bank, cutmix={"name": "cyst"}))


@pytest.mark.training
def test_a_training_with_objects_is_reproducible(data, tmp_path, bank):
    settings = {"epochs": 1, "validation_iterations": 1}
    for name, workers in (("a", 0), ("b", 2)):
        job = job_of(data, tmp_path / name, bank, **settings)
        train(make_job(data, tmp_path / name, cases=job.cases, classes=ALL, tumors=bank, workers=workers,
                       settings={"kind": "partial", "cutmix": {}} | settings))  # fmt: skip
    assert (tmp_path / "a/weights.pt").read_bytes() == (tmp_path / "b/weights.pt").read_bytes()


def test_the_bank_is_part_of_the_fingerprint_only_when_pasted(data, tmp_path, bank):
    other = TumorBank(bank.folder, {"case0": "a", "case1": "changed"})
    assert job_of(data, tmp_path, bank).fingerprint != job_of(data, tmp_path, other).fingerprint
    plain = [make_job(data, tmp_path, tumors=tumors) for tumors in (None, bank)]
    assert plain[0].fingerprint == plain[1].fingerprint
