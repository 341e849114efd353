# SPDX-License-Identifier: Apache-2.0
"""Gradients of neighbouring views that agree (GSD): the warp, what is hidden, the loss, and where
neighbours come from, each against a restatement in float64 or an answer in closed form."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from representations.cameras import look_at, pinhole
from representations.gaussians import GaussianConfig, GaussianRenderer
from representations.interface import Cameras
from sdi_gs import build
from sdi_gs.config import load
from sdi_gs.errors import UserError
from sdi_gs.guidance.consistency import (
    GradientConsistency,
    GradientConsistencyConfig,
    Surface,
    Warp,
    disagreement,
    dissimilarity,
    look_up,
    neighbours,
    pixel_points,
)
from sdi_gs.guidance.distillation import GuidanceConfig, ScoreDistillation
from sdi_gs.guidance.noise import RandomNoise
from sdi_gs.guidance.surface_noise import SurfaceNoise
from sdi_gs.guidance.viewpoints import Seen, Viewpoints
from sdi_gs.methods import check, check_neighbours
from sdi_gs.trainer import train_step
from sdi_gs.views import ViewPolicy

from .doubles import randn, rng
from .test_methods import SHAPE, words
from .test_surface_noise import CELL, around, correlation, kappa

SIDE, FOV = 24, math.radians(40.0)


def cameras(*eyes: tuple[float, float, float], side: int = SIDE, turn: float = 0.0) -> Cameras:
    """float64 cameras at ``eyes`` that look along +x, turned to the left by ``turn`` degrees."""
    eye = torch.tensor(eyes, dtype=torch.float64)
    way = torch.tensor([math.cos(math.radians(turn)), math.sin(math.radians(turn)), 0.0])
    lens = pinhole(torch.full((len(eye),), FOV, dtype=torch.float64), side, side)
    return Cameras(look_at(eye, eye + way.double()), lens, side, side)


def seen(of: Cameras, depth: Tensor, alpha: Tensor | None = None) -> Seen:
    alpha = torch.ones_like(depth) if alpha is None else alpha
    flat = torch.zeros_like(depth).expand(-1, 3, -1, -1)
    return Seen(depth.detach(), alpha, of, flat, None, depth)


def to_plane(of: Cameras, normal: Tensor, offset: float) -> Tensor:
    """z-depth [B, 1, h, w] of the plane ``normal . x = offset`` at the middles of pixels, by
    dividing along each ray."""
    side = of.width
    at = torch.arange(side, dtype=torch.float64) + 0.5
    v, u = torch.meshgrid(at, at, indexing="ij")
    depths = []
    for pose, lens in zip(of.world_to_cam, of.intrinsics, strict=True):
        ray = torch.stack([(u - lens[0, 2]) / lens[0, 0], (v - lens[1, 2]) / lens[1, 1],
                           torch.ones_like(u)], -1)  # fmt: skip
        rotation, eye = pose[:3, :3], -pose[:3, :3].T @ pose[:3, 3]
        depths.append((offset - normal @ eye) / ((ray @ rotation) @ normal))
    return torch.stack(depths)[:, None]


# --- the warp -----------------------------------------------------------------------------------


def test_a_plane_is_warped_by_its_homography() -> None:
    """H = K' (R - t n^T / d) K^-1, with the relative pose of the cameras: no point is ever made."""
    both = cameras((0.0, 0.0, 0.0), (0.3, 0.5, -0.2))
    both = both.with_values(
        torch.cat([both.world_to_cam[:1], cameras((0.3, 0.5, -0.2), turn=-9.0).world_to_cam]),
        both.intrinsics,
    )
    normal = torch.nn.functional.normalize(torch.tensor([-1.0, 0.3, 0.2]).double(), dim=0)
    depth = to_plane(both, normal, -3.0)
    alone = [slice(k, k + 1) for k in (0, 1)]
    here, there = (Surface.of(seen(both[k], depth[k]), (SIDE, SIDE)) for k in alone)
    warp = Warp.between(here, both[:1], there, both[1:], 0.02, 0.5)
    relative = both.world_to_cam[1] @ torch.linalg.inv(both.world_to_cam[0])
    n = both.world_to_cam[0, :3, :3] @ normal
    d = -3.0 - normal @ both.positions[0]  # n . x = d in the first camera's frame
    lens = both.intrinsics
    h = lens[1] @ (relative[:3, :3] + torch.outer(relative[:3, 3], n) / d) @ lens[0].inverse()
    at = torch.arange(SIDE, dtype=torch.float64) + 0.5
    v, u = torch.meshgrid(at, at, indexing="ij")
    image = torch.stack([u, v, torch.ones_like(u)], -1) @ h.T
    expected = 2.0 * image[..., :2] / image[..., 2:] / SIDE - 1.0
    torch.testing.assert_close(warp.place[0], expected, rtol=0, atol=1e-12)
    inside = (expected.abs() <= 1.0).all(-1)
    assert 0.3 < float(inside.double().mean()) < 1.0
    same = warp.both[0, 0].bool()
    assert not bool((same & ~inside).any())
    # One pixel of the plane is as deep as the next within the tolerance, so all inside is seen.
    assert torch.equal(same, inside)


def test_the_same_camera_twice_is_the_identity() -> None:
    one = cameras((0.0, 0.1, 0.2))
    depth = 2.0 + torch.rand(1, 1, SIDE, SIDE, generator=rng()).double()
    surface = Surface.of(seen(one, depth), (SIDE, SIDE))
    warp = Warp.between(surface, one, surface, one, 1e-6, 0.5)
    picture = randn(1, 4, SIDE, SIDE)
    torch.testing.assert_close(look_up(picture, warp.place), picture, rtol=0, atol=1e-12)
    assert bool((warp.both == 1).all())
    twice = Cameras(*(x.repeat(2, 1, 1) for x in (one.world_to_cam, one.intrinsics)), SIDE, SIDE)
    config, two = GradientConsistencyConfig(), seen(twice, depth.repeat(2, 1, 1, 1))
    for sign, expected in ((1.0, 0.0), (3.0, 0.0), (-1.0, 2.0)):
        apart = disagreement(torch.cat([picture, sign * picture]), two, config)
        assert float(apart) == pytest.approx(expected, abs=1e-12)


def test_what_stands_before_the_other_view_hides() -> None:
    """A strip before a wall, cast ray by ray; a point is visible where the way to the other eye
    does not cross the strip. Pixels at edges may round either way."""
    side, front, back, half = 64, 2.0, 4.0, 0.25
    eyes = ((0.0, 0.0, 0.0), (0.0, 0.35, 0.0))
    both = cameras(*eyes, side=side)
    walls = [to_plane(both, torch.tensor([1.0, 0.0, 0.0]).double(), x) for x in (back, front)]
    points = pixel_points(walls[1], both)
    strip = points[..., 1].abs() <= half
    depth = torch.where(strip[:, None], walls[1], walls[0])
    points = pixel_points(depth, both)
    for here, there in ((0, 1), (1, 0)):
        views = [slice(k, k + 1) for k in (here, there)]
        sides = [Surface.of(seen(both[k], depth[k]), (side, side)) for k in views]
        warp = Warp.between(sides[0], both[views[0]], sides[1], both[views[1]], 0.02, 0.5)
        eye = torch.tensor(eyes[there], dtype=torch.float64)
        point = points[here]
        share = (front - eye[0]) / (point[..., 0] - eye[0])  # where the way crosses the strip's x
        crossing = eye[1] + share * (point[..., 1] - eye[1])
        on_wall = point[..., 0] > 3.0
        free = ~on_wall | (crossing.abs() > half)
        angle = (point[..., 1] - eye[1]) / point[..., 0]
        free &= angle.abs() <= math.tan(FOV / 2)
        size = 2.0 * front * math.tan(FOV / 2) / side
        sure = ((crossing.abs() - half).abs() > size) | ~on_wall
        sure &= (point[..., 1].abs() - half).abs() > size
        assert torch.equal(warp.both[0, 0].bool()[sure], free[sure])
        assert float((~free & on_wall).double().mean()) > 0.03  # something is hidden


def test_nothing_is_compared_where_nothing_is() -> None:
    both = cameras((0.0, 0.0, 0.0), (0.0, 0.2, 0.0))
    depth = to_plane(both, torch.tensor([1.0, 0.0, 0.0]).double(), 3.0)
    thin = torch.full_like(depth, 0.1)
    apart = disagreement(randn(2, 4, 8, 8), seen(both, depth, thin), GradientConsistencyConfig())
    assert float(apart) == 0.0
    behind = both.with_values(both.world_to_cam.clone(), both.intrinsics)
    behind.world_to_cam[1] = cameras((0.0, 0.0, 0.0), turn=180.0).world_to_cam[0]
    apart = disagreement(randn(2, 4, 8, 8), seen(behind, depth), GradientConsistencyConfig())
    assert float(apart) == 0.0


# --- the loss -----------------------------------------------------------------------------------


def bilinear(picture: Tensor, x: float, y: float) -> Tensor:
    """[c, h, w] at pixel coordinates, middles at + 0.5, edges go on."""
    height, width = picture.shape[1:]
    x, y = (min(max(value - 0.5, 0.0), most - 1.0) for value, most in ((x, width), (y, height)))
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    a, b = x - left, y - top
    return (
        (1 - a) * (1 - b) * picture[:, top, left] + a * (1 - b) * picture[:, top, left + 1]
        + (1 - a) * b * picture[:, top + 1, left] + a * b * picture[:, top + 1, left + 1]
    )  # fmt: skip


def scene(latents: int = 12) -> tuple[Tensor, Seen]:
    """Gradients [2, 4, h, w], and two views of a bumpy surface with a hole."""
    both = cameras((0.0, 0.0, 0.0), (0.1, 0.3, 0.05))
    depth = to_plane(both, torch.tensor([1.0, 0.1, 0.0]).double(), 3.0)
    depth = depth + 0.02 * randn(*depth.shape, seed=1)
    alpha = torch.ones_like(depth)
    alpha[:, :, :9, :7] = 0.2
    return randn(2, 4, latents, latents, seed=2), seen(both, depth.requires_grad_(), alpha)


def test_the_loss_by_its_formula() -> None:
    """Pixel by pixel, with depths averaged, points moved and pictures read by hand."""
    gradient, views = scene()
    config, size, factor = GradientConsistencyConfig(tolerance=0.01), 12, SIDE // 12
    depth, alpha, of = views.depth.detach(), views.alpha, views.cameras
    cover = alpha.reshape(2, size, factor, size, factor).mean((2, 4))
    mean = (alpha * depth).reshape(2, size, factor, size, factor).mean((2, 4)) / cover
    apart, hidden = [], 0
    for i, j in ((0, 1), (1, 0)):
        poses = [torch.linalg.inv(of.world_to_cam[i]), of.world_to_cam[j]]
        for row in range(size):
            for column in range(size):
                z = float(mean[i, row, column])
                pixel = torch.tensor([factor * (column + 0.5), factor * (row + 0.5), 1.0]).double()
                point = torch.linalg.inv(of.intrinsics[i]) @ pixel * z
                there = poses[1] @ (poses[0] @ torch.cat([point, torch.ones(1).double()]))
                u, v, w = (of.intrinsics[j] @ there[:3]).tolist()
                x, y = u / w / factor, v / w / factor
                k, m = min(max(int(x), 0), size - 1), min(max(int(y), 0), size - 1)
                ok = 0.0 <= x <= size and 0.0 <= y <= size and w > 0.0
                ok = ok and min(float(cover[i, row, column]), float(cover[j, m, k])) >= 0.5
                if not ok or abs(w - float(mean[j, m, k])) > 0.01 * w:
                    hidden += 1
                    continue
                a, b = gradient[i, :, row, column], bilinear(gradient[j], x, y)
                apart.append(1.0 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)))
    assert len(apart) > 100
    assert hidden > 20
    expected = sum(apart) / len(apart)
    assert float(disagreement(gradient, views, config).detach()) == pytest.approx(
        expected, rel=1e-9
    )


def test_its_slope_is_that_of_the_depth() -> None:
    """By finite differences along directions drawn by chance."""
    gradient, views = scene()
    config = GradientConsistencyConfig(tolerance=0.2)
    assert views.live_depth is not None
    (slope,) = torch.autograd.grad(disagreement(gradient, views, config), views.live_depth)
    assert float(slope.abs().max()) > 0
    for k in range(4):
        way = randn(*slope.shape, seed=10 + k)
        ends = []
        for sign in (1.0, -1.0):
            moved = (views.live_depth + sign * 1e-6 * way).detach()
            fixed = replace(views, live_depth=moved)
            ends.append(float(disagreement(gradient, fixed, config)))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((slope * way).sum()), rel=1e-4)


def test_gradients_painted_on_a_surface_draw_the_depth_to_it() -> None:
    """What two views see of one painted plane agrees where the depth is right, and a wrong depth is
    moved towards it."""
    both = cameras((0.0, -0.2, 0.0), (0.0, 0.2, 0.0))
    plane = torch.tensor([1.0, 0.0, 0.0]).double()
    right = to_plane(both, plane, 3.0)
    y, z = pixel_points(right, both)[..., 1:].unbind(-1)
    painted = torch.stack([(4 * y).sin(), (4 * y).cos(), (5 * z).sin(), (3 * y + z).cos()], 1)
    config = GradientConsistencyConfig(tolerance=0.5)

    def apart(offset: float) -> tuple[float, float]:
        depth = (right + offset).requires_grad_()
        loss = disagreement(painted, seen(both, depth), config)
        (slope,) = torch.autograd.grad(loss, depth)
        return float(loss.detach()), float(slope.sum())

    assert apart(0.0)[0] < 2e-3
    for offset in (-0.4, -0.2, 0.2, 0.4):
        loss, slope = apart(offset)
        assert loss > 5 * apart(0.0)[0]
        assert slope * offset > 0  # downhill leads back


def test_dissimilarity_knows_directions_only() -> None:
    a, b = randn(3, 4, 5, 5), randn(3, 4, 5, 5, seed=1)
    expected = 1.0 - torch.nn.functional.cosine_similarity(a, b, dim=1)[:, None]
    torch.testing.assert_close(dissimilarity(a, b), expected)
    torch.testing.assert_close(dissimilarity(7.0 * a, 0.01 * b), expected)
    nothing = torch.zeros_like(b).requires_grad_()
    empty = dissimilarity(a, nothing)
    assert bool((empty == 1.0).all())
    (slope,) = torch.autograd.grad(empty.sum(), nothing)
    assert bool(torch.isfinite(slope).all())


@pytest.mark.parametrize(
    ("count", "together", "pairs"),
    [(1, 1, []), (2, 1, [(0, 1)]), (3, 1, [(0, 1)]), (4, 1, [(0, 1), (2, 3)]), (4, 4, []),
     (8, 4, [(0, 4)]), (16, 4, [(0, 4), (8, 12)])],
)  # fmt: skip
def test_who_is_compared_with_whom(count: int, together: int, pairs: list[Any]) -> None:
    found = [(a.start, b.start) for a, b in neighbours(count, together)]
    assert found == pairs
    for a, b in neighbours(count, together):
        assert a.stop - a.start == b.stop - b.start == together


# --- the rule -----------------------------------------------------------------------------------


WIDE = 0.5  # a tolerance for latents of four pixels, which are far apart in depth


def rule(weight: float, scale: float = 1.0) -> tuple[ScoreDistillation, GradientConsistency]:
    config = GuidanceConfig(reduction="sum", scale=scale)
    plain = ScoreDistillation(words(), "red", RandomNoise(), config=config, steps=10)
    return plain, GradientConsistency(
        plain, GradientConsistencyConfig(weight=weight, tolerance=WIDE)
    )


def views_of(depth: Tensor) -> Viewpoints:
    both = cameras((0.0, 0.0, 0.0), (0.1, 0.3, 0.05))
    return replace(Viewpoints.of(both), seen=seen(both, depth))


def wall() -> Tensor:
    both = cameras((0.0, 0.0, 0.0), (0.1, 0.3, 0.05))
    return to_plane(both, torch.tensor([1.0, 0.2, 0.1]).double(), 3.0).requires_grad_()


def test_without_weight_it_is_the_rule_bit_for_bit() -> None:
    plain, guided = rule(0.0)
    z, depth = randn(2, *SHAPE), wall()
    for step in (0, 7):
        z.requires_grad_()
        answers = [each(z, views_of(depth), step, rng(3)) for each in (plain, guided)]
        slopes = [torch.autograd.grad(a.loss, z)[0] for a in answers]
        assert torch.equal(*slopes)
        for one, other in zip(*answers, strict=True):
            assert one == other if isinstance(one, int) else torch.equal(one, other)


def test_with_weight_only_the_depth_gets_more() -> None:
    plain, guided = rule(0.7, scale=0.3)
    z, depth = randn(2, *SHAPE).requires_grad_(), wall()
    before, after = (each(z, views_of(depth), 4, rng(3)) for each in (plain, guided))
    slopes = [torch.autograd.grad(a.loss, z, retain_graph=True)[0] for a in (before, after)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=0)
    (moved,) = torch.autograd.grad(after.loss, depth)
    gradient = before.latents - before.target
    apart = disagreement(gradient, seen(cameras((0.0, 0.0, 0.0), (0.1, 0.3, 0.05)), depth),
                         GradientConsistencyConfig(tolerance=WIDE))  # fmt: skip
    assert float((after.loss - before.loss).detach()) == pytest.approx(
        0.7 * 0.3 * float(apart.detach()), rel=1e-9
    )
    (slope,) = torch.autograd.grad(0.7 * 0.3 * apart, depth)
    torch.testing.assert_close(moved, slope)
    assert float(slope.abs().max()) > 0
    assert before.evaluations == after.evaluations


def test_splats_are_moved_by_it() -> None:
    """Through a real renderer's depth, in which centres and opacities are."""
    shape = GaussianRenderer(GaussianConfig(count=300, max_count=300))
    policy = ViewPolicy(neighbour_deg=10.0)
    of, views = policy.sample(2, 32, rng(1))
    drawn, _ = shape.render(of, torch.ones(2, 3))
    views = views.seeing(drawn, of)
    assert views.seen is not None
    assert not views.seen.depth.requires_grad
    disagreement(torch.randn(2, 4, 8, 8, generator=rng(2)), views.seen,
                 GradientConsistencyConfig(tolerance=0.2)).backward()  # fmt: skip
    moved = [p.grad for group in shape.optimizers[0].param_groups for p in group["params"]
             if group.get("name") == "means"]  # fmt: skip
    assert len(moved) == 1
    assert bool(torch.isfinite(moved[0]).all())
    assert float(moved[0].abs().max()) > 0


def test_on_a_card_nothing_is_read() -> None:
    """On the device ``meta``, which has no values."""
    away = torch.device("meta")
    both = cameras((0.0, 0.0, 0.0), (0.1, 0.3, 0.05)).to(away)
    depth = torch.zeros(2, 1, SIDE, SIDE, device=away, requires_grad=True)
    apart = disagreement(torch.zeros(2, 4, 6, 6, device=away), seen(both, depth),
                         GradientConsistencyConfig())  # fmt: skip
    apart.backward()
    assert depth.grad is not None
    assert apart.device == depth.grad.device == away


# --- the noise ----------------------------------------------------------------------------------


def test_fresh_noise_is_another_one_in_each_step_and_one_for_its_views() -> None:
    noise, still = (SurfaceNoise(cell=CELL, fresh=fresh) for fresh in (True, False))
    views = around(0.0, 20.0)
    steps = [kappa(noise, views, step=step) for step in range(3)]
    assert torch.equal(steps[0], kappa(still, views))
    assert torch.equal(steps[1], kappa(noise, views, step=1, steps=77))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(correlation(steps[one], steps[other])) < 0.05
    for k in range(2):
        assert torch.equal(kappa(noise, views[k : k + 1], step=2)[0], steps[2][k])
    found = torch.cat(steps)
    assert abs(float(found.var()) - 1) < 5 * math.sqrt(2 / found.numel())
    with pytest.raises(ValueError, match=r"noise\.fresh"):
        SurfaceNoise(fresh=True, lasts=0.5)


# --- neighbours ---------------------------------------------------------------------------------

STILL = {"position_jitter": 0.0, "target_jitter": 0.0, "up_jitter": 0.0}


@pytest.mark.parametrize("count", [2, 4, 5])
def test_neighbours_stand_beside_one_another(count: int) -> None:
    policy = ViewPolicy(neighbour_deg=12.0, **STILL)
    for seed in range(20):
        of, views = policy.sample(count, 16, rng(seed))
        pairs = count // 2 * 2
        first, second = (slice(k, pairs, 2) for k in (0, 1))
        turn = (views.azimuth_deg[second] - views.azimuth_deg[first] + 180.0) % 360.0 - 180.0
        assert float(turn.abs().max()) <= 12.0 + 1e-3
        rise = views.elevation_deg[second] - views.elevation_deg[first]
        assert float(rise.abs().max()) <= 12.0 + 1e-3
        assert torch.equal(views.distance[first], views.distance[second])
        assert torch.equal(of.intrinsics[first], of.intrinsics[second])
        assert len(views) == count


def test_a_neighbour_is_distributed_as_it_should() -> None:
    policy = ViewPolicy(neighbour_deg=10.0)
    azimuth, elevation = policy.angles(40_000, rng(2))
    for half in (azimuth[::2], azimuth[1::2]):
        counts = torch.histc(half, 12, -180.0, 180.0)
        assert float(counts.min()) > 0.9 * 20_000 / 12
    assert float(elevation.min()) >= -10.0
    assert float(elevation.max()) <= 45.0
    turn = (azimuth[1::2] - azimuth[::2] + 180.0) % 360.0 - 180.0
    assert abs(float(turn.mean())) < 0.2
    assert float(turn.std()) == pytest.approx(10.0 / math.sqrt(3.0), rel=0.02)


def test_groups_are_neighbours_too() -> None:
    of, views = ViewPolicy(neighbour_deg=8.0).sample(16, 16, rng(3), 4)
    azimuth = views.azimuth_deg.reshape(2, 2, 4)
    turn = (azimuth[:, 1] - azimuth[:, 0] + 180.0) % 360.0 - 180.0
    torch.testing.assert_close(turn, turn[:, :1].expand(-1, 4), rtol=0, atol=1e-3)
    assert 0.0 < float(turn.abs().max()) <= 8.0
    lens = of.intrinsics.reshape(2, 8, 3, 3)
    assert torch.equal(lens, lens[:, :1].expand(-1, 8, -1, -1))


def test_views_that_know_no_neighbours_are_drawn_as_before() -> None:
    """The same numbers of the generator in the same order."""
    plain = ViewPolicy(neighbour_deg=0.0)
    generator = rng(4)
    _, views = plain.sample(3, 16, generator)
    again = rng(4)
    plain.angles(3, again)
    torch.testing.assert_close(views.distance, 1.5 + 0.5 * torch.rand(3, generator=again))


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [(["batch=1"], "batch=2"), (["views.neighbour_deg=0"], "views.neighbour_deg=10"),
     (["micro_batch=2"], "micro_batch")],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(given: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as told:
        check(load("mini", ["prompt=a mug", *given], "gsd"))
    instead = [] if said == "micro_batch" else [said]
    left = [] if said == "micro_batch" else given
    check(load("mini", ["prompt=a mug", *left, *instead], "gsd"))
    assert "gradient_consistency" in str(told.value)
    check(load("mini", ["prompt=a mug", *given, "update.weight=0"], "gsd")) if instead else None


def test_a_model_that_sees_groups_needs_two_of_them() -> None:
    settings = ["prompt=a red mug", "steps=2", "representation.count=200", "threads=1"]
    with pytest.raises(UserError, match="sees 4 at once: write batch=8"):
        build.training(load("mini_mv", settings, "gsd"))
    training = build.training(load("mini_mv", [*settings, "batch=8"], "gsd"))
    report = train_step(training, 0)
    assert math.isfinite(report.loss)
    with pytest.raises(UserError, match="batch=4"):
        check_neighbours(load("mini", ["prompt=a mug", "batch=2"], "gsd"), 2)


def test_pictures_have_no_neighbours(sdi_gs: Any, tmp_path: Any) -> None:
    said = sdi_gs("generate2d", "a red mug", "--config", "mini_2d", "--out", tmp_path / "no",
                  "update=gradient_consistency")  # fmt: skip
    assert said.code == 2
    assert "--guidance sds" in said.err
    _, guided = rule(0.5)
    with pytest.raises(ValueError, match=r"write update\.kind=residual"):
        guided(randn(2, *SHAPE), Viewpoints.front(2), 0)
