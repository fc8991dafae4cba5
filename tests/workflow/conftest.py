"""One collection and one finished run for all tests of the workflow, whichever processes share them."""

import os
import pickle
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_project import Collection, Project


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all processes of these tests have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def collection(shared) -> Collection:
    """Good and bad scans. Not to be altered."""
    made = shared / "collection.pickle"
    with FileLock(shared / "collection.lock"):
        if not made.is_file():
            made.write_bytes(pickle.dumps(Collection(shared / "collection")))
        return pickle.loads(made.read_bytes())


@pytest.fixture(scope="session")
def reference(shared, collection) -> Project:
    """A run from scratch to the end, never interrupted. Do not change it: copy it."""
    folder, finished = shared / "reference", shared / "reference.finished"
    with FileLock(shared / "reference.lock"):
        project = Project(folder) if finished.is_file() else Project.new(folder, collection.table)
        project.opened = shared / "opened"
        if not finished.is_file():
            project.opened.mkdir()
            project.run()
            finished.touch()
    return project


@pytest.fixture
def copied(reference, tmp_path) -> Project:
    """A copy of the finished run, to change."""
    return reference.copy(tmp_path / "project")
