# SPDX-License-Identifier: Apache-2.0
"""3D Gaussian Splatting as Markov chain Monte Carlo (Kheradmand et al. 2024).

Instead of cloning, splitting and pruning: dead splats are moved to living ones, the number grows
by a fixed fraction up to a cap, and positions get noise that only matters to the nearly
transparent. A splat that becomes n of itself is thinned and shrunk so that the picture stays.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..cameras import rotation_matrices
from ..sending import send
from .config import DensifyConfig
from .densify import plan_prune, to_logit
from .parameters import GaussianParameters, rebuild

MAX_COPIES = 51
"""The alternating binomial sum below is exact in float64 up to about here."""

GATE_STEEPNESS = 100.0
"""Noise is switched off for opacities a few hundredths above the threshold of death."""


def relocated(opacity: Tensor, scale: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity [M] and scale [M, 3] of each of ``copies`` [M] int64 splats that replace one.

    opacity' = 1 - (1 - opacity)^(1/n) keeps the opacity at the centre; the scale is divided by
    sum_{i=1..n} sum_{k=0..i-1} C(i-1, k) (-1)^k opacity'^(k+1) / sqrt(k+1), and multiplied by the
    old opacity, which keeps the integral over a line through the centre.
    """
    n = copies.clamp(1, MAX_COPIES)
    old = opacity.double().clamp(max=1.0 - 1e-7)
    new = 1.0 - (1.0 - old).pow(1.0 / n)
    total = torch.zeros_like(new)
    for k in range(int(n.max()) if len(n) else 0):
        # sum over i of C(i-1, k) for i-1 = k..n-1 is C(n, k+1): the hockey-stick identity.
        binomial = torch.tensor(
            [math.comb(c, k + 1) for c in range(MAX_COPIES + 1)], dtype=torch.float64
        ).to(new.device)[n]
        total += binomial * (-1.0) ** k * new.pow(k + 1) / math.sqrt(k + 1)
    return new.to(opacity), (old / total).to(scale)[:, None] * scale


@torch.no_grad()
def relocate_and_grow(
    gaussians: GaussianParameters,
    optimizer: torch.optim.Optimizer,
    budget: int,
    scene_radius: float,
    config: DensifyConfig,
    generator: torch.Generator,
) -> tuple[int, int]:
    """Move the dead, add up to ``config.grow`` more. Returns (moved, added).

    Dead splats keep their index. Everything whose opacity changed starts with fresh moments.
    """
    count = len(gaussians)
    dead = plan_prune(gaussians, scene_radius, config)
    opacity = gaussians.opacity
    weight = torch.where(dead, torch.zeros_like(opacity), opacity).cpu()
    # plan_prune spares one splat; should it be perfectly transparent it still must be drawable.
    weight = torch.where(dead.cpu(), weight, weight.clamp(min=1e-12))
    added = max(0, min(round(config.grow * count), budget - count))
    moved = int(dead.sum())
    if moved + added == 0:
        return 0, 0
    picks = torch.multinomial(weight, moved + added, replacement=True, generator=generator)
    picks = picks.to(opacity.device)
    source = torch.arange(count + added, device=opacity.device)
    source[:count][dead] = picks[:moved]
    source[count:] = picks[moved:]
    copies = torch.bincount(source, minlength=count)[source]
    new_opacity, new_scale = relocated(opacity[source], gaussians.scale[source], copies)
    changed = copies > 1
    rebuild(
        gaussians,
        optimizer,
        source,
        changed,
        {
            "opacity_logit": torch.where(
                changed, to_logit(new_opacity), gaussians.opacity_logit[source]
            ),
            "log_scale": torch.where(
                changed[:, None], new_scale.log(), gaussians.log_scale[source]
            ),
        },
    )
    return moved, added


@torch.no_grad()
def add_noise(
    gaussians: GaussianParameters,
    means_rate: float,
    config: DensifyConfig,
    generator: torch.Generator,
) -> None:
    """Jitter positions in the shape of each splat, as good as only those of nearly dead ones."""
    gate = torch.sigmoid(-GATE_STEEPNESS * (gaussians.opacity - config.prune_opacity))
    noise = torch.randn(len(gaussians), 3, generator=generator)
    noise = send([noise], gaussians.means.device)[0].to(gaussians.means)
    noise = noise * (gate * (means_rate * config.noise))[:, None]
    axes = rotation_matrices(gaussians.quat_wxyz) * gaussians.scale[:, None, :]
    gaussians.means += (axes @ (axes.transpose(1, 2) @ noise[..., None]))[..., 0]
