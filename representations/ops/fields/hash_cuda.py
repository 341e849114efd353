# SPDX-License-Identifier: Apache-2.0
"""The hash encoding on a CUDA device: tinycudann where it is installed, else our Triton kernels,
else the reference on CUDA tensors. float32 only.

tinycudann must be compiled for the GPU at hand and is not on PyPI, so it is never required; it has
no derivative by position, which is Triton's in any case. Both add gradients up in no fixed order:
two runs agree to rounding, not bit for bit.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import triton_launch
from ..dtypes import require_float32
from . import hash_grid
from .hash_grid import Encoded, HashGridSpec


@lru_cache(maxsize=1)
def _tinycudann() -> Any:
    try:
        import tinycudann
    except (ImportError, OSError):  # OSError: it finds no GPU, or was compiled for another one
        return None
    return tinycudann


@lru_cache(maxsize=64)
def _module(spec: HashGridSpec, used: int, device: torch.device) -> Any:
    """tinycudann's encoding for the first ``used`` levels, without parameters of its own."""
    with torch.cuda.device(device):
        module = _tinycudann().Encoding(
            n_input_dims=3,
            encoding_config={
                "otype": "HashGrid",
                "n_levels": used,
                "n_features_per_level": spec.features,
                "log2_hashmap_size": spec.log2_size,
                "base_resolution": spec.base_resolution,
                "per_level_scale": spec.per_level_scale,
                "interpolation": "Linear",
            },
            dtype=torch.float32,
        )
    expected = _numbers(spec, used)
    if module.params.numel() != expected:
        raise RuntimeError(
            f"tinycudann lays out {module.params.numel()} parameters for {spec}, expected are "
            f'{expected}: install another version of it, or use back-end "reference"'
        )
    module.params = torch.nn.Parameter(torch.empty(0, device=device), requires_grad=False)
    return module


def _numbers(spec: HashGridSpec, used: int) -> int:
    last = spec.layout[used - 1]
    return (last.offset + last.entries) * spec.features


def _kernels() -> ModuleType:
    if not triton_launch.available():
        return hash_grid
    from . import hash_triton

    return hash_triton


def encode(table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None) -> Tensor:
    """Look points up; see :class:`~representations.ops.fields.hash_grid.Encode`."""
    require_float32("cuda", table=table, x=x)
    if len(x) == 0 or _tinycudann() is None:
        out: Tensor = _kernels().encode(table, x, spec, active)
        return out
    used = spec.check(table, x, active)
    # Our table takes the place of the module's parameters for this call: same layout, one owner.
    params = table.reshape(-1)[: _numbers(spec, used)]
    with torch.cuda.device(table.device):
        module = _module(spec, used, table.device)
        out = torch.func.functional_call(module, {"params": params}, (x,))
    return torch.nn.functional.pad(out, (0, spec.width - used * spec.features))


def encode_jacobian(
    table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None
) -> Encoded:
    """Look points up; see :class:`~representations.ops.fields.hash_grid.EncodeJacobian`."""
    require_float32("cuda", table=table, x=x)
    out: Encoded = _kernels().encode_jacobian(table, x, spec, active)
    return out
