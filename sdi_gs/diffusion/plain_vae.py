# SPDX-License-Identifier: Apache-2.0
"""The autoencoder of latent diffusion as plain arithmetic, with the weights and the names of
diffusers' ``AutoencoderKL``. Equal to it to rounding, forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain_layers import (
    Downsample,
    Joined,
    Plain,
    Pointwise,
    Resnet,
    Stage,
    Upsample,
    normed,
    picture,
    pixels,
    unknown,
)

DOWN = "DownEncoderBlock2D"
UP = "UpDecoderBlock2D"
EPS = 1e-6  # of every normalisation

ORDINARY: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "mid_block_add_attention": (True, False),
    "use_quant_conv": (True, False),
    "use_post_quant_conv": (True, False),
}


def why_not(config: Mapping[str, Any]) -> str | None:
    """The first setting of an ``AutoencoderKL`` that this arithmetic does not know; None: it is all
    here."""
    return unknown(config, ORDINARY, {"down_block_types": (DOWN,), "up_block_types": (UP,)})


class Posterior(NamedTuple):
    """A normal distribution over latents, pixel by pixel."""

    mean: Tensor  # [B, c, h, w]
    log_variance: Tensor  # [B, c, h, w]

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.log_variance.clamp(-30.0, 20.0))


class Encoded(NamedTuple):
    latent_dist: Posterior


class Decoded(NamedTuple):
    sample: Tensor


class PixelAttention(nn.Module):
    """Attention of a picture to itself with one head, as a difference to it."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.joined = Joined()

    def asked(self) -> list[nn.Module]:
        """What is asked together; see :class:`~.plain_layers.Joined`."""
        return [self.to_q, self.to_k, self.to_v]

    def forward(self, x: Tensor) -> Tensor:
        h = pixels(self.group_norm(x))
        q, k, v = (y[:, None] for y in self.joined(h, self.asked()))
        h = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + picture(h, x.shape[-2:])


def _middle(width: int, groups: int, attended: bool) -> Stage:
    stage = Stage([Resnet(width, width, groups, EPS, None) for _ in range(2)])
    if attended:
        stage.attentions = nn.ModuleList([PixelAttention(width, groups)])
    return stage


def _through_middle(stage: Stage, h: Tensor) -> Tensor:
    h = stage.resnets[0](h)
    if stage.attentions is not None:
        h = stage.attentions[0](h)
    out: Tensor = stage.resnets[1](h)
    return out


class Encoder(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        widths, groups = list(config["block_out_channels"]), config["norm_num_groups"]
        self.conv_in = nn.Conv2d(config["in_channels"], widths[0], 3, padding=1)
        self.down_blocks: Any = nn.ModuleList()
        into = widths[0]
        for i, width in enumerate(widths):
            layers = range(config["layers_per_block"])
            stage = Stage([Resnet(into if k == 0 else width, width, groups, EPS, None)
                           for k in layers])  # fmt: skip
            if i < len(widths) - 1:
                stage.downsamplers = nn.ModuleList([Downsample(width, padding=0)])
            self.down_blocks.append(stage)
            into = width
        self.mid_block = _middle(into, groups, config.get("mid_block_add_attention", True))
        self.conv_norm_out = nn.GroupNorm(groups, into, eps=EPS)
        self.conv_out = nn.Conv2d(into, 2 * config["latent_channels"], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in self.down_blocks:
            for resnet in stage.resnets:
                h = resnet(h)
            if stage.downsamplers is not None:
                h = stage.downsamplers[0](h)
        h = _through_middle(self.mid_block, h)
        out: Tensor = self.conv_out(normed(self.conv_norm_out, h))
        return out


class Decoder(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        widths, groups = list(config["block_out_channels"])[::-1], config["norm_num_groups"]
        self.conv_in = nn.Conv2d(config["latent_channels"], widths[0], 3, padding=1)
        self.mid_block = _middle(widths[0], groups, config.get("mid_block_add_attention", True))
        self.up_blocks: Any = nn.ModuleList()
        into = widths[0]
        for i, width in enumerate(widths):
            layers = range(config["layers_per_block"] + 1)
            stage = Stage([Resnet(into if k == 0 else width, width, groups, EPS, None)
                           for k in layers])  # fmt: skip
            if i < len(widths) - 1:
                stage.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(stage)
            into = width
        self.conv_norm_out = nn.GroupNorm(groups, into, eps=EPS)
        self.conv_out = nn.Conv2d(into, config["out_channels"], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = _through_middle(self.mid_block, self.conv_in(z))
        for stage in self.up_blocks:
            for resnet in stage.resnets:
                h = resnet(h)
            if stage.upsamplers is not None:
                h = stage.upsamplers[0](h, (2 * h.shape[-2], 2 * h.shape[-1]))
        out: Tensor = self.conv_out(normed(self.conv_norm_out, h))
        return out


class PlainVAE(Plain):
    """Takes the place of an ``AutoencoderKL`` whose ``config`` it is given.

    Raises:
        ValueError: a setting that this arithmetic does not know; see :func:`why_not`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config, why_not(config))
        c = config["latent_channels"]
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        asked = config.get("use_quant_conv", True), config.get("use_post_quant_conv", True)
        self.quant_conv = Pointwise(2 * c, 2 * c) if asked[0] else None
        self.post_quant_conv = Pointwise(c, c) if asked[1] else None

    def encode(self, x: Tensor) -> Encoded:
        """Pictures [B, 3, H, W] in [-1, 1] -> ``.latent_dist`` with mean and std [B, c, h, w]."""
        h = self.encoder(x)
        if self.quant_conv is not None:
            h = self.quant_conv(h)
        return Encoded(Posterior(*h.chunk(2, dim=1)))

    def decode(self, z: Tensor) -> Decoded:
        """Latents [B, c, h, w] -> ``.sample``, pictures [B, 3, H, W], about [-1, 1]."""
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return Decoded(self.decoder(z))
