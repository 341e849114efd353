# SPDX-License-Identifier: Apache-2.0
"""Kernels, by family: one record of functions, chosen once. Below this line nobody asks for the
device.

Every family has a plain torch back-end, which defines the meaning and takes any dtype and device,
and compiled ones for float32. A family is chosen and tried by itself: what one of them lacks on a
machine is nothing to another.
"""

from __future__ import annotations

import torch

from . import card
from .triton_launch import interpreted

BACKENDS = ("reference", "cpu", "cuda")
"""What every family has: plain torch, numba, and whatever is best on a CUDA card."""

SAME = {"torch": "reference"}
"""Other words for them."""


class MissingBackend(RuntimeError):
    """The hardware or the package that a back-end needs is not there, or does not work."""


def backend_for(
    device: torch.device | str, name: str | None = None, more: tuple[str, ...] = ()
) -> str:
    """The back-end ``name`` if it can work on ``device``; None means "cuda" on a CUDA device, else
    "cpu". ``more``: names of CUDA back-ends that only this family has.

    Raises ValueError for a word or a combination that cannot work, and MissingBackend where there
    is no CUDA device at all.
    """
    device = torch.device(device)
    if name is None:
        return "cuda" if device.type == "cuda" else "cpu"
    name = SAME.get(name, name)
    if name not in (*BACKENDS, *more):
        words = (*BACKENDS, *SAME, *more)
        raise ValueError(f'unknown back-end "{name}": choose one of {", ".join(words)}')
    if name == "cpu" and device.type != "cpu":
        raise ValueError(
            f'back-end "cpu" needs tensors on the cpu, got device "{device}": '
            'write device="cpu", or back-end "cuda" or "reference"'
        )
    if name in ("cuda", *more) and not (name == "triton" and interpreted()):
        if not torch.cuda.is_available():
            raise MissingBackend(
                f'back-end "{name}" was asked for, but torch.cuda.is_available() is False here: '
                f'{card.missing()}. Or write back-end "cpu"'
            )
        if device.type != "cuda":
            raise ValueError(
                f'back-end "{name}" needs a cuda device, got "{device}": write device="cuda", or '
                'back-end "cpu"'
            )
    return name
