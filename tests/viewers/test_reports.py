# SPDX-License-Identifier: Apache-2.0
"""Every kind of page of ours in a real browser: nobody is shut out by it, it fits a phone, its
console is quiet and it asks for nothing.

What shuts people out is told by axe-core, which ``make test-viewers`` installs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .. import browser
from ..sdi_gs import test_pages as pages
from .conftest import HERE

AXE = HERE / "node_modules" / "axe-core" / "axe.min.js"
KINDS = (
    pages.one, pages.unfinished, pages.several, pages.compared, pages.table, pages.facts,
    pages.sweep,
)  # fmt: skip
WINDOWS = ((1280, 800, "light"), (1280, 800, "dark"), (390, 844, "light"), (390, 844, "dark"))

ASK = """(async () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
  const found = await axe.run(document, { resultTypes: ["violations"] });
  return found.violations.filter(one => ["serious", "critical"].includes(one.impact))
    .map(one => `${one.id}: ${one.nodes.map(node => node.html.slice(0, 120)).join(" | ")}`);
})()"""

BEYOND = """width => [...document.body.querySelectorAll("*")]
  .filter(part => !part.closest(".scroll, pre, svg"))
  .filter(part => part.getBoundingClientRect().right > width + 1)
  .map(part => part.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Tab]:
    if browser.program() is None:
        pytest.skip("no Chromium on the path")
    if not AXE.exists():
        pytest.skip("axe-core is not installed: make test-viewers does it")
    with browser.tab(tmp_path_factory.mktemp("profile")) as opened:
        opened.listen()
        yield opened


def answered(tab: browser.Tab, script: str) -> Any:
    """What a promise of the page comes to."""
    told = tab.ask(
        "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
    )  # fmt: skip
    assert "exceptionDetails" not in told, told
    return told["result"]["value"]


def judged(tab: browser.Tab) -> list[str]:
    """What axe-core calls serious or critical."""
    tab.evaluate(AXE.read_text(encoding="utf-8") + "; true")
    found: list[str] = answered(tab, ASK)
    return found


def beyond(tab: browser.Tab, width: int) -> list[str]:
    """What leaves a window that is ``width`` pixels wide, but for what scrolls in its own box."""
    found: list[str] = tab.evaluate(f"({BEYOND})({width})")
    return found


@pytest.mark.parametrize("page", KINDS)
def test_a_page_shuts_nobody_out(
    page: Any, tab: browser.Tab, tmp_path: Path, pictures: Path
) -> None:
    path = tmp_path / f"{page.__name__}.html"
    path.write_text(page("a red mug with words", tmp_path / "runs"), encoding="utf-8")
    for width, height, scheme in WINDOWS:
        tab.events.clear()
        tab.wear(width, height, scheme=scheme, motion="reduce")
        tab.open(path.as_uri())
        name = f"{page.__name__}-{width}-{scheme}.png"
        (pictures / name).write_bytes(tab.png())
        assert judged(tab) == [], name
        assert beyond(tab, width) == [], name
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, name
        # What these runs claim to have beside their pages is not there.
        asked = [url for url in tab.requests() if not url.startswith("file:")]
        assert asked == [], name
        quiet = [told for told in tab.errors() if "ERR_FILE_NOT_FOUND" not in told]
        assert quiet == [], name
        assert tab.evaluate("document.title") not in ("", None)


def test_the_keyboard_reaches_everything(tab: browser.Tab, tmp_path: Path) -> None:
    """Each link, button, fold, film and table that scrolls is reached by Tab, and is seen to be."""
    path = tmp_path / "one.html"
    path.write_text(pages.one("a red mug", tmp_path / "runs"), encoding="utf-8")
    tab.wear(1280, 800, scheme="light", motion="reduce")
    tab.open(path.as_uri())
    wanted = tab.evaluate(
        "[...document.querySelectorAll('a[href], button, summary, canvas')].filter("
        "part => part.offsetParent !== null).length"
    )
    reached = set()
    for number in range(wanted):
        tab.press("Tab")
        reached.add(tab.evaluate("document.activeElement.outerHTML.slice(0, 90)"))
        ring = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid", number
    assert len(reached) == wanted > 10


def test_the_judge_sees_what_shuts_people_out(tab: browser.Tab, tmp_path: Path) -> None:
    """A test of the test: words too pale to read, a picture without words, a page too wide."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><html lang=en><title>t</title><main>"
        "<p style='color: #ccc; background: #fff'>pale</p><img src='data:,'>"
        "<div style='width: 900px'>wide</div><script>nothing()</script>"
    )
    tab.events.clear()
    tab.wear(390, 844, scheme="light", motion="reduce")
    tab.open(path.as_uri())
    found = "\n".join(judged(tab))
    assert "color-contrast" in found
    assert "image-alt" in found
    assert beyond(tab, 390) != []
    assert any("nothing" in told for told in tab.errors())
