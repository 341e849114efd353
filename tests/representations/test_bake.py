# SPDX-License-Identifier: Apache-2.0
"""From splats of a known shape with known colours to a closed mesh with few faces and a texture."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from representations.atlas import filled, texels_of, unwrap
from representations.cameras import orbit, rays
from representations.cloud import SplatCloud
from representations.export import bake, surface, votes
from representations.export.mesh import Mesh, MeshError, Skin, companions, placed, write_mesh
from representations.export.painting import Points, painted
from representations.export.simplify import simplify
from representations.gaussians import GaussianConfig, GaussianRenderer
from representations.interface import Render
from representations.ops.constants import SH_DC
from representations.ops.meshes import Caster

from .helpers import seeded
from .test_mesh import sphere_pictures

CPU = torch.device("cpu")
OUTER, INNER, HALF, FLOOR = 0.5, 0.36, 0.45, 0.14
"""Of a cup: two radii, half of its height, the thickness of its floor."""


def cup_distance(points: np.ndarray) -> np.ndarray:
    """Signed distance to the cup, exact but at its edges, where it is a bound."""
    q, z = np.hypot(points[:, 0], points[:, 1]), points[:, 2]
    solid = np.maximum(q - OUTER, np.abs(z) - HALF)
    hollow = np.maximum(q - INNER, FLOOR - HALF - z)
    distance: np.ndarray = np.maximum(solid, -hollow)
    return distance


def cup() -> trimesh.Trimesh:
    profile = np.array([[0, -HALF], [OUTER, -HALF], [OUTER, HALF], [INNER, HALF],
                        [INNER, FLOOR - HALF], [0, FLOOR - HALF]])  # fmt: skip
    return trimesh.creation.revolve(profile, sections=64)


def paint(points: np.ndarray) -> np.ndarray:
    """A colour that changes slowly over space."""
    return np.stack([0.5 + 0.4 * np.sin(3.0 * points[:, axis]) for axis in range(3)], axis=1)


def flat_splats(points: np.ndarray, normals: np.ndarray, sigma: float) -> SplatCloud:
    """Discs on a surface, a tenth as thick as wide."""
    count = len(points)
    up = torch.tensor([0.0, 0.0, 1.0]).expand(count, 3)
    n = torch.from_numpy(normals).float()
    w = 1.0 + (up * n).sum(-1, keepdim=True)
    quat = torch.cat([w, torch.linalg.cross(up, n)], dim=-1)  # turns z to the normal
    quat[w[:, 0] < 1e-4] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    return SplatCloud(
        means=torch.from_numpy(points).float(),
        log_scale=torch.tensor([sigma, sigma, 0.1 * sigma]).log().expand(count, 3).contiguous(),
        quat_wxyz=torch.nn.functional.normalize(quat, dim=-1),
        opacity_logit=torch.full((count,), 4.0),
        sh_dc=torch.from_numpy((paint(points) - 0.5) / SH_DC).float(),
        sh_rest=torch.zeros(count, 0, 3),
    )


class Pictured(NamedTuple):
    renderer: GaussianRenderer
    cameras: Any
    renders: list[Render]


SIGMA = 0.022


def splats_of(mesh: trimesh.Trimesh, count: int) -> GaussianRenderer:
    points, face = trimesh.sample.sample_surface(mesh, count, seed=0)
    cloud = flat_splats(np.asarray(points), mesh.face_normals[face], SIGMA)
    return GaussianRenderer(GaussianConfig(count=1, max_count=count), CPU, cloud)


@pytest.fixture(scope="module")
def cup_pictures() -> Pictured:
    renderer = splats_of(cup(), 9000)
    cameras = surface.views_around(128, 3.0, 30.0)
    return Pictured(renderer, cameras, surface.pictures(renderer, cameras, CPU))


@pytest.mark.parametrize("resolution", [48, 112])
def test_a_cup_is_closed_hollow_and_where_it_is(cup_pictures: Pictured, resolution: int) -> None:
    """One lattice that is looked at everywhere, one only near the surface."""
    _, cameras, renders = cup_pictures
    made = surface.fuse(renders, cameras, radius=0.8, resolution=resolution)
    mesh = trimesh.Trimesh(made.mesh.vertices, made.mesh.faces)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2  # a cup is a ball with a dent: no holes, no bubbles
    assert made.parts == 1
    error = np.abs(cup_distance(made.mesh.vertices.astype(np.float64)))
    step = 1.6 / (resolution - 1)
    # Depths are means over splats of SIGMA, and outlines as thick as they are.
    assert float(error.mean()) < SIGMA + 0.25 * step
    assert float(error.max()) < 2.5 * (SIGMA + step)
    true_points = np.asarray(trimesh.sample.sample_surface(cup(), 2000, seed=1)[0])
    ours = trimesh.sample.sample_surface(mesh, 40_000, seed=0)[0]
    assert float(cKDTree(ours).query(true_points)[0].max()) < 3.0 * (SIGMA + step)
    solid = math.pi * OUTER**2 * 2 * HALF
    hollow = math.pi * INNER**2 * (2 * HALF - FLOOR)
    assert 0.0 < mesh.volume - (solid - hollow) < 0.45 * hollow  # a lid would fill all of it
    wanted = paint(made.mesh.vertices.astype(np.float64))
    assert float(np.abs(made.mesh.colors - wanted).mean()) < 0.03


def test_outlines_overrule_depths_that_are_too_near() -> None:
    """Depths of a ball whose surface lies 0.05 before its own: no point beside its outline, whose
    distance is known, is inside."""
    cameras = surface.views_around(96, 3.0, 30.0)
    soft = [r._replace(depth=r.depth - 0.05 * r.alpha) for r in sphere_pictures(cameras)]
    views = votes.views_of(soft, cameras)
    way = torch.nn.functional.normalize(torch.randn(500, 3, generator=seeded(0)), dim=-1)
    outside, inside = (votes.signed_distance(way * r, views, 0.1) for r in (0.625, 0.56))
    assert float(outside.min()) > 0.0
    assert float(inside.max()) < 0.0
    # What depths lie before the outline is measured where rays touch it.
    assert votes.outline_level(views, 0.1, 1.0) == pytest.approx(-0.5, abs=0.1)


def test_far_from_the_surface_the_coarse_lattice_says_the_same(cup_pictures: Pictured) -> None:
    """What is left out of the fine lattice changes no sign."""
    _, cameras, renders = cup_pictures
    views = votes.views_of(renders, cameras)
    field = surface._Field(views, 0.08, 0.0, 0.8)
    seen = [surface.seen_points(r, cameras[i : i + 1])[0] for i, r in enumerate(renders)]
    near, whole = field.near(torch.cat(seen), 97), field.everywhere(97)
    assert float((np.sign(near) != np.sign(whole)).mean()) < 1e-4


def test_a_lattice_that_does_not_fit_is_told_before_it_is_made(
    cup_pictures: Pictured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("representations.memory.available_bytes", lambda device: 10**8)
    _, cameras, renders = cup_pictures
    with pytest.raises(ValueError, match=r"256\^3 points needs 0.7 GB.*write resolution=128"):
        surface.fuse(renders, cameras, radius=0.8, resolution=256)
    with pytest.raises(ValueError, match="write resolution=128"):
        surface.sample_density(lambda points: points[:, 0], 256, 1.0)


def test_a_lattice_point_on_the_surface_leaves_no_hole() -> None:
    """An octahedron whose faces run exactly through points of the lattice."""
    axis = torch.linspace(-1, 1, 17)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    vertices, faces = surface.marching_cubes((0.5 - grid.abs().sum(-1)).numpy(), 0.0, 1.0)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    assert float(mesh.area_faces.min()) > 1e-10  # none has shrunk to nothing
    assert mesh.volume == pytest.approx(4 / 3 * 0.5**3, rel=0.02)


def test_a_bubble_inside_is_filled() -> None:
    axis = torch.linspace(-1, 1, 33)
    reach = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).norm(dim=-1)
    shell = (0.2 - (reach - 0.6).abs()).numpy()  # hollow: from 0.4 to 0.8
    vertices, faces = surface.marching_cubes(shell, 0.0, 1.0)
    mesh = trimesh.Trimesh(vertices, faces)
    assert mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.8**3, rel=0.02)


def bumpy() -> Mesh:
    ball = trimesh.creation.icosphere(4, 0.6)
    v = np.asarray(ball.vertices)
    v = v * (1.0 + 0.08 * np.sin(5 * v[:, :1]) * np.cos(4 * v[:, 1:2]))
    return Mesh(v.astype(np.float32), np.asarray(ball.faces), paint(v).astype(np.float32))


def test_fewer_faces_keep_the_shape_closed_and_its_colours() -> None:
    pytest.importorskip("fast_simplification", reason="not installed (extra 'mesh')")
    whole = bumpy()
    made = simplify(whole, 600)
    assert 500 < len(made.faces) <= 600
    thin, full = (trimesh.Trimesh(m.vertices, m.faces) for m in (made, whole))
    assert thin.is_watertight
    clouds = [np.asarray(trimesh.sample.sample_surface(m, 20_000, seed=0)[0]) for m in (thin, full)]
    for one, other in (clouds, clouds[::-1]):  # Hausdorff, both ways
        assert float(cKDTree(one).query(other[:3000])[0].max()) < 0.03
    wanted = paint(made.vertices.astype(np.float64))
    np.testing.assert_allclose(made.colors, wanted, atol=0.08)
    assert simplify(whole, len(whole.faces)) is whole
    # Neither size nor place matters to what is left.
    far = Mesh(whole.vertices * 1e-4 + np.float32(3.0), whole.faces, whole.colors)
    assert len(simplify(far, 600).faces) == len(made.faces)


@pytest.fixture(scope="module")
def flat() -> tuple[Mesh, Mesh]:
    """A mesh, and the same one laid out for a texture."""
    pytest.importorskip("xatlas", reason="xatlas is not installed (extra 'mesh')")
    ball = trimesh.creation.icosphere(3, 0.6)
    v = np.asarray(ball.vertices)
    mesh = Mesh(v.astype(np.float32), np.asarray(ball.faces), paint(v).astype(np.float32))
    return mesh, bake.skinned(mesh, 256)


def test_charts_cover_every_face_and_do_not_overlap(flat: tuple[Mesh, Mesh]) -> None:
    mesh, laid = flat
    assert laid.skin is not None
    np.testing.assert_array_equal(laid.vertices[laid.faces], mesh.vertices[mesh.faces])
    corners = laid.skin.uv[laid.faces]
    assert float(corners.min()) >= 0.0
    assert float(corners.max()) <= 1.0
    # Each face by itself, on a finer lattice: a place that two of them have would be an overlap.
    size = (1024, 1024)
    owners = np.zeros(size[0] * size[1], np.int64)
    for face in range(len(laid.faces)):
        owners[texels_of(laid.skin.uv, laid.faces[face : face + 1], size).place] += 1
    inside = owners > 0
    # Two faces share the texels on their common edge, which are as good as none.
    assert float((owners[inside] > 1).mean()) < 1e-3
    assert 0.3 < float(inside.mean()) < 1.0
    # Normals are smooth across the seams.
    np.testing.assert_allclose(laid.normals_or_smooth(), laid.vertices / 0.6, atol=0.02)


def test_texels_are_the_points_that_weights_say() -> None:
    """A triangle of known corners: the weights give back the centres of its texels, and the number
    of texels is its area."""
    uv = np.array([[0.1, 0.1], [0.9, 0.2], [0.3, 0.95]])
    found = texels_of(uv, np.array([[0, 1, 2]]), (40, 80))
    at = found.weight @ uv * [80, 40] - 0.5
    np.testing.assert_allclose(at[:, 1] * 80 + at[:, 0], found.place, atol=1e-9)
    area = 0.5 * abs(0.8 * 0.85 - 0.1 * 0.2) * 80 * 40
    assert len(found.place) == pytest.approx(area, rel=0.02)
    empty = texels_of(uv * 1e-4, np.array([[0, 1, 2]]), (40, 80))
    assert len(empty.place) == 0


def test_the_empty_space_takes_the_nearest_colour() -> None:
    picture, known = np.zeros((9, 9, 1)), np.zeros((9, 9), bool)
    picture[4, 1], picture[4, 7] = 0.2, 0.8
    known[4, 1] = known[4, 7] = True
    out = filled(picture, known)[..., 0]
    assert set(np.unique(out)) == {0.2, 0.8}
    assert np.all(out[:, :4] == 0.2)
    assert np.all(out[:, 5:] == 0.8)
    assert filled(picture, np.zeros((9, 9), bool)) is picture


def test_a_known_pattern_on_splats_is_baked_and_read_back(flat: tuple[Mesh, Mesh]) -> None:
    """Colours by position on a ball of splats; the mesh is the ball itself."""
    mesh, laid = flat
    shape = splats_of(trimesh.Trimesh(mesh.vertices, mesh.faces), 9000)
    cameras = bake.views_for_texture(128, 3.0, 30.0)
    baked = bake.bake(laid, bake.one_by_one(shape, cameras, CPU), cameras)
    assert baked.unseen == 0
    assert baked.mesh.skin is not None
    texels = texels_of(laid.skin.uv, laid.faces, (256, 256))  # type: ignore[union-attr]
    wanted = paint(texels.at(laid.vertices.astype(np.float64), laid.faces))
    shown = baked.mesh.skin.texture.reshape(-1, 3)[texels.place]
    # A splat of SIGMA mixes colours that change by up to 1.2 a unit.
    assert float(np.abs(shown - wanted).mean()) < 0.02
    assert float(np.abs(shown - wanted).max()) < 0.12


def test_what_no_picture_shows_is_filled(flat: tuple[Mesh, Mesh]) -> None:
    """Pictures from above alone: the lower half takes the colour of its nearest neighbours, or of a
    field that is asked."""
    mesh, laid = flat
    shape = splats_of(trimesh.Trimesh(mesh.vertices, mesh.faces), 4000)
    whole = bake.views_for_texture(64, 3.0, 30.0)
    above = whole[len(whole) - 2 : len(whole) - 1]
    baked = bake.bake(laid, bake.one_by_one(shape, above, CPU), above)
    assert 0.4 < baked.unseen / baked.texels < 0.75
    assert baked.mesh.skin is not None
    assert float(baked.mesh.skin.texture.min()) > 0.02  # nothing is black

    def blue(points: torch.Tensor) -> torch.Tensor:
        assert float(points[:, 2].max()) < 0.45  # seen from the side at the least
        return torch.tensor([0.0, 0.0, 1.0]).expand(len(points), 3)

    asked = bake.bake(laid, bake.one_by_one(shape, above, CPU), above, blue)
    texels = texels_of(laid.skin.uv, laid.faces, (256, 256))  # type: ignore[union-attr]
    below = texels.at(laid.vertices.astype(np.float64), laid.faces)[:, 2] < -0.1
    shown = asked.mesh.skin.texture.reshape(-1, 3)[texels.place[below]]  # type: ignore[union-attr]
    np.testing.assert_array_equal(shown, np.broadcast_to([0.0, 0.0, 1.0], shown.shape))


def test_what_stands_before_a_point_does_not_colour_it() -> None:
    """A red ball above a green floor, seen from above: what the ball hides is not red."""
    ball = trimesh.creation.icosphere(3, 0.3).apply_translation([0, 0, 0.6])
    floor = trimesh.creation.box([2.0, 2.0, 0.1])
    both = trimesh.util.concatenate([floor, ball])
    caster = Caster(both.vertices, both.faces)
    one = torch.ones(1)
    camera = orbit(0 * one, 89 * one, 3 * one, 30 * one, (96, 96))
    origins, directions = (x.reshape(-1, 3).numpy() for x in rays(camera))
    hits = caster.first(origins, directions)
    on_ball = hits.face >= len(floor.faces)
    colour = np.where(on_ball[:, None], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    forward = camera.world_to_cam[0, 2, :3].numpy()
    depth = hits.distance * (directions @ forward)
    assert (hits.face >= 0).all()

    def plane(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.reshape(1, 96, 96, -1)).permute(0, 3, 1, 2).float()

    render = Render(plane(colour), plane(np.ones(96 * 96)), plane(depth), plane(colour))
    axis = np.linspace(-0.6, 0.6, 41)
    where = np.stack([*(g.reshape(-1) for g in np.meshgrid(axis, axis)), np.full(41**2, 0.05)], 1)
    points = Points(where, np.broadcast_to([0.0, 0.0, 1.0], where.shape))
    found = painted(points, caster, 2.0, [render], camera)
    reach = np.linalg.norm(where[:, :2], axis=1)
    assert not found.seen[reach < 0.25].any()
    assert found.seen[reach > 0.5].all()
    clear = np.abs(reach - 0.38) > 0.08  # a pixel on the edge of the ball is half of each
    assert float(found.colours[clear & found.seen, 0].max()) < 0.2


def test_height_and_pivot() -> None:
    mesh = Mesh(
        np.array([[1, 2, 3], [2, 2, 3], [1, 4, 7]], np.float32), np.array([[0, 1, 2]]),
        np.zeros((3, 3), np.float32),
    )  # fmt: skip
    ground = placed(mesh, 0.1, "ground").vertices
    np.testing.assert_allclose(ground.min(0), [-0.0125, -0.025, 0.0], atol=1e-7)
    np.testing.assert_allclose(ground.max(0), [0.0125, 0.025, 0.1], atol=1e-7)
    centre = placed(mesh, None, "centre").vertices
    np.testing.assert_allclose(centre.min(0), -centre.max(0))
    np.testing.assert_allclose(np.ptp(centre, axis=0), np.ptp(mesh.vertices, axis=0))
    np.testing.assert_array_equal(placed(mesh).vertices, mesh.vertices)
    level = Mesh(mesh.vertices * [1, 1, 0], mesh.faces, mesh.colors)
    with pytest.raises(MeshError, match="flat"):
        placed(level, 0.1)


def test_a_ply_holds_no_texture_and_an_obj_has_two_neighbours(
    flat: tuple[Mesh, Mesh], tmp_path: Path
) -> None:
    laid = flat[1]
    with pytest.raises(MeshError, match="write glb or obj"):
        write_mesh(tmp_path / "a.ply", laid, "ply")
    assert list(tmp_path.iterdir()) == []
    write_mesh(tmp_path / "a.obj", laid, "obj", "a red\nmug")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mtl", "a.obj", "a.png"]
    material, picture = companions(tmp_path / "a.obj")
    assert f"map_Kd {picture.name}" in material.read_text()
    text = (tmp_path / "a.obj").read_text()
    assert "\nmtllib a.mtl\no a red mug\n" in text
    assert isinstance(laid.skin, Skin)


@pytest.mark.parametrize(("name", "what"), [("xatlas", "texture"), ("fast_simplification", "face")])
def test_without_the_package_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # an import then fails
    mesh = bumpy()
    with pytest.raises(ValueError, match=rf"{what}.*-m pip install {name.replace('_', '-')}"):
        unwrap(mesh.vertices, mesh.faces, 64) if name == "xatlas" else simplify(mesh, 100)
