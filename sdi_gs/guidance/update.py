# SPDX-License-Identifier: Apache-2.0
"""The update rules: which combination of noise predictions a rendering is moved along.

A method of score distillation moves latents along ``w(t) * direction``. For most the direction is
a guided prediction minus the noise that was put in; others leave the injected noise out and combine
predictions under several conditions. Each rule is one small frozen object, called with the same
:class:`UpdateInput`, that returns the target ``z - sigma(t) * direction``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from representations.checks import require
from representations.sending import send

from ..diffusion.schedule import per_sample, sigma, unmix
from ..ramp import Progress, Ramp
from .noise import Noised
from .predict import GuidedPredictor
from .times import Times
from .viewpoints import Viewpoints


class UpdateInput(NamedTuple):
    """What an update rule sees of one batch."""

    clean: Tensor  # [B, c, h, w] latents of the rendering
    noised: Noised
    t: Times  # [B]
    level: Tensor  # [B] alpha_bar at t
    predict: GuidedPredictor
    cfg_scale: float
    progress: Progress  # of the run
    viewpoints: Viewpoints  # where the batch is seen from

    def target_along(self, direction: Tensor) -> Tensor:
        """The target that moves the latents along ``direction`` [B, c, h, w]."""
        return self.clean - per_sample(sigma(self.level)) * direction


class UpdateSettings(Protocol):
    """What the setting ``update`` holds: a rule, or the settings of one that learns."""

    @property
    def kind(self) -> str: ...


class UpdateRule(Protocol):
    """``rule(given)`` -> target latents [B, c, h, w]."""

    def __call__(self, given: UpdateInput) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Residual:
    """``eps(x_t; cfg_scale) - rho``: SDS, SDI and SJC with the injected noise as rho, ISM with the
    noise of its interval. With rho = kappa the target is the one-step denoised sample (eq. 5).
    """

    kind: Literal["residual"] = "residual"
    subtract: bool = True  # False: rho = 0, SJC without variance reduction (arXiv 2212.00774)

    def __call__(self, given: UpdateInput) -> Tensor:
        eps = given.predict(given.noised.x_t, given.t.device, given.cfg_scale)
        reference = given.noised.reference
        if not self.subtract:
            return given.target_along(eps)
        if reference is not None:
            return given.target_along(eps - reference)
        return unmix(given.noised.x_t, eps, given.level)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Classifier Score Distillation (arXiv 2310.19415): ``(eps_y - eps_0) + n (eps_neg - eps_0)``.

    ``cfg_scale`` plays no part: only the direction of guidance is left, and Adam does not see its
    length. The published coefficients of eps_y, eps_neg and eps_0 sum to zero, so that ``n`` says
    them all: 0 -> -1 over the first 5000 steps in the coarse stage, -1 -> -0.5 in the fine one.
    """

    kind: Literal["classifier"] = "classifier"
    negative: Ramp = field(default_factory=lambda: Ramp(0.0, -1.0, 5000))  # n, over the run

    def __call__(self, given: UpdateInput) -> Tensor:
        weight = self.negative.at(*given.progress)
        parts = given.predict.separate(given.noised.x_t, given.t.device, weight != 0.0)
        direction = parts.toward
        if weight != 0.0:
            direction = direction + weight * (parts.negative - parts.empty)
        return given.target_along(direction)


@dataclass(frozen=True, kw_only=True)
class NoiseFree:
    """Noise-free score distillation (arXiv 2310.17590): ``delta_D + cfg_scale * (eps_y - eps_0)``.

    The domain part delta_D is ``eps_0`` at low noise, where the prediction is nearly free of it,
    and ``eps_0 - eps_neg`` above, where the negative prompt stands for what is out of the domain.
    """

    kind: Literal["noise_free"] = "noise_free"
    low_noise_until: float = 0.2  # share of the schedule below which delta_D is eps_0

    def __post_init__(self) -> None:
        share = self.low_noise_until
        require(0.0 <= share <= 1.0, "update.low_noise_until", share, "0 to 1", 0.2)

    def __call__(self, given: UpdateInput) -> Tensor:
        total = len(given.predict.alpha_bar)
        low = per_sample(given.t.host < round(self.low_noise_until * total))
        parts = given.predict.separate(given.noised.x_t, given.t.device, not bool(low.all()))
        (low,) = send([low], parts.empty.device)
        domain = torch.where(low, parts.empty, parts.empty - parts.negative)
        return given.target_along(domain + given.cfg_scale * parts.toward)
