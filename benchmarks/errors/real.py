"""Single known errors in expert labels of real scans, and the same kinds of errors in phantoms: what the rules catch.

Patients are drawn once (``SEED``): one half for the limits of rules to be chosen by, the other to be judged on. The
errors of a patient are drawn by patient and kind. Nothing of a scan is copied; the journal of results, a line for each
patient and kind, lies in the folder for temporary files, and a run that was stopped goes on from there.
"""

import json
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from errors import Draft
from kinds import NAMED, OWN, Impossible, Kind

from labelloop import labels as labels_package
from labelloop.annotation import UNKNOWN
from labelloop.classes import CONFIG, ClassScheme, load_classes
from labelloop.datasets import load_dataset
from labelloop.files import digest, sha256
from labelloop.labels.check import FAIL, NOT_APPLICABLE, check
from labelloop.scan import read_classes, read_image
from labelloop.volume import Geometry, canonical

SEED = 17
HERE = Path(__file__).resolve().parent
LABELS = Path(labels_package.__file__).parent
SOURCES = (*sorted((LABELS / "rules").glob("*.py")), *(LABELS / f"{name}.py" for name in ("check", "facts", "surface")),
           HERE / "kinds.py", HERE / "errors.py", CONFIG / "classes" / "flare.yaml")  # fmt: skip
"""What the results follow from; a journal of other sources is not read."""
UNALTERED = "unaltered"

Scan = tuple[np.ndarray, np.ndarray, Geometry]
"""Canonical labels in the scheme's ids, canonical image, their geometry."""


@dataclass(frozen=True)
class Outcome:
    """What the rules say of one label map: rows (class, rule) that fail, and classes to which any rule applied."""

    patient: str
    kind: str
    altered: list[str]
    failed: list[list[str]]
    judged: list[str]
    impossible: str = ""


def drawn_halves(folder: Path) -> tuple[list[str], list[str]]:
    """Return the patients of a folder to choose limits by, and those to judge on."""
    names = sorted(p.name.removesuffix("_0000.nii.gz") for p in folder.glob("*_0000.nii.gz"))
    names = [name for name in names if (folder / f"{name}.nii.gz").is_file()]
    order = [str(name) for name in np.random.default_rng(SEED).permutation(names)]
    return order[: len(order) // 2], order[len(order) // 2 :]


def real_scan(folder: Path, dataset: str, scheme: ClassScheme) -> Callable[[str], Scan]:
    """Return a function that reads a patient's scan from a folder of a data set."""
    own = load_dataset(dataset, scheme)

    def read(name: str) -> Scan:
        labels = canonical(read_classes(folder / f"{name}.nii.gz", scheme, own))
        image = canonical(read_image(folder / f"{name}_0000.nii.gz", own.modality))
        return np.array(labels.array), np.array(image.array), labels.geometry

    return read


def judged(patient: str, kind: str, draft: Draft, before: np.ndarray, geometry, scheme, asked) -> Outcome:
    """Hold a draft against the rules, as a label map of which only the classes asked for are known."""
    changed = before != draft.labels
    touched = {*np.unique(before[changed]).tolist(), *np.unique(draft.labels[changed]).tolist()}
    altered = [name for name, number in scheme.ids.items() if number in touched]
    states = dict.fromkeys(scheme.names, UNKNOWN)
    rows = check(draft.labels, geometry, states, scheme, draft.image, classes=asked, overlap={})
    failed = [[row["class"], row["rule"]] for row in rows if row["verdict"] == FAIL]
    applied = sorted({row["class"] for row in rows if row["verdict"] != NOT_APPLICABLE})
    return Outcome(patient, kind, altered, failed, applied)


def outcomes_of(
    patient: str,
    other: str,
    read: Callable[[str], Scan],
    kinds: dict[str, Kind],
    scheme: ClassScheme,
    asked: Sequence[str],
) -> Iterator[Outcome]:
    """Yield the outcomes of a patient: unaltered, and with an error of each kind."""
    labels, image, geometry = read(patient)
    others = read(other)[0] if kinds else None
    ids = {n: i for n, i in scheme.ids.items() if (labels == i).any()}

    def draft(kind: str) -> Draft:
        random = np.random.default_rng([SEED, zlib.crc32(patient.encode()), zlib.crc32(kind.encode())])
        return Draft(labels.copy(), image, np.array(geometry.spacing_zyx), ids, random, others)

    for kind, inject in {UNALTERED: None, **kinds}.items():
        spoiled = draft(kind)
        try:
            if inject:
                inject(spoiled)
        except Impossible as reason:
            yield Outcome(patient, kind, [], [], [], str(reason))
        else:
            yield judged(patient, kind, spoiled, labels, geometry, scheme, asked)


def journal(name: str) -> Path:
    """Return where the outcomes of a collection are kept, for the rules as they are."""
    key = digest([name, SEED, [sha256(path) for path in SOURCES]])
    return Path(tempfile.gettempdir()) / "labelloop-errors" / f"{key}.jsonl"


def outcomes(
    name: str,
    patients: Sequence[str],
    others: dict[str, str],
    read: Callable[[str], Scan],
    asked: Sequence[str],
    kinds: dict[str, Kind],
) -> list[Outcome]:
    """Return the outcomes of the patients; what the journal has is not done again.

    Args:
        name: of the collection; others: of each patient, the one whose labels are mistaken for theirs.
        asked: classes that a label map is to show; kinds: of errors, beside the unaltered map.
    """
    scheme, path = load_classes("flare"), journal(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [Outcome(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {(o.patient, o.kind) for o in known}
    for patient in patients:
        left = {kind: inject for kind, inject in kinds.items() if (patient, kind) not in done}
        if not left and (patient, UNALTERED) in done:
            continue
        for outcome in outcomes_of(patient, others[patient], read, left, scheme, asked):
            if (outcome.patient, outcome.kind) not in done:
                known.append(outcome)
                with path.open("a") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
    return [o for o in known if o.patient in patients]


@dataclass
class Count:
    """Of one kind: label maps with the error, caught, and with a right class blamed; rules that failed."""

    maps: int
    caught: int
    right: int
    rules: Counter


def counted(found: Sequence[Outcome], kind: str) -> Count:
    """Count what was caught: a row fails that does not in the unaltered map. Right: of a class that was altered."""
    clean = {o.patient: {tuple(row) for row in o.failed} for o in found if o.kind == UNALTERED}
    count = Count(0, 0, 0, Counter())
    for outcome in found:
        if outcome.kind == kind and not outcome.impossible:
            new = {(n, rule) for n, rule in outcome.failed} - clean[outcome.patient]
            count.maps += 1
            count.caught += bool(new)
            count.right += any(n in outcome.altered for n, _ in new)
            count.rules.update({rule for n, rule in new if n in outcome.altered})
    return count


def unaltered_rows(found: Sequence[Outcome]) -> tuple[int, int, list[str]]:
    """Return how many rows (case, class) of unaltered maps are refused, of how many, and which."""
    clean = [o for o in found if o.kind == UNALTERED]
    said = [f"{o.patient}: {rule} of {n}" for o in clean for n, rule in o.failed]
    return sum(len({n for n, _ in o.failed}) for o in clean), sum(len(o.judged) for o in clean), said


def lines(real: Sequence[Outcome], phantoms: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of the result."""
    heads = (
        "error",
        "real: maps",
        "caught",
        "right class",
        "phantoms: maps",
        "caught",
        "right class",
        "rules on real scans",
    )
    both = {"real scans": real, "phantoms": phantoms}
    for name, found in both.items():
        refused, rows, said = unaltered_rows(found)
        patients = len({o.patient for o in found})
        yield f"- {name}: of {rows} unaltered rows of {patients} patients {refused} refused" + (
            f" ({'; '.join(said)})" if said else ""
        )
        for title, kinds in (("all kinds", NAMED | OWN), ("asked for", NAMED), ("own", OWN)):
            counts = [counted(found, kind) for kind in kinds]
            yield f"  - {title} ({len(kinds)}): {macro(counts)}"
    yield ""
    yield f"| {' | '.join(heads)} |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    for title, kinds in (("asked for", NAMED), ("own", OWN)):
        yield f"| **{title}** | | | | | | | |"
        for kind in kinds:
            a, b = counted(real, kind), counted(phantoms, kind)
            rules = ", ".join(f"{rule} {n}" for rule, n in a.rules.most_common(4))
            yield f"| {kind} | {a.maps} | {a.caught} | {a.right} | {b.maps} | {b.caught} | {b.right} | {rules} |"


def macro(counts: Sequence[Count]) -> str:
    """Return the mean recall over kinds, and of what was caught the share in which a right class is blamed."""
    tried = [c for c in counts if c.maps]
    if not tried:
        return "nothing was tried"
    recall = np.mean([c.caught / c.maps for c in tried])
    caught, right = (sum(getattr(c, key) for c in tried) for key in ("caught", "right"))
    return f"macro recall {recall:.2f}; right class blamed in {right / max(caught, 1):.2f} of what was caught"
