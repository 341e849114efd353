# SPDX-License-Identifier: Apache-2.0
"""What a method asks of the network, counted before its run: for comparisons at equal calls."""

from __future__ import annotations

import math
import statistics

from .. import build
from ..config import Config, load
from ..errors import UserError
from ..trainer import train_step

MOMENTS = 20  # steps, spread evenly over the run
OF_THE_METHOD = (
    "steps", "schedule_steps", "batch", "views", "negative_prompt", "prompts", "guidance", "noise",
    "update",
)  # fmt: skip
SHAPE = ("device=cpu", "representation.count=32", "representation.max_count=32")


def samples_per_step(config: Config, moments: int = MOMENTS) -> float:
    """Network samples of a step of that run, all views together; the mean of ``moments`` steps that
    are spread over it.

    They are counted, not calculated: the run's own words, views, guidance, noise and update ask the
    small model of the package about a handful of splats, since a method asks every prior and every
    representation as often.
    """
    small = load("mini", ["prompt=a red mug", *SHAPE])
    run = small.model_copy(update={name: getattr(config, name) for name in OF_THE_METHOD})
    training = build.training(run)
    moments = min(moments, config.steps)
    steps = [(2 * k + 1) * config.steps // (2 * moments) for k in range(moments)]
    return statistics.mean(train_step(training, step).evaluations for step in steps)


def steps_for(price: float, nfe: int) -> int:
    """How many steps of that price ``nfe`` network samples pay for, rounded. UserError if they do
    not pay for one."""
    if nfe < price:
        raise UserError(
            f"nfe={nfe}: one step takes {price:.1f}; allowed is {math.ceil(price)} or more"
        )
    return round(nfe / price)
