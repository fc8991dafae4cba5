"""The cases that the page of one reviewer shows: each read once, with what was drawn in it by then."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path

from labelloop.base.files import digest, stamp
from labelloop.review.decisions import EDITED
from labelloop.review.desk import Desk, Question
from labelloop.review.maps import ENDING
from labelloop.review.views import SINCE, Case, Cut

KEPT_CASES = 2
"""Cases in memory: the one that is looked at, and the next one."""
DRAFT, DRAFTS = "your unsaved edit", "drafts"
"""Name of the map with strokes that are not saved yet, and the folder of such maps beside the decisions."""


@dataclass
class Shown:
    """What a reviewer looks at; safe in several threads.

    Args:
        reviewer: whose drafts are shown, and whose word counts where reviewers differ.
    """

    desk: Desk
    reviewer: str
    _cases: OrderedDict[str, Case] = field(default_factory=OrderedDict)
    _beside: dict[str, Case] = field(default_factory=dict)
    _edited: dict[str, Case] = field(default_factory=dict)
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def cut(self, one: Question, place: str) -> Cut:
        """Return what is shown of a question, the map that was edited last and the draft with it.

        Other classes of the label map are as reviewers drew them by now. A place that a cut was called by
        (:attr:`labelloop.review.views.Cut.place`) names them as they were then.

        Raises:
            ValueError: the image has no such place.
            CaseError, OSError: as :meth:`labelloop.review.views.Case.read`.
        """
        box, _, row = place.partition(SINCE)
        until = int(row) if row else self.desk.reviews.last_row
        with self._reading:  # one at a time: a case is large, and the next request may ask for the same
            case = self._with_edited(self._with_others(self._read(one), one, until), one)
        return replace(case, since=until).cut(self._id(one), box)

    def _id(self, one: Question) -> int:
        return self.desk.ids[one.name]

    def _read(self, one: Question) -> Case:
        if one.case not in self._cases:
            self._cases[one.case] = Case.read(one, list(self.desk.ids.values()))
        self._cases.move_to_end(one.case)
        while len(self._cases) > KEPT_CASES:
            self._cases.popitem(last=False)
        return self._cases[one.case]

    def _with_others(self, case: Case, one: Question, until: int) -> Case:
        """Return a case whose label map has other classes than the one asked about as reviewers drew them."""
        drawn = self.desk.drawn_beside(one, self.reviewer, until)
        if not drawn:
            return case
        key = digest([one.case, one.name, [[name, str(path), path and stamp(path)] for name, path in drawn.items()]])
        if key not in self._beside:
            maps = {self.desk.ids[name]: path for name, path in drawn.items()}
            self._beside = {key: case.with_others(maps, self._id(one), list(self.desk.ids.values()), key)}
        return self._beside[key]

    def _with_edited(self, case: Case, one: Question) -> Case:
        """Return a case with the map that somebody edited for the question last, and the draft, where there are any."""
        settled = self.desk.reviews.of(one.case).get(one.name)
        last = next((d for d in reversed(settled.by if settled else ()) if d.decision == EDITED), None)
        maps = {DRAFT: self.draft(one)}
        if last:
            maps[f"edited by {last.reviewer}"] = self.desk.folder / last.file
        there = {name: path for name, path in maps.items() if path.is_file()}
        if not there:
            return case
        key = digest([one.case, case.others, [[name, str(path), stamp(path)] for name, path in there.items()]])
        if key not in self._edited:
            for name, path in there.items():
                case = case.with_map(name, path, list(self.desk.ids.values()))
            self._edited = {key: case}
        return self._edited[key]

    def draft(self, one: Question) -> Path:
        """Return where the reviewer's strokes about a label are kept until they are saved."""
        return self.desk.folder / DRAFTS / digest(self.reviewer) / one.name / f"{one.case}{ENDING}"
