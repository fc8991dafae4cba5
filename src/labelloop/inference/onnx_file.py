"""A model's network as an ONNX file, for runtimes other than torch; what the network sees and says is told inside."""

import json
from importlib.util import find_spec
from pathlib import Path

from labelloop.base.documents import read_json
from labelloop.base.errors import UserError
from labelloop.base.files import atomic
from labelloop.base.outputs import refuse_overwriting
from labelloop.inference.engine import read_model
from labelloop.networks.network import build_network, check_weights, load_network

NEEDED = ("onnx", "onnxscript")
KEY = "labelloop"
"""Of the file's metadata: the content of ``model.json``."""


def export_onnx(model: Path, out: Path) -> tuple[int, ...]:
    """Write the network of ``model`` to ``out``, an ONNX file; return the shape (channel, z, y, x) of what it sees
    at a time.

    It maps ``image`` [batch, channel, z, y, x], float32, a patch as the model's plan prepares it, to ``logits`` [batch,
    outputs, z, y, x], of which output 0 is background and output ``i`` class ``i`` of ``model.json``. Preparation,
    windows and the way back to the grid of the image are not part of it.

    Raises:
        UserError: when the model is not finished or segments nothing, or a package is missing.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"--to onnx needs {' and '.join(missing)}: pip install 'labelloop[onnx]'")
    if out.suffix != ".onnx":
        raise UserError(f"{out}: name a file that ends in .onnx")
    refuse_overwriting([out], [])
    described = read_model(model)
    check_weights(model / "weights.pt", described.weights_sha256)
    network = load_network(lambda: build_network(described.plan, len(described.classes) + 1), model / "weights.pt")
    import torch

    patch = torch.zeros((1, described.plan.inputs, *described.plan.patch))
    any_batch = ({0: torch.export.Dim("batch")},)
    with torch.no_grad(), atomic(out) as temporary:
        program = torch.onnx.export(
            network.eval(), (patch,), input_names=["image"], output_names=["logits"], dynamic_shapes=any_batch,
            dynamo=True, verbose=False,
        )  # fmt: skip
        if program is None:
            raise RuntimeError(f"{model}: torch.onnx.export gave no program")
        program.model.metadata_props[KEY] = json.dumps(read_json(model / "model.json"))
        program.save(str(temporary))
    return tuple(patch.shape[1:])
