# SPDX-License-Identifier: Apache-2.0
"""The hash encoding in Triton behind an autograd function. float32 only.

Each level is looked up by all points before the next one, so that its part of the table stays in
the card's cache. Gradients are added up by atomics in no fixed order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..triton_launch import blocks, on
from . import triton_kernels as kernels
from .hash_grid import Encoded, HashGridSpec

BLOCK = 256  # points of a program


@lru_cache(maxsize=64)
def _grid(spec: HashGridSpec, used: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """scale [L]; offset, entries, resolution and dense [L, 4] of the levels in use."""
    layout = spec.layout[:used]
    shapes = [(v.offset, v.entries, v.resolution, int(v.dense)) for v in layout]
    scales = torch.tensor([v.scale for v in layout], dtype=torch.float32, device=device)
    return scales, torch.tensor(shapes, dtype=torch.int64, device=device)


def _forward(
    table: Tensor, x: Tensor, spec: HashGridSpec, used: int, jacobian: bool
) -> tuple[Tensor, Tensor]:
    n = len(x)
    out = x.new_zeros(n, spec.width)
    slopes = x.new_zeros(n if jacobian else 0, spec.width, 3)
    if n:
        with on(x):
            kernels.hash_forward[(blocks(n, BLOCK), used)](
                table, x, *_grid(spec, used, x.device), out, slopes, n, spec.width,
                FEATURES=spec.features, JACOBIAN=jacobian, BLOCK=BLOCK,
            )  # fmt: skip
    return out, slopes


class _Encode(torch.autograd.Function):
    """table, x -> features, jacobian; the latter without rows unless it is wanted."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, x: Tensor, spec: HashGridSpec, used: int, jacobian: bool
    ) -> tuple[Tensor, Tensor]:
        table, x = table.contiguous(), x.contiguous()
        ctx.save_for_backward(table, x)
        ctx.spec, ctx.used, ctx.jacobian = spec, used, jacobian
        return _forward(table, x, spec, used, jacobian)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_slopes: Tensor) -> Any:
        table, x = ctx.saved_tensors
        spec, used, n = ctx.spec, ctx.used, len(x)
        d_table = d_x = None
        if ctx.needs_input_grad[0]:
            d_table = torch.zeros_like(table)
            if n:
                with on(x):
                    kernels.hash_backward[(blocks(n, BLOCK), used)](
                        d_table, x, *_grid(spec, used, x.device), d_out.contiguous(),
                        d_slopes.contiguous(), n, spec.width,
                        FEATURES=spec.features, JACOBIAN=ctx.jacobian, BLOCK=BLOCK,
                    )  # fmt: skip
        if ctx.needs_input_grad[1]:
            _, slopes = _forward(table, x, spec, used, True)
            d_x = (d_out[:, :, None] * slopes).sum(1)
        return d_table, d_x, None, None, None


def encode(table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None) -> Tensor:
    """Look points up; see :class:`~representations.ops.fields.hash_grid.Encode`."""
    out: Tensor = _Encode.apply(table, x, spec, spec.check(table, x, active), False)[0]
    return out


def encode_jacobian(
    table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None
) -> Encoded:
    """Look points up; see :class:`~representations.ops.fields.hash_grid.EncodeJacobian`."""
    used = spec.check(table, x, active)
    return Encoded(*_Encode.apply(table, x.detach(), spec, used, True))
