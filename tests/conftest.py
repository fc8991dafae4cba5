"""Order of the tests: two processes share them, and tests that share what they prepare stay together."""

import pytest


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the long tests of the workflow in one process, while the other takes the files one by one."""
    items.sort(key=lambda item: "workflow" not in item.path.parts)
    for item in items:
        name = "workflow" if "workflow" in item.path.parts else item.path.name
        item.add_marker(pytest.mark.xdist_group(name))
