# SPDX-License-Identifier: Apache-2.0
"""What MV-Adapter (arXiv 2412.03632) puts beside the UNet of Stable Diffusion or SDXL.

Beside every attention of a picture to itself stands another one, with weights of its own, in which
a pixel attends to its row of pixels in all views of the group (cameras at one height see a point in
rows that are near each other); the two are added. And the camera of a view, as a map of six
channels, goes through a small network of convolutions, whose features are added on the way down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain_layers import Attention

CHANNELS = 6  # of the map of a camera
RESIDUALS = 2  # layers of the encoder at each resolution


class RowAttention(Attention):
    """Attention of pictures to the same row of pixels in the ``together`` views of their group."""

    def __init__(self, width: int, heads: int, together: int) -> None:
        super().__init__(width, heads, None)
        self.together = together

    def forward(self, x: Tensor, words: Tensor | None = None) -> Tensor:
        """x [G views, side^2, width], a group's views in a row -> the same shape. ``words`` are
        not looked at. ValueError for pictures that are no squares, or no whole groups."""
        side = math.isqrt(x.shape[1])
        if side * side != x.shape[1] or x.shape[0] % self.together:
            raise ValueError(
                f"{x.shape[0]} pictures of {x.shape[1]} pixels: square pictures in groups of "
                f"{self.together} are needed"
            )
        grid = x.reshape(-1, self.together, side, side, x.shape[2])
        rows = grid.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        out = super().forward(rows, rows).reshape(-1, side, self.together, side, x.shape[2])
        return out.transpose(1, 2).reshape(x.shape)


class Beside:
    """An attention processor of diffusers to whose answer the layer's ``across`` is added."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        own: Tensor = self.inner(attn, hidden_states, *args, **kwargs)
        out: Tensor = own + attn.across(hidden_states)
        return out


class _Residual(nn.Module):
    """A convolution and one of single pixels, as a difference."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(width, width, 3, padding=1)
        self.block2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block2(F.relu(self.block1(x)))
        return out


class _Level(nn.Module):
    """The layers of the encoder that make one of its features."""

    def __init__(self, into: int, out: int, halved: bool) -> None:
        super().__init__()
        self.halved = halved
        self.in_conv = None if into == out else nn.Conv2d(into, out, 1)
        self.resnets = nn.ModuleList(_Residual(out) for _ in range(RESIDUALS))

    def forward(self, x: Tensor) -> Tensor:
        if self.halved:
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        if self.in_conv is not None:
            x = self.in_conv(x)
        for layer in self.resnets:
            x = layer(x)
        return x


class RayEncoder(nn.Module):
    """Features of the maps of cameras, under the names that diffusers' ``T2IAdapter`` has.

    ``levels``: the width of each feature, and whether it is half as large as the one before;
    ``unshuffled``: pixels along a side that are brought together in the first layer.
    """

    def __init__(self, levels: Sequence[tuple[int, bool]], unshuffled: int) -> None:
        super().__init__()
        self.unshuffled = unshuffled
        into = levels[0][0]
        self.conv_in = nn.Conv2d(CHANNELS * unshuffled**2, into, 3, padding=1)
        self.body = nn.ModuleList()
        for width, halved in levels:
            self.body.append(_Level(into, width, halved))
            into = width

    @staticmethod
    def beside(config: Any, stride: int) -> RayEncoder:
        """For a UNet of that ``config``, whose latents are ``stride`` pixels wide.

        Where the first block of the UNet attends (Stable Diffusion), there is a feature for each
        block. Where it does not (SDXL), its feature is added behind its way down, and there is one
        for the middle besides.
        """
        widths = list(config.block_out_channels)
        if "CrossAttn" in config.down_block_types[0]:
            return RayEncoder([(w, k > 0) for k, w in enumerate(widths)], stride)
        levels = [(w, k > 1) for k, w in enumerate(widths)]
        return RayEncoder([*levels, (widths[-1], False)], 2 * stride)

    def forward(self, maps: Tensor) -> list[Tensor]:
        """Maps [B, 6, H, W] -> features [B, width, h, w], from the largest to the smallest."""
        x = self.conv_in(F.pixel_unshuffle(maps, self.unshuffled))
        features = []
        for level in self.body:
            x = level(x)
            features.append(x)
        return features


def directions(poses: Tensor) -> Tensor:
    """What the encoder is told of cameras [B, 16] (camera to world, row by row; the world of
    :mod:`representations.cameras`): [B, 6] in 0 to 1.

    The direction of view, and where the camera stands as a vector of length 1, in a world whose
    front is towards -y; -1 to 1 is told as 0 to 1. The model was taught with orthographic cameras,
    all of whose rays have one direction, and in place of the moments of Pluecker coordinates it was
    told the place: so every pixel of a picture is told the same.
    """
    matrix = poses.unflatten(1, (4, 4))
    ours = torch.stack([-matrix[:, :3, 2], F.normalize(matrix[:, :3, 3], dim=1)], dim=1)
    x, y, z = ours.unbind(-1)  # the front towards +x
    theirs = torch.stack([y, -x, z], dim=-1)
    return ((theirs.flatten(1) + 1.0) / 2.0).clamp(0.0, 1.0)


def features_of(encoder: Any, poses: Tensor, size: Sequence[int]) -> list[Tensor]:
    """The features of views of ``size`` (h, w) pixels from cameras [B, 16]. A pose of zeros says
    nothing of the camera, and then nothing is added: its features are zeros."""
    dtype = encoder.conv_in.weight.dtype
    maps = directions(poses.float())[:, :, None, None].expand(-1, -1, *size)
    known = (poses != 0).any(1)[:, None, None, None].to(dtype)
    return [known * feature for feature in encoder(maps.to(dtype))]


def put(unet: nn.Module, encoder: RayEncoder, views: int) -> None:
    """Place the encoder and the second attentions in a UNet of diffusers, or the plain one, as
    ``rays`` and as ``across`` of each attention of pictures to themselves. Weights are as torch
    makes them, on the device that is the default."""
    unet.rays = encoder
    for name, module in list(unet.named_modules()):
        if name.endswith(".attn1"):
            attention: Any = module
            attention.across = RowAttention(attention.to_q.in_features, attention.heads, views)
            if hasattr(attention, "set_processor"):
                attention.set_processor(Beside(attention.processor))
