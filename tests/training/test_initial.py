import json
import shutil

import pytest
import torch
from tiny_models import tiny_plan
from tiny_nnunet import configuration, save_nnunet
from tiny_training import CLASSES, PLAN, PRESENT, make_job

from labelloop.base.errors import UserError
from labelloop.inference.nnunet import import_nnunet
from labelloop.networks.network import build_network, load_network
from labelloop.networks.nnunet_plan import parse_plan
from labelloop.networks.plans import Plan
from labelloop.training.export import export_nnunet
from labelloop.training.initial import start_from
from labelloop.training.trainers import TRAINERS

GROWN = ("tumor", "left_kidney", "liver", "spleen")  # another order than the donor's


@pytest.fixture
def patch():
    return torch.randn(1, 1, *PLAN.patch, generator=torch.Generator().manual_seed(0))


def outputs(network, patch):
    with torch.no_grad():
        return network.eval()(patch)


def donor_outputs(model, patch):
    network = build_network(PLAN, len(CLASSES) + 1, deep_supervision=True)
    network.load_state_dict(torch.load(model / "weights.pt", weights_only=True)["weights"])
    return outputs(network, patch)


def grown_job(data, model, **settings):
    states = dict.fromkeys(range(4), PRESENT | {"tumor": "present"})
    return make_job(data, model.parent / "grown", states=states, classes=GROWN, init_from=model, settings=settings)


@pytest.mark.parametrize("bias", [None, -5.0])
def test_shared_classes_have_the_same_logits_right_after_growth(model, data, patch, bias):
    trainer = TRAINERS["supervised"].of(grown_job(data, model, new_class_bias=bias))
    before, after = donor_outputs(model, patch), outputs(trainer.network, patch)
    assert len(before) == len(after) == 3
    for old, new in zip(before, after, strict=True):
        rows = [0, *(GROWN.index(name) + 1 for name in CLASSES)]
        torch.testing.assert_close(new[:, rows], old, rtol=1e-5, atol=1e-4)  # a trainer halves single samples
        assert (new[:, GROWN.index("tumor") + 1] == (bias or 0.0)).all()


def test_shrinking_keeps_the_rows_that_are_left(model, patch):
    network = build_network(PLAN, 2, deep_supervision=True)
    start_from(network, model, ("left_kidney",))
    for old, new in zip(donor_outputs(model, patch), outputs(network, patch), strict=True):
        assert torch.allclose(new, old[:, [0, CLASSES.index("left_kidney") + 1]], rtol=0, atol=1e-6)


def test_all_names_of_a_weight_still_share_it(model):
    network = build_network(PLAN, len(CLASSES) + 1)
    start_from(network, model, CLASSES)
    assert network.encoder is network.decoder.encoder
    donor = torch.load(model / "weights.pt", weights_only=True)["weights"]
    assert all(torch.equal(value, donor[name]) for name, value in network.state_dict().items())


def test_new_class_is_learned(data, model):
    trainer = TRAINERS["supervised"].of(grown_job(data, model))
    loader = trainer.get_dataloaders()["train"]
    row = GROWN.index("tumor") + 1
    trainer.train_step(loader.generate_train_batch())
    assert trainer.network.decoder.seg_layers[-1].weight[row].abs().sum() > 0


def test_fingerprint_follows_the_weights_not_the_folder(model, data, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    plain = make_job(data, tmp_path)
    jobs = [make_job(data, tmp_path, init_from=folder) for folder in (model, copy)]
    assert jobs[0].fingerprint == jobs[1].fingerprint != plain.fingerprint
    description = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(description | {"weights_sha256": "0" * 64}))
    assert jobs[1].fingerprint != jobs[0].fingerprint


def test_what_does_not_fit_is_refused(model, tmp_path):
    with pytest.raises(UserError, match=r"holds no model.json"):
        start_from(build_network(PLAN, 4), tmp_path, CLASSES)
    wider = Plan.model_validate(PLAN.model_dump() | {"features": (4, 8, 8, 16)})
    deeper = Plan.model_validate(PLAN.model_dump() | {"features": (4, 8, 8, 8, 8)})
    for plan in (wider, deeper):
        with pytest.raises(UserError, match="built otherwise"):
            start_from(build_network(plan, 4), model, CLASSES)
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "weights.pt").write_bytes(b"altered")
    with pytest.raises(UserError, match="of another training"):
        start_from(build_network(PLAN, 4), copy, CLASSES)


def test_weights_of_a_model_of_nnunets_are_a_start_and_no_export(tmp_path):
    """Classes go by the names in its ``dataset.json``; nnU-Net's tools take its own files, not what came of them."""
    given = configuration()
    ours = import_nnunet(save_nnunet(tmp_path, given), tmp_path / "home")
    arguments = given["architecture"]["arch_kwargs"]
    plan = tiny_plan(features=(4, 8), strides=arguments["strides"], kernels=arguments["kernel_sizes"])
    network = build_network(plan, 3, deep_supervision=True)
    start_from(network, ours, ("tumor", "spleen"))
    theirs = torch.load(ours / "weights.pt", weights_only=True)["weights"]
    name = "encoder.stages.0.0.convs.0.conv.weight"
    torch.testing.assert_close(network.state_dict()[name], theirs[name])
    head = network.state_dict()["decoder.seg_layers.0.weight"]
    torch.testing.assert_close(head[:2], theirs["decoder.seg_layers.0.weight"][[0, 3]])
    assert not head[2].any()
    with pytest.raises(UserError, match="nnU-Net trained this model"):
        export_nnunet(ours, tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "channels"),
    [
        ({}, None),
        ({"residual": True}, None),
        (
            {"normalization_schemes": ["ZScoreNormalization"] * 2, "use_mask_for_norm": [False] * 2},
            {"0": "T1", "1": "T2"},
        ),
    ],
    ids=["plain", "residual", "two channels"],
)
def test_a_model_of_nnunet_lends_its_rows_by_the_names_that_a_data_set_file_gives(tmp_path, given, channels):
    labels = {"background": 0, "Leber": 1, "Milz": 2, "Niere": 3, "Niere2": 4, "spleen": 5}
    folder = save_nnunet(tmp_path, configuration(**given), labels=labels, channels=channels)
    zoo = import_nnunet(folder, tmp_path / "ours")
    plan = parse_plan(json.loads((zoo / "model.json").read_text())["plan"])
    theirs = load_network(lambda: build_network(plan, 6), zoo / "weights.pt")
    image = torch.randn(1, plan.inputs, *plan.patch, generator=torch.Generator().manual_seed(0))
    mine, names = ("spleen", "liver", "kidney"), {"Leber": "liver", "Milz": "spleen", "Niere": "kidney"}
    network = build_network(plan, 4)
    start_from(network, zoo, mine, names=names)
    before, after = outputs(theirs, image), outputs(network, image)
    torch.testing.assert_close(after, before[:, [0, 2, 1, 3]])
    start_from(network, zoo, mine, names=names | {"Niere2": "kidney"})  # of two outputs, neither is the class
    assert (outputs(network, image)[:, 3] == 0).all()
