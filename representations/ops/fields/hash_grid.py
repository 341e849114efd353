# SPDX-License-Identifier: Apache-2.0
"""The multiresolution hash encoding in plain torch: defines the meaning, any dtype and device.

Instant Neural Graphics Primitives (Mueller et al. 2022, arXiv 2201.05989), sections 3 and 4, with
the numbers of tiny-cuda-nn, so that tables can be exchanged with it. Level l is a grid of
``resolution`` vertices along each axis of the unit cube. A point is looked up at
``scale * x + 0.5`` and blends the eight vertices around it linearly. Small levels are dense, every
vertex has its own row; on the others the vertices share ``2^log2_size`` rows by a hash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ...checks import readable, require

PRIMES = (1, 2654435761, 805459861)
"""Factors of the hash by axis. The first is 1 so that neighbours along x stay close in memory."""

FINEST = 2**20
"""Largest resolution: a float32 position on a finer grid keeps less than 3 bits inside a cell."""

_UINT32 = 0xFFFFFFFF


class Level(NamedTuple):
    """One grid of the encoding."""

    scale: float  # grid position = scale * x + 0.5; a float32 number
    resolution: int  # vertices along an axis
    entries: int  # rows of the table
    offset: int  # the first of them
    dense: bool  # no two vertices share a row, except those past the far faces


@dataclass(frozen=True)
class HashGridSpec:
    """The shape of the encoding. The defaults reach a resolution of 4096.

    Raises ValueError for values that no grid can have.
    """

    levels: int = 16
    features: int = 2  # per level
    log2_size: int = 19  # rows per level, at most 2^this
    base_resolution: int = 16  # of the coarsest level
    per_level_scale: float = 1.447269237440378  # each level is finer than the last by this

    def __post_init__(self) -> None:
        require(1 <= self.levels <= 32, "levels", self.levels, "1 to 32", 16)
        require(self.features in (1, 2, 4, 8), "features", self.features, "1, 2, 4 or 8", 2)
        require(1 <= self.log2_size <= 28, "log2_size", self.log2_size, "1 to 28", 19)
        base, growth = self.base_resolution, self.per_level_scale
        require(2 <= base <= FINEST, "base_resolution", base, f"2 to {FINEST}", 16)
        steps = max(self.levels - 1, 1)
        most = math.exp2(math.log2(FINEST / base) / steps)
        require(
            1.0 <= growth <= most, "per_level_scale", growth,
            f"1 to {most:.6g}, where level {self.levels} of {self.levels} reaches {FINEST}",
            min(1.5, most),
        )  # fmt: skip

    @classmethod
    def reaching(
        cls,
        max_resolution: int,
        *,
        levels: int = 16,
        features: int = 2,
        log2_size: int = 19,
        base_resolution: int = 16,
    ) -> HashGridSpec:
        """The grid whose resolutions grow evenly from ``base_resolution`` to ``max_resolution``.

        Where rounding in float32 cannot hit it, the finest resolution is the next one below.
        """
        allowed = f"base_resolution={base_resolution} to {FINEST}"
        require(
            base_resolution <= max_resolution <= FINEST,
            "max_resolution", max_resolution, allowed, base_resolution,
        )  # fmt: skip
        require(
            levels > 1 or max_resolution == base_resolution,
            "max_resolution", max_resolution, "with one level only its own resolution",
            base_resolution,
        )  # fmt: skip
        growth = (max_resolution / base_resolution) ** (1.0 / max(levels - 1, 1))
        spec = cls(levels, features, log2_size, base_resolution, growth)
        while spec.layout[-1].resolution > max_resolution:
            growth = float(np.nextafter(np.float32(growth), np.float32(0.0)))
            spec = cls(levels, features, log2_size, base_resolution, max(growth, 1.0))
        return spec

    @cached_property
    def layout(self) -> tuple[Level, ...]:
        """The levels, coarsest first.

        Each operation is rounded to float32 as a GPU does it: borderline resolutions depend on it.
        """
        log2_growth = np.float32(math.log2(np.float32(self.per_level_scale)))
        found: list[Level] = []
        offset = 0
        for index in range(self.levels):
            growth = np.float32(math.exp2(np.float32(index) * log2_growth))
            scale = float(growth * np.float32(self.base_resolution) - np.float32(1.0))
            resolution = math.ceil(scale) + 1
            entries = min(-(-(resolution**3) // 8) * 8, 2**self.log2_size)
            found.append(Level(scale, resolution, entries, offset, resolution**3 <= entries))
            offset += entries
        return tuple(found)

    @property
    def entries(self) -> int:
        """Rows of the table, all levels together."""
        return self.layout[-1].offset + self.layout[-1].entries

    @property
    def parameters(self) -> int:
        return self.entries * self.features

    @property
    def megabytes(self) -> float:
        """Size of a float32 table; Adam keeps two more of it."""
        return self.parameters * 4 / 1e6

    @property
    def width(self) -> int:
        """Features of a point, all levels together."""
        return self.levels * self.features

    def check(self, table: Tensor, x: Tensor, active: int | None) -> int:
        """How many levels are to be computed. Raises ValueError about an argument that does not
        fit the grid."""
        if tuple(table.shape) != (self.entries, self.features):
            raise ValueError(
                f"table has shape {tuple(table.shape)}, but this grid needs "
                f"{(self.entries, self.features)}: make it with torch.empty(spec.entries, "
                "spec.features)"
            )
        if x.ndim != 2 or x.shape[1] != 3:
            raise ValueError(f"x has shape {tuple(x.shape)}, but points are [N, 3]: reshape them")
        if x.dtype != table.dtype or x.device != table.device:
            raise ValueError(
                f"x is {x.dtype} on {x.device}, but the table is {table.dtype} on "
                f"{table.device}: convert one with .to(...)"
            )
        if len(x) > 0 and readable(x):
            low, high = (float(bound) for bound in x.detach().aminmax())
            if not (low >= 0.0 and high <= 1.0):  # written so that nan is caught too
                raise ValueError(
                    f"x reaches from {low} to {high}, but the grid covers [0, 1]: map the points "
                    "into the unit cube first"
                )
        if active is None:
            return self.levels
        require(1 <= active <= self.levels, "active", active, f"1 to {self.levels}", self.levels)
        return active


class Encoded(NamedTuple):
    """Features of N points and how they change with the position."""

    features: Tensor  # [N, L * F]
    jacobian: Tensor  # [N, L * F, 3] d features / d x, per unit of x


class Encode(Protocol):
    """``encode(table [E, F], x [N, 3] in [0, 1], spec, active)``: features [N, L * F].

    Level by level, coarsest first. Differentiable once in table and x. Levels from ``active`` on
    (None = there are none) are not computed: they read as zero and get no gradient.
    """

    def __call__(
        self, table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None
    ) -> Tensor: ...


class EncodeJacobian(Protocol):
    """The same with the derivative by position, which is constant along an axis inside a cell.

    Differentiable once in the table, through both results; x is a constant. With it a normal,
    the direction against the gradient of a density, trains without differentiating twice.
    """

    def __call__(
        self, table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None
    ) -> Encoded: ...


def _look_up(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Rows [N, 8] of the vertices around each point, x fastest, and the weights [N, 3, 2] of the
    lower and the upper side along each axis."""
    position = x * level.scale + 0.5
    cell = position.detach().floor()
    upper = position - cell
    vertex = cell.long()[:, :, None] + torch.arange(2, device=x.device)  # [N, 3, 2]
    i, j, k = vertex[:, 0, None, None, :], vertex[:, 1, None, :, None], vertex[:, 2, :, None, None]
    if level.dense:
        row = i + j * level.resolution + k * level.resolution**2
    else:  # products of unsigned 32-bit numbers wrap around
        row = i * PRIMES[0] ^ (j * PRIMES[1] & _UINT32) ^ (k * PRIMES[2] & _UINT32)
    return (row % level.entries).flatten(1), torch.stack([1.0 - upper, upper], dim=-1)


def _outer(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Products [N, 8] of one number [N, 2] or [2] per axis, x fastest."""
    return (c[..., :, None, None] * b[..., None, :, None] * a[..., None, None, :]).flatten(-3)


def encode(table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None) -> Tensor:
    """Look points up; see :class:`Encode`."""
    used = spec.check(table, x, active)
    # Split once: the gradient of a slice per level would be as large as the table each time.
    parts = table.split([level.entries for level in spec.layout])
    columns = []
    for level, part in zip(spec.layout[:used], parts, strict=False):
        rows, side = _look_up(x, level)
        weight = _outer(*side.unbind(1))
        columns.append((part[rows] * weight[..., None]).sum(1))
    off = x.new_zeros(len(x), spec.width - used * spec.features)
    return torch.cat([*columns, off], dim=-1)


def encode_jacobian(
    table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None
) -> Encoded:
    """Look points up with their derivative; see :class:`EncodeJacobian`."""
    used = spec.check(table, x, active)
    parts = table.split([level.entries for level in spec.layout])
    columns, slopes = [], []
    for level, part in zip(spec.layout[:used], parts, strict=False):
        rows, side = _look_up(x.detach(), level)
        a, b, c = side.unbind(1)
        step = level.scale * torch.arange(-1, 2, 2, dtype=x.dtype, device=x.device)
        step = step.expand_as(a)
        weights = torch.stack(
            [_outer(a, b, c), _outer(step, b, c), _outer(a, step, c), _outer(a, b, step)], dim=1
        )  # [N, 4, 8]
        both = weights @ part[rows]  # [N, 4, F]
        columns.append(both[:, 0])
        slopes.append(both[:, 1:].transpose(1, 2))
    off = x.new_zeros(len(x), spec.width - used * spec.features, 3)
    return Encoded(torch.cat([*columns, off[..., 0]], dim=1), torch.cat([*slopes, off], dim=1))
