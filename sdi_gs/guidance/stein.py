# SPDX-License-Identifier: Apache-2.0
"""Stein score distillation (SteinDreamer, arXiv 2401.00604): a control variate of learned weight.

The injected noise that SDS subtracts has mean zero: it changes no expectation, only variance. Any
``kappa phi(x_t) - d phi / d kappa`` has mean zero too, by Stein's identity, for every scalar phi of
the noisy picture; SDS is phi = 1 with weight 1. Here phi is the constant, or the error of an
estimator of depth or normals (``monocular.py``), and its weight is learned as the run goes so that
the variance is least, by least squares per channel: the covariance of prediction and control
variate over the variance of the latter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from representations.checks import require

from ..diffusion.schedule import mix
from ..stopwatch import Stopwatch
from .distillation import Guided, ScoreDistillation
from .draws import Rng
from .monocular import Baseline, Monocular
from .update import UpdateInput
from .viewpoints import Viewpoints


@dataclass(frozen=True, kw_only=True)
class SteinConfig:
    """The control variate. The paper's phi are depth and normal; any other is given in Python."""

    kind: Literal["stein"] = "stein"
    baseline: Literal["constant", "depth", "normal"] = "constant"  # phi
    decay: float = 0.95  # of the running covariance and variance, per step
    rate: float = 1e-4  # Adam's, of the estimator of depth or normals
    # The constant counts too, with a weight of its own; the paper has the estimator alone.
    beside_constant: bool = False

    def __post_init__(self) -> None:
        require(self.rate >= 0.0, "update.rate", self.rate, "0 or more", 1e-4)
        require(0.0 <= self.decay < 1.0, "update.decay", self.decay, "0 to below 1", 0.95)
        allowed = self.baseline != "constant" or not self.beside_constant
        name, other = "update.beside_constant", "false with update.baseline=constant"
        require(allowed, name, self.beside_constant, other, False)


class ControlVariate:
    """``eps - sum mu (kappa phi - d phi / d kappa)``: an update rule that learns mu [k, c].

    Of one phi, or of the constant beside it.
    """

    def __init__(self, config: SteinConfig, baseline: Baseline | None = None) -> None:
        """``baseline``, if given, is taken instead of the one that ``config`` names."""
        self.config = config
        self.baseline = baseline
        self.estimator: Monocular | None = None
        if baseline is None and config.baseline != "constant":
            self.estimator = Monocular(config.baseline, config.rate)
        self.count = 2 if config.beside_constant else 1  # k
        self.covariance: Tensor | None = None  # [k, c] with the prediction, running
        self.variance: Tensor | None = None  # [k, k, c] of the variates with one another

    def __call__(self, given: UpdateInput) -> Tensor:
        eps = given.predict(given.noised.x_t, given.t.device, given.cfg_scale)
        variates = self.variate(given)[None]
        if self.count == 2:
            variates = torch.cat([given.noised.kappa[None], variates])
        mu = self.weight(eps)  # of the steps before: this one's would be biased by its own noise
        self._learn(eps, variates)
        return given.target_along(eps - (mu * variates).sum(0))

    def variate(self, given: UpdateInput) -> Tensor:
        """That of phi [B, c, h, w], mean zero over kappa."""
        kappa, baseline = given.noised.kappa, self.baseline
        if self.estimator is not None:
            baseline = self.estimator.baseline(given.viewpoints)
        if baseline is None:
            return kappa
        with torch.enable_grad():
            moving = kappa.detach().requires_grad_()
            value = baseline(mix(given.clean, moving, given.level))
            (slope,) = torch.autograd.grad(value.sum(), moving)
        return kappa * value.detach().reshape(-1, 1, 1, 1) - slope

    def weight(self, like: Tensor) -> Tensor:
        """mu [k, 1, c, 1, 1], least squares. Before anything was learned it is that of SDS: 1 for
        the constant, and -1 for an estimator alone, whose phi is near -1 while it knows nothing."""
        if self.covariance is None or self.variance is None:
            start = [1.0, 0.0] if self.count == 2 else [1.0 if self.estimator is None else -1.0]
            first = torch.stack([like.new_full((like.shape[1],), mu) for mu in start])
        else:
            first = _solved(self.covariance, self.variance).to(like)
        return first.reshape(self.count, 1, -1, 1, 1)

    def _learn(self, eps: Tensor, variates: Tensor) -> None:
        covariance = (eps * variates).mean(dim=(1, 3, 4))
        variance = (variates[:, None] * variates[None]).mean(dim=(2, 4, 5))
        if self.covariance is None or self.variance is None:
            self.covariance, self.variance = covariance, variance
            return
        decay = self.config.decay
        self.covariance = decay * self.covariance + (1.0 - decay) * covariance
        self.variance = decay * self.variance + (1.0 - decay) * variance


def _solved(covariance: Tensor, variance: Tensor) -> Tensor:
    """mu [k, c] of covariances [k, c] and [k, k, c], for k of 1 or 2.

    The second variate counts by what the first does not explain of it, and by little where that is
    next to nothing: two that are nearly the same would have weights of any size.
    """
    if len(covariance) == 1:
        return covariance / variance[0].clamp(min=1e-12)
    first, both, second = variance[0, 0].clamp(min=1e-12), variance[0, 1], variance[1, 1]
    slope = both / first
    own = (second - slope * both).clamp(min=1e-3 * second).clamp(min=1e-12)
    mu = (covariance[1] - slope * covariance[0]) / own
    return torch.stack([covariance[0] / first - slope * mu, mu])


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
        """Guide with the control variate as it is, then teach its estimator these renderings.
        ValueError where it needs a shape and the pictures show none."""
        guided = self.inner(rgb, viewpoints, step, rng, watch)
        if self.rule.estimator is not None:
            self.rule.estimator.learn(guided.latents, viewpoints)
        return guided

    def state_dict(self) -> dict[str, Any]:
        rule = self.rule
        if rule.covariance is None or rule.variance is None:
            return {}
        state: dict[str, Any] = {"covariance": rule.covariance, "variance": rule.variance}
        if rule.estimator is not None:
            state["estimator"] = rule.estimator.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        wanted = {"covariance", "variance"} | ({"estimator"} if self.rule.estimator else set())
        if state and set(state) != wanted:
            raise ValueError(
                f"a control variate keeps its moments and, for depth and normals, its estimator, "
                f"got {sorted(state)}"
            )
        k, covariance, variance = self.rule.count, state.get("covariance"), state.get("variance")
        # One variate's moments were kept as [c] once.
        self.rule.covariance = None if covariance is None else covariance.reshape(k, -1)
        self.rule.variance = None if variance is None else variance.reshape(k, k, -1)
        if self.rule.estimator is not None:
            self.rule.estimator.load_state_dict(state.get("estimator", {}))
