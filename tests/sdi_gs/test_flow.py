# SPDX-License-Identifier: Apache-2.0
"""Rectified flow as a denoiser: against a Gaussian whose velocity is known in closed form, against
the flow's own Euler steps, and against a model of the other kind that is told as a flow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdi_gs.diffusion.analytic import GaussianMixture
from sdi_gs.diffusion.base import Condition, Denoiser
from sdi_gs.diffusion.flow import Flow, FlowTable, alpha_bar_of_flow, flow_times, shifted
from sdi_gs.diffusion.schedule import LEAST_SIGNAL, mix, unmix
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.guidance import PromptConfig, PromptSet, ScoreDistillation
from sdi_gs.guidance.inversion import ddim_invert
from sdi_gs.guidance.noise import DDIMInversion
from sdi_gs.mini import MINI_DIR

from .doubles import around, components, randn, rng

VARIANCE = 0.3
MEAN = randn(1, 3, 4, 4, seed=7)


def velocity(z: Tensor, s: Tensor, condition: Condition) -> Tensor:
    """E[eps - x | z] of x ~ N(MEAN, VARIANCE) and eps ~ N(0, 1) in z = (1 - s) x + s eps: the
    regression of two normal variables on a third."""
    s = s.reshape(-1, 1, 1, 1)
    a = 1.0 - s
    away = (z - a * MEAN) / (a**2 * VARIANCE + s**2)
    return s * away - (MEAN + a * VARIANCE * away)


def flow(shift: float = 3.0) -> tuple[Flow, GaussianMixture]:
    """The flow of that Gaussian, and the same Gaussian in variance-preserving words."""
    s = flow_times(1000, shift)
    table = alpha_bar_of_flow(s)
    variance = torch.tensor([VARIANCE], dtype=torch.float64)
    exact = GaussianMixture(MEAN, variance, alpha_bar=table)
    return Flow(velocity, exact, s), exact


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_noise_of_a_flow_is_the_exact_one(shift: float) -> None:
    told, exact = flow(shift)
    assert isinstance(told, Denoiser)
    t = torch.tensor([0, 1, 30, 400, 700, len(told.alpha_bar) - 1])
    x_t = randn(6, 3, 4, 4)
    words = components([[1.0]] * 6)
    ours, theirs = (model.predict_noise(x_t, t, words) for model in (told, exact))
    assert float((ours - theirs).abs().max()) < 1e-12
    assert float(ours[0].abs().max()) < 1e-12  # at time 0, which is clean, there is no noise


def test_an_inversion_goes_the_flows_own_steps() -> None:
    told, _ = flow()
    z = randn(2, 3, 4, 4, seed=3)
    times = torch.tensor([[0, 50, 200, 450, 800], [0, 10, 20, 400, 400]])
    words = components([[1.0]] * 2)
    found = ddim_invert(z, times, lambda x, t: told.predict_noise(x, t, words), told.alpha_bar)
    s = torch.where(times > 0, told.table.s[times], torch.zeros(())).double()
    here = z
    for k in range(4):
        step = (s[:, k + 1] - s[:, k]).reshape(-1, 1, 1, 1)
        here = here + step * velocity(here, s[:, k], words)
    last = s[:, -1].reshape(-1, 1, 1, 1)
    expected = here / ((1 - last) ** 2 + last**2).sqrt()
    assert float((found - expected).abs().max()) < 1e-12


def test_a_step_from_one_level_to_another_is_a_step_of_the_flow() -> None:
    """For any epsilon, not just that of a model that is right."""
    table = FlowTable(flow_times())
    z, v = randn(1, 3, 4, 4), randn(1, 3, 4, 4, seed=1)
    t = torch.tensor([600])
    s, to = table.s[600], table.s[200]
    size = ((1 - s) ** 2 + s**2).sqrt()
    eps = table.noise(lambda z, s: v, z / size, t)
    a, b = table.alpha_bar[[600]], table.alpha_bar[[200]]
    moved = mix(unmix(z / size, eps, a), eps, b) * ((1 - to) ** 2 + to**2).sqrt()
    assert float((moved - (z + (to - s) * v)).abs().max()) < 1e-12
    assert float((unmix(z / size, eps, a) - (z - s * v)).abs().max()) < 1e-12


def test_the_times_of_a_flow_end_where_the_signal_does() -> None:
    s = flow_times(1000, 3.0)
    table = alpha_bar_of_flow(s)
    assert bool((s[1:] > s[:-1]).all())
    assert float(table[-1]) >= LEAST_SIGNAL
    beyond = shifted(torch.tensor((len(s) + 1) / 1000.0).double(), 3.0)
    assert float(alpha_bar_of_flow(beyond)) < LEAST_SIGNAL
    assert float(shifted(torch.tensor(0.5).double(), 3.0)) == pytest.approx(0.75)
    u = torch.linspace(0, 1, 5)
    assert torch.equal(shifted(u, 1.0), u)
    with pytest.raises(ValueError, match="hold no signal"):
        FlowTable(torch.tensor([0.5, 1.0]))


def test_the_times_are_those_of_the_published_scheduler() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas.flip(0)
    ours = flow_times(1000, 3.0).float()
    torch.testing.assert_close(ours, theirs[: len(ours)])


@pytest.fixture(scope="module")
def mini() -> StableDiffusion:
    return StableDiffusion.load(MINI_DIR)


class AsFlow:
    """The velocity that a model of the other kind means."""

    def __init__(self, model: StableDiffusion) -> None:
        self.model = model
        level = model.alpha_bar.double()
        noise = ((1 - level) / level).sqrt()
        self.s = noise / (1 + noise)

    def __call__(self, z: Tensor, s: Tensor, condition: Condition) -> Tensor:
        found = (self.s[None].to(s) - s[:, None]).abs().argmin(1)
        share = s.reshape(-1, 1, 1, 1)
        size = ((1 - share) ** 2 + share**2).sqrt()
        eps = self.model.predict_noise(z / size, found, condition)
        return (eps - z) / (1 - share)


@pytest.mark.parametrize("perp_neg", ["none", "threestudio"])
def test_mini_told_as_a_flow_guides_as_mini(mini: StableDiffusion, perp_neg: str) -> None:
    other = AsFlow(mini)
    told = Flow(other, mini, other.s.float())
    torch.testing.assert_close(told.alpha_bar, mini.alpha_bar, rtol=1e-5, atol=1e-7)
    rgb = torch.rand(2, 3, 64, 64, generator=rng(1))
    views = around(20.0, 130.0)
    targets = []
    for model in (mini, told):
        config = PromptConfig(perp_neg=perp_neg)  # type: ignore[arg-type]
        prompts = PromptSet(model, "a red mug", "", config)
        guide = ScoreDistillation(model, prompts, DDIMInversion(steps=3), steps=10)
        targets.append(guide(rgb, views, 4, rng(2)).target)
    scale = float(targets[0].abs().max())
    assert float((targets[0] - targets[1]).abs().max()) < 2e-3 * scale  # float32, 16 calls
    assert float((targets[0] - mini.encode(rgb)).abs().max()) > 0.05 * scale
