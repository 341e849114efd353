# SPDX-License-Identifier: Apache-2.0
"""What stands behind a shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from representations.checks import require


class Background(Protocol):
    """Colours [views, 3] in [0, 1] as displayed, on the CPU; None: the representation's own
    learned surroundings."""

    def training(self, views: int, rng: Generator) -> Tensor | None:
        """Behind the pictures of a training step."""
        ...

    def still(self, views: int) -> Tensor | None:
        """Behind a picture for people."""
        ...


@dataclass(frozen=True, kw_only=True)
class SolidBackground:
    """One colour."""

    kind: Literal["solid"] = "solid"
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)  # red, green, blue in [0, 1]

    def __post_init__(self) -> None:
        within = all(0.0 <= channel <= 1.0 for channel in self.color)
        require(within, "background.color", list(self.color), "three numbers 0 to 1", [1, 1, 1])

    def training(self, views: int, rng: Generator) -> Tensor | None:
        return self.still(views)

    def still(self, views: int) -> Tensor | None:
        return torch.tensor(self.color).expand(views, 3)


@dataclass(frozen=True, kw_only=True)
class RandomBackground:
    """A new uniform colour for every view, so that no colour can hide in the background; white in
    pictures for people."""

    kind: Literal["random"] = "random"

    def training(self, views: int, rng: Generator) -> Tensor | None:
        return torch.rand(views, 3, generator=rng)

    def still(self, views: int) -> Tensor | None:
        return torch.ones(views, 3)


@dataclass(frozen=True, kw_only=True)
class EnvironmentBackground:
    """The representation's own learned surroundings."""

    kind: Literal["environment"] = "environment"

    def training(self, views: int, rng: Generator) -> Tensor | None:
        return None

    def still(self, views: int) -> Tensor | None:
        return None
