# SPDX-License-Identifier: Apache-2.0
"""A maker's way through the studio in a real browser, from a sentence to a file."""

from __future__ import annotations

import io
import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from plyfile import PlyData

from sdi_gs.studio.jobs import DONE

from ... import browser
from .conftest import LONG, Served

pytestmark = pytest.mark.skipif(browser.program() is None, reason="needs Chromium on the PATH")


class Watched(browser.Tab):
    """A page of which is known what it asks for, and what goes wrong in it."""

    def __init__(self, socket: Any) -> None:
        super().__init__(socket)
        self.requests: list[str] = []
        self.errors: list[str] = []
        for domain in ("Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def hear(self, told: dict[str, Any]) -> None:
        what = told.get("params", {})
        match told.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(what["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(str(what["exceptionDetails"]))
            case "Log.entryAdded" if what["entry"]["level"] == "error":
                self.errors.append(f"{what['entry']['text']} {what['entry'].get('url')}")

    def press(self, label: str) -> None:
        browser.until(lambda: self.click(label), 20)

    def sees(self, wanted: str, seconds: float = 60) -> None:
        browser.until(lambda: re.search(wanted, self.text()) is not None, seconds)

    def types(self, selector: str, text: str) -> None:
        """As a person does: what stands there is replaced."""
        self.evaluate(f"(e => {{ e.focus(); e.select(); }})(document.querySelector({selector!r}))")
        self.ask("Input.insertText", text=text)


@pytest.fixture
def tab(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with browser.tab(tmp_path_factory.mktemp("browser")) as made:
        yield Watched(made.socket)


def test_from_a_sentence_to_a_file(served: Served, tab: Watched) -> None:
    tab.open(f"{served.address}/?run=base")
    tab.sees("not finished")
    tab.press("Again with changes")
    tab.sees("These are the settings of base")
    tab.types("#prompt textarea", "a tiny blue mug")
    tab.press("Make it")

    steps: set[int] = set()
    pictures: set[str] = set()

    def over() -> bool:
        told = re.search(rf"step (\d+) of {LONG}", tab.text())
        steps.update(int(told[1]) for told in [told] if told)
        shown = "[...document.querySelectorAll('.st-picture img')].map(e => e.getAttribute('src'))"
        pictures.update(tab.evaluate(shown))
        job = served.studio.queue.all()[-1]
        assert job.state in ("waiting", "running", DONE), job.message
        return bool(job.state == DONE)

    tab.sees("It begins")
    browser.until(over)
    assert len({step for step in steps if 0 < step < LONG}) >= 2
    assert sum(source.startswith("/live/") for source in pictures) >= 2
    (run,) = served.outputs.path.glob("a-tiny-blue-mug-*")

    tab.press("Open it")
    tab.sees("a tiny blue mug\\s+finished")
    link = tab.evaluate("[...document.querySelectorAll('a[download]')].map(e => e.href)")
    (address,) = [each for each in link if each.endswith("/final.ply?save=1")]
    with urllib.request.urlopen(address) as got:
        ply = PlyData.read(io.BytesIO(got.read()))
    held = json.loads((run / "summary.json").read_text())["asset"]["final.ply"]
    assert held == f"{ply['vertex'].count} splats"
    browser.until(lambda: any(asked.endswith("final.ply") for asked in tab.requests), 20)
    browser.until(lambda: tab.evaluate("!!document.querySelector('canvas')"), 20)

    outside = [
        asked for asked in tab.requests
        if not asked.startswith((served.address + "/", "data:", f"blob:{served.address}/"))
    ]  # fmt: skip
    assert outside == []
    assert tab.errors == []
