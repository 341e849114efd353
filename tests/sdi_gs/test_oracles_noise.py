# SPDX-License-Identifier: Apache-2.0
"""The choices of kappa, asked by themselves: their times, their randomness, number by number."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from sdi_gs.diffusion.schedule import mix, scaled_linear_alpha_bar, sigma
from sdi_gs.guidance.inversion import even_times
from sdi_gs.guidance.noise import (
    DDIMInversion,
    FixedNoise,
    IntervalInversion,
    ReleasedInversion,
)
from sdi_gs.guidance.predict import GuidedPredictor
from sdi_gs.guidance.prompts import Conditions
from sdi_gs.ramp import Progress, Ramp

from .doubles import Answers, Latent, noised, randn, rng

SHAPE = (4, 2, 2)
TABLE = scaled_linear_alpha_bar()
ZERO = Answers(lambda x, t: torch.zeros_like(x))


def asked(count: int) -> GuidedPredictor:
    """A guided prediction on a mixture."""
    world = Latent(
        randn(3, *SHAPE, seed=1),
        torch.tensor([0.2, 0.5, 0.05], dtype=torch.float64),
        names={"red": [0, 1]},
    )
    return GuidedPredictor(
        world, Conditions(world.embed([""] * count), world.embed(["red"] * count))
    )


def test_released_grid_and_its_cost() -> None:
    noise = ReleasedInversion()
    assert noise.times(980, 50, 1000) == [-99, *range(1, 902, 100), 999]
    assert noise.times(250, 0, 1000) == [-99, 1, 101, 201, 250]
    assert noise.times(101, 3, 1000) == [-99, 1, 104]
    assert noise.times(102, 0, 1000) == [-99, 1, 101, 102]
    with pytest.raises(ValueError, match="t > 1"):
        noise.times(1, 0, 1000)
    costs = [len(noise.times(int(1000 * Ramp(0.98, 0.25).at(i, 10_000)), 0, 1000)) - 1
             for i in range(10_000)]  # fmt: skip
    assert (costs[0], costs[-1]) == (11, 4)
    assert sum(costs) / len(costs) == pytest.approx(7.63, abs=0.01)


@pytest.mark.parametrize(
    ("t", "expected"), [(980, 0.297), (800, 0.287), (600, 0.264), (400, 0.225), (250, 0.202)]
)
def test_released_noise_accumulates_as_published(t: int, expected: float) -> None:
    """With a denoiser that answers zero, the injected noise alone is left in kappa (tau = 50)."""

    class Tau50(ReleasedInversion):
        def times(self, t: int, tau: int, total: int) -> list[int]:
            return super().times(t, 50, total)

    z = torch.zeros(1, 4, 64, 64, dtype=torch.float64)
    found = noised(Tau50(), z, [t], ZERO, TABLE)
    assert float(found.kappa.std()) == pytest.approx(expected, abs=0.006)


def test_an_inversion_beyond_the_end_of_the_schedule_ends_there() -> None:
    """t = 999 and any tau: three even steps to 999, whatever was drawn."""
    times: list[int] = []

    def zero(x: Tensor, t: Tensor) -> Tensor:
        times.append(int(t[0]))
        return torch.zeros_like(x)

    z = torch.zeros(1, 4, 2, 2, dtype=torch.float64)
    noised(DDIMInversion(steps=3, tau_max=0.5), z, [999], Answers(zero), TABLE)
    assert times == [0, 333, 666]


def test_paper_entropy_noise_has_its_stated_size() -> None:
    z = torch.zeros(1, 4, 64, 64, dtype=torch.float64)
    kappa = noised(DDIMInversion(tau_max=0.0), z, [600], ZERO, TABLE).kappa
    expected = 0.3 * float((1 - TABLE[600]).sqrt())
    assert float(kappa.std()) == pytest.approx(expected, rel=0.03)
    quiet = noised(DDIMInversion(tau_max=0.0, entropy=0.0), z, [600], ZERO, TABLE).kappa
    assert float(quiet.abs().max()) == 0.0


@pytest.mark.parametrize(("t", "tau_max"), [(500, 1 / 30), (500, 0.1), (990, 1 / 30)])
def test_the_time_beyond_t_is_uniform(t: int, tau_max: float) -> None:
    """tau ~ U(0, 1/30) (App. A), by the answers of a denoiser that tells the time it is asked at:
    two Euler steps, at 0 and half way, leave ``kappa = (1 - s_half / s_last) * half``."""
    count, widest = 20_000, 1000 * tau_max
    strategy = DDIMInversion(steps=2, tau_max=tau_max, entropy=0.0)
    tells = Answers(lambda x, at: at.to(x).reshape(-1, 1, 1, 1).expand_as(x))
    z = torch.zeros(count, 1, 1, 1, dtype=torch.float64)
    found = noised(strategy, z, [t] * count, tells, TABLE, rng(1))
    last = torch.arange(t, min(t + round(widest), 999) + 1)
    half = (last / 2).round().long()
    left = (1 - sigma(TABLE[half]) / sigma(TABLE[last])) * half
    assert float(left.sort().values.diff().min()) > 1e-3  # each last time leaves another kappa
    distance = (found.kappa.flatten()[:, None] - left).abs()
    assert float(distance.amin(dim=1).max()) < 1e-9
    seen = torch.bincount(distance.argmin(dim=1), minlength=len(last))
    edges = (torch.arange(len(last) + 1) - 0.5).clamp(0.0, widest)  # tau is rounded to a time
    expected = edges.diff() * count / widest
    expected[-1] += count - expected.sum()  # what would lie beyond the schedule
    square = float(((seen - expected) ** 2 / expected).sum())
    assert square < float(chi2.ppf(0.999, len(last) - 1))
    torch.testing.assert_close(found.x_t, mix(z, found.kappa, TABLE[[t]]))  # back at t, for all


@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_entropy_is_added_to_the_inverted_noise(entropy: float) -> None:
    """Eq. 11 number by number; without entropy nothing is drawn but tau."""
    z, predict = randn(2, *SHAPE), asked(2)
    generator, replay = rng(7), rng(7)
    quiet = noised(DDIMInversion(entropy=0.0), z, [400, 700], predict, TABLE, rng(7)).kappa
    found = noised(DDIMInversion(entropy=entropy), z, [400, 700], predict, TABLE, generator).kappa
    torch.rand(2, generator=replay)
    if entropy > 0.0:
        fresh = torch.randn(z.shape, generator=replay, dtype=torch.float64)
        deviation = entropy * (1 - TABLE[[400, 700]]).sqrt().reshape(-1, 1, 1, 1)
        quiet = quiet + deviation * fresh
    torch.testing.assert_close(found, quiet, rtol=1e-12, atol=1e-12)
    assert torch.equal(generator.get_state(), replay.get_state())


def test_fixed_noise_is_one_noise_for_every_view_and_step() -> None:
    z = randn(3, *SHAPE)
    one, later = (
        noised(FixedNoise(), z, [400] * 3, ZERO, TABLE, rng(seed), Progress(step, 10)).kappa
        for seed, step in ((1, 0), (2, 7))
    )
    assert torch.equal(one, later)
    assert torch.equal(one[:1].expand_as(one), one)
    other = noised(FixedNoise(seed=5), z, [400] * 3, ZERO, TABLE).kappa
    assert not torch.equal(one, other)
    drawn = torch.randn(1, *SHAPE, generator=rng(5), dtype=torch.float64)
    assert torch.equal(other[:1], drawn)


@pytest.mark.parametrize(("t", "last"), [(400, 437), (980, 999)])
def test_released_inversion_of_a_constant_denoiser(t: int, last: int) -> None:
    """A denoiser that always answers c leaves the rendering on one line: read as a sample of the
    table's first level, ``z = sqrt(a_0) x + sqrt(1 - a_0) c``, it arrives at
    ``sqrt(a_u) x + sqrt(1 - a_u) c``, and the noise of each step, of its posterior deviation times
    eta, is scaled down with the signal."""
    z, c = randn(2, *SHAPE), randn(2, *SHAPE, seed=5)
    noise = ReleasedInversion(spacing=100, eta=0.3)
    seed = next(k for k in range(999) if int(torch.randint(100, (), generator=rng(k))) == 37)
    told: list[int] = []

    def constant(x: Tensor, at: Tensor) -> Tensor:
        told.append(int(at[0]))
        return c

    found = noised(noise, z, [t, t], Answers(constant), TABLE, rng(seed))
    grid = [-99, *range(1, t, 100), last]
    assert told == grid[:-1]
    levels = [TABLE[max(k, 0)] for k in grid]
    x = (z - (1 - levels[0]).sqrt() * c) / levels[0].sqrt()
    expected = levels[-1].sqrt() * x + (1 - levels[-1]).sqrt() * c
    replay = rng(seed)
    torch.randint(100, (), generator=replay)
    for a, b in itertools.pairwise(levels):
        posterior = ((1 - a) / (1 - b) * (1 - b / a)).sqrt()
        fresh = torch.randn(z.shape, generator=replay, dtype=torch.float64)
        expected = expected + 0.3 * posterior * (levels[-1] / b).sqrt() * fresh
    torch.testing.assert_close(found.x_t, expected, rtol=1e-9, atol=1e-10)
    kappa = (expected - levels[-1].sqrt() * z) / (1 - levels[-1]).sqrt()
    torch.testing.assert_close(found.kappa, kappa, rtol=1e-9, atol=1e-10)


def test_released_inversion_wants_one_time_for_all() -> None:
    with pytest.raises(ValueError, match=r"guidance\.t\.same_for_batch=true"):
        noised(ReleasedInversion(), randn(3, *SHAPE), [400, 400, 401], ZERO, TABLE)
    noised(ReleasedInversion(), randn(1, *SHAPE), [400], ZERO, TABLE)


def test_steps_are_even_and_those_who_are_done_wait() -> None:
    times = even_times(torch.tensor([1, 3, 4]), torch.tensor([10, 9, 7]))
    assert times.tolist() == [[0, 10, 10, 10, 10], [0, 3, 6, 9, 9], [0, 2, 4, 5, 7]]
    noise = DDIMInversion(steps_per_unit=100.0)  # 100 * 0.29 is 28.999999999999996
    t = torch.tensor([290, 9])
    assert [len(row.unique()) - 1 for row in noise.times(t, t, TABLE)] == [29, 1]
    assert DDIMInversion().times(t, t, TABLE).shape == (2, 3)  # no more columns than steps
    interval = IntervalInversion(spacing=0.29, most_steps=9)  # 29 / (0.29 * 100) is above 1
    t = torch.tensor([29, 30, 58, 99, 0])
    assert [len(row.unique()) - 1 for row in interval.times(t, 100)] == [1, 2, 2, 4, 0]


def test_paper_grid() -> None:
    noise = DDIMInversion()
    t = torch.tensor([1, 99, 250, 700, 998, 999])
    times = noise.times(t, t, TABLE)
    steps = [int((row.diff() > 0).sum()) for row in times]
    assert steps == [1, 1, 2, 7, 9, 10]  # the last index of a schedule stands for t = 1
    assert times[:, 0].tolist() == [0] * 6
    assert times[:, -1].tolist() == t.tolist()
    assert times[3, :8].tolist() == [0, 100, 200, 300, 400, 500, 600, 700]
