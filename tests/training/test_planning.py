"""Plans for a collection and a card; ``benchmarks/planning`` compares them with those of nnU-Net's commands."""

from dataclasses import replace

import numpy as np
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.cli.main import main
from labelloop.images.volume import Geometry, Volume
from labelloop.training.planning import CaseShape, case_shape, plan_for, shapes_of

SCHEME = load_classes("flare")


def test_what_the_card_holds_decides_the_batch():
    shape = CaseShape("MR", (4.0, 2.0, 2.0), (24, 64, 64), 1.0, np.arange(9, dtype=np.float32))
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
