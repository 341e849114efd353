# SPDX-License-Identifier: Apache-2.0
"""The UNet of Stable Diffusion as plain arithmetic, with the weights and the names of diffusers'
``UNet2DConditionModel`` and without a framework around them. Equal to it to rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain_layers import (
    Downsample,
    Joined,
    Plain,
    Resnet,
    Stage,
    Transformer,
    Upsample,
    normed,
    sinusoids,
    unknown,
)
from .together import PoseEmbedding

DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D")
MIDDLE = "UNetMidBlock2DCrossAttn"

# Settings of diffusers that change the arithmetic, with the values under which it is this one.
ORDINARY: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None, "projection"),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (0, 1),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": (MIDDLE,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "upcast_attention": (False, True),  # fused attention ignores it there, too
}


def why_not(config: Mapping[str, Any]) -> str | None:
    """The first setting of a ``UNet2DConditionModel`` that this arithmetic does not know; None:
    it is all here."""
    found = unknown(config, ORDINARY, {"down_block_types": DOWN, "up_block_types": UP})
    if found is not None:
        return found
    if not isinstance(config.get("cross_attention_dim"), int):
        return f"cross_attention_dim={config.get('cross_attention_dim')!r}"
    if config.get("class_embed_type") == "projection":
        told = config.get("projection_class_embeddings_input_dim")
        if not isinstance(told, int) or told < 1:
            return f"projection_class_embeddings_input_dim={told!r}"
    if config.get("norm_num_groups") is None:
        return "norm_num_groups=None"
    return None


class Output(NamedTuple):
    sample: Tensor


def _each(value: Any, blocks: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * blocks


class PlainUNet(Plain):
    """Takes the place of a ``UNet2DConditionModel`` whose ``config`` it is given.

    Raises:
        ValueError: a setting that is not in :data:`ORDINARY`; see :func:`why_not`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config, why_not(config))
        widths = list(config["block_out_channels"])
        emb = config.get("time_embedding_dim") or 4 * widths[0]
        self.conv_in = nn.Conv2d(config["in_channels"], widths[0], 3, padding=1)
        self.time_embedding = nn.ModuleDict(
            {"linear_1": nn.Linear(widths[0], emb), "linear_2": nn.Linear(emb, emb)}
        )
        self.class_embedding: nn.Module | None = None
        if config.get("class_embed_type") == "projection":
            told = config["projection_class_embeddings_input_dim"]
            self.class_embedding = PoseEmbedding(told, emb)
        make = _Maker(config, emb)
        # In the order of diffusers, in which low-rank weights are drawn.
        self.down_blocks: Any
        self.down_blocks, skips = make.down(widths)
        self.up_blocks: Any = make.up(widths, skips)
        self.mid_block: Any = make.middle(widths[-1])
        groups, eps = config["norm_num_groups"], config["norm_eps"]
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps=eps)
        self.conv_out = nn.Conv2d(widths[0], config["out_channels"], 3, padding=1)
        self.joined = Joined()
        self.rays: nn.Module | None = None  # an encoder of cameras; see mv_layers

    def asked(self) -> list[nn.Module]:
        """What every residual layer makes of the time, asked together; see
        :class:`~.plain_layers.Joined`."""
        stages = (*self.down_blocks, self.mid_block, *self.up_blocks)
        return [resnet.time_emb_proj for stage in stages for resnet in stage.resnets]

    def _time(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
        c = self.config
        emb = sinusoids(t, c.block_out_channels[0], c.flip_sin_to_cos, c.freq_shift).to(dtype)
        linear = self.time_embedding
        emb = linear["linear_2"](F.silu(linear["linear_1"](emb)))
        if self.class_embedding is not None and label is not None:
            emb = emb + self.class_embedding(label)
        return list(self.joined(F.silu(emb), self.asked()))

    def forward(
        self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] = (),
    ) -> Output:  # fmt: skip
        """Noisy latents x [B, c, h, w], times t [B], words [B, tokens, width] -> ``.sample``, the
        prediction [B, c, h, w]. ``class_labels``: what ``class_embedding`` takes, if there is one.
        ``down_intrablock_additional_residuals``: one for each stage down, added where diffusers
        adds them: behind its last layer, or behind its way down where it does not attend; and one
        for the middle, if there is one left.
        """
        features = list(down_intrablock_additional_residuals)
        words = encoder_hidden_states
        shares = iter(self._time(t, class_labels, x.dtype))
        h = self.conv_in(x)
        skips = [h]
        for stage in self.down_blocks:
            for i, resnet in enumerate(stage.resnets):
                h = _layer(stage, i, resnet(h, next(shares)), words)
                last = i == len(stage.resnets) - 1
                if features and last and (stage.attentions or not stage.downsamplers):
                    h = h + features.pop(0)
                skips.append(h)
            if stage.downsamplers is not None:
                h = stage.downsamplers[0](h)
                if features and not stage.attentions:
                    h = h + features.pop(0)
                skips.append(h)
        h = _layer(self.mid_block, 0, self.mid_block.resnets[0](h, next(shares)), words)
        h = self.mid_block.resnets[1](h, next(shares))
        if features:
            h = h + features.pop(0)
        for stage in self.up_blocks:
            for i, resnet in enumerate(stage.resnets):
                h = torch.cat([h, skips.pop()], dim=1)
                h = _layer(stage, i, resnet(h, next(shares)), words)
            if stage.upsamplers is not None:
                h = stage.upsamplers[0](h, skips[-1].shape[-2:])
        return Output(self.conv_out(normed(self.conv_norm_out, h)))


def _layer(stage: Any, i: int, h: Tensor, words: Tensor) -> Tensor:
    out: Tensor = h if stage.attentions is None else stage.attentions[i](h, words)
    return out


class _Maker:
    """The stages of a network, from its settings."""

    def __init__(self, config: Mapping[str, Any], emb: int) -> None:
        self.config, self.emb = config, emb
        n = len(config["block_out_channels"])
        self.layers = _each(config["layers_per_block"], n)
        self.depths = _each(config.get("transformer_layers_per_block", 1), n)
        # The number of heads has this name in diffusers, by an old mistake.
        self.heads = _each(config["attention_head_dim"], n)

    def resnet(self, into: int, out: int) -> Resnet:
        return Resnet(into, out, self.config["norm_num_groups"], self.config["norm_eps"], self.emb)

    def transformer(self, width: int, i: int) -> Transformer:
        return Transformer(
            width, self.heads[i], self.config["cross_attention_dim"], self.depths[i],
            self.config["norm_num_groups"], bool(self.config.get("use_linear_projection", False)),
        )  # fmt: skip

    def stage(self, widths: list[tuple[int, int]], attended: int | None, i: int) -> Stage:
        """Residual layers from and to ``widths``, and ``attended`` transformers."""
        stage = Stage(self.resnet(*pair) for pair in widths)
        if attended is not None:
            out = widths[-1][1]
            stage.attentions = nn.ModuleList(self.transformer(out, i) for _ in range(attended))
        return stage

    def down(self, widths: list[int]) -> tuple[nn.ModuleList, list[int]]:
        """The stages down, and the widths of what they leave for the way up."""
        stages, skips, into = nn.ModuleList(), [widths[0]], widths[0]
        for i, (kind, width) in enumerate(
            zip(self.config["down_block_types"], widths, strict=True)
        ):
            n = self.layers[i]
            pairs = [(into if k == 0 else width, width) for k in range(n)]
            stage = self.stage(pairs, n if kind == DOWN[1] else None, i)
            skips += [width] * n
            if i < len(widths) - 1:
                padding = self.config.get("downsample_padding", 1)
                stage.downsamplers = nn.ModuleList([Downsample(width, padding)])
                skips.append(width)
            stages.append(stage)
            into = width
        return stages, skips

    def middle(self, width: int) -> Stage:
        last = len(self.layers) - 1
        return self.stage([(width, width)] * 2, 1, last)

    def up(self, widths: list[int], skips: list[int]) -> nn.ModuleList:
        stages, h = nn.ModuleList(), widths[-1]
        for k, kind in enumerate(self.config["up_block_types"]):
            i = len(widths) - 1 - k
            pairs = []
            for _ in range(self.layers[i] + 1):
                pairs.append((h + skips.pop(), widths[i]))
                h = widths[i]
            stage = self.stage(pairs, len(pairs) if kind == UP[1] else None, i)
            if i > 0:
                stage.upsamplers = nn.ModuleList([Upsample(widths[i])])
            stages.append(stage)
        return stages
