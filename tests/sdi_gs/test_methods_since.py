# SPDX-License-Identifier: Apache-2.0
"""The methods that came after SDI, and root finders for its eq. 8: each against a restatement of
its formula that shares no code with it, or against an answer in closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sdi_gs.config import guidances, load
from sdi_gs.diffusion.analytic import GaussianMixture
from sdi_gs.diffusion.base import Condition
from sdi_gs.diffusion.schedule import scaled_linear_alpha_bar, sigma
from sdi_gs.errors import UserError
from sdi_gs.guidance.image_space import ImageSpace, PixelConsistency
from sdi_gs.guidance.inversion import ddim_invert, even_times
from sdi_gs.guidance.noise import DDIMInversion, IntervalInversion, NoiseStrategy
from sdi_gs.guidance.paths import (
    GuidedConsistency,
    NestedIntervals,
    Segment,
    SegmentConsistency,
)
from sdi_gs.guidance.prompts import PromptConfig, PromptSet
from sdi_gs.guidance.reverse import reverse
from sdi_gs.guidance.roots import Anderson, FixedPoint, NewtonKrylov
from sdi_gs.guidance.update import Asynchronous, Bridge, Residual
from sdi_gs.methods import check, guidance
from sdi_gs.ramp import Ramp
from sdi_gs.views import ViewPolicy

from .doubles import Answers, Given, around, noised, randn, rng
from .test_methods import SHAPE, TABLE, Words, ask, direction, method, words

LEVELS = [1.0, *scaled_linear_alpha_bar().tolist()[1:]]  # at time 0 a rendering is clean


def eps_of(world: GaussianMixture, word: str) -> Callable[[Tensor, int], Tensor]:
    """What the world predicts under a sentence, for all samples at one time."""

    def eps(x: Tensor, t: int) -> Tensor:
        words_ = world.embed([word] * len(x))
        return world.predict_noise(x, torch.full((len(x),), t), words_)

    return eps


def guided(world: GaussianMixture, scale: float) -> Callable[[Tensor, int], Tensor]:
    red, none = eps_of(world, "red"), eps_of(world, "")
    return lambda x, t: none(x, t) + scale * (red(x, t) - none(x, t))


def carry(x: Tensor, eps: Tensor, t: int, u: int) -> Tensor:
    """x from time t to u along eps, as the ODE in x / sqrt(alpha_bar) and sigma says it."""
    sigmas = [math.sqrt((1 - LEVELS[k]) / LEVELS[k]) for k in (t, u)]
    return math.sqrt(LEVELS[u]) * (x / math.sqrt(LEVELS[t]) + (sigmas[1] - sigmas[0]) * eps)


def after_times(count: int) -> torch.Generator:
    """Where a step with seed 3 draws on, once the times of its views are drawn."""
    generator = rng(3)
    torch.rand(count, generator=generator)
    return generator


# --- the reverse ODE ------------------------------------------------------------------------


def exact(world: GaussianMixture, x: Tensor, t: int, u: int = 0) -> Tensor:
    """Where the ODE of N(m, v I) leads from time t to u: every point keeps its number of deviations
    from the mean."""
    m, v = world.means[0], world.variances[0]
    before, after = (v + (1 - LEVELS[k]) / LEVELS[k] for k in (t, u))
    moved = m + (x / math.sqrt(LEVELS[t]) - m) * (after / before).sqrt()
    return math.sqrt(LEVELS[u]) * moved


@pytest.mark.parametrize(("order", "least"), [(1, 1.7), (2, 3.0)])
def test_the_reverse_ode_converges_at_its_order(order: int, least: float) -> None:
    """Between two times: the last step, to a clean sample, is Euler's for both."""
    world = GaussianMixture(randn(1, *SHAPE), torch.tensor([0.4], dtype=torch.float64))
    x, t, u = 3 * randn(5, *SHAPE, seed=2), 800, 160
    none, errors = eps_of(world, ""), []
    for steps in (10, 20, 40, 80):
        times = torch.arange(t, u - 1, -(t - u) // steps).expand(5, -1)
        end = reverse(x, times, lambda x, t: none(x, int(t[0])), TABLE, order)
        errors.append(float((end - exact(world, x, t, u)).abs().max()))
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine > least


def test_second_order_steps_are_those_of_dpm_solver() -> None:
    """DPM-Solver++ 2M (arXiv 2211.01095, Alg. 2), written out with its own letters."""
    world, x0, times = words(), randn(2, *SHAPE, seed=2), [900, 600, 300, 100, 0]
    eps = guided(world, 3.0)
    found = reverse(
        x0, torch.tensor([times, times]), lambda x, t: eps(x, int(t[0])), TABLE, order=2
    )
    x, before, h_before = x0, None, 0.0
    for s, t in itertools.pairwise(times):
        alpha_s, alpha_t = math.sqrt(LEVELS[s]), math.sqrt(LEVELS[t])
        sigma_s, sigma_t = math.sqrt(1 - LEVELS[s]), math.sqrt(1 - LEVELS[t])
        data = (x - sigma_s * eps(x, s)) / alpha_s
        if t == 0:
            x = data
            break
        h = math.log(alpha_t / sigma_t) - math.log(alpha_s / sigma_s)
        bent = data if before is None else data + h / (2 * h_before) * (data - before)
        x = sigma_t / sigma_s * x - alpha_t * (math.exp(-h) - 1) * bent
        before, h_before = data, h
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)


def test_samples_with_shorter_ways_wait_at_their_end() -> None:
    world, x = words(), randn(2, *SHAPE, seed=2)
    eps = guided(world, 2.0)

    def at(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([eps(row[None], int(k)) for row, k in zip(x, t, strict=True)])

    together = reverse(x, torch.tensor([[900, 400, 0], [300, 0, 0]]), at, TABLE, 2)
    alone = [
        reverse(x[:1], torch.tensor([[900, 400, 0]]), at, TABLE, 2),
        reverse(x[1:], torch.tensor([[300, 0]]), at, TABLE, 2),
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_one_step_of_pfd_is_the_rule_of_sdi() -> None:
    world, z, noise = words(), randn(2, *SHAPE), Given(randn(2, *SHAPE, seed=9))
    one = ask(method(world, noise, 400, Residual(steps=1, order=2)), z)
    step = reverse(one.x_t, torch.tensor([[400, 0]] * 2),
                   lambda x, t: guided(world, 7.5)(x, 400), TABLE, 2)  # fmt: skip
    torch.testing.assert_close(one.target, step, rtol=1e-12, atol=1e-12)


def test_pfd_leaves_alone_what_the_model_would_have_made() -> None:
    """Where the guidance of the inversion is that of the way back, the round trip ends where it
    began (arXiv 2605.09071); one step of it does not."""
    world, z = words(), randn(3, *SHAPE)
    noise = DDIMInversion(cfg_scale=1.0, steps=400, tau_max=0.0, entropy=0.0)
    far, near = (
        float((ask(method(world, noise, 800, Residual(steps=n), cfg_scale=1.0), z).target - z)
              .abs().max())
        for n in (1, 400)
    )  # fmt: skip
    assert far > 1.0
    assert near < 0.05


def test_hifa_denoises_in_the_steps_that_it_is_told() -> None:
    config = load("mini", ["prompt=red", "update.steps=3"], "hifa")
    world, z = words(), randn(2, *SHAPE)
    built = guidance(config, world, PromptSet(world, "red"), Given(z))
    assert isinstance(built, ImageSpace)
    assert built.inner.update == Residual(steps=3)


@pytest.mark.parametrize("update", [{"steps": 0}, {"steps": 2, "subtract": False}])
def test_steps_that_mean_nothing_are_refused(update: dict) -> None:
    with pytest.raises(ValueError, match=r"update\.steps"):
        Residual(**update)


def test_an_interval_has_no_way_back() -> None:
    world, z = words(), randn(1, *SHAPE)
    with pytest.raises(ValueError, match=r"write update\.steps=1"):
        ask(method(world, IntervalInversion(), 400, Residual(steps=2)), z)
    with pytest.raises(UserError, match=r"write update\.steps=1"):
        check(load("mini", ["prompt=a mug", "update.steps=2"], "ism"))


# --- other combinations of predictions ----------------------------------------------------------


@pytest.mark.parametrize("drawn", [False, True])
def test_asd_subtracts_the_prediction_at_a_noisier_time(drawn: bool) -> None:
    world, z, kappa, t = words(), randn(2, *SHAPE), randn(2, *SHAPE, seed=9), 500
    rule = Asynchronous(most=0.5, drawn=drawn)
    found = direction(ask(method(world, Given(kappa), t, rule, cfg_scale=4.0), z, seed=3))
    share = torch.rand(2, generator=after_times(2)).tolist() if drawn else [1.0, 1.0]
    for i, part in enumerate(share):
        u = t + int(0.5 * (t - 20) * part)
        x_t, x_u = (math.sqrt(LEVELS[k]) * z[i] + math.sqrt(1 - LEVELS[k]) * kappa[i]
                    for k in (t, u))  # fmt: skip
        expected = guided(world, 4.0)(x_t[None], t) - eps_of(world, "red")(x_u[None], u)
        torch.testing.assert_close(found[i], expected[0], rtol=1e-9, atol=1e-9)


def test_asd_without_a_later_time_is_a_multiple_of_the_classifier_score() -> None:
    world, z, noise = words(), randn(2, *SHAPE), Given(randn(2, *SHAPE, seed=9))
    found = direction(ask(method(world, noise, 400, Asynchronous(most=0.0), cfg_scale=4.0), z))
    low, high = (direction(ask(method(world, noise, 400, cfg_scale=s), z)) for s in (1.0, 4.0))
    torch.testing.assert_close(found, high - low, rtol=1e-9, atol=1e-9)


def test_asd_stays_in_the_schedule() -> None:
    t = torch.tensor([5, 20, 500, 990, 999])
    later = Asynchronous(most=3.0, drawn=False).later(t, 1000, rng())
    assert later.tolist() == [5, 20, 999, 999, 999]
    drawn = Asynchronous(most=0.1).later(torch.full((20_000,), 520), 1000, rng())
    assert int(drawn.min()) == 520
    assert int(drawn.max()) == 569  # 520 + 0.1 * 500, not reached
    counts = torch.bincount(drawn - 520)
    assert float(counts.min()) > 0.8 * 400


def test_bridge_is_sds_and_then_prompt_minus_source() -> None:
    world, z, noise = words(), randn(2, *SHAPE), Given(randn(2, *SHAPE, seed=9))
    built = method(world, noise, 400, Bridge(sds_until=0.5), negative="ugly", cfg_scale=4.0)
    sds = direction(ask(method(world, noise, 400, cfg_scale=4.0), z))  # no negative prompt
    x_t = math.sqrt(LEVELS[400]) * z + math.sqrt(1 - LEVELS[400]) * noise.kappa
    difference = eps_of(world, "red")(x_t, 400) - eps_of(world, "ugly")(x_t, 400)
    for step, expected in ((0, (1 - LEVELS[400]) * sds), (4, (1 - LEVELS[400]) * sds),
                           (5, difference), (9, difference)):  # fmt: skip
        found = direction(ask(built, z, step=step))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


class Listening(Words):
    """Remembers every sentence, and gives each a row of its own."""

    heard: list[str]

    def embed(self, prompts):  # type: ignore[no-untyped-def]
        self.heard = list(prompts)
        return Condition({"weights": torch.eye(len(prompts), dtype=torch.float64)})


@pytest.mark.parametrize("view_dependent", [True, False])
def test_a_negative_prompt_may_repeat_the_prompt_and_the_view(view_dependent: bool) -> None:
    world = Listening(randn(1, *SHAPE), torch.tensor([1.0], dtype=torch.float64))
    said = PromptSet(world, "a duck", "{prompt}, foggy", PromptConfig(view_dependent))
    views = around(0.0, 90.0, 180.0, 0.0, elevation_deg=[0.0, 0.0, 0.0, 80.0])
    rows = said.conditions(views).uncond["weights"].argmax(1).tolist()
    empty = said.conditions(views).empty
    assert empty is not None
    assert [world.heard[i] for i in empty["weights"].argmax(1).tolist()] == [""] * 4
    words_ = ["front", "side", "back", "overhead"]
    expected = [f"a duck, {w} view, foggy" if view_dependent else "a duck, foggy" for w in words_]
    assert [world.heard[i] for i in rows] == expected


# --- flows ----------------------------------------------------------------------------------------


def velocity(world: GaussianMixture, x: Tensor, s: float, t: int, scale: float) -> Tensor:
    """What a flow network of the same world says of x = s eps + (1 - s) z: noise minus data."""
    scaled = x * math.sqrt(LEVELS[t]) / (1 - s)
    eps = guided(world, scale)(scaled, t)
    return eps - (x - s * eps) / (1 - s)


@pytest.mark.parametrize("t", [60, 400, 900])
def test_rfds_is_sds_with_the_weight_flow(t: int) -> None:
    """v(x_s) - (eps - z), the gradient of RFDS (arXiv 2406.03293, eq. 9), on the same world."""
    world, z, kappa = words(), randn(2, *SHAPE), randn(2, *SHAPE, seed=9)
    built = method(world, Given(kappa), t, weight="flow", cfg_scale=3.0)
    rgb = z.clone().requires_grad_()
    ask(built, rgb).loss.backward()
    assert rgb.grad is not None
    ratio = math.sqrt((1 - LEVELS[t]) / LEVELS[t])
    s = ratio / (1 + ratio)
    expected = velocity(world, s * kappa + (1 - s) * z, s, t, 3.0) - (kappa - z)
    torch.testing.assert_close(len(z) * rgb.grad, expected, rtol=1e-9, atol=1e-9)


def test_rfds_rev_corrects_its_noise_by_one_fixed_point_step() -> None:
    """eps + (1 - s) (v(x_s) + z - eps), the first half of RFDS-Rev's Alg. 2."""
    world, z, t = words(), randn(2, *SHAPE), 400
    noise = load("sdi_gaussians", ["prompt=red"], "rfds_rev").noise
    found = ask(method(world, noise, t), z, seed=3).kappa
    eps = torch.randn(2, *SHAPE, generator=after_times(2), dtype=torch.float64)
    ratio = math.sqrt((1 - LEVELS[t]) / LEVELS[t])
    s = ratio / (1 + ratio)
    moved = eps + (1 - s) * (velocity(world, s * eps + (1 - s) * z, s, t, 1.0) + z - eps)
    torch.testing.assert_close(found, moved, rtol=1e-9, atol=1e-9)


# --- paths ---------------------------------------------------------------------------------------


def test_the_segments_of_sctd_lie_as_published() -> None:
    t = torch.arange(20, 980)
    plan = Segment().plan(t, 1000, rng())
    edges = [20, 212, 404, 596, 788]
    for now, e, s, moved in zip(t.tolist(), *(x.tolist() for x in plan), strict=True):
        assert e == max(edge for edge in edges if edge <= now)
        assert moved == max(now, e + 80)
        assert e + 10 <= s < moved - 10 or s == e + 10
    late = Segment().plan(torch.full((20_000,), 400), 1000, rng())
    counts = torch.bincount(late.s - 222, minlength=168)  # 222 to 389
    assert len(counts) == 168
    assert float(counts.min()) > 0.5 * 20_000 / 168


def test_the_intervals_of_gcs_lie_as_published() -> None:
    t = torch.arange(1, 1000)
    plan = NestedIntervals().plan(t, 1000, 0.08, rng())
    for now, e, s, moved in zip(t.tolist(), *(x.tolist() for x in plan), strict=True):
        assert moved == max(now, 82)
        assert s == moved - 80
        assert max(s - 80, 1) <= e <= max(s - 11, 1)
        assert 1 <= e < s or s == 2


@pytest.mark.parametrize("t", [100, 130, 350, 900])
def test_sctd_by_its_formula(t: int) -> None:
    world, z, scale = words(), randn(2, *SHAPE), 4.0
    noise = Segment(seed=5)
    built = method(world, noise, t, SegmentConsistency(), cfg_scale=scale)
    result = ask(built, z, seed=3)
    plan = noise.plan(torch.tensor([t, t]), 1000, after_times(2))
    assert torch.equal(result.t, plan.t)
    drawn = rng(5)
    still = torch.randn(1, *SHAPE, generator=drawn, dtype=torch.float64)
    still = still + 0.1 * torch.randn(1, SHAPE[0], 1, 1, generator=drawn, dtype=torch.float64)
    none, forth = eps_of(world, ""), guided(world, scale)
    for i in range(2):
        e, s, u = (int(at[i]) for at in plan)
        x_e = math.sqrt(LEVELS[e]) * z[i : i + 1] + math.sqrt(1 - LEVELS[e]) * still
        if u >= 150:
            x_s = carry(x_e, none(x_e, e), e, s)
            x_t = carry(x_s, none(x_s, s), s, u)
        else:
            x_t = carry(x_e, none(x_e, e), e, u)
        torch.testing.assert_close(result.x_t[i : i + 1], x_t, rtol=1e-9, atol=1e-9)
        eps = forth(x_t, u)
        back = carry(x_t, eps, u, s)
        consistent = carry(back, none(back, s), s, e) - x_e
        expected = consistent + (scale + 1) * (x_e - carry(x_t, eps, u, e))
        torch.testing.assert_close(direction(result)[i : i + 1], expected, rtol=1e-8, atol=1e-8)


def test_gcs_by_its_formula() -> None:
    """The gradient of both losses, differentiated by hand: what is linear in z is z at e."""
    world, z, scale, t = words(), randn(2, *SHAPE), 4.0, 500
    noise, rule = NestedIntervals(fixed=False), GuidedConsistency(compact=0.7, clean=0.3)
    result = ask(method(world, noise, t, rule, cfg_scale=scale, weight="sigma"), z, seed=3)
    generator = after_times(2)
    plan = noise.plan(torch.tensor([t, t]), 1000, 0.1, generator)
    fresh = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    fresh = fresh + 0.1 * torch.randn(2, SHAPE[0], 1, 1, generator=generator, dtype=torch.float64)
    none, forth = eps_of(world, ""), guided(world, scale)
    for i in range(2):
        e, s, u = (int(at[i]) for at in plan)
        a, one = LEVELS[e], slice(i, i + 1)

        def losses(z: Tensor, e: int = e, s: int = s, u: int = u, a: float = a) -> Tensor:
            with torch.no_grad():
                x_e = math.sqrt(a) * z + math.sqrt(1 - a) * fresh[one]  # noqa: B023
                eps_e = none(x_e, e)
                x_s = carry(x_e, eps_e, e, s)
                eps_s = none(x_s, s)
                x_t = carry(x_s, eps_s, s, u)
                eps_t, plain_t = forth(x_t, u), none(x_t, u)
                back = carry(x_t, eps_t, u, s)
                over = carry(back, none(back, s), s, e)
                down = carry(x_t, eps_t, u, e)
                wanted = (down - math.sqrt(1 - a) * forth(down, e)) / math.sqrt(a)
            x_e = math.sqrt(a) * z + math.sqrt(1 - a) * fresh[one]  # noqa: B023
            there = carry(carry(carry(x_e, eps_e, e, s), eps_s, s, u), plain_t, u, e)
            silent = (x_e - math.sqrt(1 - a) * eps_e) / math.sqrt(a)
            both = 0.7 * (there - over).square().sum() + 0.3 * (silent - wanted).square().sum()
            return both

        moving = z[one].clone().requires_grad_()
        (slope,) = torch.autograd.grad(losses(moving), moving)
        torch.testing.assert_close((z - result.target)[one], slope, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("reduction", "size"), [("mean", 2), ("sum", 2), ("sum", 6)])
def test_the_third_term_of_gcs_moves_pixels(reduction: str, size: int) -> None:
    """The published loss, |rgb - (rgb + D(guided) - D(silent))|^2 with the second constant, with
    the samples of a path that is walked here; beside the two terms in latents, which stay."""
    base, scale, t = words(), 4.0, 500
    model = GaussianMixture(base.means[:, :3], base.variances[:, :3], names={"red": [1]})
    rgb = torch.rand((2, 3, size, size), generator=rng(1), dtype=torch.float64).requires_grad_()
    config = load("mini", ["prompt=red", "steps=10", "noise=nested_intervals", "noise.fixed=false",
                           "update=guided_consistency", "update.pixels=0.3",
                           f"guidance.cfg_scale={scale}", "guidance.scale=0.7",
                           f"guidance.reduction={reduction}",
                           f"guidance.t.high={{start: {t / 1000}, end: {t / 1000}}}"])  # fmt: skip
    prompts = PromptSet(model, "red", config=PromptConfig(view_dependent=False))
    both = guidance(config, model, prompts, config.noise)
    assert isinstance(both, PixelConsistency)
    without = config.model_copy(update={"update": GuidedConsistency(pixels=0.0)})
    latents_only = guidance(without, model, prompts, config.noise)
    assert not isinstance(latents_only, PixelConsistency)
    answers = [each(rgb, around(0.0, 90.0), 0, rng(3)) for each in (latents_only, both)]
    slopes = [torch.autograd.grad(answer.loss, rgb)[0] for answer in answers]
    assert torch.equal(answers[0].target, answers[1].target)
    assert answers[0].evaluations == answers[1].evaluations

    generator = after_times(2)
    plan = config.noise.plan(torch.tensor([t, t]), 1000, 0.1, generator)  # type: ignore[attr-defined]
    shape = (2, 3, 2, 2)
    fresh = torch.randn(shape, generator=generator, dtype=torch.float64)
    fresh = fresh + 0.1 * torch.randn(2, 3, 1, 1, generator=generator, dtype=torch.float64)
    none, forth = eps_of(model, ""), guided(model, scale)
    z, pairs = model.encode(rgb.detach()), []
    for i in range(2):
        e, s, u = (int(at[i]) for at in plan)
        a = LEVELS[e]
        x_e = math.sqrt(a) * z[i : i + 1] + math.sqrt(1 - a) * fresh[i : i + 1]
        eps_e = none(x_e, e)
        x_s = carry(x_e, eps_e, e, s)
        x_t = carry(x_s, none(x_s, s), s, u)
        down = carry(x_t, forth(x_t, u), u, e)
        loud = (down - math.sqrt(1 - a) * forth(down, e)) / math.sqrt(a)
        pairs.append((loud, (x_e - math.sqrt(1 - a) * eps_e) / math.sqrt(a)))
    loud, silent = (model.decode(torch.cat(each)).clamp(0, 1) for each in zip(*pairs, strict=True))
    assert float((loud - silent).abs().max()) > 0.05
    moving = rgb.detach().requires_grad_()
    shown = torch.nn.functional.interpolate(moving, (2, 2), mode="bilinear", antialias=True)
    error = (shown - (shown + loud - silent).detach()).square()
    loss = error.sum() / 2 if reduction == "sum" else error.mean()
    (expected,) = torch.autograd.grad(0.7 * 0.3 * loss, moving)
    torch.testing.assert_close(slopes[1] - slopes[0], expected, rtol=1e-7, atol=1e-10)


def test_a_straight_path_moves_nothing() -> None:
    """A network that always says the same draws straight lines, on which all ways agree."""
    constant = randn(1, *SHAPE, seed=4)

    class Always(Words):
        def predict_noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return constant.expand_as(x_t)

    world = Always(randn(1, *SHAPE), torch.tensor([1.0], dtype=torch.float64))
    for noise, rule in (
        (Segment(), SegmentConsistency()),
        (NestedIntervals(), GuidedConsistency()),
    ):
        z = randn(2, *SHAPE)
        target = ask(method(world, noise, 600, rule, weight="sigma"), z).target
        torch.testing.assert_close(target, z, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("rule", "noise"),
    [("segment_consistency", "segment"), ("guided_consistency", "nested_intervals")],
)
def test_a_rule_without_its_path_says_which(rule: str, noise: str) -> None:
    config = load("mini", ["prompt=a mug", f"update={rule}"])
    with pytest.raises(UserError, match=f"noise.kind={noise}") as told:
        check(config)
    name = str(told.value).rpartition("--guidance ")[2]
    check(load("mini", ["prompt=a mug"], name))
    assert load("mini", ["prompt=a mug"], name).update.kind == rule
    kind = SegmentConsistency() if noise == "segment" else GuidedConsistency()
    with pytest.raises(ValueError, match=f"noise.kind={noise}"):
        ask(method(words(), Given(randn(1, *SHAPE)), 400, kind), randn(1, *SHAPE))


# --- LucidDreamer's own grid --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "expected"),
    [(0, [1, 1]), (1, [1, 1]), (150, [1, 150]), (201, [1, 201]), (202, [1, 201, 202]),
     (880, [1, 201, 401, 601, 801, 880])],
)  # fmt: skip
def test_the_published_grid_has_whole_steps_and_a_rest(last: int, expected: list[int]) -> None:
    noise = IntervalInversion(published=True)
    assert noise.times(torch.tensor([last]), 1000).tolist() == [expected]


def test_the_published_start_has_a_little_noise() -> None:
    z, t = randn(1, *SHAPE), 450
    asked: list[tuple[int, Tensor]] = []

    def remember(x: Tensor, t: Tensor) -> Tensor:
        asked.append((int(t[0]), x.clone()))
        return torch.zeros_like(x)

    noised(IntervalInversion(published=True, interval=Ramp(0.05, 0.05)), z, [t],
           Answers(remember), TABLE, rng(3))  # fmt: skip
    fresh = torch.randn(1, *SHAPE, generator=rng(3), dtype=torch.float64)
    assert [at for at, _ in asked] == [1, 201, 400]
    start = math.sqrt(LEVELS[1]) * z + math.sqrt(1 - LEVELS[1]) * fresh
    torch.testing.assert_close(asked[0][1], start, rtol=1e-12, atol=1e-12)


# --- root finders and solvers ---------------------------------------------------------------------


def linear(*variances: float) -> Words:
    """A world whose guided prediction is linear in the noise, with one eigenvalue for each of the
    ``variances`` of what "red" means: channel by channel."""
    means = torch.stack([0.2 * randn(*SHAPE, seed=5), 0.7 * randn(*SHAPE, seed=3)])
    spread = torch.ones(2, *SHAPE, dtype=torch.float64)
    for channel in range(SHAPE[0]):
        spread[1, channel] = variances[channel % len(variances)]
    world = Words(means, spread)
    world.embed = lambda prompts: Condition(  # type: ignore[method-assign]
        {"weights": torch.eye(2, dtype=torch.float64)[[int("red" in p) for p in prompts]]}
    )
    return world


def root(world: Words, z: Tensor, t: int, scale: float) -> Tensor:
    """kappa = eps(x_t(kappa)) in closed form: eps is straight in kappa, element by element."""
    f = guided(world, scale)

    def at(kappa: Tensor) -> Tensor:
        return f(math.sqrt(LEVELS[t]) * z + math.sqrt(1 - LEVELS[t]) * kappa, t)

    offset = at(torch.zeros_like(z))
    rate = at(torch.ones_like(z)) - offset
    return offset / (1 - rate)


@pytest.mark.parametrize("scale", [1.0, 4.0, -3.0])
def test_anderson_finds_the_root_of_a_linear_map_in_as_many_steps_as_it_has_eigenvalues(
    scale: float,
) -> None:
    world, z, t = linear(0.05, 0.3, 2.0), randn(2, *SHAPE), 500
    expected = root(world, z, t, scale)
    errors = [
        float((ask(method(world, Anderson(cfg_scale=scale, iterations=n), t), z, seed=3).kappa
               - expected).abs().max())
        for n in (3, 4)
    ]  # fmt: skip
    assert errors[0] > 1e-3
    assert errors[1] < 1e-8
    # The plain iteration is not there yet, or has left for good.
    plain = ask(method(world, FixedPoint(cfg_scale=scale, iterations=4), t), z, seed=3).kappa
    assert float((plain - expected).abs().max()) > 1e-3


def test_anderson_forgets_what_is_older_than_its_memory() -> None:
    world, z, t = linear(0.05, 0.3, 2.0), randn(1, *SHAPE), 500
    short = Anderson(cfg_scale=4.0, iterations=4, memory=1)
    found = ask(method(world, short, t), z, seed=3).kappa
    assert float((found - root(world, z, t, 4.0)).abs().max()) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 4.0, -3.0])
def test_one_newton_step_solves_a_linear_equation(scale: float) -> None:
    world, z, t = linear(0.05, 0.3, 2.0), randn(2, *SHAPE), 500
    expected = root(world, z, t, scale)
    errors = []
    for krylov in (2, 3):
        noise = NewtonKrylov(cfg_scale=scale, iterations=1, krylov=krylov)
        guided_ = ask(method(world, noise, t, cfg_scale=1.0), z, seed=3)
        errors.append(float((guided_.kappa - expected).abs().max()))
        asked = 1 if scale == 1.0 else 2
        assert guided_.evaluations == 2 * ((krylov + 1) * asked + 1)
    assert errors[0] > 1e-3
    assert errors[1] < 1e-8


def test_a_damped_iteration_closes_in_at_its_rate() -> None:
    """1 - d + d * slope, which is below 1 where the whole step's slope is -2.6."""
    t = int((sigma(TABLE) - 1.0).abs().argmin())
    world, z, scale, d = words(1.0, 0.1, 1.0), randn(1, *SHAPE), -7.5, 0.3
    s2 = float(sigma(TABLE[t])) ** 2
    slope = s2 / (1.0 + s2) + scale * (s2 / (0.1 + s2) - s2 / (1.0 + s2))
    assert slope < -2.0
    kappas = [
        ask(method(world, FixedPoint(cfg_scale=scale, iterations=n, damping=d), t), z, seed=3)
        .kappa
        for n in (1, 2, 3)
    ]  # fmt: skip
    first, second = (b - a for a, b in itertools.pairwise(kappas))
    torch.testing.assert_close(second, (1 - d + d * slope) * first, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("heun", "least", "most"), [(False, 1.7, 2.3), (True, 3.4, 4.6)])
def test_an_inversion_converges_at_its_order(heun: bool, least: float, most: float) -> None:
    world = GaussianMixture(randn(1, *SHAPE), torch.tensor([0.4], dtype=torch.float64))
    z, t = randn(5, *SHAPE, seed=2), 800
    none, errors = eps_of(world, ""), []
    for steps in (40, 80, 160):
        times = even_times(torch.full((5,), steps), torch.full((5,), t))
        end = ddim_invert(z, times, lambda x, t: none(x, int(t[0])), TABLE, heun=heun)
        errors.append(float((exact(world, end, t) - z).abs().max()))
    for coarse, fine in itertools.pairwise(errors):
        assert least < coarse / fine < most


def test_heun_asks_twice_in_a_step() -> None:
    world, z = words(), randn(2, *SHAPE)
    spent = [
        ask(method(world, DDIMInversion(cfg_scale=0.0, steps=5, heun=heun), 500), z).evaluations
        for heun in (False, True)
    ]
    assert spent[1] - spent[0] == 2 * 5


NOISES: list[NoiseStrategy] = [Anderson(), NewtonKrylov(), Segment(), NestedIntervals()]


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.kind)
@pytest.mark.parametrize("t", [150, 500, 980])
def test_of_one_picture_every_choice_of_kappa_makes_that_picture(
    noise: NoiseStrategy, t: int
) -> None:
    world = words(1e-13, 1e-13, 1e-13)
    world.means = world.means[:1].expand(3, *SHAPE)
    found = ask(method(world, noise, t), randn(2, *SHAPE))
    picture = world.means[:1].expand(2, *SHAPE)
    torch.testing.assert_close(found.target, picture, rtol=0, atol=1e-7)


# --- views in pairs --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4, 5])
def test_antithetic_views_see_opposite_sides(count: int) -> None:
    for mode, sign in (("azimuth", 1.0), ("axis", -1.0)):
        policy = ViewPolicy(antithetic=mode, position_jitter=0.0, target_jitter=0.0, up_jitter=0.0)
        _, views = policy.sample(count, 16, rng(1))
        pairs = count // 2 * 2
        azimuth, elevation = views.azimuth_deg[:pairs], views.elevation_deg[:pairs]
        turn = (azimuth[1::2] - azimuth[::2]) % 360.0
        torch.testing.assert_close(turn, torch.full_like(turn, 180.0), rtol=0, atol=1e-3)
        torch.testing.assert_close(elevation[1::2], sign * elevation[::2])
        assert len(views) == count
        if mode == "axis":
            eyes = views.camera_to_world[:pairs, :3, 3]
            opposite = torch.nn.functional.cosine_similarity(eyes[1::2], eyes[::2])
            torch.testing.assert_close(opposite, -torch.ones_like(opposite))
            assert float(elevation.abs().max()) <= 10.0


def test_one_view_alone_is_that_of_sdi() -> None:
    plain, paired = (ViewPolicy(antithetic=mode) for mode in ("none", "azimuth"))
    for _ in range(3):
        one, same = (policy.sample(1, 16, rng(4))[0].world_to_cam for policy in (plain, paired))
        assert torch.equal(one, same)


def test_each_view_of_a_pair_is_distributed_as_before() -> None:
    policy = ViewPolicy(antithetic="azimuth")
    azimuth, elevation = policy.angles(40_000, rng(2))
    for half in (azimuth[::2], azimuth[1::2]):
        counts = torch.histc(half, 12, -180.0, 180.0)
        assert float(counts.min()) > 0.9 * 20_000 / 12
    assert float(elevation.min()) >= -10.0
    assert float(elevation.max()) <= 45.0


@pytest.mark.parametrize(
    ("wrong", "right"),
    [({"antithetic": "azimuth", "azimuth_deg": (-90.0, 90.0)}, {"azimuth_deg": (-180.0, 180.0)}),
     ({"antithetic": "axis", "elevation_deg": (5.0, 45.0)}, {"elevation_deg": (-10.0, 45.0)})],
)  # fmt: skip
def test_pairs_need_both_sides(wrong: dict, right: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(right))):
        ViewPolicy(**wrong)
    ViewPolicy(**{**wrong, **right})


# --- presets ------------------------------------------------------------------------------------


SINCE = ("pfd", "mv_sdi", "sds_bridge", "asd", "rfds", "rfds_rev", "sctd", "gcs", "lucid_dreamer",
         "cfd", "fsd", "gsd")  # fmt: skip


@pytest.mark.parametrize("name", SINCE)
def test_every_method_has_a_source_and_its_settings(name: str) -> None:
    assert "arXiv" in guidances()[name]
    for preset in ("mini", "sdi_gaussians"):
        check(load(preset, ["prompt=a mug"], name))
    assert load("mini", ["prompt=a mug"], name).batch == 4
