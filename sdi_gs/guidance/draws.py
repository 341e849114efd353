# SPDX-License-Identifier: Apache-2.0
"""Random numbers of a step: what a view gets does not depend on who works on it, or with what.

The views of a step may be worked on together, one after the other, or by several processes. What
is random about a view is therefore drawn for all views of the step, in one order, and each worker
takes the rows of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from representations.sending import send


@dataclass(frozen=True)
class ViewSlice:
    """Some of the views of a step, and the generator that draws for all of them."""

    rng: Generator  # in the state that it has when the step asks for its first number
    first: int  # index of the first view in the step
    total: int  # views of the step


Rng = Generator | ViewSlice
"""Whatever draws: a plain generator stands for all views of a step."""


def _source(rng: Rng, count: int) -> tuple[Generator, int, slice]:
    """The generator, how many rows to draw, and which of them are wanted."""
    if isinstance(rng, ViewSlice):
        return rng.rng, rng.total, slice(rng.first, rng.first + count)
    return rng, count, slice(None)


def normal(z: Tensor, rng: Rng) -> Tensor:
    """Standard normal of the shape of z, one row per view, drawn on the generator's device and left
    there: one seed, one result everywhere."""
    source, rows, mine = _source(rng, len(z))
    drawn = torch.randn((rows, *z.shape[1:]), generator=source, dtype=z.dtype, device=source.device)
    return drawn[mine]


def normal_like(z: Tensor, rng: Rng) -> Tensor:
    """:func:`normal` where z is."""
    return send([normal(z, rng)], z.device)[0]


def uniform(count: int, rng: Rng) -> Tensor:
    """Uniform in [0, 1), one number per view, [count] on the generator's device."""
    source, rows, mine = _source(rng, count)
    return torch.rand(rows, generator=source, device=source.device)[mine]


def of_group(values: Tensor, together: int) -> Tensor:
    """[B] with the first value of every ``together`` rows for all of them."""
    return values[::together].repeat_interleave(together) if together > 1 else values


def uniform_once(rng: Rng) -> Tensor:
    """One number in [0, 1) for all views of the step, [1]."""
    source = rng.rng if isinstance(rng, ViewSlice) else rng
    return torch.rand(1, generator=source, device=source.device)


def integer_once(high: int, rng: Rng) -> int:
    """One integer in [0, high) for all views of the step."""
    source = rng.rng if isinstance(rng, ViewSlice) else rng
    return int(torch.randint(high, (), generator=source, device=source.device))
