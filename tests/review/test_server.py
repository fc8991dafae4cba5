"""The page's server: what it refuses, that it lives on, and that nothing said is lost."""

import gzip
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from importlib.resources import files
from urllib.parse import quote

import numpy as np
import pytest

from labelloop.base.errors import UserError
from labelloop.cases.table import Case
from labelloop.cases.usable import UsableCase
from labelloop.cli.main import main
from labelloop.images.volume import Geometry, read, write
from labelloop.review import server as module
from labelloop.review.decisions import read as read_decisions
from labelloop.review.desk import Desk
from labelloop.review.opinion import opinion_of
from labelloop.review.server import PAGE, PageServer
from tiny_review import GRID, LIVER, SCHEME, SPLEEN, label_map, write_results

NIIVUE = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
USABLE = UsableCase(Case(case="a", image="a.mha", dataset="own"), {}, "", "", "")


class Client:
    """Asks a server as a browser does, or otherwise."""

    def __init__(self, server: PageServer):
        self.server, self.host = server, f"127.0.0.1:{server.server_port}"

    def ask(self, path: str, body=None, method="", token: str | None = None, **headers) -> tuple[int, bytes]:
        """Return status and content of the answer; a header of None is not sent."""
        connection = HTTPConnection("127.0.0.1", self.server.server_port, timeout=30)
        sent = {"Host": self.host, "Origin": f"http://{self.host}"}
        if body is not None:
            sent["Content-Length"] = str(len(body))
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method or ("GET" if body is None else "POST"), self.path(path, token), True, True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    def path(self, path: str, token: str | None) -> str:
        return path if token == "" else f"/{token or self.server.token}/{path}"

    def decide(self, number: int, decision: str, **more) -> tuple[int, bytes]:
        return self.ask(f"{number}/decision", json.dumps({"decision": decision} | more).encode())


@contextmanager
def serving(results, reviewer="ann"):
    server = PageServer(Desk(results), reviewer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield Client(server)
    finally:
        server.shutdown()
        server.close()
        thread.join()


@pytest.fixture
def page(results):
    with serving(results) as client:
        yield client


def said(results) -> list[tuple[str, str, str]]:
    decisions, problems = read_decisions(Desk(results).folder)
    assert not problems
    return [(one.case, one.name, one.decision) for one in decisions]


def edited(array: np.ndarray, client: Client, number: int = 1) -> bytes:
    """Return a cut of the label map with ``array`` in its place, as the page sends it."""
    status, content = client.ask(f"{number}/crop/map/")
    assert status == 200 and len(content) == 352 + array.size  # the tiny image is smaller than the margin
    return gzip.compress(content[:352] + np.ascontiguousarray(array).tobytes(), 1)


def upright(array: np.ndarray) -> np.ndarray:
    """Return a map of the tiny grid in the order of the page: its y axis runs to the back."""
    return array[:, ::-1, :]


def test_the_page_is_whole_and_asks_nobody_else(page):
    for name in PAGE:
        status, content = page.ask(name)
        assert status == 200 and content
        if name != "niivue.umd.js":
            assert b"http://" not in content and b"https://" not in content
    assert {one for one, _ in PAGE.values()} < {path.name for path in (files("labelloop.review") / "page").iterdir()}


def test_niivue_is_the_one_that_was_looked_at():
    folder = files("labelloop.review") / "page"
    assert hashlib.sha256((folder / "niivue.umd.js").read_bytes()).hexdigest() == NIIVUE
    assert "BSD 2-Clause" in (folder / "niivue.LICENSE").read_text()


def test_a_review_is_read_and_answered(results, page):
    queue = json.loads(page.ask("queue")[1])
    assert [one["class"] for one in queue["questions"]] == ["liver", "spleen", "liver"] and queue["left"] == 3
    assert queue["questions"][0]["reasons"][1] == {"what": "leak", "why": "odd, too"} and queue["seconds_left"] is None
    about = json.loads(page.ask("1/crop/about")[1])
    assert [one["name"] for one in about["maps"]] == ["", "m"] and about["size"] == list(GRID.size)
    assert page.ask("1/crop/image")[0] == page.ask("1/whole/map/m")[0] == 200
    status, content = page.decide(1, "right", seconds=8.04, comment="sure")
    after = json.loads(content)
    assert status == 200 and after["left"] == 2 and after["seconds_left"] == 16.0
    assert after["questions"][0]["said"] == "ann said right: sure"
    assert page.decide(2, "unsure")[0] == page.decide(3, "absent")[0] == 200
    assert said(results) == [("a", "liver", "right"), ("a", "spleen", "unsure"), ("b", "liver", "absent")]
    assert json.loads(page.ask("queue")[1])["left"] == 1


def test_an_edited_map_is_kept_as_it_was_drawn(results, page):
    array = label_map()
    array[6, 6:9, 6:9] = LIVER
    status, content = page.ask("1/crop/edited?seconds=61.5&comment=more", edited(upright(array), page))
    assert status == 200, content
    folder = Desk(results).folder
    [one] = read_decisions(folder)[0]
    assert (one.decision, one.seconds, one.comment) == ("edited", 61.5, "more")
    kept = read(folder / one.file)
    assert (kept.array == array).all() and kept.geometry.difference(GRID) is None
    assert (read(folder / "edited/a.nii.gz").array == array).all()
    names = [one["name"] for one in json.loads(page.ask("1/crop/about")[1])["maps"]]
    assert names == ["", "m", "edited by ann"]
    shown = page.ask("1/crop/map/edited%20by%20ann")[1][352:]
    assert (np.frombuffer(shown, np.uint8).reshape(array.shape) == upright(array)).all()
    assert len(json.loads(page.ask("2/crop/about")[1])["maps"]) == 2  # the spleen was not edited


def map_shown(client: Client, number: int, place: str = "crop") -> np.ndarray:
    """Return the label map that a page shows of a question, on the tiny grid."""
    status, content = client.ask(f"{number}/{place}/map/")
    assert status == 200
    return upright(np.frombuffer(content[352:], np.uint8).reshape(GRID.shape))


def test_what_was_erased_from_one_class_may_be_given_to_another(results, page):
    before, leak = json.loads(page.ask("2/crop/about")[1])["place"], (slice(2, 5), slice(2, 6), 5)
    liver, spleen, more = label_map(), label_map(), label_map()
    liver[leak], spleen[leak], more[6, 6, 6] = 0, SPLEEN, SPLEEN
    assert page.ask("1/crop/edited", edited(upright(liver), page))[0] == 200
    assert (map_shown(page, 2) == liver).all() and (map_shown(page, 2, before) == label_map()).all()
    content = edited(upright(spleen), page, 2)
    assert page.ask(f"2/{before}/edited", content)[0] == 422
    assert page.ask("2/crop/draft", content)[0] == page.ask("2/crop/edited", content)[0] == 200
    found = opinion_of(Desk(results).reviews, USABLE, SCHEME, GRID)
    assert not found.problems and not found.taken
    for name, array, number in (("liver", liver, LIVER), ("spleen", spleen, SPLEEN)):
        assert (found.masks[name] == (upright(array) == number)).all()
    assert (map_shown(page, 1) == label_map()).all()  # what is asked about is shown as it is judged
    assert page.ask(f"2/{before}/edited", edited(upright(more), page, 2))[0] == 200  # was loaded before all that


def test_what_one_class_was_given_is_locked_for_others_also_where_a_server_starts_anew(results):
    both = label_map()
    both[6, 6, 6] = SPLEEN
    with serving(results) as page:
        assert page.ask("1/crop/edited", edited(upright(drawn((6, 6, 6))), page))[0] == 200
    with serving(results) as page:
        status, content = page.ask("2/crop/edited", edited(upright(both), page, 2))
        assert status == 422 and "other classes (liver)" in json.loads(content)["error"]
        assert page.decide(1, "absent")[0] == 200
        assert (map_shown(page, 2) == np.where(label_map() == LIVER, 0, label_map())).all()


def test_where_reviewers_differ_each_sees_the_own_edit_of_other_classes(results):
    mine = {"ann": drawn((6, 6, 6)), "bob": drawn((6, 6, 7)), "cay": label_map()}
    for reviewer in ("ann", "bob"):
        with serving(results, reviewer) as page:
            assert page.ask("1/crop/edited", edited(upright(mine[reviewer]), page))[0] == 200
    for reviewer, array in mine.items():
        with serving(results, reviewer) as page:
            assert (map_shown(page, 2) == array).all()


def test_what_is_drawn_and_not_saved_outlives_the_server(results):
    array = drawn((6, 6, 6))
    with serving(results) as page:
        assert page.ask("1/crop/draft", other_case(page))[0] == 422
        assert page.ask("1/crop/draft", edited(upright(array), page))[0] == 200
    with serving(results, "bob") as page:
        assert [one["name"] for one in json.loads(page.ask("1/crop/about")[1])["maps"]] == ["", "m"]
    with serving(results) as page:
        name = json.loads(page.ask("queue")[1])["draft"]
        assert [one["name"] for one in json.loads(page.ask("1/crop/about")[1])["maps"]] == ["", "m", name]
        shown = page.ask(f"1/crop/map/{quote(name)}")[1][352:]
        assert (np.frombuffer(shown, np.uint8).reshape(array.shape) == upright(array)).all()
        assert page.ask("1/crop/draft", b"")[0] == 200
        assert len(json.loads(page.ask("1/crop/about")[1])["maps"]) == 2 and not said(results)
        for kind in ("draft", "edited"):
            assert page.ask(f"1/crop/{kind}", edited(upright(array), page))[0] == 200
        assert name not in [one["name"] for one in json.loads(page.ask("1/crop/about")[1])["maps"]]
    assert said(results) == [("a", "liver", "edited")]


def test_what_was_said_before_holds_again_when_a_decision_is_taken_back(results, page):
    back = ("1/back", b"")
    assert page.ask(*back)[0] == 409
    assert page.ask("1/crop/edited", edited(upright(drawn((6, 6, 6))), page))[0] == 200
    for decision in ("right", "wrong"):
        assert page.decide(1, decision)[0] == 200
    desk = Desk(results)
    for expected in ("right", "edited", "unsure"):
        assert page.ask(*back)[0] == 200
        assert desk.reviews.of("a")["liver"].decision == expected
        write(results / "labels/pseudo/a.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)  # whatever became of the map
    assert page.ask(*back)[0] == 409 and len(said(results)) == 6


BAD = {
    "a wrong token": {"token": "x" * 32},
    "no token": {"token": "", "path": "/"},
    "a part of the address": {"token": "", "path": "/queue"},
    "a foreign origin": {"Origin": "http://evil.example"},
    "an origin without a name": {"Origin": "null"},
    "another port's origin": {"Origin": "http://127.0.0.1:1"},
    "a foreign host": {"Host": "evil.example"},
    "a host that looks like ours": {"Host": "127.0.0.1.evil.example:80"},
    "no host": {"Host": None},
    "a foreign page": {"Sec_Fetch_Site": "cross-site"},
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("writes", [False, True])
def test_strangers_are_refused(results, page, kind, writes):
    about = dict(BAD[kind])
    path = about.pop("path", "1/decision" if writes else "queue")
    body = b'{"decision": "right"}' if writes else None
    status, content = page.ask(path, body, **about)
    assert status == 403 and json.loads(content)["error"].endswith((".", "terminal."))
    assert not said(results) and not Desk(results).folder.exists()
    assert page.decide(1, "right")[0] == 200


def test_a_link_on_another_page_opens_this_one_and_does_no_more(page):
    link = {"Origin": None, "Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert page.ask("", **link)[0] == 200
    assert page.ask("", token="x" * 32, **link)[0] == page.ask("", **link | {"Sec_Fetch_Dest": "iframe"})[0] == 403
    assert page.ask("1/decision", b'{"decision": "wrong"}', **link)[0] == 403


@pytest.mark.parametrize("path", [
    "../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "1/crop/map/../../../a.mha", "1/crop/map/..%2fa", "//etc/passwd",
    "1/crop/map/gone", "1/picture", "9/crop/image", "-1/crop/image", "1/other/image", "1/crop/map/%00", "page/page.js",
    "queue/", "decisions.csv", "1", "1/crop/edited", "1/decision", "?" + "a=1&" * 99, "x" * 5000,
])  # fmt: skip
def test_only_files_of_the_queue_are_read(page, path):
    status, content = page.ask(path)
    assert 400 <= status < 500 and json.loads(content)["error"]
    assert page.ask("queue")[0] == 200


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"decision": "edited"}', b'{"decision": "rihgt"}', b'{"decision": []}',
    b'{"decision": 1}', b"[" * 60000, b'{"decision": "right"' + b" " * 70000 + b"}",
])  # fmt: skip
def test_what_is_no_decision_is_refused(results, page, body):
    status, content = page.ask("1/decision", body)
    assert 400 <= status < 500 and json.loads(content)["error"].endswith(".")
    assert not Desk(results).folder.exists()
    assert page.decide(1, "wrong")[0] == 200


def test_odd_words_of_a_decision_do_no_harm(results, page):
    assert page.decide(1, "right", seconds="never", comment=["no text"])[0] == 200
    assert page.decide(2, "right", seconds=-1, comment='two\nlines, "one" \ud800 row' + "x" * 9000)[0] == 200
    assert [one.seconds for one in read_decisions(Desk(results).folder)[0]] == [None, None] and len(said(results)) == 2


@pytest.mark.parametrize(
    "headers", [{"Content_Length": None}, {"Content_Length": "-5"}, {"Content_Length": "9" * 30},
                {"Content_Length": None, "Transfer_Encoding": "chunked"}],
)  # fmt: skip
def test_a_length_is_needed(results, page, headers):
    assert page.ask("1/decision", b"", **headers)[0] == 411
    assert page.decide(1, "wrong")[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "NONSENSE"])
def test_other_methods_are_refused(page, method):
    assert page.ask("queue", method=method)[0] == 405
    assert page.ask("queue")[0] == 200


def other_grid(page: Client) -> bytes:
    content = bytearray(page.ask("1/crop/map/")[1])
    content[40:48] = np.array([3, 10, 12, 8], "<i2").tobytes()
    return bytes(content)


def other_case(page: Client) -> bytes:
    """A map whose spleen lies elsewhere, as that of another patient would."""
    return edited(upright(np.roll(label_map(), 2, axis=2)), page)


REFUSED = {
    "another grid": other_grid,
    "another case": other_case,
    "unknown ids": lambda page: edited(np.full(GRID.shape, 200, np.uint8), page),
    "text": lambda page: b"no image",
    "nothing": lambda page: b"",
    "half of it": lambda page: edited(upright(label_map()), page)[:-20],
    "zeros": lambda page: gzip.compress(bytes(60_000_000)),
    "2 GB of zeros": lambda page: gzip.compress(bytes(1 << 20)) * 2048,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_edited_map_that_cannot_be_used_is_refused(results, page, kind):
    status, content = page.ask("1/crop/edited", REFUSED[kind](page))
    assert 400 <= status < 500 and json.loads(content)["error"].endswith(".")
    assert not Desk(results).folder.exists()
    assert page.ask("1/crop/edited", edited(upright(np.where(label_map() == LIVER, 0, label_map())), page))[0] == 200
    assert said(results) == [("a", "liver", "edited")]


def test_a_map_that_was_made_anew_is_not_judged(results, page):
    page.ask("1/crop/about")
    write(results / "labels/pseudo/a.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    status, content = page.decide(1, "right")
    assert status == 409 and "made anew" in json.loads(content)["error"]
    assert page.decide(3, "right")[0] == 200 and len(said(results)) == 1


def test_an_image_that_is_away_is_said_and_can_be_judged(results, page, tmp_path):
    (tmp_path / "a.mha").unlink()
    status, content = page.ask("1/crop/image")
    assert status == 404 and "a.mha cannot be read" in json.loads(content)["error"]
    assert page.decide(1, "wrong")[0] == 200


def test_decisions_that_cannot_be_written_say_so_and_are_taken_later(results, page):
    content, folder = edited(upright(drawn((6, 6, 6))), page), Desk(results).folder
    folder.parent.write_text("in the way")
    for status, answer in (page.decide(1, "right"), page.decide(2, "wrong"), page.ask("1/crop/edited", content)):
        assert status == 409 and "cannot be written: " in json.loads(answer)["error"]
    folder.parent.unlink()
    assert page.decide(2, "wrong")[0] == page.ask("1/crop/edited", content)[0] == 200
    assert said(results) == [("a", "spleen", "wrong"), ("a", "liver", "edited")]


def test_a_fault_of_ours_does_not_end_the_server(results, page, monkeypatch, caplog):
    monkeypatch.setattr(module.Session, "queue", lambda self: 1 / 0)
    assert page.ask("queue")[0] == 500 and "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert page.ask("queue")[0] == 200


def test_two_reviewers_at_once_lose_nothing(results):
    """Two servers, two tabs each, of which all decide about all labels, time and again."""

    def work(client: Client, turn: str) -> None:
        for number in range(6):
            for rank in (1, 2, 3):
                assert client.decide(rank, "wrong", comment=f"{turn}{number}")[0] == 200

    with serving(results, "ann") as ann, serving(results, "bob") as bob:
        threads = [threading.Thread(target=work, args=(client, turn)) for client in (ann, bob) for turn in "xy"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found, problems = read_decisions(Desk(results).folder)
    assert not problems and len(found) == 72
    expected = {(who, f"{turn}{number}") for who in ("ann", "bob") for turn in "xy" for number in range(6)}
    assert {(one.reviewer, one.comment) for one in found} == expected


def say(client: Client, number: int, content: bytes) -> None:
    """Make a decision that differs from the one before."""
    if number % 2:
        assert client.ask(f"2/crop/edited?comment={number}", content)[0] == 200
    else:
        assert client.decide(1, "wrong", comment=str(number))[0] == 200


def _serve(results, pipe) -> None:
    server = PageServer(Desk(results), "ann")
    pipe.send((server.server_port, server.token))
    server.serve_forever()


@pytest.mark.parametrize("after", [0.005, 0.05, 0.2])
def test_a_kill_loses_at_most_the_decision_in_hand(results, after):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(results, theirs))
    process.start()
    port, token = ours.recv()
    client = Client.__new__(Client)
    client.host, client.server = f"127.0.0.1:{port}", type("Known", (), {"server_port": port, "token": token})
    content = edited(upright(np.where(label_map() == SPLEEN, 0, label_map())), client, 2)
    taken: list[str] = []
    threading.Timer(after, os.kill, (process.pid, signal.SIGKILL)).start()
    with pytest.raises((OSError, HTTPException)):
        while True:
            say(client, len(taken), content)
            taken.append(str(len(taken)))
    process.join()
    found, problems = read_decisions(Desk(results).folder)
    assert [one.comment for one in found][: len(taken)] == taken and len(found) + len(problems) <= len(taken) + 1
    for one in found:
        assert not one.file or read(Desk(results).folder / one.file).array.shape == GRID.shape
    with serving(results) as again:
        assert again.decide(3, "right")[0] == 200
    assert read_decisions(Desk(results).folder)[0][-1].case == "b"


def test_the_command_serves_until_it_is_interrupted(results, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(module.webbrowser, "open", opened.append)
    monkeypatch.setattr(module, "has_screen", lambda: True)

    def interrupted(server: PageServer) -> None:
        server.session.decide("1", "right", 2.0, "")
        raise KeyboardInterrupt

    monkeypatch.setattr(PageServer, "serve_forever", interrupted)
    assert main(["review", str(results), "--reviewer", "ann"]) == 0
    out = capsys.readouterr().out
    assert "3 of 3 labels to look at" in out and "2 of 3 labels to look at" in out and opened[0] in out
    assert main(["review", str(results), "--no-browser"]) == 0 and len(opened) == 1


def test_without_a_question_the_command_ends(results, capsys):
    with serving(results) as page:
        for number in (1, 2, 3):
            page.decide(number, "right")
    assert main(["review", str(results)]) == 0
    assert "There is nothing to ask." in capsys.readouterr().out


def test_a_port_that_is_taken_is_refused(results):
    with serving(results) as page, pytest.raises(UserError, match="choose another one"):
        PageServer(Desk(results), "bob", page.server.server_port)


def drawn(*changes: tuple[slice | int, ...]) -> np.ndarray:
    """Return the tiny map with more liver."""
    array = label_map()
    for change in changes:
        array[change] = np.where(array[change] == 0, LIVER, array[change])
    return array


def test_what_others_draw_meanwhile_costs_no_edit(tmp_path):
    """A page shows the box of an organ; what another reviewer saves makes the box larger."""
    grid = Geometry((40, 30, 30), (5.0, 5.0, 5.0), direction=GRID.direction)
    array = np.zeros(grid.shape, np.uint8)
    array[12:15, 12:16, 12:16] = LIVER
    write(tmp_path / "a.mha", np.arange(array.size).reshape(grid.shape).astype(np.int32), grid)
    maps = {"a": (array, grid)}
    results = write_results(tmp_path, {"a": tmp_path / "a.mha"}, maps, [("a", "liver", "doubt")])
    with serving(results, "ann") as ann, serving(results, "bob") as bob:
        place = json.loads(ann.ask("1/crop/about")[1])["place"]
        mine, larger = ann.ask(f"1/{place}/map/")[1], bob.ask("1/whole/map/")[1]
        theirs = np.frombuffer(larger[352:], np.uint8).copy()
        theirs[0] = LIVER
        assert bob.ask("1/whole/edited", gzip.compress(larger[:352] + theirs.tobytes()))[0] == 200
        assert json.loads(ann.ask("1/crop/about")[1])["place"] != place
        voxels = np.frombuffer(mine[352:], np.uint8).copy()
        voxels[0] = LIVER
        status, content = ann.ask(f"1/{place}/edited", gzip.compress(mine[:352] + voxels.tobytes()))
        assert status == 200, content
        assert len(ann.ask(f"1/{place}/image")[1]) == len(ann.ask(f"1/{place}/map/m")[1]) * 2 - 352
    [_, one] = read_decisions(Desk(results).folder)[0]
    kept = read(Desk(results).folder / one.file).array
    assert (one.reviewer, (kept != array).sum()) == ("ann", 1) and kept[0, 0, 0] == kept[0, -1, 0] == 0


@pytest.mark.parametrize(
    "place", ["0-9,0-9,0-99", "3-3,0-5,0-5", "5-3,0-5,0-5", "0-5,0-5", "0-5,0-5,0-5,", "٠-٥,0-5,0-5"]
)
def test_a_place_that_no_image_has_is_refused(page, place):
    assert page.ask(f"1/{quote(place)}/about")[0] == 404


def test_an_edit_of_a_map_that_was_made_anew_is_kept(results, page):
    content = edited(upright(drawn((6, 6, 6))), page)
    write(results / "labels/pseudo/a.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    assert page.ask("1/crop/edited", content)[0] == 200 and said(results) == [("a", "liver", "edited")]
    [one] = read_decisions(Desk(results).folder)[0]
    assert (read(Desk(results).folder / one.file).array == drawn((6, 6, 6))).all()
    found = opinion_of(Desk(results).reviews, USABLE, SCHEME, GRID)
    assert not found.problems and found.masks["liver"].sum() == 49


def test_maps_beside_the_label_that_cannot_be_used_do_not_hide_it(results, page, caplog):
    array = drawn((6, 6, 6))
    assert page.ask("1/crop/edited", edited(upright(array), page))[0] == 200
    [kept] = [path for path in (Desk(results).folder / "kept").iterdir() if (read(path).array == array).all()]
    kept.write_bytes(b"damaged")
    (results / "models/m/predictions/b.nii.gz").write_bytes(b"damaged")
    for number, names in ((1, ["", "m"]), (3, [""])):
        status, content = page.ask(f"{number}/crop/about")
        assert status == 200 and [one["name"] for one in json.loads(content)["maps"]] == names
    assert "'edited by ann' of a is not shown" in caplog.text and "'m' of b is not shown" in caplog.text
