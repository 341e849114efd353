# SPDX-License-Identifier: Apache-2.0
"""Seconds per stage. On CUDA the device's own clock is read, so nobody waits before the end."""

from __future__ import annotations

import time

import torch

Moment = float | torch.cuda.Event


class Stopwatch:
    """Laps may be taken several times for one stage: they add up."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._laps: list[tuple[str, Moment, Moment]] = []
        self._last = self._now()

    def lap(self, stage: str) -> None:
        """What has passed since the last lap belongs to ``stage``."""
        now = self._now()
        self._laps.append((stage, self._last, now))
        self._last = now

    @property
    def seconds(self) -> dict[str, float]:
        """Of every stage, in the order in which they came first. On CUDA this waits for the end of
        the last lap."""
        found: dict[str, float] = {}
        for stage, begin, end in self._laps:
            found[stage] = found.get(stage, 0.0) + _between(begin, end)
        return found

    def _now(self) -> Moment:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _between(begin: Moment, end: Moment) -> float:
    """Seconds; on CUDA this waits for the end."""
    if isinstance(begin, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
    assert isinstance(end, float)
    return end - begin
