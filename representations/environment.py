# SPDX-License-Identifier: Apache-2.0
"""A learned background: the colour of a ray that meets nothing, by its direction alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .cameras import rays
from .interface import Cameras


class Environment(nn.Module):
    """Low harmonics of the direction, one small hidden layer, sigmoid.

    Too small to paint an object on the sky. Starts as even mid grey. The first weights come from
    ``generator``.
    """

    FEATURES = 8  # harmonics of degree 1 and 2

    def __init__(self, generator: torch.Generator, hidden: int = 16) -> None:
        super().__init__()
        self.inner = nn.Linear(self.FEATURES, hidden)
        self.outer = nn.Linear(hidden, 3)
        with torch.no_grad():
            weight = torch.randn(hidden, self.FEATURES, generator=generator)
            self.inner.weight.copy_(weight / self.FEATURES**0.5)
            self.inner.bias.zero_()
            self.outer.weight.zero_()
            self.outer.bias.zero_()

    def forward(self, cameras: Cameras) -> Tensor:
        """Background pictures [B, 3, H, W] in (0, 1)."""
        _, direction = rays(cameras)  # [B, H, W, 3], unit
        x, y, z = direction.unbind(-1)
        features = torch.stack(
            [x, y, z, x * y, y * z, z * x, x * x - y * y, 3.0 * z * z - 1.0], dim=-1
        )
        hidden = torch.nn.functional.silu(self.inner(features))
        picture: Tensor = self.outer(hidden).sigmoid().permute(0, 3, 1, 2)
        return picture


def background_pictures(
    background: Tensor | None, environment: nn.Module, cameras: Cameras
) -> Tensor:
    """[B, 3] colours as pictures [B, 3, 1, 1], or the learned environment [B, 3, H, W] for None."""
    if background is None:
        picture: Tensor = environment(cameras)
        return picture
    if tuple(background.shape) != (len(cameras), 3):
        raise ValueError(
            f"background has shape {tuple(background.shape)}, {len(cameras)} cameras need "
            f"({len(cameras)}, 3): one colour per view, or None for the learned environment"
        )
    return background[:, :, None, None]
