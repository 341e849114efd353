# SPDX-License-Identifier: Apache-2.0
"""The layers of latent diffusion networks as plain arithmetic, under the names that diffusers gives
their weights.

What several layers ask of one input is one product: :meth:`Joined.join` puts their weights side by
side, and the layers keep views of them, so that nothing is held twice and a layer that something
else has taken the place of (a low-rank one) is asked by itself again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Joined(nn.Module):
    """Linear layers without bias, or all with one, that are asked the same."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", None, persistent=False)
        self.register_buffer("bias", None, persistent=False)

    @torch.no_grad()
    def join(self, layers: Sequence[nn.Module]) -> None:
        """One product from now on. The layers' weights become views of it."""
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        if len(linear) != len(layers):
            return
        self.weight = torch.cat([layer.weight for layer in linear])
        ends = [layer.out_features for layer in linear]
        for layer, part in zip(linear, self.weight.split(ends), strict=True):
            layer.weight = nn.Parameter(part, requires_grad=False)
        if linear[0].bias is not None:
            self.bias = torch.cat([layer.bias for layer in linear])
            for layer, part in zip(linear, self.bias.split(ends), strict=True):
                layer.bias = nn.Parameter(part, requires_grad=False)

    def forward(self, x: Tensor, layers: Sequence[nn.Module]) -> Sequence[Tensor]:
        """What each of ``layers`` makes of x [..., in]."""
        own = self.weight is not None and all(isinstance(layer, nn.Linear) for layer in layers)
        if not own:
            return [layer(x) for layer in layers]
        out = F.linear(x, self.weight, self.bias)  # type: ignore[arg-type]
        ends: list[Any] = [layer.out_features for layer in layers]
        parts: Sequence[Tensor] = out.split(ends, dim=-1)
        return parts


def unknown(
    config: Mapping[str, Any],
    ordinary: Mapping[str, Sequence[Any]],
    blocks: Mapping[str, Sequence[str]] | None = None,
) -> str | None:
    """The first setting of ``config`` that is none of the ``ordinary`` ones, or the first block
    type that is none of ``blocks``; None where all is known. What is left out is ordinary."""
    for key, known in ordinary.items():
        if key in config and config[key] not in known:
            return f"{key}={config[key]!r}"
    for key, kinds in (blocks or {}).items():
        for kind in config[key]:
            if kind not in kinds:
                return f"{key} with {kind!r}"
    return None


class Plain(nn.Module):
    """A network whose ``config`` is that of the published class, read as attributes.

    ``reason``: why its arithmetic does not know the settings; ValueError unless it is None.
    """

    def __init__(self, config: Mapping[str, Any], reason: str | None) -> None:
        super().__init__()
        if reason is not None:
            raise ValueError(f"{type(self).__name__} does not know {reason}")
        self.config = SimpleNamespace(**config)


def join_all(network: nn.Module) -> None:
    """Join whatever layers of ``network`` are asked together (they say so in ``asked()``), once its
    weights are where they stay, in the precision that they keep."""
    for module in network.modules():
        joined = getattr(module, "joined", None)
        if isinstance(joined, Joined):
            joined.join(module.asked())  # type: ignore[operator]


def normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """SiLU of the normalised x, in place where nobody wants a gradient."""
    h = norm(x)
    return F.silu(h, inplace=not torch.is_grad_enabled())


class Pointwise(nn.Conv2d):
    """A convolution of single pixels: a product with the pixels' channels."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, into, h, w] -> [B, out, h, w]."""
        out = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return out.permute(0, 3, 1, 2)


class Resnet(nn.Module):
    """Two convolutions and a way past them."""

    def __init__(self, into: int, out: int, groups: int, eps: float, width: int | None) -> None:
        """``width``: of the time embedding; None: the layer is not told the time."""
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, into, eps=eps)
        self.conv1 = nn.Conv2d(into, out, 3, padding=1)
        self.time_emb_proj = None if width is None else nn.Linear(width, out)
        self.norm2 = nn.GroupNorm(groups, out, eps=eps)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = None if into == out else Pointwise(into, out)

    def forward(self, x: Tensor, share: Tensor | None = None) -> Tensor:
        """x [B, into, h, w], ``share`` [B, out] of the time -> [B, out, h, w]."""
        h = self.conv1(normed(self.norm1, x))
        if share is not None:
            h = h + share[:, :, None, None]
        h = self.conv2(normed(self.norm2, h))
        past: Tensor = x if self.conv_shortcut is None else self.conv_shortcut(x)
        out: Tensor = past + h
        return out


class Stage(nn.Module):
    """One resolution on the way down, in the middle or up: residual layers, what stands behind each
    of them, and the way to the next resolution."""

    def __init__(self, resnets: Iterable[nn.Module]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions: Any = None  # lists of modules, where there are some
        self.downsamplers: Any = None
        self.upsamplers: Any = None


class Attention(nn.Module):
    """Attention of pictures to themselves, or to words."""

    def __init__(self, width: int, heads: int, words: int | None) -> None:
        super().__init__()
        self.heads, self.to_itself = heads, words is None
        self.views = 1  # rows that attend to each other
        self.across: Any = None  # a module [B, n, width] -> the same, that is added
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(words or width, width, bias=False)
        self.to_v = nn.Linear(words or width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.joined = Joined()

    def asked(self) -> list[nn.Module]:
        """What is asked together; see :class:`Joined`."""
        both: list[nn.Module] = [self.to_k, self.to_v]
        return [self.to_q, *both] if self.to_itself else both

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """x [B, n, width], words [B, tokens, words] -> [B, n, width]."""
        rows, given = x.shape[0], x
        if self.to_itself:
            x = x.reshape(rows // self.views, -1, x.shape[-1])
            q, k, v = self.joined(x, self.asked())
        else:
            q, (k, v) = self.to_q(x), self.joined(words, self.asked())
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.to_out[0](out.transpose(1, 2).flatten(2))
        result = result.reshape(rows, -1, result.shape[-1])
        return result if self.across is None else result + self.across(given)


class Gated(nn.Module):
    """GEGLU: one half times the GELU of the other."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [Gated(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net[2](self.net[0](x))
        return out


class Block(nn.Module):
    """Attention to the picture, attention to the words, and a network between."""

    def __init__(self, width: int, heads: int, words: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, None)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, words)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x), words)
        x = x + self.attn2(self.norm2(x), words)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class Transformer(nn.Module):
    """Blocks over the pixels of a picture, as a difference to it."""

    def __init__(
        self, width: int, heads: int, words: int, depth: int, groups: int, linear: bool
    ) -> None:
        """``linear``: the first and last layer were written as linear ones, not convolutions."""
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.linear = linear
        self.proj_in, self.proj_out = (
            nn.Linear(width, width) if linear else Pointwise(width, width) for _ in range(2)
        )
        self.transformer_blocks = nn.ModuleList(Block(width, heads, words) for _ in range(depth))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """x [B, width, h, w] -> the same shape."""
        size = x.shape[-2:]
        h = self.norm(x)
        h = self.proj_in(pixels(h)) if self.linear else pixels(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, words)
        if self.linear:
            return x + picture(self.proj_out(h), size)
        out: Tensor = x + self.proj_out(picture(h, size))
        return out


def pixels(x: Tensor) -> Tensor:
    """[B, c, h, w] -> [B, h w, c]; nothing is moved when channels come last in memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def picture(x: Tensor, size: Sequence[int]) -> Tensor:
    """[B, h w, c] -> [B, c, h, w]; channels stay last in memory."""
    out: Tensor = x.unflatten(1, tuple(size)).permute(0, 3, 1, 2)
    return out


class Downsample(nn.Module):
    """Half the size by a convolution of stride 2."""

    def __init__(self, width: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.padding == (0, 0):
            x = F.pad(x, (0, 1, 0, 1))
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """The nearest pixel, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """x [B, width, h, w] -> [B, width, *size]."""
        out: Tensor = self.conv(F.interpolate(x, size=tuple(size), mode="nearest"))
        return out


def sinusoids(t: Tensor, width: int, flip: bool, shift: float) -> Tensor:
    """Times [B] as ``width`` cosines and sines of falling frequency, [B, width] float32.

    ``flip``: cosines first; ``shift``: 0 or 1, in the denominator of the exponent.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    # In the order of diffusers: at t = 999 another rounding of the exponent is one of 1e-6 here.
    exponent = -math.log(10000.0) * steps / (half - shift)
    angle = t[:, None].float() * torch.exp(exponent)[None]
    first, second = (angle.cos(), angle.sin()) if flip else (angle.sin(), angle.cos())
    out = torch.cat([first, second], dim=-1)
    return F.pad(out, (0, width % 2))
