# SPDX-License-Identifier: Apache-2.0
"""A mesh whose shape is trained: the contract of every representation, and outlines whose place and
gradient are those of closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from representations.adam import UniformAdam
from representations.atlas import filled, texels_of
from representations.cameras import orbit, rays
from representations.ops.meshes import Caster, crossings, edges_of
from representations.textured import (
    MeshInit,
    ShapeMoves,
    SkinnedSurface,
    TexturedConfig,
    TexturedRenderer,
    first_surface,
)
from representations.textured.moving import MovingShape, met_at

from .contract import RendererContract
from .helpers import cameras_around, seeded, turns_about_z
from .test_textured import ball

MOVES = ShapeMoves(rate=5e-3)


def moving(surface: SkinnedSurface, samples: int = 2, **shape: float) -> TexturedRenderer:
    config = TexturedConfig(samples=samples, shape=replace(MOVES, **shape))
    return TexturedRenderer(config, "cpu", surface, steps=20)


def plain(surface: SkinnedSurface, value: float = 0.3) -> SkinnedSurface:
    return surface._replace(texture=np.full((8, 8, 3), value, np.float32))


def one_camera(size: int = 48, distance: float = 3.0) -> Any:
    one = torch.ones(1)
    return orbit(40 * one, 10 * one, distance * one, 30 * one, (size, size))


class TestContract(RendererContract):
    def make(self) -> TexturedRenderer:
        return moving(ball())

    def parameters(self, renderer: Any) -> list[Tensor]:
        return [renderer.texture, *renderer.environment.parameters(), renderer.moving.u]

    def motions(self) -> list[tuple[Tensor, Tensor]]:
        return turns_about_z()

    def prepare_to_move(self, renderer: Any) -> None:
        """Random texels look different from every side already."""

    def move(self, renderer: Any, rotation: Tensor, shift: Tensor) -> None:
        """A constant is its own u."""
        with torch.no_grad():
            u = renderer.moving.u
            u.copy_(u @ rotation.T.to(u) + shift.to(u))

    def test_gradient_agrees_with_finite_differences(self) -> None:
        """Of the texture in test_textured, of the shape below."""


def _along(renderer: TexturedRenderer, direction: Tensor, loss: Any, step: float) -> Any:
    """The slope of ``loss`` by gradient and by differences, of corners that move by ``direction``
    (which is smooth enough to be its own u but for the Laplacian)."""
    shape = renderer.moving
    assert shape is not None
    towards = torch.from_numpy(shape._solve.product(direction.numpy()))
    (gradient,) = torch.autograd.grad(loss(), shape.u)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            shape.u.add_(towards, alpha=sign * step)
            ends.append(float(loss()))
            shape.u.add_(towards, alpha=-sign * step)
    return float((gradient * towards).sum()), (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("rows", [24, 160])
def test_the_area_of_a_ball_grows_with_its_radius(rows: int) -> None:
    """d/dR of pi (f tan asin(R / d))^2, with triangles larger and far smaller than a sample."""
    renderer = moving(plain(ball(rows=rows, columns=2 * rows)))
    camera = one_camera()
    alpha = renderer.render(camera, torch.ones(1, 3))[0].alpha.sum()
    assert renderer.moving is not None
    (gradient,) = torch.autograd.grad(alpha, renderer.moving.u)
    outward = renderer.moving.corners().detach() / 0.6
    towards = torch.from_numpy(renderer.moving._solve.product(outward.numpy()))
    focal = 24 / math.tan(math.radians(15))
    tangent = math.tan(math.asin(0.2))
    # A mesh of 24 x 48 lies inside of its ball.
    assert float(alpha.detach()) == pytest.approx(math.pi * (focal * tangent) ** 2, rel=0.012)
    by_radius = 1 / (3 * math.cos(math.asin(0.2)) ** 3)
    slope = 2 * math.pi * focal**2 * tangent * by_radius
    assert float((gradient * towards).sum()) == pytest.approx(slope, rel=0.012)


def square(side: float, centre: tuple[float, float] = (0.0, 0.0)) -> SkinnedSurface:
    """In the plane x = 0, which the camera at azimuth and elevation 0 looks at."""
    y, z = centre
    corners = [(0, y + sy * side / 2, z + sz * side / 2)
               for sy, sz in ((-1, -1), (1, -1), (1, 1), (-1, 1))]  # fmt: skip
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    texture = np.full((8, 8, 3), 0.3, np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    return SkinnedSurface(np.array(corners, np.float32), faces, uv, texture)


@pytest.mark.parametrize("shift", [0.0, 0.003, 0.0123, 0.0271])
@pytest.mark.parametrize("samples", [1, 2])
def test_a_square_covers_its_area_wherever_it_is(shift: float, samples: int) -> None:
    """To a part of a sample that no number of rays would give, and its edges know it."""
    zero, one = torch.zeros(1), torch.ones(1)
    camera = orbit(zero, zero, 3 * one, 30 * one, (32, 32))
    renderer = moving(square(0.7, (shift, 0.4 * shift)), samples, smooth=0.0)
    alpha = renderer.render(camera, torch.ones(1, 3))[0].alpha.sum()
    scale = 16 / math.tan(math.radians(15)) / 3  # pixels of a world unit
    corner_share = 1 / samples  # a corner is the one place where rows and columns disagree
    assert float(alpha.detach()) == pytest.approx((0.7 * scale) ** 2, abs=2 * corner_share)
    assert renderer.moving is not None
    (gradient,) = torch.autograd.grad(alpha, renderer.moving.u)
    grow = torch.tensor([[0, -0.5, -0.5], [0, 0.5, -0.5], [0, 0.5, 0.5], [0, -0.5, 0.5]])
    slope = 2 * 0.7 * scale**2
    order = renderer.moving.weld
    placed = torch.zeros_like(gradient).index_copy(0, order, grow.to(gradient))
    assert float((gradient * placed).sum()) == pytest.approx(slope, rel=0.06)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_smooth_move_changes_a_picture_as_its_gradient_says(seed: int) -> None:
    """Finite differences of a weighted picture of a ball in a pattern: outline, texture and
    shading-free inside together."""
    v, u = np.meshgrid((np.arange(64) + 0.5) / 64 * np.pi, (np.arange(64) + 0.5) / 32 * np.pi,
                       indexing="ij")  # fmt: skip
    place = np.stack([np.sin(v) * np.cos(u), np.sin(v) * np.sin(u), np.cos(v)], -1)
    smooth = (0.5 + 0.3 * np.sin(3.0 * place + [0.0, 1.0, 2.0])).astype(np.float32)  # no seam
    renderer = moving(ball()._replace(texture=smooth), samples=8)
    cameras = cameras_around(2, (24, 24))
    weight = torch.nn.functional.interpolate(
        torch.rand(2, 3, 4, 4, generator=seeded(seed)), size=(24, 24), mode="bicubic"
    ).double()
    assert renderer.moving is not None
    at = renderer.moving.corners().detach()
    turned = torch.randn(3, 3, generator=seeded(10 + seed)).double()
    direction = torch.sin(at @ turned * 3.0)

    def loss() -> Tensor:
        return (renderer.render(cameras, torch.full((2, 3), 0.9))[0].rgb.double() * weight).sum()

    expected, found = _along(renderer, direction, loss, 5e-3)
    # Where rows give way to columns the picture jumps a little: differences have that, too.
    assert found == pytest.approx(expected, rel=0.05, abs=3.0)


def test_an_outline_that_is_hidden_moves_nothing() -> None:
    """A small ball behind a large one; without the large one it counts."""
    small, large = ball(0.2, 12, 24), ball(0.6)
    camera = one_camera()
    away = -camera.positions[0] / camera.positions[0].norm() * 1.2
    behind = small._replace(vertices=small.vertices + away.numpy().astype(np.float32))
    both = SkinnedSurface(
        np.concatenate([large.vertices, behind.vertices]),
        np.concatenate([large.faces, behind.faces + len(large.vertices)]),
        np.concatenate([large.uv, behind.uv]), large.texture,
    )  # fmt: skip

    def pull(surface: SkinnedSurface) -> Tensor:
        renderer = moving(surface, smooth=0.0)
        assert renderer.moving is not None
        rgb = renderer.render(camera, torch.ones(1, 3))[0].rgb
        weight = torch.rand(rgb.shape, generator=seeded(5))
        (gradient,) = torch.autograd.grad((rgb * weight).sum(), renderer.moving.u)
        return gradient[renderer.moving.weld]

    hidden = pull(both)[len(large.vertices) :]
    assert float(hidden.abs().max()) == 0.0
    assert float(pull(behind).norm()) > 1.0
    assert torch.allclose(pull(both)[: len(large.vertices)], pull(large))


def test_a_ball_before_another_has_an_outline_on_it() -> None:
    """The colour beyond the edge is the farther ball's: moving the near ball sideways changes the
    picture as differences say."""
    near, far = ball(0.25, 16, 32), ball(0.6)
    camera = one_camera()
    towards = camera.positions[0] / camera.positions[0].norm()
    side = torch.linalg.cross(towards, torch.tensor([0.0, 0.0, 1.0]))
    moved = near.vertices + (0.9 * towards + 0.1 * side).numpy().astype(np.float32)
    grey = np.full((8, 8, 3), 0.2, np.float32)
    grey[:, 4:] = 0.9
    uv = np.concatenate([far.uv * [0.25, 1.0], near.uv * [0.25, 1.0] + [0.75, 0.0]])
    both = SkinnedSurface(
        np.concatenate([far.vertices, moved]),
        np.concatenate([far.faces, near.faces + len(far.vertices)]),
        uv.astype(np.float32), grey,
    )  # fmt: skip
    renderer = moving(both, samples=4, smooth=0.0)
    assert renderer.moving is not None
    mask = torch.zeros_like(renderer.moving.u.detach())
    mine = renderer.moving.weld[len(far.vertices) :].unique()
    mask[mine] = side.to(mask)
    weight = torch.linspace(0, 1, 48).expand(48, 48).double()

    def loss() -> Tensor:
        return (renderer.render(camera, torch.ones(1, 3))[0].rgb[0].double() * weight).sum()

    expected, found = _along(renderer, mask, loss, 4e-3)
    assert abs(found) > 1.0
    assert found == pytest.approx(expected, rel=0.06)


def test_what_is_thinner_than_a_sample_blends_nothing_of_what_is_behind_it() -> None:
    """A sliver between two columns of rays, before a square in a pattern."""
    zero, one = torch.zeros(1), torch.ones(1)
    camera = orbit(zero, zero, 3 * one, 30 * one, (32, 32))
    sample = 2 * 2.5 * math.tan(math.radians(15)) / 32  # at the sliver's distance
    back = square(0.7)._replace(texture=ball().texture)
    # Rays pass at odd halves of a sample from the middle.
    thin = np.array([[0.5, y * sample, z] for y, z in ((-0.2, -0.2), (0.2, -0.2), (0.0, 0.2))])
    both = SkinnedSurface(
        np.concatenate([back.vertices, thin.astype(np.float32)]),
        np.concatenate([back.faces, [[4, 5, 6]]]),
        np.concatenate([back.uv, np.full((3, 2), 0.5, np.float32)]), back.texture,
    )  # fmt: skip
    with torch.no_grad():
        alone, _ = moving(back, 1).render(camera, torch.ones(1, 3))
        render, _ = moving(both, 1).render(camera, torch.ones(1, 3))
    found = crossings(
        camera, torch.from_numpy(both.vertices).double(), edges_of(both.faces[-1:]),
        Caster(both.vertices, both.faces),
    )  # fmt: skip
    assert len(found.near) > 10  # it is there
    torch.testing.assert_close(render.rgb, alone.rgb, atol=1e-6, rtol=0)


def test_a_crossing_lies_on_its_edge_in_the_world() -> None:
    """An edge that runs away from the camera: its depth where it crosses a line of samples is that
    of the line in space, which is not half of the way for half of the pixels."""
    corners = np.array([[1.0, -0.5, -0.3], [-3.0, 0.9, 1.2], [1.0, 0.4, -0.3]])
    faces = np.array([[0, 1, 2]])
    zero, one = torch.zeros(1), torch.ones(1)
    camera = orbit(zero, zero, 3 * one, 40 * one, (64, 64))
    found = crossings(camera, torch.from_numpy(corners), edges_of(faces), Caster(corners, faces))
    assert len(found.near) > 40
    low = torch.minimum(found.near, found.far)
    across = (found.near - found.far).abs() == 1  # a row; else a column
    place = torch.where(found.near < found.far, found.place, 1 - found.place)
    x = low % 64 + 0.5 + torch.where(across, place, 0.0)
    y = low // 64 + 0.5 + torch.where(across, 0.0, place)
    lens = camera.intrinsics[0].double()
    seen = torch.stack([(x - lens[0, 2]) / lens[0, 0], (y - lens[1, 2]) / lens[1, 1],
                        torch.ones_like(x)], 1) * found.depth[:, None]  # fmt: skip
    pose = camera.world_to_cam[0].double()
    points = (seen - pose[:3, 3]) @ pose[:3, :3]
    nearest = torch.full((len(points),), math.inf, dtype=torch.float64)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        start, along = torch.from_numpy(corners[a]), torch.from_numpy(corners[b] - corners[a])
        unit = along / along.norm()
        away = points.detach() - start
        nearest = torch.minimum(nearest, (away - (away @ unit)[:, None] * unit).norm(dim=1))
    assert float(nearest.max()) < 1e-5


def test_a_heap_of_triangles_stays_a_picture() -> None:
    """Three hundred in no order, thin ones among them: many outlines beside a sample."""
    rng = np.random.default_rng(0)
    centre = rng.uniform(-0.5, 0.5, (300, 1, 3))
    vertices = (centre + rng.normal(0, 0.08, (300, 3, 3))).reshape(-1, 3).astype(np.float32)
    uv = rng.random((900, 2)).astype(np.float32)
    heap = SkinnedSurface(vertices, np.arange(900).reshape(-1, 3), uv, ball().texture)
    renderer = moving(heap, 1)
    render, _ = renderer.render(cameras_around(3, (24, 24)), torch.zeros(3, 3))
    for value in (render.alpha, render.rgb):
        assert 0.0 <= float(value.detach().min()) <= float(value.detach().max()) <= 1.0
    assert torch.isfinite(render.depth).all()
    render.rgb.sum().backward()
    assert renderer.moving is not None
    assert renderer.moving.u.grad is not None
    assert torch.isfinite(renderer.moving.u.grad).all()


def test_normals_as_colours_of_a_ball_and_their_gradient() -> None:
    """Red grows to the right, green upwards, and the middle looks at the viewer; the texture is not
    trained, and the shape is."""
    config = TexturedConfig(shape=MOVES, picture="normals", samples=4)
    renderer = TexturedRenderer(config, "cpu", ball(rows=64, columns=128), steps=20)
    render, _ = renderer.render(one_camera(65), torch.full((1, 3), 0.5))
    rgb = render.rgb[0].detach()
    assert rgb[:, 32, 32].tolist() == pytest.approx([0.5, 0.5, 1.0], abs=0.02)
    # At a height of sin(a) of the radius the normal leans by a; rays are not quite parallel.
    focal, at = 32.5 / math.tan(math.radians(15)), 32 + 12
    lean = math.atan((at - 32) / focal)
    # The ball is met at an angle b with sin(b + lean) = 3 / 0.6 sin(lean).
    turned = math.asin(3 / 0.6 * math.sin(lean)) - lean
    expected = [0.5 + 0.5 * math.sin(turned), 0.5, 0.5 + 0.5 * math.cos(turned)]
    assert rgb[:, 32, at].tolist() == pytest.approx(expected, abs=0.02)
    expected = [0.5, 0.5 - 0.5 * math.sin(turned), 0.5 + 0.5 * math.cos(turned)]
    assert rgb[:, at, 32].tolist() == pytest.approx(expected, abs=0.02)
    weight = torch.rand(render.rgb.shape, generator=seeded(0))
    (render.rgb * weight).sum().backward()
    assert renderer.texture.grad is None
    assert renderer.moving is not None
    assert renderer.moving.u.grad is not None
    assert float(renderer.moving.u.grad.norm()) > 1.0
    with pytest.raises(ValueError, match=r"write representation\.shape\.rate=0\.01"):
        TexturedConfig(picture="normals")


def test_rates_fall_over_the_run() -> None:
    renderer = moving(ball(), rate=0.02, rate_final=0.25)
    rates = []
    for step in range(20):
        rates.append(renderer.optimizers[1].param_groups[0]["lr"])
        renderer.refine(step)
    assert rates[0] == 0.02
    assert rates[-1] == pytest.approx(0.005)
    np.testing.assert_allclose(np.diff(np.log(rates)), np.log(0.25) / 19)


def test_edges_are_those_of_a_search_by_hand() -> None:
    """Two triangles that share an edge, a third at one of theirs, one that is none."""
    faces = np.array([[0, 1, 2], [2, 1, 3], [3, 4, 1], [5, 5, 1]])
    edges = edges_of(faces)
    found = {
        (*sorted(ends), *sorted(thirds))
        for ends, thirds in zip(edges.ends.tolist(), edges.opposite.tolist(), strict=True)
    }
    assert found == {
        (0, 1, 2, 2), (0, 2, 1, 1), (1, 2, 0, 3), (2, 3, 1, 1), (1, 3, 2, 4), (3, 4, 1, 1),
        (1, 4, 3, 3),
    }  # fmt: skip


def test_a_crossing_is_between_its_samples() -> None:
    """Every place lies in [0, 1], near samples hit the ball and far ones do not, and the outline is
    as long as a circle: crossings are its extent in rows and columns."""
    surface = ball(rows=64, columns=128)
    shape = MovingShape(surface.vertices, surface.faces, 1.0)
    caster = Caster(surface.vertices, surface.faces)
    camera = one_camera(64)
    found = crossings(camera, shape.corners(), shape.edges, caster)
    assert float(found.place.detach().min()) >= 0.0
    assert float(found.place.detach().max()) <= 1.0
    render, _ = TexturedRenderer(TexturedConfig(samples=1), "cpu", surface).render(
        camera, torch.ones(1, 3)
    )
    solid = render.alpha.flatten() > 0.5
    assert bool(solid[found.near].all())
    assert not bool(solid[found.far].any())
    radius = 32 / math.tan(math.radians(15)) * math.tan(math.asin(0.2))
    # 2 sqrt(2) r rows and as many columns, each crossed twice where the circle is steep to it.
    assert len(found.near) == pytest.approx(4 * math.sqrt(2) * radius, abs=6)


def test_u_is_the_mesh_and_its_gradient_that_of_a_dense_solve() -> None:
    surface = ball(rows=6, columns=8)
    shape = MovingShape(surface.vertices, surface.faces, 7.0)
    corners = shape.corners()
    torch.testing.assert_close(corners[shape.weld].float(), torch.from_numpy(surface.vertices))
    count = len(corners)
    laplacian = np.zeros((count, count))
    for face in shape.faces.tolist():
        for a, b in ((0, 1), (1, 2), (2, 0)):
            if face[a] != face[b]:
                laplacian[face[a], face[b]] = laplacian[face[b], face[a]] = -1.0
    np.fill_diagonal(laplacian, -laplacian.sum(1))
    pull = torch.randn(count, 3, generator=seeded(0)).double()
    (corners * pull).sum().backward()
    assert shape.u.grad is not None
    dense = np.linalg.solve(np.eye(count) + 7.0 * laplacian, pull.numpy())
    np.testing.assert_allclose(shape.u.grad.numpy(), dense, atol=1e-10)


def test_where_a_ray_meets_a_triangle_has_the_gradient_of_differences() -> None:
    g = seeded(3)
    corners = torch.randn(6, 3, 3, generator=g).double().requires_grad_()
    inside = torch.rand(6, 3, generator=g).double() + 0.2
    inside = inside / inside.sum(1, keepdim=True)
    origins = torch.randn(6, 3, generator=g).double() + 4.0
    directions = (inside[..., None] * corners.detach()).sum(1) - origins
    given = torch.zeros(6, 3)
    torch.testing.assert_close(met_at(corners, origins, directions, given).detach(), inside)
    assert torch.autograd.gradcheck(lambda c: met_at(c, origins, directions, given), corners)


def test_uniform_adam_is_its_formula_and_keeps_a_direction() -> None:
    parameter = torch.nn.Parameter(torch.randn(4, 3, generator=seeded(0)).double())
    optimizer = UniformAdam([parameter], lr=0.1, betas=(0.8, 0.95), eps=1e-9)
    m, v, expected = np.zeros((4, 3)), 0.0, parameter.detach().numpy().copy()
    for count in range(1, 6):
        gradient = torch.randn(4, 3, generator=seeded(count)).double()
        parameter.grad = gradient.clone()
        before = parameter.detach().clone()
        optimizer.step()
        m = 0.8 * m + 0.2 * gradient.numpy()
        v = 0.95 * v + 0.05 * np.abs(gradient.numpy()).max() ** 2
        expected = expected - 0.1 * (m / (1 - 0.8**count)) / (
            math.sqrt(v / (1 - 0.95**count)) + 1e-9
        )
        np.testing.assert_allclose(parameter.detach().numpy(), expected, atol=1e-12)
        if count == 1:
            step = (parameter.detach() - before).flatten()
            cosine = torch.nn.functional.cosine_similarity(step, -gradient.flatten(), dim=0)
            assert float(cosine) == pytest.approx(1.0)


def test_normal_consistency_of_a_cube_and_of_a_plane() -> None:
    """Twelve edges of a right angle, six diagonals that are flat."""
    import trimesh

    cube = trimesh.creation.box((1, 1, 1))
    shape = MovingShape(np.asarray(cube.vertices), np.asarray(cube.faces), 1.0)
    assert float(shape.normal_consistency(shape.corners()).detach()) == pytest.approx(12 / 18)
    flat = square(1.0)
    plane = MovingShape(flat.vertices, flat.faces, 1.0)
    assert float(plane.normal_consistency(plane.corners()).detach()) == pytest.approx(
        0.0, abs=1e-12
    )


def test_a_ball_becomes_what_its_pictures_show() -> None:
    """Pictures of an egg that is longer than the ball and shifted; the ball takes its shape from
    outlines and pattern, and seams stay closed."""
    longer = ball().vertices * [0.8, 0.8, 1.25] + [0.05, 0.0, 0.05]
    egg = ball()._replace(vertices=longer.astype(np.float32))
    truth = TexturedRenderer(TexturedConfig(samples=4), "cpu", egg)
    cameras = cameras_around(4, (32, 32))
    with torch.no_grad():
        wanted = truth.render(cameras, torch.ones(4, 3))[0]
    config = TexturedConfig(shape=ShapeMoves(rate=2e-2, smooth=19.0))
    renderer = TexturedRenderer(config, "cpu", ball(), steps=100)

    def error() -> float:
        """Mean distance from the egg, by how far its equation is missed."""
        at = (renderer.mesh().vertices.numpy() - [0.05, 0, 0.05]) / [0.48, 0.48, 0.75]
        return float(np.abs(np.linalg.norm(at, axis=1) - 1).mean())

    before = error()
    for step in range(100):
        render, trace = renderer.render(cameras, torch.ones(4, 3))
        loss = (render.rgb - wanted.rgb).square().mean()
        loss = loss + (render.alpha - wanted.alpha).square().mean()
        loss.backward()
        for optimizer in renderer.optimizers:
            optimizer.step()
        renderer.refine(step, trace)
        for optimizer in renderer.optimizers:
            optimizer.zero_grad(set_to_none=True)
    assert error() < 0.15 * before
    vertices = renderer.mesh().vertices.numpy()
    welded = renderer.moving.weld.numpy()  # type: ignore[union-attr]
    for place in np.unique(welded)[:40]:
        assert np.ptp(vertices[welded == place], axis=0).max() == 0.0


def test_a_shape_that_stays_and_one_that_moves_do_not_take_each_other_s_state() -> None:
    fixed = TexturedRenderer(TexturedConfig(), "cpu", ball(), steps=20)
    free = moving(ball())
    with pytest.raises(ValueError, match=r"representation\.shape\.rate=0\.002"):
        fixed.load_state_dict(free.state_dict())
    with pytest.raises(ValueError, match=r"representation\.shape\.rate=0"):
        free.load_state_dict(fixed.state_dict())
    state = free.state_dict()
    state["shape"]["weld"] = state["shape"]["weld"] + 1
    with pytest.raises(ValueError, match="number places from 0"):
        free.load_state_dict(state)


@pytest.mark.parametrize("detail", [1, 5, 24])
def test_the_ball_that_a_run_begins_with_is_closed_and_even(detail: int) -> None:
    """One closed surface of genus 0 seen from outside, triangles of like size, and charts that
    keep apart on the picture."""
    made = first_surface(
        TexturedConfig(shape=MOVES, size=96, init=MeshInit(radius=0.5, detail=detail)), print
    )
    assert len(made.faces) == 12 * detail**2
    shape = MovingShape(made.vertices, made.faces, 1.0)
    edges = shape.edges
    assert bool((edges.opposite[:, 0] != edges.opposite[:, 1]).all())  # no rim
    assert len(shape.u) - len(edges.ends) + len(made.faces) == 2  # Euler
    np.testing.assert_allclose(np.linalg.norm(made.vertices, axis=1), 0.5, atol=1e-6)
    corners = made.vertices[made.faces].astype(np.float64)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((across * corners.mean(1)).sum(1) > 0).all()
    area = np.linalg.norm(across, axis=1)
    assert area.max() < 2.0 * area.min()
    texels = texels_of(made.uv.astype(np.float64), made.faces, (96, 96))
    covered = texels.covered((96, 96))
    for side in range(6):
        row, column = divmod(side, 3)
        cell = covered[48 * row : 48 * row + 48, 32 * column : 32 * column + 32]
        assert cell[2:-2, 2:-2].all()
        assert not cell[0].any()
        assert not cell[:, 0].any()


def test_a_texture_alone_needs_a_file_and_is_told_of_the_ball() -> None:
    with pytest.raises(ValueError, match=r"representation\.shape\.rate=0\.04"):
        first_surface(TexturedConfig(), print)


def test_the_ball_has_its_picture_the_right_way_round() -> None:
    """What is painted at a place of the picture is seen where its triangle is: the colour of each
    texel of the picture is the place on the ball that it belongs to."""
    config = TexturedConfig(shape=MOVES, size=192, init=MeshInit(detail=8))
    made = first_surface(config, print)
    texels = texels_of(made.uv.astype(np.float64), made.faces, (192, 192))
    place = (made.vertices[made.faces[texels.face]] * texels.weight[..., None]).sum(1)
    painted = texels.picture(0.5 + place, (192, 192)).astype(np.float32)
    renderer = moving(made._replace(texture=filled(painted, texels.covered((192, 192)))))
    cameras = cameras_around(3, (32, 32))
    with torch.no_grad():
        render, _ = renderer.render(cameras, torch.ones(3, 3))
    origins, directions = rays(cameras)
    z_per_length = (cameras.world_to_cam[:, None, None, 2, :3] * directions).sum(-1)
    at = origins + directions * (render.depth[:, 0] / z_per_length)[..., None]
    solid = render.alpha[:, 0] > 0.999
    error = (render.rgb.permute(0, 2, 3, 1) - (0.5 + at)).abs()[solid]
    assert float(error.mean()) < 4e-3
    assert float((error > 0.03).float().mean()) < 0.05  # pixels at the outline are means of more
