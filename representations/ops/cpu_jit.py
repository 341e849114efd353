# SPDX-License-Identifier: Apache-2.0
"""How numba functions are declared here: nothing is compiled before the first call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

_LOCK = threading.Lock()
_KERNELS: list[Any] = []  # all that were declared


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


@contextmanager
def threads() -> Iterator[None]:
    """Run kernels on as many threads as torch uses, one caller at a time.

    numba's bundled thread pool must not be entered from two Python threads at once.
    """
    with _LOCK:
        wanted = torch.get_num_threads()
        before = numba.get_num_threads()
        numba.set_num_threads(max(1, min(wanted, numba.config.NUMBA_NUM_THREADS)))
        _keep(wanted)
        try:
            yield
        finally:
            numba.set_num_threads(before)


def _keep(wanted: int) -> None:
    """Give torch back its number of threads: where numba's pool is one of OpenMP, its start sets
    the number of all who use that library, and one thread became as many as there are cores. Beside
    other work those wait for one another, and a network takes fifty times as long."""
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def array(tensor: Tensor) -> np.ndarray:
    """The values for a kernel, without a copy where they are contiguous."""
    return tensor.detach().contiguous().numpy()
