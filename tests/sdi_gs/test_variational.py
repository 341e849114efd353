# SPDX-License-Identifier: Apache-2.0
"""VSD and ESD: reductions with a known second network, and the second network itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from sdi_gs.diffusion.schedule import alpha_bar_at, per_sample, sigma
from sdi_gs.diffusion.stable import StableDiffusion
from sdi_gs.guidance.distillation import GuidanceConfig, ScoreDistillation, TimeConfig
from sdi_gs.guidance.draws import ViewSlice
from sdi_gs.guidance.prompts import PromptConfig, PromptSet
from sdi_gs.guidance.update import UpdateRule
from sdi_gs.guidance.variational import LearnedReference, Variational, VariationalConfig
from sdi_gs.guidance.viewpoints import Viewpoints
from sdi_gs.ramp import Ramp
from sdi_gs.views import ViewPolicy

from .doubles import Given, Latent, around, components, randn, rng

SHAPE = (4, 2, 2)


class World(Latent):
    def embed(self, prompts):  # type: ignore[no-untyped-def]
        return components([[0.0, 1.0] if "red" in p else [1.0, 0.0] for p in prompts])


def world() -> World:
    means = torch.stack([torch.zeros(SHAPE).double(), 0.7 * randn(*SHAPE, seed=3)])
    return World(means, torch.tensor([0.4, 0.4], dtype=torch.float64))


class Known:
    """A second network that answers what it was told to, with and without a camera."""

    def __init__(self, with_camera: Any, without: Any = None) -> None:
        self.answers = (with_camera, without)
        self.lessons: list[tuple[Tensor, Tensor]] = []
        self.cameras: list[Tensor | None] = []

    def predict(self, x_t: Tensor, t: Tensor, camera: Tensor | None) -> Tensor:
        self.cameras.append(camera)
        answer = self.answers[camera is None]
        return answer(x_t, t) if callable(answer) else answer

    def learn(self, latents: Tensor, camera: Tensor, rng: Generator) -> Tensor:
        self.lessons.append((latents, camera))
        return torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        return {"lessons": len(self.lessons)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lessons = [(torch.zeros(0), torch.zeros(0))] * state["lessons"]


def step(
    kappa: Tensor, cfg_scale: float = 7.5, t: int = 500, update: UpdateRule | None = None
) -> ScoreDistillation:
    model = world()
    prompts = PromptSet(model, "red", config=PromptConfig(view_dependent=False))
    time = TimeConfig(high=Ramp(t / 1000, t / 1000))
    settings = GuidanceConfig(cfg_scale=cfg_scale, t=time)
    return ScoreDistillation(model, prompts, Given(kappa), update=update, config=settings, steps=10)


def variational(
    kappa: Tensor,
    known: Known,
    config: VariationalConfig | None = None,
    cfg_scale: float = 7.5,
    t: int = 500,
) -> Variational:
    config = config or VariationalConfig()
    rule = LearnedReference(known, config.marginal)
    return Variational(step(kappa, cfg_scale, t, rule), rule, config)


def views(*azimuth: float) -> Viewpoints:
    return around(*azimuth, elevation_deg=[0.2 * angle for angle in azimuth])


def test_a_second_network_that_sees_the_injected_noise_makes_it_sds() -> None:
    z, kappa = randn(2, *SHAPE), randn(2, *SHAPE, seed=1)
    sds = step(kappa)(z, views(0, 90), 0, rng())
    vsd = variational(kappa, Known(kappa))(z, views(0, 90), 0, rng())
    torch.testing.assert_close(vsd.target, sds.target, rtol=1e-9, atol=1e-11)
    assert vsd.evaluations == sds.evaluations + 2 + 2  # one prediction and one lesson each


def test_esd_lies_between_vsd_and_the_marginal() -> None:
    z, kappa = randn(2, *SHAPE), randn(2, *SHAPE, seed=1)
    a, b = randn(2, *SHAPE, seed=7), randn(2, *SHAPE, seed=8)

    def target(marginal: float, known: Known) -> Tensor:
        config = VariationalConfig(marginal=marginal)
        return variational(kappa, known, config)(z, views(0, 90), 0, rng()).target

    vsd, esd, flat = (target(m, Known(a, b)) for m in (0.0, 0.5, 1.0))
    torch.testing.assert_close(esd, 0.5 * (vsd + flat), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(vsd, target(0.0, Known(a)), rtol=0, atol=0)
    s = sigma(world().alpha_bar[500])
    torch.testing.assert_close(vsd - flat, s * (a - b), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("t", [100, 600, 950])
def test_renderings_that_are_already_distributed_like_the_words_are_left_alone(t: int) -> None:
    """The second network of N(m_y, lambda) in closed form is the first one at guidance 1."""
    model = world()

    def known(x_t: Tensor, time: Tensor) -> Tensor:
        level = alpha_bar_at(model.alpha_bar, time)
        s, x_bar = per_sample(sigma(level)), x_t / per_sample(level).sqrt()
        return s * (x_bar - model.means[1]) / (0.4 + s.square())

    z, kappa = randn(2, *SHAPE), randn(2, *SHAPE, seed=1)
    run = variational(kappa, Known(known), None, 1.0, t)
    torch.testing.assert_close(run(z, views(0, 90), 0, rng()).target, z, rtol=1e-9, atol=1e-9)
    # Guided, what is left is guidance itself: w (g - 1) (eps_y - eps_0), without any noise in it.
    guided = variational(kappa, Known(known), None, 3.0, t)
    other = variational(-kappa, Known(known), None, 3.0, t)
    one, two = (r(z, views(0, 90), 0, rng()).target for r in (guided, other))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_every_step_is_a_lesson_and_some_hide_their_camera() -> None:
    z = randn(64, *SHAPE)
    known = Known(z)
    run = variational(z, known, VariationalConfig(camera_dropped=0.25))
    run(z, views(*range(64)), 0, rng())
    ((latents, camera),) = known.lessons
    assert torch.equal(latents, z)
    hidden = (camera == 0).all(dim=1)
    assert 6 <= int(hidden.sum()) <= 26
    drawn = views(*range(64)).camera_to_world.flatten(1)
    assert torch.equal(camera[~hidden], drawn[~hidden])
    again = variational(z, Known(z))
    again.load_state_dict(run.state_dict())
    assert len(again.rule.learner.lessons) == 1  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="keeps the state of its learner"):
        again.load_state_dict({})


def test_each_step_counts_its_own_samples() -> None:
    z, kappa = randn(2, *SHAPE), randn(2, *SHAPE, seed=1)
    for marginal, asked in ((0.0, 1), (0.5, 2), (1.0, 1)):
        run = variational(kappa, Known(kappa, kappa), VariationalConfig(marginal=marginal))
        spent = [run(z, views(0, 90), 0, rng()).evaluations for _ in range(2)]
        assert spent == [2 * 2 + 2 * asked + 2] * 2


def test_without_a_generator_it_takes_that_of_score_distillation() -> None:
    z = randn(32, *SHAPE)
    cameras = []
    for seed in (None, 0, 1):
        known = Known(z)
        run = variational(z, known, VariationalConfig(camera_dropped=0.5))
        run.inner.rng = rng(0)
        run(z, views(*range(32)), 0, None if seed is None else rng(seed))
        cameras.append(known.lessons[0][1])
    assert torch.equal(cameras[0], cameras[1])
    assert not torch.equal(cameras[0], cameras[2])


def test_a_learner_is_not_taught_in_portions() -> None:
    z = randn(2, *SHAPE)
    with pytest.raises(ValueError, match="all views of a step at once"):
        variational(z, Known(z))(z, views(0, 90), 0, ViewSlice(rng(), 0, 4))


def test_it_is_taught_the_cameras_that_were_drawn_jitter_included() -> None:
    cameras, viewpoints = ViewPolicy(target_jitter=0.3, up_jitter=0.3).sample(8, 16, rng(2))
    z = randn(8, *SHAPE)
    known = Known(z)
    variational(z, known, VariationalConfig(camera_dropped=0.0))(z, viewpoints, 0, rng())
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))  # OpenCV to OpenGL
    expected = (torch.linalg.inv(cameras.world_to_cam) @ flip).flatten(1)
    for camera in (known.lessons[0][1], known.cameras[0]):
        torch.testing.assert_close(camera, expected, atol=1e-5, rtol=0)


# --- the second network of a real one --------------------------------------------------------


@pytest.fixture
def model(tiny_model: Path) -> StableDiffusion:
    return StableDiffusion.load(tiny_model)


def latents(seed: int = 0) -> Tensor:
    return torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def poses(count: int = 4) -> Tensor:
    return views(*range(0, 90 * count, 90)).camera_to_world.flatten(1).float()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_it_starts_as_the_frozen_network(model: StableDiffusion, prediction: str) -> None:
    model.prediction = prediction
    learner = model.learner("a mug", 4, 1e-3)
    t = torch.tensor([0, 300, 600, 990])
    words = model.embed(["a mug"] * 4)
    with torch.no_grad():
        expected = model.predict_noise(latents(), t, words)
    for camera in (None, poses()):
        torch.testing.assert_close(learner.predict(latents(), t, camera), expected)


def test_lessons_change_it_and_never_the_frozen_network(model: StableDiffusion) -> None:
    before = copy.deepcopy(model.unet.state_dict())
    learner = model.learner("a mug", 4, 3e-3)
    assert len(learner.trained) > 4
    theirs = {p.data_ptr() for p in model.unet.parameters()}
    frozen = [p for n, p in learner.network.named_parameters() if n not in learner.trained]
    assert {p.data_ptr() for p in frozen} == theirs  # shared, not copied
    z, camera, t = latents(), poses(), torch.tensor([500] * 4)
    losses = [
        float(learner.learn(z, camera, rng(0))) for _ in range(60)
    ]  # one lesson, again and again
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is None for p in model.unet.parameters())
    after = model.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    seen, unseen = learner.predict(z, t, poses()), learner.predict(z, t, None)
    assert float((seen - unseen).abs().max()) > 1e-4  # the camera counts by now


def test_its_state_goes_on_bit_for_bit(model: StableDiffusion) -> None:
    straight, stopped = (model.learner("a mug", 2, 1e-2) for _ in range(2))
    for k in range(6):
        straight.learn(latents(k), poses(), rng(k))
    for k in range(3):
        stopped.learn(latents(k), poses(), rng(k))
    state = stopped.state_dict()
    stopped.learn(latents(9), poses(), rng(9))  # a snapshot is not touched by what follows
    resumed = model.learner("a mug", 2, 1e-2)
    resumed.load_state_dict(state)
    for k in range(3, 6):
        resumed.learn(latents(k), poses(), rng(k))
    for name, value in straight.trained.items():
        assert torch.equal(value, resumed.trained[name]), name
    with pytest.raises(ValueError, match="another shape"):
        resumed.load_state_dict({"weights": {}, "optimizer": {}})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"marginal": 1.5}, "update.marginal=1.5"),
        ({"rank": 0}, "update.rank=0"),
        ({"rate": -1.0}, "update.rate=-1.0"),
        ({"camera_dropped": -0.1}, "update.camera_dropped"),
    ],
)
def test_settings_that_cannot_work_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        VariationalConfig(**given)
