# SPDX-License-Identifier: Apache-2.0
"""The formulas of the noise schedule. Nothing here knows a network.

Notation: ``alpha_bar`` is the cumulative product (diffusers' ``alphas_cumprod``), not its root;
``x_t = sqrt(alpha_bar) * z + sqrt(1 - alpha_bar) * kappa``; ``sigma = sqrt(1 - alpha_bar) /
sqrt(alpha_bar)`` is the noise level of ``x_t / sqrt(alpha_bar)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

LEAST_SIGNAL = 1e-4
"""alpha_bar where a schedule ends: sigma = 100. The one-step denoised sample divides by its root:
beyond it, a prediction's rounding is all that is left of the answer."""


def require_signal(alpha_bar: Tensor) -> Tensor:
    """``alpha_bar`` [T] if score distillation can use it: one row of numbers that fall from at most
    1 to at least :data:`LEAST_SIGNAL`. ValueError otherwise."""
    if alpha_bar.dim() != 1 or len(alpha_bar) < 2:
        raise ValueError(f"alpha_bar must be [T] with T > 1, got shape {tuple(alpha_bar.shape)}")
    table = alpha_bar.detach().double().cpu()
    if not bool((table[1:] <= table[:-1]).all()) or not bool(table[0] <= 1.0):
        raise ValueError("alpha_bar must fall from at most 1: it is the share of signal, not noise")
    lost = int((table < LEAST_SIGNAL).sum())
    if lost:
        raise ValueError(
            f"the last {lost} of {len(table)} entries of alpha_bar are below {LEAST_SIGNAL:g} and "
            f"hold no signal, so that nothing can be denoised there in one step: give the first "
            f"{len(table) - lost}, alpha_bar[:{len(table) - lost}]"
        )
    return alpha_bar


def with_signal(alpha_bar: Tensor) -> Tensor:
    """The part of a falling ``alpha_bar`` [T] that holds signal; the whole, nearly always."""
    return alpha_bar[: int((alpha_bar >= LEAST_SIGNAL).sum())]


def per_sample(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], to stand beside latents."""
    return values.reshape(-1, 1, 1, 1)


def sigma(alpha_bar: Tensor) -> Tensor:
    """Noise level of the rescaled sample, any shape."""
    return ((1.0 - alpha_bar) / alpha_bar).sqrt()


def mix(z: Tensor, kappa: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noised sample at level ``alpha_bar`` [B] of clean ``z`` with noise ``kappa``."""
    a = per_sample(alpha_bar)
    return a.sqrt() * z + (1.0 - a).sqrt() * kappa


def unmix(x_t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """The clean sample that ``x_t`` would be if its noise were ``eps``: the one-step denoised
    sample x0(t) of eq. 5. Inverse of :func:`mix` in its first argument."""
    a = per_sample(alpha_bar)
    return (x_t - (1.0 - a).sqrt() * eps) / a.sqrt()


def ddim_step(x: Tensor, eps: Tensor, a_from: Tensor, a_to: Tensor) -> Tensor:
    """``x`` [B, c, h, w] from level ``a_from`` [B] to ``a_to`` [B], upwards or downwards, as if its
    noise were ``eps`` all the way: an Euler step (arXiv 2010.02502, eq. 12 with eta = 0)."""
    return mix(unmix(x, eps, a_from), eps, a_to)


def eps_of_v(v: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise that a v-prediction (arXiv 2202.00512) means; ``alpha_bar`` [B] is the level."""
    a = per_sample(alpha_bar)
    return a.sqrt() * v + (1.0 - a).sqrt() * x_t


def noise_between(x_t: Tensor, z: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise that takes ``z`` to ``x_t``. Inverse of :func:`mix` in its second argument."""
    a = per_sample(alpha_bar)
    return (x_t - a.sqrt() * z) / (1.0 - a).sqrt()


def scaled_linear_alpha_bar(
    steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Tensor:
    """Stable Diffusion's schedule, [steps] float64: betas linear in their square root."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def alpha_bar_of(config: Mapping[str, Any]) -> Tensor:
    """The table [T] float32 that a ``scheduler_config.json`` of diffusers means.

    The betas are rounded as diffusers rounds them: a run with its schedule is the same run.

    Raises:
        ValueError: a ``beta_schedule`` of another name.
    """
    total = int(config.get("num_train_timesteps", 1000))
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    kind = config.get("beta_schedule", "linear")
    given = config.get("trained_betas")
    if given is not None:
        betas = torch.tensor(given, dtype=torch.float32)
    elif kind == "linear":
        betas = torch.linspace(start, end, total, dtype=torch.float32)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, total, dtype=torch.float32) ** 2
    elif kind == "squaredcos_cap_v2":
        levels = [
            math.cos((k / total + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(total + 1)
        ]
        betas = torch.tensor([min(1.0 - b / a, 0.999) for a, b in pairwise(levels)])
    else:
        raise ValueError(
            f"beta_schedule={kind!r} is not one of linear, scaled_linear, squaredcos_cap_v2"
        )
    alpha_bar = torch.cumprod(1.0 - betas, dim=0)
    return without_last_signal(alpha_bar) if config.get("rescale_betas_zero_snr") else alpha_bar


def without_last_signal(alpha_bar: Tensor) -> Tensor:
    """The table stretched so that its last entry is pure noise (arXiv 2305.08891, Alg. 1)."""
    root = alpha_bar.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * (first / (first - last))) ** 2


def less_signal(alpha_bar: Tensor, times: float) -> Tensor:
    """The table [T] whose ratio of signal to noise, ``alpha_bar / (1 - alpha_bar)``, is that of
    ``alpha_bar`` at its beginning and ``times`` smaller at its end; between, the logarithm of the
    quotient is linear in time."""
    table = alpha_bar.double()
    share = torch.linspace(0.0, 1.0, len(table), dtype=torch.float64, device=table.device)
    ratio = table / (1.0 - table) / times**share
    return (ratio / (1.0 + ratio)).to(alpha_bar.dtype)


def alpha_bar_at(alpha_bar: Tensor, t: Tensor) -> Tensor:
    """The table at integer times ``t`` [B] on any device; time 0 and below mean the clean sample,
    level 1. The result is where the table is.

    The table's own first entry is not quite 1 (sigma = 0.029 for Stable Diffusion). A rendering
    is clean, so an inversion starts from level 1 exactly.
    """
    t = t.to(alpha_bar.device)
    level = alpha_bar[t.clamp(min=0, max=len(alpha_bar) - 1)]
    return torch.where(t > 0, level, torch.ones_like(level))
