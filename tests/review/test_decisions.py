"""Decisions: what is appended is read, the last one wins, nobody's is lost, and what is wrong is named."""

import string
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelloop.base.errors import UserError
from labelloop.base.paths import Paths
from labelloop.review.decisions import COLUMNS, DECISIONS, FILE, Decision, Reviews, append, one_line, read, settle
from labelloop.review.desk import Desk
from labelloop.review.waiting import left_to_answer

NAMES = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=8)
WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
SHA = "0f" * 32


def made(reviewer="ann", case="a", name="liver", decision="wrong", **more) -> Decision:
    file = f"kept/{SHA}.nii.gz" if decision in ("right", "edited") else ""
    return Decision(reviewer, case, name, decision, **{"file": file, "time": "2026-01-31T12:00:00+00:00"} | more)


DRAWN = st.builds(
    made,
    reviewer=WORDS.filter(lambda text: one_line(text)),
    case=NAMES,
    name=NAMES,
    decision=st.sampled_from(DECISIONS),
    sha256=st.sampled_from(["", SHA]),
    comment=WORDS,
    seconds=st.none() | st.integers(0, 1000).map(float),
)


@given(st.lists(st.lists(DRAWN, max_size=4), max_size=3))
def test_what_is_appended_is_read_in_its_order(batches):
    with TemporaryDirectory() as folder:
        for batch in batches:
            append(folder, batch)
        found, problems = read(folder)
    assert not problems
    assert [one.cells() for one in found] == [one.cells() for batch in batches for one in batch]


def test_writers_at_once_lose_nothing(tmp_path):
    rows = [[made(f"r{n}", f"case{k}", comment='a, b\n"c"') for k in range(20)] for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda mine: [append(tmp_path, [one]) for one in mine], rows))
    found, problems = read(tmp_path)
    assert not problems and len(found) == 80
    for n in range(4):
        assert [one.case for one in found if one.reviewer == f"r{n}"] == [f"case{k}" for k in range(20)]


@given(st.lists(st.sampled_from(DECISIONS), min_size=1, max_size=5), st.lists(st.sampled_from(DECISIONS), max_size=5))
def test_the_last_decision_of_a_reviewer_wins_and_two_who_differ_settle_nothing(anns, bobs):
    found = settle([made("ann", decision=one) for one in anns] + [made("bob", decision=one) for one in bobs])
    sure = {one for one in (anns[-1], *bobs[-1:]) if one != "unsure"}
    expected = {0: "unsure", 1: next(iter(sure), ""), 2: "differ"}[len(sure)]
    settled = found["a"]["liver"]
    assert settled.decision == expected
    if expected == "differ":
        assert settled.said() == f"ann said {anns[-1]}, bob said {bobs[-1]}"


def test_two_who_edited_two_maps_differ():
    edited = [made(who, decision="edited", file=f"kept/{who}.nii.gz") for who in ("ann", "bob")]
    assert settle(edited)["a"]["liver"].decision == "differ"
    assert settle([*edited, made("bob", decision="unsure")])["a"]["liver"].last == edited[0]


OLD, NEW = "a1" * 32, "b2" * 32


@pytest.mark.parametrize("later", ["right", "edited", "absent", "wrong"])
def test_who_called_an_old_map_wrong_does_not_differ_from_who_judges_a_new_one(later):
    wrong = made("ann", decision="wrong", sha256=OLD)
    new, same, unknown = (made("bob", decision=later, sha256=sha) for sha in (NEW, OLD, ""))
    assert settle([wrong, new])["a"]["liver"].decision == later
    differ = "wrong" if later == "wrong" else "differ"
    assert settle([wrong, same])["a"]["liver"].decision == settle([wrong, unknown])["a"]["liver"].decision == differ
    assert settle([wrong, new, made("cay", decision="wrong", sha256=NEW)])["a"]["liver"].decision == differ
    earlier = made("bob", decision=later, sha256=OLD), made("ann", decision="wrong", sha256=NEW)
    assert settle(earlier)["a"]["liver"].decision == differ  # what else is said holds for later maps, too
    assert settle([wrong, made("bob", decision="unsure", sha256=NEW)])["a"]["liver"].decision == "wrong"


def test_what_was_said_of_an_old_map_is_no_answer_about_a_new_one(results):
    desk, queue = Desk(results), Path(Paths(str(results)).review("pseudo"))
    one, *_ = desk.asked()
    append(desk.folder, [made(case=one.case, name=one.name, sha256=OLD, labels="round1")])
    assert left_to_answer(queue, desk.reviews, "pseudo", 30) == 3 and desk.asked()[0].is_open
    desk.decide(one, "bob", "right")
    assert left_to_answer(queue, desk.reviews, "pseudo", 30) == 2 and not desk.asked()[0].is_open


def test_a_row_that_a_kill_cut_short_costs_itself_alone(tmp_path):
    append(tmp_path, [made(case="a"), made(case="b", comment='"so"')])
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-12])
    append(tmp_path, [made(case="c")])
    found, [problem] = read(tmp_path)
    assert [one.case for one in found] == ["a", "c"]
    assert str(problem).startswith(f"{path}: row 3: damaged: ")


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"decision": "rihgt"}, "did you mean 'right'"),
        ({"decision": "right"}, "right without the file"),
        ({"decision": "edited"}, "edited without the file"),
        ({"file": "../other/a.nii.gz"}, "a file below the decisions' folder is expected"),
        ({"file": "/etc/passwd"}, "a file below the decisions' folder is expected"),
        ({"sha256": "abc"}, "64 hexadecimal digits"),
        ({"seconds": "nan"}, "a number or nothing is expected"),
        ({"seconds": "soon"}, "a number or nothing is expected"),
        ({"time": "yesterday"}, "time 'yesterday'"),
        ({"reviewer": " "}, "no reviewer"),
        ({"case": "z"}, "case 'z' is not one of the run's"),
        ({"class": "livr"}, "did you mean 'liver'"),
    ],
)
def test_a_row_that_is_wrong_is_named_and_the_others_count(tmp_path, cells, said):
    row = dict(zip(COLUMNS, made().cells(), strict=True))
    lines = [",".join(COLUMNS), ",".join((row | cells).values()), ",".join(row.values())]
    (tmp_path / FILE).write_text("\n".join(lines) + "\n")
    found, [problem] = read(tmp_path, {"a"}, {"liver", "spleen"})
    assert [one.row for one in found] == [3]
    assert f"{tmp_path / FILE}: row 2: " in str(problem) and said in str(problem)


def test_a_file_without_its_header_and_one_from_a_spreadsheet(tmp_path):
    append(tmp_path, [made()])
    path = tmp_path / FILE
    content = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert [one.case for one in read(tmp_path)[0]] == ["a"]
    path.write_bytes(content.split(b"\n", 1)[1])
    found, [problem] = read(tmp_path)
    assert not found and "row 1: the header lacks" in str(problem)
    assert read(tmp_path / "nowhere") == ([], [])


def german(text: str) -> str:
    return "\ufeff" + text.replace(",", ";").replace("4.5", "4,5").replace("\n", "\r\n")


SAVED = {
    "semicolons": german,
    "tabs": lambda text: text.replace(",", "\t"),
    "another column": lambda text: text.replace("\n", ",\n").replace("asked,", "asked,note"),
    "columns in another order": lambda text: "\n".join(",".join(line.split(",")[::-1]) for line in text.splitlines()),
    "an empty row": lambda text: text + "," * (len(COLUMNS) - 1) + "\n",
}


@pytest.mark.parametrize("how", SAVED)
def test_what_is_appended_to_a_table_that_a_spreadsheet_saved_is_read(tmp_path, how):
    first, second = made(seconds=4.5), made(case="b", comment="a;b, c\td")
    append(tmp_path, [first])
    path = tmp_path / FILE
    path.write_bytes(SAVED[how](path.read_text()).encode())
    append(tmp_path, [second])
    found, problems = read(tmp_path)
    assert not problems and [one.cells() for one in found] == [first.cells(), second.cells()]


SPOILED = {
    "a column is gone": lambda text: text.replace(",asked", "").replace(",\n", "\n").encode(),
    "no header": lambda text: text.partition("\n")[2].encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "empty lines": lambda text: b"\n\n",
}


@pytest.mark.parametrize("how", SPOILED)
def test_nothing_is_appended_where_nobody_could_read_it(tmp_path, how):
    append(tmp_path, [made()])
    path = tmp_path / FILE
    content = SPOILED[how](path.read_text())
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"decisions.csv: the header lacks .*The decision is not taken; mend the file"):
        append(tmp_path, [made(case="b")])
    assert path.read_bytes() == content


def test_decisions_that_cannot_be_opened_are_named(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read(tmp_path)


def test_what_is_no_decision_is_not_appended(tmp_path):
    with pytest.raises(UserError, match="right without the file"):
        append(tmp_path, [made(), made(decision="right", file="")])
    assert read(tmp_path) == ([], [])


def test_the_fingerprint_follows_what_holds_of_the_cases_asked_and_nothing_else(tmp_path):
    def now(*cases: str) -> str:
        return Reviews(tmp_path).fingerprint(cases)

    assert now("a", "b") == ""
    append(tmp_path, [made(case="a", decision="unsure"), made(case="a")])
    first = now("a", "b")
    assert first and now("b") == ""
    append(tmp_path, [made(case="b")])
    assert now("a") == first and now("a", "b") != first
    append(tmp_path, [made(case="a", time="2027-01-31T12:00:00+00:00", seconds=3.0)])
    assert now("a") == first  # the same again
    append(tmp_path, [made("bob", case="a")])
    assert now("a") != first


def test_a_kept_file_that_changes_changes_the_fingerprint(tmp_path):
    Path(tmp_path / "edited").mkdir()
    edited = tmp_path / "edited" / "a.nii.gz"
    edited.write_bytes(b"1")
    append(tmp_path, [made(decision="edited", file="edited/a.nii.gz")])
    before = Reviews(tmp_path).fingerprint(["a"])
    edited.write_bytes(b"22")
    assert Reviews(tmp_path).fingerprint(["a"]) != before


def test_what_settles_nothing_is_no_answer_that_a_run_waits_for(results):
    desk, queue = Desk(results), Path(Paths(str(results)).review("pseudo"))

    def left(limit: int = 30) -> int | None:
        return left_to_answer(queue, desk.reviews, "pseudo", limit)

    one, other, third = desk.asked()
    assert left() == 3 and left_to_answer(queue.with_name("none.csv"), desk.reviews, "pseudo", 30) is None
    desk.decide(one, "ann", "unsure")
    desk.decide(other, "ann", "right")
    assert left() == 2
    desk.decide(one, "ann", "wrong")
    desk.decide(third, "ann", "wrong", comment="a wrong key")
    assert left() == 0
    desk.decide(third, "ann", "unsure", comment="taken back")
    desk.decide(other, "bob", "wrong")
    assert left() == 2 and [row.is_open for row in desk.asked()] == [False, True, True]
    assert (left(2), left(1)) == (1, 0)  # of a queue that was made anew, as many more as it lacks
