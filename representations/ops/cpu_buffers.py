# SPDX-License-Identifier: Apache-2.0
"""Large arrays that kernels fill again and again, kept instead of given back to the system.

The system hands out large arrays as new pages, and clears each page when it is first touched. For
the gradient of a hash table (50 MB) that takes as long as a fifth of the kernel that fills it.
"""

from __future__ import annotations

import math
import threading
import weakref

import numpy as np

SMALLEST = 1 << 20
"""Bytes. Smaller arrays come from the heap, where memory is used again anyway."""

KEPT = 4
"""Arrays of one size that wait for their next use at most; more of them are given back."""

_free: dict[int, list[np.ndarray]] = {}
_lock = threading.RLock()  # a collection of garbage inside of it may give a buffer back


class _Lease:
    """Owns a buffer for as long as an array looks at it."""

    def __init__(self, buffer: np.ndarray) -> None:
        self.__array_interface__ = buffer.__array_interface__


def _give_back(buffer: np.ndarray) -> None:
    with _lock:
        waiting = _free.setdefault(buffer.nbytes, [])
        if len(waiting) < KEPT:
            waiting.append(buffer)


def borrow(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised C-contiguous float32 array of any shape.

    Its memory is used again once nothing refers to it: neither the array, nor a view of it, nor a
    tensor that shares its memory.
    """
    size = math.prod(shape) * 4
    if size < SMALLEST:
        return np.empty(shape, np.float32)
    with _lock:
        waiting = _free.get(size)
        buffer = waiting.pop() if waiting else np.empty(size, np.uint8)
    # A view of an array refers to what owns the memory, not to the array it was made from, so
    # the owner that they all refer to has to be an object whose end can be watched.
    lease = _Lease(buffer)
    weakref.finalize(lease, _give_back, buffer).atexit = False
    return np.asarray(lease).view(np.float32).reshape(shape)
