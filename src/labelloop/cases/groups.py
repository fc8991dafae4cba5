"""Groups: named sets of cases, chosen by what is annotated in them. Which cases are in a group is data, not code.

Built in are the groups of the FLARE23 papers; a recipe may define more. Cases of every role are grouped: who trains on
a group takes its train cases, who evaluates its test cases.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from labelloop.base.classes import ClassScheme, Names, Strict
from labelloop.base.errors import UserError, nearest
from labelloop.base.lookup import SUFFIXES
from labelloop.base.sequences import flat
from labelloop.cases.annotation import States, annotated, from_table
from labelloop.cases.table import Case
from labelloop.images.datasets import read_dataset

if TYPE_CHECKING:
    import pandas as pd

SHORTEST_RANGE = 5
"""Zhou writes 1,2,3,4,13 but 1-13 (FLARE 2023): only five ids in a row or more become a range."""


class Group(Strict):
    """A rule that a case is in a group; all parts that are given must hold, and a group without parts holds all.

    Classes are names of classes or of class sets. They are tested on what is *annotated*, present or absent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    all_of: Names = Field((), alias="all", description="every one of these classes is annotated")
    any_of: Names = Field((), alias="any", description="at least one of these classes is annotated")
    none_of: Names = Field((), alias="none", description="none of these classes is annotated")
    labeled: bool | None = Field(None, description="whether any class at all is annotated")
    dataset: Names = Field((), description="the case is of one of these data sets: a `name` in its file, or the file")
    modality: Literal["", "CT", "MR"] = Field("", description="the case is of this modality")
    sequence: Names = Field((), description="the case is of one of these MR sequences (or CT phases)")
    in_groups: Names = Field((), alias="in", description="the case is in every one of these groups")
    not_in: Names = Field((), description="the case is in none of these groups")

    def holds(self, looked_for: Collection[str], case: Case, member_of: Collection[str], scheme: ClassScheme) -> bool:
        """Whether the rule holds for a case with these annotated classes that is in these other groups."""
        classes = set(looked_for)
        return (
            classes.issuperset(scheme.select(self.all_of))
            and (not self.any_of or not classes.isdisjoint(scheme.select(self.any_of)))
            and classes.isdisjoint(scheme.select(self.none_of))
            and self.labeled in (None, bool(classes))
            and (not self.dataset or case.dataset in self.dataset)
            and self.modality in ("", case.modality)
            and (not self.sequence or case.sequence in self.sequence)
            and all(g in member_of for g in self.in_groups)
            and not any(g in member_of for g in self.not_in)
        )


BUILT_IN_GROUPS: dict[str, Group] = {
    "all": Group(),
    "unlabeled": Group(labeled=False),
    "labeled": Group(labeled=True),
    "tumor": Group(all_of=("tumor",)),
    "no_tumor": Group(labeled=True, none_of=("tumor",)),
    "organs_full": Group(all_of=("organs",)),
    "organs_full_no_tumor": Group(in_groups=("organs_full", "no_tumor")),
    "organs_partial": Group(any_of=("organs",), in_groups=("no_tumor",), not_in=("organs_full",)),
}
"""The groups that every run has. Meng (FLARE 2023, section 2.1) numbers them: 1 unlabeled, 2 labeled, 3 no_tumor,
4 tumor, 5 organs_partial, 6 organs_full_no_tumor. Mao's (FLARE 2023) organ, tumor and incomplete data sets are
organs_full_no_tumor, tumor and organs_partial. ``organs_full`` asks for all organs, with or without tumor."""

_NEEDS = {"tumor": "tumor", "no_tumor": "tumor", "organs_full": "organs"}


def built_in(scheme: ClassScheme) -> dict[str, Group]:
    """Return the built-in groups that a scheme supports: those on tumor or organs need a class set of that name."""
    lacking = {name for name, needed in _NEEDS.items() if needed not in scheme.sets}
    if lacking:
        lacking |= {"organs_full_no_tumor", "organs_partial"}
    return {name: group for name, group in BUILT_IN_GROUPS.items() if name not in lacking}


def type_name(ids: Iterable[int]) -> str:
    """Return the name of the group of cases with just these annotated class ids, e.g. ``type:1-13``.

    Ids stand in order, separated by commas; runs of :data:`SHORTEST_RANGE` or more are written first-last.
    """
    runs: list[list[int]] = []
    for i in sorted(set(ids)):
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return "type:" + ",".join(
        f"{run[0]}-{run[-1]}" if len(run) >= SHORTEST_RANGE else ",".join(map(str, run)) for run in runs
    )


def canonical_name(name: str) -> str:
    """Return a group's name as the groups table has it: ``type:1-4,13`` becomes ``type:1,2,3,4,13``.

    Raises:
        UserError: when what follows ``type:`` is no list of ids and ranges.
    """
    if not name.startswith("type:"):
        return name
    ids: list[int] = []
    for part in re.split(r"\s*,\s*", name.removeprefix("type:").strip()):
        match = re.fullmatch(r"(\d{1,3})(?:\s*[-–]\s*(\d{1,3}))?", part)
        if not match:
            raise UserError(f"group {name!r}: {part!r} is no class id or range of ids, as in type:1,2,5-9")
        ids += range(int(match[1]), int(match[2] or match[1]) + 1)
    return type_name(ids)


def check_groups(extra: Mapping[str, Group], scheme: ClassScheme) -> list[str]:
    """Return every problem of a run's own groups, a line each: names taken or unknown, unknown classes, cycles."""
    groups = built_in(scheme) | dict(extra)
    known = {"all", *scheme.sets, *scheme.names}
    lines = [f"group {name!r}: this name is built in; take another" for name in extra if name in BUILT_IN_GROUPS]
    lines += [f"group {name!r}: names that begin with 'type:' are built in" for name in extra if _is_type(name)]
    for name, group in extra.items():
        asked = {"all": group.all_of, "any": group.any_of, "none": group.none_of}
        for key, classes in asked.items():
            wrong = [c for c in classes if c not in known]
            lines += [f"group {name!r}: {key}: no class or set {c!r}{nearest(c, known)}" for c in wrong]
        for key, others in {"in": group.in_groups, "not_in": group.not_in}.items():
            wrong = flat(name_problem(other, groups) for other in others)
            lines += [f"group {name!r}: {key}: {line}" for line in wrong]
    try:
        list(_order(groups))
    except CycleError as error:
        lines.append(f"groups {' -> '.join(error.args[1])}: each is defined by the next, in a circle")
    return lines


def with_data_sets(groups: Mapping[str, Group], data_sets: Iterable[str]) -> dict[str, Group]:
    """Return groups that name data sets as the case table does: by a name that can be looked up, or a whole path.

    A recipe names a data set by the ``name`` in its file, by the name under which it is found, or by the path of the
    file from the working folder. What means none of them stays as it is (:func:`data_set_problems`).

    Args:
        data_sets: those of the cases (``Case.dataset``).

    Raises:
        UserError: when the file of a data set cannot be read.
    """
    own = {spelled: read_dataset(spelled).name for spelled in sorted(set(data_sets))}

    def spelled_as(asked: str) -> list[str]:
        found = [spelled for spelled, name in own.items() if asked in (spelled, name) or _same(asked, spelled)]
        return found or [asked]

    named = {name: tuple(dict.fromkeys(flat(map(spelled_as, group.dataset)))) for name, group in groups.items()}
    return {name: group.model_copy(update={"dataset": named[name]}) for name, group in groups.items()}


def _same(asked: str, spelled: str) -> bool:
    """Say whether two names of data sets are paths of one file."""
    return asked.endswith(SUFFIXES) and spelled.endswith(SUFFIXES) and Path(asked).resolve() == Path(spelled).resolve()


def data_set_problems(groups: Mapping[str, Group], data_sets: Iterable[str]) -> list[str]:
    """Return a line for each data set that groups name (:func:`with_data_sets`) and no case is of."""
    there = set(data_sets)
    known = {read_dataset(spelled).name for spelled in there}
    lines: list[str] = []
    for name, group in groups.items():
        wrong = [asked for asked in group.dataset if asked not in there]
        lines += [f"groups.{name}.dataset: no case is of data set {asked!r}{nearest(asked, known)}" for asked in wrong]
    return lines


def _is_type(name: str) -> bool:
    return name.startswith("type:")


def name_problem(name: str, groups: Iterable[str]) -> list[str]:
    """Return what is wrong with the name of a group, where ``groups`` are there besides those of a type."""
    if not _is_type(name):
        return [] if name in groups else [f"no group {name!r}{nearest(name, groups)}"]
    try:
        canonical_name(name)
    except UserError as error:
        return [str(error)]
    return []


def _order(groups: Mapping[str, Group]) -> Iterable[str]:
    """Return group names so that each comes after those it is defined by."""
    graph = {name: [o for o in (*g.in_groups, *g.not_in) if o in groups] for name, g in groups.items()}
    return TopologicalSorter(graph).static_order()


def memberships(
    states: Mapping[str, States], cases: Mapping[str, Case], scheme: ClassScheme, extra: Mapping[str, Group]
) -> dict[str, set[str]]:
    """Return the groups of each case that is in both ``states`` (annotation) and ``cases`` (rows of the case table).

    Raises:
        UserError: every problem that :func:`check_groups` finds, a line each.
    """
    problems = check_groups(extra, scheme)
    if problems:
        raise UserError("\n".join(problems))
    groups = built_in(scheme) | dict(extra)
    order = [(name, _canonical(groups[name])) for name in _order(groups)]
    result: dict[str, set[str]] = {}
    for case, row in cases.items():
        if case not in states:
            continue
        looked_for = annotated(states[case])
        mine = {type_name(scheme.ids[name] for name in looked_for)} if looked_for else set()
        for name, group in order:
            if group.holds(looked_for, row, mine, scheme):
                mine.add(name)
        result[case] = mine
    return result


def _canonical(group: Group) -> Group:
    names = {key: tuple(map(canonical_name, getattr(group, key))) for key in ("in_groups", "not_in")}
    return group.model_copy(update=names)


def group_cases(
    annotation: "pd.DataFrame",
    cases: Mapping[str, Case],
    scheme: ClassScheme,
    extra: Mapping[str, Group] | None = None,
) -> "pd.DataFrame":
    """Return the groups table: a row for each case and group that it belongs to.

    Args:
        annotation: annotation table; cases that are not in it (set aside by the survey) are in no group.
        cases: cases of every role, by id.
        extra: groups of the run's own, which may refer to built-in ones, to types, and to each other.

    Raises:
        UserError: see :func:`memberships`.
    """
    import pandas as pd

    found = memberships(from_table(annotation), cases, scheme, extra or {})
    rows: list[tuple[str, str]] = []
    for case, names in found.items():
        rows += [(case, name) for name in sorted(names)]
    return pd.DataFrame(rows, columns=["case", "group"])


def members(
    states: Mapping[str, States],
    cases: Mapping[str, Case],
    scheme: ClassScheme,
    extra: Mapping[str, Group],
    groups: Sequence[str],
) -> set[str]:
    """Return the ids of the cases that belong to any of ``groups``; a type may be written in any notation.

    Raises:
        UserError: see :func:`memberships`; also for groups that do not exist, a line each.
    """
    known = built_in(scheme) | dict(extra)
    lines = [f"no group {g!r}{nearest(g, known)}" for g in groups if g not in known and not _is_type(g)]
    if lines:
        raise UserError("\n".join(lines))
    wanted = set(map(canonical_name, groups))
    return {case for case, names in memberships(states, cases, scheme, extra).items() if names & wanted}
