# SPDX-License-Identifier: Apache-2.0
"""Every experiment at once: 'experiment all'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdi_gs.errors import RunFailure, UserError
from sdi_gs.experiments.run import EXPERIMENTS
from sdi_gs.stopping import Interrupted

from ..markup import Page

Run = Callable[..., Any]


class Bench:
    """Stands in for what measures: writes what each would, and remembers who was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.fails: dict[str, Exception] = {}
        figures = {name: EXPERIMENTS[name] for name in ("fig9", "fig18")}
        monkeypatch.setattr("sdi_gs.experiments.run.EXPERIMENTS", figures)
        chains = {"fig11": "steps <of> inversion", "since": "methods since"}
        monkeypatch.setattr("sdi_gs.experiments.chains.CHAINS", chains)
        monkeypatch.setattr("sdi_gs.experiments.run.run", self.figure)
        monkeypatch.setattr("sdi_gs.cli.studies._print_table", self.table)

    def begin(self, name: str, out: Path) -> None:
        self.asked.append(name)
        if name in self.fails:
            raise self.fails[name]
        out.mkdir(parents=True, exist_ok=True)

    def figure(self, name: str, config: Any, samples: int, out: Path, say: Any) -> Any:
        self.begin(name, out)
        for ending in ("json", "svg"):
            (out / f"{name}.{ending}").write_text("{}")
        return None, []

    def table(self, name: str, shows: str, *rest: Any) -> None:
        out = rest[-2]
        self.begin(name, out)
        for file in ("table.html", "table.png", "table.json"):
            (out / file).write_text("{}")


def test_one_page_leads_to_all_and_what_is_there_is_not_made_again(
    sdi_gs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, out = Bench(monkeypatch), tmp_path / "all"
    bench.fails["fig18"] = UserError("no room for it")
    bench.fails["fig11"] = RunFailure("1 of 3 runs are not in the table")
    said = sdi_gs("experiment", "all", "--out", out)
    assert said.code == 1
    assert "not whole: fig18, fig11" in said.err
    assert bench.asked == ["fig9", "fig18", "fig11", "since"]
    page = Page((out / "index.html").read_text())
    linked = {url for url in page.urls if not url.startswith("#")}
    assert {"fig9/fig9.svg", "fig9/fig9.json", "since/table.html", "since/table.png"} <= linked
    assert not any(url.startswith(("fig18/", "fig11/")) for url in linked)
    for url in linked:
        assert (out / url).is_file()
    text = (out / "index.html").read_text()
    assert "no room for it" in text
    assert "steps &lt;of&gt; inversion" in text

    bench.asked.clear()
    bench.fails = {"since": Interrupted("stopped in a run")}
    said = sdi_gs("experiment", "all", "--out", out)
    assert said.code == 130
    assert bench.asked == ["fig18", "fig11", "since"]  # a table knows itself what it has
    assert "stopped in a run" in said.err
    bench.fails.clear()
    assert sdi_gs("experiment", "all", "--out", out).code == 0
    assert "no room for it" not in (out / "index.html").read_text()
