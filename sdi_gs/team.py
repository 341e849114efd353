# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one asset, each on its share of the views of a step.

Started by torchrun, every process builds the same shape from the same seed, draws the same random
numbers, and differs in the views it works on only. Gradients, and what a representation counts per
view, are added up over the team, so that all do the same optimiser step: the result is that of one
process with the same batch, up to the order of a sum.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from representations.interface import Alone

from .errors import UserError


class Team(Alone):
    """One process alone, and what it has in common with others: see :class:`Processes`."""

    rank = 0  # of this process

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether one of the team says so."""
        return bool(self.greatest(torch.full((), float(flag), device=device))) if flag else False

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over the team."""


ALONE = Team()


class Processes(Team):
    """The processes of a torchrun, joined."""

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    def total(self, values: Tensor) -> Tensor:
        """Sum over the team, the same bits everywhere."""
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
        return values

    def greatest(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        return bool(self.greatest(torch.full((), float(flag), device=device)))

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """In one message, because there are many small ones. A parameter that no view of this
        process has touched counts as zero."""
        known = list(parameters)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in known]
        flat = self.total(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        sizes = [p.numel() for p in known]
        for parameter, values in zip(known, flat.split(sizes), strict=True):
            parameter.grad = values.view_as(parameter)


def asked_for() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[Team]:
    """The team of this process; alone unless torchrun started it."""
    if not asked_for():
        yield ALONE
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes()
    finally:
        dist.destroy_process_group()


def share(team: Team, batch: int, micro_batch: int | None, together: int = 1) -> list[slice]:
    """The micro-batches of a step that this process works on; ``together`` views stay side by side.

    Raises:
        UserError: the numbers do not divide.
    """
    if batch % (team.count * together):
        step = team.count * together
        why = f"by {team.count} processes"
        if together > 1:
            why = f"in groups of {together} views, which this model sees together, {why}"
        raise UserError(
            f"batch={batch} views cannot be shared evenly {why}: write a "
            f"multiple of {step}, such as batch={step * max(1, batch // step)}"
        )
    mine = batch // team.count
    portion = mine if micro_batch is None else micro_batch
    if mine % portion or portion % together:
        fits = [n for n in range(together, mine + 1, together) if mine % n == 0]
        raise UserError(
            f"micro_batch={portion} does not divide the {mine} views that a process has of "
            f"batch={batch}: write one of {', '.join(map(str, fits))}"
        )
    start = team.rank * mine
    return [slice(first, first + portion) for first in range(start, start + mine, portion)]
