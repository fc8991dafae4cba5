"""The engine runs where little more than torch, numpy and scipy is installed, as on a borrowed GPU."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from labelloop.images.volume import Geometry, Volume
from labelloop.inference.engine import Predictor

ALLOWED = (
    "labelloop", "torch", "numpy", "scipy", "pydantic", "yaml", "dynamic_network_architectures",
    # what these need themselves
    "torchgen", "functorch", "filelock", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe",
    "fsspec", "triton", "pydantic_core", "annotated_types", "typing_inspection", "_yaml",
)  # fmt: skip

BARE = """
import json, sys
from importlib.abc import MetaPathFinder
from pathlib import Path

ALLOWED = json.loads(sys.argv[1])
INSTALLED = {p.name.partition(".")[0] for place in sys.path if "packages" in place for p in Path(place).iterdir()}

class Bare(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        top = name.partition(".")[0]
        if top in INSTALLED - sys.stdlib_module_names and top not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r} on a bare machine", name=name)

sys.meta_path.insert(0, Bare())

import torch
torch.set_num_threads(1)
import numpy as np
import labelloop.inference.running
import labelloop.phantom
from labelloop.inference.engine import Predictor
from labelloop.images.volume import Geometry, Volume

volume = Volume(np.load(sys.argv[3]), Geometry((24, 20, 12), (3, 3, 3)))
np.save(sys.argv[4], Predictor(sys.argv[2], "cpu").predict(volume, "CT").labels)
for missing in ("SimpleITK", "cc3d", "pandas", "nnunetv2"):
    try:
        __import__(missing)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{missing} was not hidden")
"""


@pytest.mark.slow
def test_the_engine_needs_torch_numpy_and_scipy_alone(model_folder, tmp_path):
    image, labels = tmp_path / "image.npy", tmp_path / "labels.npy"
    hu = np.random.default_rng(0).normal(0, 200, (12, 20, 24)).astype(np.int16)
    np.save(image, hu)
    command = [sys.executable, "-c", BARE, json.dumps(ALLOWED), *map(str, (model_folder, image, labels))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.set_num_threads(1)
    expected = Predictor(model_folder, "cpu").predict(Volume(hu, Geometry((24, 20, 12), (3, 3, 3))), "CT")
    np.testing.assert_array_equal(np.load(labels), expected.labels)
    assert len(np.unique(expected.labels)) > 1
