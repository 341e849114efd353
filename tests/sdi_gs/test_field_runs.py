# SPDX-License-Identifier: Apache-2.0
"""Runs of a radiance field through the command line: same verbs, other files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

from representations.export import read_ply
from representations.export.mesh import MeshError
from sdi_gs.artefacts import checkpoint

Run = Callable[..., Any]


@pytest.fixture
def field_run(sdi_gs: Run, field_config: Path, tmp_path: Path) -> Path:
    out = tmp_path / "field"
    said = sdi_gs("generate", "a red mug", "--config", field_config, "--out", out, "--seed", 3)
    assert said.code == 0, said.err
    return out


def latest(run: Path) -> checkpoint.Checkpoint:
    path = checkpoint.latest(run / "checkpoints")
    assert path is not None
    return checkpoint.load(path)


def test_a_field_run_leaves_a_mesh_where_splats_leave_splats(field_run: Path) -> None:
    assert not (field_run / "final.ply").exists()
    (mesh,) = trimesh.load_scene(field_run / "final.glb").geometry.values()
    assert len(mesh.faces) > 50
    assert mesh.visual.vertex_attributes["color"].shape == (len(mesh.vertices), 4)
    assert "a red mug" in trimesh.load_scene(field_run / "final.glb").graph.nodes_geometry
    summary = json.loads((field_run / "summary.json").read_text())
    assert "measured" in summary["asset"]["final.glb"]
    line = json.loads((field_run / "stats.jsonl").read_text().splitlines()[-1])
    assert set(line["losses"]) == {"guidance", "orientation", "convexity", "z_variance"}


def test_a_resumed_field_ends_with_the_same_bytes(
    sdi_gs: Run, interrupted: Run, field_config: Path, field_run: Path, tmp_path: Path
) -> None:
    """Stopped where shading has just begun, between two updates of the occupancy grid."""
    out = tmp_path / "again"
    interrupted("generate", "a red mug", "--config", field_config, "--out", out, "--seed", 3)
    said = sdi_gs("resume", out)
    assert said.code == 0, said.err
    whole, again = latest(field_run).renderer, latest(out).renderer
    assert torch.equal(whole["field"]["table"], again["field"]["table"])
    assert torch.equal(whole["occupancy"]["opacity"], again["occupancy"]["opacity"])
    assert (field_run / "final.glb").read_bytes() == (out / "final.glb").read_bytes()


@pytest.mark.parametrize("kind", ["glb", "obj", "mesh-ply"])
def test_meshes_of_both_representations(
    sdi_gs: Run, field_run: Path, fast: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / f"mesh.{kind.removeprefix('mesh-')}"
    said = sdi_gs("export", field_run, "--format", kind, "--out", out, "--resolution", 32)
    assert said.code == 0, said.err
    assert "faces in" in said.out
    assert len(trimesh.load(out, force="mesh").faces) > 50


def test_splats_have_triangles_too(sdi_gs: Run, fast: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "splats", tmp_path / "a.glb"
    settings = ("representation.init.opacity=0.9", "representation.init.radius=0.5")
    said = sdi_gs("generate", "a red mug", "--config", fast, "--out", run, *settings)
    assert said.code == 0, said.err
    said = sdi_gs("export", run, "--format", "glb", "--out", out, "--resolution", 32)
    assert said.code == 0, said.err
    assert "fused from depth pictures" in said.out
    assert len(trimesh.load(out, force="mesh").faces) > 50


def test_a_field_becomes_splats(sdi_gs: Run, field_run: Path) -> None:
    said = sdi_gs("convert", field_run, "--splats", 500, "--steps", 60)
    assert said.code == 0, said.err
    made = field_run / "gaussians"
    assert 0 < len(read_ply(made / "final.ply")) <= 500
    summary = json.loads((made / "summary.json").read_text())
    assert f"{summary['psnr_db']['mean']:.2f} dB" in said.out
    assert summary["psnr_db"]["mean"] > 24.0  # this field is a ball: half of it is easy
    # the result is a run like any other
    said = sdi_gs("export", made, "--format", "splat")
    assert said.code == 0, said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "RUN", "--format", "ply"), "this shape has no splats"),
        (("export", "RUN", "--format", "stl"), "--format stl"),
        (("export", "RUN", "--threshold", "1e9"), "no surface at threshold 1e+09"),
        (("export", "RUN", "--threshold", "-1"), "a density is above 0"),
        (("export", "RUN", "--resolution", "4"), "allowed are 8 to 1024"),
        (("export", "RUN", "--mesher", "open4d"), "--mesher open4d: did you mean 'open3d'?"),
        (("export", "RUN", "--mesher", "open3d", "--threshold", "9"), "leave one of the two out"),
        (("convert", "RUN", "--to", "voxels"), "--to voxels"),
        (("convert", "RUN", "--splats", "0"), "--splats 0"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(
    sdi_gs: Run, field_run: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = {path: path.read_bytes() for path in field_run.rglob("*") if path.is_file()}
    result = sdi_gs(*(field_run if word == "RUN" else word for word in arguments))
    assert result.code == 2
    assert said in result.err
    assert {p: p.read_bytes() for p in field_run.rglob("*") if p.is_file()} == before


def test_open3d_is_asked_for_both_representations(
    sdi_gs: Run, fast: Path, field_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splats = tmp_path / "splats"
    sdi_gs("generate", "a red mug", "--config", fast, "--out", splats)
    asked: list[float] = []

    def spy(renders: Any, cameras: Any, *, radius: float, resolution: int) -> Any:
        asked.append(radius)
        raise MeshError("seen")

    monkeypatch.setattr("representations.export.fuse_open3d.fuse", spy)
    for run in (splats, field_run):
        said = sdi_gs("export", run, "--format", "glb", "--mesher", "open3d", "--out",
                      tmp_path / "a.glb")  # fmt: skip
        assert (said.code, "export: seen" in said.err) == (2, True), said.err
    assert 0.1 < asked[0] < 3.0  # what holds the splats
    assert asked[1] == 1.0  # the field's own cube
    assert not (tmp_path / "a.glb").exists()


def test_what_is_converted_is_no_run_before_its_state_is_there(
    sdi_gs: Run, field_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in between must not leave a run without a checkpoint: resume would train it anew."""
    real, seen = checkpoint.save, []

    def save(folder: Path, saved: checkpoint.Checkpoint) -> Path:
        seen.append((folder.parent / "config.yaml").exists())
        return real(folder, saved)

    monkeypatch.setattr(checkpoint, "save", save)
    assert sdi_gs("convert", field_run, "--splats", 50, "--steps", 1).code == 0
    assert seen == [False]
    assert (field_run / "gaussians" / "config.yaml").is_file()


def test_splats_are_not_converted_again(sdi_gs: Run, fast: Path, tmp_path: Path) -> None:
    run = tmp_path / "splats"
    sdi_gs("generate", "a red mug", "--config", fast, "--out", run)
    result = sdi_gs("convert", run)
    assert result.code == 2
    assert "made of splats already" in result.err


def test_a_grid_too_large_is_refused_before_it_is_made(
    sdi_gs: Run, field_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("representations.memory.available_bytes", lambda device: 10_000_000)
    asked = ("generate", "a red mug", "--config", field_config, "--out", tmp_path / "run")
    large = ("representation.grid.log2_size=19", "representation.grid.max_resolution=2048")
    assert sdi_gs(*asked).code == 0  # the small one fits
    result = sdi_gs(*asked[:-1], tmp_path / "other", *large)
    assert result.code == 2
    assert "GB are free on cpu: write a smaller grid.log2_size" in result.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("verb", ["resume", "export", "convert", "render"])
def test_a_checkpoint_of_the_other_representation_is_told(
    sdi_gs: Run, fast: Path, field_run: Path, tmp_path: Path, verb: str
) -> None:
    splats = tmp_path / "splats"
    sdi_gs("generate", "a red mug", "--config", fast, "--out", splats)
    shutil.rmtree(field_run / "checkpoints")
    shutil.copytree(splats / "checkpoints", field_run / "checkpoints")
    before = {path: path.read_bytes() for path in field_run.rglob("*") if path.is_file()}
    result = sdi_gs(verb, field_run)
    assert result.code == 2, result.err
    assert "holds gaussians" in result.err, result.err
    assert "is a run of instant_ngp" in result.err
    assert {p: p.read_bytes() for p in field_run.rglob("*") if p.is_file()} == before


def test_a_checkpoint_whose_shape_does_not_fit_its_settings_is_told(
    sdi_gs: Run, field_run: Path
) -> None:
    saved = latest(field_run)
    saved.renderer["field"]["table"] = torch.zeros(3, 2)
    checkpoint.save(field_run / "checkpoints", saved)
    for verb in ("resume", "export"):
        result = sdi_gs(verb, field_run)
        assert result.code == 2, result.err
        assert "step_0000006.pt: the state holds table of shape (3, 2)" in result.err
