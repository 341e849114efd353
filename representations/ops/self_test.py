# SPDX-License-Identifier: Apache-2.0
"""Is a back-end sound on this device? Small scenes against the reference in float64.

A kernel that was compiled for another card, or against another torch, does not fail: it draws
nonsense, or asks for absurd amounts of memory later. One picture of a few splats finds out first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..interface import Cameras
from . import MissingBackend, card
from .fields import hash_grid, ray_reference
from .fields.hash_grid import HashGridSpec
from .fields.ray_types import MarchSpec, Rays
from .splats import reference
from .splats.types import Splat, Splats

VALUE_TOLERANCE = 2e-2  # of a picture; a pixel at the edge of a splat may fall on either side
GRADIENT_TOLERANCE = 3e-2  # relative, in the norm


class Difference(NamedTuple):
    """How far a kernel is from the reference."""

    kernel: str
    value: float  # largest error of a value, relative to 1 + itself
    gradient: float  # largest relative error of a gradient, in the norm

    @property
    def sound(self) -> bool:
        """Also False for what is not a number."""
        return self.value <= VALUE_TOLERANCE and self.gradient <= GRADIENT_TOLERANCE


def splatting(splat: Splat, device: torch.device, count: int = 12, size: int = 32) -> Difference:
    """``count`` splats on two pictures of ``size`` pixels."""
    rng = torch.Generator().manual_seed(0)
    scene = [
        0.4 * torch.randn(count, 3, generator=rng),
        torch.randn(count, 4, generator=rng),
        0.1 + 0.1 * torch.rand(count, 3, generator=rng),
        0.2 + 0.6 * torch.rand(count, generator=rng),
        torch.rand(2, count, 3, generator=rng),
    ]
    pull = torch.randn(2, 5, size, size, generator=rng)
    view = torch.eye(4).repeat(2, 1, 1)
    view[:, 2, 3] = torch.tensor([2.5, 3.0])
    lens = torch.tensor([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1]]).repeat(2, 1, 1)

    def draw(how: Splat, where: torch.device, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        leaves = [t.to(where, dtype).requires_grad_() for t in scene]
        cameras = Cameras(view.to(where, dtype), lens.to(where, dtype), size, size)
        out = how(Splats(*leaves[:4]), leaves[4], cameras)
        picture = torch.cat([out.features, out.depth, out.alpha], dim=1)
        return picture, list(torch.autograd.grad((picture * pull.to(picture)).sum(), leaves))

    return _difference("splatting", draw, splat, reference.splat, device)


def encoding(encode: hash_grid.Encode, device: torch.device, count: int = 500) -> Difference:
    """``count`` points in a small hash grid, dense and hashed levels."""
    return _looking_up("hash encoding", encode, hash_grid.encode, device, count)


def slopes(
    encode_jacobian: hash_grid.EncodeJacobian, device: torch.device, count: int = 500
) -> Difference:
    """The same with the derivative by position, and the gradient through both."""

    def flat(how: hash_grid.EncodeJacobian) -> hash_grid.Encode:
        def both(table: Tensor, x: Tensor, spec: HashGridSpec, active: int | None = None) -> Tensor:
            features, jacobian = how(table, x, spec, active)
            return torch.cat([features, jacobian.flatten(1) / spec.layout[-1].scale], dim=1)

        return both

    exact = flat(hash_grid.encode_jacobian)
    return _looking_up("hash encoding with slopes", flat(encode_jacobian), exact, device, count)


def _looking_up(
    name: str,
    fast: hash_grid.Encode,
    exact: hash_grid.Encode,
    device: torch.device,
    count: int,
) -> Difference:
    spec = HashGridSpec(levels=6, log2_size=12)
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(spec.entries, spec.features, generator=rng)
    x = _inside_cells(torch.rand(2 * count, 3, generator=rng), spec)[:count]
    pull = torch.randn(len(x), 4 * spec.width, generator=rng)

    def look_up(
        how: hash_grid.Encode, where: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, list[Tensor]]:
        leaf = table.to(where, dtype).requires_grad_()
        out = how(leaf, x.to(where, dtype), spec, None)
        return out, list(torch.autograd.grad((out * pull[:, : out.shape[1]].to(out)).sum(), [leaf]))

    return _difference(name, look_up, fast, exact, device)


def _inside_cells(x: Tensor, spec: HashGridSpec) -> Tensor:
    """Those points that no rounding takes into another cell, where slopes would jump."""
    place = torch.stack([(x.double() * level.scale + 0.5) % 1.0 for level in spec.layout])
    far = (place - 0.5).abs() < 0.5 - 1e-4
    return x[far.all(dim=2).all(dim=0)]


def marching(march: Callable, composite: Callable, device: torch.device) -> Difference:  # type: ignore[type-arg]
    """Rays through a half-full cube, and a smooth density along them."""
    rng = torch.Generator().manual_seed(0)
    origins = torch.nn.functional.normalize(torch.randn(200, 3, generator=rng), dim=-1) * 3.0
    aim = 0.4 * torch.randn(200, 3, generator=rng) - origins
    occupied = torch.rand(8, 8, 8, generator=rng) > 0.5
    spec, jitter = MarchSpec(radius=1.0, step=0.05, max_samples=64), torch.rand(200, generator=rng)
    directions = torch.nn.functional.normalize(aim, dim=-1)
    clear = _away_from_borders(Rays(origins, directions), spec, jitter, len(occupied))
    origins, directions, jitter = origins[clear], directions[clear], jitter[clear]
    pull = torch.randn(len(origins), 4, generator=rng)

    def walk(
        how: tuple[Callable, Callable],  # type: ignore[type-arg]
        where: torch.device,
        dtype: torch.dtype,
    ) -> tuple[Tensor, list[Tensor]]:
        rays = Rays(origins.to(where), directions.to(where))
        samples = how[0](rays, occupied.to(where), spec, jitter.to(where))
        x = samples.positions(rays).to(dtype)
        leaves = [(4.0 * x.sin().square().sum(-1)).requires_grad_(), x.cos().requires_grad_()]
        moved = samples._replace(start=samples.start.to(dtype), end=samples.end.to(dtype))
        out = how[1](*leaves, moved, len(origins))
        seen = torch.cat([out.features, out.opacity[:, None]], dim=-1)
        return seen, list(torch.autograd.grad((seen * pull.to(seen)).sum(), leaves))

    exact = (ray_reference.march, ray_reference.composite)
    return _difference("ray marching", walk, (march, composite), exact, device)


def _away_from_borders(rays: Rays, spec: MarchSpec, jitter: Tensor, cells: int) -> Tensor:
    """Those rays [N] none of whose samples could be counted to another cell by rounding."""
    everywhere = torch.ones(cells, cells, cells, dtype=torch.bool)
    samples = ray_reference.march(rays, everywhere, spec, jitter)
    place = (samples.positions(rays) / spec.radius + 1.0) * (0.5 * cells)  # in cells
    near = ((place - place.round()).abs() < 1e-3).any(dim=-1)
    return torch.bincount(samples.ray[near], minlength=len(jitter)) == 0


def _difference(
    name: str, run: Callable, fast: object, exact: object, device: torch.device  # type: ignore[type-arg]
) -> Difference:  # fmt: skip
    value, gradients = run(fast, device, torch.float32)
    true_value, true_gradients = run(exact, torch.device("cpu"), torch.float64)
    value, true_value = value.detach().double().cpu(), true_value.detach()
    if value.shape != true_value.shape:
        return Difference(name, float("inf"), float("inf"))
    worst = 0.0
    for a, b in zip(gradients, true_gradients, strict=True):
        off = float((a.double().cpu() - b).norm() / b.norm().clamp(min=1e-12))
        worst = off if off != off else max(worst, off)  # nan stays
        if off != off:
            break
    error = float(((value - true_value).abs() / (1.0 + true_value.abs())).max())
    return Difference(name, error, worst)


INSTEAD = {"gsplat": "triton", "triton": "torch", "nerfacc": "cuda"}
"""What to draw with when a back-end does not work."""


def require_sound(name: str, trial: Callable[[], Difference]) -> None:
    """Raise MissingBackend, with what to do, unless a small ``trial`` of the back-end ``name``
    comes out right."""
    instead = f"write representation.backend={INSTEAD.get(name, 'auto')}"
    try:
        found = trial()
    except MissingBackend:
        raise
    except Exception as error:  # a compiler's, a driver's, a loader's: none may look like ours
        if card.out_of_memory(error):
            raise
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        raise MissingBackend(
            f'back-end "{name}" does not work on this machine: {type(error).__name__}: '
            f"{' | '.join(lines[-3:])}. 'sdi-gs doctor' shows what is here; {instead}"
        ) from error
    if not found.sound:
        raise MissingBackend(
            f'back-end "{name}" draws wrong pictures on this card: errors of {found.value:.2g} in '
            f"values and {found.gradient:.2g} in gradients. {_WRONG.get(name, '')}{instead}"
        )


_WRONG = dict.fromkeys(
    ("gsplat", "nerfacc"),
    "Its kernels were probably compiled for another card: remove the folder of "
    "torch_extensions that 'sdi-gs doctor' names and compile again, or ",
)
