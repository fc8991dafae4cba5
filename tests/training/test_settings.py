import subprocess
import sys

import pytest
from pydantic import ValidationError

from labelloop.training.settings import TrainerSettings


def test_light_to_import():
    heavy = "{'torch', 'nnunetv2', 'blosc2'}"
    code = f"import sys, labelloop.training.settings; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_settings_survive_a_round_trip():
    settings = TrainerSettings(kind="partial", merge="max", mirror_axes=("y",))
    assert TrainerSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "supervised", "merge": "max"}, "merge is read by trainer partial only"),
        ({"kind": "partial", "unknown": "background"}, "unknown is read by trainer supervised only"),
        ({"export": "best", "validation_iterations": 0}, "validation_iterations above 0"),
        ({"mirror_axes": ("x", "x")}, "twice"),
        ({"epoch": 3}, "Extra inputs"),
    ],
)
def test_contradictions_are_refused(wrong, words):
    with pytest.raises(ValidationError, match=words):
        TrainerSettings(**wrong)
