# SPDX-License-Identifier: Apache-2.0
"""The embedded model: it is what it says, and it knows what it was taught."""

from __future__ import annotations

import pytest
import torch

from representations.cameras import orbit
from representations.interface import Cameras
from sdi_gs import build
from sdi_gs.config import load
from sdi_gs.diffusion.base import Denoiser
from sdi_gs.diffusion.schedule import mix, unmix
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.evaluation.truth import most_like
from sdi_gs.guidance.predict import GuidedPredictor
from sdi_gs.guidance.prompts import Conditions, PromptSet
from sdi_gs.guidance.sampling import ddim_sample
from sdi_gs.guidance.viewpoints import Viewpoints
from sdi_gs.mini import FOLDERS, MINI_DIR, corpus


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


# --- mini_mv --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sibling() -> Denoiser:
    return build.denoiser(load("mini_mv").model, torch.device("cpu"))


def test_the_sibling_adds_little_and_safe_weights() -> None:
    files = [p for p in FOLDERS["mini_mv"].rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 14e6
    assert {p.suffix for p in files if p.stat().st_size > 100_000} == {".safetensors"}


def ring(start: float) -> Cameras:
    azimuth = start + torch.arange(4) * 90.0
    rest = (torch.full((4,), x) for x in (15.0, corpus.DISTANCE, corpus.FOV_Y_DEG))
    return orbit(azimuth, *rest, (64, 64))


def error_of_group(
    sibling: Denoiser, pictures: torch.Tensor, views: Viewpoints, said: str, t: int
) -> float:
    rng = torch.Generator().manual_seed(5)
    z = sibling.encode(pictures)
    noise = torch.randn(8, *z.shape, generator=rng).flatten(0, 1)
    z = z.repeat(8, 1, 1, 1)
    time = torch.full((len(z),), t)
    x = mix(z, noise, sibling.alpha_bar[time])
    words = PromptSet(sibling, said).conditions(views).positive
    eps = sibling.predict_noise(x, time, words.rows(torch.arange(4).repeat(8)))
    return float((eps - noise).square().mean())


def test_the_sibling_hears_cameras_and_sees_the_other_views(sibling: Denoiser) -> None:
    """At high noise true poses explain a group better than those of another start, and four views
    of one shape better than views whose order was changed."""
    cameras = ring(20.0)
    pictures = corpus.render_truth("elephant", "gray", cameras)
    views, turned = Viewpoints.of(cameras), Viewpoints.of(ring(65.0))
    said = "a gray elephant"
    right = error_of_group(sibling, pictures, views, said, 600)
    assert right < error_of_group(sibling, pictures, turned, said, 600)
    assert right < error_of_group(sibling, pictures.roll(1, 0), views, said, 600)
    assert right < error_of_group(sibling, pictures, views, "a gray duck", 600)
    assert right < 0.1


def test_the_sibling_makes_four_views_of_what_was_asked_for(sibling: Denoiser) -> None:
    """A duck, from the sides that were asked for: nearer to the truth of each view than to that of
    its neighbour."""
    cameras = ring(20.0)
    conditions = PromptSet(sibling, "a blue duck").conditions(Viewpoints.of(cameras))
    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = ddim_sample(GuidedPredictor(sibling, conditions), noise, 15, 2.0)
        drawn = sibling.decode(z).clamp(0, 1)
    truth = corpus.render_truth("duck", "blue", cameras)
    assert most_like(drawn, truth).tolist() == [0, 1, 2, 3]
