# SPDX-License-Identifier: Apache-2.0
"""How much of the machine there is: memory that is left, asked before something large is made, and
cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


COPIES_IN_TRAINING = 4
"""Of a parameter: itself, its gradient, and Adam's two moments."""

PER_PIXEL_AND_VIEW = 60
"""Numbers of a training picture: itself and its gradient, what is behind it, the loss; about."""


def available_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def available_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on ``device``; None where the system does not say.

    On a CPU the smaller of what the kernel calls available and what a control group leaves.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_limits(), default=None)


def _limits() -> Iterator[int]:
    try:
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        most = int((CGROUP / "memory.max").read_text())  # "max" where there is no limit
        yield max(0, most - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass


def require_memory(needed: int, device: torch.device, what: str, instead: str) -> None:
    """Raise ValueError, with what to write ``instead``, when ``what`` cannot fit on ``device``."""
    free = available_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"{what} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on {device}: "
            f"{instead}"
        )
