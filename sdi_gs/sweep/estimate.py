# SPDX-License-Identifier: Apache-2.0
"""How many machine hours and how much disk a plan will take, before anything has run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from representations.interface import Sized
from representations.memory import COPIES_IN_TRAINING

from ..config import Config
from . import status
from .manifest import Line
from .plan import Planned, configuration

PAPER_SECONDS = 119 * 60 / 10_000
"""Of a step of the paper's SDI, one view of 512 x 512, on an A6000 (its Table 1)."""

MINI_SECONDS = 0.4
"""Of a step of the preset mini, four views of 64 x 64, on one core: 0.42 and 0.45 in two runs of 60
steps on an idle EPYC with AVX-512."""

SMALL_FILES = 2 * 2**20  # previews, film, report and log of a run; an allowance
CHECKPOINTS = 2  # that a run keeps


def text(done: Planned) -> str:
    """What was planned, for people."""
    runs = f"{len(done.lines):,} runs"
    if len(done.new) != len(done.lines):
        runs += f", {len(done.new):,} of them new"
    if not done.new:
        return f"{runs}: nothing was added"
    seconds, basis = _seconds(done)
    size = sum(_bytes(line) for line in _alike(done.new)) * len(done.new) / len(_alike(done.new))
    return (
        f"{runs}; the new ones take about {status.duration(seconds)} of a machine ({basis}) and "
        f"{_size(size)} of disk"
    )


def _size(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"


def _seconds(done: Planned) -> tuple[float, str]:
    """Of all new runs, and what that is taken from."""
    measured = status.typical_seconds(done.sweep, status.standing(done.sweep))
    if measured is not None:
        return measured * len(done.new), f"as the {measured:,.0f} s of the runs that are done"
    some = _alike(done.new)
    configs = [_config(line) for line in some]
    per_step = [_per_step(config) for config in configs]
    total = sum(p * line.steps for p, line in zip(per_step, some, strict=True))
    mini = all(config.model.embedded for config in configs)
    basis = (
        f"a guess: {MINI_SECONDS} s a step of mini on one core"
        if mini
        else "a guess: the paper's 119 minutes for 10,000 views on an A6000"
    )
    return total * len(done.new) / len(some), basis


def _alike(lines: Sequence[Line]) -> list[Line]:
    """One line of each kind of settings."""
    kinds = {(l.method, l.representation, l.overrides): l for l in lines}  # noqa: E741
    return list(kinds.values())


@cache
def _config(line: Line) -> Config:
    return configuration(line)


def _per_step(config: Config) -> float:
    """Seconds: in proportion to the views, and for mini to their pixels."""
    if config.model.embedded:
        return MINI_SECONDS * config.batch * max(config.resolution, 32) ** 2 / (4 * 64**2)
    return PAPER_SECONDS * config.batch


def _bytes(line: Line) -> float:
    """On disk: the parameters with their moments in each checkpoint, the shape, and small files."""
    chosen = _config(line).representation
    trained = chosen.training_bytes(1, 8) if isinstance(chosen, Sized) else 0
    made = _config(line).particles * trained
    return SMALL_FILES + (CHECKPOINTS + 0.25) * made * 3 / COPIES_IN_TRAINING
