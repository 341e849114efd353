# SPDX-License-Identifier: Apache-2.0
"""Null-text inversion (arXiv 2211.09794): words for nothing, so that guidance leads back.

A picture is inverted under its sentence with guidance of scale 1. On the way back with a larger
scale the path bends away, because what was inverted knew no guidance. The empty prompt then becomes
another one in every step: what the network is told in its place is moved until the step ends where
the inversion came from. The sentence, the network and the scale stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from representations.checks import require

from ..diffusion.base import Condition, Denoiser
from ..diffusion.schedule import alpha_bar_at, ddim_step
from .predict import classifier_free


@dataclass(frozen=True, kw_only=True)
class NullText:
    """The published code's settings, which are for 50 steps; others have them by their share."""

    iterations: int = 10  # of Adam, in each step
    rate: float = 0.01  # of Adam in the first step; falls to half of it
    # A step is near enough with this mean squared error of its latents, and with ``slack`` more in
    # the last step, growing evenly.
    enough: float = 1e-5
    slack: float = 1e-3

    def __post_init__(self) -> None:
        require(self.iterations >= 0, "iterations", self.iterations, "0 or more", 10)
        require(self.rate > 0.0, "rate", self.rate, "above 0", 0.01)
        for name in ("enough", "slack"):
            value = getattr(self, name)
            require(value >= 0.0, name, value, "0 or more", 1e-5)


class Retraced(NamedTuple):
    """The way back."""

    end: Tensor  # [B, c, h, w] clean
    empty: list[Condition]  # what stood for the empty prompt in each step, from the noisiest on
    evaluations: int  # network samples


def retrace(
    denoiser: Denoiser,
    words: tuple[Condition, Condition],
    path: Sequence[Tensor],
    times: Tensor,
    cfg_scale: float,
    config: NullText | None = None,
) -> Retraced:
    """From the end of ``path`` back to its start by DDIM with guidance.

    Args:
        words: what stands for the empty prompt at first, and the sentence, of B samples each.
        path: N + 1 latents [B, c, h, w] of an inversion, from the clean ones on.
        times: [N + 1] of the path, rising from 0.
        config: how the first of ``words`` is moved; None: it stays.

    Where no iteration brings a step nearer, the words of the step stay those of the step before it;
    the published code takes the last iteration as it is. At scale 1 the empty prompt has no say,
    and stays. ValueError for a network that cannot be differentiated.
    """
    empty, sentence = words
    table, spent, used = denoiser.alpha_bar.to(path[0]), 0, []
    x, count = path[-1], len(path) - 1
    for number in range(count):
        k = count - number
        step = _Step(denoiser, sentence, x, path[k - 1], (times[k], times[k - 1]), cfg_scale, table)
        if config is not None and cfg_scale != 1.0:
            empty, asked = _moved(step, empty, config, number / count)
            spent += asked
        with torch.no_grad():
            x = step.taken(empty)
        spent += 2 * len(x)
        used.append(empty)
    return Retraced(x, used, spent)


class _Step:
    """One step of DDIM as a function of what stands for the empty prompt."""

    def __init__(
        self,
        denoiser: Denoiser,
        sentence: Condition,
        x: Tensor,
        wanted: Tensor,
        times: tuple[Tensor, Tensor],
        cfg_scale: float,
        table: Tensor,
    ) -> None:
        self.denoiser, self.x, self.wanted, self.cfg_scale = denoiser, x, wanted, cfg_scale
        start, end = (time.to(x.device).expand(len(x)) for time in times)
        self.t = start
        self.levels = alpha_bar_at(table, start), alpha_bar_at(table, end)
        with torch.no_grad():
            self.cond = denoiser.predict_noise(x, start, sentence)

    def taken(self, empty: Condition) -> Tensor:
        """Where the step ends, [B, c, h, w]."""
        uncond = self.denoiser.predict_noise(self.x, self.t, empty)
        eps = classifier_free(uncond, self.cond, self.cfg_scale)
        return ddim_step(self.x, eps, *self.levels)

    def errors(self, empty: Condition) -> Tensor:
        """Mean squared distance of each sample from where it came from, [B]."""
        return (self.taken(empty) - self.wanted).square().mean((1, 2, 3))


def _moved(step: _Step, empty: Condition, config: NullText, done: float) -> tuple[Condition, int]:
    """The words that bring ``step`` nearest, sample by sample, and the network samples spent."""
    moving = {
        name: part.detach().clone().requires_grad_(part.is_floating_point())
        for name, part in empty.parts.items()
    }
    free = [part for part in moving.values() if part.requires_grad]
    optimizer = torch.optim.Adam(free, lr=config.rate * (1.0 - 0.5 * done))
    enough, spent = config.enough + config.slack * done, 0
    best: dict[str, Tensor] = dict(empty.parts)
    least: Tensor | None = None
    for _ in range(config.iterations + 1):
        with torch.enable_grad():
            errors = step.errors(Condition(moving))
        spent += len(errors)
        if not errors.requires_grad:
            raise ValueError(
                "null-text inversion differentiates the network by its words, and this one cannot "
                "be: write model.compile=no"
            )
        found = errors.detach()
        nearer = found < least if least is not None else torch.ones_like(found, dtype=torch.bool)
        best = {name: _chosen(nearer, moving[name].detach(), best[name]) for name in best}
        least = found if least is None else torch.minimum(found, least)
        if bool((least <= enough).all()):
            break
        optimizer.zero_grad(set_to_none=True)
        errors.sum().backward()
        optimizer.step()
    return Condition(best), spent


def _chosen(rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``first`` in those rows, ``second`` in the others."""
    return torch.where(rows.reshape(-1, *[1] * (first.dim() - 1)), first, second)
