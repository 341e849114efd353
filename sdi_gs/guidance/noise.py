# SPDX-License-Identifier: Apache-2.0
"""The choices of kappa: which noise is added to a rendering before it is denoised.

This is the one thing in which SDS, SDI and the paper's other variants differ (eq. 10), so each
choice is one small frozen object that is called with the same arguments, and the rest of the
method never learns which one it was given.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from representations.checks import require

from ..diffusion.schedule import (
    alpha_bar_at,
    ddim_step,
    mix,
    noise_between,
    per_sample,
)
from ..ramp import Progress, Ramp, ramp
from .draws import Rng, integer_once, normal, of_group, uniform
from .inversion import at_roots, ddim_invert, even_times, root_plan
from .times import Times
from .viewpoints import Viewpoints

START = Progress(0, 1)
"""The first step of a run."""


class Predict(Protocol):
    """The denoiser as a noise strategy may ask it; see :class:`~.predict.GuidedPredictor`."""

    @property
    def views_together(self) -> int:
        """Rows in a row that are views of one shape, and share their times."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor, cfg_scale: float) -> Tensor:
        """(x_t [B, c, h, w], t [B] where x_t is, cfg_scale) -> epsilon [B, c, h, w]."""
        ...

    def without_words(self, x_t: Tensor, t: Tensor) -> Tensor:
        """epsilon [B, c, h, w] under no words at all."""
        ...


class Noised(NamedTuple):
    """A rendering made noisy."""

    x_t: Tensor  # [B, c, h, w] what the denoiser is shown
    kappa: Tensor  # [B, c, h, w] the noise in it
    reference: Tensor | None = None  # [B, c, h, w] what is subtracted instead of kappa
    t: Times | None = None  # [B] where x_t is, if a strategy chose another time than it was given
    path: Path | None = None  # how x_t was reached, for rules that go back along it


class Path(NamedTuple):
    """An ODE without words from a rendering with known noise, at time e, up to x_t."""

    x_e: Tensor  # [B, c, h, w]
    eps_e: Tensor  # [B, c, h, w] predicted there
    e: Times  # [B]
    s: Times  # [B] between e and t


class NoiseInput(NamedTuple):
    """What a noise strategy is given: one batch, before any noise is in it."""

    z: Tensor  # [B, c, h, w] clean latents, detached
    t: Times  # [B] in [1, T): to plan by, and to compute with
    predict: Predict  # the denoiser
    alpha_bar: Tensor  # [T], where z is
    rng: Rng  # the only source of randomness; rows in the order of the views
    progress: Progress  # of the run, for settings that move over it
    viewpoints: Viewpoints | None = None  # of the B pictures; None: of no place

    @property
    def level(self) -> Tensor:
        """alpha_bar at t, [B]."""
        return alpha_bar_at(self.alpha_bar, self.t.device)

    @property
    def total(self) -> int:
        """Times of the schedule."""
        return len(self.alpha_bar)

    def normal(self) -> Tensor:
        """A standard normal sample like z, in which a view gets the same numbers however the batch
        is split."""
        return self.bring(self.drawn())[0]

    def drawn(self) -> Tensor:
        """The same sample on the CPU, for :meth:`bring`."""
        return normal(self.z, self.rng)

    def bring(self, *others: Tensor) -> list[Tensor]:
        """What was planned and drawn on the CPU where z is: in one copy, with the times, which a
        card is not waited for."""
        return self.t.bring(*others)

    def noised(self, kappa: Tensor) -> Noised:
        """z with ``kappa`` in it, at t."""
        return Noised(mix(self.z, kappa, self.level), kappa)


class NoiseStrategy(Protocol):
    """``strategy(given)`` chooses kappa and returns the latents with it."""

    def __call__(self, given: NoiseInput) -> Noised: ...


class NoiseSettings(NoiseStrategy, Protocol):
    """A strategy that settings can name."""

    @property
    def kind(self) -> str: ...


@dataclass(frozen=True)
class RandomNoise:
    """A fresh sample in each step: Score Distillation Sampling."""

    kind: Literal["random"] = "random"

    def __call__(self, given: NoiseInput) -> Noised:
        return given.noised(given.normal())


@dataclass(frozen=True)
class FixedNoise:
    """One sample, reused in every step (the paper's "random, fixed")."""

    kind: Literal["fixed"] = "fixed"
    seed: int = 0  # which sample

    def __call__(self, given: NoiseInput) -> Noised:
        (one,) = given.bring(normal(given.z[:1], torch.Generator().manual_seed(self.seed)))
        return given.noised(one.expand_as(given.z))


@dataclass(frozen=True)
class DDIMInversion:
    """Score Distillation via Inversion as the paper states it (Alg. 2, App. A).

    The rendering is carried from level 0 up to ``t + tau`` along the probability-flow ODE; the
    noise found there is put back at level ``t``, with a little fresh noise for entropy (eq. 11).
    The paper takes explicit Euler steps, even in time; ``rho`` and ``order`` choose others, see
    :mod:`~sdi_gs.guidance.inversion`.
    """

    kind: Literal["ddim_inversion"] = "ddim_inversion"
    cfg_scale: float = -7.5  # guidance while inverting; the paper uses minus the forward scale
    steps_per_unit: float = 10.0  # int(steps_per_unit * t) Euler steps for t in [0, 1]
    steps: int | None = None  # a fixed number of steps instead
    # Steps even in sigma^(1/rho), a number or a ramp over the run; None: even in time.
    rho: Ramp | None = None
    order: Literal[1, 2] = 1  # 1: Euler; 2: Adams-Bashforth in sigma^(1/rho)
    heun: bool = False  # every Euler step corrected by the noise at its end, for twice the calls
    tau_max: float = 1.0 / 30.0  # tau ~ U(0, tau_max), in units of the whole schedule
    # kappa += entropy * sqrt(1 - alpha_bar(t)) * N(0, I); a number, or a ramp over the run
    entropy: Ramp = field(default_factory=lambda: Ramp(0.3, 0.3))

    def __post_init__(self) -> None:
        require(self.steps is None or self.steps >= 1, "noise.steps", self.steps, "1 or more", 10)
        per_unit = self.steps_per_unit
        require(per_unit > 0, "noise.steps_per_unit", per_unit, "a positive number", 10)
        if self.rho is not None:
            object.__setattr__(self, "rho", ramp(self.rho))
            for end in (self.rho.start, self.rho.end):
                require(1.0 <= end <= 100.0, "noise.rho", end, "1 to 100", 3)
        known = self.order == 1 or self.rho is not None
        require(known, "noise.order", self.order, "1, or 2 together with noise.rho=3", 1)
        plain = self.order == 1 or not self.heun
        require(plain, "noise.heun", self.heun, "false with noise.order=2", False)
        require(0.0 <= self.tau_max < 1.0, "noise.tau_max", self.tau_max, "0 to below 1", 0.03)
        object.__setattr__(self, "entropy", ramp(self.entropy))
        least = min(self.entropy.start, self.entropy.end)
        require(least >= 0.0, "noise.entropy", least, "0 or more", 0.3)

    def times(
        self, t: Tensor, last: Tensor, alpha_bar: Tensor, progress: Progress = START
    ) -> Tensor:
        """Times [B, N + 1] from 0 to ``last`` [B] of a schedule ``alpha_bar`` [T]; see
        :func:`~.inversion.even_times` and :func:`~.inversion.root_times`. The last index of the
        schedule stands for t = 1."""
        plan = self._plan(t, last, len(alpha_bar)).to(alpha_bar.device)
        return self._placed(plan, alpha_bar, progress)

    def _placed(self, plan: Tensor, alpha_bar: Tensor, progress: Progress) -> Tensor:
        """The times that a plan means, where both are."""
        return plan if self.rho is None else at_roots(plan, alpha_bar, self.rho.at(*progress))

    def _plan(self, t: Tensor, last: Tensor, total: int) -> Tensor:
        """What of the times needs no table, where ``t`` is."""
        share = torch.where(t >= total - 1, total, t).double() / total
        # The tiny nudge keeps e.g. 10 * 700 / 1000 from falling to 6 in floating point.
        steps = (self.steps_per_unit * share + 1e-9).long().clamp(min=1)
        if self.steps is not None:
            steps = torch.full_like(t, self.steps)
        return even_times(steps, last) if self.rho is None else root_plan(steps, last)

    def __call__(self, given: NoiseInput) -> Noised:
        z, t, total = given.z, given.t.host, given.total
        tau = of_group(uniform(len(z), given.rng), given.predict.views_together).to(t.device)
        last = (t + (self.tau_max * total * tau).round().long()).clamp(max=total - 1)
        entropy = self.entropy.at(*given.progress)
        fresh = [given.drawn()] if entropy > 0.0 else []
        plan, *fresh = given.bring(self._plan(t, last, total), *fresh)
        times = self._placed(plan, given.alpha_bar, given.progress)
        x = ddim_invert(
            z,
            times,
            lambda x, at: given.predict(x, at, self.cfg_scale),
            given.alpha_bar,
            self.rho.at(*given.progress) if self.rho is not None and self.order == 2 else None,
            self.heun,
        )
        kappa = noise_between(x, z, alpha_bar_at(given.alpha_bar, times[:, -1]))
        if entropy > 0.0:
            kappa = kappa + entropy * (1.0 - per_sample(given.level)).sqrt() * fresh[0]
        return given.noised(kappa)


@dataclass(frozen=True, kw_only=True)
class IntervalInversion:
    """Interval score matching (LucidDreamer, arXiv 2311.11284): invert without words to a time
    ``interval`` below t, take one more step to t, and subtract the noise of that step alone.

    By default the way to the interval has even steps and begins at time 0, with the rendering
    itself. ``published`` takes LucidDreamer's instead: whole steps of ``spacing`` and a shorter
    last one, from time 1, with a little noise in the rendering.
    """

    kind: Literal["interval_inversion"] = "interval_inversion"
    published: bool = False  # the grid and the start of the published code
    cfg_scale: float = 0.0  # guidance while inverting; 0: no words at all, as published
    # Share of the schedule between the last two times, over the run.
    interval: Ramp = field(default_factory=lambda: Ramp(0.1, 0.05, 1500))
    spacing: float = 0.2  # share of the schedule that an earlier step of the inversion takes
    most_steps: int = 5  # of the inversion before the interval; longer ones if need be

    def __post_init__(self) -> None:
        require(self.most_steps >= 1, "noise.most_steps", self.most_steps, "1 or more", 5)
        lengths = {
            "interval.start": self.interval.start,
            "interval.end": self.interval.end,
            "spacing": self.spacing,
        }
        for name, value in lengths.items():
            require(0.0 < value <= 1.0, f"noise.{name}", value, "above 0, to 1", 0.1)

    def times(self, last: Tensor, total: int) -> Tensor:
        """Times [B, N + 1] from 0, or 1 as published, to ``last`` [B]; see :func:`even_times`."""
        if self.published:
            stride = max(round(self.spacing * total), 1)
            needed = -(-(int(last.max()) - 1) // stride)
            grid = 1 + stride * torch.arange(min(max(needed, 1), self.most_steps) + 1)
            grid[-1] = total
            return torch.minimum(grid[None], last.clamp(min=1)[:, None])
        steps = (last.double() / (self.spacing * total) - 1e-9).ceil().long()
        return even_times(steps.clamp(1, self.most_steps), last)

    def __call__(self, given: NoiseInput) -> Noised:
        def eps_at(x: Tensor, at: Tensor) -> Tensor:
            if self.cfg_scale == 0.0:
                return given.predict.without_words(x, at)
            return given.predict(x, at, self.cfg_scale)

        alpha_bar, total = given.alpha_bar, given.total
        before = (given.t.host - round(self.interval.at(*given.progress) * total)).clamp(min=0)
        fresh = [given.drawn()] if self.published else []
        times, *fresh = given.bring(self.times(before, total), *fresh)
        z = mix(given.z, fresh[0], alpha_bar_at(alpha_bar, times[:, 0])) if fresh else given.z
        x, start = ddim_invert(z, times, eps_at, alpha_bar), times[:, -1]
        eps = eps_at(x, start)
        x_t = ddim_step(x, eps, alpha_bar_at(alpha_bar, start), given.level)
        return Noised(x_t, noise_between(x_t, given.z, given.level), reference=eps)


@dataclass(frozen=True)
class ReleasedInversion:
    """Inversion as the published SDI code runs it, quirks included; a preset, not the default.

    It differs from the paper in four ways: the grid is ``spacing`` apart and starts with a call
    at time ``1 - spacing``, outside the schedule; noise is added in every Euler step; tau is an
    integer below ``spacing``; and the sample is left at level ``t + tau`` although the denoiser is
    told ``t``. The published code also draws the latents from the VAE's posterior, which is the
    setting ``guidance.latents=sample`` of the preset sdi_released.
    """

    kind: Literal["released_inversion"] = "released_inversion"
    cfg_scale: float = -7.5
    spacing: int = 100  # 1000 / n_inversion_steps
    eta: float = 0.3  # noise of each Euler step

    def __post_init__(self) -> None:
        require(self.spacing >= 1, "noise.spacing", self.spacing, "1 or more", 100)

    def times(self, t: int, tau: int, total: int) -> list[int]:
        """E.g. t = 980, tau = 50 -> [-99, 1, 101, ..., 901, 999]."""
        grid = [k for k in range(1, total, self.spacing) if k < t]
        if not grid:
            raise ValueError(
                f"the released inversion needs t > 1, got t={t}; raise guidance.t.high.end "
                "or use noise.kind=ddim_inversion"
            )
        return [grid[0] - self.spacing, *grid, min(t + tau, total - 1)]

    def __call__(self, given: NoiseInput) -> Noised:
        z, t, alpha_bar = given.z, given.t, given.alpha_bar
        if bool((t.host != t.host[0]).any()):
            raise ValueError(
                "noise.kind=released_inversion needs one time for the whole batch: set "
                "guidance.t.same_for_batch=true"
            )
        tau = integer_once(self.spacing, given.rng)
        times = self.times(int(t.host[0]), tau, given.total)
        x, steps = z, list(itertools.pairwise(times))
        fresh = given.bring(*(given.drawn() for _ in steps))
        for (t_from, t_to), normal_ in zip(steps, fresh, strict=True):
            a_from, a_to = alpha_bar[max(t_from, 0)], alpha_bar[t_to]
            eps = given.predict(x, torch.full_like(t.device, t_from), self.cfg_scale)
            clean = (x - (1.0 - a_from).sqrt() * eps) / a_from.sqrt()
            variance = (1.0 - a_from) / (1.0 - a_to) * (1.0 - a_to / a_from)
            x = a_to.sqrt() * clean + (1.0 - a_to).sqrt() * eps
            x = x + self.eta * variance.sqrt() * normal_
        return Noised(x, noise_between(x, z, alpha_bar[times[-1]].expand(len(z))))
