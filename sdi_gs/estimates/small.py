# SPDX-License-Identifier: Apache-2.0
"""The estimator of mini's world: a small U-Net from a picture to the closeness of what it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "mini_depth.safetensors"
"""What ships with the package; :mod:`~sdi_gs.estimates.teach` made it."""

SIDE = 64  # pixels that it was taught with
WIDTHS = (16, 32, 64, 128)  # channels from the full size down, halved in side each time


class _Block(nn.Module):
    """Two convolutions, with what came in beside them."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, padding=1)
        self.norm = nn.GroupNorm(8, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.past = nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.past(x) + self.second(F.silu(self.norm(self.first(x))))
        return out


class SmallDepth(nn.Module):
    """Pictures [B, 3, 64, 64] in [0, 1] -> closeness [B, 1, 64, 64], up to scale and offset."""

    def __init__(self) -> None:
        super().__init__()
        ins = (3, *WIDTHS[:-1])
        self.down = nn.ModuleList(_Block(a, b) for a, b in zip(ins, WIDTHS, strict=True))
        self.middle = _Block(WIDTHS[-1], WIDTHS[-1])
        pairs = zip(WIDTHS[::-1], WIDTHS[-2::-1], strict=False)
        self.up = nn.ModuleList(_Block(a + b, b) for a, b in pairs)
        self.last = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures * 2.0 - 1.0
        kept: list[Tensor] = []
        for block in self.down:
            x = block(x if not kept else F.avg_pool2d(x, 2))
            kept.append(x)
        x = self.middle(x)
        for block, beside in zip(self.up, kept[-2::-1], strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, beside], dim=1))
        out: Tensor = self.last(x)
        return out


class Mini:
    """:class:`SmallDepth` with the weights that ship, for pictures of any size; no gradient."""

    def __init__(self, device: torch.device, weights: Path = WEIGHTS) -> None:
        from safetensors.torch import load_file

        self.model = SmallDepth()
        state = load_file(weights)
        self.model.load_state_dict({name: value.float() for name, value in state.items()})
        self.model.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        return at_size(pictures.float(), (SIDE, SIDE), self.model).to(pictures)


def at_size(
    pictures: Tensor, size: tuple[int, int] | None, ask: Callable[[Tensor], Tensor]
) -> Tensor:
    """What ``ask`` says of pictures [B, 3, H, W] that it sees in ``size`` (h, w; None: as they
    are), brought back to theirs: [B, 1, H, W]."""
    own = pictures.shape[-2:]
    if size is not None and own != size:
        pictures = F.interpolate(
            pictures, size, mode="bicubic", align_corners=False, antialias=True
        )
    said = ask(pictures)
    if said.shape[-2:] != own:
        said = F.interpolate(said, own, mode="bilinear", align_corners=False)
    return said
