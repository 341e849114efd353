# SPDX-License-Identifier: Apache-2.0
"""Rays, samples and back-ends shared by the tests of ray marching."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from representations.ops import triton_launch
from representations.ops.fields import ray_cpu, ray_reference
from representations.ops.fields.ray_types import Composited, MarchSpec, Rays, Samples

from .helpers import seeded


class Backend(NamedTuple):
    ops: ModuleType
    dtype: torch.dtype
    rounding: float  # of a sum of some dozen numbers of size 1


BACKENDS = {
    "reference": Backend(ray_reference, torch.float64, 1e-13),
    "cpu": Backend(ray_cpu, torch.float32, 1e-6),
}


if triton_launch.available() and not torch.cuda.is_available():  # else kernels want the card
    from representations.ops.fields import ray_triton

    BACKENDS["triton, interpreted"] = Backend(ray_triton, torch.float32, 1e-6)

each_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)


def pack(rays: list[list[tuple[float, float]]], dtype: torch.dtype = torch.float64) -> Samples:
    """(start, end) of the samples of each ray."""
    counts = torch.tensor([len(ray) for ray in rays], dtype=torch.int64)
    flat = torch.tensor([pair for ray in rays for pair in ray], dtype=dtype).reshape(-1, 2)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    ray = torch.repeat_interleave(torch.arange(len(rays)), counts)
    return Samples(ray, flat[:, 0].contiguous(), flat[:, 1].contiguous(), offsets)


def evenly(a: float, b: float, count: int, dtype: torch.dtype = torch.float64) -> Samples:
    edges = [a + (b - a) * k / count for k in range(count + 1)]
    return pack([list(pairwise(edges))], dtype)


def cast(samples: Samples, dtype: torch.dtype) -> Samples:
    return samples._replace(start=samples.start.to(dtype), end=samples.end.to(dtype))


def random_samples(
    rays: int, seed: int, longest: int = 40, density: float = 2.0
) -> tuple[Tensor, Tensor, Samples]:
    """sigma, three features and samples with gaps; some rays are empty. Numbers fit float32."""
    g = seeded(seed)
    counts = torch.randint(0, longest + 1, (rays,), generator=g).tolist()
    lists = []
    for count in counts:
        cuts = torch.rand(2 * count, generator=g).cumsum(0).mul(0.1).tolist()
        lists.append(list(zip(cuts[::2], cuts[1::2], strict=True)))
    samples = pack(lists, torch.float32)
    m = len(samples.start)
    sigma = density * torch.rand(m, generator=g) * (torch.rand(m, generator=g) > 0.2)
    return sigma, torch.randn(m, 3, generator=g), samples


def pulled(
    backend: Backend, sigma: Tensor, features: Tensor, samples: Samples, seed: int = 3
) -> tuple[Composited, Tensor, Tensor]:
    """The result and its gradients under fixed random weights on features and opacity."""
    n = len(samples.offsets) - 1
    sigma = sigma.detach().to(backend.dtype).requires_grad_()
    features = features.detach().to(backend.dtype).requires_grad_()
    out = backend.ops.composite(sigma, features, cast(samples, backend.dtype), n)
    g = seeded(seed)
    loss = sum(
        (t * torch.randn(t.shape, generator=g).to(t)).sum() for t in (out.features, out.opacity)
    )
    loss.backward()
    return Composited(*(t.detach() for t in out)), sigma.grad, features.grad


def random_march(
    seed: int, count: int = 64, dtype: torch.dtype = torch.float32
) -> tuple[Rays, Tensor, MarchSpec, Tensor]:
    """Rays of every kind: from outside, inside and the faces, along axes and diagonals."""
    g = seeded(seed)
    resolution = (1, 2, 5, 16)[seed % 4]
    radius = (1.0, 0.7, 2.0)[seed % 3]
    occupied = torch.rand(resolution, resolution, resolution, generator=g) < (0.1, 0.5)[seed % 2]
    occupied |= resolution == 1  # else that grid has nothing to find
    origins = torch.randn(count, 3, generator=g) * radius * (0.3, 1.5)[seed % 2]
    towards = radius * (2 * torch.rand(count, 3, generator=g) - 1)
    origins[::7, 0] = radius  # on a face
    directions = towards - origins
    directions[1::5, 0] = 0.0
    directions[2::5, 1:] = torch.tensor([0.0, -0.0])
    directions[3::5] = torch.tensor([1.0, -1.0, 1.0])
    directions[4::20, 2] = 1e-30
    directions = torch.nn.functional.normalize(directions, dim=-1)
    jitter = torch.rand(count, generator=g) * (seed % 5 > 0)
    spec = MarchSpec(
        radius=radius,
        step=(0.013, 0.1, 0.45)[seed % 3],
        max_samples=(1000, 9)[seed // 2 % 2],
        near=(0.0, 0.3)[seed // 4 % 2],
    )
    return Rays(origins.to(dtype), directions.to(dtype)), occupied, spec, jitter.to(dtype)


def rays_of(dtype: torch.dtype, *rays: tuple[list[float], list[float]]) -> Rays:
    directions = torch.tensor([ray[1] for ray in rays], dtype=dtype)
    origins = torch.tensor([ray[0] for ray in rays], dtype=dtype)
    return Rays(origins, torch.nn.functional.normalize(directions, dim=-1))
