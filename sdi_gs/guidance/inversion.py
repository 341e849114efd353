# SPDX-License-Identifier: Apache-2.0
"""DDIM inversion: the probability-flow ODE from a clean sample up to a noise level.

In the rescaled sample ``x / sqrt(alpha_bar)`` it is ``dx = eps d sigma``. What can be chosen is at
which levels the network is asked, and what is believed of epsilon between them: that it stays as it
was (Euler, which is DDIM), or that it goes on as straight as before in ``u = sigma^(1/rho)``
(second-order Adams-Bashforth; with u = log sigma it would be DPM-Solver++ 2M, arXiv 2211.01095).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ..diffusion.schedule import alpha_bar_at, ddim_step, per_sample, sigma

Eps = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, c, h, w], t [B] where x_t is) -> epsilon [B, c, h, w]."""


def even_times(steps: Tensor, last: Tensor) -> Tensor:
    """Times [B, N + 1] from 0 to ``last`` [B] in ``steps`` [B] even steps. Samples with fewer steps
    than the batch's most repeat their last time, which moves nothing."""
    return (_shares(steps) * last[:, None]).round().long()


def _shares(steps: Tensor) -> Tensor:
    """How far along each step ends, [B, N + 1] in [0, 1], with N the most steps of the batch."""
    k = torch.arange(int(steps.max()) + 1, device=steps.device)
    return (k[None] / steps[:, None]).clamp(max=1.0)


def root_times(steps: Tensor, last: Tensor, alpha_bar: Tensor, rho: float) -> Tensor:
    """Times [B, N + 1] as :func:`even_times`, but even in ``u = sigma^(1/rho)`` (arXiv 2206.00364,
    eq. 5) as far as whole times of the table allow; where ``alpha_bar`` [T] is.

    For rho above 1 most steps are spent where there is little noise, in which a rendering and what
    the network expects of it differ in many small things.
    """
    return at_roots(root_plan(steps, last).to(alpha_bar.device), alpha_bar, rho)


def root_plan(steps: Tensor, last: Tensor) -> Tensor:
    """What :func:`at_roots` takes, [B, N + 2] float64: how far along each step ends, and the last
    time. It is made where the times are planned, and goes to the table in one copy."""
    return torch.cat([_shares(steps).double(), last[:, None].double()], dim=1)


def at_roots(plan: Tensor, alpha_bar: Tensor, rho: float) -> Tensor:
    """The times of :func:`root_times`; ``plan`` is where ``alpha_bar`` is."""
    shares, last = plan[:, :-1], plan[:, -1:].long()
    every = torch.arange(len(alpha_bar), device=alpha_bar.device)
    u = root_sigma(alpha_bar_at(alpha_bar.double(), every), rho)
    wanted = shares * u[last]
    above = torch.searchsorted(u, wanted).clamp(1, len(u) - 1)
    nearer = wanted - u[above - 1] < u[above] - wanted
    return torch.where(shares < 1.0, torch.where(nearer, above - 1, above), last)


def root_sigma(alpha_bar: Tensor, rho: float) -> Tensor:
    """``sigma^(1/rho)``, any shape."""
    return sigma(alpha_bar) ** (1.0 / rho)


def ddim_invert(
    z: Tensor,
    times: Tensor,
    eps: Eps,
    alpha_bar: Tensor,
    rho: float | None = None,
    heun: bool = False,
) -> Tensor:
    """Carry ``z`` [B, c, h, w] from level 0 along ``times`` [B, N + 1], which never fall.

    The noise is predicted at the level where a step starts; time 0 is the clean sample. ``rho``
    None: explicit Euler; a number: second-order Adams-Bashforth in ``u = sigma^(1/rho)``, with an
    Euler step first. ``heun``: an Euler step is made again with the mean of the noise at both its
    ends (arXiv 2206.00364, Alg. 1). Returns the sample at the last time, [B, c, h, w].
    """
    x = z
    times = times.to(z.device)
    before: tuple[Tensor, Tensor] | None = None  # where a step started, and its epsilon
    for t_from, t_to in pairwise(times.T):
        a_from, a_to = alpha_bar_at(alpha_bar, t_from), alpha_bar_at(alpha_bar, t_to)
        noise = eps(x, t_from)
        moved = ddim_step(x, noise, a_from, a_to)
        if rho is not None:
            if before is not None:
                share = _beyond(alpha_bar_at(alpha_bar, before[0]), a_from, a_to, rho).to(x.dtype)
                bent = per_sample(a_to.sqrt() * share) * (noise - before[1])
                moved = moved + bent.to(moved.dtype)
            before = t_from, noise
        elif heun:
            mean = 0.5 * (noise + eps(moved, t_to))
            moved = ddim_step(x, mean, a_from, a_to)
        x = torch.where(per_sample(t_to > t_from), moved, x)
    return x


def _beyond(a_before: Tensor, a_from: Tensor, a_to: Tensor, rho: float) -> Tensor:
    """What a step in sigma adds for each unit by which epsilon has changed in the step before it,
    if epsilon is straight in u: the integral of (u - u1) / (u1 - u0) d sigma from u1 to u2.

    Levels [B]; zero where the step before had no length.
    """
    u0, u1, u2 = (root_sigma(a.double(), rho) for a in (a_before, a_from, a_to))
    # d sigma = rho u^(rho - 1) du
    first = rho / (rho + 1.0) * (u2 ** (rho + 1.0) - u1 ** (rho + 1.0))
    whole = first - u1 * (u2**rho - u1**rho)
    length = u1 - u0
    return torch.where(length > 0.0, whole / length.clamp(min=1e-12), torch.zeros_like(whole))
