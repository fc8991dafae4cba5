"""Single known errors in expert labels of real scans, and the same kinds of errors in phantoms: what the rules catch.

Patients are drawn once (``SEED``): one half for the limits of rules to be chosen by, the other to be judged on. The
errors of a patient are drawn by patient and kind. Nothing of a scan is copied; the journal of results, a line for each
patient and kind, lies in the folder for temporary files, and a run that was stopped goes on from there.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Collection as Names
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from common import most_common
from kinds import NAMED, ORGANS, OWN

from labelloop import labels as labels_package
from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.files import digest, sha256
from labelloop.base.lookup import CONFIG
from labelloop.base.sequences import flat
from labelloop.cases.annotation import UNKNOWN
from labelloop.images.datasets import load_dataset
from labelloop.images.scan import read_classes, read_image
from labelloop.images.volume import Geometry, canonical
from labelloop.labels.check import DOUBT, FAIL, NOT_APPLICABLE, check
from labelloop.labels.draft import Draft, Impossible, Kind, draft_of
from labelloop.labels.folder import asked_classes

SEED = 17
HERE = Path(__file__).resolve().parent
LABELS = Path(labels_package.__file__).parent
SOURCES = (
    *sorted((LABELS / "rules").glob("*.py")),
    *(LABELS / f"{name}.py" for name in ("check", "corrupt", "draft", "facts", "surface")),
    HERE / "kinds.py",
    CONFIG / "classes" / "flare.yaml",
)
"""What the results follow from; a journal of other sources is not read."""
UNALTERED = "unaltered"

Scan = tuple[np.ndarray, np.ndarray, Geometry]
"""Canonical labels in the scheme's ids, canonical image, their geometry."""


@dataclass(frozen=True)
class Outcome:
    """What the rules say of one label map: rows (class, rule) that fail or are doubted, and classes they applied to."""

    patient: str
    kind: str
    altered: list[str]
    failed: list[list[str]]
    doubted: list[list[str]]
    judged: list[str]
    impossible: str = ""


@dataclass(frozen=True)
class Collection:
    """Patients whose label maps are spoiled.

    Args:
        read: a patient's scan; others: of each patient, another one's labels, to be mistaken for theirs.
        asked: classes that a label map is to show.
        spoiled: the patients whose maps get errors; of the others only the unaltered map is judged.
    """

    name: str
    patients: Sequence[str]
    read: Callable[[str], Scan]
    others: Mapping[str, Callable[[], np.ndarray]]
    asked: Sequence[str]
    spoiled: Sequence[str]
    modality: str = "CT"


def names_in(folder: Path) -> list[str]:
    """Return the cases of a folder that have both image and labels."""
    names = sorted(p.name.removesuffix("_0000.nii.gz") for p in folder.glob("*_0000.nii.gz"))
    return [name for name in names if (folder / f"{name}.nii.gz").is_file()]


def drawn_halves(folder: Path) -> tuple[list[str], list[str]]:
    """Return the patients of a folder to choose limits by, and those to judge on."""
    order = [str(name) for name in np.random.default_rng(SEED).permutation(names_in(folder))]
    return order[: len(order) // 2], order[len(order) // 2 :]


def half_of(folder: Path, dataset: str, number: int, spoiled: int | None, scheme: ClassScheme) -> Collection:
    """Return half of a folder's patients (0: limits were chosen by it, 1: to judge on), the first few ``spoiled``."""
    names, read = drawn_halves(folder)[number], real_scan(folder, dataset, scheme)
    before = zip(names, names[-1:] + names[:-1], strict=True)
    others = {name: (lambda other=other: read(other)[0]) for name, other in before}
    asked = asked_classes(scheme, None, load_dataset(dataset, scheme))
    return Collection(folder.name, names, read, others, asked, names[:spoiled])


def whole_folder(
    folder: Path, dataset: str, cases: Sequence[str], other: Callable[[], np.ndarray], scheme: ClassScheme
) -> Collection:
    """Return the ``cases`` of a folder (default: all); they are spoiled if they show all organs, MR in any case.

    A patient's labels are mistaken for those of the case before; of a single one, ``other`` are.
    """
    names, own = list(cases) or names_in(folder), load_dataset(dataset, scheme)
    asked, read = asked_classes(scheme, None, own), real_scan(folder, dataset, scheme)
    spoiled = names if own.modality == "MR" or set(ORGANS) <= set(own.annotated) else []
    before = zip(names, names[-1:] + names[:-1], strict=True)
    others = {name: (lambda other=other: read(other)[0]) for name, other in before}
    return Collection(
        dataset, names, read, others if len(names) > 1 else {names[0]: other}, asked, spoiled, own.modality
    )


def real_scan(folder: Path, dataset: str, scheme: ClassScheme) -> Callable[[str], Scan]:
    """Return a function that reads a patient's scan from a folder of a data set."""
    own = load_dataset(dataset, scheme)

    def read(name: str) -> Scan:
        labels = canonical(read_classes(folder / f"{name}.nii.gz", scheme, own))
        image = canonical(read_image(folder / f"{name}_0000.nii.gz", own.modality))
        return np.array(labels.array), np.array(image.array), labels.geometry

    return read


def judged(patient: str, kind: str, draft: Draft, before: np.ndarray, geometry, scheme, of: Collection) -> Outcome:
    """Hold a draft against the rules as ``labelloop check --dataset`` does: only classes asked for are expected."""
    changed = before != draft.labels
    touched = {*np.unique(before[changed]).tolist(), *np.unique(draft.labels[changed]).tolist()}
    altered = [name for name, number in scheme.ids.items() if number in touched]
    states = dict.fromkeys(scheme.names, UNKNOWN)
    rows = check(draft.labels, geometry, states, scheme, draft.image, of.modality, (), of.asked, of.asked, {})
    failed, doubted = ([[row["class"], row["rule"]] for row in rows if row["verdict"] == v] for v in (FAIL, DOUBT))
    applied = sorted({row["class"] for row in rows if row["verdict"] != NOT_APPLICABLE})
    return Outcome(patient, kind, altered, failed, doubted, applied)


def outcomes_of(patient: str, of: Collection, kinds: dict[str, Kind | None], scheme: ClassScheme) -> Iterator[Outcome]:
    """Yield the outcomes of a patient with an error of each kind; a kind that is None alters nothing."""
    labels, image, geometry = of.read(patient)
    others = of.others[patient]() if any(kinds.values()) else None
    ids = {n: i for n, i in scheme.ids.items() if (labels == i).any()}
    for kind, inject in kinds.items():
        draft = draft_of(labels, image, geometry.spacing_zyx, ids, (SEED, patient, kind), others)
        try:
            if inject:
                inject(draft)
        except Impossible as reason:
            yield Outcome(patient, kind, [], [], [], [], str(reason))
        else:
            yield judged(patient, kind, draft, labels, geometry, scheme, of)


def journal(name: str) -> Path:
    """Return where the outcomes of a collection are kept, for the rules as they are."""
    key = digest([name, SEED, [sha256(path) for path in SOURCES]])
    return Path(tempfile.gettempdir()) / "labelloop-errors" / f"{key}.jsonl"


def outcomes(of: Collection, kinds: dict[str, Kind]) -> list[Outcome]:
    """Return the outcomes of a collection, unaltered and with errors; what the journal has is not done again."""
    scheme, path = load_classes("flare"), journal(of.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [Outcome(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {(o.patient, o.kind) for o in known}
    for patient in of.patients:
        wanted = {UNALTERED: None, **(kinds if patient in of.spoiled else {})}
        left = {kind: inject for kind, inject in wanted.items() if (patient, kind) not in done}
        for outcome in outcomes_of(patient, of, left, scheme) if left else ():
            known.append(outcome)
            with path.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
    return [o for o in known if o.patient in of.patients and (o.patient in of.spoiled or o.kind == UNALTERED)]


@dataclass
class Count:
    """Of one kind: label maps with the error, refused, refused or doubted, and with a right class named; the rules."""

    maps: int
    refused: int
    noticed: int
    right: int
    rules: Counter


def counted(found: Sequence[Outcome], kind: str) -> Count:
    """Count what was noticed: a row fails, or is doubted, that does not in the unaltered map.

    Right: it is the row of a class that was altered.
    """
    clean = {o.patient: {tuple(row) for row in o.failed + o.doubted} for o in found if o.kind == UNALTERED}
    count = Count(0, 0, 0, 0, Counter())
    for outcome in found:
        if outcome.kind == kind and not outcome.impossible:
            failed, doubted = (
                {tuple(r) for r in rows} - clean[outcome.patient] for rows in (outcome.failed, outcome.doubted)
            )
            count.maps += 1
            count.refused += bool(failed)
            count.noticed += bool(failed | doubted)
            count.right += any(n in outcome.altered for n, _ in failed | doubted)
            count.rules.update({rule for n, rule in failed | doubted if n in outcome.altered})
    return count


def unaltered_rows(found: Sequence[Outcome], verdict: str) -> tuple[int, int, list[str]]:
    """Return how many rows (case, class) of unaltered maps are "failed" or "doubted", of how many, and which."""
    clean = [(o, getattr(o, verdict)) for o in found if o.kind == UNALTERED]
    said = flat([f"{o.patient}: {rule} of {n}" for n, rule in rows] for o, rows in clean)
    return sum(len({n for n, _ in rows}) for _, rows in clean), sum(len(o.judged) for o, _ in clean), said


def lines(
    collections: Mapping[str, Sequence[Outcome]], beside: Sequence[Outcome], mr: Names[str] = ()
) -> Iterator[str]:
    """Yield the lines of the result: of real scans, by collection and together, and of phantoms ``beside`` them.

    Args:
        mr: names of the collections that are MR; their errors are told by themselves.
    """
    yield "| unaltered maps | patients | rows | refused | doubted |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    notes = []
    for name, found in {**collections, "phantoms": beside}.items():
        (refused, rows, said), (doubted, _, odd) = (unaltered_rows(found, v) for v in ("failed", "doubted"))
        yield f"| {name} | {len({o.patient for o in found})} | {rows} | {refused} | {doubted} |"
        notes += [
            f"- {name}, {word}: {'; '.join(which)}" for word, which in (("refused", said), ("doubted", odd)) if which
        ]
    yield from ["", *notes, ""] if notes else [""]
    real = flat(found for name, found in collections.items() if name not in mr)
    of_mr = flat(found for name, found in collections.items() if name in mr)
    yield from _recall({"real scans": real, "phantoms": beside, "MR": of_mr})
    yield from _table(real, beside)
    yield from _on_mr(of_mr) if any(o.altered for o in of_mr) else ()


def _recall(found: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    yield "| mean over kinds | refused | refused or doubted | right class named, of those |"
    yield "| --- | ---: | ---: | ---: |"
    for where, some in found.items():
        for title, kinds in (("all kinds", NAMED | OWN), ("asked for", NAMED), ("own", OWN)):
            counts = [count for count in (counted(some, kind) for kind in kinds) if count.maps]
            yield f"| {where}, {title} ({len(counts)}) | {macro(counts)} |"
    yield ""


def macro(counts: Sequence[Count]) -> str:
    """Return the mean over kinds of what was refused, and noticed; and of that the share with a right class."""
    tried = [c for c in counts if c.maps]
    if not tried:
        return " | ".join("–" * 3)
    refused, noticed = (np.mean([getattr(c, key) / c.maps for c in tried]) for key in ("refused", "noticed"))
    caught, right = (sum(getattr(c, key) for c in tried) for key in ("noticed", "right"))
    return f"{refused:.2f} | {noticed:.2f} | {right / max(caught, 1):.2f}"


def _table(real: Sequence[Outcome], beside: Sequence[Outcome]) -> Iterator[str]:
    heads = ("maps", "refused", "or doubted", "right class")
    yield f"| error | {' | '.join(heads)} | phantoms: {' | '.join(heads)} | rules on real scans |"
    yield "| --- |" + " ---: |" * 8 + " --- |"
    for title, kinds in (("asked for", NAMED), ("own", OWN)):
        yield f"| **{title}** |" + " |" * 9
        for kind in kinds:
            both = [counted(found, kind) for found in (real, beside)]
            numbers = [f"{c.maps} | {c.refused} | {c.noticed} | {c.right}" for c in both]
            rules = ", ".join(f"{rule} {n}" for rule, n in most_common(both[0].rules, 4))
            yield f"| {kind} | {' | '.join(numbers)} | {rules} |"
    yield ""


def _on_mr(found: Sequence[Outcome]) -> Iterator[str]:
    """Yield the table of errors on MR; kinds that take an organ that nobody drew there are left out."""
    yield "| error on MR | maps | refused | or doubted | right class | rules |"
    yield "| --- |" + " ---: |" * 4 + " --- |"
    for kind in NAMED | OWN:
        count = counted(found, kind)
        if count.maps:
            rules = ", ".join(f"{rule} {n}" for rule, n in most_common(count.rules, 4))
            yield f"| {kind} | {count.maps} | {count.refused} | {count.noticed} | {count.right} | {rules} |"
