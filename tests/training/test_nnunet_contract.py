"""What we rely on in nnunetv2, so that an update that breaks it says so here and not in the middle of a training."""

import inspect
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_training import CLASSES, PLAN, make_job

import labelloop
from labelloop.base.errors import UserError
from labelloop.networks.network import build_network
from labelloop.training.export import export_nnunet
from labelloop.training.nnunet import train
from labelloop.training.stock import plans_json
from labelloop.training.trainers import TRAINERS


@pytest.fixture(scope="module")
def trainer(data, tmp_path_factory):
    return TRAINERS["supervised"].of(make_job(data, tmp_path_factory.mktemp("m")))


def test_only_training_imports_nnunetv2():
    root = Path(labelloop.__file__).parent
    importing = re.compile(r"^\s*(from|import) nnunetv2", re.MULTILINE)
    guilty = {p.relative_to(root).parts[0] for p in root.rglob("*.py") if importing.search(p.read_text())}
    assert guilty == {"training"}


def test_constructor_signature():
    expected = ["self", "plans", "configuration", "fold", "dataset_json", "device"]
    assert list(inspect.signature(nnUNetTrainer.__init__).parameters) == expected
    for trainer in TRAINERS.values():
        assert list(inspect.signature(trainer.__init__).parameters) == expected


def test_constructor_leaves_no_trace(data, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "theirs"))
    before = dict(os.environ)
    trainer = TRAINERS["supervised"].of(make_job(data, tmp_path / "model"))
    assert dict(os.environ) == before
    assert not Path(trainer.log_file).exists()
    assert list(tmp_path.iterdir()) == []


def test_cases_are_four_values(trainer):
    assert "return data, seg, seg_prev, properties" in inspect.getsource(nnUNetDatasetBlosc2.load_case)
    dataset = trainer.get_dataloaders()["train"]._data
    assert isinstance(dataset, nnUNetBaseDataset)
    image, label, previous, properties = dataset.load_case("case1")
    assert image.shape == label.shape == (1, 20, 28, 30)
    assert previous is None
    assert set(properties["class_locations"]) == {1, 2, 3}
    assert set(np.unique(label[:, :, :, :])) == {0, 1, 2, 3}  # tumor is no class of the model


def test_batch_keys(trainer):
    batch = trainer.get_dataloaders()["train"].generate_train_batch()
    assert set(batch) == {"data", "target", "keys"}
    assert batch["data"].shape == (2, 1, *PLAN.patch)
    assert batch["data"].dtype == torch.float32
    assert [t.shape[2] for t in batch["target"]] == [16, 8, 4]
    assert batch["target"][0].dtype == torch.int16


def test_checkpoint_keys(trainer, tmp_path):
    nnUNetTrainer.save_checkpoint(trainer, str(tmp_path / "stock.pth"))
    stock = torch.load(tmp_path / "stock.pth", weights_only=False)
    needed = {"network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes"}
    assert needed <= set(stock)
    assert "configuration" in stock["init_args"]
    assert set(stock["network_weights"]) == set(build_network(PLAN, len(CLASSES) + 1).state_dict())


def test_our_network_is_theirs(trainer):
    ours = build_network(PLAN, len(CLASSES) + 1, deep_supervision=True)
    assert [(n, p.shape) for n, p in ours.named_parameters()] == [
        (n, p.shape) for n, p in trainer.network.named_parameters()
    ]


def test_blurs_are_not_chosen_by_a_stopwatch(trainer):
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

    transforms = trainer.get_dataloaders()["train"].transforms.transforms
    blurs = [t.transform for t in transforms if isinstance(getattr(t, "transform", None), GaussianBlurTransform)]
    assert [blur.benchmark for blur in blurs] == [False]


def test_class_weights_count_in_the_cross_entropy(data, tmp_path):
    settings = {"class_weights": {"spleen": 3.0}, "deep_supervision": False}
    trainer = TRAINERS["supervised"].of(make_job(data, tmp_path, settings=settings))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 4, 5, 6, generator=generator)
    target = torch.randint(0, 4, (2, 1, 4, 5, 6), generator=generator)
    trainer.compute_loss([logits], [target], [])
    expected = torch.nn.functional.cross_entropy(logits, target[:, 0], weight=torch.tensor([1.0, 1.0, 3.0, 1.0]))
    assert trainer._terms.take()["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(UserError, match="'heart' is none of liver, spleen"):
        TRAINERS["supervised"].of(make_job(data, tmp_path, settings={"class_weights": {"heart": 2.0}}))


def test_stock_predictor_loads_the_export(data, tmp_path):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    train(make_job(data, tmp_path / "model", settings={"epochs": 1, "mirror_axes": ("y",)}))
    folder = export_nnunet(tmp_path / "model", tmp_path / "export")
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=(0,))
    assert tuple(predictor.allowed_mirroring_axes) == (1,)

    ours = build_network(PLAN, len(CLASSES) + 1)
    ours.load_state_dict(torch.load(tmp_path / "model" / "weights.pt", weights_only=True)["weights"])
    patch = torch.randn(1, 1, *PLAN.patch, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(predictor.network.eval()(patch), ours.eval()(patch))
    logits = predictor.predict_logits_from_preprocessed_data(patch[0])
    assert logits.shape == (len(CLASSES) + 1, *PLAN.patch)


def test_stock_preprocessing_of_the_export_is_ours(tmp_path):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from labelloop.images.volume import Geometry, read, write
    from labelloop.inference.prepare import prepare_image
    from labelloop.training.stock import CONFIGURATION, dataset_json

    hounsfield = np.random.default_rng(0).integers(-1000, 1000, (20, 30, 25)).astype(np.int16)
    file = tmp_path / "case_0000.nii.gz"
    write(file, hounsfield, Geometry((25, 30, 20), (2.0, 2.5, 4.0)))  # stored in LPS, so it must be turned
    plans = PlansManager(plans_json("tiny", PLAN))
    configuration = plans.get_configuration(CONFIGURATION)
    preprocessor = configuration.preprocessor_class(verbose=False)
    theirs, *_ = preprocessor.run_case([str(file)], None, plans, configuration, dataset_json(CLASSES, 1))
    (ours,) = prepare_image(read(file), PLAN, "CT").array
    assert theirs[0].shape == ours.shape
    assert np.allclose(theirs[0], ours, atol=1e-4)
