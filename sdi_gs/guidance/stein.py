# SPDX-License-Identifier: Apache-2.0
"""Stein score distillation (SteinDreamer, arXiv 2401.00604): a control variate of learned weight.

The injected noise that SDS subtracts has mean zero: it changes no expectation, only variance. Any
``kappa phi(x_t) - d phi / d kappa`` has mean zero too, by Stein's identity, for every scalar phi of
the noisy picture; SDS is phi = 1 with weight 1. Here phi is given, and its weight is learned as the
run goes so that the variance is least: the covariance of prediction and control variate over the
variance of the latter, per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from representations.checks import require

from ..diffusion.schedule import mix
from ..stopwatch import Stopwatch
from .distillation import Guided, ScoreDistillation
from .draws import Rng
from .update import UpdateInput
from .viewpoints import Viewpoints

Baseline = Callable[[Tensor], Tensor]
"""phi: noisy latents [B, c, h, w] -> [B], differentiable; e.g. the error of a depth estimator."""


@dataclass(frozen=True, kw_only=True)
class SteinConfig:
    """The control variate. From a configuration phi is 1; others are given in Python."""

    kind: Literal["stein"] = "stein"
    decay: float = 0.95  # of the running covariance and variance, per step

    def __post_init__(self) -> None:
        require(0.0 <= self.decay < 1.0, "update.decay", self.decay, "0 to below 1", 0.95)


class ControlVariate:
    """``eps - mu * (kappa phi - d phi / d kappa)``: an update rule that learns mu [c]."""

    def __init__(self, config: SteinConfig, baseline: Baseline | None = None) -> None:
        self.decay = config.decay
        self.baseline = baseline
        self.covariance: Tensor | None = None  # [c] running, not normalised
        self.variance: Tensor | None = None  # [c]

    def __call__(self, given: UpdateInput) -> Tensor:
        eps = given.predict(given.noised.x_t, given.t.device, given.cfg_scale)
        variate = self.variate(given)
        mu = self.weight(eps)  # of the steps before: this one's would be biased by its own noise
        self._learn(eps, variate)
        return given.target_along(eps - mu * variate)

    def variate(self, given: UpdateInput) -> Tensor:
        """[B, c, h, w], mean zero over kappa."""
        kappa = given.noised.kappa
        if self.baseline is None:
            return kappa
        with torch.enable_grad():
            moving = kappa.detach().requires_grad_()
            value = self.baseline(mix(given.clean, moving, given.level))
            (slope,) = torch.autograd.grad(value.sum(), moving)
        return kappa * value.detach().reshape(-1, 1, 1, 1) - slope

    def weight(self, like: Tensor) -> Tensor:
        """mu [1, c, 1, 1]; 1, as in SDS, before anything was learned."""
        if self.covariance is None or self.variance is None:
            return like.new_ones(1, like.shape[1], 1, 1)
        ratio = self.covariance / self.variance.clamp(min=1e-12)
        return ratio.to(like).reshape(1, -1, 1, 1)

    def _learn(self, eps: Tensor, variate: Tensor) -> None:
        covariance = (eps * variate).mean(dim=(0, 2, 3))
        variance = variate.square().mean(dim=(0, 2, 3))
        if self.covariance is None or self.variance is None:
            self.covariance, self.variance = covariance, variance
            return
        self.covariance = self.decay * self.covariance + (1.0 - self.decay) * covariance
        self.variance = self.decay * self.variance + (1.0 - self.decay) * variance


class Stein:
    """Score distillation with a control variate; a :class:`~.distillation.Guidance`."""

    def __init__(self, inner: ScoreDistillation, rule: ControlVariate) -> None:
        """``inner`` was made with ``rule`` as its update."""
        self.inner, self.rule = inner, rule

    def __call__(
        self,
        rgb: Tensor,
        viewpoints: Viewpoints,
        step: int,
        rng: Rng | None = None,
        watch: Stopwatch | None = None,
    ) -> Guided:
        return self.inner(rgb, viewpoints, step, rng, watch)

    def state_dict(self) -> dict[str, Any]:
        moments = (self.rule.covariance, self.rule.variance)
        return {} if None in moments else {"covariance": moments[0], "variance": moments[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state and set(state) != {"covariance", "variance"}:
            raise ValueError(f"a control variate keeps its moments, got {sorted(state)}")
        self.rule.covariance = state.get("covariance")
        self.rule.variance = state.get("variance")
