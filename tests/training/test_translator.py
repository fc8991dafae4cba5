"""The training of the translator: it learns, resumes exactly, and is published whole."""

import json
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from labelloop.base.errors import UserError
from labelloop.base.files import sha256
from labelloop.base.paths import TRANSLATOR_OUTPUTS
from labelloop.inference.prepared import open_image, write_image_array
from labelloop.inference.translate import load_generator, translate
from labelloop.networks.plans import Plan
from labelloop.networks.settings import TranslatorSettings
from labelloop.training import translator
from labelloop.training.loading import Draw
from labelloop.training.translator import (
    GreyCase,
    Pool,
    TranslatorJob,
    TranslatorTraining,
    rate_factor,
    train_translator,
)

TINY = TranslatorSettings(
    patch=(8, 16, 16), features=4, blocks=1, layers=1, pool=2, epochs=4, decay_from=2, iterations_per_epoch=3,
    save_every=1, seed=3,
)  # fmt: skip

PLAN = Plan(spacing_mm=(6, 4, 4), patch=(8, 16, 16), features=(4, 8), grey={})


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    """Two prepared cases of either look: blocks, bright on dark in CT and dark on bright in MR."""
    folder = tmp_path_factory.mktemp("grey")
    rng = np.random.default_rng(0)
    cases = {"ct": [], "mr": []}
    for look in cases:
        for number in range(2):
            array = np.full((12, 20, 20), -0.5)
            z, y, x = rng.integers(0, 8, 3)
            array[z : z + 5, y : y + 8, x : x + 8] = 0.6
            path = folder / f"{look}_{number}.b2nd"
            write_image_array(path, array if look == "ct" else -array)
            cases[look].append(GreyCase(f"{look}_{number}", path, sha256(path)))
    return {look: tuple(found) for look, found in cases.items()}


def job(folder, looks, settings=TINY, **changes) -> TranslatorJob:
    return TranslatorJob(
        "translator", folder, PLAN, **(looks | changes), settings=settings, device="cpu", deterministic=True
    )


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)["weights"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, looks, monkeypatch, after):
    train_translator(job(tmp_path / "whole", looks))
    save = translator.Work.save

    def save_and_die(work, epochs, content):
        save(work, epochs, content)
        if epochs == after:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(translator.Work, "save", save_and_die)
        train_translator(job(tmp_path / "killed", looks))
    assert not (tmp_path / "killed" / "weights.pt").exists()
    train_translator(job(tmp_path / "killed", looks))
    for name in TRANSLATOR_OUTPUTS:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_workers_change_no_weight(tmp_path, looks):
    for name, workers in (("alone", 0), ("helped", 2)):
        train_translator(job(tmp_path / name, looks, workers=workers))
    for name in TRANSLATOR_OUTPUTS:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "helped" / name).read_bytes(), name


def test_half_precision_learns_as_full_precision_does(tmp_path, looks, monkeypatch):
    """As on a GPU; here by a CPU, which may emulate it."""
    batch = translator.Patches(job(tmp_path, looks))[Draw("translator", 0, 0)]
    losses = {}
    for precision in ("fp32", "bf16"):
        monkeypatch.setattr(translator, "precision_of", lambda device, precision=precision: precision)
        training = TranslatorTraining(job(tmp_path, looks))
        losses[precision] = [training._learn(batch) for _ in range(3)][-1]
        assert all(value.dtype == torch.float32 for value in training.networks.parameters())
    for name, value in losses["fp32"].items():
        assert losses["bf16"][name].dtype == value.dtype == torch.float32
        assert losses["bf16"][name].item() == pytest.approx(value.item(), rel=0.1)


@pytest.mark.parametrize(
    ("device", "units", "precision"), [("cpu", True, "fp32"), ("cuda", True, "bf16"), ("cuda", False, "fp32")]
)
def test_half_precision_is_for_gpus_with_units_for_it(monkeypatch, device, units, precision):
    monkeypatch.setattr(translator, "has_units", lambda *_: units)
    assert translator.precision_of(torch.device(device)) == precision


def test_another_seed_or_case_is_another_training(tmp_path, looks):
    first = job(tmp_path, looks)
    assert first.fingerprint == job(tmp_path / "elsewhere", looks | {"ct": looks["ct"][::-1]}).fingerprint
    assert first.fingerprint != job(tmp_path, looks, TINY.model_copy(update={"seed": 4})).fingerprint
    assert first.fingerprint != job(tmp_path, looks, mr=looks["mr"][:1]).fingerprint
    boxed = tuple(replace(case, box=((2, 9), (0, 20), (0, 20))) for case in looks["ct"])
    assert first.fingerprint != job(tmp_path, looks, ct=boxed).fingerprint


@pytest.mark.parametrize(
    ("sides", "box", "shown", "black"),  # a patch is 8 x 16 x 16; what it shows of the box, and beyond the volume
    [
        ((12, 40, 40), ((2, 11), (3, 39), (4, 38)), 8 * 16 * 16, 0),
        ((12, 20, 24), ((3, 9), (2, 20), (5, 9)), 6 * 16 * 4, 0),  # the scan goes on above and on both sides
        ((12, 20, 24), ((10, 12), (0, 20), (22, 24)), 2 * 16 * 2, 0),  # it ends with the box
        ((6, 20, 24), ((1, 5), (0, 20), (0, 24)), 4 * 16 * 16, 2 * 16 * 16),
    ],
)
def test_patches_come_from_the_box_of_a_case_and_are_black_beyond_the_volume(tmp_path, looks, sides, box, shown, black):
    array = np.full(sides, 0.25, np.float32)
    array[tuple(slice(*ends) for ends in box)] = 0.5
    write_image_array(tmp_path / "marked.b2nd", array)
    marked = GreyCase("marked", tmp_path / "marked.b2nd", "key", box)
    patches = translator.Patches(job(tmp_path, looks, ct=(marked,)))
    for number in range(5):
        patch = patches.patch("ct", np.random.default_rng(number))[0, 0].numpy()
        assert patch.shape == TINY.patch
        assert ((patch == 0.5).sum(), (patch == -1).sum()) == (shown, black)


def test_a_training_keeps_no_image_open(tmp_path, looks):
    paths = [tmp_path / f"many_{number}.b2nd" for number in range(30)]
    for path in paths:
        path.write_bytes(looks["ct"][0].path.read_bytes())
    many = tuple(GreyCase(path.stem, path, path.stem) for path in paths)
    patches, rng = translator.Patches(job(tmp_path, looks, ct=many)), np.random.default_rng(0)
    patches.patch("ct", rng)
    process = psutil.Process()
    before = process.num_fds(), len(process.memory_maps(grouped=False))
    for _ in range(200):
        patches.patch("ct", rng)
    seen = process.num_fds(), len(process.memory_maps(grouped=False))
    assert all(now < then + 10 for now, then in zip(seen, before, strict=True)), (before, seen)


def test_it_learns_and_is_used_with_the_intensities_of_training(tmp_path, looks):
    settings = TINY.model_copy(update={"epochs": 8, "decay_from": 8, "iterations_per_epoch": 5, "learning_rate": 4e-3})
    train_translator(job(tmp_path, looks, settings))
    epochs = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert len(epochs) == 8 and epochs[-1]["cycle"] < 0.7 * epochs[0]["cycle"]
    network, used = load_generator(tmp_path)
    assert used == settings
    fake = translate(network, open_image(looks["ct"][0].path).array[0], used.patch)
    assert fake.shape == (12, 20, 20) and -1 <= fake.min() < fake.max() <= 1


def test_a_finished_training_is_not_repeated(tmp_path, looks, monkeypatch):
    train_translator(job(tmp_path, looks))
    monkeypatch.setattr(translator.TranslatorTraining, "fit", None)
    (tmp_path / "weights.pt").unlink()
    train_translator(job(tmp_path, looks))
    assert (tmp_path / "weights.pt").is_file()


def test_the_learning_rate_is_the_published_one():
    """He, Table 2: 1 - max(0, epoch + 2 - 200) / 201."""
    published = TranslatorSettings()
    for epoch in (0, 198, 199, 300, 399):
        assert rate_factor(epoch, published) == pytest.approx(1 - max(0, epoch + 2 - 200) / 201)
    assert rate_factor(399, published) == pytest.approx(0)


def test_the_pool_gives_back_what_it_was_given_and_holds_no_more_than_its_size():
    pool, rng = Pool(3), np.random.default_rng(0)
    given = [torch.tensor(float(i)) for i in range(200)]
    back = [pool.swap(fake, rng) for fake in given]
    assert len(pool.fakes) == 3 and {float(b) for b in back} <= {float(g) for g in given}
    older = sum(float(b) != float(g) for b, g in zip(back, given, strict=True))
    assert 60 < older < 140
    assert Pool(0).swap(given[7], rng) is given[7]


def test_a_look_without_cases_and_a_folder_without_translator_are_named(tmp_path, looks):
    with pytest.raises(UserError, match="no MR case"):
        train_translator(job(tmp_path, looks, mr=()))
    with pytest.raises(UserError, match="no translator"):
        load_generator(tmp_path)
