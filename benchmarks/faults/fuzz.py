"""Change files of every kind at random, as damage and strangers do, and knock at the doors that read them.

    python benchmarks/faults/fuzz.py OUT --count 5000 --write

Each door gets files that it reads well, changed in one to five places: bytes cut, doubled, swapped for odd ones; of
images, in their header. It may read the file or refuse it in words; anything else is a fault: another error, more than
10 s of processor time, a file outside of the folder that it may write. Each door's first file comes unchanged, and must
be read. Seeded: the same count finds the same faults.
"""

import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from command_line import parser, show

from labelloop.base.classes import load_classes
from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import sha256, write_json, write_text
from labelloop.base.lookup import CONFIG
from labelloop.base.shards import Ledger, look_at_manifests, read_manifests
from labelloop.cases.table import load_cases
from labelloop.images.datasets import load_dataset, read_dataset
from labelloop.images.scan import read_label
from labelloop.inference.engine import Predictor
from labelloop.inference.find_cases import find_cases
from labelloop.inference.reading import Image
from labelloop.networks.network import build_network
from labelloop.networks.plans import Plan
from labelloop.recipe import load_recipe
from labelloop.training.work import Work

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "inference"))
from tiny_dicom import body_hu, write_series

LIMIT_S = 10
ODD = [
    *(b"", b"\x00", b"\xff\xfe", b"-", b"nan", b"1e999", b"[" * 50, b"]", b"{", b"&a [*a]", b"*a", b"!!python/name:os"),
    *(
        b"null",
        b"\n",
        b"\r",
        b'"',
        b"'",
        b":",
        b",",
        b"../../etc/passwd",
        b"9" * 400,
        b"x" * 3000,
        b"\t",
        b"#",
        b"true",
    ),
    *(b"true", b"<<: *a", b"?", b"|", b"%", b"\xe2\x80\xae", b"0", b"-1", b"65536"),
]
"""What is put into a file."""
NUMBERS = [
    *(np.float32(value).tobytes() for value in (np.nan, np.inf, -np.inf, 0, -1, 1e30, 1e-30)),
    *(np.int16(value).tobytes() for value in (0, 1, -1, 8, 32767, -32768)),
    *(b"\xff" * 4, b"\xff" * 8, b"\0" * 40),
]
"""What takes the place of as many bytes of a header: numbers as they are stored there."""
VOXELS = {".nii": None, ".mhd": None, ".mha": b"LOCAL\n", ".nrrd": b"\n\n", ".dcm": b"\xe0\x7f\x10\0"}
"""What an image's header ends with, by suffix; a NIfTI header has a length of its own."""


@dataclass
class Door:
    """A way in: files that it reads (or, if not ``welcome``, refuses), and what reads them."""

    files: list[Path]
    read: Callable[[Path], object]
    welcome: bool = True
    faults: list[str] = field(default_factory=list)
    read_well: int = 0
    refused: int = 0


def main() -> None:
    options = parser(__doc__, "count", 5000, "folder for the files, emptied before").parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    doors = fuzz(options.out, options.count, options.seed)
    rows = [f"| {name} | {d.read_well} | {d.refused} | {len(d.faults)} |" for name, d in doors.items()]
    about = f"`benchmarks/faults/fuzz.py`, {date.today()}, {options.count} changed files, seed {options.seed}."
    text = "\n".join(
        ["# Fuzz", "", about, "", "| door | read | refused in words | faults |", "|---|---:|---:|---:|", *rows, ""]
    )
    show(text, "fuzz", options.write)
    print(*(fault for door in doors.values() for fault in door.faults), sep="\n")


def fuzz(out: Path, count: int, seed: int) -> dict[str, Door]:
    """Knock ``count`` times, at the doors in turn; return the doors with what was found."""
    chance, doors = random.Random(seed), make_doors(out)
    before = listing(out)
    for number in range(count):
        name = list(doors)[number % len(doors)]
        folder = out / "work" / name
        shutil.rmtree(folder, ignore_errors=True)
        knock(doors[name], folder, chance if number >= len(doors) else None, f"{name}, knock {number}")
    if listing(out) != before:
        next(iter(doors.values())).faults.append("a file was written outside of the folder")
    return doors


def knock(door: Door, folder: Path, chance: random.Random | None, what: str) -> None:
    """Copy a file of a door into ``folder``, with all that lies beside it; change it, if by ``chance``; read it."""
    original = chance.choice(door.files) if chance else door.files[0]
    shutil.copytree(original.parent, folder)
    path = folder / original.name
    if chance:
        content = path.read_bytes()
        header = header_bytes(path.suffix, content)
        path.write_bytes(changed(content[:header], chance, path.suffix in VOXELS) + content[header:])
    before = time.process_time()  # the machine may be shared
    try:
        door.read(path)
        door.read_well += 1
    except (UserError, CaseError) as refusal:
        door.refused += 1
        if not chance and door.welcome:
            door.faults.append(f"{what}: {original.name}: a good file is refused: {refusal}")
        if len(str(refusal)) > 20_000:
            door.faults.append(f"{what}: refused in {len(str(refusal))} letters")
    except Exception as error:
        door.faults.append(f"{what}: {original.name}: {type(error).__name__}: {str(error)[:200]}")
    if time.process_time() - before > LIMIT_S:
        door.faults.append(f"{what}: {original.name}: took {time.process_time() - before:.0f} s")


def header_bytes(suffix: str, content: bytes) -> int:
    """Return how many bytes the header of an image has; of other files it is the whole."""
    if suffix == ".nii":
        return nib.Nifti2Header.sizeof_hdr if content[:1] == b"\x1c" else nib.Nifti1Header.sizeof_hdr
    mark = VOXELS.get(suffix)
    return content.index(mark) + len(mark) + 4 if mark else len(content)


def changed(content: bytes, chance: random.Random, of_image: bool) -> bytes:
    """Return a content changed in one to five places; of an image, half of them without moving what follows."""
    for _ in range(chance.randint(1, 5)):
        at = chance.randint(0, len(content))
        if of_image and chance.random() < 0.5:
            new = chance.choice(NUMBERS)
            at -= at % 2
            content = content[:at] + new + content[at + len(new) :]
            continue
        length = chance.choice([0, 1, 1, 4, 40, 400])
        cut = content[at : at + length]
        new = chance.choice([chance.choice(ODD), bytes([chance.randrange(256)]), cut * chance.choice([2, 20])])
        content = content[:at] + new + content[at + length :]
        if chance.random() < 0.05:
            content = content[:at]
    return content


def listing(folder: Path) -> dict[str, str]:
    """Return the files in ``folder``, apart from those in ``work``, with their content hashes."""
    files = (path for path in folder.rglob("*") if path.is_file() and folder / "work" not in path.parents)
    return {str(path): sha256(path) for path in files}


def make_doors(out: Path) -> dict[str, Door]:
    """Write good files, and return the doors that read them."""
    scheme = load_classes("flare")
    model, work = make_model(out / "good" / "model"), make_work(out / "good" / "training")
    shard = make_shard(out / "good" / "shard" / "shards")
    table = out / "good" / "table" / "cases.csv"
    rows = "".join(f"c{n},c{n}.nii.gz,,flare22,CT,,p{n},train,all,\n" for n in range(5))
    write_text(table, f"case,image,label,dataset,modality,sequence,patient,role,annotated,surgery\n{rows}")
    return {
        "recipe": Door(sorted((CONFIG / "recipes").glob("*.yaml")), load_recipe),
        "class scheme": Door(sorted((CONFIG / "classes").glob("*.yaml")), load_classes),
        "data set": Door(sorted((CONFIG / "datasets").glob("*.yaml")), lambda p: load_dataset(p, scheme)),
        "data set, first look": Door(sorted((CONFIG / "datasets").glob("*.yaml")), read_dataset),
        "case table": Door([table], load_cases),
        "model.json": Door([model / "model.json"], lambda p: Predictor(p.parent, "cpu")),
        "weights": Door([model / "weights.pt"], read_weights),
        "state of a training": Door([work / "state.json"], read_work),
        "checkpoint": Door([work / "checkpoint.pth"], read_work),
        "manifest": Door([shard / "train-000.csv"], read_shard),
        "journal": Door([shard / ".train-000.jsonl"], read_shard),
        "seal": Door([shard / ".train-000.csv.seal"], read_shard),
        **image_doors(out / "good" / "images"),
    }


def image_doors(out: Path) -> dict[str, Door]:
    """Write an image in every format, and return the doors that read them: as an image and as a label map."""
    hu = np.full((8, 16, 24), -1000, np.int16)
    hu[1:7, 2:14, 2:22] = np.random.default_rng(0).integers(-110, 200, (6, 12, 20))
    affine = np.diag([-4.0, -4.0, 5.0, 1.0])
    nifti = {name: out / name / f"{name}.nii" for name in ("little", "big", "two")}
    made = {
        "little": nib.Nifti1Image(hu.T, affine),
        "big": nib.Nifti1Image(hu.T, affine, nib.Nifti1Header(endianness=">")),
        "two": nib.Nifti2Image(hu.T, affine),
    }
    for name, path in nifti.items():
        path.parent.mkdir(parents=True)
        nib.save(made[name], path)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((4.0, 4.0, 5.0))
    meta = [
        out / name / f"{name}{suffix}" for name, suffix in (("whole", ".mha"), ("plain", ".mha"), ("parts", ".mhd"))
    ]
    nrrd = out / "nrrd" / "image.nrrd"
    for path in (*meta, nrrd):
        path.parent.mkdir()
        sitk.WriteImage(image, str(path), useCompression=path.stem != "plain")
    dicom = sorted(write_series(out / "dicom", body_hu()).glob("*.dcm"))
    return {
        "NIfTI-1 header": Door([nifti["little"], nifti["big"]], read_volume),
        "NIfTI-2 header": Door([nifti["two"]], read_volume, welcome=False),
        "MetaImage header": Door(meta, read_volume),
        "NRRD header": Door([nrrd], read_volume),
        "DICOM header": Door(dicom, read_dicom),
    }


def read_volume(path: Path) -> None:
    """Read a file as a label map, whatever comes of it, and as an image."""
    with suppress(CaseError):
        read_label(path)
    image = Image(path)
    image.sha256()
    image.volume("CT")


def read_dicom(path: Path) -> None:
    """Find the series in the folder of a changed slice, and read it."""
    (case,) = find_cases(path.parent)
    image = Image.of(case)
    image.sha256()
    image.volume("CT")


def make_model(folder: Path) -> Path:
    plan = Plan(spacing_mm=(2.5, 1.5, 1.5), patch=(16, 16, 16), features=(4, 8))
    folder.mkdir(parents=True)
    torch.save({"weights": build_network(plan, 3).state_dict()}, folder / "weights.pt")
    content = {"name": "model", "classes": ["liver", "spleen"], "class_ids": {"liver": 1, "spleen": 3}}
    content |= {"plan": plan.model_dump(mode="json"), "weights_sha256": sha256(folder / "weights.pt")}
    write_json(folder / "model.json", content)
    return folder


def read_weights(path: Path) -> None:
    """Read changed weights as those of a model folder whose description names them."""
    description = json.loads((path.parent / "model.json").read_text())
    write_json(path.parent / "model.json", description | {"weights_sha256": sha256(path)})
    Predictor(path.parent, "cpu")


def make_work(folder: Path) -> Path:
    work = Work(folder, "fingerprint", "fp32")
    work.begin()
    work.save(3, {"network": {"a": torch.zeros(50)}, "random": {"python": (3, (1, 2), None)}})
    return folder


def read_work(path: Path) -> None:
    work = Work(path.parent, "fingerprint", "fp32")
    if not work.begin() and work.checkpoint.is_file():
        work.load()


def make_shard(folder: Path) -> Path:
    for _ in run_shard(folder.parent):
        pass
    return folder


def run_shard(folder: Path) -> Iterator[str]:
    ledger = Ledger(folder, "train-000")
    for case in ("a", "b", "c"):
        yield ledger.run(case, "key", lambda case=case: write_case(folder, case))["status"]
    ledger.close()


def write_case(folder: Path, case: str) -> tuple[Path, dict]:
    write_text(folder / case, case)
    return folder / case, {"rows": [1, 2]}


def read_shard(path: Path) -> None:
    """Look at a shard, make it anew as its job does, and hold what comes out against what went in."""
    shard = path.parent.rename(path.parent.with_name("shards")) if path.parent.name != "shards" else path.parent
    folder = shard.parent
    list(look_at_manifests([folder]))
    assert set(run_shard(folder)) == {"done"}
    ((_, found),) = look_at_manifests([folder])
    assert not found.wrong, found.wrong
    assert list(read_manifests([shard / "train-000.csv"])["case"]) == ["a", "b", "c"]
    shutil.rmtree(shard)


if __name__ == "__main__":
    main()
