# SPDX-License-Identifier: Apache-2.0
"""How many threads a run should have on a machine that does other things as well.

Threads of OpenMP wait for one another at the end of each of a step's thousand small products, and
they wait by turning round: where one of them has lost its core to somebody else, all do nothing for
as long as that takes. On two cores beside other work a step of guidance took 10 s with two threads
and 0.3 s with one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

_STAT = Path("/proc/stat")
_LOOK_S = 0.2  # long against the clock of /proc, which ticks 100 times a second


def spare_threads() -> int:
    """As many threads as torch would take, or fewer where other work keeps cores busy now.

    Looks at the machine for a fifth of a second. OMP_NUM_THREADS is the user's word and stands;
    where the system does not tell how busy it is, torch's own choice does.
    """
    most = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ:
        return most
    before = _ticks()
    time.sleep(_LOOK_S)
    return spare(most, before, _ticks())


Ticks = dict[int, tuple[int, int]]
"""Of each core that this process may use: ticks with nothing to do, and all, since the start."""


def spare(most: int, before: Ticks, after: Ticks) -> int:
    """How many of ``most`` threads find a core of their own, from 1 to ``most``."""
    idle = 0.0
    for core, (lazy, every) in after.items():
        passed = every - before.get(core, (0, every))[1]
        if passed > 0:
            idle += (lazy - before[core][0]) / passed
    return most if not after else max(1, min(most, round(idle)))


def _ticks() -> Ticks:
    try:
        lines = _STAT.read_text().splitlines()
        allowed = os.sched_getaffinity(0)
    except (OSError, AttributeError):  # not Linux
        return {}
    found = {}
    for line in lines:
        name, *counts = line.split()
        core = name.removeprefix("cpu")
        if core != name and core.isdigit() and int(core) in allowed:
            values = [int(count) for count in counts]
            # user, nice, system, idle, waiting for disks, interrupts, ..., stolen by a host
            found[int(core)] = (values[3] + values[4], sum(values[:8]))
    return found
