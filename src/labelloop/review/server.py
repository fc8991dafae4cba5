"""The review page's server: on this machine only, for whoever knows its secret, with no file but those of the queue.

A browser on the same machine also runs the pages of strangers. So each request must name the secret token, and must
come from this page: the names of host and origin are held against ours, because a stranger's name may be made to lead
to 127.0.0.1 (DNS rebinding). Files are asked for by the number of a question, never by a path.
"""

import hmac
import json
import logging
import math
import os
import secrets
import statistics
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from labelloop.base.errors import CaseError, UserError
from labelloop.base.heartbeat import hushed
from labelloop.base.wording import plain
from labelloop.images.volume import write
from labelloop.review.decisions import DECISIONS, EDITED, UNSURE, Decision, append
from labelloop.review.desk import Desk, Question
from labelloop.review.maps import ENDING
from labelloop.review.shown import DRAFT, Shown
from labelloop.review.views import Cut

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
"""Names by which a browser reaches this machine; the port may be another one, at the end of a tunnel."""
PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "niivue.umd.js": ("niivue.umd.js", "text/javascript; charset=utf-8"),
}
"""Files of the page by their addresses, with their types."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
LARGEST_TEXT = 1 << 16
"""Bytes of a decision."""
SLACK = 1 << 16
"""Bytes that an edited map may be longer than its voxels: header, and what gzip adds where nothing can be packed."""
MOST_IGNORED = 1 << 26
"""Bytes of a refused request that are read and dropped, so that its sender reads the answer."""
PATIENCE_S = 60.0
"""Seconds after which a connection that says nothing is closed."""
MOST_SECONDS = 24 * 3600.0


class BadRequestError(Exception):
    """A request that is refused: HTTP status, and what is wrong, in a sentence."""

    def __init__(self, status: HTTPStatus, found: str):
        super().__init__(found)
        self.status, self.found = status, found


@dataclass
class Session:
    """What the page of one reviewer asks of a :class:`~labelloop.review.desk.Desk`; safe in several threads.

    Args:
        reviewer: who decides.
    """

    desk: Desk
    reviewer: str
    _before: dict[str, list[Decision | None]] = field(default_factory=dict)
    _deciding: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def shown(self) -> Shown:
        """The cases of the questions, as they are looked at."""
        return Shown(self.desk, self.reviewer)

    @cached_property
    def _questions(self) -> dict[str, Question]:
        return {str(one.rank): one for one in self.desk.asked()}

    def question(self, number: str) -> Question:
        """Return a question by its number. Raises BadRequestError when there is none."""
        if number not in self._questions:
            raise BadRequestError(HTTPStatus.NOT_FOUND, f"There is no question {number[:20]!r}.")
        return self._questions[number]

    def cut(self, number: str, place: str) -> Cut:
        """Return what is shown of a question (:meth:`labelloop.review.shown.Shown.cut`).

        Raises BadRequestError when the image has no such place.
        """
        one = self.question(number)
        try:
            return self.shown.cut(one, place)
        except ValueError:
            raise BadRequestError(HTTPStatus.NOT_FOUND, "The image has no such place.") from None

    def draft(self, number: str, place: str, content: bytes) -> None:
        """Keep an edited cut that is not saved yet, so that no kill loses it; nothing: drop it. Raises as `edit`."""
        path = self.shown.draft(self.question(number))
        if content:
            volume = self.cut(number, place).take_back(content, self.desk.ids)
            write(path, volume.array, volume.geometry)
        else:
            path.unlink(missing_ok=True)

    def decide(
        self, number: str, decision: str, seconds: float | None, comment: str, edited: Path | None = None
    ) -> None:
        """Append a decision. Raises as :meth:`labelloop.review.desk.Desk.decide`."""
        one = self.question(number)
        with self._deciding:  # close() waits for it
            before = self.desk.last(one, self.reviewer)
            self.desk.decide(one, self.reviewer, decision, edited=edited, comment=comment, seconds=seconds)
            self._before.setdefault(number, []).append(before)

    def take_back(self, number: str) -> None:
        """Take back the last decision about a question: what the reviewer said before holds again, if anything.

        Raises BadRequestError when there is none of this session.
        """
        one = self.question(number)
        with self._deciding:
            if not self._before.get(number):
                raise BadRequestError(HTTPStatus.CONFLICT, "Nothing to take back.")
            before = self._before[number][-1]
            if before is None:
                self.desk.decide(one, self.reviewer, UNSURE, comment="taken back")
            else:
                append(self.desk.folder, [replace(before, time="")])
            self._before[number].pop()

    def edit(self, number: str, place: str, content: bytes, seconds: float | None, comment: str) -> None:
        """Put an edited cut into the whole label map, and append the decision. Raises CaseError, UserError."""
        volume = self.cut(number, place).take_back(content, self.desk.ids)
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / f"edited{ENDING}"
            write(path, volume.array, volume.geometry)
            self.decide(number, EDITED, seconds, comment, path)
        self.draft(number, place, b"")

    def queue(self) -> dict[str, Any]:
        """Return the questions, what was said of them by now, and how long the rest takes, for JSON."""
        asked = self.desk.asked()
        taken = [
            decision.seconds
            for one in asked
            if one.settled
            for decision in one.settled.by
            if decision.seconds is not None
        ]
        left = sum(one.is_open for one in asked)
        return {
            "labels": self.desk.labels,
            "reviewer": self.reviewer,
            "draft": DRAFT,
            "classes": [
                {"name": name, "plain": plain(name), "id": number, "color": self.desk.colors[name]}
                for name, number in self.desk.ids.items()
            ],
            "questions": [_row(one) for one in asked],
            "left": left,
            "seconds_left": left * statistics.median(taken) if taken else None,
        }

    def close(self) -> None:
        """Wait for the decision in hand; after that, none is taken."""
        self._deciding.acquire()


def _row(one: Question) -> dict[str, Any]:
    lines = [line.partition(": ") for line in one.reasons]
    return {
        "number": str(one.rank),
        "case": one.case,
        "class": one.name,
        "selected": one.decision,
        "asked": one.asked,
        "reasons": [{"what": plain(head), "why": rest} for head, _, rest in lines],
        "models": list(one.models),
        "predicted": one.map is not None,
        "picture": one.picture is not None,
        "modality": one.modality,
        "open": one.is_open,
        "decision": one.settled.decision if one.settled else "",
        "said": one.settled.said() if one.settled else "",
    }


class PageServer(ThreadingHTTPServer):
    """Serves the review page of a desk on this machine.

    Args:
        port: 0: any free one.

    Raises:
        UserError: the port is taken.
    """

    daemon_threads = True  # a browser keeps connections open that it may need
    allow_reuse_address = False  # what else listens there would be shown in our place

    def __init__(self, desk: Desk, reviewer: str, port: int = 0):
        self.session, self.token = Session(desk, reviewer), secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: {error}; choose another one, or leave it out") from error

    @property
    def address(self) -> str:
        """Address of the page, with the secret in it."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def handle_error(self, request, client_address) -> None:
        """Say nothing of a browser that left; log what is our fault."""
        log.debug("review: a connection ended", exc_info=True)

    def close(self) -> None:
        """End: the decision in hand is written, and no other one is taken."""
        self.session.close()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: PageServer
    server_version, sys_version = "labelloop", ""
    timeout = PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Keep addresses, with the secret in them, out of the terminal."""

    def do_GET(self) -> None:
        """Answer with a file of the page or the queue."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Take a decision."""
        self._answer(self._post)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request that we know, as JSON like all else."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self._send_json(status, {"error": f"{message or status.phrase}."})

    def _answer(self, work: Callable[[list[str], Mapping[str, str]], None]) -> None:
        """Do ``work`` with the parts of the address behind the token, and its parameters; say why it cannot be done."""
        self._left = self._length()
        try:
            work(*self._checked())
        except BadRequestError as error:
            self._refuse(error.status, error.found)
        except CaseError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, _sentence(f"{error.found}. {error.action}"))
        except UserError as error:
            self._refuse(HTTPStatus.CONFLICT, _sentence(str(error)))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except OSError as error:
            found = f"{error.filename or 'A file'} cannot be read: {error.strerror or error}."
            self._refuse(HTTPStatus.NOT_FOUND, found)
        except Exception:
            log.exception("review: a request failed; the review goes on")
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "A fault of labelloop; the terminal says more.")

    def _length(self) -> int:
        """Return how many bytes follow the headers, as these say; -1 when they do not."""
        said = self.headers.get("Content-Length") or ""
        return int(said) if said.isascii() and said.isdigit() and len(said) < 19 else -1

    def _checked(self) -> tuple[list[str], dict[str, str]]:
        """Return the parts of the address behind the token, and its parameters, of a request that may be answered."""
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in NAMES or not host.rpartition(":")[2].isdigit():
            raise BadRequestError(HTTPStatus.FORBIDDEN, "This page is open under the address of this machine alone.")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            raise BadRequestError(HTTPStatus.FORBIDDEN, "Another page may not ask here.")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and not self._is_opened():
            raise BadRequestError(HTTPStatus.FORBIDDEN, "Another page may not ask here.")
        try:
            address = urlsplit(self.path)
            parameters = parse_qs(address.query, max_num_fields=8)
        except ValueError:
            raise BadRequestError(HTTPStatus.BAD_REQUEST, "That is no address.") from None
        parts = address.path.split("/")
        token = parts[1] if len(parts) > 1 else ""
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            raise BadRequestError(
                HTTPStatus.FORBIDDEN, "The secret in the address is wrong: copy it from the terminal."
            )
        return [unquote(part) for part in parts[2:]], {key: values[-1] for key, values in parameters.items()}

    def _is_opened(self) -> bool:
        """Say whether somebody opens the page, by a link that a terminal in a browser made of its address, perhaps."""
        asked = self.headers.get("Sec-Fetch-Mode"), self.headers.get("Sec-Fetch-Dest")
        return self.command == "GET" and asked == ("navigate", "document")

    def _get(self, parts: list[str], _: Mapping[str, str]) -> None:
        match parts:
            case [name] if name in PAGE:
                file, kind = PAGE[name]
                self._send(HTTPStatus.OK, (files("labelloop.review") / "page" / file).read_bytes(), kind)
            case ["queue"]:
                self._send_json(HTTPStatus.OK, self.server.session.queue())
            case [number, "picture"]:
                self._send_picture(self.server.session.question(number))
            case [number, place, "about"]:
                session = self.server.session
                self._send_json(HTTPStatus.OK, session.cut(number, place).about(session.question(number).box))
            case [number, place, "image"]:
                self._send_file(self.server.session.cut(number, place).image_file())
            case [number, place, "map", name]:
                cut = self.server.session.cut(number, place)
                if name not in cut.case.maps:
                    raise BadRequestError(HTTPStatus.NOT_FOUND, "There is no such label map.")
                self._send_file(cut.map_file(name))
            case _:
                raise BadRequestError(HTTPStatus.NOT_FOUND, "There is nothing under this address.")

    def _send_picture(self, one: Question) -> None:
        if one.picture is None:
            raise BadRequestError(HTTPStatus.NOT_FOUND, "There is no picture of this label.")
        self._send(HTTPStatus.OK, one.picture.read_bytes(), "image/png")

    def _post(self, parts: list[str], parameters: Mapping[str, str]) -> None:
        session = self.server.session
        match parts:
            case [number, "decision"]:
                session.question(number)
                said = self._json()
                decision = said.get("decision")
                if decision not in DECISIONS or decision == EDITED:
                    raise BadRequestError(HTTPStatus.BAD_REQUEST, "That is no decision.")
                session.decide(number, decision, _seconds(said.get("seconds")), _comment(said.get("comment")))
            case [number, "back"]:
                session.take_back(number)
            case [number, place, "draft"]:
                session.draft(number, place, self._map(number, place))
            case [number, place, "edited"]:
                content = self._map(number, place)
                seconds, comment = _seconds(parameters.get("seconds")), _comment(parameters.get("comment"))
                session.edit(number, place, content, seconds, comment)
            case _:
                raise BadRequestError(HTTPStatus.NOT_FOUND, "There is nothing under this address.")
        self._send_json(HTTPStatus.OK, session.queue())

    def _map(self, number: str, place: str) -> bytes:
        return self._body(math.prod(self.server.session.cut(number, place).geometry.size) + SLACK)

    def _json(self) -> dict[str, Any]:
        try:
            said = json.loads(self._body(LARGEST_TEXT))
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise BadRequestError(HTTPStatus.BAD_REQUEST, "The request is no JSON object.")
        return said

    def _body(self, limit: int) -> bytes:
        """Return what follows the headers: all of it, and at most ``limit`` bytes."""
        if self._left < 0:
            raise BadRequestError(HTTPStatus.LENGTH_REQUIRED, "The request does not say how long it is.")
        if self._left > limit:
            found = f"The request has {self._left} bytes, where at most {limit} are expected."
            raise BadRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, found)
        expected, self._left = self._left, 0
        content = self.rfile.read(expected)
        if len(content) < expected:
            raise BadRequestError(HTTPStatus.BAD_REQUEST, "The request ends early.")
        return content

    def _refuse(self, status: HTTPStatus, found: str) -> None:
        left = min(self._left, MOST_IGNORED)
        try:
            while left > 0:
                piece = self.rfile.read(min(left, 1 << 20))
                left = left - len(piece) if piece else 0
            self._send_json(status, {"error": found})
        except OSError:
            self.close_connection = True

    def _send_json(self, status: HTTPStatus, content: Any) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send_file(self, content: bytes) -> None:
        self._send(HTTPStatus.OK, content, "application/octet-stream")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _seconds(said: Any) -> float | None:
    """Return how long a decision took; None when that is not said, or is no such number."""
    try:
        seconds = float(said)
    except (TypeError, ValueError):
        return None
    return round(seconds, 1) if 0 <= seconds <= MOST_SECONDS else None


def _comment(said: Any) -> str:
    return said[:2000] if isinstance(said, str) else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def serve(desk: Desk, reviewer: str, port: int = 0, browser: bool = True) -> None:
    """Serve the page of a review until Ctrl-C; print its address, and open the browser where there is one.

    Raises:
        UserError: the port is taken.
    """
    server = PageServer(desk, reviewer, port)
    print(f"{server.address}\nThe page is open to whoever has this address. Ctrl-C ends it.", flush=True)
    if browser and has_screen():
        webbrowser.open(server.address)
    try:
        with hushed():
            server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.close()


def has_screen() -> bool:
    """Say whether a browser would have a window; without one, a browser of text would take the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
