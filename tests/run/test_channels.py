"""Images of several channels: what a recipe and a case table cannot do with them is said before the first job."""

import pytest
import yaml

from labelloop.base.errors import UserError
from labelloop.cli.main import main
from labelloop.recipe import load_recipe
from labelloop.run.run import Run

DATASET = "{name: pet, modality: CT, channels: [CT, PET], labels: {1: liver}}"
HEADER = "case,image,label,dataset,annotated"
TWO = {"plans": {"fine": {"channels": ["CT", "PET"]}}}


def recipe(tmp_path, content, extends="default_demo"):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "extends": extends} | content))
    return str(path)


def problems(tmp_path, dataset, images, content=None):
    (tmp_path / "pet.yaml").write_text(DATASET)
    for number in range(6):
        for file in (*images.split(";"), "l"):
            (tmp_path / f"{number}{file}.nii.gz").write_bytes(b"x")
    rows = [
        f"{n},{';'.join(f'{n}{file}.nii.gz' for file in images.split(';'))},{n}l.nii.gz,{dataset},all" for n in range(6)
    ]
    table = tmp_path / "cases.csv"
    table.write_text("\n".join([HEADER, *rows]) + "\n")
    run = Run({"cases": str(table), "recipe": recipe(tmp_path, content or {}), "results": str(tmp_path / "results")})
    assert run.rejected == []
    files = [str(tmp_path / f"0{file}.nii.gz") for file in (*images.split(";"), "l")]
    (shard,) = (shard for shard in run.shards.train if "0" in {case.case for case in run.shards.cases[shard]})
    assert set(files) <= set(run.shards.files(shard))
    return [line for line in run.problems() if "channel" in line]


def test_models_take_the_channels_that_the_data_sets_have(tmp_path):
    assert problems(tmp_path, "pet.yaml", "a;b", TWO) == problems(tmp_path, "flare22", "a") == []
    (line,) = problems(tmp_path, "pet.yaml", "a;b")
    assert "plans.fine: images of data set pet have CT, PET" in line and "Write channels: [CT, PET] there" in line
    (line,) = problems(tmp_path, "flare22", "a", TWO)
    assert "images of data set flare22 have one channel, and the models take CT, PET" in line


REFUSED = {
    "one": ("default_demo", {"plans": {"fine": {"channels": ["CT"]}}}, "plans.fine.channels: .*names one channel"),
    "grey": ("default_demo", {"plans": {"fine": {"channels": ["CT", "PET"], "grey": {}}}}, "grey: done to images of"),
    "unnormalized": (
        "default_demo",
        {"plans": {"fine": {"channels": ["CT", "noNorm"]}}},
        "noNorm asks nnU-Net for another normalization",
    ),
    "cutmix": (
        "best_demo",
        {"plans": {"fine": {"channels": ["CT", "PET"]}, "coarse": {"channels": ["CT", "PET"]}}},
        r"cutmix: pastes into images of one channel, and there are CT, PET",
    ),
    "slices": ("two_stage_demo", None, "a slice classifier sees one channel"),
    "differ": ("two_stage_demo", {"plans": {"small": {"channels": ["CT", "PET"]}}}, "plans have other channels"),
    "command": (
        "default_demo",
        TWO | {"external": {"tool": {"command": "x {image} {output}", "version": "x", "dataset": "flare22"}}},
        "external.tool.command: is given one file an image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_takes_one_channel_is_refused(tmp_path, kind):
    extends, content, found = REFUSED[kind]
    known = load_recipe(extends).plans
    if content is None:
        content = {"plans": {name: {"channels": ["CT", "PET"]} for name in known}}
    content["plans"] = {name: plan for name, plan in content["plans"].items() if name in known}
    with pytest.raises(UserError, match=found):
        load_recipe(recipe(tmp_path, content, extends))


def test_no_scan_of_one_channel_is_measured_for_plans_of_several(tmp_path, capsys):
    given = ["recipe", "cost", recipe(tmp_path, TWO), "--cases", "4"]
    assert main(given) == 0
    assert main([*given, "--scans", str(tmp_path / "scan.nii.gz")]) == 2
    assert "--scans: a scan is one channel, and plan fine takes several" in capsys.readouterr().err
