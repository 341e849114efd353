# SPDX-License-Identifier: Apache-2.0
"""Comparisons: what is run, what is measured, and the page that shows it."""

from __future__ import annotations

import base64
import dataclasses
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdi_gs.artefacts import media
from sdi_gs.artefacts.run_folder import STAGES
from sdi_gs.config import load
from sdi_gs.evaluation.truth import truth_of
from sdi_gs.experiments import compare, study
from sdi_gs.experiments import compare_page as report
from sdi_gs.guidance.noise import DDIMInversion, RandomNoise

from ..markup import Page

Run = Callable[..., Any]


def row(**changed: Any) -> compare.Row:
    values: dict[str, Any] = {
        "representation": "gaussians", "guidance": "sdi", "seed": 0, "run": "runs/a", "steps": 10,
        "prompt": "a red mug",
        "seconds_per_step": dict.fromkeys(STAGES, 0.01), "seconds_total": 3.0,
        "evaluations_per_step": 24.0, "peak_memory_mb": 800.0, "peak_cuda_memory_mb": None,
        "parameters": 42_000, "size": 3000, "unit": "splats", "files": {"final.ply": 200_000},
        "psnr_db": 21.5,
        "curve": [{"step": s, "seconds": 0.1 * s, "psnr_db": 10.0 + s} for s in (1, 5, 10)],
    }  # fmt: skip
    return compare.Row(**(values | changed))


def test_guidances_change_the_method_and_nothing_else() -> None:
    plan = compare.Plan("a red mug", guidances=("sdi", "sds_annealed", "sds"), seeds=2, steps=7)
    made = {(c.representation, c.guidance, c.seed): compare.configuration(plan, c)
            for c in compare.cells(plan)}  # fmt: skip
    assert len(made) == 2 * 3 * 2
    sdi = made["gaussians", "sdi", 1]
    assert isinstance(sdi.noise, DDIMInversion)
    assert (sdi.seed, sdi.steps, sdi.prompt) == (1, 7, "a red mug")
    annealed = made["gaussians", "sds_annealed", 1]
    # Random noise wants another scale on mini; everything else is shared.
    guidance = dataclasses.replace(sdi.guidance, cfg_scale=2.0)
    assert annealed == sdi.model_copy(update={"noise": RandomNoise(), "guidance": guidance})
    sds = made["instant_ngp", "sds", 0]
    assert sds.guidance.t.low is not None
    assert sds.representation == load("mini_nerf").representation


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"family": "minni"}, "did you mean 'mini'"),
        ({"guidances": ("sdss",)}, "guidances=sdss"),
        ({"seeds": 0}, "seeds=0"),
        ({"guidances": ()}, "nothing to compare"),
    ],
)
def test_impossible_plans_are_told(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(compare.UserError, match=said):
        compare.Plan("a red mug", **changed)


def test_truth_is_known_for_one_object_of_one_colour() -> None:
    for prompt, expected in (
        ("a red mug", ("mug", "red")),
        ("A photo of a BLUE car.", ("car", "blue")),
        ("a mug", None),
        ("a red mug on a red car", None),
    ):
        assert truth_of(load("mini", [f"prompt={prompt}"])) == expected
    assert truth_of(load("mini", ["prompt=a red mug", "model.source=other"])) is None


def test_the_table_leaves_out_what_nobody_measured() -> None:
    lines = report.table([row(), row(guidance="sds", psnr_db=None)]).splitlines()
    assert "CUDA MB" not in lines[0]
    assert "21.50" in lines[1]
    assert len({len(line) for line in lines}) == 1


def test_the_page_is_well_formed_and_shows_every_film(tmp_path: Path) -> None:
    """Inside of it; one that is missing is named by its address."""
    (tmp_path / "runs" / "a").mkdir(parents=True)
    frames = torch.rand(2, 3, 16, 16)
    film = media.save_film(frames, tmp_path / "runs" / "a" / "turntable.mp4", 2)
    plan = compare.Plan("a red mug")
    cell = compare.Cell("gaussians", "sds", 1)
    made = compare.Comparison(
        [row(), row(run="runs/b", psnr_db=None, curve=[])],
        [compare.Missing(cell, study.Without("killed <by> SIGKILL", False))],
    )
    text = report.page(plan, made, "a machine", tmp_path)
    assert "gaussians-sds-1: not run: killed &lt;by&gt; SIGKILL" in text
    shown = Page(text)
    first, poster, other = shown.urls
    assert base64.b64decode(first.removeprefix("data:video/mp4;base64,")) == film.read_bytes()
    assert poster.startswith("data:image/jpeg;base64,")
    assert other == "runs/b/turntable.mp4"
    assert f"{row().steps} steps a run; a machine" in shown.text
    measures = [line[0] for line in shown.rows]
    assert measures.index("PSNR dB") < measures.index("total s")
    for part in text.split("<svg")[1:]:
        ET.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")


def test_a_plot_puts_the_highest_value_highest() -> None:
    svg = ET.fromstring(
        report.plot([report.Line("a", [(1, 10.0), (5, 20.0), (10, 15.0)])], "x", "y")
    )
    (line,) = svg.findall("polyline")
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[1][1] < points[2][1] < points[0][1]  # y grows downwards


def test_a_comparison_from_the_command_line(
    sdi_gs: Run, fast: Path, field_config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    said = sdi_gs(
        "compare", "a red mug", "--representations", f"{fast},{field_config}", "--out", out,
        "output.turntable.format=mp4",
    )  # fmt: skip
    assert said.code == 0, said.err
    found = json.loads((out / "compare.json").read_text())
    assert [r["unit"] for r in found["rows"]] == ["splats", "cells"]
    for measured in found["rows"]:
        assert set(measured["seconds_per_step"]) == set(STAGES)
        assert all(seconds >= 0 for seconds in measured["seconds_per_step"].values())
        assert measured["parameters"] > 100
        assert measured["peak_memory_mb"] > 50
        assert (out / measured["run"] / "turntable.mp4").stat().st_size > 0
        assert measured["psnr_db"] is None
    assert "compare.html" in said.out
    assert "step ms" in said.out
    # Asked for again, nothing is done twice; with other settings it is another comparison.
    films = [out / r["run"] / "turntable.mp4" for r in found["rows"]]
    before = [film.stat().st_mtime_ns for film in films]
    again = sdi_gs(
        "compare", "a red mug", "--representations", f"{fast},{field_config}", "--out", out,
        "output.turntable.format=mp4",
    )  # fmt: skip
    assert again.code == 0
    assert again.out.count("finished before") == 2
    assert [film.stat().st_mtime_ns for film in films] == before
    assert json.loads((out / "compare.json").read_text())["rows"] == found["rows"]
    other = sdi_gs("compare", "a red mug", "--representations", f"{fast}", "--out", out)
    assert other.code == 2
    assert "with other settings" in other.err
