"""Profiles: a misspelt one is an error, and the two that are shipped agree where they must."""

from pathlib import Path

import pytest
import yaml

from labelloop.base.errors import UserError
from labelloop.run.profiles import check_profiles

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workflow-profile", "slrum"],
        ["--workflow-profile=slrum", "-n"],
        ["--workflow-p", "slrum"],
        ["--workflow-profile", "slurm", "--workflow-profile", "slrum"],
    ],
)
def test_misspelt_profile_is_an_error_that_names_the_nearest(arguments):
    with pytest.raises(UserError, match=r"slrum: no such profile.*did you mean .slurm"):
        check_profiles(["snakemake", *arguments], ROOT)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--cores", "all"],
        ["--workflow-profile", "slurm"],
        ["--workflow-profile=default"],
        ["--workflow-profile", "none"],
        ["--workflow-profile", str(ROOT / "profiles" / "slurm" / "profile.yaml")],
        ["--profile", "slrum"],  # Snakemake itself refuses this one
        ["--cores", "1", "--", "--workflow-profile"],
    ],
)
def test_existing_profile_or_none_passes(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_profiles(["snakemake", *arguments], ROOT)


def test_profile_in_the_working_folder_passes(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    check_profiles(["snakemake", "--workflow-profile", "mine"], ROOT)


def test_slurm_profile_works_alone_and_is_not_overridden_by_default():
    """``--workflow-profile slurm`` replaces profiles/default; ``--profile slurm`` is overridden by it, key by key."""
    default, slurm = (
        yaml.safe_load((ROOT / "profiles" / name / "profile.yaml").read_text()) for name in ("default", "slurm")
    )
    assert default == {key: slurm[key] for key in default}


def test_profile_slurm_is_found_from_the_root():
    assert (ROOT / "slurm").resolve() == ROOT / "profiles" / "slurm"
