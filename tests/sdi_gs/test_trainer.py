# SPDX-License-Identifier: Apache-2.0
"""The trainer on a denoiser in closed form: the shape must end where the mathematics says."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from representations.gaussians import DensifyConfig, GaussianConfig, GaussianRenderer, RatesConfig
from representations.interface import Exchange, Renderer
from sdi_gs.diffusion.analytic import GaussianMixture
from sdi_gs.guidance.distillation import GuidanceConfig, ScoreDistillation, TimeConfig
from sdi_gs.guidance.noise import DDIMInversion, NoiseStrategy, RandomNoise
from sdi_gs.guidance.prompts import PromptSet
from sdi_gs.ramp import Ramp
from sdi_gs.trainer import (
    NonFinite,
    Training,
    gradients_finite,
    rate_factor,
    rates_times,
    require_finite,
    train,
    train_step,
)
from sdi_gs.views import ViewPolicy

RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


def world() -> GaussianMixture:
    """Every picture is nearly all red or nearly all blue; the words say which."""
    means = torch.tensor([RED, BLUE])[:, :, None, None].expand(2, 3, 8, 8) * 2.0 - 1.0
    return GaussianMixture(
        means.contiguous(), torch.tensor([0.01, 0.01]), names={"red": [0], "blue": [1]}
    )


def training(
    prompt: str = "a red thing",
    noise: NoiseStrategy | None = None,
    steps: int = 60,
    weights: dict[str, Ramp] | None = None,
    seed: int = 0,
    exchange: Exchange | None = None,
) -> Training:
    model = world()
    renderer = GaussianRenderer(
        GaussianConfig(
            count=200,
            max_count=260,
            rates=RatesConfig(sh_dc=0.1),
            densify=DensifyConfig(every=10),
        ),
        steps=steps,
        seed=seed,
        exchange=exchange,
    )
    noise = noise or DDIMInversion(cfg_scale=0.0)
    guidance = GuidanceConfig(cfg_scale=1.0, t=TimeConfig(high=Ramp(0.9, 0.2)))
    return Training(
        renderer=renderer,
        guidance=ScoreDistillation(
            model, PromptSet(model, prompt), noise, config=guidance, steps=steps
        ),
        views=ViewPolicy(
            distance=(2.2, 2.2), fov_y_deg=(30.0, 30.0),
            position_jitter=0.0, target_jitter=0.0, up_jitter=0.0,
        ),
        background=lambda views, rng: torch.ones(views, 3),
        weights=weights or {},
        rng=torch.Generator().manual_seed(seed),
        steps=steps,
        batch=2,
        resolution=16,
        device=torch.device("cpu"),
    )  # fmt: skip


def colour_of(renderer: Renderer) -> torch.Tensor:
    """Mean colour of what is drawn in the middle of four views."""
    policy = ViewPolicy(distance=(2.2, 2.2), fov_y_deg=(30.0, 30.0))
    with torch.no_grad():
        render, _ = renderer.render(policy.showcase(4, 16, 15.0), torch.ones(4, 3))
    return render.rgb[:, :, 6:10, 6:10].mean(dim=(0, 2, 3))


@pytest.mark.parametrize(
    "noise", [DDIMInversion(cfg_scale=0.0), RandomNoise()], ids=["ddim_inversion", "random"]
)
@pytest.mark.parametrize(("word", "wanted"), [("red", RED), ("blue", BLUE)])
def test_the_shape_takes_the_colour_of_its_prompt(
    word: str, wanted: tuple[float, float, float], noise: NoiseStrategy
) -> None:
    run = training(f"a {word} thing", noise)
    before = colour_of(run.renderer)
    reports = list(train(run))
    after, goal = colour_of(run.renderer), torch.tensor(wanted)
    assert float((before - goal).abs().max()) > 0.3
    assert float((after - goal).abs().max()) < 0.15
    assert len(reports) == 60
    assert [report.step for report in reports] == list(range(60))
    assert reports[-1].refined.size <= 260


def test_one_seed_one_run_and_another_seed_another() -> None:
    runs = [[report.loss for report in train(training(steps=8, seed=s))] for s in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_report_adds_up() -> None:
    run = training(steps=4, weights={"opacity": Ramp(0.5, 0.5), "scale": Ramp(0.0, 0.0)})
    report = train_step(run, 0)
    assert set(report.losses) == {"guidance", "opacity"}  # a term without weight is not computed
    assert report.loss == pytest.approx(sum(report.losses.values()))
    assert report.t == 900
    assert report.evaluations == 2 * (9 + 1)  # int(10 t) inversion steps and one more, two views
    assert set(report.seconds) == {"render", "encode", "guidance", "backward", "refine"}
    assert report.losses["opacity"] == pytest.approx(0.05, rel=0.02)  # 0.5 times 0.1 at the start


def test_only_terms_with_a_weight_are_asked_for() -> None:
    run = training(steps=4, weights={"opacity": Ramp(0.0, 1.0), "scale": Ramp(1.0, 1.0)})
    asked, real = [], run.renderer.terms

    def spy(trace, names=None):  # type: ignore[no-untyped-def]
        asked.append(sorted(names))
        return real(trace, names)

    run.renderer.terms = spy  # type: ignore[method-assign]
    train_step(run, 0)
    train_step(run, 2)
    assert asked == [["scale"], ["opacity", "scale"]]


def test_weights_move_the_shape() -> None:
    """The sum of the terms is what is descended, not guidance alone."""
    runs = [training(steps=20), training(steps=20, weights={"opacity": Ramp(50.0, 50.0)})]
    for run in runs:
        for _ in train(run):
            pass
    opacity = [run.renderer.cloud().opacity_logit.sigmoid().mean() for run in runs]  # type: ignore[attr-defined]
    assert opacity[1] < 0.7 * opacity[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_parameters_change(value: float) -> None:
    run = training(steps=4, weights={"scale": Ramp(value, value)})
    before = run.renderer.state_dict()["gaussians"]
    with pytest.raises(NonFinite, match=r"step 0: the loss term 'scale' is (nan|inf)") as caught:
        train_step(run, 0)
    assert "guidance=" in str(caught.value)
    after = run.renderer.state_dict()["gaussians"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_gradient_that_is_no_number_names_its_parameter() -> None:
    good, bad = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = torch.optim.SGD(
        [{"params": [good], "name": "means"}, {"params": [bad], "name": "scales"}], lr=0.1
    )
    loss = good.sum() + bad.sqrt().sum()  # finite, with an infinite slope
    loss.backward()

    def finite() -> bool:
        return bool(gradients_finite([optimizer]))

    with pytest.raises(NonFinite, match="3 of 3 gradient values of 'scales'"):
        require_finite([optimizer], {"guidance": loss.item()}, finite(), 7)
    bad.grad = torch.zeros(3)
    require_finite([optimizer], {"guidance": loss.item()}, finite(), 7)


def test_rates_cool_linearly_at_the_end_of_a_run() -> None:
    run = dataclasses.replace(training(steps=10), cooldown=0.4)
    factors = [rate_factor(run, step) for step in range(10)]
    assert factors == [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert {rate_factor(training(steps=10), step) for step in range(10)} == {1.0}
    assert rate_factor(dataclasses.replace(run, cooldown=1.0), 5) == 0.5


def test_steps_beyond_the_schedule_have_its_last_values_and_cool_by_themselves() -> None:
    run = dataclasses.replace(training(steps=20), cooldown=0.4, schedule=10)
    factors = [rate_factor(run, step) for step in range(20)]
    once = [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert factors == once * 2
    whole = dataclasses.replace(run, schedule=None)
    assert rate_factor(whole, 9) == 1.0
    assert rate_factor(dataclasses.replace(run, schedule=50), 19) == rate_factor(whole, 19)


def test_a_cooled_step_is_shorter_and_leaves_the_rates_alone() -> None:
    value, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizers = [
        torch.optim.SGD([{"params": [value], "lr": 0.3}]),
        torch.optim.SGD([{"params": [other], "lr": 0.1}]),
    ]
    value.grad, other.grad = torch.tensor([1.0, -2.0]), torch.tensor([1.0, 1.0])

    def rates() -> list[float]:
        return [optimizer.param_groups[0]["lr"] for optimizer in optimizers]

    with rates_times(optimizers, 0.5):
        for optimizer in optimizers:
            optimizer.step()
    assert value.tolist() == pytest.approx([-0.15, 0.3])
    assert other.tolist() == pytest.approx([-0.05, -0.05])
    assert rates() == [0.3, 0.1]
    with pytest.raises(RuntimeError), rates_times(optimizers, 0.5):
        raise RuntimeError
    assert rates() == [0.3, 0.1]


def test_a_run_that_cools_moves_less_in_its_last_step_and_not_in_its_first() -> None:
    def moved(run: Training, at: int) -> float:
        for step in range(at):
            train_step(run, step)
        before = run.renderer.state_dict()["gaussians"]["log_scale"].clone()
        train_step(run, at)
        return float((run.renderer.state_dict()["gaussians"]["log_scale"] - before).abs().mean())

    def cooled(run: Training) -> Training:
        return dataclasses.replace(run, cooldown=0.5)

    assert moved(cooled(training(steps=8)), 0) == moved(training(steps=8), 0)
    assert moved(cooled(training(steps=8)), 7) < 0.4 * moved(training(steps=8), 7)
