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

from representations.checks import require
from representations.sending import send

from ..diffusion.base import NoiseLearner
from ..stopwatch import Stopwatch
from .distillation import Guided, ScoreDistillation
from .draws import Rng, ViewSlice
from .update import UpdateInput
from .viewpoints import Viewpoints


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
            share = getattr(self, name)
            require(0.0 <= share <= 1.0, f"update.{name}", share, "0 to 1", 0.1)
        require(self.rank >= 1, "update.rank", self.rank, "1 or more", 4)
        require(self.rate >= 0.0, "update.rate", self.rate, "0 or more", 1e-4)


class LearnedReference:
    """``eps(x_t; cfg_scale) - rho`` with rho from the second network: an update rule."""

    def __init__(self, learner: NoiseLearner, marginal: float) -> None:
        self.learner = learner
        self.marginal = marginal
        self.evaluations = 0

    def __call__(self, given: UpdateInput) -> Tensor:
        eps = given.predict(given.noised.x_t, given.t.device, given.cfg_scale)
        reference = torch.zeros_like(eps)
        for share, camera in (
            (1.0 - self.marginal, _pose(given.viewpoints, eps)),
            (self.marginal, None),
        ):
            if share != 0.0:
                seen = self.learner.predict(given.noised.x_t, given.t.device, camera)
                reference = reference + share * seen
                self.evaluations += len(eps)
        return given.target_along(eps - reference)


class Variational:
    """Score distillation whose reference learns as the run goes; a :class:`Guidance`.

    ``inner`` was made with ``rule`` as its update.
    """

    def __init__(
        self, inner: ScoreDistillation, rule: LearnedReference, config: VariationalConfig
    ) -> None:
        self.inner, self.rule, self.config = inner, rule, config

    def __call__(
        self,
        rgb: Tensor,
        viewpoints: Viewpoints,
        step: int,
        rng: Rng | None = None,
        watch: Stopwatch | None = None,
    ) -> Guided:
        """Guide with the second network as it is, then teach it these renderings."""
        rng = self.inner.rng if rng is None else rng
        if isinstance(rng, ViewSlice):
            raise ValueError("a learner is taught all views of a step at once, not portions")
        self.rule.evaluations = 0
        guided = self.inner(rgb, viewpoints, step, rng, watch)
        dropped = torch.rand(len(viewpoints), generator=rng) < self.config.camera_dropped
        camera = viewpoints.camera_to_world.flatten(1)
        camera = torch.where(dropped[:, None].to(camera.device), torch.zeros_like(camera), camera)
        (camera,) = send([camera], guided.latents.device)
        self.rule.learner.learn(guided.latents, camera, rng)
        spent = guided.evaluations + self.rule.evaluations + len(guided.latents)
        return guided._replace(evaluations=spent)

    def state_dict(self) -> dict[str, Any]:
        return {"learner": self.rule.learner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state) != {"learner"}:
            raise ValueError(
                f"a variational run keeps the state of its learner, got {sorted(state)}"
            )
        self.rule.learner.load_state_dict(state["learner"])


def _pose(viewpoints: Viewpoints, like: Tensor) -> Tensor:
    """The cameras that were drawn, [B, 16], row by row, where ``like`` is."""
    return send([viewpoints.camera_to_world.flatten(1)], like.device)[0]
