"""The packages of labelloop in layers: lower ones know nothing of higher ones, as the design page draws them."""

import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "structure"))

from imports import imported

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "labelloop"
PACKAGES = sorted(folder.name for folder in SOURCE.iterdir() if (folder / "__init__.py").is_file())
MOST_LAYERS = 9
OTHER_TESTS = {"benchmarks", "workflow"}
"""Folders of tests that are not named as a package."""


@pytest.fixture(scope="module")
def below() -> dict[str, set[str]]:
    """The packages that each package imports from."""
    files = {package: (SOURCE / package).rglob("*.py") for package in PACKAGES}
    return {package: set().union(*map(imported, some)) & set(PACKAGES) - {package} for package, some in files.items()}


def test_no_module_lies_beside_the_packages():
    assert {file.name for file in SOURCE.glob("*.py")} == {"__init__.py"}


def test_the_tests_of_a_package_lie_in_a_folder_of_its_name():
    folders = {file.parent.name for file in (ROOT / "tests").glob("*/test_*.py")}
    assert folders - OTHER_TESTS <= set(PACKAGES)


def test_no_package_imports_from_one_above(below):
    layers: dict[str, int] = {}
    for package in TopologicalSorter(below).static_order():  # raises CycleError
        layers[package] = 1 + max((layers[lower] for lower in below[package]), default=0)
    assert max(layers.values()) <= MOST_LAYERS


def test_the_design_page_draws_the_layers(below):
    drawn = re.search(r"## Packages\n.*?```\n(.*?)```", (ROOT / "docs" / "design.md").read_text(), re.DOTALL)
    layers = [re.split(r"\s{2,}", line)[0].split(", ") for line in drawn[1].splitlines()]
    order = {package: number for number, layer in enumerate(layers) for package in layer}
    assert sorted(order) == PACKAGES
    assert not [(package, lower) for package in PACKAGES for lower in below[package] if order[lower] >= order[package]]
