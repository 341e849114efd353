# SPDX-License-Identifier: Apache-2.0
"""Scenes and comparisons shared by the tests of representations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from representations.cameras import orbit
from representations.interface import Cameras
from representations.ops.splats import Splat, SplatOps, Splats, Splatted, reference


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cameras_around(
    count: int, size: tuple[int, int] = (32, 32), distance: float = 3.0, fov_y_deg: float = 40.0
) -> Cameras:
    azimuth = torch.arange(count) * (360.0 / max(count, 1)) + 20.0
    ones = torch.ones(count)
    return orbit(azimuth, 15.0 * ones, distance * ones, fov_y_deg * ones, size)


def cube_turns() -> list[tuple[Tensor, Tensor]]:
    """Rotations, without shifts, that map a cube around the origin onto itself."""
    turns = (
        [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]],
    )
    return [(torch.tensor(turn), torch.zeros(3)) for turn in turns]


def turns_about_z() -> list[tuple[Tensor, Tensor]]:
    """A rotation with a shift, and its inverse without one."""
    c, s = math.cos(0.7), math.sin(0.7)
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    return [(turn, torch.tensor([0.1, -0.05, 0.08])), (turn.T, torch.zeros(3))]


def in_dtype(cameras: Cameras, dtype: torch.dtype) -> Cameras:
    return Cameras(
        cameras.world_to_cam.to(dtype), cameras.intrinsics.to(dtype), cameras.width, cameras.height
    )


def random_splats(
    count: int, seed: int = 0, radius: float = 0.8, size: float = 0.08, opacity: float | None = None
) -> Splats:
    """Stretched splats of random orientation in a ball around the origin."""
    g = seeded(seed)
    means = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    means = means * radius * torch.rand(count, 1, generator=g) ** (1 / 3)
    scale = size * torch.exp(0.5 * torch.randn(count, 3, generator=g))
    opacities = torch.rand(count, generator=g) if opacity is None else torch.full((count,), opacity)
    return Splats(means, torch.randn(count, 4, generator=g), scale, opacities)


def on_axis_camera(
    size: int = 33, focal_px: float = 40.0, dtype: torch.dtype = torch.float64
) -> Cameras:
    """At the origin, looking along +z; an odd size puts a pixel centre on the axis."""
    intrinsics = torch.tensor(
        [[[focal_px, 0, size / 2], [0, focal_px, size / 2], [0, 0, 1]]], dtype=dtype
    )
    return Cameras(torch.eye(4, dtype=dtype)[None], intrinsics, size, size)


@torch.no_grad()
def slope_along(
    loss: Callable[[], Tensor], parameter: Tensor, direction: Tensor, step: float
) -> float:
    """Central difference of ``loss`` as ``parameter`` moves along ``direction``; it is put back."""
    before, values = parameter.detach().clone(), []
    for sign in (1, -1):
        parameter.copy_(before + sign * step * direction)
        values.append(float(loss()))
    parameter.copy_(before)
    return (values[0] - values[1]) / (2 * step)


class Outcome(NamedTuple):
    splatted: Splatted
    gradients: dict[str, Tensor]


def run(
    ops: SplatOps, splats: Splats, features: Tensor, cameras: Cameras, seed: int = 5
) -> Outcome:
    """Draw and pull back fixed random gradients on everything that has one."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in splats._asdict().items()}
    features = features.detach().clone().requires_grad_()
    out = ops.splat(Splats(**leaves), features, cameras)
    out.means2d.retain_grad()
    g = seeded(seed)
    loss = sum(
        (picture * torch.randn(picture.shape, generator=g).to(picture)).sum()
        for picture in (out.features, out.depth, out.alpha)
    )
    loss.backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    gradients["features"] = features.grad
    gradients["means2d"] = out.means2d.grad
    return Outcome(out, gradients)


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().flatten(), b.double().flatten()
    return float((a @ b) / (a.norm() * b.norm()).clamp(min=1e-30))


def relative_l2(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12))


def check_screen_gradient(splat: Splat, count: int, side: int, radius: float) -> None:
    """What densification reads: the sum of means2d.grad is the derivative of the loss by shifting
    the principal point, for moving every splat by a pixel is moving the picture."""
    splats, cameras = random_splats(count, 15, radius=radius), cameras_around(1, (side, side))
    features = torch.rand(1, count, 2, generator=seeded(16))
    target = torch.rand(1, 2, side, side, generator=seeded(17), dtype=torch.float64)
    target = torch.nn.functional.avg_pool2d(target, 9, 1, 4)

    def loss(shift_px: float) -> float:
        moved = in_dtype(cameras, torch.float64)
        moved.intrinsics[:, 0, 2] += shift_px
        double = Splats(*(t.double() for t in splats))
        return float((reference.splat(double, features.double(), moved).features * target).sum())

    leaves = Splats(*(t.clone().requires_grad_() for t in splats))
    out = splat(leaves, features, cameras)
    out.means2d.retain_grad()
    (out.features * target.float()).sum().backward()
    assert out.means2d.grad is not None
    numeric = (loss(1e-4) - loss(-1e-4)) / 2e-4
    assert float(out.means2d.grad[..., 0].sum()) == pytest.approx(numeric, rel=2e-2, abs=1e-2)
