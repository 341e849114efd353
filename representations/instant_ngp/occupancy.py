# SPDX-License-Identifier: Apache-2.0
"""Which cells of the cube hold anything: rays skip the rest.

Each cell remembers the largest opacity that one step of a ray had there, and forgets it slowly
(Mueller et al. 2022, app. E; the constants are nerfacc's).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..sending import send
from .config import MarchConfig


class OccupancyGrid:
    """``occupied`` [R, R, R] bool over the cube [-radius, radius]^3, indexed [ix, iy, iz].

    Everything is occupied until the first update.
    """

    def __init__(
        self, config: MarchConfig, radius: float, step_length: float, device: torch.device
    ) -> None:
        self.config, self.radius, self.step_length = config, radius, step_length
        shape = (config.resolution,) * 3
        self.opacity = torch.zeros(shape, device=device)
        self.occupied = torch.ones(shape, dtype=torch.bool, device=device)
        self.count = self.occupied.numel()  # occupied cells, counted when they change

    def due(self, step: int) -> bool:
        return (step + 1) % self.config.update_every == 0

    @torch.no_grad()
    def update(
        self, step: int, density: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> None:
        """Look at the field ``density`` [M, 3] -> [M] at one random point of every cell (after
        the warm-up: of a quarter of the cells and of all occupied ones)."""
        resolution, device = self.config.resolution, self.opacity.device
        cells = torch.arange(resolution**3, device=device)
        if step >= self.config.warmup:
            (drawn,) = send([torch.rand(len(cells), generator=generator) < 0.25], device)
            cells = cells[drawn | self.occupied.reshape(-1)]
        index = torch.stack(
            [cells // resolution**2, cells // resolution % resolution, cells % resolution], dim=-1
        )
        (inside,) = send([torch.rand(len(cells), 3, generator=generator)], device)
        position = ((index + inside) / resolution * 2.0 - 1.0) * self.radius
        seen = 1.0 - (-density(position) * self.step_length).exp()
        memory = self.opacity.reshape(-1) * self.config.decay
        memory[cells] = torch.maximum(memory[cells], seen)
        self.opacity = memory.reshape(self.opacity.shape)
        # A field that is thin everywhere keeps its thicker half: an empty grid could never
        # learn again.
        threshold = torch.clamp(memory.mean(), max=self.config.alpha_threshold)
        self.occupied = self.opacity >= threshold
        self.count = int(self.occupied.sum())

    def state_dict(self) -> dict[str, Any]:
        return {"opacity": self.opacity, "occupied": self.occupied}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.opacity = state["opacity"].to(self.opacity)
        self.occupied = state["occupied"].to(self.occupied)
        self.count = int(self.occupied.sum())
