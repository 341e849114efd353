# SPDX-License-Identifier: Apache-2.0
"""A textured mesh from the command line: exported, trained, stopped, resumed, compared, refined."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from representations.cloud import SplatCloud
from representations.export import write_ply
from sdi_gs.config import load
from sdi_gs.guidance.distillation import GuidanceConfig, TimeConfig
from sdi_gs.look import reopen
from sdi_gs.ramp import Ramp
from sdi_gs.texture_stage import LATEST, configuration, late

pytest.importorskip("xatlas", reason="xatlas is not installed (extra 'mesh')")
pytest.importorskip("fast_simplification", reason="not installed (extra 'mesh')")

Run = Callable[..., Any]
SMALL = ("--resolution", 24, "--texture", 64, "--faces", 300)


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of splats: a ball, red above and blue below, taller than wide."""
    rng = np.random.default_rng(0)
    way = rng.normal(size=(1500, 3))
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    colours = np.where(way[:, 2:] > 0, [[1.5, -1.5, -1.5]], [[-1.5, -1.5, 1.5]])
    cloud = SplatCloud(
        means=torch.from_numpy(way * [0.4, 0.4, 0.6]).float(),
        log_scale=torch.full((1500, 3), -3.0),
        quat_wxyz=torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1500, 4).contiguous(),
        opacity_logit=torch.full((1500,), 3.0),
        sh_dc=torch.from_numpy(colours).float(),
        sh_rest=torch.zeros(1500, 0, 3),
    )
    path = tmp_path_factory.mktemp("ball") / "ball.ply"
    write_ply(path, cloud)
    return path


@pytest.fixture(scope="module")
def mesh(ball: Path) -> Path:
    from sdi_gs.cli.main import main

    out = ball.with_name("ball.glb")
    said = ["export", ball, "--format", "glb", *SMALL, "--out", out]
    assert main([str(word) for word in said]) == 0
    return out


def read(path: Path) -> trimesh.Trimesh:
    (found,) = trimesh.load_scene(path).geometry.values()
    return found


def test_a_file_of_splats_becomes_a_textured_mesh(sdi_gs: Run, ball: Path, tmp_path: Path) -> None:
    """Upright, as tall as asked, on the ground, red above and blue below."""
    out = tmp_path / "mug.obj"
    said = sdi_gs(
        "export", ball, "--format", "obj", *SMALL, "--height", 0.1, "--pivot", "ground",
        "--out", out,
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "a texture of 64 x 64 texels" in said.out
    assert said.err.startswith("painting the texture")  # it takes a while, and that is said first
    assert "before simplification" in said.out
    found = read(out)
    assert len(found.faces) <= 300
    low, high = found.bounds
    assert (low[1], high[1]) == (pytest.approx(0.0, abs=1e-6), pytest.approx(0.1, abs=1e-6))
    assert low[0] == pytest.approx(-high[0], abs=1e-6)
    assert high[0] / high[1] == pytest.approx(0.35, abs=0.06)
    image = np.asarray(found.visual.material.image.convert("RGB"), np.float64) / 255.0
    at = found.visual.uv[found.faces].mean(1)
    shown = image[((1 - at[:, 1]) * 64).astype(int), (at[:, 0] * 64).astype(int)]
    y = found.vertices[found.faces].mean(1)[:, 1]
    upper, lower = shown[y > 0.07], shown[y < 0.03]
    assert upper[:, 0].mean() > 0.8 > 0.3 > upper[:, 2].mean()
    assert lower[:, 2].mean() > 0.8 > 0.3 > lower[:, 0].mean()


def test_a_field_becomes_a_textured_mesh(sdi_gs: Run, field_config: Path, tmp_path: Path) -> None:
    """With the colours of its pictures, which are those of the field itself."""
    run, out = tmp_path / "run", tmp_path / "field.glb"
    assert sdi_gs("generate", "a mug", "--config", field_config, "--out", run).code == 0
    said = sdi_gs(
        "export", run, "--format", "glb", "--resolution", 32, "--texture", 64, "--faces", 200,
        "--out", out,
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "at density" in said.out
    found = read(out)
    assert 100 < len(found.faces) <= 200
    assert found.visual.material.metallicFactor == 0.0
    image = np.asarray(found.visual.material.baseColorTexture.convert("RGB"), np.float64) / 255.0
    at = found.visual.uv[found.faces].mean(1)
    shown = image[((1 - at[:, 1]) * 64).astype(int), (at[:, 0] * 64).astype(int)]
    points = torch.from_numpy(found.vertices[found.faces].mean(1)[:, [2, 0, 1]]).float()
    own = reopen(run).renderer.albedo(points).numpy()  # type: ignore[attr-defined]
    assert float(np.abs(shown - own).mean()) < 0.1


def test_its_texture_is_trained_stopped_and_resumed_to_the_same_bytes(
    sdi_gs: Run, interrupted: Run, fast: Path, mesh: Path, tmp_path: Path
) -> None:
    words = ("generate", "a mug", "--config", fast, "--init", mesh, "representation=textured")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    copy = tmp_path / "copy.glb"
    copy.write_bytes(mesh.read_bytes())
    assert sdi_gs(*words, "--out", whole).code == 0
    interrupted(*[copy if word == mesh else word for word in words], "--out", cut)
    copy.unlink()  # the state holds the mesh
    said = sdi_gs("resume", cut)
    assert said.code == 0, said.err
    assert (whole / "final.glb").read_bytes() == (cut / "final.glb").read_bytes()
    before, after = read(mesh), read(whole / "final.glb")
    np.testing.assert_allclose(after.vertices, before.vertices, atol=1e-6)
    one, two = (np.asarray(m.visual.material.baseColorTexture) for m in (before, after))
    assert one.shape == two.shape
    assert (one != two).any()
    row = json.loads((whole / "stats.jsonl").read_text().splitlines()[-1])
    assert row["unit"] == "texels"
    assert "texels" in (whole / "report.html").read_text()
    said = sdi_gs("export", whole, "--format", "mesh-ply")
    assert said.code == 0, said.err
    assert "in 1 connected part(s), as trained" in said.out
    for arguments, told in (
        (("--format", "glb", "--texture", 64), "a mesh with a texture of its own"),
        (("--format", "glb", "--faces", 10), "to which its texture belongs"),
        (("--refine", 3, "--format", "glb"), "is a textured mesh already"),
        (("--format", "ply"), "this shape has no splats"),
    ):
        said = sdi_gs("export", whole, *arguments)
        assert (said.code, told in said.err) == (2, True), said.err


def test_it_is_compared_with_splats(sdi_gs: Run, fast: Path, mesh: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    said = sdi_gs(
        "compare", "a red mug", "--representations", "textured", "--steps", "2", "--out", out,
        "batch=1", f"representation.init.path={mesh}", "output.turntable.frames=2",
        "output.turntable.size=32",
    )  # fmt: skip
    assert said.code == 0, said.err
    rows = json.loads((out / "compare.json").read_text())["rows"]
    assert [(row["representation"], row["unit"]) for row in rows] == [("textured", "texels")]


def refined_run(sdi_gs: Run, fast: Path, ball: Path, run: Path, *more: Any) -> Any:
    """What is said when the mesh of a run at ``run``, made now, is trained on for two steps."""
    said = sdi_gs(
        "generate", "a mug", "--config", fast, "--init", ball, "--out", run,
        "representation.max_count=2000",
    )  # fmt: skip
    assert said.code == 0, said.err
    return sdi_gs("export", run, "--format", "glb", *SMALL, "--refine", 2, *more)


def test_refine_makes_the_mesh_and_trains_its_texture(
    sdi_gs: Run, fast: Path, ball: Path, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "refined.glb"
    said = refined_run(sdi_gs, fast, ball, run, "--height", 2, "--out", out)
    assert said.code == 0, said.err
    assert f"{out}  (" in said.out
    refined, baked = read(out), read(run / "textured.glb")
    assert np.ptp(refined.vertices[:, 1]) == pytest.approx(2.0, rel=1e-5)
    assert len(refined.faces) == len(baked.faces) <= 300
    one, two = (np.asarray(m.visual.material.baseColorTexture) for m in (refined, baked))
    assert one.shape == two.shape == (64, 64, 3)
    assert (one != two).any()
    made = load(str(run / "textured" / "config.yaml"))
    own = load(str(run / "config.yaml"))
    assert (made.prompt, made.model, made.update) == (own.prompt, own.model, own.update)
    assert made.steps == 2


def test_refine_trains_corners_where_that_is_asked_for(
    sdi_gs: Run, fast: Path, ball: Path, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "refined.glb"
    said = refined_run(sdi_gs, fast, ball, run, "--refine-shape", "--out", out)
    assert said.code == 0, said.err
    refined, baked = read(out), read(run / "textured.glb")
    assert (refined.faces == baked.faces).all()
    moved = np.abs(refined.vertices - baked.vertices).max()
    assert 1e-5 < moved < 0.02  # by the rate of each of two steps at most, and a little in a sum
    made = load(str(run / "textured" / "config.yaml"))
    assert made.terms["normal_consistency"] == Ramp(0.1, 0.1)
    said = sdi_gs("export", run, "--format", "glb", "--refine-shape")
    assert (said.code, "write --refine 100 --refine-shape" in said.err) == (2, True)


def test_a_ball_is_bent_by_words_stopped_and_resumed_to_the_same_bytes(
    sdi_gs: Run, interrupted: Run, fast: Path, tmp_path: Path
) -> None:
    """No file at all: what comes out is a mesh with a texture, which other programs read."""
    words = (
        "generate", "a duck", "--config", fast, "representation=textured",
        "representation.shape.rate=0.04", "representation.init.detail=6", "representation.size=48",
        "terms={normal_consistency: 0.5, opaque: 0.01}",
    )  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    said = sdi_gs(*words, "--out", whole)
    assert said.code == 0, said.err
    interrupted(*words, "--out", cut)
    said = sdi_gs("resume", cut)
    assert said.code == 0, said.err
    assert (whole / "final.glb").read_bytes() == (cut / "final.glb").read_bytes()
    found = read(whole / "final.glb")
    assert len(found.faces) == 6 * 6 * 6 * 2
    assert np.asarray(found.visual.material.baseColorTexture).shape == (48, 48, 3)
    assert np.ptp(np.linalg.norm(found.vertices, axis=1)) > 1e-3  # no ball any more
    # A shape that stays has nothing that these terms could move.
    said = sdi_gs(
        "generate", "a duck", "--config", fast, "--init", whole / "final.glb",
        "representation=textured", "terms.normal_consistency=0.5", "--out", tmp_path / "still",
    )  # fmt: skip
    assert (said.code, "terms.normal_consistency" in said.err) == (2, True), said.err


def test_the_stage_begins_no_noisier_than_it_may() -> None:
    made = late(GuidanceConfig(t=TimeConfig(high=Ramp(0.98, 0.3), low=Ramp(0.7, 0.02))))
    assert (made.t.high, made.t.low) == (Ramp(LATEST, 0.3), Ramp(LATEST, 0.02))
    assert late(GuidanceConfig(t=TimeConfig(high=Ramp(0.4, 0.1)))).t.low is None


def test_the_stage_of_a_lengthened_run_has_a_schedule_of_its_own(tmp_path: Path) -> None:
    longer = load("mini", ["prompt=a mug", "steps=800", "schedule_steps=400"])
    stage = configuration(longer, 50, tmp_path / "mug.glb")
    assert stage.schedule == stage.steps == 50


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--format", "glb", "--texture", 4), "--texture 4: allowed are 16 to 8192"),
        (("--format", "glb", "--faces", 2), "--faces 2: allowed are 4 or more"),
        (("--format", "glb", "--height", 0), "--height 0.0: allowed are"),
        (("--format", "glb", "--pivot", "floor"), "--pivot floor: known here: ground, centre"),
        (("--format", "mesh-ply", "--texture", 64), "write --format glb or obj"),
        (("--format", "ply", "--texture", 64), "--texture 64: for triangles"),
        (("--format", "spz", "--refine", 3), "--refine 3: trains a texture"),
        (("--format", "glb", "--refine", 0), "--refine 0: allowed is 1 step or more"),
        (("--format", "glb", "--refine", 3), "is a file, which has no model and no prompt"),
    ],
)  # fmt: skip
def test_bad_options_are_told(
    sdi_gs: Run, ball: Path, tmp_path: Path, arguments: tuple[object, ...], told: str
) -> None:
    before = sorted(ball.parent.iterdir())
    said = sdi_gs("export", ball, *arguments, "--out", tmp_path / f"a.{_ending(arguments[1])}")
    assert (said.code, told in said.err) == (2, True), said.err
    assert sorted(ball.parent.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def _ending(kind: object) -> str:
    return "ply" if kind == "mesh-ply" else str(kind)


def test_what_an_obj_would_replace_is_asked_for(sdi_gs: Run, ball: Path, tmp_path: Path) -> None:
    """Its picture and its material too."""
    (tmp_path / "a.png").write_bytes(b"mine")
    words = ("export", ball, "--format", "obj", *SMALL, "--out", tmp_path / "a.obj")
    said = sdi_gs(*words)
    assert (said.code, "a.png exists" in said.err) == (2, True), said.err
    assert (tmp_path / "a.png").read_bytes() == b"mine"
    assert sdi_gs(*words, "--force").code == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_or_splats_are_no_mesh(sdi_gs: Run, ball: Path, tmp_path: Path) -> None:
    words = ("generate", "a mug", "representation=textured")
    said = sdi_gs(*words, "--init", tmp_path)
    assert (said.code, "--format glb --texture 1024" in said.err) == (2, True), said.err
    said = sdi_gs(*words, "--init", ball)
    assert (said.code, "is read as a mesh" in said.err) == (2, True), said.err
