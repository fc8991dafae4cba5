"""One collection and one finished run for all tests of the workflow."""

import pytest
from tiny_project import Collection, Project


@pytest.fixture(scope="session")
def collection(tmp_path_factory) -> Collection:
    """Good and bad scans."""
    return Collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="session")
def reference(tmp_path_factory, collection) -> Project:
    """A run from scratch to the end, never interrupted. Do not change it: copy it."""
    project = Project.new(tmp_path_factory.mktemp("reference") / "project", collection.table)
    project.opened = tmp_path_factory.mktemp("opened")
    project.run()
    return project


@pytest.fixture
def copied(reference, tmp_path) -> Project:
    """A copy of the finished run, to change."""
    return reference.copy(tmp_path / "project")
