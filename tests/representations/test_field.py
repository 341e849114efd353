# SPDX-License-Identifier: Apache-2.0
"""The radiance field against closed forms, autograd and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from representations.cameras import orbit
from representations.instant_ngp import (
    DensityConfig,
    GridConfig,
    InstantNGPConfig,
    InstantNGPRenderer,
    MarchConfig,
    MaterialConfig,
    material,
)
from representations.instant_ngp.field import Field
from representations.instant_ngp.occupancy import OccupancyGrid
from representations.ops.fields import field_ops

from .helpers import cameras_around, seeded, slope_along

GRID = GridConfig(
    levels=3, log2_size=10, base_resolution=4, max_resolution=12, start_levels=3, start_step=0
)
BLOBS = [
    DensityConfig(hidden=8),
    DensityConfig(hidden=8, activation="exp", blob="dreamfusion", blob_strength=5, blob_radius=0.2),
    DensityConfig(hidden=8, activation="exp", blob="none"),
]


def field(density: DensityConfig = BLOBS[0], spread: float = 0.5, **settings: object) -> Field:
    """A float64 field whose table says something, on the reference back-end."""
    config = InstantNGPConfig(radius=1.0, grid=GRID, density=density, **settings)  # type: ignore[arg-type]
    made = Field(config, field_ops("cpu", "reference"), seeded(0)).double()
    with torch.no_grad():
        noise = torch.randn(made.table.shape, generator=seeded(1), dtype=torch.float64)
        made.table.copy_(spread * noise)
    return made


def points(count: int = 40) -> Tensor:
    return (torch.rand(count, 3, generator=seeded(2), dtype=torch.float64) * 2 - 1) * 0.9


@pytest.mark.parametrize("density", BLOBS, ids=lambda d: d.blob)
def test_normals_are_against_the_gradient_of_the_density(density: DensityConfig) -> None:
    made, x = field(density), points().requires_grad_()
    (gradient,) = torch.autograd.grad(made.density(x).sum(), x)
    normal = made(x).normal
    expected = -torch.nn.functional.normalize(gradient, dim=-1)
    torch.testing.assert_close(normal, expected, atol=1e-8, rtol=0)


def test_finite_difference_normals_converge_to_the_analytic_ones() -> None:
    """On points away from cell faces, where the field is smooth, the error falls as epsilon^2;
    a linear interpolation inside a cell has third derivatives through the blob only."""
    x = points(400)
    exact = field()(x).normal
    errors = []
    for epsilon in (1e-3, 5e-4):
        near = field(normals="finite_difference", normal_epsilon=epsilon)(x).normal
        errors.append((near - exact).norm(dim=-1).median())
    assert float(errors[0].detach()) < 1e-4
    assert float((errors[0] / errors[1]).detach()) == pytest.approx(4.0, rel=0.3)


def test_a_field_without_features_is_its_blob() -> None:
    made = field(spread=0.0)
    x = points()
    r = x.norm(dim=-1)
    expected = torch.nn.functional.softplus(10.0 * (1.0 - r / 0.5))
    shading = made(x)
    torch.testing.assert_close(shading.density, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(shading.normal, x / r[:, None], atol=1e-9, rtol=0)
    torch.testing.assert_close(shading.albedo, torch.full_like(x, 0.5))


@pytest.mark.parametrize("normals", ["analytic", "finite_difference"])
def test_gradients_of_normals_reach_the_table_and_the_head(normals: str) -> None:
    made = field(normals=normals)
    x, towards = points(12), torch.randn(12, 3, generator=seeded(5), dtype=torch.float64)
    for parameter in (made.table, made.density_head.inner, made.density_head.outer):
        (gradient,) = torch.autograd.grad((made(x).normal * towards).sum(), parameter)
        direction = gradient / gradient.norm()
        step, before, values = 1e-6, parameter.detach().clone(), []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.copy_(before + sign * step * direction)
                values.append(float((made(x).normal * towards).sum()))
            parameter.copy_(before)
        numeric = (values[0] - values[1]) / (2 * step)
        assert numeric == pytest.approx(float(gradient.norm()), rel=1e-4)


@pytest.mark.parametrize("kind", [material.TEXTURELESS, material.DIFFUSE])
def test_gradients_of_lit_colours_reach_table_and_heads(kind: int) -> None:
    """So close to a point that no hidden unit switches."""
    made, x = field(), points(12)
    light = material.Light(torch.tensor([kind]), torch.tensor([[0.9, 0.7, 1.1]]).double(), True)
    view = torch.zeros(12, dtype=torch.long)
    weight = torch.randn(12, 3, generator=seeded(6), dtype=torch.float64)

    def loss() -> Tensor:
        at = made(x)
        lit = material.colour(MaterialConfig(), light, view, x, at.albedo, at.normal)
        return (lit * weight).sum()

    for parameter in (made.table, made.density_head.inner, made.density_head.outer):
        (gradient,) = torch.autograd.grad(loss(), parameter)
        direction = gradient / gradient.norm()
        numeric = slope_along(loss, parameter, direction, 1e-6)
        assert numeric == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_levels_that_are_off_do_not_matter() -> None:
    made, x = field(), points()
    made.active = 2
    before = made(x).density.detach()
    with torch.no_grad():
        made.table[made.spec.layout[2].offset :] += 1.0
    assert torch.equal(made(x).density, before)
    made.active = 3
    assert not torch.equal(made(x).density, before)


def test_bands_open_as_the_recipe_says() -> None:
    grid = GridConfig()
    steps = (0, 1999, 2000, 2499, 2500, 5999, 6000, 9999)
    assert [grid.active_levels(s) for s in steps] == [8, 8, 8, 8, 9, 15, 16, 16]


def test_light_falls_on_what_faces_the_lamp() -> None:
    config = MaterialConfig(ambient=0.1, diffuse=0.9)
    lamp = torch.tensor([[0.0, 0.0, 2.0]])
    normal = torch.tensor([[0.0, 0.0, 1.0], [0.0, math.sin(1.0), math.cos(1.0)], [0.0, 0.0, -1.0]])
    at, view = torch.zeros(3, 3), torch.zeros(3, dtype=torch.long)
    albedo = torch.tensor([0.2, 0.5, 1.0]).expand(3, 3)
    shade = torch.tensor([1.0, 0.1 + 0.9 * math.cos(1.0), 0.1])[:, None]
    for kind, expected in (
        (material.ALBEDO, albedo),
        (material.TEXTURELESS, shade.expand(3, 3)),
        (material.DIFFUSE, albedo * shade),
    ):
        light = material.Light(torch.tensor([kind]), lamp, kind != material.ALBEDO)
        out = material.colour(config, light, view, at, albedo, normal)
        torch.testing.assert_close(out, expected)


def test_lights_come_in_the_shares_of_the_recipe() -> None:
    config = MaterialConfig()
    positions = torch.tensor([[1.8, 0.0, 0.3]]).expand(20_000, 3)
    early = material.draw_light(config, 999, positions, [seeded(k) for k in range(len(positions))])
    assert not early.shaded
    late = material.draw_light(config, 1000, positions, [seeded(k) for k in range(len(positions))])
    shares = [float((late.kind == k).float().mean()) for k in range(3)]
    assert shares == pytest.approx([0.7, 0.225, 0.075], abs=0.012)  # 4 deviations
    distance = late.lamp.norm(dim=-1)
    assert 0.8 <= float(distance.min()) < 0.81
    assert 1.49 < float(distance.max()) <= 1.5


def ball(radius: float):  # type: ignore[no-untyped-def]
    return lambda x: 50.0 * (x.norm(dim=-1) < radius).float()


def test_the_occupancy_grid_covers_a_ball_and_little_else() -> None:
    config = MarchConfig(resolution=16, warmup=10)
    grid = OccupancyGrid(config, 1.0, 0.05, torch.device("cpu"))
    assert grid.count == 16**3
    for step in range(4):
        grid.update(step, ball(0.6), seeded(step))
    centre = (torch.arange(16) + 0.5) / 8 - 1
    x = torch.stack(torch.meshgrid(centre, centre, centre, indexing="ij"), dim=-1)
    half_diagonal = 3**0.5 / 16
    inside = x.norm(dim=-1) < 0.6 - half_diagonal
    outside = x.norm(dim=-1) > 0.6 + half_diagonal
    assert bool(grid.occupied[inside].all())
    assert not bool(grid.occupied[outside].any())


def test_cells_are_forgotten_slowly_and_the_grid_is_never_empty() -> None:
    config = MarchConfig(resolution=8, warmup=1000, decay=0.5)
    grid = OccupancyGrid(config, 1.0, 0.05, torch.device("cpu"))
    grid.update(0, ball(2.0), seeded(0))
    full = 1.0 - math.exp(-50.0 * 0.05)
    assert float(grid.opacity.min()) == pytest.approx(full)
    grid.update(1, ball(0.0), seeded(1))
    assert float(grid.opacity.max()) == pytest.approx(0.5 * full)
    thin = OccupancyGrid(config, 1.0, 0.05, torch.device("cpu"))
    thin.update(0, lambda x: 1e-6 * x.norm(dim=-1), seeded(0))
    assert 0 < thin.count < 8**3


def renderer(**march: object) -> InstantNGPRenderer:
    settings = {"samples": 64, "max_samples": 64, "jitter": False, **march}
    return InstantNGPRenderer(
        InstantNGPConfig(
            radius=1.0, grid=GRID, density=DensityConfig(hidden=8, blob_strength=20.0),
            march=MarchConfig(**settings),  # type: ignore[arg-type]
            material=MaterialConfig(albedo_steps=10**6),
        )
    )  # fmt: skip


def test_a_picture_drawn_in_parts_is_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients; parts add in another order, hence the tolerance of float32 sums."""
    whole, cameras = renderer(), cameras_around(2, (24, 24))
    results = []
    for limit in (10**9, 500):
        monkeypatch.setattr(InstantNGPRenderer, "samples_per_part", limit)
        render, trace = whole.render(cameras, torch.rand(2, 3, generator=seeded(1)))
        loss = render.rgb.square().sum() + sum(whole.terms(trace).values())
        loss.backward()
        results.append((render.rgb.detach(), [p.grad.clone() for p in whole.field.parameters()]))
        whole.optimizer.zero_grad()
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=0)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(a.abs().max()), rtol=1e-4)


def test_a_ball_is_seen_at_its_distance_with_normals_towards_the_camera() -> None:
    made = renderer(samples=400, max_samples=400)
    with torch.no_grad():
        made.field.density_head.outer.zero_()  # the blob alone: opaque within r = 0.5
        camera = orbit(
            torch.tensor([30.0]), torch.tensor([20.0]), torch.tensor([3.0]),
            torch.tensor([30.0]), (33, 33),
        )  # fmt: skip
        render, _ = made.render(camera, torch.zeros(1, 3))
    assert float(render.alpha[0, 0, 16, 16]) > 0.99
    # 20 (1 - r / 0.5) in softplus: half of the light is gone a little inside of r = 0.5
    assert 2.5 <= float(render.depth[0, 0, 16, 16]) < 2.7
    towards = camera.positions[0] / camera.positions[0].norm()
    assert float(render.normal[0, :, 16, 16] @ towards) > 0.99
    assert float(render.alpha[0, 0, 0, 0]) < 0.01


def test_the_variance_of_depth_is_that_of_an_exponential() -> None:
    """Constant density s: the depth of the first hit is exponential, with variance 1 / s^2."""
    made = renderer(samples=4000, max_samples=4000)
    with torch.no_grad():
        made.field.density_head.outer.zero_()
    s = 8.0
    made.field._blob = lambda x: torch.full(x.shape[:1], math.log(math.expm1(s)))  # type: ignore[method-assign]
    with torch.no_grad():
        _, trace = made.render(cameras_around(1, (9, 9)), torch.zeros(1, 3))
        term = made.terms(trace, ["z_variance"])["z_variance"]
    assert float(term) == pytest.approx(1 / s**2, rel=0.02)


def test_terms_ask_by_name() -> None:
    made = renderer()
    _, trace = made.render(cameras_around(1, (8, 8)), torch.zeros(1, 3))
    assert set(made.terms(trace, ["opaque", "z_variance"])) == {"opaque", "z_variance"}
    with pytest.raises(ValueError, match="unknown term 'opaqe'"):
        made.terms(trace, ["opaqe"])
