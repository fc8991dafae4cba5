"""Models of nnU-Net's own: the same label maps as its predictor gives, and nothing of a stranger's file is executed."""

import json
import logging
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_model
from tiny_nnunet import INTENSITIES, LABELS, as_nnunet_predicts, configuration, save_nnunet

from labelloop.base.errors import UserError
from labelloop.base.tables import read_table
from labelloop.cli.main import main
from labelloop.images.volume import Geometry, read, write
from labelloop.inference import nnunet, running
from labelloop.inference.engine import Predictor
from labelloop.inference.nnunet import import_nnunet, is_nnunet, tell_unfit
from labelloop.inference.splines import spline_resampled
from labelloop.networks.network import count_parameters
from labelloop.networks.nnunet_plan import parse_plan

LPS = (1, 0, 0, 0, 1, 0, 0, 0, 1)
SAGITTAL = (0, 0, 1, 1, 0, 0, 0, -1, 0)
TORCH = {
    f"resampling_fn_{what}{more}": value
    for what in ("data", "probabilities")
    for more, value in (("", "resample_torch_fornnunet"), ("_kwargs", {"is_seg": False, "force_separate_z": False}))
}
MR = {"normalization_schemes": ["ZScoreNormalization"]}


def scan(folder, spacing=(2.0, 2.5, 4.0), direction=LPS):
    """Write an image of blobs with an empty border and a hole; return its file."""
    array = np.random.default_rng(0).integers(-150, 250, (5, 6, 5)).repeat(5, 0).repeat(5, 1).repeat(5, 2)
    array[:3], array[12:14, 12:14, 12:14], array[:, :4, 7] = 0, 0, 0
    write(
        folder / "a_0000.nii.gz", array.astype(np.int16), Geometry((25, 30, 25), spacing, (-20.0, 30.0, 5.0), direction)
    )
    return folder / "a_0000.nii.gz"


@pytest.mark.parametrize(
    ("given", "model", "spacing", "direction"),
    [
        pytest.param({}, {}, (2.0, 2.5, 4.0), LPS, id="plain"),
        pytest.param({"residual": True}, {"mirror": None}, (1.2, 1.3, 5.0), LPS, id="residual, coarse z"),
        pytest.param(
            MR,
            {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0], "mirror": (0, 2)},
            (1.3, 1.2, 5.0),
            SAGITTAL,
            id="MR, sagittal, transposed",
        ),
        pytest.param(
            MR | {"use_mask_for_norm": [True]},
            {"image_reader_writer": "NibabelIOWithReorient", "transpose_forward": [1, 0, 2],
             "transpose_backward": [1, 0, 2]},
            (2.0, 2.5, 4.0),
            SAGITTAL,
            id="MR inside, turned to RAS, transposed",
        ),
        pytest.param(
            {"normalization_schemes": ["CTNormalization", "ZScoreNormalization"], "use_mask_for_norm": [False, True]},
            {"channels": {"0": "CT", "1": "PET"}},
            (2.0, 2.5, 4.0),
            LPS,
            id="two channels",
        ),
        pytest.param(TORCH, {"folds": (0, 1), "mirror": (1,)}, (1.2, 1.3, 5.0), LPS, id="two folds, linear"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_the_labels_are_those_of_nnunet(tmp_path, given, model, spacing, direction):
    folder = save_nnunet(tmp_path, configuration(**given), **model)
    images, folds = [scan(tmp_path / "in", spacing, direction)], model.get("folds", (0,))
    for channel in range(1, len(model.get("channels", "1"))):
        first = read(images[0])
        images.append(tmp_path / "in" / f"a_{channel:04d}.nii.gz")
        write(images[-1], np.roll(first.array, channel, 0) ** 2 // 100, first.geometry)
    as_nnunet_predicts(folder, images, tmp_path / "theirs", folds)
    theirs = read(tmp_path / "theirs.nii.gz").array
    asked = ["infer", tmp_path / "in", "--model", folder, "--out", tmp_path / "out", "--device", "cpu"]
    asked += ["--modality", "MR"]
    assert main([str(option) for option in asked]) == 0
    ours = read(tmp_path / "out" / "a.nii.gz").array
    assert len(np.unique(theirs)) > 1
    assert (ours == theirs).mean() >= 0.9999, np.bincount(theirs.ravel())


@pytest.mark.parametrize("separate", [None, 0, 2])
@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.slow
def test_splines_are_those_of_nnunet(rng, order, separate):
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg

    image = rng.normal(size=(7, 10, 12)).astype(np.float32)
    for shape in [(9, 6, 17), (7, 10, 12), (3, 10, 12), (7, 4, 12)]:
        apart = separate is not None
        theirs = resample_data_or_seg(image[None], shape, False, separate, order, apart)[0]
        ours = spline_resampled(image, shape, order, separate, lambda array: None)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_model_is_written_once_and_says_where_it_is_from(tmp_path):
    folder = save_nnunet(tmp_path, folds=(0, 1))
    assert is_nnunet(folder) and is_nnunet(folder.parent)
    ours = import_nnunet(folder, tmp_path / "home")
    written = (ours / "weights.pt").stat().st_mtime_ns
    assert import_nnunet(folder.parent, tmp_path / "home") == ours
    assert (ours / "weights.pt").stat().st_mtime_ns == written
    described = json.loads((ours / "model.json").read_text())
    assert described["name"] == f"Dataset001_Tiny__{folder.name}"
    assert described["nnunet"] == {
        "configuration": "3d_fullres",
        "folds": ["fold_0", "fold_1"],
        "trainer": "nnUNetTrainer",
    }
    one = Predictor(import_nnunet(folder, tmp_path / "home", ["1"]), "cpu")
    both = Predictor(ours, "cpu")
    assert both.class_ids == {"liver": 1, "left kidney": 2, "tumor": 3} and both.model.mirror_axes == (0, 1, 2)
    assert count_parameters(both.network) == 2 * count_parameters(one.network)
    with pytest.raises(UserError, match="found no fold_4"):
        import_nnunet(folder, tmp_path / "home", ["4"])


def test_a_model_of_ours_is_none_of_nnunets(tmp_path):
    ours = save_model(tmp_path / "ours")
    (ours / "plans.json").write_text("{}")
    assert not is_nnunet(ours) and not is_nnunet(tmp_path / "nowhere")


def zipped(folder, file, inside):
    with zipfile.ZipFile(file, "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, inside / path.relative_to(folder))
    return file


@pytest.mark.parametrize("inside", ["Dataset001_Tiny/model", "../../above", "/root_of_all"])
def test_a_zip_is_read_and_its_names_are_no_places(tmp_path, inside):
    folder = save_nnunet(tmp_path / "models", folds=(0, 1))
    file = zipped(folder, tmp_path / "tiny.zip", Path(inside))
    before = set(tmp_path.rglob("*"))
    ours = import_nnunet(file, tmp_path / "a" / "b" / "home")
    new = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert new == {ours / "model.json", ours / "weights.pt"} and not Path("/root_of_all").exists()
    assert Predictor(ours, "cpu").plan == Predictor(import_nnunet(folder, tmp_path / "home"), "cpu").plan


def test_a_zip_that_is_no_model_or_too_large_or_damaged_is_refused(tmp_path, monkeypatch):
    folder = save_nnunet(tmp_path / "models")
    file = zipped(folder, tmp_path / "tiny.zip", Path("model"))
    content = file.read_bytes()
    file.write_bytes(content[:1000] + bytes(1000) + content[2000:])
    with pytest.raises(UserError, match=r"tiny.zip: cannot be unzipped|not JSON|not a text"):
        import_nnunet(file, tmp_path / "home")
    file.write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(nnunet, "LARGEST_CHECKPOINTS", 1000)
        with pytest.raises(UserError, match=r"checkpoint_final.pth has [0-9]+ bytes unzipped, expected at most 1000"):
            import_nnunet(file, tmp_path / "home")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(UserError, match=r"no model of nnU-Net's in it; expected a folder with plans"):
        import_nnunet(tmp_path / "other.zip", tmp_path / "home")
    assert not list((tmp_path / "home").iterdir())


class Evil:
    """Executed when it is unpickled the usual way."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, "executed")


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    mark = tmp_path / "mark"
    folder = save_nnunet(tmp_path, more={"logging": Evil(mark)})
    with pytest.raises(UserError, match=r"fold_0/checkpoint_final.pth cannot be read .* save anew its network_weights"):
        import_nnunet(folder, tmp_path / "home")
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(pickle.dumps(Evil(mark), 2))
    with pytest.raises(UserError, match="cannot be read"):
        import_nnunet(folder, tmp_path / "home")
    assert not mark.exists() and not (tmp_path / "home").exists()


def changed(**changes):
    """Return a configuration whose network has other arguments."""
    given = configuration()
    given["architecture"]["arch_kwargs"] |= changes
    return given


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "its labels are regions, which overlap: whole"),
        ({"given": configuration(patch_size=[16, 16])}, "segments slices"),
        ({"given": configuration(previous_stage="3d_lowres")}, "refines what 3d_lowres finds"),
        ({"given": configuration(normalization_schemes=["Mine"])}, "normalization_schemes 'Mine', expected CTNorm"),
        ({"given": configuration(resampling_fn_data="mine")}, "resampling_fn_data 'mine', expected resample"),
        ({"given": configuration(preprocessor_name="Mine")}, "preprocessor_name 'Mine'"),
        ({"given": changed(nonlin="torch.nn.ReLU")}, "nonlin 'torch.nn.ReLU', expected torch.nn.LeakyReLU"),
        ({"given": changed(norm_op="torch.nn.BatchNorm3d")}, "norm_op 'torch.nn.BatchNorm3d'"),
        ({"image_reader_writer": "Tiff3DIO"}, "image_reader_writer 'Tiff3DIO', expected SimpleITKIO"),
    ],
)
def test_what_only_nnunet_can_do_is_refused_and_says_so(tmp_path, model, found):
    folder = save_nnunet(tmp_path, **{key: value for key, value in model.items() if key != "given"})
    if "given" in model:
        plans = json.loads((folder / "plans.json").read_text())
        plans["configurations"]["3d_fullres"] = model["given"]
        (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match=rf"{found}.*Run it with nnUNetv2_predict instead"):
        import_nnunet(folder, tmp_path / "home")


def intensities(**changes):
    return {"foreground_intensity_properties_per_channel": {"0": INTENSITIES | changes}}


@pytest.mark.parametrize(
    ("file", "changes", "found"),
    [
        ("plans", {"configurations": changed(norm_op_kwargs={"gamma": 1.0})}, r"norm\.gamma.*Input should be 'eps'"),
        ("plans", {"configurations": changed(norm_op_kwargs={"eps": float("nan")})}, r"norm\.eps.*finite"),
        ("plans", {"configurations": changed(nonlin_kwargs={"slope": 0.1})}, r"nonlinearity\.slope.*negative_slope"),
        ("plans", {"configurations": configuration(patch_size=16)}, r"patch_size: Input should be a valid tuple"),
        ("plans", {"configurations": configuration(patch_size=[1024] * 3)}, r"voxels, expected at most 134217728"),
        ("plans", intensities(std=-1), r"normalization\.std: .*greater than or equal to 0"),
        ("dataset", {"labels": {"background": 1, "liver": 0, "a": 2, "b": 3}}, r"expected background: 0, and 1, 2, 3"),
        ("dataset", {"labels": {"liver": 1, "a": 2, "b": 3}}, r"expected background: 0, and 1, 2, 3"),
        ("dataset", {"labels": {"background": 0, "other": 0, "liver": 1, "a": 2}}, r"expected background: 0, and 1"),
        ("dataset", {"labels": {"background": 0, "": 1, "a": 2, "b": 3}}, r"labels.*at least 1 character"),
    ],
)
def test_files_that_make_no_sense_are_refused_by_their_key(tmp_path, file, changes, found):
    folder = save_nnunet(tmp_path)
    content = json.loads((folder / f"{file}.json").read_text())
    if "configurations" in changes:
        changes = {"configurations": {"3d_fullres": changes["configurations"]}}
    (folder / f"{file}.json").write_text(json.dumps(content | changes))
    with pytest.raises(UserError, match=found) as error:
        import_nnunet(folder, tmp_path / "home")
    assert str(folder) in str(error.value) and not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "spoiled",
    [lambda w: torch.full_like(w, torch.nan), lambda w: w.to("meta")],
    ids=["not finite", "without values"],
)
def test_weights_that_are_no_numbers_are_refused_by_their_file(tmp_path, spoiled):
    """A training that lost itself goes on to its end with nothing but NaN."""
    folder = save_nnunet(tmp_path)
    file = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    torch.save(content | {"network_weights": {k: spoiled(w) for k, w in content["network_weights"].items()}}, file)
    with pytest.raises(UserError, match=r"fold_0/checkpoint_final.pth: its network_weights are not all finite numbers"):
        import_nnunet(folder, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_an_axis_is_mirrored_once(tmp_path):
    folder = save_nnunet(tmp_path, mirror=(0, 2, 0))
    with pytest.raises(UserError, match=r"inference_allowed_mirroring_axes: .*an axis stands twice"):
        import_nnunet(folder, tmp_path / "home", ["0", "0"])


def test_plans_of_the_first_releases(tmp_path):
    """They describe the network otherwise; the planner's rule makes the same of it."""
    folder = save_nnunet(tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    now = plans["configurations"]["3d_fullres"]
    arguments = now.pop("architecture")["arch_kwargs"]
    plans["configurations"] = {
        "base": now,
        "3d_fullres": {
            "inherits_from": "base",
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 4,
            "unet_max_num_features": 320,
            "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
            "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
            "num_pool_per_axis": [1, 1, 1],
            "pool_op_kernel_sizes": arguments["strides"],
            "conv_kernel_sizes": arguments["kernel_sizes"],
        },
    }
    new = Predictor(import_nnunet(folder, tmp_path / "home"), "cpu")
    (folder / "plans.json").write_text(json.dumps(plans))
    old = Predictor(import_nnunet(folder, tmp_path / "home"), "cpu")
    assert old.plan == new.plan


def test_weights_of_another_network_are_refused(tmp_path):
    folder = save_nnunet(tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 16]
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match="its trainer, nnUNetTrainer, built another network than its plans say"):
        import_nnunet(folder, tmp_path / "home")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("scheme", "unfit"), [("CTNormalization", "MR"), ("ZScoreNormalization", "CT"), ("NoNormalization", "")]
)
def test_a_model_that_takes_one_modality_for_the_other_is_told_once(tmp_path, caplog, scheme, unfit):
    folder = save_nnunet(tmp_path, configuration(normalization_schemes=[scheme]))
    ours = import_nnunet(folder, tmp_path / "ours", [])
    plan = parse_plan(json.loads((ours / "model.json").read_text())["plan"])
    for modalities in (["CT"], ["MR"], ["CT", "MR", "CT"]):
        caplog.clear()
        tell_unfit("theirs", plan, modalities)
        assert len(caplog.messages) == (unfit in modalities)
        assert all(line.startswith("model theirs normalizes") and unfit in line for line in caplog.messages)


DATASET = """
name: tiny
modality: CT
labels: {1: liver, 3: null}
"""


def test_a_data_set_file_gives_the_ids_of_a_class_scheme(tmp_path, caplog):
    """A label that the file does not list is unknown, 255; one that it lists as no class is background."""
    folder, image = save_nnunet(tmp_path), scan(tmp_path)
    (tmp_path / "tiny.yaml").write_text(DATASET)
    command = ["infer", image, "--model", folder, "--device", "cpu", "--no-mirror", "--modality", "MR"]
    assert main([str(option) for option in [*command, "--out", tmp_path / "own"]]) == 0
    caplog.set_level(logging.INFO)
    assert main([str(o) for o in [*command, "--out", tmp_path / "out", "--dataset", tmp_path / "tiny.yaml"]]) == 0
    own, mapped = (read(tmp_path / name / "a.nii.gz").array for name in ("own", "out"))
    assert set(np.unique(own)) == set(LABELS.values())
    np.testing.assert_array_equal(mapped, np.array([0, 1, 255, 0], np.uint8)[own])
    assert "lists no left kidney: such voxels are 255, unknown" in caplog.text
    assert "contradict" not in caplog.text
    unfit = "normalizes every image as CT, and there are images of MR"
    assert sum(unfit in line for line in caplog.messages) == 2  # once for each command
    assert "classes of flare that the model does not know: right_kidney, spleen" in caplog.text
    rows = read_table(tmp_path / "out" / "summary.csv", "summary")
    assert rows["class"].tolist() == ["liver"] and "found in no case" not in caplog.text
    before = read_table(tmp_path / "own" / "summary.csv", "summary").set_index("class")
    assert rows["volume_ml"].tolist() == [before.loc["liver", "volume_ml"]]
    (tmp_path / "wrong.yaml").write_text(DATASET.replace("1: liver", "1: liver, 2: spleen"))
    assert main([str(o) for o in [*command, "--out", tmp_path / "o", "--dataset", tmp_path / "wrong.yaml"]]) == 0
    assert "contradict each other: 2 is left kidney, and spleen in data set" in caplog.text


@pytest.mark.parametrize(("known", "unknown"), [("1: liver, 3: null", True), ("1: liver, 2: null, 3: null", False)])
def test_label_maps_with_unknown_voxels_are_read_by_the_ids_beside_them(tmp_path, known, unknown):
    """Whether or not a data set file lists all that the model knows."""
    (tmp_path / "tiny.yaml").write_text(DATASET.replace("1: liver, 3: null", known))
    asked = ["infer", scan(tmp_path), "--model", save_nnunet(tmp_path), "--no-mirror", "--modality", "MR"]
    out = tmp_path / "out"
    assert main([str(word) for word in (*asked, "--dataset", tmp_path / "tiny.yaml", "--out", out)]) == 0
    assert (read(out / "a.nii.gz").array == 255).any() == unknown
    ids = {"background": 0, "liver": 1} | ({"ignore": 255} if unknown else {})
    assert json.loads((out / "dataset.json").read_text())["labels"] == ids
    sides = ["--truth", out, "--prediction", out, "--out", tmp_path / "scores.csv"]
    assert main(["evaluate", *map(str, sides)]) == 0
    scores = read_table(tmp_path / "scores.csv", "scores")
    assert scores["class"].tolist() == ["liver"] and (scores["dsc"] == 1).all()
    assert main(["check", "--labels", str(out), "--out", str(tmp_path / "verdicts.csv"), "--modality", "MR"]) == 0


def test_label_maps_in_a_model_s_own_ids_are_scored_in_these(tmp_path, caplog):
    """Id 1 is the spleen here, and the liver of the scheme by which they are scored."""
    folder, out = save_nnunet(tmp_path, labels={"background": 0, "spleen": 1, "kidney_left": 2, "tumor": 3}), tmp_path
    asked = ["infer", scan(tmp_path), "--model", folder, "--no-mirror", "--modality", "MR", "--out"]
    assert all(main([str(word) for word in (*asked, out / side)]) == 0 for side in ("exact", "again"))
    sides = ["--truth", out / "exact", "--prediction", out / "again", "--out", out / "scores.csv"]
    assert main(["evaluate", *map(str, sides)]) == 0
    scores = read_table(out / "scores.csv", "scores").set_index("class")
    volumes = read_table(out / "exact" / "summary.csv", "summary").set_index("class")["volume_ml"]
    assert set(scores.index) == {"spleen", "left_kidney", "tumor"} and (scores["dsc"] == 1).all()
    assert scores.loc["spleen", "volume_truth_ml"] == pytest.approx(volumes["spleen"], rel=1e-4)


def test_a_mask_of_each_class_is_its_part_of_the_label_map(tmp_path, capsys, monkeypatch):
    """Names of classes are a stranger's: they lead to no other folder."""
    labels = {"background": 0, "liver": 1, "../../left kidney": 2, "tumor": 3}
    folder, out = save_nnunet(tmp_path, labels=labels), tmp_path / "out"
    asked = ["infer", scan(tmp_path), "--model", folder, "--out", out, "--no-mirror", "--modality", "MR", "--masks"]
    command = [str(option) for option in asked]
    with monkeypatch.context() as patch:
        patch.delattr(running, "read")  # the label map that was just made is at hand
        assert main(command) == 0
    whole = read(out / "a.nii.gz")
    names = {"liver": 1, "_left_kidney": 2, "tumor": 3}
    files = {path.name: path for path in (out / "masks" / "a" / "segmentations").iterdir()}
    assert sorted(files) == sorted(f"{name}.nii.gz" for name in names)
    for name, value in names.items():
        mask = read(files[f"{name}.nii.gz"])
        np.testing.assert_array_equal(mask.array, whole.array == value)
        assert mask.geometry.difference(whole.geometry) is None
    written = files["liver.nii.gz"].stat().st_mtime_ns
    files["tumor.nii.gz"].unlink()
    assert main(command) == 0
    assert files["tumor.nii.gz"].is_file() and files["liver.nii.gz"].stat().st_mtime_ns == written
    (out / "shards" / ".infer.names").write_text("a.nii.gz\ndataset.json\nsummary.csv\nefficiency.csv\n")
    (out / "a.nii.gz").unlink()
    assert main(command) == 2
    assert "liver.nii.gz: exists, and labelloop did not write it" in capsys.readouterr().err
    assert not (out / "a.nii.gz").exists()


@pytest.mark.slow
@pytest.mark.parametrize("residual", [False, True])
def test_a_checkpoint_of_the_stock_trainer_is_read(tmp_path, monkeypatch, residual):
    """Also with what it logged: some of that are numbers of numpy's."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    prepared = tmp_path / "nnUNet_preprocessed" / "Dataset001_Tiny" / "nnUNetPlans_3d_fullres"
    prepared.mkdir(parents=True)
    (prepared / "a.b2nd").touch()  # the trainer looks at endings
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    folder = save_nnunet(tmp_path / "models", configuration(residual))
    plans, dataset = (json.loads((folder / f"{name}.json").read_text()) for name in ("plans", "dataset"))
    plans["continue_training"] = False  # as nnUNetv2_train says
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset, torch.device("cpu"))
    trainer.initialize()
    trainer.logger.log("mean_fg_dice", np.float64(0.5), 0)
    trainer._best_ema, trainer.inference_allowed_mirroring_axes = np.float32(0.5), (0, 1)
    trainer.save_checkpoint(str(folder / "fold_0" / "checkpoint_final.pth"))
    ours = Predictor(import_nnunet(folder, tmp_path / "home"), "cpu")
    with torch.inference_mode():
        trainer.set_deep_supervision_enabled(False)
        image = torch.randn(1, 1, 16, 16, 16)
        torch.testing.assert_close(ours.network(image), trainer.network.eval()(image), atol=1e-4, rtol=1e-4)
    assert ours.model.mirror_axes == (0, 1)
