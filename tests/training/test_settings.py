import subprocess
import sys

import pytest
from pydantic import ValidationError

from labelloop.training.settings import TrainerSettings


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
        {"kind": "cross_pseudo", "cross": {"ramp": 0.5}, "deep_supervision": "all_outputs"},
    ],
)
def test_settings_survive_a_round_trip(given):
    settings = TrainerSettings(**given)
    assert TrainerSettings.model_validate(settings.model_dump(mode="json")) == settings
    assert TrainerSettings.model_validate(settings.model_dump(mode="json", exclude_none=True)) == settings


def test_a_trainer_has_its_own_settings_also_unasked():
    assert TrainerSettings(kind="mean_teacher").mean_teacher.consistency is True
    assert TrainerSettings(kind="cross_pseudo").cross.weight == 1.0
    assert TrainerSettings().mean_teacher is TrainerSettings().cross is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "supervised", "merge": "max"}, "merge is read by trainer partial and mean_teacher and cross_pseudo"),
        ({"kind": "supervised", "cutmix": {}}, "cutmix is read by trainer partial only"),
        ({"kind": "mean_teacher", "cross": {}}, "cross is read by trainer cross_pseudo only"),
        ({"kind": "partial", "batches": {"full_first_epochs": 3}}, "full_first_epochs needs `full`"),
        ({"kind": "partial", "unknown": "background"}, "unknown is read by trainer supervised only"),
        ({"kind": "translator", "epochs": 5}, "epochs is not read by trainer translator"),
        ({"kind": "partial", "translator": {}}, "translator is read by trainer translator only"),
        ({"export": "best", "validation_iterations": 0}, "validation_iterations above 0"),
        ({"mirror_axes": ("x", "x")}, "twice"),
        ({"epoch": 3}, "Extra inputs"),
    ],
)
def test_contradictions_are_refused(wrong, words):
    with pytest.raises(ValidationError, match=words):
        TrainerSettings(**wrong)
