# SPDX-License-Identifier: Apache-2.0
"""Score distillation against closed forms: SDS moments, reductions, gradients, batching."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2

from sdi_gs.diffusion.schedule import mix, scaled_linear_alpha_bar, sigma, unmix
from sdi_gs.guidance.distillation import GuidanceConfig, ScoreDistillation, TimeConfig
from sdi_gs.guidance.noise import DDIMInversion, Noised, RandomNoise, ReleasedInversion
from sdi_gs.guidance.predict import GuidedPredictor, classifier_free, perpendicular
from sdi_gs.guidance.prompts import Conditions, PromptConfig, PromptSet, perp_neg_blend
from sdi_gs.ramp import Progress, Ramp

from .doubles import Answers, Given, Latent, around, components, noised, randn, rng

SHAPE = (4, 2, 2)
TABLE = scaled_linear_alpha_bar()
ZERO = Answers(lambda x, t: torch.zeros_like(x))


def two_means(variance: float = 0.4) -> Latent:
    """Unconditional: component 0 alone; "red": component 1; same variance (oracles 8 and 9)."""

    class TwoMeans(Latent):
        def embed(self, prompts):  # type: ignore[no-untyped-def]
            return components([[0.0, 1.0] if "red" in p else [1.0, 0.0] for p in prompts])

    means = torch.stack([torch.zeros(SHAPE).double(), 0.7 * randn(*SHAPE, seed=3)])
    return TwoMeans(means, torch.tensor([variance, variance], dtype=torch.float64))


def mixture() -> Latent:
    return Latent(
        randn(3, *SHAPE, seed=1),
        torch.tensor([0.2, 0.5, 0.05], dtype=torch.float64),
        names={"red": [0, 1], "front": [0], "back": [1], "side": [2]},
    )


def constant_time(t: int) -> TimeConfig:
    return TimeConfig(high=Ramp(t / 1000, t / 1000))


def asked(world: Latent, count: int) -> GuidedPredictor:
    """The guided prediction for "red" without a negative prompt, from parts that are tested by
    themselves."""
    return GuidedPredictor(
        world, Conditions(world.embed([""] * count), world.embed(["red"] * count))
    )


def distill(world, noise, t: int, prompt: str = "red", perp_neg: str = "none", **config):  # type: ignore[no-untyped-def]
    prompts = PromptSet(
        world, prompt, config=PromptConfig(view_dependent=perp_neg != "none", perp_neg=perp_neg)
    )
    settings = GuidanceConfig(t=constant_time(t), **config)
    return ScoreDistillation(world, prompts, noise, config=settings, steps=10)


@pytest.mark.parametrize("t", [50, 500, 950])
def test_sds_target_has_the_mean_and_variance_of_its_closed_form(t: int) -> None:
    variance = 0.4
    world, count = two_means(variance), 6000
    z = randn(1, *SHAPE).expand(count, -1, -1, -1)
    guided = distill(world, RandomNoise(), t, "other", cfg_scale=0.0)(
        z, around(*[0.0] * count), 0, rng()
    )
    s = sigma(TABLE[t])
    u = s**2 / variance
    deviation = s * variance / (variance + s**2)
    mean = guided.target.mean(dim=0)
    standard_error = deviation / count**0.5
    assert float((mean - z[0] / (1 + u)).abs().max()) < 5 * float(standard_error)
    spread = guided.target.var(dim=0).mean().sqrt()
    assert float(spread) == pytest.approx(float(deviation), rel=0.02)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0, 7.5])
def test_sds_rests_at_the_guided_mean(cfg_scale: float) -> None:
    """E[target] = z exactly at m_uncond + s * delta; antithetic noise gives the mean exactly."""
    world = two_means()
    rest = world.means[:1] + cfg_scale * (world.means[1:] - world.means[:1])
    kappa = randn(1, *SHAPE, seed=5)
    both = torch.cat([kappa, -kappa])
    step = distill(world, Given(both), 600, cfg_scale=cfg_scale)
    guided = step(rest.expand(2, -1, -1, -1), around(0, 0), 0, rng())
    torch.testing.assert_close(guided.target.mean(dim=0), rest[0], rtol=1e-10, atol=1e-12)
    away = step(rest.expand(2, -1, -1, -1) + 1.0, around(0, 0), 0, rng()).target.mean(dim=0)
    u = sigma(TABLE[600]) ** 2 / 0.4
    torch.testing.assert_close(away - rest[0], (1 / (1 + u)).expand(SHAPE), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("noise", "t"),
    [
        (RandomNoise(), 300),
        (DDIMInversion(cfg_scale=-7.5), 300),
        (DDIMInversion(cfg_scale=2.0, entropy=0.0, tau_max=0.0), 990),
    ],
)
def test_loss_gradient_is_sigma_times_the_noise_residual(noise, t: int) -> None:  # type: ignore[no-untyped-def]
    world = mixture()
    z = randn(3, *SHAPE).requires_grad_()
    guided = distill(world, noise, t)(z, around(0, 90, 180), 0, rng())
    (gradient,) = torch.autograd.grad(guided.loss, z)
    torch.testing.assert_close(gradient, (z.detach() - guided.target) / z.numel())
    x_t = mix(z.detach(), guided.kappa, TABLE[guided.t])
    torch.testing.assert_close(guided.x_t, x_t)  # re-noised to level t, whatever tau was
    eps = asked(world, 3)(x_t, guided.t, 7.5)
    expected = sigma(TABLE[guided.t]).reshape(-1, 1, 1, 1) * (eps - guided.kappa) / z.numel()
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weight", ["sigma", "one_minus_alpha_bar", "uniform"])
def test_weights_and_sum_reduction(weight: str) -> None:
    world, kappa, t = mixture(), randn(2, *SHAPE, seed=2), 420
    z = randn(2, *SHAPE).requires_grad_()
    step = distill(world, Given(kappa), t, weight=weight, reduction="sum", scale=3.0)
    guided = step(z, around(0, 0), 0, rng())
    (gradient,) = torch.autograd.grad(guided.loss, z)
    a = TABLE[t]
    w = {"sigma": sigma(a), "one_minus_alpha_bar": 1 - a, "uniform": 1.0}[weight]
    eps = asked(world, 2)(guided.x_t, guided.t, 7.5)
    torch.testing.assert_close(gradient, 3.0 * w * (eps - kappa) / 2, rtol=1e-9, atol=1e-12)


def test_released_inversion_keeps_its_level_and_shrinks() -> None:
    """Its latent gradient is z (1 - sqrt(a_u / a_t)) + sigma eps - sqrt((1 - a_u) / a_t) kappa."""
    world, t = mixture(), 400
    z = randn(1, *SHAPE).requires_grad_()
    noise = ReleasedInversion()
    replay = rng(3)
    torch.rand(1, generator=replay)  # the step draws its time first
    tau = int(torch.randint(noise.spacing, (), generator=replay))
    guided = distill(world, noise, t)(z, around(0), 0, rng(3))
    (gradient,) = torch.autograd.grad(guided.loss, z)
    a_t, a_u = TABLE[t], TABLE[t + tau]
    assert tau > 0
    eps = asked(world, 1)(guided.x_t, guided.t, 7.5)
    expected = z * (1 - (a_u / a_t).sqrt()) + sigma(a_t) * eps
    expected = expected - ((1 - a_u) / a_t).sqrt() * guided.kappa
    torch.testing.assert_close(gradient, expected.detach() / z.numel(), rtol=1e-9, atol=1e-12)


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


def test_paper_grid() -> None:
    noise = DDIMInversion()
    t = torch.tensor([1, 99, 250, 700, 998, 999])
    times = noise.times(t, t, 1000)
    steps = [int((row.diff() > 0).sum()) for row in times]
    assert steps == [1, 1, 2, 7, 9, 10]  # the last index of a schedule stands for t = 1
    assert times[:, 0].tolist() == [0] * 6
    assert times[:, -1].tolist() == t.tolist()
    assert times[3, :8].tolist() == [0, 100, 200, 300, 400, 500, 600, 700]


def test_schedules_of_the_published_recipe() -> None:
    assert Ramp(0.15, 0.0, 3000).at(1500, 10_000) == pytest.approx(0.075)
    convex = Ramp(1.0, 0.1, 4000)
    assert convex.at(2000, 10_000) == pytest.approx(0.55)
    assert convex.at(4000, 10_000) == convex.at(9999, 10_000) == pytest.approx(0.1)
    assert Ramp(0.98, 0.3, shape="sqrt").at(2500, 10_000) == pytest.approx(0.98 - 0.68 * 0.5)
    assert Ramp(1.0, 0.0).at(3, 0) == 0.0  # a run of no steps has ended
    jump = Ramp(0.98, 0.5, 5000, "step")
    assert (jump.at(0, 1), jump.at(4999, 1), jump.at(5000, 1)) == (0.98, 0.98, 0.5)
    world = mixture()
    step = distill(world, RandomNoise(), 500)
    anneal = ScoreDistillation(
        world, step.subject, RandomNoise(),
        config=GuidanceConfig(t=TimeConfig(high=Ramp(0.98, 0.25))), steps=10_000,
    )  # fmt: skip
    found = [anneal.times(1, Progress(s, 10_000), rng()) for s in (0, 5000, 10_000)]
    assert [int(t.host[0]) for t in found] == [980, 615, 250]


def test_uniform_times_stay_in_their_range_and_can_be_shared() -> None:
    step = distill(mixture(), RandomNoise(), 500)
    uniform = TimeConfig(high=Ramp(0.98, 0.98), low=Ramp(0.02, 0.02))
    step.config = GuidanceConfig(t=uniform)
    t = step.times(4000, Progress(0, 10), rng()).host
    assert 20 <= int(t.min()) < 40
    assert 960 < int(t.max()) <= 980
    step.config = GuidanceConfig(t=TimeConfig(uniform.high, uniform.low, same_for_batch=True))
    assert len(set(step.times(8, Progress(0, 10), rng()).host.tolist())) == 1


def test_guidance_scales_zero_and_one_are_the_plain_predictions() -> None:
    world, x, t = mixture(), randn(2, *SHAPE), torch.tensor([300, 700])
    predict = asked(world, 2)
    uncond, cond = (world.predict_noise(x, t, world.embed([w, w])) for w in ("", "red"))
    assert torch.equal(predict(x, t, 0.0), uncond)
    assert torch.equal(predict(x, t, 1.0), cond)
    assert predict.evaluations == 4
    offset = cond + 6.5 * (cond - uncond)  # the other convention: one less
    torch.testing.assert_close(predict(x, t, 7.5), offset, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(predict(x, t, -7.5), classifier_free(uncond, cond, -7.5))


def test_perpendicular_part() -> None:
    p, e = randn(2, *SHAPE, seed=1), randn(2, *SHAPE, seed=2)
    part = perpendicular(e, p)
    assert float((part * p).sum(dim=(1, 2, 3)).abs().max()) < 1e-12
    assert float(perpendicular(-3.0 * p, p).abs().max()) < 1e-12
    torch.testing.assert_close(perpendicular(e + 2 * p, p), part)


@pytest.mark.parametrize("variant", ["threestudio", "stable-dreamfusion"])
def test_perp_neg_weights(variant: str) -> None:
    config = PromptConfig(perp_neg=variant)  # type: ignore[arg-type]
    blend = perp_neg_blend(around(0, 45, 90, 135, 180), config)
    assert blend.share.tolist() == pytest.approx([1, 0.5, 1, 0.5, 0])
    assert bool((blend.weight <= 0.0).all())
    mirrored = perp_neg_blend(around(0, -45, -90, -135, -180), config)
    torch.testing.assert_close(blend.weight, mirrored.weight)
    torch.testing.assert_close(blend.share, mirrored.share)
    if variant == "threestudio":
        expected = [(0.0001, 1.574), (0.689, 0.689), (0.0005, 1.5735), (0.173, 1.746),
                    (0.394, 1.967)]  # fmt: skip
        got = [(-a, -b) for a, b in blend.weight.tolist()]
        for one, other in zip(got, expected, strict=True):
            assert one == pytest.approx(other, abs=2e-3)
        near = perp_neg_blend(around(90 - 1e-9, 90), config)
        names = [
            {int(n): float(w) for n, w in zip(row, weights, strict=True)}
            for row, weights in zip(near.negative, near.weight, strict=True)
        ]
        for name in names[0]:
            assert names[0][name] == pytest.approx(names[1][name], abs=1e-2)  # continuous


def test_overhead_views_have_no_negatives() -> None:
    world = mixture()
    prompt = PromptSet(world, "red", config=PromptConfig(perp_neg="threestudio"))
    predict = GuidedPredictor(world, prompt.conditions(around(10, elevation_deg=75)))
    predict(randn(1, *SHAPE), torch.tensor([300]), 7.5)
    assert predict.evaluations == 2  # zero-weight negatives cost nothing


def test_perp_neg_at_zero_scale_is_unconditional() -> None:
    world, x, t = mixture(), randn(2, *SHAPE), torch.tensor([300, 300])
    prompt = PromptSet(world, "red", config=PromptConfig(perp_neg="threestudio"))
    predict = GuidedPredictor(world, prompt.conditions(around(20, 120)))
    uncond = world.predict_noise(x, t, world.embed(["", ""]))
    assert torch.equal(predict(x, t, 0.0), uncond)


@pytest.mark.parametrize("perp_neg", ["none", "threestudio"])
@pytest.mark.parametrize("noise", [DDIMInversion(tau_max=0.0, entropy=0.0), "given"])
def test_a_batch_equals_its_singles(noise, perp_neg: str) -> None:  # type: ignore[no-untyped-def]
    """Catches the tiling of negatives that mixes samples when a batch has more than one."""
    world, z, kappa = mixture(), randn(3, *SHAPE), randn(3, *SHAPE, seed=6)
    angles = (10.0, 100.0, -140.0)

    def run(rows: slice):  # type: ignore[no-untyped-def]
        strategy = Given(kappa[rows]) if noise == "given" else noise
        step = distill(world, strategy, 640, perp_neg=perp_neg)
        return step(z[rows], around(*angles[rows]), 0, rng())

    batch = run(slice(0, 3))
    singles = [run(slice(i, i + 1)) for i in range(3)]
    torch.testing.assert_close(batch.target, torch.cat([g.target for g in singles]))
    torch.testing.assert_close(batch.loss, torch.stack([g.loss for g in singles]).mean())
    assert batch.evaluations == sum(g.evaluations for g in singles)


def test_a_batch_of_different_times_equals_its_singles() -> None:
    world, z = mixture(), randn(2, *SHAPE)
    noise = DDIMInversion(tau_max=0.0, entropy=0.0)
    condition = PromptSet(world, "red", config=PromptConfig(view_dependent=False))
    t = torch.tensor([250, 930])

    def run(rows: slice) -> Noised:
        predict = GuidedPredictor(world, condition.conditions(around(*[0.0] * len(z[rows]))))
        return noised(noise, z[rows], t[rows], predict, TABLE)

    both = run(slice(0, 2))
    for i in range(2):
        torch.testing.assert_close(both.kappa[i : i + 1], run(slice(i, i + 1)).kappa)


@pytest.mark.parametrize("t", [1, 999])
@pytest.mark.parametrize("steps", [None, 1, 30])
def test_both_ends_of_the_schedule_are_finite(t: int, steps: int | None) -> None:
    world = mixture()
    guided = distill(world, DDIMInversion(steps=steps), t)(randn(2, *SHAPE), around(0, 0), 0, rng())
    assert bool(torch.isfinite(guided.loss))
    assert int(guided.t[0]) == t  # t + tau is cut at the last time, t is not


def test_same_seed_same_guidance() -> None:
    world, z = mixture(), randn(2, *SHAPE)
    step = distill(world, DDIMInversion(), 500)
    one, two = (step(z, around(0, 90), 0, rng(4)).target for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, step(z, around(0, 90), 0, rng(5)).target)


def test_view_words_reach_the_denoiser() -> None:
    """With components named after views, each view is pulled to its own component."""
    world, kappa = mixture(), randn(3, *SHAPE, seed=1)
    prompts = PromptSet(world, "thing")
    step = ScoreDistillation(
        world, prompts, Given(kappa),
        config=GuidanceConfig(cfg_scale=1.0, t=constant_time(500)), steps=10,
    )  # fmt: skip
    x = mix(torch.zeros(3, *SHAPE).double(), kappa, TABLE[torch.tensor([500] * 3)])
    guided = step(torch.zeros(3, *SHAPE).double(), around(0, 90, 180), 0, rng())
    words = world.embed(["front", "side", "back"])
    eps = world.predict_noise(x, guided.t, words)
    torch.testing.assert_close(guided.target, unmix(x, eps, TABLE[guided.t]))


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        PromptSet(mixture(), "  ")
