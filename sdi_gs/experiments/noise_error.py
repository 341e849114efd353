# SPDX-License-Identifier: Apache-2.0
"""How well a choice of kappa solves eq. 8: Fig. 9 (right) and Fig. 10 (left)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from representations.telling import each

from ..diffusion.schedule import alpha_bar_at, mix, per_sample, sigma
from ..guidance.noise import DDIMInversion, NoiseStrategy, RandomNoise
from ..guidance.roots import FixedPoint, GradientDescent
from ..ramp import Ramp
from .base import Bench, Experiment, Result

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the schedule


@torch.no_grad()
def error(bench: Bench, noise: NoiseStrategy, cfg_scale: float, t: int) -> tuple[float, int]:
    """``mean((sigma(t) (kappa - eps(x_t)))^2)`` over samples and elements, with x_t the clean
    latents under kappa: what is left of eq. 8, in units of the latents. And the network samples
    that finding kappa took, per latent."""
    kappa, spent = kappa_of(bench, noise, t)
    return left(bench, kappa, cfg_scale, t), spent


@torch.no_grad()
def kappa_of(bench: Bench, noise: NoiseStrategy, t: int) -> tuple[Tensor, int]:
    """kappa [N, c, h, w] of the clean latents at ``t``, and the network samples that finding it
    took, per latent."""
    predict = bench.predictor()
    kappa = bench.noised(noise, bench.clean, at(bench, t), predict, bench.rng()).kappa
    return kappa, predict.evaluations // len(bench.clean)


@torch.no_grad()
def left(bench: Bench, kappa: Tensor, cfg_scale: float, t: int) -> float:
    """The first number of :func:`error`, for a kappa that is known."""
    times = at(bench, t)
    level = alpha_bar_at(bench.alpha_bar, times)
    eps: Tensor = bench.predictor()(mix(bench.clean, kappa, level), times, cfg_scale)
    residual = per_sample(sigma(level)) * (kappa - eps)
    return float(residual.square().mean())


def at(bench: Bench, t: int) -> Tensor:
    """The time of every sample, [N]."""
    return torch.full((len(bench.clean),), t, device=bench.clean.device)


def inversion(bench: Bench) -> DDIMInversion:
    """The configuration's own, or the paper's, without what is random in it: eq. 8 has none."""
    own = bench.config.noise
    chosen = own if isinstance(own, DDIMInversion) else DDIMInversion(cfg_scale=-bench.cfg_scale)
    return dataclasses.replace(chosen, tau_max=0.0, entropy=Ramp(0.0, 0.0))


def _sweep(
    bench: Bench,
    choices: Mapping[str, tuple[NoiseStrategy, float]],
    say: Callable[[str], None],
) -> Result:
    """Every choice of (kappa, forward guidance) at every time."""
    rows = []
    total = len(bench.alpha_bar)
    for name, (noise, cfg_scale) in each(list(choices.items()), "kappa"):
        say(f"kappa: {name}")
        for share in each(SHARES, "time"):
            value, spent = error(bench, noise, cfg_scale, round(share * total))
            rows.append({"kappa": name, "t": share, "error": value, "network_samples": spent})
    return Result(rows, "kappa", "t", "error", log=True)


def fig9(bench: Bench, say: Callable[[str], None]) -> Result:
    """Random, ten fixed-point iterations, ten steps of gradient descent, and DDIM inversion with
    minus the forward guidance, as in the paper; the configuration's inversion too if it differs."""
    s, own = bench.cfg_scale, inversion(bench)
    choices: dict[str, tuple[NoiseStrategy, float]] = {
        "random": (RandomNoise(), s),
        "fixed point": (FixedPoint(cfg_scale=s), s),
        "gradient descent": (GradientDescent(cfg_scale=s), s),
        "ddim inversion": (dataclasses.replace(own, cfg_scale=-s), s),
    }
    if own.cfg_scale != -s:
        choices[f"ddim inversion at {own.cfg_scale:g}"] = (own, s)
    return _sweep(bench, choices, say)


def fig10(bench: Bench, say: Callable[[str], None]) -> Result:
    """Guidance while inverting and while denoising: the paper's (s, s), (0, 0), (0, s) and (-s, s),
    the thesis's (1, 1), and (1 - s, s) of Probability-Flow Distillation."""
    s, base = bench.cfg_scale, inversion(bench)
    pairs = ((s, s), (0.0, 0.0), (1.0, 1.0), (0.0, s), (-s, s), (1.0 - s, s))
    return _sweep(
        bench,
        {
            f"inversion {back:g}, forward {forth:g}": (
                dataclasses.replace(base, cfg_scale=back), forth,
            )
            for back, forth in pairs
        },
        say,
    )  # fmt: skip


FIG9 = Experiment("Fig. 9 (right): what each choice of kappa leaves of eq. 8, by t", fig9)
FIG10 = Experiment("Fig. 10 (left): the same for guidance while inverting and denoising", fig10)
