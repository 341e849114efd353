# SPDX-License-Identifier: Apache-2.0
"""The embedded model: it is what it says, and it knows what it was taught."""

from __future__ import annotations

import pytest
import torch

from representations.cameras import orbit
from sdi_gs.diffusion.schedule import mix, unmix
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.guidance.predict import GuidedPredictor
from sdi_gs.guidance.prompts import Conditions
from sdi_gs.guidance.sampling import ddim_sample
from sdi_gs.mini import MINI_DIR, corpus


@pytest.fixture(scope="module")
def mini() -> StableDiffusion:
    return StableDiffusion.load(MINI_DIR)


def front(kind: str, color: str) -> torch.Tensor:
    one = torch.ones(1)
    camera = orbit(0 * one, 15 * one, corpus.DISTANCE * one, corpus.FOV_Y_DEG * one, (64, 64))
    return corpus.render_truth(kind, color, camera)


def ask(mini: StableDiffusion, text: str, batch: int = 1) -> Conditions:
    return Conditions(mini.embed([""] * batch), mini.embed([text] * batch))


def test_weights_are_small_and_safe() -> None:
    files = [p for p in MINI_DIR.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 16e6
    weights = {p.suffix for p in files if p.stat().st_size > 100_000}
    assert weights == {".safetensors"}


def test_pictures_survive_the_vae(mini: StableDiffusion) -> None:
    picture = torch.cat([front("castle", "pink"), front("duck", "pink")])
    with torch.no_grad():
        back = mini.decode(mini.encode(picture))
    assert float(-10 * (back - picture).square().mean().log10()) > 28.0
    assert 0.6 < float(mini.encode(front("truck", "blue")).std()) < 1.8  # unit scale over corpus


@pytest.mark.parametrize(("t", "bound"), [(200, 0.35), (500, 0.12), (900, 0.04)])
def test_it_predicts_noise_on_pictures_it_has_never_seen(
    mini: StableDiffusion, t: int, bound: float
) -> None:
    """The error of predicting 0 would be 1."""
    rng = torch.Generator().manual_seed(0)
    z = mini.encode(torch.cat([front("house", "brown"), front("robot", "purple")]))
    noise = torch.randn(z.shape, generator=rng)
    time = torch.full((2,), t)
    x = mix(z, noise, mini.alpha_bar[time])
    words = mini.embed(["a brown house, front view", "a purple robot, front view"])
    assert float((mini.predict_noise(x, time, words) - noise).square().mean()) < bound


def test_the_caption_matters(mini: StableDiffusion) -> None:
    """At high noise the right caption explains a picture better than a wrong one or none."""
    rng = torch.Generator().manual_seed(1)
    z = mini.encode(front("car", "red")).expand(16, -1, -1, -1)
    noise = torch.randn(z.shape, generator=rng)
    time = torch.full((16,), 800)
    x = mix(z, noise, mini.alpha_bar[time])

    def error(text: str) -> float:
        eps = mini.predict_noise(x, time, mini.embed([text] * 16))
        return float((eps - noise).square().mean())

    right = error("a red car, front view")
    for wrong in ("", "a green car, front view", "a red duck, front view", "a red car, back view"):
        assert right < error(wrong), wrong


def test_a_sample_has_the_colour_that_was_asked_for(mini: StableDiffusion) -> None:
    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(2))

    def sample(color: str) -> torch.Tensor:
        predict = GuidedPredictor(mini, ask(mini, f"a {color} mug, back view", 4))
        return mini.decode(ddim_sample(predict, noise, 12, 3.0))

    red, blue = sample("red"), sample("blue")
    middle = (slice(None), slice(None), slice(28, 40), slice(28, 36))
    assert bool((red[middle].mean((2, 3))[:, 0] > red[middle].mean((2, 3))[:, 2] + 0.2).all())
    assert bool((blue[middle].mean((2, 3))[:, 2] > blue[middle].mean((2, 3))[:, 0] + 0.2).all())
    corners = torch.cat([red[..., :4, :4], red[..., -4:, -4:]])
    assert float(corners.mean()) > 0.95  # white background


def test_half_precision_agrees_with_single_where_noise_is_highest(mini: StableDiffusion) -> None:
    """sigma = 13 at t = 980 amplifies any error of epsilon thirteenfold in x0(t)."""
    half = StableDiffusion.load(MINI_DIR, dtype="float16")
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    z = mini.encode(torch.cat([front("boat", "green"), front("cat", "gray")]))
    for t, bound in ((980, 0.15), (200, 0.01)):
        time = torch.full((2,), t)
        x = mix(z, noise, mini.alpha_bar[time])
        clean = [
            unmix(x, GuidedPredictor(m, ask(m, "a green boat", 2))(x, time, 3.0), m.alpha_bar[time])
            for m in (mini, half)
        ]
        assert float((clean[0] - clean[1]).square().mean().sqrt()) < bound
