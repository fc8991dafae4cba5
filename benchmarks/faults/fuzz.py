"""Change files of every kind at random, as damage and strangers do, and knock at the doors that read them.

    python benchmarks/faults/fuzz.py OUT --count 5000 --write

Each door gets files that it reads well, changed in one to five places: bytes cut, doubled, swapped for odd ones. It may
read the file or refuse it in words; anything else is a fault: another error, more than 10 s, a file outside of the
folder that it may write. Seeded: the same count finds the same faults.
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch

from labelloop.cases import load_cases
from labelloop.classes import CONFIG, load_classes
from labelloop.datasets import load_dataset, read_dataset
from labelloop.errors import CaseError, UserError
from labelloop.files import sha256, write_json, write_text
from labelloop.inference.engine import Predictor
from labelloop.network import build_network
from labelloop.plans import Plan
from labelloop.recipe import load_recipe
from labelloop.shards import Ledger, look_at_manifests, read_manifests
from labelloop.training.work import Work

TABLE = Path(__file__).resolve().parents[1] / "results" / "fuzz.md"
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


@dataclass
class Door:
    """A way in: files that it reads, and what reads them."""

    files: list[Path]
    read: Callable[[Path], object]
    faults: list[str] = field(default_factory=list)
    read_well: int = 0
    refused: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the files, emptied before")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write the table to {TABLE.name}")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    doors = fuzz(options.out.resolve(), options.count, options.seed)
    rows = [f"| {name} | {d.read_well} | {d.refused} | {len(d.faults)} |" for name, d in doors.items()]
    about = f"`benchmarks/faults/fuzz.py`, {date.today()}, {options.count} changed files, seed {options.seed}."
    text = "\n".join(
        ["# Fuzz", "", about, "", "| door | read | refused in words | faults |", "|---|---:|---:|---:|", *rows, ""]
    )
    print(text, *(fault for door in doors.values() for fault in door.faults), sep="\n")
    if options.write:
        write_text(TABLE, text)


def fuzz(out: Path, count: int, seed: int) -> dict[str, Door]:
    """Knock ``count`` times, at the doors in turn; return the doors with what was found."""
    chance, doors = random.Random(seed), make_doors(out)
    before = listing(out)
    for number in range(count):
        name = list(doors)[number % len(doors)]
        folder = out / "work" / name
        shutil.rmtree(folder, ignore_errors=True)
        knock(doors[name], folder, chance, f"{name}, knock {number}")
    if listing(out) != before:
        next(iter(doors.values())).faults.append("a file was written outside of the folder")
    return doors


def knock(door: Door, folder: Path, chance: random.Random, what: str) -> None:
    """Copy a file of a door into ``folder``, with all that lies beside it; change it; read it."""
    original = chance.choice(door.files)
    shutil.copytree(original.parent, folder)
    path = folder / original.name
    path.write_bytes(changed(path.read_bytes(), chance))
    before = time.monotonic()
    try:
        door.read(path)
        door.read_well += 1
    except (UserError, CaseError) as refusal:
        door.refused += 1
        if len(str(refusal)) > 20_000:
            door.faults.append(f"{what}: refused in {len(str(refusal))} letters")
    except Exception as error:
        door.faults.append(f"{what}: {original.name}: {type(error).__name__}: {str(error)[:200]}")
    if time.monotonic() - before > LIMIT_S:
        door.faults.append(f"{what}: {original.name}: took {time.monotonic() - before:.0f} s")


def changed(content: bytes, chance: random.Random) -> bytes:
    """Return a content changed in one to five places."""
    for _ in range(chance.randint(1, 5)):
        at = chance.randint(0, len(content))
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
    }


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
        work.load("cpu")


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
