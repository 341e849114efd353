# SPDX-License-Identifier: Apache-2.0
"""The methods beside SDS and SDI: reductions to one another, fixed points and rates in closed form.

Data are Gaussian unless said: lambda is their variance, sigma the noise level of a time, and a
guided prediction of scale g is ``sigma (x_bar - m - g delta) / (lambda + sigma^2)`` where the means
without and with words are ``m`` and ``m + delta``.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import sdi_gs
from sdi_gs.diffusion.analytic import GaussianMixture
from sdi_gs.diffusion.base import Condition
from sdi_gs.diffusion.schedule import mix, scaled_linear_alpha_bar, sigma
from sdi_gs.guidance.distillation import GuidanceConfig, Guided, ScoreDistillation, TimeConfig
from sdi_gs.guidance.image_space import ImageSpace, ImageSpaceConfig
from sdi_gs.guidance.noise import (
    DDIMInversion,
    FixedNoise,
    IntervalInversion,
    NoiseStrategy,
    RandomNoise,
)
from sdi_gs.guidance.prompts import PromptConfig, PromptSet
from sdi_gs.guidance.roots import FixedPoint, GradientDescent
from sdi_gs.guidance.times import Times
from sdi_gs.guidance.update import Classifier, NoiseFree, Residual, UpdateRule
from sdi_gs.guidance.viewpoints import Viewpoints
from sdi_gs.ramp import Progress, Ramp

from .doubles import Answers, Given, Latent, around, noised, randn, rng

SHAPE = (4, 2, 2)
TABLE = scaled_linear_alpha_bar()
QUIET = DDIMInversion(cfg_scale=-7.5, tau_max=0.0, entropy=0.0)


class Words(Latent):
    """No words: component 0; "red": 1; "ugly", a negative prompt: 2."""

    def embed(self, prompts):  # type: ignore[no-untyped-def]
        index = [1 if "red" in p else 2 if "ugly" in p else 0 for p in prompts]
        return Condition({"weights": torch.eye(3, dtype=torch.float64)[index]})


def words(*variances: float) -> Words:
    v = variances or (0.4, 0.4, 0.4)
    means = torch.stack([0.2 * randn(*SHAPE, seed=5), 0.7 * randn(*SHAPE, seed=3),
                         randn(*SHAPE, seed=4)])  # fmt: skip
    return Words(means, torch.tensor(v, dtype=torch.float64))


def method(
    world: GaussianMixture,
    noise: NoiseStrategy,
    t: int,
    update: UpdateRule | None = None,
    *,
    negative: str = "",
    weight: str = "uniform",
    cfg_scale: float = 7.5,
    perp_neg: str = "none",
) -> ScoreDistillation:
    prompts = PromptSet(
        world, "red", negative,
        PromptConfig(view_dependent=perp_neg != "none", perp_neg=perp_neg),  # type: ignore[arg-type]
    )  # fmt: skip
    time = TimeConfig(high=Ramp(t / 1000, t / 1000))
    settings = GuidanceConfig(cfg_scale=cfg_scale, t=time, weight=weight, reduction="sum")  # type: ignore[arg-type]
    return ScoreDistillation(world, prompts, noise, update=update, config=settings, steps=10)


def ask(distillation: ScoreDistillation, z: Tensor, seed: int = 0, step: int = 0) -> Guided:
    count = len(z)
    azimuth = torch.linspace(-150.0, 60.0, count, dtype=torch.float64)
    views = Viewpoints.orbit(azimuth, torch.zeros_like(azimuth))
    return distillation(z, views, step, rng(seed))


def direction(guided: Guided) -> Tensor:
    """``(z - target) / sigma``: what a rule moves along."""
    return (guided.latents - guided.target) / sigma(TABLE[guided.t]).reshape(-1, 1, 1, 1)


# --- guidance over a run ----------------------------------------------------------------------


@pytest.mark.parametrize(("step", "scale"), [(0, 1.0), (5, 3.0), (9, 4.6)])
def test_a_rising_scale_is_at_each_step_the_constant_one(step: int, scale: float) -> None:
    world, z, noise = words(), randn(2, *SHAPE), Given(randn(2, *SHAPE, seed=9))
    constant = method(world, noise, 400, cfg_scale=scale)
    rising = method(world, noise, 400)
    rising.config = dataclasses.replace(rising.config, cfg_scale=Ramp(1.0, 5.0))
    expected, given = (ask(m, z, step=step).target for m in (constant, rising))
    torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("step", "entropy"), [(0, 0.6), (5, 0.3), (9, 0.06)])
def test_a_falling_entropy_is_at_each_step_the_constant_one(step: int, entropy: float) -> None:
    world, z = words(), randn(2, *SHAPE)
    found = [
        ask(method(world, DDIMInversion(entropy=ramp, cfg_scale=-2.0), 400), z, step=step).kappa
        for ramp in (Ramp(entropy, entropy), Ramp(0.6, 0.0))
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    still = method(world, DDIMInversion(entropy=Ramp(0.0, 0.0), cfg_scale=-2.0), 400)
    assert float((ask(still, z, step=step).kappa - found[0]).abs().max()) > 0.1 * entropy


# --- reductions -----------------------------------------------------------------------------


@pytest.mark.parametrize("t", [60, 300, 900])
def test_two_scales_of_sds_differ_by_the_classifier_score(t: int) -> None:
    world, z, noise = words(), randn(2, *SHAPE), Given(randn(2, *SHAPE, seed=9))
    low, high = (direction(ask(method(world, noise, t, cfg_scale=s), z)) for s in (2.0, 3.0))
    classifier = direction(
        ask(method(world, noise, t, Classifier(negative=Ramp(0, 0)), negative="ugly"), z)
    )
    torch.testing.assert_close(high - low, classifier, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_the_negative_prompt_of_the_classifier_score_counts_by_its_ramp(end: float) -> None:
    world, z, kappa, t = words(), randn(1, *SHAPE), randn(1, *SHAPE, seed=9), 400
    x_t, time = mix(z, kappa, TABLE[[t]]), torch.tensor([t])
    empty, red, ugly = (
        world.predict_noise(x_t, time, world.embed([w])) for w in ("", "red", "ugly")
    )
    rule = Classifier(negative=Ramp(0.0, end, 8))
    for step, weight, samples in ((0, 0.0, 2), (4, 0.5 * end, 3), (9, end, 3)):
        guided = ask(method(world, Given(kappa), t, rule, negative="ugly"), z, step=step)
        expected = red - empty + weight * (ugly - empty)
        torch.testing.assert_close(direction(guided), expected, rtol=1e-9, atol=1e-11)
        assert guided.evaluations == samples  # what has no weight is not asked


@pytest.mark.parametrize("t", [200, 700])
def test_noise_free_without_a_negative_prompt_is_a_scaled_classifier_score(t: int) -> None:
    world, z, noise = words(), randn(2, *SHAPE), Given(randn(2, *SHAPE, seed=9))
    free = direction(ask(method(world, noise, t, NoiseFree()), z))
    classifier = direction(ask(method(world, noise, t, Classifier(negative=Ramp(0, 0))), z))
    torch.testing.assert_close(free, 7.5 * classifier, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("t", "low"), [(199, True), (200, False), (600, False)])
def test_noise_free_domain_part(t: int, low: bool) -> None:
    world, z, kappa = words(), randn(1, *SHAPE), randn(1, *SHAPE, seed=9)
    x_t, time = mix(z, kappa, TABLE[[t]]), torch.tensor([t])
    empty, red, ugly = (
        world.predict_noise(x_t, time, world.embed([w])) for w in ("", "red", "ugly")
    )
    guided = ask(method(world, Given(kappa), t, NoiseFree(), negative="ugly", cfg_scale=3.0), z)
    expected = (empty if low else empty - ugly) + 3.0 * (red - empty)
    torch.testing.assert_close(direction(guided), expected, rtol=1e-9, atol=1e-11)
    assert guided.evaluations == (2 if low else 3)


def test_times_on_both_sides_of_the_domain_switch_in_one_batch() -> None:
    world, z, kappa = words(), randn(2, *SHAPE), randn(2, *SHAPE, seed=9)
    rule = NoiseFree()
    both = method(world, Given(kappa), 500, rule, negative="ugly")
    both.times = lambda *_: Times.of(torch.tensor([150, 650]), "cpu")  # type: ignore[method-assign]
    together = ask(both, z).target
    for i, t in enumerate((150, 650)):
        single = method(world, Given(kappa[i : i + 1]), t, rule, negative="ugly")
        torch.testing.assert_close(ask(single, z[i : i + 1]).target[0], together[i])


def test_sjc_is_uniformly_weighted_sds_or_the_prediction_alone() -> None:
    world, z, kappa, t = words(), randn(2, *SHAPE), randn(2, *SHAPE, seed=9), 500
    reduced = direction(ask(method(world, Given(kappa), t), z))
    alone = direction(ask(method(world, Given(kappa), t, Residual(subtract=False)), z))
    torch.testing.assert_close(alone - reduced, kappa, rtol=1e-9, atol=1e-11)
    with_gradient = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ask(method(world, Given(kappa), t), with_gradient).loss,
                                      with_gradient)  # fmt: skip
    torch.testing.assert_close(gradient, reduced / len(z), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("t", [40, 300, 800])
def test_one_step_of_inversion_is_the_interval_noise(t: int) -> None:
    """With the whole of t as its interval: kappa is eps(z, 0) either way (oracle 6)."""
    world, z = words(), randn(2, *SHAPE)
    interval = IntervalInversion(interval=Ramp(1.0, 1.0))
    one = DDIMInversion(cfg_scale=0.0, steps=1, tau_max=0.0, entropy=0.0)
    a, b = ask(method(world, interval, t), z), ask(method(world, one, t), z)
    torch.testing.assert_close(a.kappa, b.kappa, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(a.target, b.target, rtol=1e-9, atol=1e-11)


def test_interval_inversion_that_subtracts_all_its_noise_is_sdi() -> None:
    world, z = words(), randn(2, *SHAPE)

    @dataclasses.dataclass(frozen=True)
    class Whole(IntervalInversion):
        def __call__(self, *given):  # type: ignore[no-untyped-def]
            return super().__call__(*given)._replace(reference=None)

    whole = Whole(cfg_scale=-7.5, interval=Ramp(0.1, 0.1), spacing=0.1)
    sdi = dataclasses.replace(QUIET, steps=4)
    a, b = ask(method(world, whole, 400), z), ask(method(world, sdi, 400), z)
    torch.testing.assert_close(a.target, b.target, rtol=1e-9, atol=1e-11)
    published = ask(method(world, IntervalInversion(cfg_scale=-7.5), 400), z)
    assert float((published.target - a.target).abs().max()) > 0.01  # it is another method


# --- fixed points and rates -----------------------------------------------------------------


def euler_growth(times: list[int], variance: float) -> float:
    """Of the distance to the mean along DDIM steps from the clean end (oracle 2)."""
    levels = [0.0 if t == 0 else float(sigma(TABLE[t])) for t in times]
    steps = itertools.pairwise(levels)
    return math.prod((variance + a * b) / (variance + a * a) for a, b in steps)


@pytest.mark.parametrize("t", [250, 600, 950])
@pytest.mark.parametrize("cfg_inversion", [7.5, 0.0, -7.5])
def test_sdi_rests_where_the_closed_form_says(cfg_inversion: float, t: int) -> None:
    """At m + g_eff delta, g_eff = g_f + q (g_f - g_i); q is 1 / sqrt(1 + u) for fine steps."""
    variance, world, forward, steps = 0.4, words(), 7.5, 200
    m, delta = world.means[0], world.means[1] - world.means[0]
    s = float(sigma(TABLE[t]))
    u = s * s / variance
    times = [round(k * t / steps) for k in range(steps + 1)]
    growth = euler_growth(times, variance)
    assert growth == pytest.approx(math.sqrt(1 + u), rel=0.03)
    # kappa = (growth - 1) (z - c_i) / s equals eps = s (c_i + growth (z - c_i) - c_f) / (v + s^2)
    share = (s * s / (variance + s * s)) / ((growth - 1) - growth * s * s / (variance + s * s))
    effective = cfg_inversion + share * (cfg_inversion - forward)
    q = 1 / math.sqrt(1 + u)
    assert effective == pytest.approx(forward + q * (forward - cfg_inversion), rel=0.05)
    rest = (m + effective * delta)[None]
    noise = dataclasses.replace(QUIET, cfg_scale=cfg_inversion, steps=steps)
    guided = ask(method(world, noise, t, cfg_scale=forward), rest)
    torch.testing.assert_close(guided.target, rest, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("t", [250, 600, 950])
def test_interval_score_matching_rests_where_the_closed_form_says(t: int) -> None:
    variance, world, forward = 0.4, words(), 7.5
    noise = IntervalInversion(interval=Ramp(0.05, 0.05))
    s = t - 50
    steps = min(5, math.ceil(s / 200))
    growth = euler_growth([round(k * s / steps) for k in range(steps + 1)], variance)
    level_t, level_s = float(sigma(TABLE[t])), float(sigma(TABLE[s]))
    a, b = level_t / (variance + level_t**2), level_s / (variance + level_s**2)
    effective = forward * a / (growth * (a * (1 + (level_t - level_s) * b) - b))
    rest = (world.means[0] + effective * (world.means[1] - world.means[0]))[None]
    guided = ask(method(world, noise, t, cfg_scale=forward), rest)
    torch.testing.assert_close(guided.target, rest, rtol=1e-6, atol=1e-6)
    # kappa is all of the noise in x_t, not what is subtracted.
    torch.testing.assert_close(guided.x_t, mix(rest, guided.kappa, TABLE[[t]]))
    elsewhere = ask(method(world, noise, t, cfg_scale=forward), rest + 0.1)
    assert float((elsewhere.target - rest - 0.1).abs().min()) > 1e-3


def slope(t: int, cfg_scale: float, without: float, with_words: float) -> float:
    """d eps / d kappa, the rate of the fixed-point iteration (oracle 10)."""
    square = float(sigma(TABLE[t])) ** 2
    return square * ((1 - cfg_scale) / (without + square) + cfg_scale / (with_words + square))


@pytest.mark.parametrize("cfg_scale", [7.5, 1.0, -7.5])
def test_fixed_point_iteration_contracts_and_diverges_at_its_rate(cfg_scale: float) -> None:
    t, variances = int((sigma(TABLE) - 1.0).abs().argmin()), (1.0, 0.1, 1.0)
    rate = slope(t, cfg_scale, *variances[:2])
    expected = {7.5: 3.57, 1.0: 0.91, -7.5: -2.57}[cfg_scale]
    assert rate == pytest.approx(expected, abs=0.04)
    world, z = words(*variances), randn(1, *SHAPE)
    kappas = [
        ask(method(world, FixedPoint(cfg_scale=cfg_scale, iterations=n), t), z, seed=3).kappa
        for n in (1, 2, 3, 4)
    ]
    moves = [b - a for a, b in itertools.pairwise(kappas)]
    assert float(moves[0].abs().max()) > 1e-3
    for before, after in itertools.pairwise(moves):
        torch.testing.assert_close(after, rate * before, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_gradient_descent_closes_in_on_the_fixed_point_at_its_rate(cfg_scale: float) -> None:
    t, rate = 350, 0.2
    world, z = words(1.0, 0.6, 1.0), randn(2, *SHAPE)
    factor = 1 - rate * (1 - slope(t, cfg_scale, 1.0, 0.6)) ** 2
    kappas = [
        ask(
            method(world, GradientDescent(cfg_scale=cfg_scale, iterations=n, rate=rate), t),
            z,
            seed=3,
        ).kappa
        for n in (1, 2, 3, 4)
    ]
    moves = [b - a for a, b in itertools.pairwise(kappas)]
    assert float(moves[0].abs().max()) > 1e-3
    for before, after in itertools.pairwise(moves):
        torch.testing.assert_close(after, factor * before, rtol=1e-7, atol=1e-10)


ALL_NOISES: dict[str, NoiseStrategy] = {
    "random": RandomNoise(),
    "fixed": FixedNoise(),
    "ddim_inversion": QUIET,
    "fixed_point": FixedPoint(iterations=3),
    "gradient_descent": GradientDescent(iterations=3),
    "interval_inversion": IntervalInversion(),
}


@pytest.mark.parametrize("name", [n for n in ALL_NOISES if n != "interval_inversion"])
@pytest.mark.parametrize("t", [20, 500, 980])
def test_of_one_picture_every_residual_method_makes_that_picture(name: str, t: int) -> None:
    """Data that are a single point (oracle 11): whatever noise, time and guidance."""
    world = words(1e-13, 1e-13, 1e-13)
    world.means = world.means[:1].expand(3, *SHAPE)
    guided = ask(method(world, ALL_NOISES[name], t), randn(2, *SHAPE))
    torch.testing.assert_close(guided.target, world.means[:1].expand(2, *SHAPE), rtol=0, atol=1e-7)


# --- every method ---------------------------------------------------------------------------

RULES: dict[str, UpdateRule] = {
    "residual": Residual(),
    "unreduced": Residual(subtract=False),
    "classifier": Classifier(negative=Ramp(-0.5, -0.5)),
    "noise_free": NoiseFree(),
}


@pytest.mark.parametrize("perp_neg", ["none", "threestudio", "stable-dreamfusion"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["given", "ddim_inversion", "fixed", "interval_inversion"])
def test_a_batch_equals_its_single_views(name: str, rule: str, perp_neg: str) -> None:
    world, z, kappa = words(), randn(2, *SHAPE), randn(2, *SHAPE, seed=9)
    views = around(30, 170)

    def target(rows: slice) -> Tensor:
        noise = Given(kappa[rows]) if name == "given" else ALL_NOISES[name]
        step = method(world, noise, 430, RULES[rule], negative="ugly", perp_neg=perp_neg)
        return step(z[rows], views[rows], 0, rng()).target

    together = target(slice(0, 2))
    for i in range(2):
        torch.testing.assert_close(target(slice(i, i + 1))[0], together[i], rtol=1e-9, atol=1e-11)


class ViewWords(Words):
    """ "back": component 1; "front": 2; other views: 0."""

    def embed(self, prompts):  # type: ignore[no-untyped-def]
        index = [1 if "back" in p else 2 if "front" in p else 0 for p in prompts]
        return Condition({"weights": torch.eye(3, dtype=torch.float64)[index]})


@pytest.mark.parametrize("rule", ["residual", "classifier"])
def test_views_without_negatives_pay_for_none(rule: str) -> None:
    """From above Perp-Neg has no weight: that view is asked two rows, the other one four, and both
    get what they get alone."""

    base = words()
    world = ViewWords(base.means, base.variances)
    z, kappa = randn(2, *SHAPE), randn(2, *SHAPE, seed=9)
    views = around(150, 150, elevation_deg=(80.0, 0.0))

    def guided(rows: slice) -> Guided:
        step = method(world, Given(kappa[rows]), 430, RULES[rule], perp_neg="threestudio")
        return step(z[rows], views[rows], 0, rng())

    together, above, beside = guided(slice(0, 2)), guided(slice(0, 1)), guided(slice(1, 2))
    torch.testing.assert_close(together.target[0], above.target[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(together.target[1], beside.target[0], rtol=1e-9, atol=1e-11)
    assert beside.evaluations == above.evaluations + 2
    assert together.evaluations == above.evaluations + beside.evaluations


@pytest.mark.parametrize("rule", ["classifier", "noise_free"])
def test_perp_neg_reaches_the_rules_that_combine_by_themselves(rule: str) -> None:
    """View words give negatives: a front that is asked from behind changes the direction, by as
    much as guidance of scale one changes under the same Perp-Neg."""

    base = words()
    world = ViewWords(base.means, base.variances)
    z, noise = randn(1, *SHAPE), Given(randn(1, *SHAPE, seed=9))

    def of(update: UpdateRule, perp_neg: str, cfg_scale: float) -> Tensor:
        step = method(world, noise, 430, update, perp_neg=perp_neg, cfg_scale=cfg_scale)
        return direction(step(z, around(160), 0, rng()))

    update: UpdateRule = Classifier(negative=Ramp(0, 0)) if rule == "classifier" else NoiseFree()
    scale = 1.0 if rule == "classifier" else 2.0
    plain = of(Residual(), "threestudio", scale) - of(Residual(), "threestudio", 0.0)
    torch.testing.assert_close(of(update, "threestudio", scale), plain, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_pixels_are_pulled_towards_the_decoded_target(reduction: str) -> None:
    """HiFA: sds on the latents, and weight * sqrt(a (1 - a)) * (rgb - decoded) on the pixels."""
    base = words()
    model = GaussianMixture(base.means[:, :3], base.variances[:, :3], names={"red": [1]})
    kappa, t = randn(2, 3, 2, 2, seed=9), 420
    rgb = torch.rand((2, 3, 2, 2), generator=rng(1), dtype=torch.float64).requires_grad_()
    prompts = PromptSet(model, "red", config=PromptConfig(view_dependent=False))
    settings = GuidanceConfig(
        t=TimeConfig(high=Ramp(t / 1000, t / 1000)),
        reduction=reduction,
        scale=3.0,  # type: ignore[arg-type]
    )
    plain = ScoreDistillation(model, prompts, Given(kappa), config=settings, steps=10)
    both = ImageSpace(plain, ImageSpaceConfig(weight=0.2))
    one, two = (torch.autograd.grad(m(rgb, *_front(2)).loss, rgb)[0] for m in (plain, both))
    wanted = model.decode(plain(rgb, *_front(2)).target).clamp(0, 1)
    a = TABLE[t]
    count = 2 if reduction == "sum" else rgb.numel()
    expected = 3.0 * 0.2 * (a * (1 - a)).sqrt() * (rgb - wanted) / count
    torch.testing.assert_close(two - one, expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (8, 2), (2, 6), (1, 1)])
def test_pictures_of_another_size_are_compared_at_the_decoders(size: tuple[int, int]) -> None:
    """The pull on a picture of one colour is that on the small one, shared by all of its pixels."""
    base = words()
    model = GaussianMixture(base.means[:, :3], base.variances[:, :3], names={"red": [1]})
    kappa = randn(1, 3, 2, 2, seed=9)
    prompts = PromptSet(model, "red", config=PromptConfig(view_dependent=False))
    settings = GuidanceConfig(t=TimeConfig(high=Ramp(0.42, 0.42)), reduction="sum")
    plain = ScoreDistillation(model, prompts, Given(kappa), config=settings, steps=10)
    both = ImageSpace(plain, ImageSpaceConfig(weight=0.2))
    colour = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).reshape(1, 3, 1, 1)
    pulls = []
    for height, width in ((2, 2), size):
        rgb = colour.expand(1, 3, height, width).clone().requires_grad_()
        one, two = (torch.autograd.grad(m(rgb, *_front(1)).loss, rgb)[0] for m in (plain, both))
        pulls.append(two - one)
    small, large = pulls
    torch.testing.assert_close(large.sum(dim=(2, 3)), small.sum(dim=(2, 3)))
    assert bool((large.abs().amax(dim=1) > 0.0).all())  # no pixel is skipped


def test_the_state_of_a_method_in_pixels_is_that_of_the_method_in_latents() -> None:
    """What the inner method has learned is saved with it, and comes back."""

    class Learned:
        held: dict[str, int]

        def state_dict(self) -> dict[str, int]:
            return self.held

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.held = state

    inner = Learned()
    inner.held = {"steps": 7}
    both = ImageSpace(inner, ImageSpaceConfig())  # type: ignore[arg-type]
    assert both.state_dict() == {"steps": 7}
    both.load_state_dict({"steps": 8})
    assert inner.held == {"steps": 8}


def test_what_pixels_are_pulled_to_can_be_displayed() -> None:
    """A target beyond white is white: of white pictures nothing is left to pull."""
    model = GaussianMixture(torch.full((1, 3, 2, 2), 3.0).double(), torch.ones(1).double() * 1e-9)
    prompts = PromptSet(model, "red", config=PromptConfig(view_dependent=False))
    settings = GuidanceConfig(t=TimeConfig(high=Ramp(0.42, 0.42)))
    kappa = randn(1, 3, 2, 2, seed=9)
    plain = ScoreDistillation(model, prompts, Given(kappa), config=settings, steps=10)
    both = ImageSpace(plain, ImageSpaceConfig(weight=0.2))
    for shade, pulled in ((1.0, False), (0.9, True)):
        rgb = torch.full((1, 3, 2, 2), shade, dtype=torch.float64)
        extra = both(rgb, *_front(1)).loss - plain(rgb, *_front(1)).loss
        assert (float(extra) > 1e-9) == pulled


@pytest.mark.parametrize(("scale", "asked"), [(0.0, {0}), (1.0, {1}), (3.0, {1, 2})])
def test_interval_inversion_asks_under_the_words_of_its_scale(
    scale: float, asked: set[int]
) -> None:
    """No words, the prompt alone, or prompt and negative prompt; never before time 0."""
    seen: list[tuple[int, int]] = []

    class Spy(Words):
        def predict_noise(self, x_t, t, condition):  # type: ignore[no-untyped-def]
            seen.extend(zip(condition["weights"].argmax(dim=1).tolist(), t.tolist(), strict=True))
            return super().predict_noise(x_t, t, condition)

    base = words()
    for t, before in ((400, 300), (50, 0)):
        noise = IntervalInversion(cfg_scale=scale, interval=Ramp(0.1, 0.1), spacing=0.1)
        step = method(Spy(base.means, base.variances), noise, t, negative="ugly")
        seen.clear()
        ask(step, randn(1, *SHAPE))
        inverting = seen[:-2]  # all but the forward prediction, with words and without
        assert {word for word, _ in inverting} == asked
        assert max(at for _, at in inverting) == before
        assert min(at for _, at in inverting) == 0


def _front(count: int) -> tuple[Viewpoints, int, torch.Generator]:
    return around(*[0.0] * count), 0, rng()


def test_the_interval_narrows_over_the_run() -> None:
    """The last two times that the denoiser is asked are t less the interval, and t."""
    noise, asked = IntervalInversion(), []

    def still(x: Tensor, t: Tensor) -> Tensor:
        asked.append(int(t))
        return torch.zeros_like(x)

    for at, expected in ((0, 100), (750, 75), (1500, 50), (4000, 50)):
        asked.clear()
        noised(noise, randn(1, *SHAPE), [500], Answers(still), TABLE, progress=Progress(at, 9999))
        assert asked[-1] == 500 - expected
    last = torch.tensor([0, 100, 201, 930])
    rows = noise.times(last, 1000)
    assert [int((row.diff() > 0).sum()) for row in rows] == [0, 1, 2, 5]
    assert rows[:, -1].tolist() == last.tolist()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FixedPoint(iterations=0), "noise.iterations=0 .*: allowed is 1 or more"),
        (lambda: GradientDescent(rate=0.0), "noise.rate=0.0 .*: allowed is a positive number"),
        (lambda: IntervalInversion(spacing=0.0), "noise.spacing=0.0 .*: allowed is above 0, to 1"),
        (lambda: IntervalInversion(interval=Ramp(0.1, 2.0)), "noise.interval.end=2.0 .* to 1"),
        (lambda: NoiseFree(low_noise_until=1.5), "update.low_noise_until=1.5 .* allowed is 0 to 1"),
    ],
)
def test_settings_that_cannot_work_are_named(make, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=said):
        make()


@pytest.fixture(name="example")
def _example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The worked example of a method of one's own; it registers nothing here."""
    path = Path(__file__).parents[2] / "examples" / "04_own_method.py"
    monkeypatch.setattr(sdi_gs, "register", lambda *_: None, raising=False)
    spec = importlib.util.spec_from_file_location("own_method", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own_method", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_worked_example_bounds_the_residual(example: ModuleType) -> None:
    z, rule = randn(2, *SHAPE), example.Bounded(most=1.2)
    free, bounded = (direction(ask(method(words(), QUIET, 500, r), z)) for r in (Residual(), rule))
    assert float(free.abs().max()) > 1.2 > float(free.abs().min())
    torch.testing.assert_close(bounded, free.clamp(-1.2, 1.2), rtol=1e-9, atol=1e-11)


def test_the_worked_example_lies_between_random_and_inverted_noise(example: ModuleType) -> None:
    z = randn(2, *SHAPE)
    random, inverted, blended = (
        ask(method(words(), noise, 500), z, seed=4).kappa
        for noise in (RandomNoise(), QUIET, example.Blended(share=0.36, inversion=QUIET))
    )
    drawn = rng(4)
    torch.rand(2, generator=drawn)  # of the times
    torch.rand(2, generator=drawn)  # of tau
    fresh = torch.randn(random.shape, generator=drawn, dtype=torch.float64)
    torch.testing.assert_close(blended, 0.6 * inverted + 0.8 * fresh, rtol=1e-9, atol=1e-11)
