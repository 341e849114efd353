# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter for tensors on the card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .tensors import OnCard, bare

_prepared: set[int] = set()  # globals of the functions that the language was patched for


def _launch(run: Callable[..., Any]) -> Callable[..., Any]:
    """Kernels get the numbers of tensors on the card, and refuse others as a real launch does."""

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        for place, value in enumerate((*args, *kwargs.values())):
            if isinstance(value, Tensor) and not isinstance(value, OnCard):
                raise ValueError(
                    f"Pointer argument (at {place}) cannot be accessed from Triton (cpu tensor?)"
                )
        _prepared.clear()
        with torch._C.DisableTorchFunctionSubclass(), _disable_current_modes():
            return run(self, *bare(args), **bare(kwargs))

    return launch


def _device_function(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The interpreter patches the whole language in every call of a function; once for each launch
    is enough and takes a third of the time."""
    from triton.runtime import interpreter

    if id(self.fn.__globals__) not in _prepared:
        _prepared.add(id(self.fn.__globals__))
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


def pretend() -> None:
    from triton.runtime import interpreter

    interpreter.GridExecutor.__call__ = _launch(interpreter.GridExecutor.__call__)
    interpreter.InterpretedFunction.__call__ = _device_function


def widen() -> None:
    """More lanes in a program: the interpreter takes as long for a program of few as for one of
    many. What a lane does stays the same."""
    from representations.ops.fields import hash_triton, ray_triton
    from representations.ops.splats import triton_splats

    hash_triton.BLOCK, ray_triton.BLOCK = 1 << 15, 1 << 11
    triton_splats.LANES = triton_splats.LIST_LANES = 1 << 10
