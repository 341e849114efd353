# SPDX-License-Identifier: Apache-2.0
"""How numba functions are declared here: nothing is compiled before the first call."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

_KERNELS: list[Any] = []  # all that were declared
PARTS = 4
"""Parts of a kernel's work for each thread."""


def jit(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``numba.njit``, cached on disk where some folder is writable, else compiled per process.

    numba notices an edit of the file a function lives in, but not of the functions it calls:
    keep a kernel and its helpers in one file.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            compiled: Callable[..., Any] = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # "no locator available": neither __pycache__ nor home is writable
            compiled = numba.njit(**options)(function)
        _KERNELS.append(compiled)
        return compiled

    return decorate


def waiting(family: str) -> bool:
    """Whether a kernel of the modules below ``family`` that were imported has never been compiled
    here: its first call then takes seconds."""
    for kernel in _KERNELS:
        if not kernel.__module__.startswith(f"{family}.") or kernel.signatures:
            continue
        folder = kernel.stats.cache_path
        stem = f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}-"
        if folder is None or not any(Path(folder).glob(f"{stem}*.nbi")):
            return True
    return False


def spread(kernel: Callable[..., None], jobs: int, *arguments: Any) -> None:
    """``kernel(first, last, *arguments)`` over all of ``range(jobs)``, in parts on as many threads
    as torch uses; each part fills its own share of the arrays among the arguments.

    The kernel is a function of numba that lets go of Python's lock (``nogil``), compiled for one
    thread: numba's own parallel loops take twice as long to compile, and the pool of OpenMP that
    they start disturbs that of torch. A part is taken by whoever is free, so that parts of
    different length are no matter.
    """
    workers = min(torch.get_num_threads(), jobs)
    if workers <= 1:
        if jobs > 0:
            kernel(0, jobs, *arguments)
        return
    parts = min(jobs, workers * PARTS)
    free = itertools.count()  # its next number is given out once, to one thread

    def work() -> None:
        while (part := next(free)) < parts:
            kernel(part * jobs // parts, (part + 1) * jobs // parts, *arguments)

    others = [_pool(workers - 1).submit(work) for _ in range(workers - 1)]
    try:
        work()
    finally:
        wait(others)  # they write to arrays of ours
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(size: int) -> ThreadPoolExecutor:
    """Threads beside the one that asks. They are kept: to start one takes as long as a part."""
    return ThreadPoolExecutor(size, thread_name_prefix="kernel")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def array(tensor: Tensor) -> np.ndarray:
    """The values for a kernel, without a copy where they are contiguous."""
    return tensor.detach().contiguous().numpy()
