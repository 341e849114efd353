# SPDX-License-Identifier: Apache-2.0
"""Seconds per stage; on CUDA it waits, so that a stage pays for its own kernels."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._last = self._now()

    def lap(self, stage: str) -> None:
        """What has passed since the last lap belongs to ``stage``."""
        now = self._now()
        self.seconds[stage] = now - self._last
        self._last = now

    def part(self, stage: str, name: str, seconds: float) -> None:
        """Of ``stage``, ``seconds`` were ``name``: count them there instead."""
        self.seconds[stage] -= seconds
        self.seconds[name] = seconds

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
