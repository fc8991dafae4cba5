"""Models that are not trained here, in a recipe: their form, their names, what they know, what they may be asked."""

import json
import re

import pytest
from tiny_nnunet import configuration, save_nnunet

from labelloop.base.errors import UserError
from labelloop.inference.external import CommandModel, FilesModel, classes_of
from labelloop.recipe import load_recipe, unroll
from labelloop.run import cost
from labelloop.run.chain import describe, graph, needed, ordered

COMMAND = {"command": "tool -i {image} -o {output}", "version": "tool --version", "dataset": "flare22"}
FILES = {"files": "made/{case}.nii.gz", "dataset": "flare22"}
BOTH = {"pseudo": {"predict": ["tool", "teacher"]}}


def load(folder, external, **changes):
    """Load a recipe like `default` with external models."""
    path = folder / "own.yaml"
    path.write_text(json.dumps({"extends": "default", "external": external} | changes))
    return load_recipe(path)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"comand": "x"}, ": expected a model with one of the keys nnunet, command or files"),
        (COMMAND | {"lisense": "MIT"}, ".lisense: unknown key of command; did you mean 'license'?"),
        (COMMAND | {"folds": [0]}, ".folds: belongs to nnunet, and this is command"),
        (FILES | {"nnunet": "x"}, ".nnunet: a model does one thing, and this one is 'files'"),
        (COMMAND | {"command": "tool {image} {ouput}"}, "no placeholder {ouput}; did you mean 'output'?"),
        (COMMAND | {"command": "tool {image}"}, "lacks {output}"),
        (COMMAND | {"command": "tool '{image} {output}"}, "cannot be split into words"),
        (FILES | {"files": "made/x.nii.gz"}, "lacks {case}"),
        (FILES | {"dataset": "flare2"}, ".dataset: no data set 'flare2'"),
        (FILES | {"learned_from": ["btvc"]}, ".learned_from: no data set 'btvc'"),
        (FILES | {"classes": ["livr"]}, ".classes: no class or set 'livr'; did you mean 'liver'?"),
        (FILES | {"classes": ["tumor"]}, ".classes: data set flare22 names no 'tumor'; its classes in flare: liver, "),
        ({"like": "tol"}, ".like: no such name 'tol' under external"),
    ],
)
def test_a_mistake_in_a_model_is_refused_with_its_place(tmp_path, model, said):
    with pytest.raises(UserError, match=f"own.yaml: external.tool.*{re.escape(said)}"):
        load(tmp_path, {"tool": model})


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        (["teacher"], {}, "external.teacher: a model or label set has the same name"),
        (["a b"], {}, "'a b': names are"),
        (
            ["tool"],
            {"labels": {"pseudo": {"predict": ["tol"]}}},
            "labels.pseudo.predict: no such name 'tol'; did you m",
        ),
        (["tool"], {"inference": [{"segment": "tool"}]}, "inference.0.segment: 'tool' is an external model"),
        (["tool"], {"models": {"student": {"init_from": "tool"}}}, "models.student.init_from: 'tool' is an external "),
    ],
)
def test_a_name_in_the_wrong_place_is_refused(tmp_path, names, changes, said):
    with pytest.raises(UserError, match=re.escape(said)):
        load(tmp_path, dict.fromkeys(names, FILES), **changes)


def test_all_mistakes_are_told_at_once(tmp_path):
    external = {"a": FILES | {"dataset": "flare2"}, "b": COMMAND | {"learned_from": ["btvc"]}}
    with pytest.raises(UserError) as caught:
        load(tmp_path, external)
    assert re.search(r"external\.a\.dataset", str(caught.value)) and re.search(
        r"external\.b\.learned_from", str(caught.value)
    )


def test_a_model_knows_the_classes_that_its_data_set_names_and_that_count(tmp_path):
    recipe = load(tmp_path, {"a": FILES, "b": {"like": "a", "classes": ["liver", "spleen"]}})
    assert set(recipe.classes_of("a")) == set(recipe.scheme.sets["organs"])  # flare22 has no tumor
    assert recipe.classes_of("b") == recipe.scheme.select(["liver", "spleen"])
    partly = FilesModel(files="{case}", dataset="msd_spleen")
    assert classes_of(partly, recipe.scheme) == ("spleen",)


def test_external_models_stand_in_the_chain_and_are_not_trained(tmp_path):
    chain = unroll(load(tmp_path, {"tool": COMMAND | {"license": "MIT"}, "idle": FILES}, labels=BOTH))
    assert "tool" in needed(chain) and "idle" not in needed(chain)
    assert ordered(chain).index("tool") < ordered(chain).index("pseudo")
    assert "model tool: not trained here, command tool -i {image} -o {output}" in describe(chain)
    assert "license MIT" in describe(chain)
    boxes = {box["name"]: box for box in graph(chain)}
    assert boxes["tool"]["title"] == "model tool, not trained here" and not boxes["tool"]["parents"]
    assert "tool" in boxes["pseudo"]["parents"]


def test_an_external_model_is_replaced_by_the_student_from_the_second_round_on(tmp_path):
    labels = {"pseudo": {"predict": ["tool"], "select": {"min_pairwise_dice": None}}}
    chain = unroll(load(tmp_path, {"tool": FILES}, labels=labels, rounds=2, feedback={"tool": "student"}))
    assert chain.labels["pseudo_round1"].predict == ("tool",)
    assert chain.labels["pseudo"].predict == ("student_round1",)


def test_the_cost_counts_what_is_trained_here_and_says_what_it_leaves_out(tmp_path):
    found = cost.cost_of(load(tmp_path, {"tool": COMMAND}, labels=BOTH), cost.Setting(100))
    assert {p.model for p in found.predictions} >= {"teacher"} and "tool" not in {p.model for p in found.predictions}
    assert found.jobs["predict_external"] == found.setting.shards("train")
    assert "What external models take is not in these numbers: tool." in list(cost.lines(found))


def test_what_is_put_into_a_command_stays_within_its_word():
    model = CommandModel(command="tool '{case} x' --in={image} {output}", version="tool", dataset="flare22")
    values = {"case": "a; rm -rf /", "image": "/scans/my $(scan).nii.gz", "output": "{case}", "device": "cpu"}
    assert model.words(values) == ["tool", "a; rm -rf / x", "--in=/scans/my $(scan).nii.gz", "{case}"]


FINE = {"fine": {"like": "zoo"}}
STARTING = {"student": {"init_from": "zoo"}}


def zoo(folder, **changes) -> dict:
    """Return a model of nnU-Net's, of two folds, as a recipe names it, with its files."""
    save_nnunet(folder, configuration(residual=True, batch_size=3), folds=(0, 1))
    return {"nnunet": str(folder / "Dataset001_Tiny"), "dataset": "flare22", "folds": [1]} | changes


def test_a_plan_is_like_that_of_a_model_of_nnunet_and_takes_nothing_else(tmp_path):
    recipe = load(tmp_path, {"zoo": zoo(tmp_path)}, plans=FINE, models=STARTING)
    plan = recipe.plans["fine"]
    assert (plan.spacing_mm, plan.patch, plan.batch_size, plan.batch_dice) == ((2.5, 1.5, 1.5), (16, 16, 16), 3, True)
    assert plan.residual and plan.folds == 1 and plan.spline == 3
    assert plan.normalization.kind == "ct" and plan.normalization.mean == 60
    assert "student" in {training.model for training in cost.cost_of(recipe, cost.Setting(100)).trainings}


def test_a_plan_is_like_that_of_a_model_of_several_channels_whose_names_may_be_others(tmp_path):
    given = {"normalization_schemes": ["CTNormalization", "ZScoreNormalization"], "use_mask_for_norm": [False, False]}
    save_nnunet(tmp_path, configuration(**given), channels={"0": "CT", "1": "PET"})
    external = {"zoo": {"nnunet": str(tmp_path / "Dataset001_Tiny"), "dataset": "flare22"}}
    for names in ({}, {"channels": ["CT", "SUV"]}):
        plan = load(tmp_path, external, plans={"fine": {"like": "zoo"} | names}, models=STARTING).plans["fine"]
        assert plan.channels == tuple(names.get("channels", ("CT", "PET")))
        assert [one.kind for one in plan.normalizations] == ["ct", "zscore"]
    with pytest.raises(UserError, match=r"takes CT, PET, and the plans .* have PET, CT\. Write them.* in the order of"):
        load(tmp_path, external, plans={"fine": {"like": "zoo", "channels": ["PET", "CT"]}}, models=STARTING)
    with pytest.raises(UserError, match="expected one for each of 3 channels"):
        load(tmp_path, external, plans={"fine": {"like": "zoo", "channels": ["CT", "PET", "T1"]}}, models=STARTING)


def test_a_key_beside_like_overrides_the_model_and_strange_ones_are_refused(tmp_path):
    external = {"zoo": zoo(tmp_path)}
    small = {"fine": {"like": "zoo", "batch_size": 1, "orientation": "canonical"}}
    plan = load(tmp_path, external, plans=small, models=STARTING).plans["fine"]
    assert (plan.batch_size, plan.orientation, plan.patch) == (1, "canonical", (16, 16, 16))
    with pytest.raises(UserError, match=r"fine.batchsize: unknown key of nnunet_plan; did you mean 'batch_size'"):
        load(tmp_path, external, plans={"fine": {"like": "zoo", "batchsize": 1}})
    with pytest.raises(UserError, match=r"plans.fine: .*upright: without effect in a plan of nnU-Net's"):
        load(tmp_path, external, plans={"fine": {"like": "zoo", "upright": True}})


@pytest.mark.parametrize(
    ("changes", "plan", "said"),
    [
        (
            {"folds": []},
            FINE,
            "models.student.init_from: 'zoo' is the mean of folds 0, 1, and a training ",
        ),
        ({}, {}, "models.student.init_from: the plans fine and of zoo have different networks (features "),
        ({"nnunet": "gone"}, FINE, "plans.fine.like: gone: no such file or folder"),
        (
            {},
            {"fine": {"like": "zooo"}},
            "plans.fine.like: no such name 'zooo' under plans or external; did you mean 'zoo'",
        ),
        ({}, {"fine": {"like": "zoo", "norm": {"eps": 0.1}}}, "different networks (norm {'eps': 0.1, "),
    ],
)
def test_what_keeps_a_training_from_starting_from_a_model_of_nnunet_is_told(tmp_path, changes, plan, said):
    with pytest.raises(UserError, match=re.escape(said)):
        load(tmp_path, {"zoo": zoo(tmp_path, **changes)}, plans=plan, models=STARTING)


@pytest.mark.parametrize("orientation", ["stored", "canonical"])
@pytest.mark.parametrize("axes", [[], ["z"], ["x", "y"], ["x", "y", "z"]])
def test_axes_of_the_patient_are_no_axes_of_images_as_they_are_stored(tmp_path, orientation, axes):
    changes = {
        "plans": {"fine": {"like": "zoo", "orientation": orientation}},
        "models": {"student": {"init_from": "zoo", "trainer": {"mirror_axes": axes}}},
    }
    if orientation == "canonical" or len(axes) in (0, 3):
        assert load(tmp_path, {"zoo": zoo(tmp_path)}, **changes).models["student"].trainer.mirror_axes == tuple(axes)
        return
    said = f"models.student.trainer.mirror_axes: {', '.join(axes)} are axes of the patient, and plans.fine "
    with pytest.raises(UserError, match=re.escape(said)):
        load(tmp_path, {"zoo": zoo(tmp_path)}, **changes)


def test_other_external_models_have_no_plan(tmp_path):
    with pytest.raises(UserError, match=r"plans.fine.like: 'tool' is an external model; of these, nnU-Net's"):
        load(tmp_path, {"tool": FILES}, plans={"fine": {"like": "tool"}})
