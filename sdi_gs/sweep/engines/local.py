# SPDX-License-Identifier: Apache-2.0
"""This machine: a pool with a slot for each card, or for so many cores."""

from __future__ import annotations

import os
from collections.abc import Callable

from representations.memory import available_cores

from ...errors import UserError
from ..manifest import Sweep
from ..pool import pool
from ..work import Worker
from . import Options, hidden, require, threads


def run(sweep: Sweep, options: Options, say: Callable[[str], None]) -> None:
    """See :class:`sdi_gs.sweep.engines.Engine`."""
    require(options, (), "local")
    places = slots(options)
    with Worker(sweep, say) as worker:
        say(f"{len(places)} at a time: {places[0][0]}" + (" ..." if len(places) > 1 else ""))
        pool(worker, [environment for _, environment in places])


Slot = tuple[str, dict[str, str]]
"""A place for a run, in words, and the variables of its environment."""


def slots(options: Options) -> list[Slot]:
    """A place for each run at a time. UserError for numbers that cannot be."""
    for name in ("jobs", "cores"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: allowed is 1 or more")
    cards, cores = visible_cards() if options.any_card else [], available_cores()
    if cards:
        count = options.jobs or len(cards)
        each = options.cores or max(1, cores // count)
        return [(f"card {card}, {each} threads",
                 {"CUDA_VISIBLE_DEVICES": card, **threads(each)})
                for card in (cards[number % len(cards)] for number in range(count))]  # fmt: skip
    each = options.cores or (max(1, cores // options.jobs) if options.jobs else 1)
    count = options.jobs or max(1, cores // each)
    return [(f"{each} threads", {**hidden(options), **threads(each)})] * count


def visible_cards() -> list[str]:
    """The cards that this process may use, as CUDA_VISIBLE_DEVICES names them; CUDA is not started,
    which would take memory on each."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in named.split(",") if name.strip()][:count]
