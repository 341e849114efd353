# SPDX-License-Identifier: Apache-2.0
"""report.html: what it holds, for whole, resumed, unfinished and damaged runs."""

from __future__ import annotations

import base64
import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from representations.instant_ngp import InstantNGPConfig
from sdi_gs.config import load
from sdi_gs.differences import between, differing
from sdi_gs.pages import run as run_report

from ..markup import Page

PROMPT = "a <b>red</b> mug & co"
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole") / "a run"


@pytest.fixture
def whole(sdi_gs: Run, fast: Path, kept: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, which is made once."""
    if not kept.exists():
        said = sdi_gs("generate", PROMPT, "--config", fast, "--out", kept, "--seed", 3)
        assert said.code == 0, said.err
    return Path(shutil.copytree(kept, tmp_path / "whole"))


def opened(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_a_run_ends_with_a_page_that_needs_nothing_else(whole: Path) -> None:
    text = (whole / "report.html").read_text(encoding="utf-8")
    shown = Page(text)
    assert "b" not in shown.tags  # the prompt is text, not HTML
    assert f"\n{PROMPT}\n" in shown.text
    links = [url for url in shown.urls if not url.startswith("data:")]
    assert links == ["final.ply", "turntable.gif"]
    assert all((whole / link).is_file() for link in links)
    assert not {"link", "iframe"} & set(shown.tags)
    assert not [part for part in shown.structure if part[0] == "script" and "src" in part]
    assert "http" not in text
    films = [url for url in shown.urls if url.startswith("data:image/gif;base64,")]
    assert base64.b64decode(films[0].partition(",")[2]) == (whole / "turntable.gif").read_bytes()
    sheets = [url for url in shown.urls if url.startswith("data:image/png;base64,")]
    assert base64.b64decode(sheets[0].partition(",")[2]) == (whole / "preview.png").read_bytes()
    for part in text.split("<svg")[1:]:
        ET.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")
    for title in ("loss, logarithmic", "splats", "time index t", "seconds of a step, logarithmic"):
        assert title in shown.text
    summary = json.loads((whole / "summary.json").read_text())
    assert shown.row("seconds") == [f"{summary['seconds']:.1f}"]
    assert shown.row("peak memory") == [f"{summary['peak_memory_mb']} MB"]
    assert shown.row("torch") == [summary["versions"]["torch"]]
    assert shown.row("cores") == [str(summary["hardware"]["cores"])]
    size = (whole / "final.ply").stat().st_size
    assert shown.row("final.ply") == [f"{summary['asset']['final.ply']}, {size:,} bytes"]


def test_settings_that_differ_are_shown_with_the_default(whole: Path) -> None:
    shown = opened(whole / "report.html")
    assert shown.row("seed") == ["3", "0"]
    assert [row for row in shown.rows if row[0] == "resolution"] == [["resolution", "16", "512"]]
    assert shown.row("representation.densify.every") == ["2", "25"]
    names = [row[0] for row in shown.rows]
    assert "views.fov_y_deg" not in names  # as the default has it
    assert "fov_y_deg" in shown.text  # but in the fold-out with all of them


def test_another_kind_is_compared_with_its_own_defaults() -> None:
    found = {row[0]: row[1:] for row in differing(load("mini_nerf"))}
    assert found["representation.kind"] == ('"instant_ngp"', '"gaussians"')
    assert found["representation.radius"] == (
        "0.8", str(InstantNGPConfig().radius),
    )  # fmt: skip
    assert "representation.features" not in found
    assert "representation.count" not in found
    assert found["terms.sparsity.start"] == ("0.01", "-")


def test_runs_of_two_kinds_differ_in_the_kind() -> None:
    configs = [load("mini", ["seed=1"]), load("mini_nerf"), load("mini", ["steps=7"])]
    rows = {row[0]: row[1:] for row in between(configs)}
    assert rows["representation.kind"] == ('"gaussians"', '"instant_ngp"', '"gaussians"')
    assert rows["seed"] == ("1", "0", "0")
    assert rows["steps"] == ("400", "400", "7")
    assert rows["terms.sparsity.start"] == ("-", "0.01", "-")
    assert [name for name in rows if name.startswith("representation.")] == ["representation.kind"]


def test_a_resumed_run_reports_each_step_once_and_all_its_memory(
    sdi_gs: Run, interrupted: Run, fast: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    interrupted("generate", PROMPT, "--config", fast, "--out", out)
    assert not (out / "report.html").exists()
    # As if the first process had held much more, and had gone on past its last checkpoint.
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        line["peak_memory_mb"] = 987_654
    lines.append({**lines[-1], "step": 3})
    (out / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    said = sdi_gs("report", out)
    assert said.code == 0, said.err
    shown = opened(out / "report.html")
    assert "not finished: 4 of 6 steps" in shown.text
    assert f"sdi-gs resume {out}" in shown.text

    assert sdi_gs("resume", out).code == 0
    shown = opened(out / "report.html")
    assert "finished: 6 steps" in shown.text
    assert "not finished" not in shown.text
    assert shown.row("steps") == ["6"]
    assert shown.row("peak memory") == ["987654 MB"]
    seconds = json.loads((out / "summary.json").read_text())["seconds"]
    assert shown.row("seconds") == [f"{seconds:.1f}"]


def test_a_run_without_a_step_has_no_report(sdi_gs: Run, whole: Path) -> None:
    (whole / "summary.json").unlink()
    (whole / "stats.jsonl").write_text("")
    said = sdi_gs("report", whole)
    assert said.code == 2
    assert "no finished step yet" in said.err


@pytest.mark.parametrize("broken", ["summary.json", "previews/step_0000003.png"])
def test_a_damaged_file_is_named(sdi_gs: Run, whole: Path, broken: str) -> None:
    (whole / broken).write_text("{")
    said = sdi_gs("report", whole)
    assert said.code == 2
    assert f"{whole / broken} is damaged" in said.err


def test_a_report_that_fails_loses_nothing(
    sdi_gs: Run, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("sdi_gs.run.write_one", broken)
    out = tmp_path / "r"
    said = sdi_gs("generate", PROMPT, "--config", fast, "--out", out)
    assert said.code == 0, said.err
    assert "report.html not written: on purpose; again with sdi-gs report" in said.out
    assert (out / "final.ply").exists()
    assert (out / "summary.json").exists()


def test_several_runs_on_one_page(sdi_gs: Run, whole: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(whole, tmp_path / "other"))
    tree = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**tree, "seed": 4}))
    said = sdi_gs("report", whole, other)
    assert said.code == 0, said.err
    made = tmp_path / "comparison-1.html"
    shown = opened(made)
    assert shown.row("run") == ["whole", "other"]
    assert shown.row("seed") == ["3", "4"]
    assert "resolution" not in [row[0] for row in shown.rows]  # the same in both
    assert len([url for url in shown.urls if url.startswith("data:image/gif")]) == 2
    sdi_gs("report", whole, other)
    assert (tmp_path / "comparison-2.html").exists()
    twice = sdi_gs("report", whole, tmp_path / "other" / ".." / "whole")
    assert twice.code == 2
    assert "named twice" in twice.err


def test_only_pages_of_ours_are_replaced(sdi_gs: Run, whole: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "mine.html"
    foreign.write_text("<p>years of work</p>")
    said = sdi_gs("report", whole, "--out", foreign)
    assert said.code == 2
    assert "was not written by sdi-gs" in said.err
    assert foreign.read_text() == "<p>years of work</p>"
    new = tmp_path / "a" / "new.html"
    assert sdi_gs("report", whole, "--out", new).code == 0
    before = new.read_bytes()
    new.write_bytes(before.replace(b"Measured", b"Changed!"))
    assert sdi_gs("report", whole, "--out", new).code == 0
    assert new.read_bytes() == before
    for name, expected in ((tmp_path, "is a folder"), ("final.ply", "ends in .html")):
        said = sdi_gs("report", whole, "--out", name)
        assert said.code == 2
        assert expected in said.err
    said = sdi_gs("report", tmp_path)
    assert said.code == 2
    assert "no config.yaml" in said.err


def test_a_thinned_curve_keeps_its_ends_and_its_mean() -> None:
    points = [(float(x), float(x % 7)) for x in range(1, 1401)]
    thinned = run_report.thin(points)
    assert len(thinned) == run_report.POINTS
    assert thinned[-1][0] == 1400.0
    assert [x for x, _ in thinned] == [7.0 * i for i in range(1, 201)]
    assert {y for _, y in thinned} == {3.0}  # the mean of 0..6, which each group of 7 holds
    assert run_report.thin(points[:50]) == points[:50]
    assert run_report.thin([]) == []
