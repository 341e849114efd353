# SPDX-License-Identifier: Apache-2.0
"""The probability-flow ODE from a noisy sample back to a clean one.

Eq. 5 of the SDI paper is one Euler step of it. Several steps give the sample at the end of the
path itself: what Probability-Flow Distillation (arXiv 2605.09071) and HiFA (arXiv 2305.18766) pull
a rendering to.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..diffusion.schedule import alpha_bar_at, mix, per_sample, unmix
from .inversion import Eps, even_times


def falling_times(steps: int, t: Tensor) -> Tensor:
    """Times [B, steps + 1] from ``t`` [B] to 0 in even steps."""
    return even_times(torch.full_like(t, steps), t).flip(1)


def reverse(x: Tensor, times: Tensor, eps: Eps, alpha_bar: Tensor, order: int = 1) -> Tensor:
    """Carry ``x`` [B, c, h, w] along falling ``times`` [B, N + 1] with the noise that ``eps``
    predicts where a step starts.

    ``order`` 1: DDIM. 2: the clean sample, not the noise, is believed to go on as straight in the
    logarithm of signal over noise as it went in the step before (DPM-Solver++ 2M, arXiv
    2211.01095, Alg. 2); the first step and one that ends in a clean sample are DDIM's.
    """
    before: tuple[Tensor, Tensor] | None = None  # level where the last step started, clean sample
    for t_from, t_to in pairwise(times.to(x.device).T):
        a_from, a_to = alpha_bar_at(alpha_bar, t_from), alpha_bar_at(alpha_bar, t_to)
        noise = eps(x, t_from)
        clean = unmix(x, noise, a_from)
        moved = mix(clean, noise, a_to)
        if order == 2:
            if before is not None:
                moved = moved + _bent(before[0], a_from, a_to) * (clean - before[1])
            before = a_from, clean
        x = torch.where(per_sample(t_to < t_from), moved, x)
    return x


def _bent(a_before: Tensor, a_from: Tensor, a_to: Tensor) -> Tensor:
    """What a second-order step adds to DDIM's for each unit by which the clean sample has changed
    in the step before, [B, 1, 1, 1]; 0 where a step has no length or ends in a clean sample."""
    half_log_snr = [0.5 * (a.double().log() - (1.0 - a.double()).log())
                    for a in (a_before, a_from, a_to)]  # fmt: skip
    last, now = half_log_snr[1] - half_log_snr[0], half_log_snr[2] - half_log_snr[1]
    whole = a_to.double().sqrt() * -torch.expm1(-now)
    usable = (last > 0.0) & (now > 0.0) & torch.isfinite(now)
    share = torch.where(usable, 0.5 * now / last.clamp(min=1e-12) * whole, torch.zeros_like(whole))
    return per_sample(share.nan_to_num()).to(a_to.dtype)
