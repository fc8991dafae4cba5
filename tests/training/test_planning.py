"""Plans for a collection and a card; ``benchmarks/planning`` compares them with those of nnU-Net's commands."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.cli.main import main
from labelloop.images.scan import read_surveyed
from labelloop.images.volume import Geometry, Volume, read, write
from labelloop.recipe import load_recipe
from labelloop.training import planning
from labelloop.training.planning import CaseShape, case_shape, intensity_properties, plan_for, shapes_of

SCHEME = load_classes("flare")


def test_what_the_card_holds_decides_the_batch():
    shape = CaseShape("MR", (4.0, 2.0, 2.0), (24, 64, 64), 1.0, np.arange(9, dtype=np.float32)[None])
    small, large = (plan_for([shape], 1, 1000, "plain", gb) for gb in (1, 4))
    assert large.batch_size > small.batch_size >= 2
    assert large.spacing_mm == (4.0, 2.0, 2.0)
    assert plan_for([replace(shape, modality="CT")], 1, 2).batch_size == 2  # at most 5 % of two cases


def test_what_is_drawn_does_not_depend_on_how_an_image_is_stored():
    rng = np.random.default_rng(0)
    image, labels = rng.integers(-100, 200, (6, 8, 10)).astype(np.int16), rng.integers(0, 2, (6, 8, 10), np.uint8)
    geometry = Geometry((10, 8, 6), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0))
    flipped = Geometry((10, 8, 6), (1.0, 2.0, 3.0), (9.0, 0.0, 0.0), (-1, 0, 0, 0, 1, 0, 0, 0, 1))
    one = case_shape(Volume(image, geometry), Volume(labels, geometry), "CT", 50)
    other = case_shape(Volume(image[..., ::-1], flipped), Volume(labels[..., ::-1], flipped), "CT", 50)
    assert one.shape == other.shape and one.spacing_mm == other.spacing_mm
    np.testing.assert_array_equal(one.intensities, other.intensities)


CANONICAL = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def several_phases(folder, names=("CT", "CT"), cases="abcde"):
    """Write nnU-Net's data set folder of several channels, the liver brighter in each; return it."""
    rng, grid = np.random.default_rng(0), Geometry((24, 20, 16), (2.0, 2.0, 3.0), (24.0, 20.0, 0.0), CANONICAL)
    for case in cases:
        label = np.zeros(grid.shape, np.uint8)
        label[4:12, 5:15, 6:18] = 1
        for number, _ in enumerate(names):
            image = np.where(rng.random(grid.shape) < 0.5, -1000, rng.normal(0, 20, grid.shape)).astype(np.int16)
            image[label == 1] = rng.normal(60 * (number + 1), 10, image[label == 1].shape)
            write(folder / "imagesTr" / f"{case}_{number:04d}.nii.gz", image, grid)
        write(folder / "labelsTr" / f"{case}.nii.gz", label, grid)
    content = {"channel_names": dict(enumerate(names)), "labels": {"background": 0, "liver": 1},
               "numTraining": len(cases), "file_ending": ".nii.gz"}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_of_several_channels_each_has_the_intensities_that_nnunet_finds(tmp_path):
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    folder = several_phases(tmp_path / "d")
    files, label = sorted((folder / "imagesTr").glob("a_*")), folder / "labelsTr" / "a.nii.gz"
    shape, spacing, theirs, *_ = DatasetFingerprintExtractor.analyze_case(
        [str(file) for file in files], str(label), SimpleITKIO, 50
    )
    ours = case_shape(read_surveyed(*files), read(label), "CT", 50)
    assert ours.shape == tuple(shape) and ours.spacing_mm == pytest.approx(spacing)
    np.testing.assert_array_equal(ours.intensities, theirs)
    one, other = (intensity_properties([ours], channel) for channel in range(2))
    assert one["mean"] == pytest.approx(60, abs=5) and other["mean"] == pytest.approx(120, abs=5)


def test_a_recipe_is_planned_for_several_channels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "FOREGROUND_VOXELS", 10_000)
    names = ("CT", "CT", "PET")
    folder = several_phases(tmp_path / "d", names)
    assert main(["cases", "--images", str(folder), "--out", "c.csv"]) == 0
    Path("mine.yaml").write_text("{extends: default, models: {teacher: {cases: labeled, trainer: {kind: partial}}}}")
    assert main(["recipe", "plan", "mine.yaml", "--cases", "c.csv", "--out", "planned.yaml"]) == 0
    plan = load_recipe("planned.yaml").plans["fine"]
    assert plan.channels == names and plan.inputs == 3
    assert [plan.ct_of(number).mean for number in range(2)] == pytest.approx([60, 120], abs=3)
    assert main(["recipe", "check", "planned.yaml", "--cases", "c.csv"]) == 0


def test_a_ct_channel_that_is_constant_in_all_cases_has_no_plan():
    intensities = np.array([range(9), [0] * 9], np.float32)
    shape = CaseShape("CT", (3.0, 2.0, 2.0), (24, 24, 24), 1.0, intensities)
    with pytest.raises(UserError, match=r"channel 2 \(CT\): every value inside .* of 1 case is 0, .*leave it out"):
        plan_for([shape], 1, 2, channels=("CT", "CT"))
    assert plan_for([shape], 1, 2, channels=("CT", "PET")).channels == ("CT", "PET")


def test_a_plan_of_other_channels_than_the_images_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["cases", "--images", str(several_phases(tmp_path / "d")), "--out", "c.csv"]) == 0
    Path("mine.yaml").write_text("{extends: default, plans: {fine: {channels: [CT, PET]}}}")
    assert main(["recipe", "plan", "mine.yaml", "--cases", "c.csv", "--out", "planned.yaml"]) == 2
    assert "have CT, CT, and those of plan fine, or of other data sets, CT, PET" in capsys.readouterr().err
    assert not Path("planned.yaml").exists()


def test_a_recipe_that_is_there_is_not_written_over_and_plans_are_named(phantom, tmp_path, capsys):
    out = tmp_path / "mine.yaml"
    command = ["recipe", "plan", "default", "--cases", str(phantom), "--out", str(out)]
    assert main([*command, "--plan", "fin"]) == 2
    assert "no plan fin; did you mean 'fine'?" in capsys.readouterr().err
    out.write_text("mine")
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err and out.read_text() == "mine"


def test_a_collection_without_labels_has_no_plan():
    with pytest.raises(UserError, match="none of 0 labeled train cases"):
        shapes_of([], SCHEME, ["liver"], most=5)
