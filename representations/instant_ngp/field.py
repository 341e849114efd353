# SPDX-License-Identifier: Apache-2.0
"""The radiance field: hash grid, two small heads, density, albedo and normals."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops.fields import FieldOps
from .config import InstantNGPConfig

TABLE_SPREAD = 1e-4
"""First entries are uniform in +- this (Mueller et al. 2022): nearly nothing, not exactly."""

EXPONENT_MAX = 15.0
"""exp activation: larger exponents are cut, their gradient with them; e^15 is a wall."""

GRADIENT_FLOOR = 1e-10
"""Square of the shortest density gradient that still has a direction."""


class Shading(NamedTuple):
    """The field at M points."""

    density: Tensor  # [M] >= 0, 1 / world unit
    albedo: Tensor  # [M, 3] in (0, 1)
    normal: Tensor  # [M, 3] unit, against the gradient of the density


class _Head(nn.Module):
    """features -> relu(hidden) -> out, without biases."""

    def __init__(self, width: int, hidden: int, out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = nn.Parameter(_uniform((hidden, width), width, generator))
        self.outer = nn.Parameter(_uniform((out, hidden), hidden, generator))

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = (features @ self.inner.T).relu() @ self.outer.T
        return out

    def with_gradient(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of a head with one output: its value [M] and d value / d features [M, width]."""
        hidden = features @ self.inner.T  # [M, hidden]
        slope = torch.where(hidden > 0, self.outer, torch.zeros_like(self.outer))
        return (hidden.relu() @ self.outer.T)[:, 0], slope @ self.inner


def _uniform(shape: tuple[int, int], fan_in: int, generator: torch.Generator) -> Tensor:
    bound = 1.0 / math.sqrt(fan_in)
    return (2.0 * torch.rand(shape, generator=generator) - 1.0) * bound


class Field(nn.Module):
    """Density, albedo and normal of points in the cube [-radius, radius]^3.

    The density is ``activation(head(features) + blob(|x|))``; the blob starts the run with
    something in the middle. Normals are ``-grad / |grad|`` of what goes into the activation,
    which has the direction of the density's own gradient.
    """

    def __init__(self, config: InstantNGPConfig, ops: FieldOps, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        grid = config.grid
        self.spec = grid.spec()
        first = torch.rand(self.spec.entries, grid.features, generator=generator)
        self.table = nn.Parameter((2.0 * first - 1.0) * TABLE_SPREAD)
        width, hidden = self.spec.width, config.density.hidden
        self.density_head = _Head(width, hidden, 1, generator)
        self.albedo_head = _Head(width, hidden, 3, generator)
        self.active = grid.active_levels(0)

    def _unit(self, position: Tensor) -> Tensor:
        """World [M, 3] -> the grid's [0, 1]^3."""
        radius = self.config.radius
        return ((position + radius) / (2.0 * radius)).clamp(0.0, 1.0)

    def density(self, position: Tensor) -> Tensor:
        """[M, 3] -> [M], without albedo or normals."""
        features = self.ops.encode(self.table, self._unit(position), self.spec, self.active)
        return self._activate(self.density_head(features)[:, 0] + self._blob(position))

    def albedo(self, position: Tensor) -> Tensor:
        """[M, 3] -> [M, 3] in (0, 1)."""
        features = self.ops.encode(self.table, self._unit(position), self.spec, self.active)
        albedo: Tensor = self.albedo_head(features).sigmoid()
        return albedo

    def forward(self, position: Tensor) -> Shading:
        """Everything at ``position`` [M, 3], which is a constant: no gradient flows to it."""
        position = position.detach()
        if self.config.normals == "analytic":
            features, jacobian = self.ops.encode_jacobian(
                self.table, self._unit(position), self.spec, self.active
            )
            raw, slope = self.density_head.with_gradient(features)
            in_grid = (slope[:, :, None] * jacobian).sum(1)  # [M, 3]
            gradient = in_grid / (2.0 * self.config.radius) + self._blob_gradient(position)
        else:
            features = self.ops.encode(self.table, self._unit(position), self.spec, self.active)
            raw = self.density_head(features)[:, 0]
            gradient = self._difference(position)
        length = gradient.square().sum(-1, keepdim=True).clamp(min=GRADIENT_FLOOR).sqrt()
        return Shading(
            density=self._activate(raw + self._blob(position)),
            albedo=self.albedo_head(features).sigmoid(),
            normal=-gradient / length,
        )

    def _difference(self, position: Tensor) -> Tensor:
        """Central differences of what goes into the activation, [M, 3]."""
        epsilon = self.config.normal_epsilon
        offset = epsilon * torch.eye(3, device=position.device, dtype=position.dtype)
        probes = (position[:, None] + torch.cat([offset, -offset])).reshape(-1, 3)  # [M * 6, 3]
        features = self.ops.encode(self.table, self._unit(probes), self.spec, self.active)
        raw = (self.density_head(features)[:, 0] + self._blob(probes)).reshape(-1, 2, 3)
        difference: Tensor = (raw[:, 0] - raw[:, 1]) / (2.0 * epsilon)
        return difference

    def _activate(self, raw: Tensor) -> Tensor:
        if self.config.density.activation == "exp":
            return raw.clamp(max=EXPONENT_MAX).exp()
        return nn.functional.softplus(raw)

    def _blob(self, position: Tensor) -> Tensor:
        """What is added to the raw density, [M]."""
        blob, square = self.config.density, position.square().sum(-1)
        if blob.blob == "magic3d":
            # The root is smooth at the origin, where |x| has no gradient.
            return blob.blob_strength * (1.0 - (square + 1e-12).sqrt() / blob.blob_radius)
        if blob.blob == "dreamfusion":
            return blob.blob_strength * (-0.5 * square / blob.blob_radius**2).exp()
        return torch.zeros_like(square)

    def _blob_gradient(self, position: Tensor) -> Tensor:
        """d blob / d position, [M, 3]."""
        blob, square = self.config.density, position.square().sum(-1, keepdim=True)
        if blob.blob == "magic3d":
            return -blob.blob_strength / blob.blob_radius * position / (square + 1e-12).sqrt()
        if blob.blob == "dreamfusion":
            value = blob.blob_strength * (-0.5 * square / blob.blob_radius**2).exp()
            return -value * position / blob.blob_radius**2
        return torch.zeros_like(position)
