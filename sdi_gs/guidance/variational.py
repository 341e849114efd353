# SPDX-License-Identifier: Apache-2.0
"""Variational (ProlificDreamer, arXiv 2305.16213) and entropic (2401.00909) score distillation.

The noise that is subtracted is what a second network sees in the rendering. It starts as the frozen
one and is trained, one step each time, on the renderings of this very run, so that the difference
of the two is what still separates the renderings from the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..diffusion.base import NoiseLearner
from .distillation import Guided, ScoreDistillation
from .draws import Part, Rng
from .prompts import ViewAngles
from .update import Asked


@dataclass(frozen=True, kw_only=True)
class VariationalConfig:
    """The second network. Defaults are ProlificDreamer's."""

    kind: Literal["variational"] = "variational"
    # Share of the prediction that does not know the camera: 0 is VSD; ESD publishes 0.5, and at 1
    # the renderings of all views are one distribution.
    marginal: float = 0.0
    rank: int = 4  # of the low-rank weights beside the frozen ones
    rate: float = 1e-4  # AdamW's learning rate
    camera_dropped: float = 0.1  # chance that a training sample does not say its camera

    def __post_init__(self) -> None:
        for name in ("marginal", "camera_dropped"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"update.{name}={getattr(self, name)} must lie in [0, 1]")
        if self.rank < 1:
            raise ValueError(f"update.rank={self.rank}: at least 1 is needed")
        if self.rate < 0.0:
            raise ValueError(f"update.rate={self.rate} must not be negative")


def camera_to_world(views: ViewAngles) -> Tensor:
    """Poses [B, 16] at distance one: guidance knows no more of a camera than its angles.

    The columns of each matrix are right, up, backwards and the position.
    """
    azimuth, elevation = (angle.deg2rad() for angle in views)
    zero, one = torch.zeros_like(azimuth), torch.ones_like(azimuth)
    flat, height = elevation.cos(), elevation.sin()
    position = torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), height], dim=-1)
    right = torch.stack([-azimuth.sin(), azimuth.cos(), zero], dim=-1)
    up = torch.linalg.cross(position, right)
    top = torch.stack([right, up, position, position], dim=-1)  # [B, 3, 4]
    bottom = torch.stack([zero, zero, zero, one], dim=-1)[:, None]
    return torch.cat([top, bottom], dim=1).flatten(1)


class LearnedReference:
    """``eps(x_t; cfg_scale) - rho`` with rho from the second network: an update rule."""

    def __init__(self, learner: NoiseLearner, marginal: float) -> None:
        self.learner = learner
        self.marginal = marginal
        self.evaluations = 0

    def __call__(self, asked: Asked) -> Tensor:
        eps = asked.predict(asked.noised.x_t, asked.t, asked.cfg_scale)
        reference = torch.zeros_like(eps)
        for share, camera in (
            (1.0 - self.marginal, camera_to_world(asked.views).to(eps.device)),
            (self.marginal, None),
        ):
            if share != 0.0:
                seen = self.learner.predict(asked.noised.x_t, asked.t.to(eps.device), camera)
                reference = reference + share * seen
                self.evaluations += len(eps)
        return asked.along(eps - reference)


class Variational:
    """Score distillation whose reference learns as the run goes; see :class:`trainer.Guidance`."""

    def __init__(
        self, inner: ScoreDistillation, learner: NoiseLearner, config: VariationalConfig
    ) -> None:
        self.rule = LearnedReference(learner, config.marginal)
        inner.update = self.rule
        self.inner = inner
        self.learner = learner
        self.config = config

    def __call__(self, rgb: Tensor, views: ViewAngles, step: int, rng: Rng) -> Guided:
        """Guide with the second network as it is, then teach it these renderings."""
        self.rule.evaluations = 0
        guided = self.inner(rgb, views, step, rng)
        camera = camera_to_world(views).to(rgb.device)
        if isinstance(rng, Part):
            raise ValueError("a learner is taught all views of a step at once, not portions")
        dropped = torch.rand(len(camera), generator=rng) < self.config.camera_dropped
        camera = torch.where(dropped[:, None].to(camera.device), torch.zeros_like(camera), camera)
        self.learner.learn(guided.latents, camera, rng)
        spent = guided.evaluations + self.rule.evaluations + len(guided.latents)
        return guided._replace(evaluations=spent)

    def state_dict(self) -> dict[str, Any]:
        return {"learner": self.learner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state) != {"learner"}:
            raise ValueError(
                f"a variational run keeps the state of its learner, got {sorted(state)}"
            )
        self.learner.load_state_dict(state["learner"])
