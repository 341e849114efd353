# SPDX-License-Identifier: Apache-2.0
"""Settings that move over the steps of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Ramp:
    """A value that moves from ``start`` to ``end`` over a number of steps, then stays."""

    start: float  # value at step 0
    end: float  # value from step ``over`` on
    over: int | None = None  # steps; None: the whole run, however long it is
    # sqrt is HiFA's; step stays at ``start`` and jumps.
    shape: Literal["linear", "sqrt", "cosine", "step"] = "linear"

    def at(self, step: int, total_steps: int) -> float:
        span = self.over if self.over is not None else total_steps
        done = 1.0 if span <= 0 else min(max(step / span, 0.0), 1.0)
        if self.shape == "sqrt":
            done = math.sqrt(done)
        elif self.shape == "step":
            done = math.floor(done)
        elif self.shape == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        return self.start + (self.end - self.start) * done


def ramp(value: Ramp | float) -> Ramp:
    """A plain number as the ramp that stays there."""
    return value if isinstance(value, Ramp) else Ramp(value, value)
