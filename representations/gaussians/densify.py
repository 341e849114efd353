# SPDX-License-Identifier: Apache-2.0
"""Growing and pruning: statistics -> plan -> apply.

After adaptive density control (Kerbl et al. 2023): splats whose screen position is pulled on
hardest are copied (small ones) or split in two (large ones), and useless ones are removed. A
score-distillation gradient has no natural size, it changes with guidance scale, schedule and
resolution, so the default asks only for the *order* of the gradients, under a hard budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..cameras import rotation_matrices
from ..interface import Exchange
from ..sending import send
from .config import DensifyConfig
from .parameters import GaussianParameters, rebuild

LOGIT_EPS = 1e-6
"""Opacities are kept this far from 0 and 1 when they are turned back into logits."""


@dataclass
class Statistics:
    """What has been seen of each splat since the last structural change."""

    pull: Tensor  # [N] sum over all views of the screen gradient's length, in half pictures
    views: Tensor  # [N] in how many views the splat was drawn
    radius: Tensor  # [N] largest half extent, as a fraction of the picture

    @staticmethod
    def empty(count: int, device: torch.device) -> Statistics:
        return Statistics(*(torch.zeros(count, device=device) for _ in range(3)))

    @torch.no_grad()
    def add(self, gradient: Tensor, radii: Tensor, size: tuple[int, int]) -> None:
        """Count some views: gradient [B, N, 2] of each view's own loss by screen position in
        pixels, radii [B, N, 2], size (H, W).

        A loss that is a mean over views gives each view a gradient too small by their number: it
        has to be multiplied back, so that the statistic does not depend on it.
        """
        height, width = size
        sides = (0.5 * width, 0.5 * height)
        to_half_pictures = torch.stack([gradient.new_full((), side) for side in sides])
        length = (gradient * to_half_pictures).norm(dim=-1)
        drawn = (radii[..., 0] > 0) & torch.isfinite(length)
        self.pull += torch.where(drawn, length, torch.zeros_like(length)).sum(0)
        self.views += drawn.sum(0)
        extent = radii.amax(-1).amax(0).to(self.radius) / max(height, width)
        self.radius = torch.maximum(self.radius, extent)

    @torch.no_grad()
    def merge(self, seen: Statistics, exchange: Exchange) -> None:
        """Add what was seen in one step, here and in other processes."""
        counted = exchange.total(torch.stack([seen.pull, seen.views]))
        self.pull += counted[0]
        self.views += counted[1]
        self.radius = torch.maximum(self.radius, exchange.greatest(seen.radius))

    def mean_pull(self) -> Tensor:
        """[N] per view in which the splat was drawn; 0 if it never was."""
        return self.pull / self.views.clamp(min=1)


class Plan(NamedTuple):
    """What to do with each splat: three disjoint masks [N]."""

    clone: Tensor
    split: Tensor
    prune: Tensor

    @property
    def added(self) -> int:
        return int(self.clone.sum() + self.split.sum())

    @property
    def removed(self) -> int:
        return int(self.prune.sum())


def plan_prune(gaussians: GaussianParameters, scene_radius: float, config: DensifyConfig) -> Tensor:
    """Bool [N]: transparent, too large, or not finite. At least one finite splat is kept.

    Raises ValueError when no splat is finite any more.
    """
    finite = gaussians.cloud().finite()
    if not bool(finite.any()):
        raise ValueError(
            "no splat is finite any more: the loss diverged; lower the learning rates or the "
            "guidance scale and resume from the last good checkpoint"
        )
    opacity, scale = gaussians.opacity.detach(), gaussians.scale.detach()
    useless = (opacity < config.prune_opacity) | (
        scale.amax(-1) > config.prune_scale * scene_radius
    )
    prune = useless | ~finite
    if bool(prune.all()):
        best = torch.where(finite, opacity, torch.full_like(opacity, -1.0)).argmax()
        prune[best] = False
    return prune


@torch.no_grad()
def plan_densify(
    gaussians: GaussianParameters,
    statistics: Statistics,
    budget: int,
    scene_radius: float,
    config: DensifyConfig,
) -> Plan:
    """Masks for one event; after it there are at most ``budget`` splats (or as many as now)."""
    prune = plan_prune(gaussians, scene_radius, config)
    pull = statistics.mean_pull().masked_fill(prune, 0.0)
    survivors = int((~prune).sum())
    room = max(0, budget - survivors)
    if config.kind == "threshold":
        wanted = int((pull > config.grow_grad2d).sum())
    else:
        wanted = min(round(config.grow * survivors), int((pull > 0).sum()))
    # A stable sort: equal pulls are taken in the order of their index, always the same.
    chosen = torch.argsort(pull, descending=True, stable=True)[: min(wanted, room)]
    grow = torch.zeros_like(prune)
    grow[chosen] = True
    size = gaussians.scale.amax(-1)
    median = size[~prune].median()
    large = size > config.split_above * median
    return Plan(clone=grow & ~large, split=grow & large, prune=prune)


@torch.no_grad()
def apply_plan(
    gaussians: GaussianParameters,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    config: DensifyConfig,
    generator: torch.Generator,
) -> None:
    """Carry out a plan. New splats: the survivors in their order, then clones, then halves.

    A clone halves its parent's optical thickness, 1 - sqrt(1 - o) each, so that the picture stays
    the same; the two halves of a split are drawn from the parent and ``split_shrink`` smaller.
    """
    survivors = torch.nonzero(~(plan.prune | plan.split))[:, 0]
    clones = torch.nonzero(plan.clone)[:, 0]
    halves = torch.nonzero(plan.split)[:, 0].repeat(2)
    source = torch.cat([survivors, clones, halves])
    fresh = torch.zeros(len(source), dtype=torch.bool, device=source.device)
    fresh[len(survivors) :] = True

    cloned = plan.clone[source]
    opacity = gaussians.opacity[source]
    shared = to_logit(1.0 - (1.0 - opacity).clamp(min=0.0).sqrt())
    opacity_logit = torch.where(cloned, shared, gaussians.opacity_logit[source])
    means, log_scale = gaussians.means[source].clone(), gaussians.log_scale[source].clone()
    if len(halves):
        noise = torch.randn(len(halves), 3, generator=generator)
        noise = send([noise], means.device)[0].to(means)
        rotation = rotation_matrices(gaussians.quat_wxyz[halves])
        offset = rotation @ (gaussians.scale[halves] * noise)[..., None]
        means[-len(halves) :] += offset[..., 0]
        log_scale[-len(halves) :] -= torch.log(log_scale.new_full((), config.split_shrink))
    rebuild(
        gaussians,
        optimizer,
        source,
        fresh,
        {"means": means, "log_scale": log_scale, "opacity_logit": opacity_logit},
    )


@torch.no_grad()
def decay_opacity(
    gaussians: GaussianParameters, optimizer: torch.optim.Optimizer, factor: float
) -> None:
    """Multiply every opacity by ``factor``: a mild reset, which a noisy gradient can outrun.

    Unlike a reset to 0.01 nothing falls below what the rasteriser draws. Moments are kept.
    """
    if factor == 1.0:
        return
    everything = torch.arange(len(gaussians), device=gaussians.means.device)
    rebuild(
        gaussians,
        optimizer,
        everything,
        torch.zeros_like(everything, dtype=torch.bool),
        {"opacity_logit": to_logit(gaussians.opacity * factor)},
    )


def to_logit(opacity: Tensor) -> Tensor:
    return torch.logit(opacity, eps=LOGIT_EPS)
