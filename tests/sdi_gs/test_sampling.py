# SPDX-License-Identifier: Apache-2.0
"""DDIM: its times, its closed form on a Gaussian, and the noise it starts from."""

from __future__ import annotations

import itertools

import pytest
import torch

from sdi_gs.diffusion.analytic import gaussian
from sdi_gs.diffusion.schedule import scaled_linear_alpha_bar, sigma
from sdi_gs.guidance.predict import GuidedPredictor
from sdi_gs.guidance.prompts import Conditions
from sdi_gs.guidance.sampling import ddim_sample, ddim_times, pure_noise

from .doubles import randn

TABLE = scaled_linear_alpha_bar()


def test_times_fall_evenly_and_leave_zero_out() -> None:
    assert ddim_times(1, 1000) == [999]
    assert ddim_times(3, 1000) == [999, 666, 333]
    assert ddim_times(10, 10) == [9, 8, 7, 6, 5, 4, 4, 3, 2, 1]  # Python rounds 4.5 to even
    assert ddim_times(4, 1000, first=400) == [400, 300, 200, 100]
    for steps in (0, 11):
        with pytest.raises(ValueError, match=rf"steps={steps} must lie in 1\.\.10"):
            ddim_times(steps, 10)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_gaussian_is_sampled_by_the_product_of_its_euler_factors(steps: int) -> None:
    """In rescaled coordinates each step multiplies the distance to the mean by
    ``(v + s s') / (v + s^2)``, down to level 0."""
    variance, mean = 0.3, randn(4, 3, 3, seed=2)
    world = gaussian(mean, variance)
    predict = GuidedPredictor(world, Conditions(world.embed([""] * 2), world.embed([""] * 2)))
    noise = randn(2, 4, 3, 3, seed=1)
    found = ddim_sample(predict, noise, steps, 1.0)
    levels = [float(sigma(TABLE[t])) for t in ddim_times(steps, 1000)] + [0.0]
    factor = 1.0
    for a, b in itertools.pairwise(levels):
        factor *= (variance + a * b) / (variance + a * a)
    start = noise / TABLE[-1].sqrt()
    torch.testing.assert_close(found, mean + factor * (start - mean), rtol=1e-9, atol=1e-11)
    assert predict.evaluations == 2 * steps


def test_the_first_noise_is_standard_normal_and_of_the_shape_of_latents() -> None:
    world = gaussian(torch.zeros(4, 16, 16), 1.0)
    one, again, other = (pure_noise(world, 50, 64, seed, torch.device("cpu")) for seed in (3, 3, 4))
    assert one.shape == (50, 4, 16, 16)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert float(one.mean()) == pytest.approx(0.0, abs=4.5 / one.numel() ** 0.5)
    assert float(one.std()) == pytest.approx(1.0, abs=4.5 / (2 * one.numel()) ** 0.5)
