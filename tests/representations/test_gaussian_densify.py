# SPDX-License-Identifier: Apache-2.0
"""Growing, pruning, relocating: budgets, bookkeeping, and that pictures survive."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from representations.environment import Environment
from representations.gaussians import (
    DensifyConfig,
    GaussianConfig,
    GaussianRenderer,
    InitConfig,
    densify,
    mcmc,
)
from representations.gaussians.initialise import initialise
from representations.gaussians.parameters import (
    NAMES,
    GaussianParameters,
    inward_clamp,
    make_optimizer,
    rebuild,
)

from .helpers import cameras_around, seeded


def world(count=50, **init):
    config = GaussianConfig(count=count, max_count=10 * count, init=InitConfig(**init))
    gaussians = GaussianParameters(initialise(config))
    optimizer = make_optimizer(gaussians, config.rates, Environment(seeded(0)))
    # One step fills the moments with something recognisable: row i gets gradient i + 1.
    for name in NAMES:
        parameter = getattr(gaussians, name)
        rows = torch.arange(1.0, count + 1).reshape(-1, *[1] * (parameter.ndim - 1))
        parameter.grad = rows.expand_as(parameter).clone() * 1e-3
    optimizer.step()
    return gaussians, optimizer


def moment(gaussians, optimizer, name="means"):
    return optimizer.state[getattr(gaussians, name)]["exp_avg"]


def statistics(count, pull):
    stats = densify.Statistics.empty(count, torch.device("cpu"))
    stats.pull, stats.views = pull.clone(), torch.ones(count)
    return stats


def test_moments_move_with_their_splats_and_new_ones_start_at_zero():
    gaussians, optimizer = world(5)
    old = {name: moment(gaussians, optimizer, name).clone() for name in NAMES if name != "sh_rest"}
    means = gaussians.means.detach().clone()
    plan = densify.Plan(
        clone=torch.tensor([0, 1, 0, 0, 0], dtype=torch.bool),
        split=torch.tensor([0, 0, 1, 0, 0], dtype=torch.bool),
        prune=torch.tensor([1, 0, 0, 0, 0], dtype=torch.bool),
    )
    log_scale = gaussians.log_scale.detach().clone()
    densify.apply_plan(gaussians, optimizer, plan, DensifyConfig(), seeded(0))
    # survivors 1, 3, 4; the clone of 1; two halves of 2
    assert len(gaussians) == 6
    assert torch.equal(gaussians.means[:4], means[[1, 3, 4, 1]])
    torch.testing.assert_close(gaussians.log_scale[4], log_scale[2] - math.log(1.6))
    for name, before in old.items():
        after = moment(gaussians, optimizer, name)
        assert torch.equal(after[:3], before[[1, 3, 4]]), name
        assert float(after[3:].abs().max()) == 0.0, name
    owned = {p for group in optimizer.param_groups for p in group["params"]}
    assert set(optimizer.state) <= owned


def test_a_clone_leaves_the_picture_alone():
    config = GaussianConfig(count=60, max_count=200, init=InitConfig(opacity=0.6))
    renderer = GaussianRenderer(config)
    cameras, white = cameras_around(1), torch.ones(1, 3)
    with torch.no_grad():
        before = renderer.render(cameras, white)[0].rgb
    everything = torch.ones(60, dtype=torch.bool)
    plan = densify.Plan(clone=everything, split=~everything, prune=~everything)
    densify.apply_plan(
        renderer.gaussians, renderer.optimizer, plan, config.densify, renderer.generator
    )
    assert len(renderer) == 120
    with torch.no_grad():
        after = renderer.render(cameras, white)[0].rgb
    # At the centre exactly; at the rim two thin Gaussians are not one, at most a few hundredths.
    assert float((before - after).abs().mean()) < 0.02


@given(
    count=st.integers(2, 60),
    budget=st.integers(1, 120),
    grow=st.floats(0, 1),
    kind=st.sampled_from(["quantile", "threshold"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_a_plan_is_disjoint_and_within_budget(count, budget, grow, kind, seed):
    gaussians, _ = world(count)
    g = seeded(seed)
    with torch.no_grad():
        gaussians.opacity_logit.copy_(3 * torch.randn(count, generator=g) - 2)
        gaussians.log_scale.add_(torch.randn(count, 3, generator=g))
    config = DensifyConfig(kind=kind, grow=grow, grow_grad2d=0.3)
    pull = torch.rand(count, generator=g)
    plan = densify.plan_densify(gaussians, statistics(count, pull), budget, 0.8, config)
    assert int((plan.clone.int() + plan.split.int() + plan.prune.int()).max()) <= 1
    survivors = count - plan.removed
    assert survivors >= 1
    assert survivors + plan.added <= max(budget, survivors)


def test_growth_takes_the_hardest_pulled_and_does_not_know_the_unit():
    gaussians, _ = world(40)
    pull = torch.rand(40, generator=seeded(3))
    config = DensifyConfig(grow=0.25, prune_opacity=0.0, prune_scale=1e9)
    plans = [
        densify.plan_densify(gaussians, statistics(40, pull * unit), 1000, 1.0, config)
        for unit in (1e-7, 1.0, 1e7)
    ]
    grown = plans[0].clone | plans[0].split
    assert set(grown.nonzero()[:, 0].tolist()) == set(pull.topk(10).indices.tolist())
    for plan in plans[1:]:
        assert all(torch.equal(a, b) for a, b in zip(plan, plans[0], strict=True))


def test_splats_without_a_pull_do_not_grow():
    gaussians, _ = world(40)
    plan = densify.plan_densify(
        gaussians, statistics(40, torch.zeros(40)), 1000, 1.0, DensifyConfig(grow=1.0)
    )
    assert plan.added == 0


def test_prune_reasons():
    gaussians, _ = world(6, opacity=0.5, scale_factor=0.2)
    with torch.no_grad():
        gaussians.opacity_logit[0] = -9.0
        gaussians.log_scale[1, 2] = 1.0
        gaussians.means[2, 0] = float("nan")
        gaussians.sh_dc[3, 1] = float("inf")
    prune = densify.plan_prune(gaussians, 0.8, DensifyConfig())
    assert prune.tolist() == [True, True, True, True, False, False]


def test_pruning_never_leaves_nothing():
    gaussians, _ = world(6)
    with torch.no_grad():
        gaussians.opacity_logit[:] = torch.tensor([-9.0, -8, -7, -9, -9, -9])
        gaussians.means[2] = float("nan")
    assert (~densify.plan_prune(gaussians, 0.8, DensifyConfig())).nonzero()[:, 0].tolist() == [1]
    with torch.no_grad():
        gaussians.means[:] = float("nan")
    with pytest.raises(ValueError, match="the loss diverged"):
        densify.plan_prune(gaussians, 0.8, DensifyConfig())


def test_the_least_opacity_moves_over_the_run():
    config = DensifyConfig(prune_opacity=0.1, prune_opacity_end=0.5, every=7)
    assert [config.at(done).prune_opacity for done in (0.0, 0.25, 1.0)] == [0.1, 0.2, 0.5]
    assert replace(config.at(0.25), prune_opacity=0.1, prune_opacity_end=0.5) == config
    assert DensifyConfig().at(0.7) == DensifyConfig()
    with pytest.raises(ValueError, match=r"prune_opacity_end=1.5.*write .*prune_opacity_end=0.2"):
        DensifyConfig(prune_opacity_end=1.5)


@pytest.mark.parametrize("steps", [20, 40])
def test_faint_splats_go_when_the_least_opacity_reaches_them(steps):
    moving = DensifyConfig(start=0.0, stop=1.0, every=1, grow=0.0, prune_scale=1e9,
                           prune_opacity=0.0, prune_opacity_end=0.4)  # fmt: skip
    config = GaussianConfig(count=8, max_count=8, densify=moving)
    renderer = GaussianRenderer(config, steps=steps)
    opacity = torch.tensor([0.051, 0.113, 0.191, 0.292, 0.353, 0.45, 0.6, 0.9])
    with torch.no_grad():
        renderer.gaussians.opacity_logit.copy_(opacity.logit())
    # After step k the least is 0.4 (k + 1) / steps.
    for step in range(steps):
        assert renderer.refine(step).size == int((opacity >= 0.4 * (step + 1) / steps).sum())
    assert len(renderer) == 3
    assert renderer.refine(2 * steps).size == 3  # a run that was made longer: as at its end


def test_an_event_that_takes_most_of_the_shape_says_so(caplog):
    for opacity, said in ((0.4, 1), (0.6, 0)):
        many = DensifyConfig(start=0.0, every=1, prune_scale=1e9, prune_opacity=0.5)
        config = GaussianConfig(
            count=9, max_count=9, densify=many, init=InitConfig(opacity=opacity)
        )
        renderer = GaussianRenderer(config, steps=10)
        caplog.clear()
        renderer.refine(0)
        assert len(renderer) == (1 if said else 9)
        assert len(caplog.messages) == said
    # A haze of many splats is not most of the shape: 7 * 0.1 against 2 * 0.6.
    renderer = GaussianRenderer(GaussianConfig(count=9, max_count=9, densify=many), steps=10)
    with torch.no_grad():
        renderer.gaussians.opacity_logit[:2] = torch.tensor(0.6).logit()
    caplog.clear()
    renderer.refine(0)
    assert len(caplog.messages) == 0

    renderer = GaussianRenderer(GaussianConfig(count=9, max_count=9, densify=many), steps=10)
    renderer.refine(0)
    assert "8 of 9 splats go at once" in caplog.text
    assert "representation.densify.prune_opacity" in caplog.text


def test_statistics_count_all_views_and_not_the_batch_size():
    gradient = torch.zeros(3, 2, 2)
    gradient[0, 0] = torch.tensor([3.0, 4.0])  # splat 0 is pulled in the first view only
    gradient[2, 1] = torch.tensor([0.0, 1.0])
    radii = torch.ones(3, 2, 2, dtype=torch.int32)
    radii[1, 0] = 0  # and not drawn in the second
    stats = densify.Statistics.empty(2, torch.device("cpu"))
    stats.add(3 * gradient, radii, (20, 20))
    # 5 pixels^-1 * 10 pixels per half picture * 3 views, over 2 views drawn
    torch.testing.assert_close(stats.mean_pull(), torch.tensor([5 * 10 * 3 / 2, 1 * 10 * 3 / 3]))

    renderer = GaussianRenderer(GaussianConfig(count=80, max_count=80))
    pulls = []
    for batch in (1, 4):  # four times the same view, loss is a mean over views
        cameras = cameras_around(1)
        cameras = replace(
            cameras,
            world_to_cam=cameras.world_to_cam.repeat(batch, 1, 1),
            intrinsics=cameras.intrinsics.repeat(batch, 1, 1),
        )
        renderer.statistics = densify.Statistics.empty(80, torch.device("cpu"))
        render, trace = renderer.render(cameras, torch.zeros(batch, 3))
        render.rgb.square().mean().backward()
        renderer.refine(0, trace)
        pulls.append(renderer.statistics.mean_pull())
    torch.testing.assert_close(pulls[0], pulls[1], rtol=1e-4, atol=1e-9)


def test_opacity_decay_is_a_factor_and_keeps_moments():
    gaussians, optimizer = world(5, opacity=0.4)
    before, moments = gaussians.opacity.detach().clone(), moment(gaussians, optimizer).clone()
    densify.decay_opacity(gaussians, optimizer, 0.5)
    torch.testing.assert_close(gaussians.opacity, before * 0.5, atol=1e-6, rtol=1e-5)
    assert torch.equal(moment(gaussians, optimizer), moments)


@pytest.mark.parametrize("copies", [1, 2, 3, 7, 30])
def test_relocation_keeps_opacity_and_the_line_integral(copies):
    opacity, scale = torch.tensor([0.05, 0.5, 0.95]), torch.full((3, 3), 0.2)
    n = torch.full((3,), copies)
    new_opacity, new_scale = mcmc.relocated(opacity, scale, n)
    torch.testing.assert_close(1 - (1 - new_opacity) ** copies, opacity, atol=1e-5, rtol=1e-5)
    # Composite n equal splats along a line across them, numerically, against the one they replace.
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    for i in range(3):
        thin = new_opacity[i].double() * torch.exp(-0.5 * (x / new_scale[i, 0].double()) ** 2)
        many = 1 - (1 - thin) ** copies
        one = opacity[i].double() * torch.exp(-0.5 * (x / 0.2) ** 2)
        assert float(many.sum()) == pytest.approx(float(one.sum()), rel=1e-3)


def test_mcmc_keeps_the_picture_moves_the_dead_and_respects_the_cap():
    config = GaussianConfig(
        count=200,
        max_count=230,
        init=InitConfig(opacity=0.4),
        densify=DensifyConfig(kind="mcmc", grow=0.5),
    )
    renderer = GaussianRenderer(config)
    with torch.no_grad():
        renderer.gaussians.opacity_logit[::4] = -8.0
    cameras, black = cameras_around(2), torch.zeros(2, 3)
    with torch.no_grad():
        before = renderer.render(cameras, black)[0].rgb
    moved, added = mcmc.relocate_and_grow(
        renderer.gaussians, renderer.optimizer, 230, 0.8, config.densify, renderer.generator
    )
    assert (moved, added, len(renderer)) == (50, 30, 230)
    assert float(renderer.gaussians.opacity.detach().min()) > 0.01
    with torch.no_grad():
        after = renderer.render(cameras, black)[0].rgb
    assert float((before - after).abs().mean()) < 0.01
    naive = before.abs().mean()
    assert float(naive) > 0.1  # the comparison is about something


def test_mcmc_noise_moves_the_transparent_only():
    gaussians, _ = world(4, opacity=0.5)
    with torch.no_grad():
        gaussians.opacity_logit[0] = -9.0
    before = gaussians.means.detach().clone()
    mcmc.add_noise(gaussians, 1e-3, DensifyConfig(kind="mcmc"), seeded(1))
    moved = (gaussians.means.detach() - before).norm(dim=-1)
    assert float(moved[0]) > 1e-3
    assert float(moved[1:].max()) < 1e-6


def test_events_follow_the_calendar_and_the_budget_over_a_whole_run():
    config = GaussianConfig(
        count=100,
        max_count=130,
        densify=DensifyConfig(start=0.25, stop=0.75, every=5, grow=0.5),
    )
    renderer = GaussianRenderer(config, steps=20)
    grew = []
    for step in range(20):
        render, trace = renderer.render(cameras_around(2, (16, 16)), torch.rand(2, 3))
        render.rgb.square().mean().backward()
        renderer.optimizer.step()
        report = renderer.refine(step, trace)
        renderer.optimizer.zero_grad()
        if report.events:
            grew.append(step)
        assert report.size == len(renderer) <= 130
    assert grew == [4, 9, 14]
    assert len(renderer) == 130


def test_position_rate_falls_from_end_to_end():
    config = GaussianConfig()
    renderer = GaussianRenderer(config, steps=11)
    assert renderer.means_rate(0) == pytest.approx(config.rates.means)
    assert renderer.means_rate(10) == pytest.approx(config.rates.means_final)
    middle = math.sqrt(config.rates.means * config.rates.means_final)
    assert renderer.means_rate(5) == pytest.approx(middle)
    _, trace = renderer.render(cameras_around(1, (8, 8)), torch.zeros(1, 3))
    renderer.refine(4, trace)
    assert renderer.optimizer.param_groups[0]["lr"] == pytest.approx(middle)


def test_rebuild_before_the_first_step():
    config = GaussianConfig(count=4)
    gaussians = GaussianParameters(initialise(config))
    optimizer = make_optimizer(gaussians, config.rates, Environment(seeded(0)))
    rebuild(gaussians, optimizer, torch.tensor([3, 0]), torch.zeros(2, dtype=torch.bool))
    assert len(gaussians) == 2
    assert not optimizer.state


def test_saturated_colours_keep_the_gradient_that_brings_them_back():
    value = torch.tensor([-0.5, 0.5, 1.5], requires_grad=True)
    clamped = inward_clamp(value)
    assert clamped.tolist() == [0.0, 0.5, 1.0]
    assert torch.autograd.grad(clamped.sum(), value)[0].tolist() == [0.0, 1.0, 1.0]
    assert torch.autograd.grad(-inward_clamp(value).sum(), value)[0].tolist() == [-1.0, -1.0, 0.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DensifyConfig(kind="grow"), "one of quantile, threshold, mcmc, none"),
        (lambda: DensifyConfig(start=0.8, stop=0.2), "densify.stop=0.2"),
        (lambda: InitConfig(opacity=1.0), "init.opacity=1.0"),
        (lambda: InitConfig(kind="points"), "init.path"),
        (lambda: GaussianConfig(count=10, max_count=5), "max_count=5"),
        (lambda: GaussianConfig(sh_degree=4), "0, 1, 2 or 3"),
        (
            lambda: GaussianConfig(backend="gpu"),
            "one of auto, cpu, cuda, triton, gsplat, torch, reference",
        ),
    ],
)
def test_settings_teach(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_terms_by_name():
    renderer = GaussianRenderer(GaussianConfig(count=50, max_count=50))
    render, trace = renderer.render(cameras_around(1), torch.zeros(1, 3))
    assert set(renderer.terms(trace, ["opacity", "tv_rgb"])) == {"opacity", "tv_rgb"}
    assert renderer.terms(trace, []) == {}
    assert renderer.terms(trace)["opacity"].item() == pytest.approx(0.1, abs=1e-6)
    a = render.alpha.detach()
    assert renderer.terms(trace)["sparsity"].item() == pytest.approx(
        float((a * a + 0.01).sqrt().mean()), abs=1e-6
    )
    with pytest.raises(ValueError, match="unknown term 'entropy'"):
        renderer.terms(trace, ["entropy"])
