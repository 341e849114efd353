# SPDX-License-Identifier: Apache-2.0
"""Noise that belongs to the shape (CFD) or to the place of the camera (FSD)."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from representations.cameras import look_at, pinhole
from representations.interface import Cameras
from sdi_gs.diffusion.schedule import scaled_linear_alpha_bar
from sdi_gs.guidance.noise import FixedNoise, NoiseStrategy
from sdi_gs.guidance.surface_noise import (
    Lasting,
    Owners,
    SurfaceNoise,
    WorldMapNoise,
    hashed,
    normal_of,
)
from sdi_gs.guidance.viewpoints import Seen, Viewpoints
from sdi_gs.ramp import Progress

from .doubles import Answers, noised

TABLE = scaled_linear_alpha_bar()
ZERO = Answers(lambda x, t: torch.zeros_like(x))
PIXELS, LATENTS, DISTANCE, FOV = 128, 32, 3.0, math.radians(30.0)
PLANE = 0.01  # not 0, where cells begin: rounding would move points into the next
# World units, on that plane.
PIXEL = 2.0 * (DISTANCE - PLANE) * math.tan(FOV / 2) / PIXELS
CELL = 1.537 * PIXEL  # no round number: points would lie where cells begin


def plane(position: Tensor, target: Tensor, *, alpha: float = 1.0) -> Viewpoints:
    """Cameras at ``position`` [B, 3] that see nothing but the plane x = PLANE."""
    count = len(position)
    cameras = Cameras(
        look_at(position, target), pinhole(torch.full((count,), FOV), PIXELS, PIXELS), PIXELS,
        PIXELS,
    )  # fmt: skip
    depth = torch.ones(count, 1, PIXELS, PIXELS)
    # A ray with z-depth 1 has come so far; it meets the plane when its x is that of the plane.
    flat = torch.zeros(count, 3, PIXELS, PIXELS)
    one, start = Seen(depth, depth, cameras, flat).points()[..., 0], position[:, 0, None, None]
    depth = ((start - PLANE) / (start - one))[:, None]
    seen = Seen(depth, torch.full_like(depth, alpha), cameras, flat)
    views = Viewpoints.of(cameras)
    return Viewpoints(
        views.azimuth_deg, views.elevation_deg, views.distance, views.camera_to_world, seen
    )


def facing(*aside: float) -> Viewpoints:
    """Cameras straight before the plane, moved to the right by so many world units."""
    position = torch.tensor([[DISTANCE, 0.0, 0.0]]).repeat(len(aside), 1)
    position[:, 1] = torch.tensor(aside)
    return plane(position, position * torch.tensor([0.0, 1.0, 1.0]))


def around(*azimuth_deg: float) -> Viewpoints:
    """Cameras around the plane's middle, that look at it."""
    angle = torch.tensor(azimuth_deg).deg2rad()
    position = DISTANCE * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)
    return plane(position, torch.zeros_like(position))


def kappa(noise: NoiseStrategy, views: Viewpoints, step: int = 0, steps: int = 10) -> Tensor:
    z = torch.zeros(len(views), 4, LATENTS, LATENTS)
    at = [500] * len(views)
    return noised(noise, z, at, ZERO, TABLE, None, Progress(step, steps), views).kappa


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


NOISE = SurfaceNoise(cell=CELL)


def test_the_hash_is_splitmix64() -> None:
    """The first numbers of its published generator from state 0."""
    golden = 0x9E3779B97F4A7C15
    states = torch.tensor([0, golden - 2**64])
    expected = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4)
    assert [number % 2**64 for number in hashed(states).tolist()] == list(expected)


def test_numbers_of_cells_are_independent_and_normal() -> None:
    cells = torch.arange(200_000) * 7 - 500_000
    a = normal_of(cells, 4, seed=0)
    assert a.mean(0).abs().max() < 5 / math.sqrt(len(cells))
    assert (a.var(0) - 1).abs().max() < 5 * math.sqrt(2 / len(cells))
    assert (a.double().pow(4).mean(0) - 3).abs().max() < 5 * math.sqrt(96 / len(cells))
    others = {
        "channels": (a[:, 0], a[:, 1]), "neighbours": (a[1:, 2], a[:-1, 2]),
        "seeds": (a, normal_of(cells, 4, seed=1)), "places": (a[1:, 0], a[:-1, 1]),
    }  # fmt: skip
    for one, other in others.values():
        assert abs(correlation(one, other)) < 5 / math.sqrt(one.numel())
    assert torch.equal(normal_of(cells[5:9], 4, 0), a[5:9])


def test_a_cell_belongs_to_the_pixel_that_sees_most_of_it() -> None:
    """Against a count by hand."""
    shape = (3, 2, 4)
    rng = torch.Generator().manual_seed(3)
    key = torch.randint(-5, 5, (400,), generator=rng) * 2**60
    pixel = torch.randint(0, 24, (400,), generator=rng).sort().values
    seen: dict[tuple[int, int], Counter[int]] = {}
    for cell, place in zip(key.tolist(), pixel.tolist(), strict=True):
        seen.setdefault((place // 8, cell), Counter())[place] += 1
    wanted = {
        (view, cell): min(c, key=lambda place: (-c[place], place))
        for (view, cell), c in seen.items()
    }
    owners = Owners.elected(key, pixel, shape)
    owned = torch.stack([owners.cells, owners.pixels], 1).tolist()
    found = {(place // 8, cell): place for cell, place in owned}
    assert found == wanted
    assert len(owners.cells) == len(wanted)


@pytest.mark.parametrize("azimuth", [0.0, 50.0])
def test_the_noise_of_a_view_is_independent_and_standard_normal(azimuth: float) -> None:
    """Straight and slanted; what a denoiser is trained on."""
    found = torch.cat([kappa(SurfaceNoise(seed=s, cell=CELL), around(azimuth))
                       for s in range(8)])  # fmt: skip
    count = found.numel()
    assert abs(float(found.mean())) < 5 / math.sqrt(count)
    assert abs(float(found.var()) - 1) < 5 * math.sqrt(2 / count)
    for one, other in ((found[..., 1:], found[..., :-1]), (found[..., 1:, :], found[..., :-1, :])):
        assert abs(correlation(one, other)) < 5 / math.sqrt(count)
    assert abs(correlation(found[:, 0], found[:, 1])) < 5 / math.sqrt(count / 4)


def test_a_camera_that_moves_sees_the_noise_move() -> None:
    """By 5 pixels of the latents to the right, before a plane: the noise goes 5 to the left."""
    step = PIXELS // LATENTS
    one, other = kappa(NOISE, facing(0.0, 5 * step * PIXEL))
    inner = slice(6, -6)
    moved = other[:, inner, 1:-7] - one[:, inner, 6:-2]
    assert float((moved.abs() < 1e-4).float().mean()) > 0.98  # but where rounding moves a point
    assert abs(correlation(other[:, inner, 1:-7], one[:, inner, 1:-7])) < 0.1
    fixed = kappa(FixedNoise(), facing(0.0, 5 * step * PIXEL))
    assert torch.equal(fixed[0], fixed[1])


def test_two_sides_of_a_surface_have_much_of_their_noise_in_common() -> None:
    """Pixels whose middles see the same point, from views that are 6 degrees apart."""
    views = around(0.0, 6.0)
    one, other = kappa(NOISE, views)
    assert views.seen is not None
    step = PIXELS // LATENTS
    points = views.seen.points()[:, step // 2 :: step, step // 2 :: step]
    away = torch.cdist(points[0].reshape(-1, 3), points[1].reshape(-1, 3))
    distance, near = away.min(1)
    same = distance < 0.15 * step * PIXEL
    assert int(same.sum()) > 100
    a, b = one.flatten(1)[:, same], other.flatten(1)[:, near[same]]
    assert correlation(a, b) > 0.5
    apart = kappa(SurfaceNoise(seed=1, cell=CELL), views)[1].flatten(1)[:, near[same]]
    assert abs(correlation(a, apart)) < 0.2


def test_noise_stays_and_does_not_ask_how_views_are_split() -> None:
    views = around(0.0, 20.0, 200.0)
    for noise in (NOISE, WorldMapNoise()):
        whole = kappa(noise, views)
        assert torch.equal(kappa(noise, views, step=7), whole)
        for i in range(3):
            assert torch.equal(kappa(noise, views[i : i + 1])[0], whole[i])
    assert abs(correlation(kappa(NOISE, views)[0], kappa(NOISE, views)[2])) < 0.1


def test_where_nothing_is_noise_stays_in_the_picture() -> None:
    position = torch.tensor([[DISTANCE, 0.0, 0.0], [0.0, DISTANCE, 0.5]])
    empty = plane(position, torch.zeros(2, 3), alpha=0.05)
    for noise in (NOISE, WorldMapNoise()):
        one, other = kappa(noise, empty)
        assert torch.equal(one, other)
        assert torch.equal(kappa(noise, empty, step=7)[0], one)
        assert abs(float(one.var()) - 1) < 5 * math.sqrt(2 / one.numel())


def test_a_noise_that_turns_into_another_is_normal_all_the_way() -> None:
    cells = torch.arange(50_000)
    lasting = Lasting(seed=0, share=0.5)
    start, half, other = (lasting.of(cells, 2, done) for done in (0.0, 0.25, 0.5))
    assert torch.equal(lasting.of(cells, 2, 0.0), Lasting(0, 0.0).of(cells, 2, 0.9))
    for numbers in (start, half, other):
        assert abs(float(numbers.var()) - 1) < 5 * math.sqrt(2 / numbers.numel())
    assert correlation(start, half) == pytest.approx(math.cos(math.pi / 4), abs=0.02)
    assert abs(correlation(start, other)) < 0.02
    before = lasting.of(cells, 2, 0.5 - 1e-9)
    assert torch.allclose(before, other, atol=1e-5)  # no jump


def test_a_panorama_turns_with_the_camera() -> None:
    """Twice the width of the latents lie around: one pixel is 360 / 64 degrees."""
    turn = 360.0 / (2 * LATENTS)
    noise = WorldMapNoise()
    here, next_, round_ = kappa(noise, around(3.0, 3.0 + turn, 3.0 + 360.0))
    assert torch.equal(next_[..., :-1], here[..., 1:])
    assert not torch.equal(next_, here)
    assert torch.equal(round_, here)
    assert len(here.unique()) > 0.99 * here.numel()  # no place of the panorama occurs twice
    low, high = (
        kappa(noise, plane(torch.tensor([[2.0, 0.0, 2.0 * math.tan(math.radians(e))]]),
                           torch.zeros(1, 3)))[0]
        for e in (1.0, 1.0 + 180.0 / LATENTS)
    )  # fmt: skip
    assert torch.equal(high[:, 1:], low[:, :-1])


@pytest.mark.parametrize("noise", [SurfaceNoise(), WorldMapNoise()])
def test_pictures_of_no_shape_are_refused(noise: Any, sdi_gs: Any, tmp_path: Any) -> None:
    z = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match=r"write noise\.kind=fixed"):
        noised(noise, z, [500], ZERO, TABLE)
    word = {"surface": "cfd", "world_map": "fsd"}[noise.kind]
    said = sdi_gs("generate2d", "a red mug", "--guidance", word, "--out", tmp_path / "no")
    assert said.code == 2
    assert "--guidance fixed_noise" in said.err
    for wrong in ({"opaque": 0.0}, {"lasts": -1.0}):
        with pytest.raises(ValueError, match="noise"):
            type(noise)(**wrong)
