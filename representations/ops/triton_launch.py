# SPDX-License-Identifier: Apache-2.0
"""Whether there is Triton, and what every launch of one of its kernels needs."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

SIZES = ("count", "pairs", "views", "channels", "width", "height", "tiles_x", "tiles_y", "tiles")
"""Arguments of kernels that Triton must not compile anew for: those that are 1, or multiples of 16.
The number of splats changes all the time."""


def interpreted() -> bool:
    """Whether kernels run on the CPU, as those that test them want it: slow, and without a card."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether Triton is installed, with the C compiler that it starts kernels by. Nothing is
    imported for the answer."""
    compilers = (os.environ.get("CC", "cc"), "gcc", "clang")
    return find_spec("triton") is not None and any(shutil.which(name) for name in compilers)


def on(tensor: Tensor) -> AbstractContextManager[object]:
    """The card of a tensor as the current one: Triton launches there. Nothing on the CPU, where
    kernels are interpreted."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def blocks(count: int, size: int) -> int:
    """Programs that cover ``count`` points with ``size`` each."""
    return -(-count // size)
