# SPDX-License-Identifier: Apache-2.0
"""Whether noise hides what is wrong with a picture: App. A.3 of the thesis behind the paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from representations.telling import each

from ..diffusion.schedule import alpha_bar_at, mix
from ..guidance.noise import NoiseStrategy, RandomNoise
from .base import Bench, Experiment, Result
from .noise_error import SHARES, at, inversion, kappa_of


def torn(latents: Tensor) -> Tensor:
    """Pictures [N, c, h, w] whose right half has slid down by a quarter of their height: no model
    has seen the like."""
    half, quarter = latents.shape[-1] // 2, max(1, latents.shape[-2] // 4)
    left, right = latents[..., :half], latents[..., half:]
    return torch.cat([left, right.roll(quarter, dims=-2)], dim=-1)


@torch.no_grad()
def seen_in(bench: Bench, noise: NoiseStrategy, t: int) -> float:
    """``mean(eps(x_t)^2)``: how much noise the model takes for granted in the clean latents under
    that choice of kappa. It is the squared length of the score, times 1 - alpha_bar, so what lies
    outside of the pictures of time t that the model knows has more of it."""
    kappa, _ = kappa_of(bench, noise, t)
    times = at(bench, t)
    x_t = mix(bench.clean, kappa, alpha_bar_at(bench.alpha_bar, times))
    return float(bench.predictor()(x_t, times, 1.0).square().mean())


@torch.no_grad()
def hidden(bench: Bench, say: Callable[[str], None]) -> Result:
    """For torn pictures under random and under inverted noise, and for the model's own under
    inverted noise: how much more noise the model sees in them than in its own pictures under random
    noise. 1 is a picture that nothing tells from those the model knows at that t."""
    random, inverted = RandomNoise(), inversion(bench)
    broken = dataclasses.replace(bench, clean=torn(bench.clean))
    choices: dict[str, tuple[Bench, NoiseStrategy]] = {
        "torn, random": (broken, random),
        "torn, ddim inversion": (broken, inverted),
        "its own, ddim inversion": (bench, inverted),
    }
    rows = []
    for share in each(SHARES, "time"):
        t = round(share * len(bench.alpha_bar))
        say(f"t = {share:g}")
        usual = seen_in(bench, random, t)
        rows += [
            {"picture, kappa": name, "t": share, "noise_seen": seen_in(on, noise, t) / usual}
            for name, (on, noise) in choices.items()
        ]
    return Result(rows, "picture, kappa", "t", "noise_seen", log=True)


HIDDEN = Experiment("App. A.3: whether noise hides what is wrong with a torn picture, by t", hidden)
