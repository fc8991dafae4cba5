"""A model as files of stock nnU-Net, so that it can be used without labelloop."""

import tempfile
import zipfile
from pathlib import Path

import torch

from labelloop.base.documents import load_tensors, read_json
from labelloop.base.errors import UserError
from labelloop.base.files import atomic, write_json
from labelloop.base.outputs import refuse_overwriting
from labelloop.inference.engine import ModelFile, read_model
from labelloop.networks.plans import ADAPTATION
from labelloop.training.stock import CONFIGURATION, PLANS, dataset_json, plans_json

CHECKPOINT = "checkpoint_final.pth"
TRAINER = "nnUNetTrainer"


def export_nnunet(model: str | Path, out: str | Path, modality: str | None = None) -> Path:
    """Write ``model`` as a folder that ``nnUNetPredictor.initialize_from_trained_model_folder`` takes.

    Label ``i`` of its predictions is the class of output channel ``i``, as ``dataset.json`` says.

    Args:
        model: a model folder, with ``model.json`` and ``weights.pt``.
        out: folder to write: ``plans.json``, ``dataset.json`` and ``fold_0/checkpoint_final.pth``.
        modality: CT (None) or MR. nnU-Net normalizes all images in one way, labelloop by the modality of each; of
            images of several channels, the plan says it.

    Raises:
        UserError: when the model is not finished, segments nothing, or prepares images as nnU-Net cannot; also for a
            modality of images of several channels.
    """
    out, described = Path(out), _described(Path(model))
    if modality and described.plan.channels:
        channels = ", ".join(described.plan.channels)
        raise UserError(f"--modality: without effect for a model whose channels ({channels}) say it. Leave it out")
    modality = modality or "CT"
    checkpoint = {
        "network_weights": load_tensors(Path(model) / "weights.pt", "train the model again")["weights"],
        "trainer_name": TRAINER,
        "init_args": {"configuration": CONFIGURATION, "fold": 0},
        "inference_allowed_mirroring_axes": list(described.mirror_axes) or None,
    }
    name = Path(model).resolve().name
    write_json(out / "plans.json", plans_json(name, described.plan, modality))
    write_json(out / "dataset.json", dataset_json(tuple(described.classes), 0, modality, described.plan.channels))
    with atomic(out / "fold_0" / CHECKPOINT) as temporary:
        torch.save(checkpoint, temporary)
    return out


def export_tree(model: Path, out: Path, modality: str | None = None, number: int = 900) -> Path:
    """Write ``model`` as a data set folder of ``nnUNet_results``, or as a zip of one; return its place in there.

    Args:
        out: ``nnUNet_results`` or another folder; with the ending ``.zip``, a file that
            ``nnUNetv2_install_pretrained_model_from_zip`` takes.
        number: of the data set, by which nnU-Net's commands name a model.

    Raises:
        UserError: as :func:`export_nnunet`, and when there is something already.
    """
    inside = Path(f"Dataset{number:03d}_{model.resolve().name}", f"{TRAINER}__{PLANS}__{CONFIGURATION}")
    if out.suffix.lower() != ".zip":
        others = sorted(set(out.glob(f"Dataset{number:03d}_*")) - {out / inside.parts[0]})
        if others:
            raise UserError(f"{others[0]}: has this number, by which nnU-Net tells models; give another --dataset-id")
        if (out / inside).exists():
            raise UserError(f"{out / inside}: exists; remove it, or give another --dataset-id")
        export_nnunet(model, out / inside, modality)
        return inside
    refuse_overwriting([out], [])
    with tempfile.TemporaryDirectory() as folder, atomic(out) as temporary:
        export_nnunet(model, Path(folder) / inside, modality)
        with zipfile.ZipFile(temporary, "w") as archive:
            for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(folder))
    return inside


def _described(model: Path) -> ModelFile:
    described = read_model(model)
    if "nnunet" in read_json(model / "model.json"):
        raise UserError(f"{model}: nnU-Net trained this model; give its tools the folder or zip that it was made from")
    asked = [key for key in ADAPTATION if getattr(described.plan, key)]
    if asked:
        raise UserError(f"{model}: its plan has {', '.join(asked)}; nnU-Net cannot prepare images in this way")
    return described
