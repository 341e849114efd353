# SPDX-License-Identifier: Apache-2.0
"""Network samples are counted where they are asked, and words are what the publications say."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from sdi_gs.config import load
from sdi_gs.diffusion.analytic import GaussianMixture
from sdi_gs.diffusion.base import Condition
from sdi_gs.experiments.flat import FlatOptions, make
from sdi_gs.guidance import GuidanceConfig, PromptConfig, PromptSet, ScoreDistillation, TimeConfig
from sdi_gs.guidance.noise import IntervalInversion, RandomNoise
from sdi_gs.guidance.update import Classifier, NoiseFree, Residual
from sdi_gs.guidance.variational import LearnedReference, Variational, VariationalConfig
from sdi_gs.ramp import Ramp
from sdi_gs.views import ViewPolicy

from .doubles import around


class Counting(GaussianMixture):
    """Counts the rows that it is asked about."""

    asked = 0

    def predict_noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.asked += len(x_t)
        return super().predict_noise(x_t, t, condition)


def world() -> Counting:
    means = torch.randn(5, 4, 2, 2, generator=Generator().manual_seed(3)).double()
    names = {"mug": [0, 1, 2], "front": [0], "side": [1], "back": [2], "blurry": [3, 4]}
    return Counting(means, torch.full((5,), 0.3), names=names)


@pytest.mark.parametrize("perp_neg", ["none", "threestudio", "stable-dreamfusion"])
@pytest.mark.parametrize("method", ["ddim", "distill", "cached"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_pictures_count_what_their_model_was_asked(
    perp_neg: str, method: str, scale: float
) -> None:
    settings = [f"prompts.perp_neg={perp_neg}", f"guidance.cfg_scale={scale}", "steps=4",
                "device=cpu", "resolution=8"]  # fmt: skip
    config, model = load("mini_2d", settings), world()
    prompts = PromptSet(model, "mug", "blurry", config.prompts)
    made = make(config, model, prompts, FlatOptions(method=method, samples=2))  # type: ignore
    assert made.evaluations == model.asked > 0


@pytest.mark.parametrize("update", [Residual(), Classifier(), NoiseFree()])
@pytest.mark.parametrize("perp_neg", ["none", "threestudio"])
def test_a_step_counts_what_its_model_was_asked(update: object, perp_neg: str) -> None:
    model = world()
    prompts = PromptSet(model, "mug", "blurry", PromptConfig(perp_neg=perp_neg))  # type: ignore
    guide = ScoreDistillation(model, prompts, RandomNoise(), update=update, steps=10)  # type: ignore
    guided = guide(torch.rand(3, 3, 2, 2).double(), around(10.0, 100.0, -160.0), 5)
    assert guided.evaluations == model.asked


@pytest.mark.parametrize(("n", "asked"), [(0.0, 2), (-0.5, 3), (1.0, 3)])
def test_a_classifier_score_asks_for_the_negative_prompt_where_that_counts(
    n: float, asked: int
) -> None:
    model = world()
    prompts = PromptSet(model, "mug", "blurry", PromptConfig(perp_neg="none"))
    rule = Classifier(negative=Ramp(n, n))
    guide = ScoreDistillation(model, prompts, RandomNoise(), update=rule, steps=10)
    assert guide(torch.rand(1, 3, 2, 2).double(), around(10.0), 5).evaluations == asked


def test_interval_inversion_asks_without_words_whatever_the_negative_prompt() -> None:
    """LucidDreamer inverts under the empty prompt: a negative prompt changes the guided prediction
    and nothing of kappa."""
    rgb = torch.rand(2, 3, 2, 2, generator=Generator().manual_seed(0)).double()
    seen = []
    for negative in ("", "blurry"):
        model = world()
        prompts = PromptSet(model, "mug", negative)
        guide = ScoreDistillation(
            model, prompts, IntervalInversion(),
            config=GuidanceConfig(t=TimeConfig(high=Ramp(0.6, 0.6))), steps=10,
        )  # fmt: skip
        seen.append(guide(rgb, around(10.0, 100.0), 5, Generator().manual_seed(1)))
    assert torch.equal(seen[0].kappa, seen[1].kappa)
    assert torch.equal(seen[0].x_t, seen[1].x_t)
    assert not torch.equal(seen[0].target, seen[1].target)


class Pupil:
    """A second network that remembers the cameras it was given."""

    def __init__(self) -> None:
        self.predicted: list[Tensor] = []
        self.learned: list[Tensor] = []

    def predict(self, x_t: Tensor, t: Tensor, camera: Tensor | None) -> Tensor:
        if camera is not None:
            self.predicted.append(camera)
        return torch.zeros_like(x_t)

    def learn(self, latents: Tensor, camera: Tensor, rng: Generator) -> Tensor:
        self.learned.append(camera)
        return torch.zeros(())

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


def test_the_second_network_is_given_the_cameras_that_were_drawn() -> None:
    policy = ViewPolicy(position_jitter=0.3, target_jitter=0.3, up_jitter=0.3)
    cameras, viewpoints = policy.sample(3, 8, Generator().manual_seed(0))
    pupil, model = Pupil(), world()
    rule = LearnedReference(pupil, 0.0)
    inner = ScoreDistillation(model, "mug", RandomNoise(), update=rule, steps=10)
    guide = Variational(inner, rule, VariationalConfig(camera_dropped=0.0))
    guide(torch.rand(3, 3, 2, 2).double(), viewpoints, 0, Generator().manual_seed(1))
    for camera in (*pupil.predicted, *pupil.learned):
        pose = camera.reshape(3, 4, 4)
        # The pose is the inverse of the camera, with its second and third axis turned around.
        turned = pose * torch.tensor([1.0, -1.0, -1.0, 1.0])
        identity = cameras.world_to_cam @ turned
        torch.testing.assert_close(identity, torch.eye(4).expand(3, 4, 4), rtol=0.0, atol=1e-5)
    assert (len(pupil.predicted), len(pupil.learned)) == (1, 1)
