# SPDX-License-Identifier: Apache-2.0
"""The page of a sweep: what is on it and in which order, that it needs nothing but its folder, and
the files for pandas."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from sdi_gs.experiments import tables
from sdi_gs.experiments.compare import Row
from sdi_gs.experiments.study import Without
from sdi_gs.sweep import measured, report
from sdi_gs.sweep.manifest import Line, Sweep
from sdi_gs.sweep.states import Ledger

from .. import browser
from ..markup import Page
from ..sweeping import lines, planned, quiet

Run = Callable[..., Any]
EVIL = """<script>alert(1)</script>"&' onload=x"""
PSNR = {0: 12.0, 1: 19.0, 2: 15.0}  # dB, by seed


def row(line: Line) -> Row:
    return Row(
        line.representation, line.method, line.seed, line.prompt, line.folder, line.steps,
        {"guidance": 0.25}, 100.0 + line.seed, 8.0, 900.0, None, 7, 3, "splats", {},
        PSNR[line.seed], 5.0,
    )  # fmt: skip


def end(sweep: Sweep, line: Line, word: str, why: str = "") -> None:
    """What a worker leaves of a line, with a film where it is done."""
    ledger, sign = Ledger(sweep), sweep.state / "sign"
    sign.touch()
    assert ledger.claim(line, 1, sign)
    if word == "running":
        return
    ledger.end(line, 1, word, {"why": why, "seconds": 5})
    if word == "done":
        run = sweep.run(line)
        run.mkdir(parents=True)
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
        frames[0].save(run / "turntable.gif", save_all=True, append_images=frames[1:])
        (run / "summary.json").write_text("{}")


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that are measured, which are stand-ins."""
    names: list[str] = []

    def measure(run: Any, cell: Any, out: Path, judge: Any) -> Row:
        names.append(run.path.name)
        return next(row(line) for line in lines(Sweep(out, "")) if line.name == run.path.name)

    monkeypatch.setattr(measured, "measure", measure)
    monkeypatch.setattr(measured, "judge_for", lambda configs, clip: None)
    return names


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Two sentences with three seeds: three done, and one of each other word but diverged."""
    made = planned(tmp_path, "a red mug", "a blue car", seeds=3, settings=("batch=1",))
    red, blue = lines(made)[:3], lines(made)[3:]
    for line in red:
        end(made, line, "done")
    end(made, blue[0], "failed", "it cannot work\nreally")
    end(made, blue[1], "running")
    return made


def opened(sweep: Sweep) -> tuple[Page, report.Made]:
    made = report.write(sweep, None, quiet)
    return Page(made.page.read_text()), made


def test_the_best_run_comes_first_and_what_has_no_result_is_named(
    sweep: Sweep, looked_at: list[str]
) -> None:
    page, made = opened(sweep)
    text = made.page.read_text()
    red, blue = lines(sweep)[:3], lines(sweep)[3:]
    gallery = text[text.index('id="gallery"') : text.index('id="failed"')]
    order = [gallery.index(f"seed {seed}<") for seed in (1, 2, 0)]  # by PSNR
    assert order == sorted(order)
    assert page.row(blue[0].name)[0] == "it cannot work"
    assert page.row(blue[1].name)[0] == "a blue car"  # running: nothing went wrong
    assert page.row(blue[2].name)[0] == "a blue car"
    assert not any(line.name in [r[0] for r in page.rows if r] for line in red)
    assert "batch=1" in page.text
    for word, count in (("done", 3), ("failed", 1), ("running", 1), ("waiting", 1)):
        assert f"<b>{count}</b> {word}" in text


def test_the_table_is_that_of_whole_runs(sweep: Sweep, looked_at: list[str]) -> None:
    """What ``tables.summarise`` makes of the same runs, the failed one among those not run."""
    page, _ = opened(sweep)
    some = [row(line) for line in lines(sweep)[:3]]
    entry = tables.summarise("small", "sdi", [*some, Without("", False)])
    expected = {title: cell(entry) for title, cell in tables.COLUMNS}
    head = next(r for r in page.rows if r and r[0] == "representation")
    found = dict(zip(head, ["small", *page.row("small")], strict=True))
    assert found == {title: expected[title] for title in head}
    assert (found["runs"], found["not run"], found["PSNR dB"]) == ("3", "1", "15.33")


def test_every_address_is_a_file_beside_the_page(sweep: Sweep, looked_at: list[str]) -> None:
    page, made = opened(sweep)
    assert page.urls
    for url in page.urls:
        assert (made.page.parent / unquote(url)).is_file(), url
    images = [tag for tag in page.structure if tag[0] == "img"]
    assert len(images) == 3
    assert all({"alt", "loading", "width", "height"} <= set(tag) for tag in images)


def test_stills_are_of_three_sides_in_their_order(sweep: Sweep, looked_at: list[str]) -> None:
    opened(sweep)
    (first, *_) = sorted((sweep.path / "report" / "stills" / "000").iterdir())
    strip = Image.open(first).convert("RGB")
    assert strip.size == (336, 112)
    for place, channel in enumerate((0, 1, 2)):
        pixel = strip.getpixel((place * 112 + 56, 56))
        assert isinstance(pixel, tuple)
        assert pixel[channel] > 200
        assert sum(pixel) - pixel[channel] < 100


def test_a_run_is_measured_once_until_it_is_made_again(sweep: Sweep, looked_at: list[str]) -> None:
    opened(sweep)
    assert len(looked_at) == 3
    opened(sweep)
    assert len(looked_at) == 3
    again = lines(sweep)[1]
    (sweep.run(again) / "summary.json").write_text('{"seconds": 3}')
    opened(sweep)
    assert looked_at[3:] == [again.name]
    kept = measured.path_of(sweep, again)
    tree = json.loads(kept.read_text())
    del tree["row"]["faces"]
    kept.write_text(json.dumps(tree))
    opened(sweep)
    assert looked_at[4:] == [again.name]  # by an earlier sdi-gs, which measured less


def test_a_run_that_cannot_be_measured_says_why(
    sweep: Sweep, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdi_gs.errors import UserError

    def refuse(*_: object) -> Row:
        raise UserError("its checkpoint is damaged\nsecond line")

    monkeypatch.setattr(measured, "measure", refuse)
    page, _ = opened(sweep)
    assert page.text.count("not measured: its checkpoint is damaged") == 3
    assert "second line" not in page.text


def test_a_folder_that_cannot_be_written_is_told(
    sweep: Sweep, looked_at: list[str], sdi_gs: Run
) -> None:
    """A file stands where the measures are to be kept."""
    (sweep.path / "report").mkdir()
    (sweep.path / "report" / "measured").write_text("not ours")
    said = sdi_gs("sweep", "report", sweep.path)
    assert said.code == 2
    assert "measured" in said.err
    assert not (sweep.path / "report.html").exists()


def test_words_are_no_html_wherever_they_stand(tmp_path: Path, looked_at: list[str]) -> None:
    pages = []
    for name, word in (("evil", f"{EVIL} mug"), ("harmless", "harmless mug")):
        (tmp_path / name).mkdir()
        made = planned(tmp_path / name, word, f"{word} 2")
        first, second = lines(made)
        end(made, first, "done")
        end(made, second, "failed", word)
        pages.append(opened(made)[0])
    assert pages[0].structure == pages[1].structure
    assert EVIL in pages[0].text


def test_a_line_a_run_for_pandas(sweep: Sweep, looked_at: list[str]) -> None:
    _, made = opened(sweep)
    rows = list(csv.DictReader(made.files[0].open(newline="")))
    assert [r["digest"] for r in rows] == [line.digest for line in lines(sweep)]
    assert [r["state"] for r in rows] == ["done"] * 3 + ["failed", "running", "waiting"]
    assert [r["psnr_db"] for r in rows] == ["12.0", "19.0", "15.0", "", "", ""]
    assert rows[3]["why"] == "it cannot work"


def test_parquet_has_what_the_csv_has(sweep: Sweep, looked_at: list[str]) -> None:
    """Read by pyarrow's own reader; a column without a value keeps its type."""
    parquet = pytest.importorskip("pyarrow.parquet")
    _, made = opened(sweep)
    table = parquet.read_table(made.files[1])
    rows = list(csv.DictReader(made.files[0].open(newline="")))
    for there, here in zip(rows, table.to_pylist(), strict=True):
        assert {key: "" if value is None else str(value) for key, value in here.items()} == there
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert types["psnr_db"] == types["peak_cuda_memory_mb"] == types["clip_score"] == "double"
    assert (types["seed"], types["prompt"]) == ("int64", "string")


def test_without_pyarrow_the_csv_is_there_and_the_rest_is_told(
    sweep: Sweep, looked_at: list[str], sdi_gs: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = sdi_gs("sweep", "report", sweep.path)
    assert said.code == 0
    assert "pip install 'sdi-gs[parquet]'" in said.out
    assert (sweep.path / "report" / "runs.csv").is_file()
    assert not (sweep.path / "report" / "runs.parquet").exists()
    assert "runs.parquet" not in (sweep.path / "report.html").read_text()


def test_a_sweep_in_which_nothing_is_done_has_a_page(tmp_path: Path, looked_at: list[str]) -> None:
    page, _ = opened(planned(tmp_path))
    assert "1 waiting" in page.text.replace("\n", "")
    assert looked_at == []


@pytest.mark.skipif(browser.program() is None, reason="no Chromium on the path")
def test_in_a_real_browser(sweep: Sweep, looked_at: list[str], tmp_path: Path) -> None:
    """The filter hides what does not fit and says how many are left; nothing is wider than the
    page; every picture that is seen is loaded."""
    _, made = opened(sweep)
    with browser.tab(tmp_path / "profile") as tab:
        tab.ask("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1,
                mobile=True)  # fmt: skip
        tab.open(made.page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        assert tab.evaluate("document.getElementById('shown').textContent") == "3 of 3 runs"
        pick = (
            "(s => { s.value = %s; s.dispatchEvent(new Event('change', {bubbles: true}));"
            " return [document.getElementById('shown').textContent,"
            " [...document.querySelectorAll('#gallery > li')].filter(l => l.offsetParent).length];"
            " })(document.querySelector('select[name=prompt]'))"
        )
        assert tab.evaluate(pick % json.dumps("a red mug")) == ["3 of 3 runs", 3]
        tab.evaluate("document.querySelector('#gallery > li').dataset.prompt = 'a blue car'")
        assert tab.evaluate(pick % json.dumps("a red mug")) == ["2 of 3 runs", 2]
        assert tab.click("Show all")
        browser.until(
            lambda: tab.evaluate("document.getElementById('shown').textContent") == "3 of 3 runs"
        )
        tab.evaluate("document.getElementById('gallery').scrollIntoView()")
        loaded = "[...document.images].filter(i => i.complete && i.naturalWidth).length"
        browser.until(lambda: tab.evaluate(loaded) == 3)
