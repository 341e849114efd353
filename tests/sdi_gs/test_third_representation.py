# SPDX-License-Identifier: Apache-2.0
"""A representation that the package has never seen goes through everything: the ellipsoid of
examples/05_third_representation.py, which is three places and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh
import yaml

from representations.cameras import orbit
from sdi_gs import budget
from sdi_gs.config import SEAMS, Config, load
from sdi_gs.look import reopen

Run = Callable[..., Any]
EXAMPLE = Path(__file__).parents[2] / "examples" / "05_third_representation.py"


@pytest.fixture(autouse=True)
def _no_traces(foreign_kinds: None) -> None:
    """What is registered here is forgotten afterwards."""


@pytest.fixture
def ellipsoid(fast: Path, tmp_path: Path) -> Path:
    """The fast configuration with an ellipsoid."""
    tree = yaml.safe_load(fast.read_text())
    tree["representation"] = {"kind": "ellipsoid", "radius": 0.5}
    tree["plugins"] = [str(EXAMPLE)]
    tree["terms"] = {"size": 0.01}
    path = tmp_path / "ellipsoid.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_it_is_trained_saved_reported_and_exported(
    sdi_gs: Run, ellipsoid: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    said = sdi_gs("generate", "a mug", "--config", ellipsoid, "--out", out)
    assert said.code == 0, said.err
    assert sorted(path.name for path in out.glob("final.*")) == ["final.glb"]
    row = json.loads((out / "stats.jsonl").read_text().splitlines()[-1])
    assert (row["unit"], row["size"]) == ("ellipsoids", 1)
    assert set(row["losses"]) == {"guidance", "size"}
    page = (out / "report.html").read_text()
    assert "ellipsoids" in page
    assert "final.glb" in page
    for kind in ("obj", "mesh-ply"):
        said = sdi_gs("export", out, "--format", kind)
        assert said.code == 0, said.err
        assert "as trained" in said.out
    said = sdi_gs("export", out, "--format", "ply")
    assert said.code == 2
    assert "has no splats" in said.err


def test_its_mesh_is_the_ellipsoid(sdi_gs: Run, ellipsoid: Path, tmp_path: Path) -> None:
    """Volume and extents against their formulas; the triangles face outwards."""
    out = tmp_path / "run"
    assert sdi_gs("generate", "a mug", "--config", ellipsoid, "--out", out).code == 0
    shape = reopen(out).renderer
    radius = shape.log_radius.detach().exp()  # type: ignore[attr-defined]
    mesh = trimesh.load(out / "final.glb", force="mesh")
    # y is up and the front looks along +z in a .glb: (x, y, z) is written as (y, z, x).
    assert mesh.extents == pytest.approx(2.0 * radius.roll(-1).numpy(), rel=1e-2)
    assert mesh.volume == pytest.approx(4.0 / 3.0 * math.pi * float(radius.prod()), rel=0.03)


def test_a_stopped_run_goes_on_to_the_same_bytes(
    sdi_gs: Run, interrupted: Run, ellipsoid: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert sdi_gs("generate", "a mug", "--config", ellipsoid, "--out", whole).code == 0
    interrupted("generate", "a mug", "--config", ellipsoid, "--out", cut)
    said = sdi_gs("resume", cut)
    assert said.code == 0, said.err
    assert (whole / "final.glb").read_bytes() == (cut / "final.glb").read_bytes()


def test_it_is_compared_with_splats(sdi_gs: Run, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    said = sdi_gs(
        "compare", "a red mug", "--representations", "ellipsoid,gaussians", "--steps", "2",
        "--out", out, f"plugins={EXAMPLE}", "batch=1", "output.turntable.frames=2",
        "output.turntable.size=32",
    )  # fmt: skip
    assert said.code == 0, said.err
    rows = json.loads((out / "compare.json").read_text())["rows"]
    assert [(row["representation"], row["unit"]) for row in rows] == [
        ("ellipsoid", "ellipsoids"), ("gaussians", "splats"),
    ]  # fmt: skip
    assert rows[0]["parameters"] == 9


def test_its_memory_is_counted_and_a_silent_one_counts_as_nothing(ellipsoid: Path) -> None:
    config = load(str(ellipsoid), ["model.source=sd", "resolution=64", "batch=2"])
    counted = budget.estimate(config).representation
    assert counted == 4 * 40 * 2 * 64**2


def test_an_unknown_term_of_it_names_those_it_has(sdi_gs: Run, ellipsoid: Path) -> None:
    said = sdi_gs("generate", "a mug", "--config", ellipsoid, "terms.opaque=1", "steps=1")
    assert said.code == 2
    assert "unknown setting 'terms.opaque': known here: size" in said.err


def test_its_picture_is_a_disc_of_the_size_it_says(ellipsoid: Path) -> None:
    """Half coverage lies where a ray just touches the ball: at asin(radius / distance)."""
    load(str(ellipsoid))
    settings = SEAMS["representation"].table["ellipsoid"](radius=0.5)
    make = SEAMS["representation"].makers[type(settings)]
    from representations.interface import Run as Told

    shape = make(settings, Told(torch.device("cpu"), steps=1, seed=0))
    one = torch.ones(1)
    cameras = orbit(0 * one, 0 * one, 3 * one, 30 * one, (129, 129))
    alpha = shape.render(cameras, None)[0].alpha[0, 0]
    half = int((alpha[64] > 0.5).sum()) / 2
    focal = 0.5 * 129 / math.tan(math.radians(15))
    assert half == pytest.approx(focal * math.tan(math.asin(0.5 / 3)), abs=1.0)


def test_the_package_itself_knows_four() -> None:
    known = ["gaussians", "instant_ngp", "textured", "latent_voxels"]
    assert list(SEAMS["representation"].table) == known
    assert Config().representation.kind == "gaussians"
