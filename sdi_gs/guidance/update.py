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

from ..diffusion.schedule import alpha_bar_at, mix, per_sample, sigma, unmix
from ..ramp import Progress, Ramp
from .draws import Rng, of_group, uniform
from .noise import Noised
from .predict import GuidedPredictor
from .reverse import falling_times, reverse
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
    rng: Rng  # draws on, after the noise

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

    With more ``steps`` the target is where the whole reverse ODE ends, instead of its first step:
    Probability-Flow Distillation (arXiv 2605.09071) after an inversion, HiFA (arXiv 2305.18766)
    after random noise.
    """

    kind: Literal["residual"] = "residual"
    subtract: bool = True  # False: rho = 0, SJC without variance reduction (arXiv 2212.00774)
    steps: int = 1  # of the reverse ODE from t to 0, even in t
    order: Literal[1, 2] = 1  # 1: DDIM; 2: DPM-Solver++ 2M

    def __post_init__(self) -> None:
        require(self.steps >= 1, "update.steps", self.steps, "1 or more", 1)
        whole = self.subtract or self.steps == 1
        require(whole, "update.steps", self.steps, "1 with update.subtract=false", 1)

    def __call__(self, given: UpdateInput) -> Tensor:
        if self.steps > 1:
            return self._end(given)
        eps = given.predict(given.noised.x_t, given.t.device, given.cfg_scale)
        reference = given.noised.reference
        if not self.subtract:
            return given.target_along(eps)
        if reference is not None:
            return given.target_along(eps - reference)
        return unmix(given.noised.x_t, eps, given.level)

    def _end(self, given: UpdateInput) -> Tensor:
        """Where the reverse ODE from x_t ends, [B, c, h, w]."""
        if given.noised.reference is not None:
            raise ValueError(
                f"update.steps={self.steps}: this noise brings a reference of its own, which is "
                "subtracted from one prediction; write update.steps=1"
            )
        (times,) = given.t.bring(falling_times(self.steps, given.t.host))
        return reverse(
            given.noised.x_t,
            times,
            lambda x, t: given.predict(x, t, given.cfg_scale),
            given.predict.alpha_bar.to(given.level),
            self.order,
        )


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


@dataclass(frozen=True, kw_only=True)
class Asynchronous:
    """Asynchronous score distillation (ScaleDreamer, arXiv 2407.02040):
    ``eps(x_t; t, cfg_scale) - eps(x_u; u, y)`` with the same kappa at a noisier time u.

    A network predicts better where there is more noise, so that its own later prediction, under
    the prompt and without guidance, stands for that of the second network of VSD. u lies up to
    ``most`` of the way from ``after`` to t beyond t.
    """

    kind: Literal["asynchronous"] = "asynchronous"
    most: float = 0.1  # (u - t) / (t - after), at most
    drawn: bool = True  # uniform below ``most``; False: always ``most``
    after: float = 0.02  # share of the schedule from which the way is counted

    def __post_init__(self) -> None:
        require(self.most >= 0.0, "update.most", self.most, "0 or more", 0.1)
        require(0.0 <= self.after < 1.0, "update.after", self.after, "0 to below 1", 0.02)

    def later(self, t: Tensor, total: int, rng: Rng) -> Tensor:
        """u [B] of t [B], both int64 on the CPU, in a schedule of ``total`` times."""
        way = self.most * (t - self.after * total).clamp(min=0.0).double()
        share = uniform(len(t), rng).double().cpu() if self.drawn else torch.ones(len(t)).double()
        return (t + (way * share).long()).clamp(max=total - 1)

    def __call__(self, given: UpdateInput) -> Tensor:
        alpha_bar = given.predict.alpha_bar.to(given.level)
        host = of_group(
            self.later(given.t.host, len(alpha_bar), given.rng), given.predict.views_together
        )
        (later,) = send([host], given.clean.device)
        x_u = mix(given.clean, given.noised.kappa, alpha_bar_at(alpha_bar, later))
        eps = given.predict(given.noised.x_t, given.t.device, given.cfg_scale)
        return given.target_along(eps - given.predict(x_u, later, 1.0))


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """SDS-Bridge (arXiv 2406.09417): plain SDS first, then ``eps_y - eps_src``.

    The source is the negative prompt, which describes the rendering as it is: the prompt and what
    is wrong with the picture, with ``{prompt}`` for the first. As in the published code SDS has
    the weight 1 - alpha_bar on top of ``guidance.weight``.
    """

    kind: Literal["bridge"] = "bridge"
    sds_until: float = 0.8  # share of the run

    def __post_init__(self) -> None:
        until = self.sds_until
        require(0.0 <= until <= 1.0, "update.sds_until", until, "0 to 1", 0.8)

    def __call__(self, given: UpdateInput) -> Tensor:
        first = given.progress.step < self.sds_until * given.progress.total_steps
        parts = given.predict.separate(given.noised.x_t, given.t.device, not first)
        if not first:
            return given.target_along(parts.toward + parts.empty - parts.negative)
        residual = parts.empty + given.cfg_scale * parts.toward - given.noised.kappa
        return given.target_along(per_sample(1.0 - given.level) * residual)
