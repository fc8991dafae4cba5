"""Settings that count for nothing beside others are refused, with the reason; their defaults are not."""

import pytest
from pydantic import ValidationError

from labelloop.labels.settings import KeepLargest, SelectSettings
from labelloop.networks.nnunet_plan import NnunetPlan
from labelloop.networks.plans import Plan
from labelloop.networks.settings import TransferSettings
from labelloop.recipe.spec import LabelSetSpec, ModelSpec
from labelloop.training.settings import (
    BatchTypes,
    CrossPseudoSettings,
    MeanTeacherSettings,
    PartialSettings,
    SupervisedSettings,
    Unlabeled,
)

SMALL = {"spacing_mm": [5, 5, 5], "patch": [32, 32, 32], "features": [4, 8]}
THEIRS = SMALL | {
    "strides": [[1, 1, 1], [2, 2, 2]],
    "kernels": [[3, 3, 3], [3, 3, 3]],
    "norm": {},
    "nonlinearity": {},
    "normalization": {"kind": "zscore"},
}
HU = {"clip_hu": [-100, 200], "mean": 0, "std": 50}


@pytest.mark.parametrize(
    ("settings", "others", "idle"),
    [
        (SupervisedSettings, {"optimizer": "adamw"}, {"momentum": 0.9}),
        (CrossPseudoSettings, {"optimizer": "adamw"}, {"momentum": 0.9}),
        (PartialSettings, {"batches": {}}, {"sampling": {"truth_share": 0.1}}),
        (BatchTypes, {}, {"full_first_epochs": 3}),
        (BatchTypes, {}, {"alternate": False}),
        (Unlabeled, {}, {"balanced": True}),
        (MeanTeacherSettings, {"consistency": False}, {"unlabeled": {"share": 0.25}}),
        (MeanTeacherSettings, {"consistency": False}, {"consistency_weight": 1}),
        (MeanTeacherSettings, {"noise": 0}, {"noise_limit": 0.1}),
        (SelectSettings, {}, {"confidence": None}),
        (SelectSettings, {}, {"calibration": "table.csv"}),
        (SelectSettings, {"min_pairwise_dice": 0.5}, {"rank": "unlabeled"}),
        (KeepLargest, {"keep_largest": "liver"}, {"above_mm": 5}),
        (LabelSetSpec, {"predict": "m", "fuse": "predictions_only"}, {"tumor_voxels": "nearest_organ"}),
        (ModelSpec, {"plan": "p", "validation_fraction": 0}, {"validation_seed": 1}),
        (ModelSpec, {"plan": "p", "trainer": "translator"}, {"classes": ["liver"]}),
        (TransferSettings, {"both": []}, {"both_kidneys_dsc": 0.5}),
        (Plan, SMALL | {"grey": {}}, {"ct": HU}),
        (NnunetPlan, THEIRS, {"ct": HU}),
    ],
)
def test_what_counts_for_nothing_is_refused(settings, others, idle):
    key = next(iter(idle))
    made = settings.model_validate(others)
    assert settings.model_validate(made.model_dump(mode="json", by_alias=True)) == made
    with pytest.raises(ValidationError, match=rf"{key}: without effect .*\. Leave it out"):
        settings.model_validate(others | idle)
