"""Each old spelling of a recipe is refused with the new one."""

import re

import pytest
import yaml

from labelloop.base.errors import UserError
from labelloop.recipe import load_recipe
from labelloop.recipe.spellings import SPELLINGS

SMALL = {
    "plans": {"p": {"spacing_mm": [5, 5, 5], "patch": [32, 32, 32], "features": [4, 8]}},
    "models": {"m": {"plan": "p"}},
    "inference": [{"segment": "m"}],
}
EPOCHS = {"epochs": 3}
OLD_TRAINERS = [
    ({"kind": "mean_teacher", "mean_teacher": {True: "all"}}, "mean_teacher: .*on is consistency_on, weight is consis"),
    ({"kind": "cross_pseudo", "cross": {"samples": "all"}}, "cross: .*weight is cross_weight, samples is cross_on"),
    ({"kind": "slice_classifier", "slices": {"size": 64}}, "slices: .*beside `kind`"),
    ({"kind": "translator", "translator": EPOCHS}, "translator: .*beside `kind`"),
    ({"kind": "partial", "sampling": "cases"}, "sampling: .*write sampling: uniform"),
    ({"kind": "partial", "schedule": 0.9}, "schedule: .*write poly_exponent"),
    ({"kind": "mean_teacher", "unlabeled": {"after": 0.1}}, "unlabeled.after: .*write burn_in"),
    ({"kind": "mean_teacher", "unlabeled": {"confidence": 0.1}}, "unlabeled.confidence: .*write confidence_threshold"),
    ({"kind": "mean_teacher", "unlabeled": {"strong_view": True}}, "unlabeled.strong_view: .*write strong_augment"),
    ({"kind": "partial", "batches": {"fewest_cases": 2}}, "batches.fewest_cases: .*write min_cases"),
    ({"kind": "partial", "cutmix": {"at_least_ml": 2}}, "cutmix.at_least_ml: .*write min_ml"),
    ({"kind": "partial", "cutmix": {"number": 2}}, "cutmix.number: .*write objects_per_patch"),
]
OLD_CLEANING = [
    ({"step": "islands", "classes": "liver", "below_ml": 1}, r"islands is \{remove_islands: CLASSES\}"),
    ({"step": "keep_levels", "classes": "liver", "of": "spleen"}, r"keep_levels is \{keep_slices: CLASSES\}"),
    ({"step": "tumor_outside_abdomen"}, r"tumor_outside_abdomen is \{remove_outside_abdomen: tumor\}"),
    ({"keep_largest": "liver", "from_mm": 240}, "from_mm: .*write taller_than_mm"),
]
OLD_STEPS = [
    ({"keep_largest": "liver"}, r"inference\.1\.keep_largest: .*write \{clean: \{keep_largest: CLASSES\}\}"),
    ({"keep_largest": "liver", "near": "liver", "within_z_mm": 9}, r"inference\.1\.near: .*remove_distant_islands"),
    ({"keep_largest": "liver", "near": "liver", "within_z_mm": 9}, r"inference\.1\.within_z_mm: .*see `near`"),
    ({"locate": "m", "from_mm": 9}, r"inference\.1\.from_mm: .*write min_height_mm"),
]
OTHERS = [
    (
        {"labels": {"l": {"predict": "m", "select": {"demote": "drop"}}}},
        r"labels\.l\.select\.demote: .*write if_refused",
    ),
    (
        {"labels": {"l": {"predict": "m", "select": {"absence": "all"}}}},
        r"select\.absence: .*write absent_if_not_found",
    ),
    ({"outside": {"tool": {"files": "{case}.nii.gz"}}}, "outside: .*write external"),
    ({"evaluate": {"rules": "corrected"}}, r"evaluate\.rules: .*write protocol"),
    ({"engine": {"skip": {"kind": "probe_first", "from_levels": 3}}}, r"engine\.skip\.from_levels: .*write min_levels"),
    (
        {"labels": {"l": {"predict": "m", "transfer": {"grow_mm": 7, "grow_z_mm": 9}}}},
        r"transfer\.grow_mm: .*write dilate_mm",
    ),
]
OLD = [
    *OTHERS,
    *(({"models": {"m": {"plan": "p", "trainer": old}}}, rf"models\.m\.trainer\.{new}") for old, new in OLD_TRAINERS),
    *(({"trainers": {"t": old}}, rf"trainers\.t\.{new}") for old, new in OLD_TRAINERS),
    *(
        ({"labels": {"l": {"predict": "m", "clean": [old]}}}, rf"labels\.l\.clean\.0.*{new}")
        for old, new in OLD_CLEANING
    ),
    *(
        ({"inference": [{"segment": "m"}, {"clean": [old]}]}, rf"inference\.1\.clean\.0.*{new}")
        for old, new in OLD_CLEANING
    ),
    *(({"inference": [{"segment": "m"}, old]}, new) for old, new in OLD_STEPS),
]


def refused(tmp_path, changes):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    with pytest.raises(UserError) as error:
        load_recipe(path)
    return str(error.value)


@pytest.mark.parametrize(("changes", "message"), OLD)
def test_an_old_spelling_is_told_the_new_one(tmp_path, changes, message):
    found = refused(tmp_path, changes)
    assert re.search(rf"mine\.yaml: .*{message}", found), found


def test_every_old_spelling_is_tested(tmp_path):
    found = "\n".join(refused(tmp_path, changes) for changes, _ in OLD)
    assert all(spelling.new in found for spelling in SPELLINGS)


def test_all_old_spellings_come_at_once(tmp_path):
    found = refused(tmp_path, OLD[0][0] | OLD[-1][0])
    assert len(found.splitlines()) == 2
