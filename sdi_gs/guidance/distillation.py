# SPDX-License-Identifier: Apache-2.0
"""Score distillation: the paper on one screen (eq. 10).

With ``z`` the latents of a rendering, ``a`` the level alpha_bar(t) and ``x_t = sqrt(a) z +
sqrt(1 - a) kappa``, the latents are moved against

    grad_z L = w(t) (eps(x_t; t, y) - kappa)                                            (eq. 10)

where ``eps`` is the denoiser's guided prediction. Methods differ in kappa (``noise.py``: a random
sample is SDS, DDIM inversion is SDI) and in what stands in the bracket (``update.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from ..diffusion.base import Denoiser, HasPosterior
from ..diffusion.schedule import alpha_bar_at, per_sample, require_signal, sigma
from ..ramp import Progress, Ramp, ramp
from ..stopwatch import Stopwatch
from .draws import Rng, normal_like, of_group, uniform, uniform_once
from .noise import DDIMInversion, NoiseInput, NoiseStrategy
from .predict import GuidedPredictor
from .prompts import PromptSet, Subject
from .times import Times
from .update import Residual, UpdateInput, UpdateRule
from .viewpoints import Viewpoints


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
    cfg_scale: Ramp = field(default_factory=lambda: Ramp(7.5, 7.5))
    t: TimeConfig = field(default_factory=TimeConfig)
    # of (eps - kappa); flow: 1 + sigma, what a velocity minus its target is times (eps - kappa)
    weight: Literal["sigma", "one_minus_alpha_bar", "uniform", "flow"] = "sigma"
    reduction: Literal["mean", "sum"] = "mean"  # over elements; "sum" still averages over views
    scale: float = 1.0  # of the loss
    # mean: a picture has one latent. sample: of the encoder's posterior, as published code does.
    latents: Literal["mean", "sample"] = "mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "cfg_scale", ramp(self.cfg_scale))

    def reduced(self, error: Tensor) -> Tensor:
        """A scalar of ``error`` [B, ...], by :attr:`reduction`."""
        return error.mean() if self.reduction == "mean" else error.sum() / len(error)


class Guided(NamedTuple):
    """One step of guidance. Everything but ``loss`` is detached."""

    loss: Tensor  # scalar; its gradient on the latents is weight * (eps - kappa), reduced
    latents: Tensor  # [B, c, h, w] of the rendering
    target: Tensor  # [B, c, h, w] one-step denoised latents x0(t)
    kappa: Tensor  # [B, c, h, w] the noise that was used
    x_t: Tensor  # [B, c, h, w] what was denoised
    t: Tensor  # [B] int64, where the latents are
    evaluations: int  # network samples spent


class Guidance(Protocol):
    """Says what a picture, seen from there, should have been: as a loss with a gradient.

    ``rgb`` [B, 3, H, W] in [0, 1] with gradient, ``viewpoints`` of its B pictures, ``step`` in
    [0, steps of the run). ``watch``, if given, is told when the encoding ends.
    """

    def __call__(
        self,
        rgb: Tensor,
        viewpoints: Viewpoints,
        step: int,
        rng: Rng | None = None,
        watch: Stopwatch | None = None,
    ) -> Guided: ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ScoreDistillation:
    """The gradient of eq. 10 on pictures: a :class:`Guidance`.

    Its gradient on the latents is ``w(t) (eps(x_t) - kappa)``. For the weight sigma(t) that is the
    gradient of half the squared distance to the one-step denoised latents.

    Args:
        denoiser: the frozen diffusion model.
        subject: what the shape is to become: a sentence, or a :class:`Subject` for anything else.
        noise: how kappa is chosen; default: SDI's inversion as the paper states it.
        update: what stands in the bracket; default: ``eps - kappa``.
        config: times, scale of guidance, weight and reduction.
        steps: length of the run, over which ramps move.
        seed: of the random numbers, for calls that bring no generator of their own.

    Raises ValueError for an empty sentence, and for a denoiser whose schedule holds no signal.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        subject: Subject | str,
        noise: NoiseStrategy | None = None,
        *,
        update: UpdateRule | None = None,
        config: GuidanceConfig | None = None,
        steps: int,
        seed: int = 0,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps={steps}: a run has at least 1 step")
        require_signal(denoiser.alpha_bar)
        self.denoiser = denoiser
        self.subject = PromptSet(denoiser, subject) if isinstance(subject, str) else subject
        self.noise = noise or DDIMInversion()
        self.update = update or Residual()
        self.config = config or GuidanceConfig()
        self.steps = steps
        self.rng = Generator().manual_seed(seed)
        if self.config.latents == "sample" and not isinstance(denoiser, HasPosterior):
            raise ValueError(
                f"guidance.latents=sample: {type(denoiser).__name__} has no posterior to draw "
                "from; write guidance.latents=mean"
            )

    def __call__(
        self,
        rgb: Tensor,
        viewpoints: Viewpoints,
        step: int,
        rng: Rng | None = None,
        watch: Stopwatch | None = None,
    ) -> Guided:
        """Args: see :class:`Guidance`. Raises ValueError where the numbers of pictures and of
        viewpoints differ, or do not fill the groups that the denoiser must see together."""
        self._check(rgb, viewpoints)
        rng = self.rng if rng is None else rng
        z = self._encode(rgb, viewpoints, rng)
        if watch is not None:
            watch.lap("encode")
        progress = Progress(step, self.steps)
        t = self.times(len(z), progress, rng, z.device)
        alpha_bar = self.denoiser.alpha_bar.to(device=z.device, dtype=z.dtype)
        with torch.no_grad():
            predict = GuidedPredictor(self.denoiser, self.subject.conditions(viewpoints))
            clean = z.detach()
            noised = self.noise(NoiseInput(clean, t, predict, alpha_bar, rng, progress, viewpoints))
            t = noised.t or t
            level = alpha_bar_at(alpha_bar, t.device)
            target = self.update(
                UpdateInput(
                    clean=clean,
                    noised=noised,
                    t=t,
                    level=level,
                    predict=predict,
                    cfg_scale=self.config.cfg_scale.at(*progress),
                    progress=progress,
                    viewpoints=viewpoints,
                    rng=rng,
                )
            )
            gradient = self._relative_weight(level) * (clean - target)
        loss = self.config.reduced(0.5 * (z - (clean - gradient)).square())
        return Guided(
            loss=self.config.scale * loss,
            latents=clean,
            target=target,
            kappa=noised.kappa,
            x_t=noised.x_t,
            t=t.device,
            evaluations=predict.evaluations,
        )

    def _encode(self, rgb: Tensor, viewpoints: Viewpoints, rng: Rng) -> Tensor:
        if viewpoints.seen is not None and viewpoints.seen.latents is not None:
            return viewpoints.seen.latents
        if self.config.latents == "mean":
            return self.denoiser.encode(rgb)
        assert isinstance(self.denoiser, HasPosterior)
        mean, deviation = self.denoiser.encode_posterior(rgb)
        return mean + deviation * normal_like(mean, rng)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs. This method learns nothing as it goes; others do."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"score distillation keeps no state, got {sorted(state)}")

    def times(
        self, batch: int, progress: Progress, rng: Rng, device: torch.device | str = "cpu"
    ) -> Times:
        """Integer times [B] in [1, T) for this step; views that are seen together share one."""
        c, total, together = self.config.t, len(self.denoiser.alpha_bar), self._together
        high = c.high.at(*progress)
        low = high if c.low is None else c.low.at(*progress)
        u = uniform_once(rng) if c.same_for_batch else uniform(batch, rng)
        if len(u) > 1:
            u = of_group(u, together)
        t = (total * (low + (high - low) * u.double()) + 1e-6).long()
        return Times(t.clamp(1, total - 1).expand(batch).cpu(), device)

    @property
    def _together(self) -> int:
        return self.denoiser.views_together

    def _check(self, rgb: Tensor, viewpoints: Viewpoints) -> None:
        if len(rgb) != len(viewpoints):
            raise ValueError(f"{len(rgb)} pictures, but {len(viewpoints)} viewpoints: one for each")
        if len(rgb) % self._together:
            raise ValueError(
                f"{len(rgb)} pictures: this model sees {self._together} views of a shape together, "
                f"so give a multiple of {self._together}"
            )

    def _relative_weight(self, level: Tensor) -> Tensor:
        """w(t) / sigma(t), [B, 1, 1, 1]: the residual ``z - target`` carries sigma already."""
        if self.config.weight == "sigma":
            return torch.ones_like(per_sample(level))
        if self.config.weight == "one_minus_alpha_bar":
            return per_sample((1.0 - level) / sigma(level))
        if self.config.weight == "flow":
            return per_sample(1.0 + 1.0 / sigma(level))
        return per_sample(1.0 / sigma(level))


class Beside:
    """What a guidance is made of that adds a loss to that of ``inner`` and keeps nothing of its
    own between steps."""

    def __init__(self, inner: ScoreDistillation) -> None:
        self.inner = inner

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)
