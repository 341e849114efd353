# SPDX-License-Identifier: Apache-2.0
"""The textured mesh keeps the contract of every representation, and its pictures and gradients are
those of a formula or of finite differences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from representations.atlas import texels_of
from representations.cameras import orbit, rays
from representations.export.mesh import Mesh, Skin, write_mesh
from representations.ops.meshes import Caster
from representations.textured import (
    MeshInit,
    SkinnedSurface,
    TexturedConfig,
    TexturedRenderer,
    placeholder,
    read_surface,
)
from representations.textured.texture import look_up, pyramid

from .contract import RendererContract
from .helpers import cameras_around, seeded, turns_about_z

SIZE = 32


def ball(radius: float = 0.6, rows: int = 24, columns: int = 48) -> SkinnedSurface:
    """Latitudes and longitudes, laid out as a map of the world: u is the azimuth, v the polar
    angle."""
    polar = np.linspace(0.0, np.pi, rows + 1)[:, None].repeat(columns + 1, 1)
    turn = np.linspace(0.0, 2 * np.pi, columns + 1)[None].repeat(rows + 1, 0)
    where = np.stack(
        [np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], -1
    )
    where = where.round(9) + 0.0  # both sides of the seam in one place, to the bit
    uv = np.stack([turn / (2 * np.pi), polar / np.pi], -1)
    corner = np.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    a, b, c, d = corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    texture = np.random.default_rng(1).random((SIZE, SIZE, 3)).astype(np.float32)
    vertices = (radius * where).reshape(-1, 3).astype(np.float32)
    return SkinnedSurface(vertices, faces, uv.reshape(-1, 2).astype(np.float32), texture)


class TestContract(RendererContract):
    def make(self) -> TexturedRenderer:
        return TexturedRenderer(TexturedConfig(), "cpu", ball(), steps=20)

    def parameters(self, renderer: Any) -> list[Tensor]:
        return [renderer.texture, *renderer.environment.parameters()]

    def motions(self) -> list[tuple[Tensor, Tensor]]:
        return turns_about_z()

    def prepare_to_move(self, renderer: Any) -> None:
        """Random texels look different from every side already."""

    def move(self, renderer: Any, rotation: Tensor, shift: Tensor) -> None:
        surface = renderer.surface
        moved = torch.from_numpy(surface.vertices) @ rotation.T + shift
        texture = renderer.texture.detach().numpy().copy()
        renderer._take(surface._replace(vertices=moved.numpy(), texture=texture))

    def test_gradient_agrees_with_finite_differences(self) -> None:
        """A picture is linear in the texels, so that differences are exact but for rounding."""
        renderer, cameras = self.make(), cameras_around(2, (16, 16))
        weight = torch.rand(2, 3, 16, 16, generator=seeded(2))
        with torch.no_grad():
            renderer.texture.mul_(0.5).add_(0.25)  # away from where a picture is cut

        def loss() -> Tensor:
            return (
                renderer.render(cameras, torch.full((2, 3), 0.4))[0].rgb.double() * weight
            ).sum()

        loss().backward()
        gradient = renderer.texture.grad
        assert gradient is not None
        for seed in range(3):
            direction = torch.randn(gradient.shape, generator=seeded(seed))
            step = 0.05 / float(direction.abs().max())
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    renderer.texture.add_(direction, alpha=sign * step)
                    ends.append(float(loss()))
                    renderer.texture.add_(direction, alpha=-sign * step)
            slope = (ends[0] - ends[1]) / (2 * step)
            assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-3, abs=1e-3)

    def test_a_state_of_another_mesh_is_taken_whole(self) -> None:
        """What a run is resumed with: a placeholder, for its file may be gone."""
        trained = self.make()
        self.train(trained, 3)
        empty = TexturedRenderer(TexturedConfig(), "cpu", placeholder(), steps=20)
        empty.load_state_dict(trained.state_dict())
        assert torch.equal(self.picture(empty), self.picture(trained))
        broken = trained.state_dict()
        broken["surface"]["faces"] = broken["surface"]["faces"] + 10**6
        with pytest.raises(ValueError, match="faces name other vertices"):
            empty.load_state_dict(broken)


def test_a_picture_of_one_colour_is_that_colour_and_the_outline_a_disc() -> None:
    """Coverage of a ball: the rays within asin(radius / distance) of its centre."""
    plain = ball()._replace(texture=np.full((8, 8, 3), 0.3, np.float32))
    renderer = TexturedRenderer(TexturedConfig(samples=3), "cpu", plain)
    one = torch.ones(1)
    camera = orbit(40 * one, 10 * one, 3 * one, 30 * one, (64, 64))
    with torch.no_grad():
        render, _ = renderer.render(camera, torch.ones(1, 3))
    alpha = render.alpha[0, 0]
    torch.testing.assert_close(render.rgb[0, 0], 0.3 * alpha + (1 - alpha), atol=1e-6, rtol=0)
    focal = 32 / math.tan(math.radians(15))
    radius_px = focal * math.tan(math.asin(0.6 / 3))
    # A mesh of 24 x 48 lies inside its ball: 0.4 % of the radius.
    assert float(alpha.sum()) == pytest.approx(math.pi * radius_px**2, rel=0.015)
    _, direction = rays(camera)
    middle = render.depth[0, 0, 32, 32]
    assert float(middle) == pytest.approx(2.4, abs=0.01)
    towards = -direction[0, 32, 32]
    assert float((render.normal[0, :, 32, 32] * towards).sum()) > 0.99


def test_a_texel_is_where_its_coordinates_say() -> None:
    """Red by u, green by v: a picture gives back the angles of the point of the ball."""
    at = (np.arange(256) + 0.5) / 256
    texture = np.zeros((256, 256, 3), np.float32)
    texture[..., 0], texture[..., 1] = at[None], at[:, None]
    renderer = TexturedRenderer(TexturedConfig(samples=1), "cpu", ball()._replace(texture=texture))
    one = torch.ones(1)
    camera = orbit(100 * one, 20 * one, 3 * one, 20 * one, (48, 48))
    with torch.no_grad():
        render, _ = renderer.render(camera, torch.zeros(1, 3))
    origin, direction = rays(camera)
    b = (origin * direction).sum(-1)
    root = b.square() - origin.square().sum(-1) + 0.36
    solid = (root > 0.05)[0]  # away from the outline, where a small angle is a long way
    point = (origin + direction * (-b - root.clamp(min=0).sqrt())[..., None])[0][solid]
    azimuth = torch.atan2(point[:, 1], point[:, 0]) % (2 * math.pi) / (2 * math.pi)
    polar = torch.acos(point[:, 2] / 0.6) / math.pi
    rgb = render.rgb[0].permute(1, 2, 0)[solid]
    torch.testing.assert_close(rgb[:, 0], azimuth, atol=0.01, rtol=0)
    torch.testing.assert_close(rgb[:, 1], polar, atol=0.01, rtol=0)


def test_a_coarse_look_up_is_a_mean_and_teaches_every_texel_in_it() -> None:
    """A ramp stays the ramp that it is, and the gradient falls off in steps of less than a third:
    no squares."""
    at = (torch.arange(64) + 0.5) / 64
    texture = torch.stack([at.expand(64, 64), at[:, None].expand(64, 64), torch.rand(64, 64)], -1)
    texture.requires_grad_(True)
    levels = pyramid(texture, torch.ones(64, 64))
    where = torch.tensor([[0.45, 0.52]])
    found = look_up(levels, where, torch.tensor([16.0]))  # 4 x 4 texels: level 2
    torch.testing.assert_close(found[0, :2], where[0], atol=1e-5, rtol=0)
    found[0, 2].backward()
    assert texture.grad is not None
    taught = texture.grad[..., 2]
    assert float(taught.sum()) == pytest.approx(1.0, abs=1e-5)
    assert int((taught > 0).sum()) > 100
    step = torch.maximum(taught.diff(dim=0).abs().max(), taught.diff(dim=1).abs().max())
    assert float(step) < 0.34 * float(taught.max())


def test_what_is_between_charts_hardly_counts_in_a_coarse_copy() -> None:
    texture, weight = torch.full((8, 8, 3), 0.8), torch.ones(8, 8)
    texture[:, 4:], weight[:, 4:] = 0.0, 1e-3
    found = look_up(pyramid(texture, weight), torch.tensor([[0.5, 0.5]]), torch.tensor([64.0]))
    torch.testing.assert_close(found[0], torch.full((3,), 0.8), atol=1e-3, rtol=0)


def test_the_first_hit_is_that_of_a_search_over_all_triangles() -> None:
    rng = np.random.default_rng(0)
    mesh = trimesh.creation.torus(0.5, 0.2, major_sections=20, minor_sections=12)
    origins = rng.normal(size=(200, 3))
    origins = 2.0 * origins / np.linalg.norm(origins, axis=1, keepdims=True)
    directions = rng.normal(size=(200, 3)) * 0.3 - origins
    hits = Caster(mesh.vertices, mesh.faces).first(origins, directions)
    corners = np.asarray(mesh.vertices)[mesh.faces]
    for ray in range(200):
        best = np.inf
        for a, b, c in corners:
            matrix = np.stack([b - a, c - a, -directions[ray]], axis=1)
            if abs(np.linalg.det(matrix)) < 1e-12:
                continue
            u, v, t = np.linalg.solve(matrix, origins[ray] - a)
            if u >= 0 and v >= 0 and u + v <= 1 and t > 0:
                best = min(best, t)
        assert hits.distance[ray] == pytest.approx(best, rel=1e-5) or np.isinf(best)
        assert np.isinf(best) == (hits.face[ray] < 0)
    met = hits.face >= 0
    at = np.einsum("nk,nkc->nc", hits.weight[met], corners[hits.face[met]])
    expected = origins[met] + hits.distance[met, None] * directions[met]
    np.testing.assert_allclose(at, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_a_mesh_with_its_texture_comes_back_from_a_file(kind: str, tmp_path: Path) -> None:
    """Our file is read by trimesh with the same colour at each point, and by us texel by texel."""
    surface = ball(rows=8, columns=12)
    vertices = surface.vertices * [1.0, 0.8, 1.2]
    colours = np.zeros(surface.vertices.shape, np.float32)
    skin = Skin(surface.uv.astype(np.float64), surface.texture)
    path = tmp_path / f"ball.{kind}"
    write_mesh(path, Mesh(vertices.astype(np.float32), surface.faces, colours, skin), kind)
    again = read_surface(MeshInit(path=str(path)), 64, print)
    np.testing.assert_allclose(again.texture, surface.texture, atol=0.51 / 255)
    np.testing.assert_array_equal(np.sort(again.faces, axis=None).shape, (surface.faces.size,))
    for name, tolerance in (("vertices", 1e-6), ("uv", 1e-6)):
        ours = getattr(surface, name) if name == "uv" else vertices
        theirs = getattr(again, name)
        np.testing.assert_allclose(theirs[again.faces], ours[surface.faces], atol=tolerance)
    (read,) = trimesh.load_scene(path, process=False).geometry.values()
    image = read.visual.material
    image = getattr(image, "baseColorTexture", None) or image.image
    stored = np.asarray(image.convert("RGB"), np.float64) / 255.0
    at = np.asarray(read.visual.uv)[np.asarray(read.faces)].mean(1)  # middles of the triangles
    row, column = ((1 - at[:, 1]) * SIZE).astype(int), (at[:, 0] * SIZE).astype(int)
    own = surface.uv[surface.faces].mean(1)
    wanted = surface.texture[(own[:, 1] * SIZE).astype(int), (own[:, 0] * SIZE).astype(int)]
    clear = np.abs(own * SIZE - np.round(own * SIZE)).min(1) > 1e-3  # not between two texels
    np.testing.assert_allclose(stored[row, column][clear], wanted[clear], atol=0.51 / 255)


def test_a_mesh_without_a_texture_is_laid_out_in_the_colours_it_has(tmp_path: Path) -> None:
    pytest.importorskip("xatlas", reason="xatlas is not installed (extra 'mesh')")
    box = trimesh.creation.box()
    # A box of six corners a side: its faces have colours of their own, red by x.
    colours = np.zeros((len(box.vertices), 4), np.uint8)
    colours[:, 0], colours[:, 3] = (box.vertices[:, 0] > 0) * 255, 255
    box.visual.vertex_colors = colours
    box.export(tmp_path / "box.ply")
    said: list[str] = []
    found = read_surface(MeshInit(path=str(tmp_path / "box.ply"), up="z"), 128, said.append)
    texels = texels_of(found.uv.astype(np.float64), found.faces, (128, 128))
    points = texels.at(found.vertices.astype(np.float64), found.faces)
    shown = found.texture.reshape(-1, 3)[texels.place]
    np.testing.assert_allclose(shown[:, 0], points[:, 0] + 0.5, atol=0.02)
    assert float(np.abs(shown[:, 1:]).max()) == 0.0


@pytest.mark.parametrize(
    ("write", "told"),
    [(None, "is not a file: give a mesh"), ("", "holds no triangles|cannot be read as a mesh"),
     ("v 0 0 0\n", "holds no triangles|cannot be read as a mesh")],
)  # fmt: skip
def test_what_is_no_mesh_is_told(tmp_path: Path, write: str | None, told: str) -> None:
    path = tmp_path / "a.obj"
    if write is not None:
        path.write_text(write)
    with pytest.raises(ValueError, match=told):
        read_surface(MeshInit(path=str(path)), 64, print)
    with pytest.raises(ValueError, match=r"representation\.init\.path=FILE"):
        read_surface(MeshInit(), 64, print)
