# SPDX-License-Identifier: Apache-2.0
"""Diffusion times, where they are planned by and where they are used."""

from __future__ import annotations

import torch
from torch import Tensor

from representations.sending import send


class Times:
    """The same integer times twice, [B] or [B, N] int64.

    A choice that is made by a time (how many steps an inversion takes, which prediction a rule
    wants) reads ``host`` and waits for no device; arithmetic on latents takes ``device``. They are
    brought there when they are first asked for, or together with what :meth:`bring` is given.
    """

    def __init__(self, host: Tensor, where: torch.device | str) -> None:
        self.host = host  # on the CPU
        self._where = torch.device(where)
        self._there: Tensor | None = None

    @staticmethod
    def of(t: Tensor, device: torch.device | str) -> Times:
        """``t`` on any device."""
        made = Times(t.cpu(), device)
        if t.device == made._where:
            made._there = t
        return made

    @property
    def device(self) -> Tensor:
        """Where the latents are."""
        if self._there is None:
            self.bring()
        assert self._there is not None
        return self._there

    def bring(self, *others: Tensor) -> list[Tensor]:
        """``others`` where the latents are, in one copy, with these times if they are not there
        yet."""
        if self._there is not None:
            return send(others, self._where)
        self._there, *brought = send([self.host, *others], self._where)
        return brought
