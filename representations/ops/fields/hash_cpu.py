# SPDX-License-Identifier: Apache-2.0
"""The hash encoding on the CPU: numba kernels behind an autograd function. float32 only."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..cpu_buffers import borrow
from ..cpu_jit import array, spread
from ..dtypes import require_float32
from . import hash_kernels
from .hash_grid import Encoded, HashGridSpec


def _whole(values: np.ndarray, features: int) -> np.ndarray:
    """The features of a level as one number, or as two if they are eight, to move them at once."""
    return values.view({1: np.float32, 2: np.float64}.get(features, np.complex128))


def _by_axis(x: Tensor) -> np.ndarray:
    """[N, 3] -> [3, N]"""
    out = borrow((3, len(x)))
    blocks = _blocks(len(x))
    spread(hash_kernels.by_level, blocks, array(x), blocks, out[:, :, None])
    return out


@lru_cache(maxsize=64)
def _grid(spec: HashGridSpec, used: int) -> tuple[np.ndarray, np.ndarray, int]:
    """scale [L]; offset, entries, resolution and dense [L, 4] of the levels in use; features."""
    layout = spec.layout[:used]
    scales = np.array([level.scale for level in layout], np.float32)
    shapes = np.array([(v.offset, v.entries, v.resolution, v.dense) for v in layout], np.int64)
    return scales, shapes, spec.features


def _blocks(count: int) -> int:
    """In how many parts to cut the points: the same number for each thread."""
    workers = torch.get_num_threads()
    return workers * max(1, -(-count // (workers * hash_kernels.BLOCK)))


class _Encode(torch.autograd.Function):
    """table, x -> features, jacobian; the latter without rows unless it is wanted."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, x: Tensor, spec: HashGridSpec, used: int, jacobian: bool
    ) -> tuple[Tensor, Tensor]:
        by_axis = _by_axis(x)
        ctx.save_for_backward(table, x)
        ctx.spec, ctx.used, ctx.by_axis = spec, used, by_axis
        return _run_forward(table, by_axis, spec, used, jacobian)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_slopes: Tensor) -> Any:
        table, x = ctx.saved_tensors
        spec, used = ctx.spec, ctx.used
        d_table = d_x = None
        if ctx.needs_input_grad[0]:
            # Where no kernel will write it has to be zero already.
            flat, pull = borrow((spec.parameters,)), borrow((used, len(x), spec.features))
            if used < spec.levels:
                flat[spec.layout[used].offset * spec.features :] = 0.0
            blocks, workers = _blocks(len(x)), torch.get_num_threads()
            wide = (_whole(values, spec.features) for values in (array(d_out), pull))
            spread(hash_kernels.by_level, blocks, next(wide), blocks, next(wide))
            spread(
                hash_kernels.backward, workers,
                ctx.by_axis, _grid(spec, used), workers, pull, array(d_slopes), flat,
            )  # fmt: skip
            d_table = torch.from_numpy(flat).view(table.shape)
        if ctx.needs_input_grad[1]:
            _, slopes = _run_forward(table, ctx.by_axis, spec, used, True)
            d_x = (d_out[:, :, None] * slopes).sum(1)
        return d_table, d_x, None, None, None


def _run_forward(
    table: Tensor, x: np.ndarray, spec: HashGridSpec, used: int, jacobian: bool
) -> tuple[Tensor, Tensor]:
    out = borrow((x.shape[1], spec.width))
    slopes = borrow((x.shape[1] if jacobian else 0, spec.width, 3))
    found = borrow((used, x.shape[1], spec.features))
    for result in (out, slopes):
        result[:, used * spec.features :] = 0.0
    flat, blocks = array(table).reshape(-1), _blocks(x.shape[1])
    spread(hash_kernels.forward, blocks, flat, x, _grid(spec, used), blocks, found, slopes)
    spread(
        hash_kernels.by_point, blocks,
        _whole(found, spec.features), blocks, _whole(out, spec.features),
    )  # fmt: skip
    return torch.from_numpy(out), torch.from_numpy(slopes)


def _check(table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None) -> int:
    require_float32("cpu", table=table, x=x)
    return spec.check(table, x, active)


def encode(table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None) -> Tensor:
    """Look points up; see :class:`~representations.ops.fields.hash_grid.Encode`."""
    out: Tensor = _Encode.apply(table, x, spec, _check(table, x, spec, active), False)[0]
    return out


def encode_jacobian(
    table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None
) -> Encoded:
    """Look points up; see :class:`~representations.ops.fields.hash_grid.EncodeJacobian`."""
    used = _check(table, x, spec, active)
    return Encoded(*_Encode.apply(table, x.detach(), spec, used, True))
