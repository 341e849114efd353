# SPDX-License-Identifier: Apache-2.0
"""DDIM sampling (arXiv 2010.02502, eta = 0): the 2D process that score distillation follows."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .diffusion.base import Denoiser
from .predict import GuidedPredictor
from .prompts import Conditions
from .schedule import alpha_bar_at, mix, unmix


def ddim_times(steps: int, total: int, first: int | None = None) -> list[int]:
    """``steps`` times from ``first`` (default: the noisiest) down to 0, excluded, evenly."""
    if not 1 <= steps <= total:
        raise ValueError(f"steps={steps} must lie in 1..{total}, the schedule's length")
    start = total - 1 if first is None else first
    return [round(start * (steps - k) / steps) for k in range(steps)]


@torch.no_grad()
def ddim_sample(
    denoiser: Denoiser, conditions: Conditions, noise: Tensor, steps: int, cfg_scale: float
) -> Tensor:
    """Clean latents [B, c, h, w] from standard normal ``noise`` of that shape."""
    predict = GuidedPredictor(denoiser, conditions)
    alpha_bar = denoiser.alpha_bar.to(noise)
    times = [*ddim_times(steps, len(alpha_bar)), 0]
    x = noise
    for t_from, t_to in itertools.pairwise(times):
        t = torch.full((len(x),), t_from, device=x.device)
        a_from = alpha_bar_at(alpha_bar, t)
        eps = predict(x, t, cfg_scale)
        x = mix(unmix(x, eps, a_from), eps, alpha_bar_at(alpha_bar, torch.full_like(t, t_to)))
    return x
