# SPDX-License-Identifier: Apache-2.0
"""Seconds per stage. On CUDA the device's own clock is read, so nobody waits before the end."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

Moment = float | torch.cuda.Event


class Lap(NamedTuple):
    """From one moment to another."""

    begin: Moment
    end: Moment

    def seconds(self) -> float:
        """On CUDA this waits for the end of the lap."""
        begin, end = self
        if isinstance(begin, torch.cuda.Event):
            assert isinstance(end, torch.cuda.Event)
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3
        assert isinstance(end, float)
        return end - begin


class Stopwatch:
    """Laps may be taken several times for one stage: they add up."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._laps: list[tuple[str, Lap]] = []
        self._parts: list[tuple[str, str, Lap]] = []
        self._last = self._now()

    def lap(self, stage: str) -> Lap:
        """What has passed since the last lap belongs to ``stage``."""
        lap = Lap(self._last, self._now())
        self._laps.append((stage, lap))
        self._last = lap.end
        return lap

    def part(self, stage: str, name: str, lap: Lap | None) -> None:
        """Of ``stage``, that lap was ``name``: count it there instead."""
        if lap is not None:
            self._parts.append((stage, name, lap))

    @property
    def seconds(self) -> dict[str, float]:
        """Of every stage, in the order in which they came first. On CUDA this waits for the end of
        the last lap."""
        found: dict[str, float] = {}
        for stage, lap in self._laps:
            found[stage] = found.get(stage, 0.0) + lap.seconds()
        for stage, name, lap in self._parts:
            found[stage] -= lap.seconds()
            found[name] = found.get(name, 0.0) + lap.seconds()
        return found

    def _now(self) -> Moment:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
