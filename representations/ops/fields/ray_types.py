# SPDX-License-Identifier: Apache-2.0
"""What a ray marcher takes and gives: the signatures all back-ends share.

A field of density and features lives in the cube [-radius, radius]^3. ``March`` lists where each
ray has to look, ``Composite`` turns what was found there into one value per ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...checks import readable

STOP = 1e-4
"""A sample that less than this share of the light reaches contributes nothing: what is lost is
about a fortieth of one step of an 8-bit picture, and a solid object costs only its surface."""

UNIT_TOLERANCE = 1e-4
"""How far the length of a direction may be from 1; float32 normalisation stays below 1e-6."""

MAX_STEPS = 2**16
"""Longest march through the cube: beyond it, step number + jitter keeps 7 bits of jitter or less
in float32, and one ray needs megabytes."""


def _same_kind(first: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, but the rest is {first.dtype} on "
                f"{first.device}: convert one with .to(...)"
            )


def _shapes(**wanted: tuple[Tensor, tuple[int, ...]]) -> None:
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but it needs {shape} here")


class Rays(NamedTuple):
    """N half lines in the world, of one floating dtype and device."""

    origins: Tensor  # [N, 3] world units
    directions: Tensor  # [N, 3] unit length

    def check(self, occupied: Tensor, jitter: Tensor) -> None:
        """Raise a ValueError about the first argument of a march that does not fit."""
        n = len(self.origins)
        _shapes(
            origins=(self.origins, (n, 3)),
            directions=(self.directions, (n, 3)),
            jitter=(jitter, (n,)),
        )
        _same_kind(self.origins, directions=self.directions, jitter=jitter)
        if occupied.dtype != torch.bool or occupied.device != self.origins.device:
            raise ValueError(
                f"occupied is {occupied.dtype} on {occupied.device}, but a march needs torch.bool "
                f"on {self.origins.device}: write (density > threshold).to(device)"
            )
        if occupied.ndim != 3 or len(set(occupied.shape)) != 1 or occupied.numel() == 0:
            raise ValueError(
                f"occupied has shape {tuple(occupied.shape)}, but the grid is a cube [R, R, R] "
                "indexed [ix, iy, iz]: reshape it"
            )
        if not readable(self.origins):
            return
        if not bool(torch.isfinite(self.origins).all()):
            raise ValueError("origins hold inf or nan, but a ray starts somewhere: mend the camera")
        off = (torch.linalg.vector_norm(self.directions, dim=-1) - 1.0).abs()
        if not bool((off <= UNIT_TOLERANCE).all()):  # written so that nan is caught too
            raise ValueError(
                f"directions have lengths up to {float(off.max()):.3g} away from 1, but distances "
                "are in world units: pass torch.nn.functional.normalize(directions, dim=-1)"
            )
        if not bool(((jitter >= 0) & (jitter < 1)).all()):
            raise ValueError(
                "jitter holds values outside [0, 1), the fraction of a step: draw it with "
                "torch.rand, or pass zeros"
            )


@dataclass(frozen=True)
class MarchSpec:
    """How finely to look, and where."""

    radius: float  # world units; the field lives in the cube [-radius, radius]^3
    step: float  # world units between samples
    max_samples: int  # per ray; the first ones are kept
    near: float = 0.0  # world units; nothing closer to the origin of a ray is seen

    def __post_init__(self) -> None:
        for name, value in (("radius", self.radius), ("step", self.step)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}, but it is a length in world units: above 0")
        if not (math.isfinite(self.near) and self.near >= 0):
            raise ValueError(f"near is {self.near}, but it is a distance: 0 or more world units")
        if self.max_samples < 1:
            raise ValueError(f"max_samples is {self.max_samples}, but a ray needs 1 or more")
        if self.steps > MAX_STEPS:
            raise ValueError(
                f"step {self.step} cuts the diagonal of the cube of radius {self.radius} into "
                f"{self.steps} pieces, at most {MAX_STEPS} are possible: write a step of "
                f"{4.0 * self.radius / MAX_STEPS:.3g} or more"
            )

    @property
    def steps(self) -> int:
        """Number of intervals that surely reach from one end of the cube to the other."""
        diagonal = 2.0 * math.sqrt(3.0) * self.radius * (1.0 + 2.0 * UNIT_TOLERANCE)
        return math.ceil(diagonal / self.step) + 2


class Samples(NamedTuple):
    """M intervals on N rays, ray after ray, nearest first."""

    ray: Tensor  # [M] int64, ascending
    start: Tensor  # [M] distance from the origin of the ray, world units
    end: Tensor  # [M] > start
    offsets: Tensor  # [N + 1] int64; the samples of ray i are offsets[i]:offsets[i + 1]

    @property
    def middle(self) -> Tensor:
        """Where the field is to be asked: distances [M] of the middles of the intervals."""
        return (self.start + self.end) * 0.5

    def positions(self, rays: Rays) -> Tensor:
        """Middles in the world, [M, 3]. With the arithmetic of the march: never outside of the
        cube, not even by rounding."""
        return rays.origins[self.ray] + self.middle[:, None] * rays.directions[self.ray]

    def check(self, sigma: Tensor, features: Tensor, rays_count: int) -> None:
        """Raise a ValueError about the first argument of a composite that does not fit."""
        m = len(self.start)
        _shapes(
            sigma=(sigma, (m,)),
            features=(features, (m, features.shape[1] if features.ndim == 2 else 1)),
            ray=(self.ray, (m,)),
            end=(self.end, (m,)),
            offsets=(self.offsets, (rays_count + 1,)),
        )
        _same_kind(sigma, features=features, start=self.start, end=self.end)
        if self.ray.dtype != torch.int64 or self.offsets.dtype != torch.int64:
            raise ValueError(
                f"ray and offsets are {self.ray.dtype} and {self.offsets.dtype}, but indices are "
                "torch.int64: pass the samples of a march unchanged"
            )
        if not readable(sigma):
            return
        whole = self.offsets[0] == 0 and self.offsets[-1] == m
        if not (bool(whole) and bool((self.offsets.diff() >= 0).all())):
            raise ValueError(
                f"offsets do not rise from 0 to the {m} samples: pass the samples of a march "
                "unchanged, or march again for a part of the rays"
            )
        if not bool((sigma >= 0).all()):  # written so that nan is caught too
            raise ValueError(
                "sigma holds negative values or nan, but light is only absorbed: pass the raw "
                "output of the field through exp or softplus"
            )


class Composited(NamedTuple):
    """What N rays see. The background is not added."""

    features: Tensor  # [N, C] sum of weight * feature
    opacity: Tensor  # [N] sum of weights, in [0, 1]
    weights: Tensor  # [M] of the samples, detached: for statistics


March = Callable[[Rays, Tensor, MarchSpec, Tensor], Samples]
"""``march(rays, occupied [R, R, R] bool, spec, jitter [N] in [0, 1))``; no gradient."""

Composite = Callable[[Tensor, Tensor, Samples, int], Composited]
"""``composite(sigma [M] per world unit, features [M, C], samples, rays_count)``, differentiable in
sigma and features."""
