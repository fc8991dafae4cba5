import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of prepared cases (see ``tiny_training``)."""
    from tiny_training import write_cases

    root = tmp_path_factory.mktemp("prepared")
    write_cases(root)
    return root


@pytest.fixture(scope="session")
def model(data, tmp_path_factory):
    """A finished model, trained without workers; not to be altered."""
    from tiny_training import make_job

    from labelloop.training.nnunet import train

    folder = tmp_path_factory.mktemp("models") / "tiny"
    train(make_job(data, folder))
    return folder
