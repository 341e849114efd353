# SPDX-License-Identifier: Apache-2.0
"""Score distillation: the paper on one screen.

A rendering is encoded, made noisy by a noise strategy (``noise.py``: the only difference between
SDS and SDI), denoised once, and pulled towards the result (``update.py``: where other methods
differ).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..diffusion.base import Denoiser
from ..diffusion.schedule import alpha_bar_at, per_sample, sigma
from ..ramp import Ramp, ramp
from ..stopwatch import Lap, Stopwatch
from ..strict import FromNumber
from .draws import Rng, uniform, uniform_once
from .noise import NoiseStrategy, Scheduled
from .predict import GuidedPredictor
from .prompts import PromptSet, ViewAngles
from .update import Asked, Residual, UpdateRule


@dataclass(frozen=True)
class TimeConfig:
    """Which t a step uses, as shares of the training schedule. ``high`` is the annealed time of
    the paper; with ``low`` set, t is uniform between the two (DreamFusion: 0.02 to 0.98)."""

    high: Ramp = field(default_factory=lambda: Ramp(1.0, 0.2))
    low: Ramp | None = None  # None: t is exactly ``high``
    same_for_batch: bool = False  # one draw for all views of a step


@dataclass(frozen=True)
class GuidanceConfig:
    """Everything of score distillation but the noise."""

    # uncond + s * (cond - uncond); a number, or a ramp over the run
    cfg_scale: Annotated[Ramp, FromNumber(("start", "end"))] = field(
        default_factory=lambda: Ramp(7.5, 7.5)
    )
    t: TimeConfig = field(default_factory=TimeConfig)
    weight: Literal["sigma", "one_minus_alpha_bar", "uniform"] = "sigma"  # of (eps - kappa)
    reduction: Literal["mean", "sum"] = "mean"  # over elements; "sum" still averages over views
    scale: float = 1.0  # of the loss

    def __post_init__(self) -> None:
        object.__setattr__(self, "cfg_scale", ramp(self.cfg_scale))


class Guided(NamedTuple):
    """One step of guidance. Everything but ``loss`` is detached."""

    loss: Tensor  # scalar; its gradient on the latents is weight * (eps - kappa), reduced
    latents: Tensor  # [B, c, h, w] of the rendering
    target: Tensor  # [B, c, h, w] one-step denoised latents x0(t)
    kappa: Tensor  # [B, c, h, w] the noise that was used
    x_t: Tensor  # [B, c, h, w] what was denoised
    t: Tensor  # [B] int64
    evaluations: int  # network samples spent
    encoding: Lap | None = None  # the part of the call that took pictures to latents


class ScoreDistillation:
    """Pull pictures towards what the denoiser sees in them (eq. 4 and eq. 10).

    The latent gradient is ``w(t) * (eps(x_t) - kappa)``. For the weight sigma(t) that is the
    gradient of half the squared distance to the one-step denoised latents.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        prompt: PromptSet,
        noise: NoiseStrategy,
        config: GuidanceConfig,
        total_steps: int,
        update: UpdateRule | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.prompt = prompt
        self.noise = noise
        self.config = config
        self.total_steps = total_steps
        self.update = update or Residual()

    def __call__(self, rgb: Tensor, views: ViewAngles, step: int, rng: Rng) -> Guided:
        """``rgb`` [B, 3, H, W] in [0, 1] with gradient; ``step`` in [0, total_steps)."""
        watch = Stopwatch(rgb.device)
        z = self.denoiser.encode(rgb)
        encoding = watch.lap("encode")
        t = self.times(len(z), step, rng)  # on the CPU, where steps are planned
        alpha_bar = self.denoiser.alpha_bar.to(device=z.device, dtype=z.dtype)
        with torch.no_grad():
            predict = GuidedPredictor(self.denoiser, self.prompt.conditions(views))
            clean = z.detach()
            noised = self.noise_at(step)(clean, t, predict, alpha_bar, rng)
            level = alpha_bar_at(alpha_bar, t)
            cfg_scale = self.config.cfg_scale.at(step, self.total_steps)
            target = self.update(
                Asked(clean, noised, t, level, predict, cfg_scale, step, self.total_steps, views)
            )
            gradient = self._relative_weight(level) * (clean - target)
        loss = 0.5 * (z - (clean - gradient)).square()
        loss = loss.mean() if self.config.reduction == "mean" else loss.sum() / len(z)
        return Guided(
            self.config.scale * loss, clean, target, noised.kappa, noised.x_t, t.to(z.device),
            predict.evaluations, encoding,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs. This method learns nothing as it goes; others do."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"score distillation keeps no state, got {sorted(state)}")

    def noise_at(self, step: int) -> NoiseStrategy:
        """The noise strategy as it is at ``step``; some change over the run."""
        if isinstance(self.noise, Scheduled):
            return self.noise.at(step, self.total_steps)
        return self.noise

    def times(self, batch: int, step: int, rng: Rng) -> Tensor:
        """Integer times [B] in [1, T) for this step."""
        c, total = self.config.t, len(self.denoiser.alpha_bar)
        high = c.high.at(step, self.total_steps)
        low = high if c.low is None else c.low.at(step, self.total_steps)
        u = uniform_once(rng) if c.same_for_batch else uniform(batch, rng)
        t = (total * (low + (high - low) * u.double()) + 1e-6).long()
        return t.clamp(1, total - 1).expand(batch)

    def _relative_weight(self, level: Tensor) -> Tensor:
        """w(t) / sigma(t), [B, 1, 1, 1]: the residual ``z - target`` carries sigma already."""
        if self.config.weight == "sigma":
            return torch.ones_like(per_sample(level))
        if self.config.weight == "one_minus_alpha_bar":
            return per_sample((1.0 - level) / sigma(level))
        return per_sample(1.0 / sigma(level))
