# SPDX-License-Identifier: Apache-2.0
"""Kernels, by family: one record of functions, chosen once. Below this line nobody asks for the
device.

Every family has a plain torch back-end, which defines the meaning and takes any dtype and device,
and compiled ones for float32.
"""

from __future__ import annotations

import torch

BACKENDS = ("reference", "cpu", "cuda")


class MissingBackend(RuntimeError):
    """The hardware or the package that a back-end needs is not there."""


def backend_for(device: torch.device | str, name: str | None = None) -> str:
    """The back-end ``name`` if it can work on ``device``; None means "cuda" on a CUDA device, else
    "cpu".

    Raises ValueError for a word or a combination that cannot work, and MissingBackend where there
    is no CUDA device at all.
    """
    device = torch.device(device)
    if name is None:
        return "cuda" if device.type == "cuda" else "cpu"
    if name not in BACKENDS:
        raise ValueError(f'unknown back-end "{name}": choose one of {", ".join(BACKENDS)}')
    if name == "cpu" and device.type != "cpu":
        raise ValueError(
            f'back-end "cpu" needs tensors on the cpu, got device "{device}": '
            'write device="cpu", or back-end "cuda" or "reference"'
        )
    if name == "cuda":
        if not torch.cuda.is_available():
            raise MissingBackend(
                'back-end "cuda" was asked for, but torch.cuda.is_available() is False here: '
                'use a CUDA build of torch on a machine with a GPU, or back-end "cpu"'
            )
        if device.type != "cuda":
            raise ValueError(f'back-end "cuda" needs a cuda device, got "{device}"')
    return name
