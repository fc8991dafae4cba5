"""Twenty patches with pasted tumor objects, to look at.

    python benchmarks/cutmix/run.py OUT

Writes OUT/cutmix.png: phantom patches before and after, in the axial slice with the most pasted tumor, as the trainer
pastes it before augmentation. Colored lines: labels of the patch's own case, whose organs are known. White box: what
came from another case, in which the tumor (red) and the liver are known (dashed); what is unknown has no line.
"""

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from labelloop.base.classes import load_classes
from labelloop.base.files import atomic
from labelloop.images.volume import Volume
from labelloop.inference.prepare import Frame, prepare_image, prepare_label
from labelloop.inference.prepared import write_image_array, write_label_array
from labelloop.labels.tumors import cut_tumors, write_objects
from labelloop.networks.plans import Plan
from labelloop.phantom import draw_patient, field_of_view, render
from labelloop.phantom.patient import EASY
from labelloop.training.job import TrainingCase, TrainingJob, TumorBank
from labelloop.training.settings import CutMix, PartialSettings
from labelloop.training.trainers import TRAINERS

EXAMPLES, COLUMNS = 20, 4
PLAN = Plan(spacing_mm=(2.5, 2, 2), patch=(48, 112, 128), features=(4, 8))
PATIENTS = 8
TUMOR = "tumor"


class Example(NamedTuple):
    """A patch [z, y, x] before and after pasting; the pasted label is ``region * channels + channel``."""

    case: str
    source: str
    image: np.ndarray
    label: np.ndarray
    pasted_image: np.ndarray
    pasted_label: np.ndarray


def phantom_job(folder: Path, settings: CutMix) -> TrainingJob:
    """Return a job on phantoms: in half of them organs are known, in the other half the tumor and the liver."""
    scheme = load_classes("flare")
    keys, cases = {}, []
    for number in range(PATIENTS):
        case, with_tumor = f"case{number}", bool(number % 2)
        patient = draw_patient(5, number, EASY, with_tumor, ())
        geometry = field_of_view(patient, spacing=(2.5, 2.5, 2.5), orientation="LPS", low_mm=None)
        image, truth = render(patient, geometry)
        prepared = prepare_image(Volume(image, geometry), PLAN, "CT")
        label = prepare_label(Volume(truth, geometry), Frame.from_dict(prepared.frame.as_dict()))
        write_image_array(folder / "images" / f"{case}.b2nd", prepared.array, prepared.frame.as_dict())
        write_label_array(folder / "labels" / f"{case}.b2nd", label)
        known = (TUMOR, "liver") if with_tumor else scheme.select("organs")
        states = {name: "present" if (label == scheme.ids[name]).any() else "absent" for name in known}
        cases.append(TrainingCase(case, "train", states, case))
        if with_tumor:
            path = folder / "bank" / f"{case}.npz"
            objects = cut_tumors(case, prepared.array[0], label, PLAN.spacing_mm, scheme.ids[TUMOR], settings.cut)
            write_objects(path, objects, states)
            keys[case] = case
    trainer = PartialSettings(cutmix=settings)
    folders = {"folder": folder / "model", "images": folder / "images", "labels": folder / "labels"}
    what = {"plan": PLAN, "cases": tuple(cases), "classes": scheme.names, "class_ids": scheme.ids}
    bank = TumorBank(folder / "bank", keys)
    return TrainingJob("cutmix", settings=trainer, tumors=bank, device="cpu", workers=0, **folders, **what)


def examples(job: TrainingJob, number: int, seed: int) -> Iterable[Example]:
    """Yield patches into which the trainer of ``job`` pasted objects, around random labeled voxels."""
    trainer = TRAINERS[job.settings.kind].of(job)
    data = trainer.get_dataloaders()["train"]._data
    into = [case.case for case in job.cases if case.states.get(TUMOR) != "present"]
    np.random.seed(seed)
    while number:
        case = into[np.random.randint(len(into))]
        image, label, _, properties = data.load_case(case)
        places = np.concatenate(list(properties["class_locations"].values()))[:, 1:]
        center = places[np.random.randint(len(places))]
        window = tuple(
            slice(start, start + side)
            for c, side, n in zip(center, job.plan.patch, image.shape[1:], strict=True)
            for start in [int(np.clip(c - side // 2, 0, max(0, n - side)))]
        )
        patch, channels = np.array(image[(0, *window)]), np.array(label[(slice(None), *window)])[0]
        pasted = patch.copy(), channels.copy()
        sources = trainer._paster(case, *pasted)
        if sources:
            number -= 1
            yield Example(case, ", ".join(sources), patch, channels, *pasted)


def draw(found: Iterable[Example], job: TrainingJob) -> Figure:
    """Draw each example before and after pasting."""
    scheme, width = load_classes("flare"), len(job.classes) + 1
    colors = {number: scheme[name].color for number, name in enumerate(job.classes, start=1)}
    tumor = job.classes.index(TUMOR) + 1
    found = list(found)
    rows = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(5 * COLUMNS, 2.6 * rows), layout="constrained")
    panes = figure.subplots(rows, 2 * COLUMNS, squeeze=False).reshape(-1, 2)
    for (left, right), example in zip(panes, found, strict=False):
        region, channel = np.divmod(np.maximum(example.pasted_label, 0), width)
        seen = (region > 0) & (channel == tumor)
        z = int((seen if seen.any() else region > 0).sum(axis=(1, 2)).argmax())
        own = np.where(region > 0, 0, channel)
        for axes, image, label in ((left, example.image, example.label), (right, example.pasted_image, own)):
            axes.imshow(image[z, :, ::-1], cmap="gray", vmin=-2.5, vmax=2.5, origin="lower")
            _outlines(axes, label[z], colors)
        _outlines(right, np.where(region > 0, channel, 0)[z], colors | {tumor: "red"}, "dashed")
        _outlines(right, (region[z] > 0).astype(int), {1: "white"})
        left.set_title(f"{example.case}, slice {z}", fontsize=7)
        right.set_title(f"object of {example.source}", fontsize=7)
    for axes in panes.flat:
        axes.set_axis_off()
    return figure


def _outlines(axes, labels: np.ndarray, colors: dict[int, str], style: str = "solid") -> None:
    """Draw the labels [y, x] as seen from the patient's feet: the right side on the left."""
    for number in np.unique(labels[labels > 0]):
        mask = labels[:, ::-1] == number
        axes.contour(mask, levels=[0.5], colors=[colors[number]], linewidths=0.9, linestyles=[style])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write cutmix.png to")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job = phantom_job(Path(folder), CutMix(objects_per_patch=1))
        figure = draw(examples(job, EXAMPLES, options.seed), job)
    with atomic(options.out / "cutmix.png") as temporary:
        figure.savefig(temporary, dpi=100)
    print(options.out / "cutmix.png")


if __name__ == "__main__":
    main()
