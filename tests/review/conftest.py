"""What the tests of reviews share."""

from pathlib import Path

import pytest

from tiny_review import write_tiny_results


@pytest.fixture
def results(tmp_path) -> Path:
    """Results with a queue of three labels of two cases."""
    return write_tiny_results(tmp_path)
