# SPDX-License-Identifier: Apache-2.0
"""What every benchmark of kernels says of its machine, and how it takes the time."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def best_of(function: Callable[[], object], repeats: int) -> float:
    """Shortest of several runs in milliseconds: the least disturbed by other programs."""
    function()  # compile and fill caches
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def options(description: str, repeats: int) -> argparse.ArgumentParser:
    """``--threads`` and ``--repeats``, which all have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats)
    return parser


def begin(threads: int, repeats: int) -> None:
    """Fix the number of threads and print where this runs. OpenMP reads it when torch is imported,
    so this comes before."""
    os.environ["OMP_NUM_THREADS"] = str(threads)

    import numba
    import torch

    torch.set_num_threads(threads)
    print(f"CPU      {cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} at start")
    print(
        f"threads  {torch.get_num_threads()}; "
        f"torch {torch.__version__}, numba {numba.__version__}; best of {repeats}"
    )
