# SPDX-License-Identifier: Apache-2.0
"""Where an inversion asks the network, and what it believes of the noise in between."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sdi_gs.diffusion.schedule import (
    alpha_bar_at,
    noise_between,
    per_sample,
    scaled_linear_alpha_bar,
    sigma,
)
from sdi_gs.guidance.inversion import ddim_invert, root_times
from sdi_gs.guidance.noise import DDIMInversion
from sdi_gs.ramp import Progress, Ramp

from .doubles import Answers, noised, randn
from .test_oracles_denoiser import fine_alpha_bar, knowing, single

TABLE = scaled_linear_alpha_bar()
SHAPE = (4, 3, 3)


def u_of(times: Tensor, table: Tensor, rho: float) -> Tensor:
    return sigma(alpha_bar_at(table, times)) ** (1.0 / rho)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_steps_are_even_in_the_root_of_sigma(rho: float) -> None:
    """As even as whole times allow: no other time lies nearer to where a step should end."""
    steps, last = torch.tensor([4, 3, 1]), torch.tensor([980, 707, 300])
    times = root_times(steps, last, TABLE, rho)
    assert times.shape == (3, 5)
    assert times[:, 0].tolist() == [0, 0, 0]
    assert times[:, -1].tolist() == last.tolist()  # to the very time, whatever sigma rounds to
    assert times[1, 3] == times[1, 4]  # who is done waits
    every = u_of(torch.arange(1000), TABLE, rho)
    for row, n, end in zip(times, steps.tolist(), last.tolist(), strict=True):
        for k in range(n + 1):
            wanted = k / n * every[end]
            assert abs(every[row[k]] - wanted) == (every - wanted).abs().min()
    assert torch.equal(times[:1], root_times(steps[:1], last[:1], TABLE, rho))


def test_rho_of_one_is_even_in_sigma_itself() -> None:
    times = root_times(torch.tensor([2]), torch.tensor([999]), TABLE, 1.0)
    assert float(sigma(TABLE[times[0, 1]])) == pytest.approx(float(sigma(TABLE[999])) / 2, rel=5e-3)


@pytest.mark.parametrize("rho", [1.0, 3.0])
def test_the_second_order_is_exact_for_a_noise_that_is_straight_in_u(rho: float) -> None:
    """After the first step, which has no step before it: the sample moves by the integral of
    c0 + c1 u over sigma, whatever the steps are."""
    times = torch.tensor([[0, 100, 130, 500, 940]])
    z, slope = randn(1, *SHAPE, seed=1), randn(1, *SHAPE, seed=2)

    def eps(x: Tensor, t: Tensor) -> Tensor:
        return 0.7 + slope * u_of(t, TABLE, rho)

    def integral(t_from: int, t_to: int) -> Tensor:
        a, b = (u_of(torch.tensor([t]), TABLE, rho) for t in (t_from, t_to))
        straight = rho / (rho + 1) * (b ** (rho + 1) - a ** (rho + 1))  # of u d sigma
        return 0.7 * (b**rho - a**rho) + slope * straight

    moved = ddim_invert(z, times, eps, TABLE, rho) / TABLE[940].sqrt()
    first = z + eps(z, torch.tensor([0])) * sigma(TABLE[100])
    torch.testing.assert_close(moved, first + integral(100, 940), rtol=1e-12, atol=1e-12)
    euler = ddim_invert(z, times, eps, TABLE) / TABLE[940].sqrt()
    assert float((euler - moved).norm()) > 0.1


def test_a_pause_of_one_view_changes_nothing_for_it_or_the_others() -> None:
    world = single(0.5)
    predict = knowing(world, world.embed([""]))
    z = randn(2, *SHAPE)
    short, long = [0, 40, 300], [0, 10, 200, 600, 900]
    both = torch.tensor([[*short, 300, 300], long])
    together = ddim_invert(z, both, predict, world.alpha_bar, 3.0)
    for row, times in enumerate((short, long)):
        alone = ddim_invert(z[row : row + 1], torch.tensor([times]), predict, world.alpha_bar, 3.0)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=1e-12)
    # A step without length in the middle, after which there is nothing to go on from.
    halting = ddim_invert(z, torch.tensor([[0, 40, 40, 300]]).expand(2, -1), predict,
                          world.alpha_bar, 3.0)  # fmt: skip
    assert bool(torch.isfinite(halting).all())


def test_the_orders_are_one_and_two() -> None:
    """Halving the steps halves the error of Euler's rule, and quarters that of the second."""
    variance, table = 0.5, fine_alpha_bar(20_000)
    world, z, last = single(variance, alpha_bar=table), randn(1, *SHAPE), torch.tensor([14_000])
    growth = ((variance + sigma(table[last]) ** 2) / variance).sqrt()
    exact = table[last].sqrt() * (world.means + growth * (z - world.means))
    predict = knowing(world, world.embed([""]))
    errors: dict[float | None, list[float]] = {None: [], 3.0: []}
    for count in (20, 40, 80):
        times = root_times(torch.tensor([count]), last, table, 3.0)
        for rho, found in errors.items():
            moved = ddim_invert(z, times, predict, table, rho)
            found.append(float((moved - exact).abs().max()))
    for rho, order in ((None, 1.0), (3.0, 2.0)):
        halved = [torch.tensor(a / b).log2().item() for a, b in pairwise(errors[rho])]
        assert all(abs(value - order) < 0.25 for value in halved), halved
    assert errors[3.0][-1] < 0.1 * errors[None][-1]


def test_the_settings_reach_the_solver() -> None:
    """Four steps of the second order come nearer to the exact noise than four of the first; and
    those end where the same steps by hand do."""
    world = single(0.3)
    z = randn(2, *SHAPE, seed=3) * 0.3**0.5 + world.means
    t = [900, 500]
    s = per_sample(sigma(TABLE[torch.tensor(t)]))
    exact = (((0.3 + s**2) / 0.3).sqrt() - 1.0) / s * (z - world.means)
    still = {"cfg_scale": 1.0, "tau_max": 0.0, "entropy": 0.0, "steps": 4}
    kinds = (DDIMInversion(**still), DDIMInversion(**still, rho=3.0),
             DDIMInversion(**still, rho=3.0, order=2))  # fmt: skip
    away = []
    for noise in kinds:
        found = noised(noise, z, t, Answers(knowing(world, world.embed([""]))), TABLE)
        away.append(float((found.kappa - exact).norm()))
    assert away[2] < 0.3 * min(away[:2]), away
    at = torch.tensor(t)
    times = root_times(torch.tensor([4, 4]), at, TABLE, 3.0)
    by_hand = ddim_invert(z, times, knowing(world, world.embed([""])), TABLE)
    found = noised(kinds[1], z, t, Answers(knowing(world, world.embed([""]))), TABLE)
    torch.testing.assert_close(found.kappa, noise_between(by_hand, z, TABLE[at]))


def test_the_spacing_may_move_over_the_run() -> None:
    """Halfway from 3 to 1 the times are those of 2, in both orders."""
    world = single(0.3)
    z = randn(2, *SHAPE, seed=3) * 0.3**0.5 + world.means
    still = {"cfg_scale": 1.0, "tau_max": 0.0, "entropy": 0.0, "steps": 4}
    for order in (1, 2):
        moving = DDIMInversion(**still, rho=Ramp(3.0, 1.0), order=order)
        found = {}
        for step, rho in ((0, 3.0), (50, 2.0), (100, 1.0)):
            now = Progress(step, 100)
            answers = Answers(knowing(world, world.embed([""])))
            found[rho] = noised(moving, z, [900, 500], answers, TABLE, progress=now).kappa
            fixed = DDIMInversion(**still, rho=rho, order=order)
            assert torch.equal(found[rho], noised(fixed, z, [900, 500], answers, TABLE).kappa)
            at = torch.tensor([900, 500])
            assert torch.equal(moving.times(at, at, TABLE, now), fixed.times(at, at, TABLE))
        assert not torch.equal(found[3.0], found[2.0])


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"noise\.rho=0\.5 is not possible: allowed is 1 to 100"):
        DDIMInversion(rho=0.5)
    with pytest.raises(ValueError, match=r"noise\.order=2 is not possible.*noise\.rho=3"):
        DDIMInversion(order=2)
