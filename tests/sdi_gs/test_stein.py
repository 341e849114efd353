# SPDX-License-Identifier: Apache-2.0
"""Control variates: they change the variance of a step and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdi_gs.diffusion.analytic import gaussian
from sdi_gs.diffusion.schedule import scaled_linear_alpha_bar, sigma
from sdi_gs.guidance.distillation import GuidanceConfig, ScoreDistillation, TimeConfig
from sdi_gs.guidance.noise import NoiseStrategy, RandomNoise
from sdi_gs.guidance.prompts import PromptConfig, PromptSet
from sdi_gs.guidance.stein import Baseline, ControlVariate, Stein, SteinConfig
from sdi_gs.guidance.update import UpdateRule
from sdi_gs.ramp import Ramp

from .doubles import Given, Latent, around, randn, rng

SHAPE, VARIANCE, T = (4, 2, 2), 0.4, 500
TABLE = scaled_linear_alpha_bar()


def world() -> Latent:
    known = gaussian(0.5 * randn(*SHAPE, seed=3), VARIANCE)
    return Latent(known.means, known.variances)


def plain(
    update: UpdateRule | None = None,
    model: Latent | None = None,
    noise: NoiseStrategy | None = None,
) -> ScoreDistillation:
    model = model or world()
    prompts = PromptSet(model, "a mug", config=PromptConfig(view_dependent=False))
    settings = GuidanceConfig(cfg_scale=1.0, t=TimeConfig(high=Ramp(T / 1000, T / 1000)))
    return ScoreDistillation(
        model, prompts, noise or RandomNoise(), update=update, config=settings, steps=10
    )


def with_rule(rule: ControlVariate) -> Stein:
    return Stein(plain(rule), rule)


def stein(
    baseline: Baseline | None = None,
    decay: float = 0.95,
    model: Latent | None = None,
    noise: NoiseStrategy | None = None,
) -> Stein:
    rule = ControlVariate(SteinConfig(decay=decay), baseline)
    return Stein(plain(rule, model, noise), rule)


def targets(run, z: Tensor, steps: int, first_seed: int = 0) -> Tensor:  # type: ignore[no-untyped-def]
    views = around(*[0.0] * len(z))
    return torch.stack([run(z, views, 0, rng(first_seed + k)).target for k in range(steps)])


def depth_like(x_t: Tensor) -> Tensor:
    """Some scalar that depends on the picture."""
    return 1.0 + 0.2 * torch.tanh(x_t).mean(dim=(1, 2, 3))


def test_before_it_has_learned_it_is_sds() -> None:
    z = randn(3, *SHAPE)
    torch.testing.assert_close(targets(stein(), z, 1), targets(plain(), z, 1), rtol=0, atol=1e-12)


def test_on_gaussian_data_the_learned_weight_removes_all_variance() -> None:
    """eps = A kappa + c with A = sigma^2 / (lambda + sigma^2): mu -> A, and what is left is c."""
    square = float(sigma(TABLE[T])) ** 2
    run, z = stein(decay=0.98), randn(200, *SHAPE)
    targets(run, z, 60)
    assert run.rule.weight(z).flatten().tolist() == pytest.approx(
        [square / (VARIANCE + square)] * 4, rel=0.02
    )
    one = z[:1].expand(200, *SHAPE)
    calm, noisy = (targets(r, one, 1, 100)[0].var(dim=0).mean() for r in (run, plain()))
    assert float(calm) < 0.01 * float(noisy)


@pytest.mark.parametrize("baseline", [None, depth_like], ids=["constant", "any"])
def test_the_expectation_is_that_of_sds(baseline: Baseline | None) -> None:
    run, one = stein(baseline), randn(1, *SHAPE).expand(4000, *SHAPE)
    targets(run, one[:100], 20)  # some weight has been learned
    assert float((run.rule.weight(one) - 1.0).abs().max()) > 0.05
    ours, theirs = (targets(r, one, 1, 500)[0] for r in (run, plain()))
    error = (ours.var(dim=0) / 4000 + theirs.var(dim=0) / 4000).sqrt()
    assert float(((ours.mean(dim=0) - theirs.mean(dim=0)).abs() / error).max()) < 4.5


def test_a_baseline_that_varies_has_a_control_variate_of_mean_zero() -> None:
    """Stein's identity: E[kappa phi] = E[d phi / d kappa]; without the slope it would not be.
    For the sum of x_t the slope is sqrt(1 - alpha_bar) everywhere."""
    seen = []

    class Spy(ControlVariate):
        def variate(self, given):  # type: ignore[no-untyped-def]
            value = super().variate(given)
            seen.append((value, given.noised.kappa, given.noised.x_t.sum(dim=(1, 2, 3))))
            return value

    run = with_rule(Spy(SteinConfig(), lambda x: x.sum(dim=(1, 2, 3))))
    targets(run, randn(1, *SHAPE).expand(20_000, *SHAPE), 1)
    ((variate, kappa, phi),) = seen
    error = float((variate.var(dim=0) / 20_000).sqrt().max())
    assert float(variate.mean(dim=0).abs().max()) < 4.5 * error
    unsloped = (kappa * phi.reshape(-1, 1, 1, 1)).mean(dim=0)
    expected = float((1.0 - TABLE[T]).sqrt())
    assert float((unsloped - expected).abs().max()) < 4.5 * error
    assert expected > 10 * error


def test_each_channel_learns_a_weight_of_its_own() -> None:
    """mu of a channel is ``sigma^2 / (lambda + sigma^2)`` with that channel's variance."""
    spread = torch.tensor([0.1, 0.4, 1.0, 3.0], dtype=torch.float64)
    model = Latent(torch.zeros(1, *SHAPE).double(), spread.reshape(1, 4, 1, 1).expand(1, *SHAPE))
    run = stein(decay=0.98, model=model)
    z = randn(400, *SHAPE)
    for _ in range(3):
        targets(run, z, 20)
    square = float(sigma(TABLE[T])) ** 2
    expected = (square / (spread + square)).tolist()
    assert run.rule.weight(z).shape == (1, 1, 4, 1, 1)
    assert run.rule.weight(z).flatten().tolist() == pytest.approx(expected, rel=0.03)


def test_moments_are_running_means() -> None:
    """The first lesson counts whole, every later one by ``1 - decay``."""
    z, decay = randn(6, *SHAPE), 0.7

    def moments(*seeds: int) -> tuple[Tensor, Tensor]:
        run = stein(decay=decay)
        for seed in seeds:
            targets(run, z, 1, seed)
        assert run.rule.covariance is not None
        assert run.rule.variance is not None
        return run.rule.covariance, run.rule.variance

    singles = [moments(seed) for seed in (1, 2, 3)]
    for k, found in enumerate(moments(1, 2, 3)):
        one, two, three = (single[k] for single in singles)
        expected = decay * (decay * one + (1 - decay) * two) + (1 - decay) * three
        torch.testing.assert_close(found, expected)
    kappa = torch.randn(z.shape, generator=_after_time(1, len(z)), dtype=torch.float64)
    torch.testing.assert_close(singles[0][1][0, 0], kappa.square().mean(dim=(0, 2, 3)))


def _after_time(seed: int, views: int) -> torch.Generator:
    generator = rng(seed)
    torch.rand(views, generator=generator)  # the time of each view is drawn first
    return generator


def test_the_weight_of_a_step_is_that_of_the_steps_before() -> None:
    """A weight from the step's own noise would be biased by it."""
    z, run = randn(6, *SHAPE), stein()
    torch.testing.assert_close(targets(run, z, 1, 1), targets(plain(), z, 1, 1))
    (mu,) = run.rule.weight(z)
    plain_target, learned = targets(plain(), z, 1, 2)[0], targets(run, z, 1, 2)[0]
    kappa = torch.randn(z.shape, generator=_after_time(2, len(z)), dtype=torch.float64)
    expected = plain_target - sigma(TABLE[T]) * (1 - mu) * kappa
    torch.testing.assert_close(learned, expected)


def test_a_baseline_in_numbers() -> None:
    """For phi = a . x_t + b the variate is ``kappa phi - sqrt(1 - alpha_bar) a``."""
    a, z = randn(1, *SHAPE, seed=8), randn(3, *SHAPE)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    class Spy(ControlVariate):
        def variate(self, given):  # type: ignore[no-untyped-def]
            value = super().variate(given)
            seen.append((value, given.noised.kappa, given.noised.x_t))
            return value

    targets(with_rule(Spy(SteinConfig(), lambda x: (a * x).sum(dim=(1, 2, 3)) + 2.0)), z, 1)
    ((variate, kappa, x_t),) = seen
    phi = (a * x_t).sum(dim=(1, 2, 3), keepdim=True) + 2.0
    torch.testing.assert_close(variate, kappa * phi - (1 - TABLE[T]).sqrt() * a)


def test_a_variate_that_is_nothing_has_a_finite_weight() -> None:
    run, z = stein(noise=Given(torch.zeros(2, *SHAPE).double())), randn(2, *SHAPE)
    targets(run, z, 2)
    assert run.rule.weight(z).flatten().tolist() == [0.0] * 4


def test_what_was_learned_is_saved() -> None:
    run, other, z = stein(), stein(), randn(8, *SHAPE)
    assert run.state_dict() == {}
    targets(run, z, 3)
    other.load_state_dict(run.state_dict())
    assert torch.equal(targets(run, z, 1, 9), targets(other, z, 1, 9))
    other.load_state_dict({})
    assert other.state_dict() == {}
    with pytest.raises(ValueError, match="keeps its moments"):
        other.load_state_dict({"learner": 0})
    with pytest.raises(ValueError, match=r"update.decay=1\.0"):
        SteinConfig(decay=1.0)


def test_before_anything_is_learned_the_weight_is_one_for_each_channel_of_every_view() -> None:
    """Of the shape that the learned weight has, so that it means the same for any batch."""
    rule = ControlVariate(SteinConfig(), None)
    first = rule.weight(torch.zeros(2, *SHAPE))
    assert torch.equal(first, torch.ones(1, 1, SHAPE[0], 1, 1))
    rule._learn(randn(2, *SHAPE, seed=1), randn(1, 2, *SHAPE, seed=2))
    assert rule.weight(torch.zeros(2, *SHAPE)).shape == first.shape
