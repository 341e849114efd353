# SPDX-License-Identifier: Apache-2.0
"""A card that fails in the middle of a run."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import torch

from . import tensors

MEMORY = "memory"
MESSAGES: dict[str, tuple[type[Exception], str]] = {
    MEMORY: (
        torch.OutOfMemoryError,
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB.",
    ),
    "lost": (
        torch.AcceleratorError,
        "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously "
        "reported at some other API call, so the stacktrace below might be incorrect.",
    ),
    "kernel": (RuntimeError, "Triton Error [CUDA]: an illegal memory access was encountered"),
}
"""What torch and Triton say. After all but the first nothing on the card can be used any more."""


@contextlib.contextmanager
def broken(wanted: str) -> Iterator[None]:
    """``kind@module:Name.name@3``: the third call of that function fails."""
    if not wanted:
        yield
        return
    kind, path, number = wanted.split("@")
    module, _, names = path.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = names.split(".")
    for part in outer:
        owner = getattr(owner, part)
    before = getattr(owner, name)
    setattr(owner, name, _failing(before, kind, int(number)))
    try:
        yield
    finally:
        setattr(owner, name, before)
        tensors.lost.clear()


def _failing(function: Any, kind: str, number: int) -> Any:
    calls = 0

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            error, message = MESSAGES[kind]
            if kind != MEMORY:
                tensors.lost.append(lambda: error(message))
            raise error(message)
        return function(*args, **kwargs)

    return call
