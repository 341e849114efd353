# SPDX-License-Identifier: Apache-2.0
"""Real spherical harmonics of degree 1 to 3, in the order and sign of 3D Gaussian Splatting."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PORTION = 2**13  # splats

_C1 = math.sqrt(3.0 / (4.0 * math.pi))
_C2 = math.sqrt(15.0 / (4.0 * math.pi))
_C3 = math.sqrt(35.0 / (32.0 * math.pi))


def basis_rest(direction: Tensor, count: int) -> Tensor:
    """Basis functions after the constant: unit directions [..., 3] -> [..., count].

    ``count`` is 3, 8 or 15: degree 1, 2 or 3, within a degree from m = -l to l.
    """
    x, y, z = direction.unbind(-1)
    out = [-_C1 * y, _C1 * z, -_C1 * x]
    if count >= 8:
        out += [
            _C2 * x * y,
            -_C2 * y * z,
            math.sqrt(5.0 / (16.0 * math.pi)) * (3.0 * z * z - 1.0),
            -_C2 * x * z,
            0.5 * _C2 * (x * x - y * y),
        ]
    if count >= 15:
        out += [
            -_C3 * y * (3.0 * x * x - y * y),
            math.sqrt(105.0 / (4.0 * math.pi)) * x * y * z,
            -math.sqrt(21.0 / (32.0 * math.pi)) * y * (5.0 * z * z - 1.0),
            math.sqrt(7.0 / (16.0 * math.pi)) * z * (5.0 * z * z - 3.0),
            -math.sqrt(21.0 / (32.0 * math.pi)) * x * (5.0 * z * z - 1.0),
            math.sqrt(105.0 / (16.0 * math.pi)) * z * (x * x - y * y),
            -_C3 * x * (x * x - 3.0 * y * y),
        ]
    return torch.stack(out, dim=-1)


def evaluate_rest(coefficients: Tensor, direction: Tensor) -> Tensor:
    """Coefficients [N, K - 1, 3] at directions [B, N, 3] -> [B, N, 3]."""
    basis = basis_rest(direction, coefficients.shape[1])
    return torch.einsum("bnk,nkc->bnc", basis, coefficients)


def rotate_rest(coefficients: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients [N, K - 1, 3] of the same function on a rotated sphere.

    ``rotation`` [3, 3] maps old directions to new ones: new(rotation @ d) == old(d). Solved from
    samples: harmonics of one degree span a space that rotations map onto itself.
    """
    count = coefficients.shape[1]
    if count == 0:
        return coefficients
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(256, 3, generator=generator, dtype=torch.float64)
    sample = torch.nn.functional.normalize(sample, dim=-1)
    old = basis_rest(sample, count)
    new = basis_rest(sample @ rotation.double().T, count)
    matrix = torch.linalg.lstsq(new, old).solution  # [K - 1, K - 1]: new @ matrix == old
    # float32 is enough for float32: the rows of the matrix are unit vectors. Channels are turned
    # with the rest, which makes one product of flat rows, in portions that stay in the cache.
    whole = torch.kron(matrix.T.contiguous(), torch.eye(3, dtype=matrix.dtype))
    whole = whole.to(coefficients)
    given = coefficients.reshape(len(coefficients), 3 * count)
    if coefficients.requires_grad:
        return (given @ whole).reshape(coefficients.shape)
    turned = torch.empty_like(given)
    for some, to in zip(given.split(PORTION), turned.split(PORTION), strict=True):
        torch.mm(some, whole, out=to)
    return turned.reshape(coefficients.shape)
