import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of prepared cases (see ``tiny_training``)."""
    from tiny_training import write_cases

    root = tmp_path_factory.mktemp("prepared")
    write_cases(root)
    return root
