# SPDX-License-Identifier: Apache-2.0
"""Closed forms of a Gaussian world: the denoiser, DDIM, its inversion, and the exact kappa.

All in float64. For data N(m, v): in rescaled coordinates the probability-flow ODE has the exact
solution (x_bar - m) ~ sqrt(v + sigma^2), and every Euler step is a known factor.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sdi_gs.diffusion.analytic import GaussianMixture, gaussian
from sdi_gs.diffusion.base import Condition
from sdi_gs.diffusion.schedule import (
    mix,
    noise_between,
    per_sample,
    scaled_linear_alpha_bar,
    sigma,
    unmix,
)
from sdi_gs.guidance.inversion import Eps, ddim_invert
from sdi_gs.guidance.noise import DDIMInversion

from .doubles import Answers, noised, randn

SHAPE = (4, 3, 3)


def single(variance: float, mean: Tensor | None = None, **kwargs: Tensor) -> GaussianMixture:
    mean = 0.3 * randn(*SHAPE, seed=9) if mean is None else mean
    return gaussian(mean, variance, **kwargs)


def knowing(world: GaussianMixture, condition: Condition) -> Eps:
    """What ``world`` predicts under that condition."""
    return lambda x, t: world.predict_noise(x, t, condition)


def mixture() -> GaussianMixture:
    return GaussianMixture(
        randn(3, *SHAPE, seed=1),
        torch.tensor([0.2, 0.5, 0.05], dtype=torch.float64),
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        names={"red": [0, 1], "blue": [2]},
    )


def fine_alpha_bar(steps: int) -> Tensor:
    """Stable Diffusion's noise levels on a finer clock, starting from a clean sample."""
    coarse = torch.cat([torch.ones(1, dtype=torch.float64), scaled_linear_alpha_bar()])
    at = torch.linspace(0, 1000, steps + 1, dtype=torch.float64)
    low = at.long().clamp(max=999)
    log = coarse.log()
    return (log[low] + (at - low) * (log[low + 1] - log[low])).exp()


@pytest.mark.parametrize("variance", [0.05, 1.0, 3.0])
def test_epsilon_is_the_scaled_score_of_a_gaussian(variance: float) -> None:
    """Independent route: epsilon = -sqrt(1 - a) grad log N(x; sqrt(a) m, a v + 1 - a)."""
    world = single(variance)
    t = torch.tensor([3, 400, 990])
    x = randn(3, *SHAPE).requires_grad_()
    a = per_sample(world.alpha_bar[t])
    spread = a * variance + 1 - a
    log_p = -0.5 * ((x - a.sqrt() * world.means) ** 2 / spread).sum()
    (score,) = torch.autograd.grad(log_p, x)
    eps = world.predict_noise(x.detach(), t, world.embed(["", "", ""]))
    torch.testing.assert_close(eps, -(1 - a).sqrt() * score, rtol=1e-12, atol=1e-12)


def test_epsilon_is_the_scaled_score_of_a_mixture_and_of_its_parts() -> None:
    world = mixture()
    t = torch.tensor([20, 300, 800])
    condition = world.embed(["", "red", "blue"])
    weights = condition["weights"]
    assert weights[1].tolist() == pytest.approx([0.625, 0.375, 0.0])
    x = randn(3, *SHAPE).requires_grad_()
    a = per_sample(world.alpha_bar[t])[:, None]
    spread = a * world.variances[None] + 1 - a
    log_n = -0.5 * ((x[:, None] - a.sqrt() * world.means) ** 2 / spread + spread.log())
    log_p = torch.logsumexp(log_n.sum(dim=(2, 3, 4)) + weights.log(), dim=1)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    eps = world.predict_noise(x.detach(), t, condition)
    expected = -(1 - world.alpha_bar[t]).sqrt().reshape(-1, 1, 1, 1) * score
    torch.testing.assert_close(eps, expected, rtol=1e-10, atol=1e-12)


def test_a_standard_normal_does_not_move_along_the_flow() -> None:
    world = single(1.0, torch.zeros(SHAPE, dtype=torch.float64), alpha_bar=fine_alpha_bar(8000))
    x = randn(1, *SHAPE)
    t = torch.tensor([100])
    expected = (1 - world.alpha_bar[100]).sqrt() * x
    eps = world.predict_noise(x, t, world.embed([""]))
    torch.testing.assert_close(eps, expected, rtol=1e-12, atol=0)
    times = torch.arange(0, 7001)[None]
    moved = ddim_invert(x, times, knowing(world, world.embed([""])), world.alpha_bar)
    assert float((moved / x - 1).abs().max()) < 5e-3  # first order in 8000 steps
    assert float(unmix(moved, torch.zeros_like(x), world.alpha_bar[7000:7001]).std()) > 2


def euler_factor(variance: float, s_from: Tensor, s_to: Tensor) -> Tensor:
    return (variance + s_from * s_to) / (variance + s_from**2)


@pytest.mark.parametrize("variance", [0.1, 2.0])
@pytest.mark.parametrize("times", [[0, 50, 310, 311, 900], [0, 999], [0, 1]])
def test_inversion_is_the_product_of_euler_factors(variance: float, times: list[int]) -> None:
    world = single(variance)
    z = randn(1, *SHAPE)
    predict = knowing(world, world.embed([""]))
    moved = ddim_invert(z, torch.tensor([times]), predict, world.alpha_bar)
    level = torch.cat(
        [torch.ones(1, dtype=torch.float64), world.alpha_bar[torch.tensor(times[1:])]]
    )
    s = sigma(level)
    factor = torch.stack([euler_factor(variance, a, b) for a, b in itertools.pairwise(s)]).prod()
    expected = level[-1].sqrt() * (world.means + factor * (z - world.means))
    torch.testing.assert_close(moved, expected, rtol=1e-11, atol=1e-12)


def test_a_round_trip_loses_second_order_per_step_and_nothing_in_the_limit() -> None:
    variance = 0.4
    world = single(variance)
    condition = world.embed([""])
    z = randn(1, *SHAPE)
    lost = []
    for count in (8, 16, 32, 64):
        times = torch.linspace(0, 640, count + 1).round().long()
        x = ddim_invert(z, times[None], knowing(world, condition), world.alpha_bar)
        levels = torch.where(times > 0, world.alpha_bar[times], torch.ones(()).double())
        for k in range(count, 0, -1):
            eps = world.noise_at(x, levels[k : k + 1], condition)
            clean = unmix(x, eps, levels[k : k + 1])
            x = mix(clean, eps, levels[k - 1 : k])
        s = sigma(levels)
        expected = torch.stack(
            [
                1 - variance * (b - a) ** 2 / ((variance + a**2) * (variance + b**2))
                for a, b in itertools.pairwise(s)
            ]
        ).prod()
        torch.testing.assert_close(
            x - world.means, expected * (z - world.means), rtol=1e-9, atol=1e-12
        )
        lost.append(float(1 - expected))
    orders = [torch.tensor(a / b).log2().item() for a, b in itertools.pairwise(lost)]
    assert all(0.7 < order < 1.3 for order in orders), orders  # second order per step, first in all


def test_inversion_converges_to_the_exact_flow_at_first_order() -> None:
    variance, errors = 0.5, []
    for count in (200, 400, 800, 1600):
        table = fine_alpha_bar(count)
        world = single(variance, alpha_bar=table)
        z = randn(1, *SHAPE)
        last = int(0.7 * count)
        predict = knowing(world, world.embed([""]))
        moved = ddim_invert(z, torch.arange(last + 1)[None], predict, table)
        s = sigma(table[last])
        growth = ((variance + s**2) / variance).sqrt()
        exact = table[last].sqrt() * (world.means + growth * (z - world.means))
        errors.append(float((moved - exact).abs().max()))
    orders = [torch.tensor(a / b).log2().item() for a, b in itertools.pairwise(errors)]
    assert all(0.8 < order < 1.2 for order in orders), orders


def test_inversion_of_a_mixture_converges_to_runge_kutta() -> None:
    world = mixture()
    condition = world.embed([""])
    z = randn(1, *SHAPE, seed=4)

    def slope(x_bar: Tensor, s: float) -> Tensor:
        level = torch.tensor([1.0 / (1.0 + s * s)], dtype=torch.float64)
        return world.noise_at(x_bar * level.sqrt(), level, condition)

    end = float(sigma(world.alpha_bar[600]))
    steps, x = 4000, z.clone()
    for k in range(steps):  # classical Runge-Kutta in sigma
        s, h = end * k / steps, end / steps
        k1 = slope(x, s)
        k2 = slope(x + h / 2 * k1, s + h / 2)
        k3 = slope(x + h / 2 * k2, s + h / 2)
        k4 = slope(x + h * k3, s + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    errors = []
    for stride in (8, 4, 2, 1):
        times = torch.arange(0, 601, stride)[None]
        moved = ddim_invert(z, times, knowing(world, condition), world.alpha_bar)
        errors.append(float((moved / world.alpha_bar[600].sqrt() - x).norm() / x.norm()))
    assert errors[-1] < 5e-3
    orders = [torch.tensor(a / b).log2().item() for a, b in itertools.pairwise(errors)]
    assert all(0.7 < order < 1.3 for order in orders), orders


@pytest.mark.parametrize("t", [1, 250, 700, 999])
def test_exact_kappa_solves_the_fixed_point_and_moves_by_its_factor(t: int) -> None:
    variance = 0.3
    world = single(variance)
    condition = world.embed([""])
    z = randn(1, *SHAPE)
    level = world.alpha_bar[t : t + 1]
    s = sigma(level)
    kappa = (s / variance) * (z - world.means)
    again = world.noise_at(mix(z, kappa, level), level, condition)
    torch.testing.assert_close(again, kappa, rtol=1e-9, atol=1e-12)  # eq. 8
    x_bar = z + s * kappa
    clean = unmix(level.sqrt() * x_bar, again, level)
    expected = world.means + variance / (variance + s**2) * (x_bar - world.means)
    torch.testing.assert_close(clean, expected, rtol=1e-9, atol=1e-12)
    cleaner = world.alpha_bar[t // 2 : t // 2 + 1]
    s2 = sigma(cleaner)
    eps = world.noise_at(mix(z, kappa, cleaner), cleaner, condition)
    moved = z - s2 * (eps - kappa)  # eq. 10
    factor = (variance + s * s2) / (variance + s2**2)
    torch.testing.assert_close(
        moved - world.means, factor * (z - world.means), rtol=1e-9, atol=1e-12
    )


def test_eq_10_with_cached_noise_is_ddim_for_any_denoiser() -> None:
    """On the grid of the authors' 2D notebook, with a mixture: equal to rounding."""
    world = mixture()
    condition = world.embed(["red", "red"])
    grid = [999, *range(980, 19, -24)]
    noise = randn(2, *SHAPE, seed=8)

    def level(t: int) -> Tensor:
        return world.alpha_bar[t : t + 1].expand(2)

    x = noise  # DDIM itself
    for t, t_next in itertools.pairwise(grid):
        eps = world.noise_at(x, level(t), condition)
        x = mix(unmix(x, eps, level(t)), eps, level(t_next))
    ddim = unmix(x, world.noise_at(x, level(grid[-1]), condition), level(grid[-1]))

    kappa = world.noise_at(noise, level(999), condition)  # the same process on x0(t)
    z = unmix(noise, kappa, level(999))
    for t in grid[1:]:
        eps = world.noise_at(mix(z, kappa, level(t)), level(t), condition)
        z, kappa = z - per_sample(sigma(level(t))) * (eps - kappa), eps
    assert float((z - ddim).abs().max()) < 1e-12


def test_inverted_kappa_is_the_weighted_mean_of_the_predictions() -> None:
    """For any denoiser whatever, here an arbitrary function: kappa = sum(d_sigma eps) / sigma."""
    table = scaled_linear_alpha_bar()
    z = randn(2, *SHAPE)
    seen: list[Tensor] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        seen.append(torch.sin(3 * x + t.reshape(-1, 1, 1, 1) * 0.01))
        return seen[-1]

    times = torch.tensor([[0, 3, 170, 420, 777], [0, 100, 200, 300, 400]])
    moved = ddim_invert(z, times, predict, table)
    kappa = noise_between(moved, z, table[times[:, -1]])
    s = torch.where(times > 0, sigma(table[times]), torch.zeros(()).double())
    expected = sum(per_sample((s[:, k + 1] - s[:, k]) / s[:, -1]) * seen[k] for k in range(4))
    torch.testing.assert_close(kappa, expected, rtol=1e-9, atol=1e-11)
    seen.clear()
    once = DDIMInversion(steps=1, tau_max=0.0, entropy=0.0, cfg_scale=1.0)
    found = noised(once, z, [500, 700], Answers(predict), table)
    assert len(seen) == 1  # one step: kappa is the prediction on the clean rendering
    torch.testing.assert_close(found.kappa, seen[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("t", [100, 500, 990])
def test_kappa_is_read_at_the_level_that_the_inversion_reached(t: int) -> None:
    """A denoiser that always answers c moves along a straight line, so kappa = c for any tau."""
    z, c = randn(2, *SHAPE), randn(2, *SHAPE, seed=5)
    strategy = DDIMInversion(tau_max=0.3, entropy=0.0)
    table = scaled_linear_alpha_bar()
    kappa = noised(strategy, z, [t, t], Answers(lambda x, s: c), table).kappa
    torch.testing.assert_close(kappa, c, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("variance", [0.05, 0.6, 4.0])
def test_bias_of_inversion_against_the_exact_kappa(variance: float) -> None:
    """kappa_inv / kappa* = (sqrt(1 + u) - 1) / u and the target contracts by 1 / sqrt(1 + u)."""
    table = fine_alpha_bar(20_000)
    world = single(variance, alpha_bar=table)
    condition = world.embed([""])
    z, last = randn(1, *SHAPE), 12_000
    times = torch.arange(0, last + 1)[None]
    moved = ddim_invert(z, times, knowing(world, condition), table)
    level = table[last : last + 1]
    s = sigma(level)
    u = s**2 / variance
    kappa = noise_between(moved, z, level)
    exact = (s / variance) * (z - world.means)
    ratio = float((kappa / exact).mean())
    assert ratio == pytest.approx(float(((1 + u).sqrt() - 1) / u), rel=2e-3)
    target = unmix(moved, world.noise_at(moved, level, condition), level)
    contraction = float(((target - world.means) / (z - world.means)).mean())
    assert contraction == pytest.approx(float(1 / (1 + u).sqrt()), rel=2e-3)
