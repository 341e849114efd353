# SPDX-License-Identifier: Apache-2.0
"""Several shapes of one sentence that take turns: the particles of ProlificDreamer
(arXiv 2305.16213), whose second network is taught the renderings of all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from .interface import Cameras, RefineReport, Render, Renderer, Trace

STATE_VERSION = 1


def whose_turn(step: int, count: int, seed: int) -> int:
    """Which of ``count`` shapes is drawn in ``step``: within each ``count`` steps all, once, in an
    order by chance. The publication draws one by chance each time; here no shape falls behind,
    and each is refined as often as its own schedule says."""
    turns = torch.Generator().manual_seed((seed << 20) + step // count & (1 << 63) - 1)
    return int(torch.randperm(count, generator=turns)[step % count])


class Particles:
    """Shapes that one guidance trains in turns: a :class:`representations.interface.Renderer`, as
    the one whose turn it is.

    Args:
        shapes: two or more of a kind, each made for its share of the steps, with a seed of its own.
        seed: of the order.

    Raises ValueError for fewer than two shapes.
    """

    def __init__(self, shapes: Sequence[Renderer], *, seed: int = 0) -> None:
        if len(shapes) < 2:
            raise ValueError(f"{len(shapes)} particles: two or more take turns")
        self.shapes = tuple(shapes)
        self.seed = seed
        self.turn = 0
        self.begin(0)

    def begin(self, step: int) -> None:
        """Give the turn to the shape of that step."""
        self.turn = whose_turn(step, len(self.shapes), self.seed)

    @property
    def current(self) -> Renderer:
        """Whose turn it is."""
        return self.shapes[self.turn]

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return self.current.optimizers

    @property
    def term_names(self) -> Sequence[str]:
        return self.current.term_names

    def render(self, cameras: Cameras, background: Tensor | None) -> tuple[Render, Trace]:
        return self.current.render(cameras, background)

    def terms(self, trace: Trace, names: Collection[str] | None = None) -> dict[str, Tensor]:
        return self.current.terms(trace, names)

    def refine(self, step: int, *traces: Trace) -> RefineReport:
        """Refine the shape of ``step``, whose own steps count by themselves, and pass the turn. The
        gradients that the trainer then clears are those of the next: none has any left."""
        report = self.current.refine(step // len(self.shapes), *traces)
        self.begin(step + 1)
        return report

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "turn": self.turn,
            "shapes": [shape.state_dict() for shape in self.shapes],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the state of something else, or of another number of shapes."""
        held = state.get("shapes")
        if state.get("version") != STATE_VERSION or not isinstance(held, list):
            raise ValueError(f"this is no state of particles: its entries are {sorted(state)}")
        if len(held) != len(self.shapes):
            raise ValueError(
                f"the state holds {len(held)} particles, and {len(self.shapes)} are asked for: "
                f"write particles={len(held)}"
            )
        turn = state.get("turn")
        if type(turn) is not int or not 0 <= turn < len(held):
            raise ValueError(f"the turn is {turn!r}: allowed is 0 to {len(held) - 1}")
        for shape, own in zip(self.shapes, held, strict=True):
            shape.load_state_dict(own)
        self.turn = turn


def all_shapes(renderer: Renderer) -> tuple[Renderer, ...]:
    """The shapes that a renderer holds: its particles, or itself alone."""
    return renderer.shapes if isinstance(renderer, Particles) else (renderer,)
