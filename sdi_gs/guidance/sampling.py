# SPDX-License-Identifier: Apache-2.0
"""DDIM sampling (arXiv 2010.02502, eta = 0): the 2D process that score distillation follows."""

from __future__ import annotations

import torch
from torch import Tensor

from representations.telling import level

from ..diffusion.base import Denoiser
from .draws import normal_like
from .predict import GuidedPredictor
from .reverse import reverse


def ddim_times(steps: int, total: int, first: int | None = None) -> list[int]:
    """``steps`` times from ``first`` (default: the noisiest) down to 0, excluded, evenly."""
    if not 1 <= steps <= total:
        raise ValueError(f"steps={steps} must lie in 1..{total}, the schedule's length")
    start = total - 1 if first is None else first
    return [round(start * (steps - k) / steps) for k in range(steps)]


STREAM = 1_000_003
"""Between the seed of a picture's first noise and that of what is done with it: a kappa that is the
noise of its own picture would solve eq. 8 better than any other."""


@torch.no_grad()
def pure_noise(
    denoiser: Denoiser, count: int, pixels: int, seed: int, device: torch.device
) -> Tensor:
    """Standard normal latents [count, c, h, w] for square pictures of ``pixels``."""
    probe = denoiser.encode(torch.ones(1, 3, pixels, pixels, device=device))
    like = probe.expand(count, *probe.shape[1:])
    return normal_like(like, torch.Generator().manual_seed(seed))


@torch.no_grad()
def ddim_sample(predict: GuidedPredictor, noise: Tensor, steps: int, cfg_scale: float) -> Tensor:
    """Clean latents [B, c, h, w] from standard normal ``noise`` of that shape."""
    alpha_bar = predict.alpha_bar.to(noise)
    times = torch.tensor([*ddim_times(steps, len(alpha_bar)), 0]).expand(len(noise), -1)
    with level("DDIM step", steps) as told:

        def eps(x: Tensor, t: Tensor) -> Tensor:
            told.at(told.done + 1)
            return predict(x, t, cfg_scale)

        return reverse(noise, times, eps, alpha_bar)
