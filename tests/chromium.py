"""A real browser without a window, driven through two pipes (DevTools protocol): no library, no port.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-extensions", "--disable-sync",
    "--disable-component-update", "--disable-background-networking", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--force-device-scale-factor=1",
)  # fmt: skip
"""Software draws: WebGL2 works on machines without a GPU, too."""
CODES = {"Escape": 27, "Enter": 13, "ArrowUp": 38, "ArrowDown": 40, " ": 32}


def find() -> str | None:
    """Return the browser of this machine; None when there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """A browser with one tab. Its requests are noted in ``requests``, what its console says in ``said``.

    Args:
        folder: for its profile. size: of the window, in pixels. flags: further ones.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1366, 768), flags: Sequence[str] = ()):
        there, back = os.pipe(), os.pipe()
        command = [
            find(),
            *FLAGS,
            *flags,
            f"--user-data-dir={folder}",
            f"--window-size={size[0]},{size[1]}",
            "about:blank",
        ]
        if os.geteuid() == 0:
            command.insert(1, "--no-sandbox")  # it refuses to run as root with one
        shell = f'exec "$@" 3<&{there[0]} 4>&{back[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "chromium", *command], pass_fds=(there[0], back[1]),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(there[0]), os.close(back[1])
        self._to, self._from, self._buffer, self._number, self._session = there[1], back[0], b"", 0, None
        self.requests: list[str] = []
        self.said: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        tab = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
        )

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, wait_s: float = 60, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + wait_s
        while True:
            answer = self._next(until)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        about, method = event.get("params", {}), event.get("method", "")
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(about["exceptionDetails"])[:2000])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.said.append(" ".join(str(one.get("value", one.get("description"))) for one in about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.said.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif method == "Page.javascriptDialogOpening":
            self.call("Page.handleJavaScriptDialog", accept=True)

    def open(self, address: str) -> None:
        """Open an address."""
        self.call("Page.navigate", url=address)

    def ask(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript; a promise's, once it is kept."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> float:
        """Wait until an expression is true; return how many seconds that took."""
        began = time.monotonic()
        while not self.ask(f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"):
            assert time.monotonic() - began < seconds, (expression, self.said, self.ask("document.body?.innerText"))
            time.sleep(0.02)
        return time.monotonic() - began

    def press(self, key: str, repeats: int = 0) -> None:
        """Press a key, as a person does; who holds it down repeats it."""
        about: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": CODES.get(key, ord(key[0].upper()))}
        if len(key) == 1:
            about["text"] = key
        for repeat in range(repeats + 1):
            self.call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=repeat > 0, **about)
            time.sleep(0.03 if repeats else 0)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def drag(self, *points: tuple[float, float], button: str = "left") -> None:
        """Press the mouse at the first point, move it along, and let go at the last one."""
        mouse = {"button": button, "clickCount": 1, "pointerType": "mouse"}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=points[0][0], y=points[0][1])
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=points[0][0], y=points[0][1], **mouse)
        for x, y in points[1:]:
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=1, **mouse)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=points[-1][0], y=points[-1][1], **mouse)

    def picture(self) -> bytes:
        """Return what the window shows, as PNG."""
        self.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """Close the browser as a person does."""
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close", wait_s=10)
