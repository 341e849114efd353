# SPDX-License-Identifier: Apache-2.0
"""Triangles from densities and from depth pictures, against spheres; files read by trimesh."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from representations.cameras import rays
from representations.export import fuse_open3d, surface
from representations.export.gltf import smooth_normals
from representations.export.mesh import Mesh, MeshError, keep_large_parts, write_mesh
from representations.interface import Cameras, Render
from representations.points import to_linear

RADIUS = 0.6


def ball(x: Tensor) -> Tensor:
    """10 at the origin, falling linearly; 4 at the sphere of radius RADIUS."""
    return (10.0 - 6.0 * x.norm(dim=-1) / RADIUS).clamp(min=0.0)


def colour(x: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.nn.functional.normalize(x, dim=-1)


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def test_marching_cubes_find_a_sphere_and_converge() -> None:
    """Linear interpolation along edges: the error of the radius falls with the square of the
    spacing."""
    errors = []
    for resolution in (17, 33):
        made = surface.from_density(ball, colour, 4.0, radius=1.0, resolution=resolution)
        reach = np.linalg.norm(made.mesh.vertices, axis=1)
        errors.append(np.abs(reach - RADIUS).mean())
        assert made.parts == 1
    assert errors[1] < 0.002
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.35)
    mesh = as_trimesh(made.mesh)
    assert mesh.is_watertight
    # positive: faces are counter-clockwise seen from outside
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.01)
    normal = torch.nn.functional.normalize(torch.from_numpy(made.mesh.vertices), dim=-1)
    np.testing.assert_allclose(made.mesh.colors, (0.5 + 0.5 * normal).numpy(), atol=1e-4)


def test_a_surface_that_touches_the_cube_is_closed() -> None:
    made = surface.from_density(lambda x: 5.0 - x[:, 0], colour, 4.5, radius=1.0, resolution=16)
    assert as_trimesh(made.mesh).is_watertight


def test_no_surface_says_between_what_the_field_lies() -> None:
    with pytest.raises(MeshError, match=r"threshold 20: the field lies between 0 and"):
        surface.from_density(ball, colour, 20.0, radius=1.0, resolution=16)


def sphere_pictures(
    cameras: Cameras, radius: float = RADIUS, centre: torch.Tensor | None = None
) -> list[Render]:
    """Exact depth pictures of a sphere (default: around the origin), painted by position."""
    origins, directions = rays(cameras)
    local = origins if centre is None else origins - centre
    b = (local * directions).sum(-1)
    inside = b.square() - local.square().sum(-1) + radius**2
    hit = inside > 0
    distance = -b - inside.clamp(min=0).sqrt()
    points = origins + directions * distance[..., None]
    forward = cameras.world_to_cam[:, 2, :3]
    cosine = (directions * forward[:, None, None]).sum(-1)
    alpha = hit.float()[:, None]
    depth = (distance * cosine)[:, None] * alpha
    rgb = colour(points).permute(0, 3, 1, 2) * alpha
    zero = torch.zeros_like(rgb)
    return [
        Render(rgb[i : i + 1], alpha[i : i + 1], depth[i : i + 1], zero[i : i + 1])
        for i in range(len(cameras))
    ]


def test_seen_points_lie_on_the_sphere() -> None:
    cameras = surface.views_around(32, 3.0, 30.0)
    for i, render in enumerate(sphere_pictures(cameras)):
        points, colors = surface.seen_points(render, cameras[i : i + 1])
        torch.testing.assert_close(points.norm(dim=-1), torch.full((len(points),), RADIUS))
        torch.testing.assert_close(colors, colour(points), atol=1e-4, rtol=0)


def test_the_measured_level_is_the_density_at_the_surface() -> None:
    cameras = surface.views_around(32, 3.0, 30.0)
    level = surface.surface_level(ball, sphere_pictures(cameras), cameras)
    assert level == pytest.approx(4.0, abs=1e-3)
    empty = [Render(*(torch.zeros_like(p) for p in r[:4])) for r in sphere_pictures(cameras)]
    with pytest.raises(MeshError, match="the field is empty"):
        surface.surface_level(ball, empty, cameras)


def test_fused_depth_pictures_give_the_sphere_back() -> None:
    cameras = surface.views_around(96, 3.0, 30.0)
    made = surface.fuse(sphere_pictures(cameras), cameras, radius=1.0, resolution=48)
    reach = np.linalg.norm(made.mesh.vertices, axis=1)
    spacing = 2.0 / 47
    assert abs(float(np.median(reach)) - RADIUS) < 0.2 * spacing
    assert float(np.quantile(np.abs(reach - RADIUS), 0.95)) < spacing
    mesh = as_trimesh(made.mesh)
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.06)
    wanted = colour(torch.from_numpy(made.mesh.vertices)).numpy()
    assert float(np.abs(made.mesh.colors - wanted).mean()) < 0.05


def test_nothing_to_fuse_is_told() -> None:
    cameras = surface.views_around(16, 3.0, 30.0)
    empty = [Render(*(torch.zeros_like(p) for p in r[:4])) for r in sphere_pictures(cameras)]
    with pytest.raises(MeshError, match="no surface"):
        surface.fuse(empty, cameras, radius=1.0, resolution=16)


@pytest.fixture
def open3d_fuse() -> Callable[..., surface.Extracted]:
    pytest.importorskip("open3d", reason="open3d is not installed (extra 'open3d')")
    return fuse_open3d.fuse


def test_open3d_gives_the_sphere_back_closed_and_the_right_way_round(
    open3d_fuse: Callable[..., surface.Extracted],
) -> None:
    cameras = surface.views_around(96, 3.0, 30.0)
    made = open3d_fuse(sphere_pictures(cameras), cameras, radius=1.0, resolution=48)
    spacing = 2.0 / 47
    reach = np.linalg.norm(made.mesh.vertices, axis=1)
    assert abs(float(np.median(reach)) - RADIUS) < 0.2 * spacing
    assert float(np.quantile(np.abs(reach - RADIUS), 0.95)) < spacing
    # The volume is signed: faces turned inside out would make it negative.
    assert as_trimesh(made.mesh).volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.06)
    wanted = colour(torch.from_numpy(made.mesh.vertices)).numpy()
    assert float(np.abs(made.mesh.colors - wanted).mean()) < 0.05


def test_open3d_puts_the_surface_where_our_fusion_does(
    open3d_fuse: Callable[..., surface.Extracted],
) -> None:
    """Off-centre, so that a pixel counted from the wrong side or a pose transposed would show."""
    cameras = surface.views_around(96, 3.0, 30.0)
    centre = torch.tensor([0.15, -0.1, 0.2])
    renders = sphere_pictures(cameras, 0.3, centre)
    for fuse in (open3d_fuse, surface.fuse):
        made = fuse(renders, cameras, radius=0.8, resolution=48)
        middle = as_trimesh(made.mesh).center_mass
        assert float(np.abs(middle - centre.numpy()).max()) < 0.15 * 1.6 / 47, fuse.__module__


def test_open3d_takes_no_notice_of_what_is_mostly_transparent(
    open3d_fuse: Callable[..., surface.Extracted],
) -> None:
    """A veil of alpha 0.4 in front of everything else, as half-formed splats leave it."""
    cameras = surface.views_around(64, 3.0, 30.0)
    clear = sphere_pictures(cameras)
    veiled = []
    for r in clear:
        veil = r.alpha == 0
        veiled.append(r._replace(alpha=torch.where(veil, 0.4, r.alpha),
                                 depth=torch.where(veil, 2.0, r.depth)))  # fmt: skip
    one, two = (open3d_fuse(rs, cameras, radius=1.2, resolution=32) for rs in (clear, veiled))
    assert np.array_equal(one.mesh.vertices, two.mesh.vertices)


def test_open3d_told_nothing_says_so(open3d_fuse: Callable[..., surface.Extracted]) -> None:
    cameras = surface.views_around(16, 3.0, 30.0)
    empty = [Render(*(torch.zeros_like(p) for p in r[:4])) for r in sphere_pictures(cameras)]
    with pytest.raises(MeshError, match="there is no surface"):
        open3d_fuse(empty, cameras, radius=1.0, resolution=16)


def test_without_open3d_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)  # an import then fails
    cameras = surface.views_around(16, 3.0, 30.0)
    with pytest.raises(MeshError, match=r"-m pip install open3d"):
        fuse_open3d.fuse(sphere_pictures(cameras), cameras, radius=1.0)


def test_crumbs_are_dropped() -> None:
    big, small = trimesh.creation.icosphere(3), trimesh.creation.icosphere(0, radius=0.1)
    both = trimesh.util.concatenate([big, small.apply_translation([3, 0, 0])])
    mesh = Mesh(
        np.asarray(both.vertices), np.asarray(both.faces), np.zeros((len(both.vertices), 3))
    )
    kept, parts = keep_large_parts(mesh, 0.05)
    assert parts == 1
    assert len(kept.faces) == len(big.faces)
    assert float(np.linalg.norm(kept.vertices, axis=1).max()) < 1.01


@pytest.mark.parametrize("kind", ["glb", "obj", "ply"])
def test_files_are_y_up_and_keep_their_colours(kind: str, tmp_path: Path) -> None:
    """A flat triangle up and in front of the origin: z up becomes y, front +x becomes z."""
    vertices = np.array([[1.0, 0.0, 2.0], [1.0, 0.5, 2.0], [1.0, 0.0, 2.5]], np.float32)
    colors = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.2, 0.2, 1.0]], np.float32)
    path = tmp_path / f"a.{kind}"
    assert write_mesh(path, Mesh(vertices, np.array([[0, 1, 2]]), colors), kind) == 1
    (read,) = trimesh.load_scene(path).geometry.values()
    np.testing.assert_allclose(read.vertices, vertices[:, [1, 2, 0]], atol=1e-6)
    if kind == "glb":  # beside a material trimesh keeps them as they are
        stored = read.visual.vertex_attributes.data["color"][:, :3] / 65535.0
    else:
        stored = np.asarray(read.visual.vertex_colors)[:, :3] / 255.0
    wanted = to_linear(colors) if kind == "glb" else colors
    steps = 65535 if kind == "glb" else 255
    np.testing.assert_allclose(stored, wanted, atol=0.5 / steps + 1e-6)


def test_an_empty_mesh_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.glb"
    path.write_bytes(b"before")
    nothing = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64), np.zeros((0, 3)))
    with pytest.raises(MeshError, match="no faces"):
        write_mesh(path, nothing, "glb")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_linear_light_has_the_standard_values() -> None:
    got = to_linear(np.array([0.0, 0.04045, 0.5, 1.0]))
    np.testing.assert_allclose(got, [0.0, 0.0031308, 0.2140411, 1.0], atol=1e-6)


def tree(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    found: dict[str, Any] = json.loads(raw[20 : 20 + int.from_bytes(raw[12:16], "little")])
    return found


def test_a_glb_has_what_an_engine_asks_for(tmp_path: Path) -> None:
    """A material that is no mirror, smooth normals, 16-bit colours, a name."""
    ball = trimesh.creation.icosphere(3, 0.7)
    shade = np.random.default_rng(0).random((len(ball.vertices), 3)).astype(np.float32)
    mesh = Mesh(np.asarray(ball.vertices, np.float32), np.asarray(ball.faces), shade)
    write_mesh(tmp_path / "mug.glb", mesh, "glb")
    held = tree(tmp_path / "mug.glb")
    surface = held["materials"][0]["pbrMetallicRoughness"]
    assert surface["metallicFactor"] == 0.0
    assert surface["roughnessFactor"] > 0.5
    assert (held["nodes"][0]["name"], held["meshes"][0]["name"]) == ("mug", "mug")
    assert held["accessors"][2]["componentType"] == 5123
    (read,) = trimesh.load_scene(tmp_path / "mug.glb", process=False).geometry.values()
    np.testing.assert_allclose(read.vertex_normals, read.vertices / 0.7, atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(read.vertex_normals, axis=1), 1.0, atol=1e-6)
    stored = read.visual.vertex_attributes.data["color"][:, :3] / 65535.0
    np.testing.assert_allclose(stored, to_linear(shade), atol=0.6 / 65535)
    write_mesh(tmp_path / "mug.glb", mesh, "glb", "a red mug")
    assert tree(tmp_path / "mug.glb")["nodes"][0]["name"] == "a red mug"


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_normals_of_any_size_and_of_nothing(size: float) -> None:
    flat = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9]], np.float64) * size
    faces = np.array([[0, 1, 2], [3, 3, 3]])
    got = smooth_normals(flat, faces)
    np.testing.assert_allclose(got[:3], [[0, 0, 1.0]] * 3, atol=1e-6)
    assert np.linalg.norm(got[3]) == pytest.approx(1.0)  # any, but a unit one
