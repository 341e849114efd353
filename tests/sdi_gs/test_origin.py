# SPDX-License-Identifier: Apache-2.0
"""What a run was made of: noted in config.yaml, kept when it goes on or is replayed, and shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdi_gs import going_on
from sdi_gs.artefacts import run_folder
from sdi_gs.artefacts.run_folder import RunFolder
from sdi_gs.config import dump, load
from sdi_gs.differences import differing
from sdi_gs.families import made_of
from sdi_gs.origin import Origin, noted, origin_of, read_origin

from ..markup import Page

Run = Callable[..., Any]


def test_a_preset_is_found_below_files_and_runs(tmp_path: Path) -> None:
    assert origin_of("mini") == Origin("mini")
    assert origin_of("mini", "sds") == Origin("mini", "sds")
    assert origin_of(None) is None
    mine, over = tmp_path / "mine.yaml", tmp_path / "over.yaml"
    mine.write_text("base: mini_nerf\nsteps: 7\n")
    over.write_text("base: mine.yaml\nseed: 2\n")  # a file that lies beside
    assert origin_of(str(over)) == Origin("mini_nerf")
    mine.write_text("steps: 7\n")
    assert origin_of(str(over)) is None
    replayed = tmp_path / "config.yaml"
    replayed.write_text(noted(load("mini"), Origin("mini", "csd")))
    assert origin_of(str(replayed)) == Origin("mini", "csd")
    assert origin_of(str(replayed), "ism") == Origin("mini", "ism")
    assert made_of("mini", "instant_ngp", "sds") == Origin("mini_nerf", "sds")
    assert made_of("mini", "textured", "sds") == Origin("mini", "sds")


def test_the_note_is_no_setting(tmp_path: Path) -> None:
    config = load("mini", ["prompt=# preset sdxl_gaussians"])
    run = run_folder.begin(RunFolder(tmp_path), config, Origin("mini"))
    assert run.config_file.read_text() == "# preset mini\n" + dump(config)
    assert run.config() == config
    assert run.origin() == Origin("mini")
    going_on.note(run, config.model_copy(update={"steps": 900}), 900)
    assert run.config().steps == 900
    assert run.origin() == Origin("mini")
    for text in (dump(config), "", "# preset a/b\n", "# presets mini\n"):
        run.config_file.write_text(text)
        assert run.origin() is None
    run.config_file.write_bytes(b"\xff\xfe")
    assert run.origin() is None
    assert read_origin(tmp_path / "none.yaml") is None
    assert Origin("of_another_version").config() is None
    assert noted(config, Origin("of_another_version")) == dump(config)


def test_only_what_differs_from_the_preset_is_named() -> None:
    config = load("mini", ["steps=7", "representation.count=50", "threads=1"], "sds")
    base = Origin("mini", "sds").config()
    assert base is not None
    assert [row[0] for row in differing(config, base)] == ["steps", "representation.count"]
    assert ("steps", "7", "400") in differing(config, base)
    one = load("mini", ["threads=1"])
    assert ("threads", "2", "1") in differing(one.model_copy(update={"threads": 2}), one)
    field = {row[0]: row[1:] for row in differing(load("mini_nerf"), load("mini"))}
    assert field["representation.kind"] == ('"instant_ngp"', '"gaussians"')
    assert field["representation.radius"][1] == "2.0"  # of that kind, since the preset has another
    assert "model.source" not in field


def test_a_run_notes_its_preset_and_its_page_compares_with_it(
    sdi_gs: Run, interrupted: Run, fast: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"base": "mini", **yaml.safe_load(fast.read_text())}))
    out = tmp_path / "r"
    interrupted("generate", "a red mug", "--config", mine, "--guidance", "sds", "--out", out)
    first = (out / "config.yaml").read_text()
    assert first.startswith("# preset mini with the method sds\n")
    assert sdi_gs("resume", out).code == 0
    assert (out / "config.yaml").read_text() == first
    shown = Page((out / "report.html").read_text())
    assert "Settings that differ from the preset mini with sds" in shown.text
    rows = [row for row in shown.rows if row and row[0] == "steps"]
    assert ["steps", "6", "400"] in rows  # beside that of the preset
    assert ["steps", "6", "10000"] in rows  # and, folded, beside the default
    # Nothing of it is computed with: a run without the note has the same page but for that.
    (out / "config.yaml").write_text(first.partition("\n")[2])
    assert sdi_gs("report", out).code == 0
    assert "from the preset" not in (out / "report.html").read_text()


@pytest.mark.parametrize("wrong", ["# preset mini", "# preset sdxl_gaussians"])
def test_a_run_that_is_replayed_has_the_same_bytes(wrong: str, tmp_path: Path) -> None:
    config = load("mini", ["seed=3"])
    path = tmp_path / "config.yaml"
    path.write_text(f"{wrong}\n{dump(config)}")
    assert load(str(path)) == config
