# SPDX-License-Identifier: Apache-2.0
"""Large arrays that kernels fill again and again, kept instead of given back to the system.

The system hands out large arrays as new pages, and clears each page when it is first touched. For
the gradient of a hash table (50 MB) that takes as long as a fifth of the kernel that fills it.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque

import numpy as np

SMALLEST = 1 << 20
"""Bytes. Smaller arrays come from the heap, where memory is used again anyway."""

KEPT = 256 << 20
"""Bytes that wait for their next use at most; beyond, those that wait longest are given back."""

_waiting: deque[np.ndarray] = deque()  # the one that waits longest first
_lock = threading.RLock()  # a collection of garbage inside of it may give a buffer back


def _rounded(size: int) -> int:
    """The next size of which there are eight between two powers of two, at most an eighth more:
    arrays whose length changes with every picture share their buffers."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


def _take(size: int) -> np.ndarray | None:
    """The buffer of exactly that size that has waited shortest."""
    with _lock:
        for place in range(len(_waiting) - 1, -1, -1):
            if _waiting[place].nbytes == size:
                buffer = _waiting[place]
                del _waiting[place]
                return buffer
    return None


class _Lease:
    """Owns a buffer for as long as an array looks at it."""

    def __init__(self, buffer: np.ndarray) -> None:
        self.__array_interface__ = buffer.__array_interface__


def _give_back(buffer: np.ndarray) -> None:
    with _lock:
        _waiting.append(buffer)
        while sum(one.nbytes for one in _waiting) > KEPT:
            _waiting.popleft()


def borrow(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised C-contiguous float32 array of any shape.

    Its memory is used again once nothing refers to it: neither the array, nor a view of it, nor a
    tensor that shares its memory.
    """
    size = math.prod(shape) * 4
    if size < SMALLEST:
        return np.empty(shape, np.float32)
    whole = _rounded(size)
    buffer = _take(whole)
    if buffer is None:
        buffer = np.empty(whole, np.uint8)
    # A view of an array refers to what owns the memory, not to the array it was made from, so
    # the owner that they all refer to has to be an object whose end can be watched.
    lease = _Lease(buffer)
    weakref.finalize(lease, _give_back, buffer).atexit = False
    return np.asarray(lease)[:size].view(np.float32).reshape(shape)
