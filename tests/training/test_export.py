"""Models for stock nnU-Net: installed by its own command, they give the label maps that labelloop gives."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_model, tiny_plan
from tiny_nnunet import configuration, plans

from labelloop.cli.main import main
from labelloop.images.volume import Geometry, read, write
from labelloop.inference.engine import Predictor
from labelloop.inference.nnunet_files import model_plan
from labelloop.networks.network import build_network, load_network
from labelloop.training.stock import CONFIGURATION, plans_json

GEOMETRY = Geometry((25, 30, 20), (2.0, 2.5, 4.0), (-20.0, 30.0, 5.0))
CLASSES = {"liver": 1, "spleen": 2, "tumor": 3}


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """An image of blobs, stored in LPS."""
    array = np.random.default_rng(0).integers(-150, 250, (5, 6, 5)).repeat(4, 0).repeat(5, 1).repeat(5, 2)
    file = tmp_path_factory.mktemp("scans") / "case_0000.nii.gz"
    write(file, array.astype(np.int16), GEOMETRY)
    return file


@pytest.mark.parametrize(
    ("modality", "channels"), [("CT", ()), ("MR", ()), ("CT", ("CT", "PET"))], ids=["CT", "MR", "two channels"]
)
def test_installed_by_nnunet_it_gives_the_same_labels(tmp_path, scan, monkeypatch, capsys, modality, channels):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.model_sharing import model_import

    model = save_model(tmp_path / "models" / "student", tiny_plan(channels=channels), ids=CLASSES)
    file = tmp_path / "student.zip"
    asked = ["export", str(model), "--to", "nnunet", "--out", str(file), "--dataset-id", "7"]
    said = ["--modality", modality]
    if channels:
        assert main([*asked, *said]) == 2
        assert "--modality: without effect for a model whose channels (CT, PET) say it" in capsys.readouterr().err
    assert main(asked if channels else [*asked, *said]) == 0
    assert "nnUNetv2_predict -d 7 -c 3d_fullres -p labelloop -f 0" in capsys.readouterr().out
    monkeypatch.setattr(model_import, "nnUNet_results", str(tmp_path / "nnUNet_results"))
    model_import.install_model_from_zip_file(str(file))
    folder = tmp_path / "nnUNet_results" / "Dataset007_student" / "nnUNetTrainer__labelloop__3d_fullres"
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=(0,))
    files, image = [str(scan)], read(scan)
    for name in channels[1:]:
        files.append(str(tmp_path / f"{name}.nii.gz"))
        image = replace(image, more=(np.roll(image.array, 3, 1) // 2,))
        write(files[-1], image.more[0], GEOMETRY)
    predictor.predict_from_files_sequential([files], [str(tmp_path / "theirs")])
    theirs = read(tmp_path / "theirs.nii.gz").array
    ours = Predictor(model, device="cpu").predict(image, modality).labels
    assert len(np.unique(theirs)) > 1
    assert (theirs == ours).mean() >= 0.999


def test_into_a_folder_of_results_and_never_over_what_is_there(tmp_path, capsys):
    model = save_model(tmp_path / "student")
    command = ["export", str(model), "--to", "nnunet", "--out", str(tmp_path / "nnUNet_results")]
    assert main(command) == 0
    folder = tmp_path / "nnUNet_results" / "Dataset900_student" / "nnUNetTrainer__labelloop__3d_fullres"
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, **CLASSES}
    assert main(command) == 2
    assert "exists; remove it" in capsys.readouterr().err
    other = ["export", str(save_model(tmp_path / "teacher")), *command[2:]]
    assert main(other) == 2  # nnU-Net would find two models of this number, and take none
    assert "Dataset900_student: has this number" in capsys.readouterr().err
    assert main([*other, "--dataset-id", "901"]) == 0
    file = tmp_path / "mine.zip"
    file.write_bytes(b"mine")
    assert main([*command[:-1], str(file)]) == 2
    assert file.read_bytes() == b"mine"


def test_a_zip_is_whole_or_not_there(tmp_path, monkeypatch):
    model = save_model(tmp_path / "student")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", fail)
    assert main(["export", str(model), "--to", "nnunet", "--out", str(tmp_path / "student.zip")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]


def test_what_nnunet_cannot_do_is_refused(tmp_path, capsys):
    out = tmp_path / "out.zip"
    model = save_model(tmp_path / "mr", plan=tiny_plan(grey={}, upright=True))
    assert main(["export", str(model), "--to", "nnunet", "--out", str(out)]) == 2
    assert "its plan has grey, upright" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["export", str(tmp_path / "empty"), "--to", "nnunet", "--out", str(out)]) == 2
    assert "no such file" in capsys.readouterr().err
    (model / "model.json").write_text(json.dumps({"kind": "slice_classifier"}))
    assert main(["export", str(model), "--to", "nnunet", "--out", str(out)]) == 2
    assert not out.exists()


@pytest.mark.parametrize("option", [("--modality", "MR"), ("--dataset-id", "7")])
def test_what_is_said_to_nnunet_alone_is_refused_with_onnx(tmp_path, capsys, option):
    model = save_model(tmp_path / "student")
    assert main(["export", str(model), "--to", "onnx", "--out", str(tmp_path / "out.onnx"), *option]) == 2
    assert f"{option[0]}: without effect with --to onnx" in capsys.readouterr().err


CHANGES = {
    "as planned": {},
    "residual": {"residual": True},
    "two channels": {
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [False, True],
    },
    "MR, inside of the body": {"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [True]},
    "linear": {"resampling_fn_data": "resample_torch_fornnunet", "resampling_fn_data_kwargs": {"is_seg": False}},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("more", [{}, {"image_reader_writer": "NibabelIOWithReorient", "transpose_forward": [1, 0, 2]}])
def test_a_plan_of_nnunet_goes_back_as_it_came(changes, more):
    channels = ("CT", "PET")[: len(changes.get("normalization_schemes", "1"))]
    plan = model_plan(plans(configuration(**changes), **more), "3d_fullres", 1, Path("theirs"), channels)
    assert model_plan(plans_json("mine", plan), CONFIGURATION, 1, Path("back"), channels) == plan


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"channels": ("CT", "PET")}, {"residual": True}], ids=["channels", "residual"])
def test_an_onnx_file_gives_the_logits_of_torch_and_says_what_it_is(tmp_path, capsys, changes):
    runtime = pytest.importorskip("onnxruntime")  # the tests' own; where it has no wheel, there is nothing to compare
    model = save_model(tmp_path / "student", tiny_plan(**changes), ids=CLASSES)
    out = tmp_path / "student.onnx"
    assert main(["export", str(model), "--to", "onnx", "--out", str(out)]) == 0
    plan = tiny_plan(**changes)
    assert f"image [batch, {plan.inputs}, 16, 16, 16] to logits" in capsys.readouterr().out
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["labelloop"])
    assert told == json.loads((model / "model.json").read_text())
    network = load_network(lambda: build_network(plan, 4), model / "weights.pt").eval()
    for batch in (1, 2):
        image = torch.randn(batch, plan.inputs, 16, 16, 16, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = network(image)
        (found,) = session.run(None, {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    assert main(["export", str(model), "--to", "onnx", "--out", str(out)]) == 2  # never over what is there


def test_what_is_missing_for_onnx_is_told_and_how_to_install_it(tmp_path, capsys, monkeypatch):
    model = save_model(tmp_path / "student")
    monkeypatch.setattr("labelloop.inference.onnx_file.NEEDED", ("onnx", "no_such_package"))
    assert main(["export", str(model), "--to", "onnx", "--out", str(tmp_path / "student.onnx")]) == 2
    assert "no_such_package: pip install 'labelloop[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "student.onnx").exists()
