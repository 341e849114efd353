# SPDX-License-Identifier: Apache-2.0
"""Pictures by score distillation: equal to DDIM where theory says so, and at rest where it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sdi_gs.config import Config, from_plain
from sdi_gs.diffusion.analytic import GaussianMixture
from sdi_gs.diffusion.schedule import alpha_bar_at, mix, unmix
from sdi_gs.experiments.flat import KEPT, Flat, FlatOptions, distill, make
from sdi_gs.guidance.predict import GuidedPredictor
from sdi_gs.guidance.prompts import PromptSet
from sdi_gs.guidance.viewpoints import Viewpoints

from .doubles import components

SHAPE = (3, 4, 4)
Run = Callable[..., Any]


def world(variances: tuple[float, float, float] = (0.2, 0.05, 0.3)) -> GaussianMixture:
    rng = torch.Generator().manual_seed(4)
    means = 0.5 * torch.randn((3, *SHAPE), generator=rng, dtype=torch.float64)
    return GaussianMixture(means, torch.tensor(variances, dtype=torch.float64),
                           names={"mug": [0, 1]})  # fmt: skip


def settings(**more: object) -> Config:
    return from_plain(
        {
            "prompt": "a mug", "steps": 12, "resolution": 8,
            "prompts": {"view_dependent": False},
            "guidance": {"cfg_scale": 3.0, "t": {"high": {"start": 0.98, "end": 0.02}}},
            **more,
        }
    )  # fmt: skip


def start(count: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(8)
    return torch.randn((count, *SHAPE), generator=rng, dtype=torch.float64)


def run(config: Config, **options: object) -> Flat:
    model = world()
    chosen = FlatOptions(**options)  # type: ignore[arg-type]
    return distill(config, model, PromptSet(model, "a mug", config=config.prompts), start(), chosen)


def test_cached_noise_and_assignment_are_ddim() -> None:
    """Sec. 4 of the paper: to rounding in float64, on the times that the run takes."""
    model, config, x = world(), settings(), start()
    prompts = PromptSet(model, "a mug", config=config.prompts)
    made = distill(config, model, prompts, x, FlatOptions(method="cached", move="assign"))
    predict = GuidedPredictor(model, prompts.conditions(Viewpoints.front(3)))
    grid = [999, *(int(1000 * (0.98 - 0.96 * k / 12) + 1e-6) for k in range(12))]
    for t_from, t_to in zip(grid, [*grid[1:], 0], strict=True):
        t = torch.full((3,), t_from)
        a_from, a_to = (alpha_bar_at(model.alpha_bar, torch.full((3,), k)) for k in (t_from, t_to))
        eps = predict(x, t, 3.0)
        x = mix(unmix(x, eps, a_from), eps, a_to)
    torch.testing.assert_close(made.latents, x, rtol=1e-9, atol=1e-10)
    assert made.evaluations == 3 * 2 * 13


def test_inversion_draws_nothing_and_random_noise_does() -> None:
    quiet = {"cfg_scale": 3.0, "tau_max": 0.0, "entropy": 0.0}
    for noise, same in ((quiet, True), ("random", False)):
        one, two = (run(settings(noise=noise, seed=s), move="assign").latents for s in (0, 1))
        assert torch.equal(one, two) == same


def test_adam_rests_at_the_guided_mean_under_random_noise() -> None:
    """One component for the words, all of one variance: SDS pulls to m + s delta (oracle 8)."""

    class Two(GaussianMixture):
        def embed(self, prompts):  # type: ignore[no-untyped-def]
            return components([[0.0, 1.0, 0.0] if "mug" in p else [1.0, 0.0, 0.0] for p in prompts])

    base = world((0.1, 0.1, 0.1))
    model = Two(base.means, base.variances)
    config = settings(steps=600, noise="random", guidance={
        "cfg_scale": 1.5, "t": {"high": {"start": 0.6, "end": 0.2}}})  # fmt: skip
    prompts = PromptSet(model, "a mug", config=config.prompts)
    made = distill(config, model, prompts, start(), FlatOptions(rate=0.02))
    rest = model.means[0] + 1.5 * (model.means[1] - model.means[0])
    assert float((made.latents - rest).abs().mean()) < 0.05
    assert float((start() - rest).abs().mean()) > 0.5


def test_pixels_are_optimised_through_the_encoder_and_stay_displayable() -> None:
    config = settings(steps=300, noise="random")
    made = run(config, space="pixels", rate=0.02)
    assert float(made.latents.abs().max()) <= 1.0 + 1e-9  # encode maps [0, 1] to [-1, 1]
    again = run(config, space="pixels", rate=0.02)
    assert torch.equal(made.latents, again.latents)
    one_step = run(settings(steps=1, noise="random"), space="pixels", rate=0.02)
    assert float((made.latents - one_step.latents).abs().mean()) > 0.05


def test_the_evolution_is_kept_at_falling_times() -> None:
    made = run(settings(steps=40), method="cached", move="assign")
    assert len(made.targets) == len(made.times) == KEPT
    assert made.times == sorted(made.times, reverse=True)
    assert made.times[0] == 980
    torch.testing.assert_close(made.targets[-1], made.latents[:1])  # the last target is assigned


def test_ddim_itself_is_at_hand() -> None:
    model, config = world(), settings(steps=30)
    prompts = PromptSet(model, "a mug", config=config.prompts)
    made = make(config, model, prompts, FlatOptions(method="ddim", samples=5))
    assert made.latents.shape == (5, *SHAPE)
    assert made.evaluations == 5 * 2 * 30
    # Each sample lies near a component of the words rather than far from all of them.
    offset = (made.latents[:, None] - model.means[None, :2]).square().mean(dim=(2, 3, 4))
    assert float(offset.min(dim=1).values.max()) < 1.0


def test_a_run_inverts_from_where_it_is() -> None:
    """The strategy sees the picture, not the noise it began with."""
    seen = []

    class Spy(GaussianMixture):
        def predict_noise(self, x_t, t, condition):  # type: ignore[no-untyped-def]
            seen.append((x_t.clone(), int(t[0])))
            return super().predict_noise(x_t, t, condition)

    base = world()
    model = Spy(base.means, base.variances, names={"mug": [0, 1]})
    config = settings(steps=1, noise={"cfg_scale": 0.0, "tau_max": 0.0, "entropy": 0.0})
    prompts = PromptSet(model, "a mug", config=config.prompts)
    distill(config, model, prompts, start(1), FlatOptions(move="assign"))
    first = next(x for x, t in seen if t == 0)
    x_start = unmix(start(1), GuidedPredictor(base, prompts.conditions(Viewpoints.front(1)))(
        start(1), torch.tensor([999]), 3.0), base.alpha_bar[[999]])  # fmt: skip
    torch.testing.assert_close(first, x_start)


@pytest.mark.parametrize("method", ["ddim", "cached", None, "sds", "csd"])
def test_pictures_from_the_command_line(
    sdi_gs: Run, fast: Path, tmp_path: Path, method: str | None
) -> None:
    out = tmp_path / "out"
    chosen = ("--guidance", method) if method else ()
    said = sdi_gs("generate2d", "a mug", "--config", fast, "--out", out, "--samples", 2, *chosen)
    assert said.code == 0, said.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["samples"] == 2
    assert Image.open(out / "pictures.png").size == (32, 16)
    assert (out / "evolution.png").exists() == (method != "ddim")
    assert str(out / "pictures.png") in said.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--space", "pixel"), "--space pixel: did you mean 'pixels'?"),
        (("--move", "jump"), "--move jump"),
        (("--move", "assign", "--space", "pixels"), "a target is latents"),
        (("--guidance", "cached", "--space", "pixels"), "needs --space latents"),
        (("--guidance", "sdss"), "--guidance sdss"),
        (("--samples", "0"), "--samples 0"),
        (("--rate", "0"), "a learning rate is positive"),
    ],
)
def test_bad_input_is_told(
    sdi_gs: Run, fast: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    said = sdi_gs("generate2d", "a mug", "--config", fast, "--out", tmp_path / "out", *arguments)
    assert said.code == 2
    assert expected in said.err
    assert not (tmp_path / "out").exists()
    assert sdi_gs("generate2d", "--config", fast).code == 2  # no prompt


def test_views_that_are_seen_together_stand_around_the_shape() -> None:
    assert Viewpoints.front(3).azimuth_deg.tolist() == [0.0, 0.0, 0.0]
    assert Viewpoints.front(8, 4).azimuth_deg.tolist() == [0.0, 90.0, 180.0, 270.0] * 2
    with pytest.raises(ValueError, match=r"sees 4 views .* a multiple of 4$"):
        Viewpoints.front(6, 4)


def test_pictures_of_a_model_that_sees_several_views(
    sdi_gs: Any, prior_folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[float]] = []
    real = PromptSet.conditions

    def spy(self: PromptSet, viewpoints: Viewpoints) -> Any:
        asked.append(viewpoints.azimuth_deg.tolist())
        return real(self, viewpoints)

    monkeypatch.setattr(PromptSet, "conditions", spy)
    words = ("generate2d", "a mug", "--config", "mini_2d", f"model.source={prior_folders('mv')}",
             "--steps", 2, "--out", tmp_path / "out")  # fmt: skip
    said = sdi_gs(*words, "--samples", 6)
    assert (said.code, asked) == (2, [])
    assert "write --samples 4" in said.err
    said = sdi_gs(*words, "--samples", 4)
    assert said.code == 0, said.err
    assert asked
    assert all(azimuth == [0.0, 90.0, 180.0, 270.0] for azimuth in asked)


@pytest.mark.parametrize(
    ("given", "written"),
    [(["--guidance", "hifa"], "--space pixels"),
     (["--guidance", "gcs", "update.pixels=0.5"], "--space pixels"),
     (["--guidance", "gcs", "update.pixels=0.5"], "update.pixels=0")],
)  # fmt: skip
def test_a_rule_in_pixels_needs_pictures_that_move(
    sdi_gs: Any, tmp_path: Path, given: list[str], written: str
) -> None:
    """What is written instead works when it is typed."""
    words = ["generate2d", "a red mug", "--config", "mini_2d", "--samples", 1, "steps=1"]
    said = sdi_gs(*words, "--out", tmp_path / "no", *given)
    assert said.code == 2
    assert written in said.err
    assert not (tmp_path / "no").exists()
    said = sdi_gs(*words, "--out", tmp_path / "yes", *given, *written.split())
    assert said.code == 0, said.err
