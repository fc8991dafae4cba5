"""The door to a review: what a label set asks, with all files to look at, and where the answers go.

Whoever shows labels to a person (files in a folder, a page) opens a :class:`Desk`, reads :meth:`Desk.asked`, and hands
each answer to :meth:`Desk.decide`.
"""

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from labelloop.base.classes import ClassScheme
from labelloop.base.documents import read_json
from labelloop.base.errors import CaseError, UserError, nearest
from labelloop.base.files import sha256, stamp, write_json
from labelloop.base.paths import Paths
from labelloop.base.tables import by_label, read_table, upside_down
from labelloop.cases.table import first_image
from labelloop.images.scan import ScanFile
from labelloop.review.decisions import (
    ABSENT,
    DIFFER,
    EDITED,
    FILE,
    RIGHT,
    UNSURE,
    Decision,
    Reviews,
    Settled,
    append,
    check,
    one_line,
    settle,
)
from labelloop.review.maps import keep, keep_edited
from labelloop.review.waiting import decisions_gone


def write_desk(path: Path, name: str, reviews: str, scheme: ClassScheme, models: Sequence[str]) -> None:
    """Write what :class:`Desk` needs to know of a label set besides its queue; folders relative to the file's.

    Args:
        reviews: folder of the decisions about the label set. models: those that it was made from.
    """
    classes = [{"name": info.name, "id": info.id, "color": info.color} for info in scheme.classes]
    folder = os.path.relpath(reviews, path.parent)
    write_json(path, {"labels": name, "reviews": folder, "classes": classes, "models": list(models)})


@dataclass(frozen=True)
class Question:
    """A label to look at: a row of the queue, its files, and what reviewers have said since.

    Args:
        rank: place in the queue.
        case, name: case id and class. decision: what selection made of the label.
        reasons: why it is asked, a line each. asked: doubt or random.
        image, map: image, and label map on its grid; None where nothing was predicted. sha256: of the label map.
        modality: CT or MR. upside_down: image and label maps are stored so.
        models: label maps of the models, by model; those that are there.
        picture: picture with the reasons written on it; None where there is none.
        box: where the label is doubted (:mod:`labelloop.images.boxes`); empty: nowhere in particular.
        settled: what the reviewers say by now; None: nothing.
    """

    rank: int
    case: str
    name: str
    decision: str
    reasons: tuple[str, ...]
    asked: str
    image: Path
    map: Path | None
    sha256: str
    models: dict[str, Path]
    picture: Path | None
    settled: Settled | None
    modality: str = "CT"
    upside_down: bool = False
    box: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it still waits for an answer that settles it."""
        return self.settled is None or not self.settled.answers(self.sha256)


class Desk:
    """The review of one label set.

    Args:
        results: folder of a run's results.
        labels: name of the label set; None: the only one, or the last of the chain that has a queue.
        reviews: folder of the decisions about it; None: the one that the run reads.

    Raises:
        UserError: there is no such label set, or no queue.
    """

    def __init__(self, results: str | Path, labels: str | None = None, reviews: str | Path | None = None):
        self.results, self._paths = Path(results), Paths(str(results))
        self.labels = labels or _only(self.results)
        known = _queues(self.results)
        if self.labels not in known:
            raise UserError(f"{results}: no review queue of label set {self.labels!r}{nearest(self.labels, known)}")
        about: dict[str, Any] = read_json(self._paths.desk(self.labels))
        self.folder = Path(reviews) if reviews else self._below(about["reviews"])
        self.ids: dict[str, int] = {entry["name"]: entry["id"] for entry in about["classes"]}
        self.colors: dict[str, str] = {entry["name"]: entry["color"] for entry in about["classes"]}
        self.model_names: list[str] = about["models"]
        self._kept: tuple[list[int] | None, Reviews] | None = None

    def _below(self, name: str) -> Path:
        return Path(os.path.normpath(Path(self._paths.desk(self.labels)).parent / name))

    @property
    def reviews(self) -> Reviews:
        """The decisions as they are now; read again only when their file is another one."""
        now = stamp(self.folder / FILE)
        kept = self._kept
        if kept is None or kept[0] != now:
            kept = self._kept = (now, Reviews(self.folder, classes=self.ids))
        return kept[1]

    def problems(self) -> list[str]:
        """Return the decisions that are not used or are gone, a line each."""
        gone = decisions_gone(self.folder, Path(self._paths.label_table("reviewed", self.labels)))
        return [*gone, *map(str, self.reviews.problems)]

    @cached_property
    def _rows(self) -> list[dict[Hashable, Any]]:
        return read_table(self._paths.review(self.labels), "review").to_dict("records")

    def asked(self) -> list[Question]:
        """Return the queue, with what reviewers have said by now."""
        reviews = self.reviews
        return [self._asked(row, reviews.of(row["case"]).get(row["class"])) for row in self._rows]

    def _asked(self, row: Mapping[Hashable, Any], settled: Settled | None) -> Question:
        maps = {model: Path(self._paths.predictions(model)) / f"{row['case']}.nii.gz" for model in self.model_names}
        return Question(
            rank=int(row["rank"]),
            case=row["case"],
            name=row["class"],
            decision=row["decision"],
            reasons=tuple(row["reasons"].splitlines()),
            asked=row["asked"],
            image=Path(row["image"]),
            map=self._below(row["file"]) if row["file"] else None,
            sha256=row["sha256"],
            models={model: path for model, path in maps.items() if path.is_file()},
            picture=self._below(row["picture"]) if row["picture"] else None,
            settled=settled,
            modality=self._cases.get(row["case"], {}).get("modality", ""),
            upside_down=row["case"] in self._upside_down,
            box=row["box"],
        )

    def question(self, case: str, name: str, sha256: str = "", asked: str = "") -> Question:
        """Return the question about a label, whether or not it is in the queue.

        Args:
            sha256: of the label map that was looked at; one that is not in the results any more has no ``map``.
            asked: doubt or random, if the queue asked for it.

        Raises:
            UserError: the label set has no such case or class.
        """
        if (case, name) not in self._selected:
            what = f"class {name[:80]!r}" if case in self.cases else f"case {case[:80]!r}"
            raise UserError(f"{what} is not in label set {self.labels} of {self.results}")
        reviews, row = self.reviews, self._selected[case, name]
        path = Path(self._paths.labels(self.labels)) / f"{case}.nii.gz"
        empty: dict[Hashable, Any] = {
            "rank": 0,
            "reasons": "",
            "picture": "",
            "box": "",
            "image": first_image(str(self._cases.get(case, {}).get("image", ""))),
            "file": "",
        }
        made = self._asked(empty | row | {"asked": asked, "sha256": sha256}, reviews.of(case).get(name))
        return replace(made, map=path if path.is_file() else None)

    @cached_property
    def cases(self) -> set[str]:
        """Cases of the label set."""
        return {case for case, _ in self._selected}

    @cached_property
    def _selected(self) -> dict[tuple[str, str], dict[Hashable, Any]]:
        return by_label(read_table(self._paths.label_table("selected", self.labels), "selected"))

    @cached_property
    def _cases(self) -> dict[str, dict[Hashable, Any]]:
        table = read_table(self._paths.table("cases"), "cases")
        return {row["case"]: row for row in table.to_dict("records")}

    @cached_property
    def _upside_down(self) -> set[str]:
        path = Path(self._paths.table("upright"))
        return upside_down(path) if path.is_file() else set()

    def drawn_beside(self, asked: Question, reviewer: str, until: int) -> dict[str, Path | None]:
        """Return the maps of the other classes of a case that were edited, in the order drawn; None: a class is absent.

        Where reviewers differ, what ``reviewer`` says counts.

        Args:
            until: the last row of the decisions that is asked.
        """
        said = [one for one in self.reviews.decisions if one.case == asked.case and one.row <= until]
        found = []
        for settled in settle(said).get(asked.case, {}).values():
            own = [one for one in settled.by if one.reviewer == one_line(reviewer)]
            found += own if settled.decision == DIFFER else [settled.last]
        drawn = sorted((one for one in found if one.decision in (EDITED, ABSENT)), key=lambda one: one.row)
        paths = {one.name: self.folder / one.file if one.decision == EDITED else None for one in drawn}
        return {name: path for name, path in paths.items() if name != asked.name}

    def decide(
        self,
        asked: Question,
        reviewer: str,
        decision: str,
        *,
        judged: Path | None = None,
        edited: Path | None = None,
        comment: str = "",
        seconds: float | None = None,
        from_files: bool = False,
    ) -> Decision:
        """Append what a reviewer says of a label, and keep the map that was judged; return the decision.

        What the reviewer has said last already is not said twice.

        Args:
            asked: of :meth:`asked` or :meth:`question`; its ``sha256`` says which map was looked at.
            decision: right, wrong, absent, edited or unsure.
            judged: a copy of the map that was looked at; None: the one in the results.
            edited: for ``edited``, the map that was edited. Only the class asked about counts.
            from_files: it is read from files, which may be read again after the reviewer changed their mind elsewhere.

        Raises:
            UserError: no reviewer, a decision that is none, or that lacks its map, or one from files that the reviewer
                made before and changed since; nothing is written then.
            CaseError: the edited map cannot be used; nothing is written then.
        """
        reviewer = one_line(reviewer)
        made = Decision(
            reviewer, asked.case, asked.name, decision, asked.sha256, comment=comment, seconds=seconds,
            labels=self.labels, asked=asked.asked,
        )  # fmt: skip
        if (asked.case, asked.name) not in self._selected:
            raise UserError(f"{asked.case}, {asked.name}: not in label set {self.labels} of {self.results}")
        check(made)
        if decision == EDITED and edited is None:
            raise UserError(f"{asked.case}, {asked.name}: edited, but there is no edited map")
        file = self._keep(asked, judged or asked.map, decision)
        if decision == RIGHT and not file:
            raise UserError(f"{asked.case}, {asked.name}: right, but there is no label map; say absent, or edit one")
        if decision == EDITED and edited is not None:
            file = keep_edited(self.folder, asked.case, edited, list(self.ids.values()), self._grid(asked))
        made = replace(made, file=file)
        mine = self._of(asked, reviewer)
        if mine and _is_same(mine[-1], made):
            return made
        before = next((d for d in mine if _is_same(d, made)), None)
        if from_files and before:
            raise UserError(
                f"{made.case}, {made.name}: {reviewer} said {made.decision} before, and {mine[-1].decision} since "
                f"({self.folder / FILE}, rows {before.row} and {mine[-1].row}), which holds. To change it, judge it on "
                "the page, or write another comment."
            )
        append(self.folder, [made])
        return made

    def last(self, asked: Question, reviewer: str) -> Decision | None:
        """Return what a reviewer said last of a label; None: nothing."""
        return next(reversed(self._of(asked, one_line(reviewer))), None)

    def _of(self, asked: Question, reviewer: str) -> list[Decision]:
        about = (reviewer, asked.case, asked.name)
        return [one for one in self.reviews.decisions if (one.reviewer, one.case, one.name) == about]

    def _grid(self, asked: Question):
        try:
            return ScanFile(asked.image if asked.image.is_file() else asked.map or asked.image, "image").geometry()
        except CaseError as error:
            found = "neither its label map nor its image can be read"
            raise CaseError("label_missing", str(asked.map or asked.image), found, "Restore it.") from error

    def _keep(self, asked: Question, judged: Path | None, decision: str) -> str:
        """Keep the map that was judged; return its name among the decisions, or nothing where there is none.

        An edited map holds whatever became of the one that was judged: all its voxels are its own. And who is unsure
        may take back what was said of a map that is gone.
        """
        if not asked.sha256 or judged is None:
            return ""
        if not judged.is_file() or sha256(judged) != asked.sha256:
            if decision in (EDITED, UNSURE):
                return ""
            raise UserError(
                f"{asked.case}, {asked.name}: {judged} is not the label map that was judged. It has been made anew "
                "since: start the review again."
            )
        return keep(self.folder, judged)[1]


def _is_same(one: Decision, other: Decision) -> bool:
    """Say whether two decisions of a reviewer about a label say the same."""
    fields = ("decision", "sha256", "file", "comment", "labels")
    return all(one_line(getattr(one, f)) == one_line(getattr(other, f)) for f in fields)


def _queues(results: Path) -> list[str]:
    """Return the label sets that have a review queue, the newest last."""
    found = sorted(results.glob("review/*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return [path.stem for path in found]


def _only(results: Path) -> str:
    known = _queues(results)
    if not known:
        raise UserError(f"{results}: no review queue; `labelloop run` makes it with the label sets")
    return known[-1]
