# SPDX-License-Identifier: Apache-2.0
"""A radiance field that starts from a file: it looks like the file before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh
import yaml

from representations.export import write_ply
from representations.interface import Run as RunOf
from sdi_gs import build
from sdi_gs.config import load
from sdi_gs.errors import UserError
from sdi_gs.look import stage

from .test_files_in import ball

Run = Callable[..., Any]
SETTINGS = [
    "device=cpu", "resolution=32", "representation.init.steps=40",
    "representation.init.resolution=32", "representation.march.samples=96",
    "representation.grid.log2_size=12", "representation.init.count=600",
]  # fmt: skip


def pictures(*settings: str, told: list[str] | None = None) -> torch.Tensor:
    """Front, right, back, left of a field at step 0, on white: [4, 3, 32, 32]."""
    config = load("mini_nerf", [*SETTINGS, *settings])
    say = (told if told is not None else []).append
    shape = build.renderer(config, torch.device("cpu"), say=say)
    assert shape.step == 0  # type: ignore[attr-defined]
    assert not shape.optimizers[0].state  # its optimiser has done nothing
    shown = stage(config, shape)
    shown = dataclasses.replace(shown, background=lambda n: torch.ones(n, 3))
    return shown.turntable(4, 32, 0.0)


def red(picture: torch.Tensor) -> float:
    """Share of the pixels that are more red than green."""
    return float((picture[0] > picture[1] + 0.2).float().mean())


@pytest.fixture
def splats(tmp_path: Path) -> Path:
    write_ply(tmp_path / "a.ply", ball())
    return tmp_path / "a.ply"


def test_a_field_looks_like_the_splats_that_it_starts_from(splats: Path) -> None:
    """A ball that is red in front, where +x is, and green behind."""
    told: list[str] = []
    init = (f"representation.init.path={splats}", "representation.init.kind=splats")
    front, _, back, _ = pictures(*init, told=told)
    assert any("fitting the field to 400 splats" in line for line in told)
    assert red(front) > 0.1 > 0.02 > red(back)
    for picture in (front, back):
        assert 0.1 < float((picture.amin(0) < 0.6).float().mean()) < 0.6  # a ball, not a fog
        assert float(picture[:, 0, 0].min()) > 0.9  # white in the corner


def test_a_field_starts_from_a_mesh(tmp_path: Path) -> None:
    box = trimesh.creation.box((1.0, 0.2, 0.2))
    box.visual.vertex_colors = [220, 20, 20, 255]
    box.export(tmp_path / "a.obj")
    init = (f"representation.init.path={tmp_path / 'a.obj'}", "representation.init.kind=points")
    front, side, _, _ = pictures(*init)
    assert red(side) > 1.3 * red(front) > 0.01  # long along x


def test_a_field_without_a_file_is_as_before() -> None:
    config = load("mini_nerf", SETTINGS)
    shape, other = (build.renderer(config, torch.device("cpu")) for _ in range(2))
    assert config.representation.init.kind == "blob"  # type: ignore[union-attr]
    assert torch.equal(shape.state_dict()["field"]["table"], other.state_dict()["field"]["table"])


def test_what_lies_outside_of_the_cube_is_counted_or_refused(tmp_path: Path) -> None:
    whole = ball(60)
    half = whole.means.clone()
    half[:20] += 50.0
    write_ply(tmp_path / "some.ply", whole.replace(means=half))
    write_ply(tmp_path / "all.ply", whole.replace(means=whole.means + 50.0))
    kind = "representation.init.kind=splats"
    told: list[str] = []
    pictures(kind, f"representation.init.path={tmp_path / 'some.ply'}",
             "representation.init.steps=1", told=told)  # fmt: skip
    assert any("20 of 60 splats are outside of the cube" in line for line in told)
    with pytest.raises(UserError, match=r"nothing of it lies in the cube .* --recentre"):
        pictures(kind, f"representation.init.path={tmp_path / 'all.ply'}")


def test_a_run_of_a_field_starts_from_a_file(
    sdi_gs: Run, field_config: Path, splats: Path, tmp_path: Path
) -> None:
    """And is resumed when the file is gone."""
    out = tmp_path / "run"
    said = sdi_gs("generate", "a red mug", "--config", field_config, "--init", splats, "--in-up",
                  "viewer", "--max-splats", 100, "--out", out, "--steps", 2,
                  "representation.init.steps=2", "representation.init.resolution=16")  # fmt: skip
    assert said.code == 0, said.err
    assert "fitting the field to 100 splats" in said.out
    init = yaml.safe_load((out / "config.yaml").read_text())["representation"]["init"]
    assert (init["kind"], init["up"], init["max_splats"]) == ("splats", "viewer", 100)
    splats.unlink()
    assert sdi_gs("resume", out, "--steps", 3).code == 0


def test_processes_that_share_a_run_do_not_fit_each_their_own(splats: Path) -> None:
    class Two:
        count = 2

    config = load("mini_nerf", [*SETTINGS, f"representation.init.path={splats}",
                                "representation.init.kind=splats"])  # fmt: skip
    run = RunOf(torch.device("cpu"), 10, 0, Two(), False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without torchrun"):
        build._instant_ngp(config.representation, run, config.views)  # type: ignore[arg-type]
