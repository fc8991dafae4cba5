"""What reviewers say of one case, as fusion takes it: voxels and states that go before the annotators' own."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from labelloop.base.classes import BACKGROUND, ClassScheme
from labelloop.base.errors import CaseError
from labelloop.base.files import sha256
from labelloop.base.wording import count
from labelloop.cases.annotation import ABSENT, PRESENT, UNKNOWN, States
from labelloop.cases.usable import UsableCase
from labelloop.images.volume import Geometry, canonical
from labelloop.review.decisions import ABSENT as SAID_ABSENT
from labelloop.review.decisions import DIFFER, EDITED, KEPT, RIGHT, UNSURE, WRONG, Decision, Reviews, Settled
from labelloop.review.maps import read_reviewed

STANDS = RIGHT, EDITED, SAID_ABSENT
"""Decisions that say what a class is; of the others, it is unknown, or was as it is."""


@dataclass
class Opinion:
    """What reviewers say of a case. Classes of which they say nothing that can be used are in no mapping.

    No voxel is in two masks: of two that were drawn, the later one has it.

    Args:
        settled: what they say, by class.
        states: annotation state of the classes that they know.
        masks: voxels of these classes, canonical [z, y, x]; none where a class is absent.
        judged: voxels that were judged, of each class whose map is kept.
        problems: why what they say of a class is not used.
        taken: which voxels of a class are another one's, because that was drawn later; in words.
    """

    settled: dict[str, Settled] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    judged: dict[str, np.ndarray] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    taken: dict[str, list[str]] = field(default_factory=dict)

    def over(self, truth: np.ndarray | None, states: States, scheme: ClassScheme) -> tuple[np.ndarray | None, States]:
        """Return truth and states of a case with what reviewers say in their place; what was given is not changed."""
        if not self.states:
            return truth, states
        known = dict(states) | self.states
        ids = [scheme.ids[name] for name in self.states]
        if truth is None:
            some = next(iter(self.masks.values()), None)
            return (None, known) if some is None else (self._drawn(np.zeros(some.shape, np.uint8), scheme), known)
        return self._drawn(np.where(np.isin(truth, ids), np.uint8(BACKGROUND), truth), scheme), known

    def _drawn(self, labels: np.ndarray, scheme: ClassScheme) -> np.ndarray:
        for name, mask in self.masks.items():
            labels[mask] = scheme.ids[name]
        return labels

    def draw(self, name: str, mask: np.ndarray) -> None:
        """Add the voxels of a class, and take them from the classes that were drawn before."""
        for other, drawn in list(self.masks.items()):
            lost = int((drawn & mask).sum())
            if lost:
                self.masks[other] = drawn & ~mask
                self.taken.setdefault(other, []).append(f"{count(lost, 'voxel')} of it went to {name}, drawn later")
            if lost and not self.masks[other].any():
                del self.masks[other], self.states[other]
                self.problems[other] = f"all of it went to {name}, drawn later. Judge it anew."
        self.masks[name] = mask

    def rows(self, without: np.ndarray, final: np.ndarray, labels: str, scheme: ClassScheme) -> list[dict[str, Any]]:
        """Return a row of the table "reviewed" (without ``case``) for each class that was decided.

        What selection would accept is not known here (``accepted``).

        Args:
            without, final: the label map (canonical) as it would be without reviewers, and as it is.
            labels: name of the label set; a question that was asked in another one is not one of this.
        """
        found = []
        for name, settled in sorted(self.settled.items()):
            shown = [without] if settled.decision in STANDS else [without, final]
            same = name in self.judged and any(
                np.array_equal(array == scheme.ids[name], self.judged[name]) for array in shown
            )
            asked = {decision.asked for decision in settled.by if decision.labels == labels}
            found.append(
                {
                    "class": name,
                    "decision": self._decision(name, settled),
                    "state": self._state(name, settled),
                    "reviewer": ";".join(one.replace(";", ",") for one in settled.reviewers),
                    "same_label": same,
                    "asked": next((why for why in ("random", "doubt") if why in asked), ""),
                    "accepted": "",
                    "reason": ", ".join([settled.said(), *self.taken.get(name, [])]).replace(";", ","),
                    "problem": self.problems.get(name, ""),
                }
            )
        return found

    def _decision(self, name: str, settled: Settled) -> str:
        """Return what reviewers say; who calls absent what the judged map has none of, calls it right."""
        nothing = name in self.judged and not self.judged[name].any()
        return RIGHT if nothing and settled.decision == SAID_ABSENT else settled.decision

    def _state(self, name: str, settled: Settled) -> str:
        if name in self.problems or settled.decision == UNSURE:
            return ""
        return UNKNOWN if settled.decision in (WRONG, DIFFER) else self.states[name]


def key_of(reviews: Reviews, case: str) -> list:
    """Return what of the decisions a case's label map is made from; empty without any.

    Decisions are told by their content and order, and files by their content, so that a copied file is no other one.
    """
    found = []
    for name, settled in reviews.of(case).items():
        files = [_content(reviews.path(decision)) for decision in settled.by]
        found.append([name, settled.content(), files])
    return found


def _content(path: Path | None) -> str:
    """Return the hash of a file: of one that is kept, its name says it and :func:`_read` makes sure."""
    if path is None or not path.is_file():
        return ""
    return path.name if path.parent.name == KEPT else sha256(path)


def opinion_of(reviews: Reviews, item: UsableCase, scheme: ClassScheme, grid: Geometry | None) -> Opinion:
    """Return what reviewers say of a case. What of it cannot be used is in its ``problems``.

    Args:
        grid: grid of the case's label maps as they are read (:meth:`UsableCase.label`); None: there is none.
    """
    found, read = Opinion(dict(reviews.of(item.id))), _Reader(reviews, item, scheme, grid)
    for name, settled in found.settled.items():
        try:
            judged = read.judged(settled.last, name)
            if judged is not None:
                found.judged[name] = judged
            if settled.decision in STANDS:
                mask = None if settled.decision == SAID_ABSENT else read.mask(settled.last, name)
                found.states[name] = PRESENT if mask is not None and mask.any() else ABSENT
                if mask is not None:
                    found.draw(name, mask)
        except CaseError as error:
            found.problems[name] = f"{reviews.folder / 'decisions.csv'}: row {settled.last.row}: {error}"
    return found


@dataclass
class _Reader:
    """Reads the maps that the decisions about one case name, each once."""

    reviews: Reviews
    item: UsableCase
    scheme: ClassScheme
    grid: Geometry | None
    arrays: dict[Path, np.ndarray] = field(default_factory=dict)

    def judged(self, decision: Decision, name: str) -> np.ndarray | None:
        """Return the voxels that were judged; None when their map is not kept."""
        path = self.reviews.folder / KEPT / f"{decision.sha256}.nii.gz"
        return self._mask(path, name) if decision.sha256 and path.is_file() else None

    def mask(self, decision: Decision, name: str) -> np.ndarray:
        """Return the voxels of the map that a decision names."""
        return self._mask(self.reviews.folder / decision.file, name)

    def _mask(self, path: Path, name: str) -> np.ndarray:
        if path not in self.arrays:
            self.arrays[path] = self._read(path)
        return self.arrays[path] == self.scheme.ids[name]

    def _read(self, path: Path) -> np.ndarray:
        if path.parent.name == KEPT and path.is_file() and sha256(path) != path.name.partition(".")[0]:
            raise CaseError(
                "review_altered", str(path), "not what was kept under this name", "Restore it, or judge anew."
            )
        volume = self.item.upright(read_reviewed(path, list(self.scheme.ids.values())))
        difference = volume.geometry.difference(self.grid) if self.grid else None
        if difference:
            found = f"map and image differ in {difference}"
            raise CaseError("label_grid", str(path), found, "Save it on the image's grid.")
        return canonical(volume).array
