# SPDX-License-Identifier: Apache-2.0
"""Diffusion times, where they are planned by and where they are used."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Times(NamedTuple):
    """The same integer times twice, [B] or [B, N] int64.

    A choice that is made by a time (how many steps an inversion takes, which prediction a rule
    wants) reads ``host`` and waits for no device; arithmetic on latents takes ``device``.
    """

    host: Tensor  # on the CPU
    device: Tensor  # where the latents are

    @staticmethod
    def of(t: Tensor, device: torch.device | str) -> Times:
        """``t`` on any device."""
        return Times(t.cpu(), t.to(device))
