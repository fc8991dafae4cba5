"""The rooms of the package: lower floors know nothing of higher ones, as the design page draws them."""

import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "structure"))

from imports import imported

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "labelloop"
ROOMS = sorted(folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file())
MOST_FLOORS = 9
OTHER_TESTS = {"benchmarks", "workflow"}
"""Folders of tests that are not named as a room."""


@pytest.fixture(scope="module")
def below() -> dict[str, set[str]]:
    """The rooms that each room imports from."""
    files = {room: (PACKAGE / room).rglob("*.py") for room in ROOMS}
    return {room: set().union(*map(imported, some)) & set(ROOMS) - {room} for room, some in files.items()}


def test_no_module_lies_beside_the_rooms():
    assert {file.name for file in PACKAGE.glob("*.py")} == {"__init__.py"}


def test_the_tests_of_a_room_lie_in_a_folder_of_its_name():
    folders = {file.parent.name for file in (ROOT / "tests").glob("*/test_*.py")}
    assert folders - OTHER_TESTS <= set(ROOMS)


def test_no_room_imports_from_one_above(below):
    floors: dict[str, int] = {}
    for room in TopologicalSorter(below).static_order():  # raises CycleError
        floors[room] = 1 + max((floors[lower] for lower in below[room]), default=0)
    assert max(floors.values()) <= MOST_FLOORS


def test_the_design_page_draws_the_floors(below):
    drawn = re.search(r"## Rooms\n.*?```\n(.*?)```", (ROOT / "docs" / "design.md").read_text(), re.DOTALL)
    floors = [re.split(r"\s{2,}", line)[0].split(", ") for line in drawn[1].splitlines()]
    order = {room: number for number, floor in enumerate(floors) for room in floor}
    assert sorted(order) == ROOMS
    assert not [(room, lower) for room in ROOMS for lower in below[room] if order[lower] >= order[room]]
