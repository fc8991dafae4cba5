import subprocess
import sys

import pytest
from pydantic import ValidationError

from labelloop.training.settings import CrossPseudoSettings, MeanTeacherSettings, SupervisedSettings, trainer_settings


def test_light_to_import():
    heavy = "{'torch', 'nnunetv2', 'blosc2'}"
    code = f"import sys, labelloop.training.settings; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "partial", "merge": "max", "mirror_axes": ("y",), "cutmix": {"probability": 0.5}},
        {"kind": "partial", "batches": {"full": "organs_full", "full_first_epochs": 5}},
        {"kind": "mean_teacher"},
        {"kind": "cross_pseudo", "cross_ramp": 0.5, "deep_supervision": "all_outputs"},
    ],
)
def test_settings_survive_a_round_trip(given):
    settings = trainer_settings(given)
    assert trainer_settings(settings.model_dump(mode="json")) == settings
    assert trainer_settings(settings.model_dump(mode="json", exclude_none=True)) == settings


def test_each_kind_has_its_own_settings_and_supervised_is_the_default():
    assert trainer_settings("mean_teacher") == MeanTeacherSettings()
    assert trainer_settings({"kind": "cross_pseudo"}) == CrossPseudoSettings()
    assert trainer_settings({}) == SupervisedSettings()
    assert not hasattr(SupervisedSettings(), "cutmix")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "supervised", "merge": "max"}, "merge\n +Extra inputs"),
        ({"merge": "max"}, "merge\n +Extra inputs"),
        ({"kind": "supervised", "cutmix": {}}, "cutmix\n +Extra inputs"),
        ({"kind": "mean_teacher", "cross_weight": 1}, "cross_weight\n +Extra inputs"),
        ({"kind": "partial", "batches": {"full_first_epochs": 3}}, "full_first_epochs: without effect without `full`"),
        ({"kind": "partial", "unknown": "background"}, "unknown\n +Extra inputs"),
        ({"kind": "translator", "momentum": 0.9}, "momentum\n +Extra inputs"),
        ({"kind": "partal"}, "expected kind: supervised, partial, .* or translator"),
        ({"export": "best", "validation_iterations": 0}, "validation_iterations above 0"),
        ({"mirror_axes": ("x", "x")}, "twice"),
        ({"epoch": 3}, "Extra inputs"),
        ({"seed": 2**32}, "seed\n +Input should be less than 4294967296"),
        ({"kind": "translator", "seed": 2**32}, "seed\n +Input should be less than 4294967296"),
    ],
)
def test_contradictions_are_refused(wrong, words):
    with pytest.raises(ValidationError, match=words):
        trainer_settings(wrong)
