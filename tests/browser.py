# SPDX-License-Identifier: Apache-2.0
"""A real browser without a window, spoken to over its debugging socket: no Node, no driver."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCHES = (
    "--headless", "--no-sandbox", "--hide-scrollbars", "--remote-debugging-port=0",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--window-size=900,700",
)  # fmt: skip


def program() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Refused(Exception):
    """The browser does not do that, or not now."""


class Tab:
    """One page of the browser."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.numbers = socket, itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self.socket.recv(timeout=60))
            if "method" in told:
                self.events.append(told)
            if told.get("id") == number:
                if "error" in told:
                    raise Refused(told["error"])
                return dict(told["result"])

    def evaluate(self, script: str) -> Any:
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get(
            "value"
        )

    def listen(self) -> None:
        """From now on, for :meth:`errors` and :meth:`requests`."""
        for domain in ("Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def errors(self) -> list[str]:
        """What went wrong on the page, as its console has it."""
        found = []
        for event in self.events:
            told = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(told["exceptionDetails"]))
            if event["method"] == "Runtime.consoleAPICalled" and told["type"] == "error":
                found.append(str(told["args"]))
            if event["method"] == "Log.entryAdded" and told["entry"]["level"] == "error":
                found.append(str(told["entry"]["text"]))
        return found

    def requests(self) -> list[str]:
        """Addresses that the page asked for, without what is inside of it."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [str(event["params"]["request"]["url"]) for event in sent]
        return [url for url in urls if not url.startswith(("data:", "blob:", "about:"))]

    def wear(self, width: int, height: int, **features: str) -> None:
        """A window of that many pixels, and what its user prefers: ``scheme`` light or dark,
        ``motion`` reduce or no-preference."""
        names = {"scheme": "prefers-color-scheme", "motion": "prefers-reduced-motion"}
        wanted = [{"name": names[key], "value": value} for key, value in features.items()]
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
        self.ask("Emulation.setEmulatedMedia", features=wanted)

    def press(self, key: str) -> None:
        """A key, by the name that the page gets."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key)

    def open(self, address: str) -> None:
        self.ask("Page.enable")
        self.ask("Page.navigate", url=address)
        until(self._drawn)

    def _drawn(self) -> bool:
        """While a page is being replaced there is nothing to take a picture of."""
        try:
            return self.evaluate("document.readyState") == "complete" and bool(self.png())
        except Refused:
            return False

    def png(self) -> bytes:
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])

    def canvas(self) -> np.ndarray:
        """[H, W, 3] bytes of the drawing on the page, without what lies around it or over it."""
        from PIL import Image

        left, top, width, height = self.evaluate(
            "(() => { document.querySelectorAll('[class*=Notification-root]')"
            ".forEach(n => n.style.display = 'none');"
            "const r = document.querySelector('canvas').getBoundingClientRect();"
            "return [r.left, r.top, r.width, r.height].map(Math.round); })()"
        )
        seen = np.array(Image.open(io.BytesIO(self.png())).convert("RGB"))
        return seen[top : top + height, left : left + width]

    def click(self, label: str) -> bool:
        """Press the button with that text; whether there is one."""
        return bool(
            self.evaluate(
                "(() => { const b = [...document.querySelectorAll('button')].find(b => "
                f"b.offsetParent !== null && b.innerText.trim() === {json.dumps(label)});"
                "if (b) b.click(); return !!b; })()"
            )
        )

    def text(self) -> str:
        return str(self.evaluate("document.body.innerText"))

    def drag(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        self.ask("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **held)
        for share in np.linspace(0.0, 1.0, 8):
            x, y = ((1 - share) * a + share * b for a, b in zip(start, end, strict=True))
            self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, **held)
        self.ask("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **held)


def until(true: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait for something to come true; a failure says that it did not."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


@contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """A new browser whose profile lives in ``folder``, closed at the end."""
    from websockets.sync.client import connect

    chosen = program()
    assert chosen is not None
    running = subprocess.Popen(
        [chosen, *SWITCHES, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        announced = folder / "DevToolsActivePort"
        until(lambda: announced.exists() and announced.read_text().count("\n") >= 1)
        port, path = announced.read_text().splitlines()
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as browser:
            targets = Tab(browser).ask("Target.getTargets")["targetInfos"]
            (first,) = [t["targetId"] for t in targets if t["type"] == "page"]
        address = f"ws://127.0.0.1:{port}/devtools/page/{first}"
        with connect(address, max_size=None) as socket:
            yield Tab(socket)
    finally:
        running.terminate()
        running.wait(timeout=30)
