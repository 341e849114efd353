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
    """A page as somebody uses it."""

    def __init__(self, socket: Any) -> None:
        super().__init__(socket)
        self.listen()

    def pushes(self, label: str) -> None:
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
    tab.pushes("Again with changes")
    tab.sees("These are the settings of base")
    tab.types("#prompt textarea", "a tiny blue mug")
    tab.pushes("Make it")

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

    tab.pushes("Open it")
    tab.sees("a tiny blue mug\\s+finished")
    link = tab.evaluate("[...document.querySelectorAll('a[download]')].map(e => e.href)")
    (address,) = [each for each in link if each.endswith("/final.ply?save=1")]
    with urllib.request.urlopen(address) as got:
        ply = PlyData.read(io.BytesIO(got.read()))
    held = json.loads((run / "summary.json").read_text())["asset"]["final.ply"]
    assert held == f"{ply['vertex'].count} splats"
    shown = f"/file/report.html?run={run.name}&at="
    browser.until(lambda: any(shown in asked for asked in tab.requests()), 20)
    with urllib.request.urlopen(f"{served.address}{shown}") as got:
        assert b"<canvas" in got.read()  # in which the shape is turned

    assert [asked for asked in tab.requests() if not asked.startswith(served.address + "/")] == []
    assert tab.errors() == []
