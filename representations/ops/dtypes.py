# SPDX-License-Identifier: Apache-2.0
"""What the compiled back-ends take."""

from __future__ import annotations

import torch
from torch import Tensor


def require_float32(device_type: str, **tensors: Tensor) -> None:
    """Raise a ValueError about the first tensor that a back-end for ``device_type`` ("cpu" or
    "cuda", also the back-end's name) cannot take."""
    way_out = {
        "cpu": 'convert it, or use back-end "reference"',
        "cuda": "convert it with .to(device, torch.float32)",
    }[device_type]
    place = {"cpu": "the cpu", "cuda": "a cuda device"}[device_type]
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device.type != device_type:
            raise ValueError(
                f'back-end "{device_type}" takes float32 on {place}, got {name} in '
                f"{tensor.dtype} on {tensor.device}: {way_out}"
            )
