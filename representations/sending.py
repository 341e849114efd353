# SPDX-License-Identifier: Apache-2.0
"""Numbers on their way to a card: together, and nobody waits for them.

A plain ``tensor.to("cuda")`` waits until the card has done everything that it was told to do before
(the memory that it copies from may be used again right after). From pinned memory a copy is one
more entry in the card's list. Every copy has a price of its own, so that several tensors travel as
one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNED = 256
"""Bytes between the beginnings of two tensors, at least: what an allocator of CUDA gives, and what
Triton may count on."""


def send(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """``tensors`` on ``device``. Those on the CPU are brought to a card in one copy that nobody
    waits for; they share its memory there, so that none of them may be written to."""
    device = torch.device(device)
    travelling = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    if device.type != "cuda" or not travelling:
        return [tensor.to(device) for tensor in tensors]
    places, size = [], 0
    for tensor in travelling:
        places.append(slice(size, size + tensor.nbytes))
        size += -(-tensor.nbytes // ALIGNED) * ALIGNED
    parcel = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    for tensor, place in zip(travelling, places, strict=True):
        parcel[place].view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
    there = parcel.to(device, non_blocking=True)
    unpacked = (
        there[place].view(tensor.dtype).view(tensor.shape)
        for tensor, place in zip(travelling, places, strict=True)
    )
    return [next(unpacked) if tensor.device.type == "cpu" else tensor for tensor in tensors]
