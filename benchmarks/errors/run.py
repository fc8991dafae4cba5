"""Which errors do the anatomy rules find? Phantom label maps with one known error each, and as many without.

    python benchmarks/errors/run.py                 # 10 maps with an error, 10 without
    python benchmarks/errors/run.py --maps 100 --write
    python benchmarks/errors/run.py --real ../shared/data/btcv --write    # expert labels of real scans (real.py)

An error counts as found when a rule fails for a class whose voxels it changed. A false alarm is a row (case, class) of
a map without an error for which a rule fails. Clean maps are not all ordinary: some patients have no spleen or no
gallbladder (annotated absent), some scans begin in the middle of the kidneys.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1]))
import real
from common import most_common, written_by
from errors import ERRORS

from labelloop import phantom as phantom_package
from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.files import atomic, digest, sha256, write_text
from labelloop.base.sequences import flat
from labelloop.cases.annotation import ABSENT, PRESENT, UNKNOWN
from labelloop.images.datasets import load_dataset
from labelloop.images.volume import Geometry, Volume, canonical
from labelloop.labels.check import FAIL, NOT_APPLICABLE, check
from labelloop.labels.draft import Draft
from labelloop.labels.folder import asked_classes
from labelloop.phantom import draw_patient, field_of_view, render

RESULT = Path(__file__).resolve().parents[1] / "results" / "errors.md"
REAL_RESULT = RESULT.with_name("errors_real.md")
PHANTOM = Path(phantom_package.__file__).parent
CACHE = Path(tempfile.gettempdir()) / "labelloop-phantoms"
SEED = 7
SPECIAL = {3: ("spleen",), 7: ("gallbladder",)}
"""Organs that every tenth clean patient lacks, by the last digit of its number."""
CUT = 5
"""Every tenth clean scan begins at the centers of the kidneys."""


@dataclass
class Tally:
    """What was found so far."""

    tried: Counter = field(default_factory=Counter)
    found: Counter = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    by_rule: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    rows: int = 0
    alarmed_rows: int = 0
    alarms: Counter = field(default_factory=Counter)
    alarm_reasons: list[str] = field(default_factory=list)

    @property
    def recall(self) -> float:
        return self.found.total() / max(self.tried.total(), 1)

    @property
    def false_alarms(self) -> float:
        return self.alarmed_rows / max(self.rows, 1)


def phantom(number: int, spacing_mm: float, absent: tuple[str, ...] = (), low_mm: float | None = None):
    """Return canonical labels, image and geometry of one patient, drawn once and then kept in ``CACHE``."""
    key = digest([number, SEED, spacing_mm, absent, low_mm, [sha256(path) for path in sorted(PHANTOM.glob("*.py"))]])
    path = CACHE / f"{key}.npz"
    if not path.is_file():
        labels, image, geometry = _drawn(number, spacing_mm, absent, low_mm)
        place = json.dumps([geometry.size, geometry.spacing, geometry.origin, geometry.direction])
        with atomic(path) as temporary:
            np.savez(temporary, labels=labels, image=image, geometry=place)
    stored = np.load(path)
    return stored["labels"], stored["image"], Geometry(*map(tuple, json.loads(str(stored["geometry"]))))


def _drawn(number: int, spacing_mm: float, absent: tuple[str, ...], low_mm: float | None):
    """Draw one patient; every other one is of the hard half."""
    patient = draw_patient(SEED, number, "hard" if number % 2 else "easy", True, absent)
    random = np.random.default_rng([SEED, number])
    spacing = tuple(spacing_mm * random.uniform(1.0, 1.2, 2)[[0, 0, 1]])
    geometry = field_of_view(patient, spacing=spacing, low_mm=low_mm)
    image, labels = render(patient, geometry)
    turned = canonical(Volume(labels, geometry))
    return np.array(turned.array), np.array(canonical(Volume(image, geometry)).array), turned.geometry


def failing(labels, image, geometry: Geometry, scheme: ClassScheme, states: dict[str, str]) -> tuple[list[dict], set]:
    """Return the rows that fail, and the classes to which any rule applied."""
    rows = check(labels, geometry, states, scheme, image, classes=["all"], overlap={})
    judged = {row["class"] for row in rows if row["verdict"] != NOT_APPLICABLE}
    return [row for row in rows if row["verdict"] == FAIL], judged


def with_error(number: int, name: str, spacing_mm: float, scheme: ClassScheme, tally: Tally) -> None:
    labels, image, geometry = phantom(number, spacing_mm)
    ids = {n: i for n, i in scheme.ids.items() if (labels == i).any()}
    draft = Draft(labels.copy(), image, np.array(geometry.spacing_zyx), ids, np.random.default_rng([SEED, number, 1]))
    ERRORS[name](draft)
    changed = {n for n, i in ids.items() if not np.array_equal(labels == i, draft.labels == i)}
    if (draft.labels == scheme.ids["tumor"]).any() and "tumor" not in ids:
        changed.add("tumor")
    rows, _ = failing(draft.labels, draft.image, geometry, scheme, dict.fromkeys(scheme.names, UNKNOWN))
    hits = {row["rule"] for row in rows if row["class"] in changed}
    tally.tried[name] += 1
    if hits:
        tally.found[name] += 1
        tally.by_rule[name].update(hits)
    else:
        tally.missed.append(f"{name}: patient {number}, changed {', '.join(sorted(changed))}")


def without_error(number: int, spacing_mm: float, scheme: ClassScheme, tally: Tally) -> None:
    absent = SPECIAL.get(number % 10, ())
    labels, image, geometry = phantom(number, spacing_mm, absent, 0.0 if number % 10 == CUT else None)
    states = {name: ABSENT if name in absent else PRESENT for name in scheme.names if name != "tumor"}
    rows, judged = failing(labels, image, geometry, scheme, states)
    tally.rows += len(judged)
    tally.alarmed_rows += len({row["class"] for row in rows})
    tally.alarms.update({row["rule"] for row in rows})
    tally.alarm_reasons += [f"patient {number}: {row['rule']} of {row['class']}: {row['reason']}" for row in rows]


def run(maps: int, spacing_mm: float = 5.0, first: int = 0) -> Tally:
    """Check ``maps`` maps with an error, kinds in turn, and ``maps`` without one, of other patients."""
    scheme, tally, kinds = load_classes("flare"), Tally(), list(ERRORS)
    for number in range(first, first + maps):
        with_error(number, kinds[number % len(kinds)], spacing_mm, scheme, tally)
        without_error(10_000 + number, spacing_mm, scheme, tally)
    return tally


def report(tally: Tally, maps: int) -> Iterator[str]:
    """Yield the lines of the result."""
    yield f"{maps} maps with one error and {maps} without, voxels of 5 to 6 mm, image and default rules."
    yield ""
    yield f"Recall {tally.recall:.3f} ({tally.found.total()} of {tally.tried.total()}); false alarms in"
    yield f"{100 * tally.false_alarms:.2f} % of the case-class rows ({tally.alarmed_rows} of {tally.rows})."
    yield ""
    yield "| error | maps | found | rules that failed (maps) |"
    yield "| --- | ---: | ---: | --- |"
    for name in ERRORS:
        if tally.tried[name]:
            rules = ", ".join(f"{rule} {count}" for rule, count in most_common(tally.by_rule[name], 6))
            yield f"| {name} | {tally.tried[name]} | {tally.found[name]} | {rules} |"
    yield ""
    yield from (
        ["Missed:", "", *(f"- {line}" for line in tally.missed), ""] if tally.missed else ["Nothing missed.", ""]
    )
    yield from (["| rule | false alarms (maps) |", "| --- | ---: |"] if tally.alarms else ["No false alarm."])
    yield from (f"| {rule} | {count} |" for rule, count in most_common(tally.alarms))
    yield from (["", *(f"- {line}" for line in tally.alarm_reasons)] if tally.alarm_reasons else [])


def real_report(options: argparse.Namespace) -> str:
    """Return the text on errors in expert labels of real scans, and in phantoms with voxels of 3 mm."""
    scheme, kinds = load_classes("flare"), real.NAMED | real.OWN
    half = real.half_of(options.real, options.dataset, 0 if options.fitted else 1, options.patients, scheme)
    collections = [half]
    for dataset, folder, *cases in options.also or ():
        collections.append(real.whole_folder(Path(folder), dataset, cases, half.others[half.patients[0]], scheme))
    drawn = [str(20_000 + number) for number in range(options.phantoms)]
    mistaken = {number: (lambda other=int(number) - 1: phantom(other, 3.0)[0]) for number in drawn}
    asked = asked_classes(scheme, None, load_dataset("phantom", scheme))
    phantoms = real.Collection("phantoms", drawn, lambda n: phantom(int(n), 3.0), mistaken, asked, drawn)
    found = {of.name: real.outcomes(of, kinds) for of in collections}
    by = "that limits were chosen by" if options.fitted else "that no limit was chosen by"
    spoiled = ", ".join(flat(of.spoiled for of in collections))
    text = [
        f"One error in each label map, of patients {by} ({half.name}: drawn once, half of all), and of MR: {spoiled}.",
        "Refused: a rule fails that is kept in the unaltered map; doubted: a rule doubts it, which refuses nothing.",
        "Right class: named is a class that was altered.",
    ]
    mr = [of.name for of in collections if of.modality == "MR"]
    return "\n".join([*text, "", *real.lines(found, real.outcomes(phantoms, kinds), mr)]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=10, help="maps with an error, and as many without")
    parser.add_argument("--first", type=int, default=0, help="number of the first patient")
    parser.add_argument(
        "--real", type=Path, metavar="DIR", help="scans and expert labels, <case>_0000 and <case>.nii.gz"
    )
    parser.add_argument("--dataset", default="btcv", help="with --real: whose ids the labels carry")
    parser.add_argument("--patients", type=int, help="with --real: spoil the first so many of the half; default: all")
    parser.add_argument(
        "--also", nargs="+", action="append", metavar="X", help="with --real: DATASET DIR [CASE ...], more such scans"
    )
    parser.add_argument("--fitted", action="store_true", help="with --real: the half that limits were chosen by")
    parser.add_argument("--phantoms", type=int, default=4, help="with --real: phantoms beside them")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULT.parent.name}/")
    options = parser.parse_args()
    if options.real:
        title, result = "Errors in expert labels of real scans", REAL_RESULT
        text = real_report(options)
    else:
        title, result = "Errors that the anatomy rules find", RESULT
        text = "\n".join(report(run(options.maps, first=options.first), options.maps)) + "\n"
    print(text)
    if options.write:
        write_text(result, f"# {title}\n\n{written_by(__file__, 'numpy')}\n\n{text}")


if __name__ == "__main__":
    main()
