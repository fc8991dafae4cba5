"""A model folder, and a source of random volumes to run it on."""

import numpy as np
import pytest
from tiny_models import save_model


@pytest.fixture
def model_folder(tmp_path):
    return save_model(tmp_path / "models" / "tiny")


@pytest.fixture
def rng():
    return np.random.default_rng(0)
