# SPDX-License-Identifier: Apache-2.0
"""Root finders for eq. 8, ``kappa = eps(sqrt(a) z + sqrt(1 - a) kappa)``: kappa that explains
itself.

The paper tries two (Fig. 9) and finds the inversion better. The others are what numerical analysis
offers for a map that expands, at the same price: network samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from representations.checks import require

from .noise import Noised, NoiseInput


def map_of(given: NoiseInput, cfg_scale: float) -> Callable[[Tensor], Tensor]:
    """The map of eq. 8 whose fixed point is wanted, [B, c, h, w] to the same."""
    return lambda kappa: given.predict(given.noised(kappa).x_t, given.t.device, cfg_scale)


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Iterate eq. 8, ``kappa <- eps(sqrt(a) z + sqrt(1 - a) kappa)``, from a random start.

    A comparison of the paper (Fig. 9), not a recommendation: where guidance makes the map expand,
    it diverges. One iteration at scale 1 is the correction of RFDS-Rev (arXiv 2406.03293, Alg. 2),
    written there for a velocity.
    """

    kind: Literal["fixed_point"] = "fixed_point"
    cfg_scale: float = 7.5  # of the map; the paper does not state its own
    iterations: int = 10
    damping: float = 1.0  # share of the way that an iteration goes; 1: all of it

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "noise.iterations", self.iterations, "1 or more", 10)
        require(0.0 < self.damping <= 1.0, "noise.damping", self.damping, "above 0, to 1", 0.5)

    def __call__(self, given: NoiseInput) -> Noised:
        eps, kappa = map_of(given, self.cfg_scale), given.normal()
        for _ in range(self.iterations):
            found = eps(kappa)
            kappa = found if self.damping == 1.0 else torch.lerp(kappa, found, self.damping)
        return given.noised(kappa)


@dataclass(frozen=True, kw_only=True)
class GradientDescent:
    """Descend ``|kappa - eps(x_t(kappa))|^2 / 2``, the residual of eq. 8, from a random start.

    The paper's "SGD" (Fig. 9); its optimiser and rate are not stated. Each iteration
    differentiates the network, which takes about three times the time and far more memory.
    """

    kind: Literal["gradient_descent"] = "gradient_descent"
    cfg_scale: float = 7.5
    iterations: int = 10
    rate: float = 0.1

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "noise.iterations", self.iterations, "1 or more", 10)
        require(self.rate > 0.0, "noise.rate", self.rate, "a positive number", 0.1)

    def __call__(self, given: NoiseInput) -> Noised:
        kappa = given.normal()
        for _ in range(self.iterations):
            with torch.enable_grad():
                moving = kappa.detach().requires_grad_()
                x_t = given.noised(moving).x_t
                residual = moving - given.predict(x_t, given.t.device, self.cfg_scale)
                (slope,) = torch.autograd.grad(0.5 * residual.square().sum(), moving)
            kappa = kappa - self.rate * slope
        return given.noised(kappa)


@dataclass(frozen=True, kw_only=True)
class Anderson:
    """Anderson acceleration of the fixed-point iteration of eq. 8, from a random start.

    Each iteration goes to the combination of the last maps whose residuals cancel best in the
    least squares (Walker and Ni, SIAM J. Numer. Anal. 49, 2011), sample by sample. On a linear map
    that is GMRES: the fixed point is found in as many iterations as the map has eigenvalues that
    differ, and one more.
    """

    kind: Literal["anderson"] = "anderson"
    cfg_scale: float = 7.5
    iterations: int = 10
    memory: int = 5  # differences of residuals that are combined

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "noise.iterations", self.iterations, "1 or more", 10)
        require(self.memory >= 1, "noise.memory", self.memory, "1 or more", 5)

    def __call__(self, given: NoiseInput) -> Noised:
        eps, kappa = map_of(given, self.cfg_scale), given.normal()
        maps: list[Tensor] = []  # [B, n] each
        residuals: list[Tensor] = []
        for _ in range(self.iterations):
            found = eps(kappa).flatten(1)
            maps.append(found)
            residuals.append(found - kappa.flatten(1))
            maps, residuals = maps[-self.memory - 1 :], residuals[-self.memory - 1 :]
            kappa = _combined(maps, residuals).reshape(kappa.shape)
        return given.noised(kappa)


FARTHEST = 1e3
"""Times the length of the plain iterate: a combination beyond it is no noise but the outcome of
dividing by rounding, and the plain iterate is taken."""


def _combined(maps: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """The next iterate, [B, n]."""
    if len(maps) == 1:
        return maps[0]
    changes = torch.stack(residuals, dim=2).double().diff(dim=2)  # [B, n, m]
    negligible = _rounding(maps[-1])
    share = _least_squares(changes, residuals[-1].double(), negligible)
    moves = torch.stack(maps, dim=2).double().diff(dim=2)
    plain = maps[-1].double()
    found = plain - (moves @ share).squeeze(2)
    near = found.norm(dim=1, keepdim=True) <= FARTHEST * plain.norm(dim=1, keepdim=True)
    return torch.where(near, found, plain).to(maps[-1].dtype)


def _rounding(rows: Tensor) -> Tensor:
    """Lengths [B] of which nothing is known in ``rows`` [B, n]: below them all is rounding."""
    length: Tensor = rows.double().norm(dim=1)
    return 1000.0 * torch.finfo(rows.dtype).eps * length


def _least_squares(matrix: Tensor, wanted: Tensor, negligible: Tensor) -> Tensor:
    """The x [B, m, 1] with the least ``|matrix x - wanted|``; matrix [B, n, m], wanted [B, n].
    Directions in which the matrix is shorter than ``negligible`` [B] play no part, so that
    rounding is not amplified."""
    share = torch.full_like(negligible, 1e-10)  # of the longest direction
    found: Tensor = torch.linalg.pinv(matrix, atol=negligible, rtol=share) @ wanted[:, :, None]
    return found


@dataclass(frozen=True, kw_only=True)
class NewtonKrylov:
    """Newton's method for eq. 8, from a random start: each step solves the linearised equation by
    GMRES, sample by sample, with products of the Jacobian from finite differences.

    A step costs ``krylov`` + 1 calls, and needs no derivative of the network. It is taken whole,
    so that far from a root it may lead away.
    """

    kind: Literal["newton_krylov"] = "newton_krylov"
    cfg_scale: float = 7.5
    iterations: int = 2
    krylov: int = 4  # dimensions of the space in which a step is sought
    difference: float = 0.01  # length of a finite difference, as a share of kappa's own

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "noise.iterations", self.iterations, "1 or more", 2)
        require(self.krylov >= 1, "noise.krylov", self.krylov, "1 or more", 4)
        short = 0.0 < self.difference < 1.0
        require(short, "noise.difference", self.difference, "above 0, below 1", 0.01)

    def __call__(self, given: NoiseInput) -> Noised:
        eps, kappa = map_of(given, self.cfg_scale), given.normal()
        for _ in range(self.iterations):
            kappa = kappa + self._step(eps, kappa)
        return given.noised(kappa)

    def _step(self, eps: Callable[[Tensor], Tensor], kappa: Tensor) -> Tensor:
        """The d [B, c, h, w] with the least ``|r + J d|`` in the Krylov space of the residual r,
        where J is the Jacobian of r = kappa - eps(kappa)."""
        residual = (kappa - eps(kappa)).flatten(1)
        length = self.difference * kappa.flatten(1).norm(dim=1, keepdim=True)
        basis = [_unit(residual)]
        products: list[Tensor] = []
        for _ in range(self.krylov):
            moved = kappa + (length * basis[-1]).reshape(kappa.shape)
            there = (moved - eps(moved)).flatten(1)
            products.append((there - residual) / length)
            basis.append(_unit(_orthogonal(products[-1], basis)))
        negligible = _rounding(kappa.flatten(1)) / length[:, 0]
        share = _least_squares(
            torch.stack(products, dim=2).double(), -residual.double(), negligible
        )
        step = torch.stack(basis[:-1], dim=2).double() @ share
        return step.squeeze(2).to(kappa.dtype).reshape(kappa.shape)


def _unit(rows: Tensor) -> Tensor:
    """[B, n] with length 1; rows of zeros stay."""
    length: Tensor = rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return rows / length


def _orthogonal(rows: Tensor, basis: list[Tensor]) -> Tensor:
    """What of each row [B, n] lies along none of the rows of ``basis``; asked twice, since once
    leaves rounding."""
    for _ in range(2):
        for one in basis:
            rows = rows - (rows * one).sum(dim=1, keepdim=True) * one
    return rows
