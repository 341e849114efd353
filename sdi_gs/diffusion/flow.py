# SPDX-License-Identifier: Apache-2.0
"""Rectified flow (arXiv 2209.03003) behind the protocol of a denoiser, for any velocity network.

A flow mixes ``z = (1 - s) x + s eps`` and its network predicts the velocity ``v = eps - x``. With
``a = 1 - s``, ``z / sqrt(a^2 + s^2)`` is a variance-preserving sample of
``alpha_bar = a^2 / (a^2 + s^2)``, and ``eps = z + a v``. So guidance asks a flow model like any
other, and an Euler step of DDIM from one level to another is the Euler step ``z + (s' - s) v`` of
the flow. What guidance states in words of alpha_bar (weights, levels) means the rescaled sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .base import Condition
from .schedule import per_sample, require_signal, with_signal

Ask = Callable[[Tensor, Tensor], Tensor]
"""(z [B, c, h, w] mixed by the flow, s [B]) -> velocity [B, c, h, w]"""


def shifted(u: Tensor, shift: float) -> Tensor:
    """Times of a flow, moved to where there is more noise (arXiv 2403.03206, eq. 23): with
    ``shift`` 1 they stay. In [0, 1], any shape."""
    return shift * u / (1.0 + (shift - 1.0) * u)


def alpha_bar_of_flow(s: Tensor) -> Tensor:
    """The level that the share ``s`` of noise means, any shape."""
    return (1.0 - s).square() / ((1.0 - s).square() + s.square())


def flow_times(total: int = 1000, shift: float = 1.0) -> Tensor:
    """The shares of noise [T], float64, rising, that ``total`` even times of a flow mean, as far as
    there is signal."""
    s = shifted(torch.arange(1, total + 1, dtype=torch.float64) / total, shift)
    return s[: len(with_signal(alpha_bar_of_flow(s)))]


class FlowTable:
    """A schedule whose entries are shares ``s`` of noise.

    Args:
        s: [T], rising, in (0, 1).

    Raises:
        ValueError: it does not rise, or goes beyond where the signal ends.
    """

    def __init__(self, s: Tensor) -> None:
        self.s = s
        self.alpha_bar = require_signal(alpha_bar_of_flow(s))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> FlowTable:
        """Where and how guidance computes with it. Levels are rounded once, from these shares."""
        moved = FlowTable.__new__(FlowTable)
        moved.s = self.s.to(device, dtype)
        moved.alpha_bar = self.alpha_bar.to(device, dtype)
        return moved

    def noise(self, ask: Ask, x_t: Tensor, t: Tensor) -> Tensor:
        """epsilon [B, c, h, w] of variance-preserving samples at integer times ``t`` [B]. Time 0
        and below mean the clean sample, s = 0."""
        s = self.s[t.to(self.s.device).clamp(min=0)]
        s = torch.where(t.to(s.device) > 0, s, torch.zeros_like(s)).to(x_t)
        a = per_sample(1.0 - s)
        z = (a.square() + per_sample(s).square()).sqrt() * x_t
        return z + a * ask(z, s)


class Velocity(Protocol):
    """A velocity network."""

    def __call__(self, z: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """v [B, c, h, w] of ``z = (1 - s) x + s eps`` [B, c, h, w] at the shares ``s`` [B]."""
        ...


class Coder(Protocol):
    """Words and pictures of a model: all of a denoiser but its noise."""

    def embed(self, prompts: Sequence[str]) -> Condition: ...

    def encode(self, rgb: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class Flow:
    """Any velocity network as a denoiser.

    Args:
        velocity: the network.
        coder: its words and pictures.
        s: the shares of noise [T] that its times mean, rising, in the precision and on the device
            of the latents; see :func:`flow_times`.
    """

    def __init__(self, velocity: Velocity, coder: Coder, s: Tensor) -> None:
        self.velocity = velocity
        self.coder = coder
        self.table = FlowTable(s)
        self.alpha_bar = self.table.alpha_bar
        self.views_together = 1

    def embed(self, prompts: Sequence[str]) -> Condition:
        return self.coder.embed(prompts)

    def encode(self, rgb: Tensor) -> Tensor:
        return self.coder.encode(rgb)

    def decode(self, latents: Tensor) -> Tensor:
        return self.coder.decode(latents)

    def predict_noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.table.noise(lambda z, s: self.velocity(z, s, condition), x_t, t)
