# SPDX-License-Identifier: Apache-2.0
"""CLIP's text encoder as plain arithmetic, with the weights and the names of transformers'
``CLIPTextModel``. Equal to it to rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain_layers import Joined, Plain, unknown


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": _quick_gelu, "gelu": F.gelu}
DEFAULTS: dict[str, Any] = {  # of CLIPTextConfig, which its files leave out
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}  # fmt: skip


def why_not(config: Mapping[str, Any]) -> str | None:
    """The first setting of a ``CLIPTextModel`` that this arithmetic does not know; None: it is all
    here."""
    return unknown(config, {"model_type": ("clip_text_model",), "hidden_act": tuple(ACTIVATIONS)})


class States(NamedTuple):
    last_hidden_state: Tensor


class SelfAttention(nn.Module):
    """Attention of each word to itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)
        self.joined = Joined()

    def asked(self) -> list[nn.Module]:
        """What is asked together; see :class:`~.plain_layers.Joined`."""
        return [self.q_proj, self.k_proj, self.v_proj]

    def forward(self, x: Tensor) -> Tensor:
        parts = self.joined(x, self.asked())
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in parts)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return result


class Layer(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.self_attn = SelfAttention(width, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        inner = config.intermediate_size
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp["fc2"](self.act(self.mlp["fc1"](self.layer_norm2(x))))
        return out


class Table(nn.Embedding):
    """Rows that come from a file. Nobody draws them first: on the device ``meta`` that has torch
    import its compiler, which takes a second."""

    def reset_parameters(self) -> None:
        pass


class PlainTextEncoder(Plain):
    """Takes the place of a ``CLIPTextModel`` whose ``config`` it is given.

    Raises:
        ValueError: a setting that this arithmetic does not know; see :func:`why_not`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__({**DEFAULTS, **config}, why_not(config))
        c = self.config
        self.embeddings: Any = nn.ModuleDict(
            {
                "token_embedding": Table(c.vocab_size, c.hidden_size),
                "position_embedding": Table(c.max_position_embeddings, c.hidden_size),
            }
        )
        self.encoder: Any = nn.ModuleDict(
            {"layers": nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))}
        )
        self.final_layer_norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    def forward(self, ids: Tensor) -> States:
        """Numbers of words [B, n] int64 -> ``.last_hidden_state`` [B, n, width]."""
        places = self.embeddings["position_embedding"].weight[: ids.shape[1]]
        x = self.embeddings["token_embedding"](ids) + places
        for layer in self.encoder["layers"]:
            x = layer(x)
        return States(self.final_layer_norm(x))
