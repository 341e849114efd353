# SPDX-License-Identifier: Apache-2.0
"""What the compiled back-ends take."""

from __future__ import annotations

import torch
from torch import Tensor

from .triton_launch import interpreted


def require_float32(backend: str, **tensors: Tensor) -> None:
    """Raise a ValueError about the first tensor that ``backend`` cannot take: "cpu" takes float32
    on the cpu, all others on a CUDA device; "triton", where it is interpreted, on both."""
    places = {"cpu": ("cpu",), "triton": ("cpu", "cuda") if interpreted() else ("cuda",)}
    allowed = places.get(backend, ("cuda",))
    if backend == "cpu":
        place, way_out = "the cpu", 'convert it, or use back-end "reference"'
    else:
        place, way_out = "a cuda device", "convert it with .to(device, torch.float32)"
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device.type not in allowed:
            raise ValueError(
                f'back-end "{backend}" takes float32 on {place}, got {name} in '
                f"{tensor.dtype} on {tensor.device}: {way_out}"
            )
