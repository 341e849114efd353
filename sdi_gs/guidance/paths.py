# SPDX-License-Identifier: Apache-2.0
"""Consistency along a path without words: SegmentDreamer's SCTD and Guided Consistency Sampling.

Both noise a rendering to a low time e with noise that is known, carry it over s to t by the ODE
without words, go back with guidance, and compare at e what comes back with what started there. They
differ in where e, s and t lie, and in what is compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from representations.checks import require

from ..diffusion.schedule import (
    alpha_bar_at,
    ddim_step,
    mix,
    noise_between,
    per_sample,
    unmix,
)
from ..ramp import Ramp
from .draws import Rng, normal, of_group, uniform
from .noise import Noised, NoiseInput, Path
from .times import Times
from .update import UpdateInput

OFFSET = 0.1
"""Deviation of what both add to a whole channel of their noise, as published."""


class Plan(NamedTuple):
    """Times of a path, [B] int64 on the CPU, e < s < t."""

    e: Tensor
    s: Tensor
    t: Tensor


def _between(low: Tensor, high: Tensor, rng: Rng, together: int) -> Tensor:
    """Integers [B] that are uniform from ``low`` to below ``high``; views that are seen together
    share the draw. ``low`` where there is nothing between."""
    share = of_group(uniform(len(low), rng), together).double().cpu()
    return low + (share * (high - low).clamp(min=1)).long()


def _noise(given: NoiseInput, fixed: bool, seed: int) -> Tensor:
    """Noise with an offset for each channel, on the CPU: the same in each step, or a fresh one."""
    rng: Rng = torch.Generator().manual_seed(seed) if fixed else given.rng
    like = given.z[:1] if fixed else given.z
    drawn = normal(like, rng) + OFFSET * normal(like[..., :1, :1], rng)
    return drawn.expand_as(given.z)


def _follow(given: NoiseInput, plan: Plan, drawn: Tensor, direct: Tensor) -> Noised:
    """Noise at e, and the ODE without words over s to t; where ``direct`` [B], to t at once."""
    straight = bool(direct.all())
    noise, e, s, t, direct = given.bring(drawn, *plan, direct)
    a_e, a_s, a_t = (alpha_bar_at(given.alpha_bar, at) for at in (e, s, t))
    x_e = mix(given.z, noise, a_e)
    eps_e = given.predict.without_words(x_e, e)
    x_t = ddim_step(x_e, eps_e, a_e, a_t)
    if not straight:
        x_s = ddim_step(x_e, eps_e, a_e, a_s)
        bent = ddim_step(x_s, given.predict.without_words(x_s, s), a_s, a_t)
        x_t = torch.where(per_sample(direct), x_t, bent)
    there = given.z.device
    path = Path(x_e, eps_e, Times(plan.e, there), Times(plan.s, there))
    return Noised(x_t, noise_between(x_t, given.z, a_t), t=Times(plan.t, there), path=path)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """SegmentDreamer's path (arXiv 2507.05256): e is the edge of the segment of the schedule in
    which t lies, s is drawn between the two.

    A t closer than ``gap`` to its edge is moved away from it, as in the published code.
    """

    kind: Literal["segment"] = "segment"
    segments: int = 5
    low: float = 0.02  # share of the schedule where the first begins
    high: float = 0.98  # and the last ends
    gap: float = 0.08  # share from e to t, at least
    margin: float = 0.01  # share from s to e and to t, at least
    direct_below: float = 0.15  # share of t below which the path leaves s out
    fixed: bool = True  # the same noise in each step; False: a fresh one
    seed: int = 0  # which noise

    def __post_init__(self) -> None:
        require(self.segments >= 1, "noise.segments", self.segments, "1 or more", 5)
        ordered = 0.0 < self.low < self.high <= 1.0
        require(ordered, "noise.low", self.low, "above 0, below noise.high", 0.02)
        room = 0.0 < 2.0 * self.margin < self.gap
        require(room, "noise.gap", self.gap, "above twice noise.margin", 0.08)

    def plan(self, t: Tensor, total: int, rng: Rng, together: int = 1) -> Plan:
        """e, s and t for times ``t`` [B] of a schedule of ``total``, all on the CPU."""
        shares = torch.linspace(self.low, self.high, self.segments + 1, dtype=torch.float64)
        edges = (shares * total).round().long()[:-1]
        index = torch.searchsorted(edges, t.contiguous(), right=True) - 1
        e = edges[index.clamp(min=0)]
        t = torch.maximum(t, e + round(self.gap * total)).clamp(max=total - 1)
        margin = round(self.margin * total)
        return Plan(e, _between(e + margin, t - margin, rng, together), t)

    def __call__(self, given: NoiseInput) -> Noised:
        plan = self.plan(given.t.host, given.total, given.rng, given.predict.views_together)
        direct = plan.t < round(self.direct_below * given.total)
        return _follow(given, plan, _noise(given, self.fixed, self.seed), direct)


@dataclass(frozen=True, kw_only=True)
class NestedIntervals:
    """The path of Guided Consistency Sampling (arXiv 2407.13584): s lies ``interval`` below t, and
    e is drawn within another interval below s."""

    kind: Literal["nested_intervals"] = "nested_intervals"
    # Share of the schedule from s to t, over the run.
    interval: Ramp = field(default_factory=lambda: Ramp(0.1, 0.08, 1500))
    margin: float = 0.01  # share from e to s, at least
    fixed: bool = True  # the same noise in each step; False: a fresh one
    seed: int = 0  # which noise

    def __post_init__(self) -> None:
        for name, value in (("start", self.interval.start), ("end", self.interval.end)):
            wide = self.margin < value < 1.0
            require(wide, f"noise.interval.{name}", value, "above noise.margin, below 1", 0.1)

    def plan(self, t: Tensor, total: int, interval: float, rng: Rng, together: int = 1) -> Plan:
        """As :meth:`Segment.plan`, for an ``interval`` in shares of the schedule."""
        width, margin = round(interval * total), round(self.margin * total)
        t = t.clamp(min=width + 2, max=total - 1)
        s = t - width
        e = _between((s - width).clamp(min=0), (s - margin).clamp(min=1), rng, together)
        return Plan(e.clamp(min=1), s, t)

    def __call__(self, given: NoiseInput) -> Noised:
        together = given.predict.views_together
        interval = self.interval.at(*given.progress)
        plan = self.plan(given.t.host, given.total, interval, given.rng, together)
        nowhere = torch.zeros(len(plan.t), dtype=torch.bool)
        return _follow(given, plan, _noise(given, self.fixed, self.seed), nowhere)


class CleanPair(NamedTuple):
    """Clean samples that two ways to the time e leave, [B, c, h, w] each."""

    guided: Tensor  # with guidance, from t
    silent: Tensor  # without words, on the way there


class _Back(NamedTuple):
    """What both rules go back with."""

    path: Path
    a_e: Tensor  # [B]
    x_e_over_s: Tensor  # [B, c, h, w] a guided step back to s, from there one without words to e
    x_e: Tensor  # [B, c, h, w] a guided step from t to e


def _go_back(given: UpdateInput, word: str, wanted: str) -> _Back:
    path = given.noised.path
    if path is None:
        raise ValueError(
            f"update.kind={word} goes back along a path that the noise has taken: write "
            f"noise.kind={wanted}"
        )
    alpha_bar, a_t = given.predict.alpha_bar.to(given.level), given.level
    a_e, a_s = (alpha_bar_at(alpha_bar, at.device) for at in (path.e, path.s))
    x_t = given.noised.x_t
    eps = given.predict(x_t, given.t.device, given.cfg_scale)
    x_s = ddim_step(x_t, eps, a_t, a_s)
    over_s = ddim_step(x_s, given.predict.without_words(x_s, path.s.device), a_s, a_e)
    return _Back(path, a_e, over_s, ddim_step(x_t, eps, a_t, a_e))


@dataclass(frozen=True, kw_only=True)
class SegmentConsistency:
    """Segmented consistency trajectory distillation (SegmentDreamer, arXiv 2507.05256):
    ``(x_e<-s<-t - x_e) + (cfg_scale + 1) (x_e - x_e<-t)``, where <- with guidance starts at t and
    without words at s. Needs ``noise.kind=segment``."""

    kind: Literal["segment_consistency"] = "segment_consistency"

    def __call__(self, given: UpdateInput) -> Tensor:
        back = _go_back(given, self.kind, "segment")
        consistent = back.x_e_over_s - back.path.x_e
        guided = back.path.x_e - back.x_e
        return given.target_along(consistent + (given.cfg_scale + 1.0) * guided)


@dataclass(frozen=True, kw_only=True)
class GuidedConsistency:
    """Guided Consistency Sampling (arXiv 2407.13584): that both ways back to e agree (compact
    consistency), that the clean samples with and without guidance do, and that these do as
    pictures.

    Its gradient is that of the published code, in which no network is differentiated: with
    ``guidance.weight=sigma`` it is moved along as it is. The term in pixels is
    :class:`~.image_space.PixelConsistency`'s; this rule has the two in latents. Needs
    ``noise.kind=nested_intervals``.
    """

    kind: Literal["guided_consistency"] = "guided_consistency"
    compact: float = 1.0  # weight of the two ways back
    clean: float = 0.5  # weight of the clean samples
    pixels: float = 0.5  # weight of the clean samples as pictures; 0: nothing is decoded

    def __post_init__(self) -> None:
        for name in ("compact", "clean", "pixels"):
            weight = getattr(self, name)
            require(weight >= 0.0, f"update.{name}", weight, "0 or more", 1.0)

    def __call__(self, given: UpdateInput) -> Tensor:
        return self.move(given)[0]

    def move(self, given: UpdateInput) -> tuple[Tensor, CleanPair | None]:
        """The target, and the clean samples that it compares; None where they have no weight."""
        back = _go_back(given, self.kind, "nested_intervals")
        x_t, t = given.noised.x_t, given.t.device
        plain = ddim_step(x_t, given.predict.without_words(x_t, t), given.level, back.a_e)
        gradient = 2.0 * self.compact * per_sample(back.a_e.sqrt()) * (plain - back.x_e_over_s)
        if self.clean == self.pixels == 0.0:
            return given.clean - gradient, None
        path = back.path
        eps = given.predict(back.x_e, path.e.device, given.cfg_scale)
        pair = CleanPair(unmix(back.x_e, eps, back.a_e), unmix(path.x_e, path.eps_e, back.a_e))
        if self.clean > 0.0:
            gradient = gradient + 2.0 * self.clean * (pair.silent - pair.guided)
        return given.clean - gradient, pair
