# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion 2.1-base as published, without its weights.

Speed and memory do not depend on the values of weights, so a machine can be judged with random
ones, and FLOPs and bytes can be counted with none at all, on the device ``meta``. The sizes are
those of the model's own config.json files (stabilityai/stable-diffusion-2-1-base).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from .stable import StableDiffusion

UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),  # diffusers reads these as numbers of heads
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "sample_size": 768,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
TOKENS = 77


class Networks(NamedTuple):
    """The three networks, on one device and in one precision."""

    unet: Any  # 865.9 M parameters
    vae: Any  # 83.7 M
    text_encoder: Any  # 340.4 M


def networks(device: torch.device | str, dtype: torch.dtype = torch.float16) -> Networks:
    """Random weights; on ``meta``, none."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Networks(
                UNet2DConditionModel(**UNET).eval().requires_grad_(False),
                AutoencoderKL(**VAE).eval().requires_grad_(False),
                CLIPTextModel(CLIPTextConfig(**TEXT)).eval().requires_grad_(False),
            )
    finally:
        torch.set_default_dtype(before)


def from_folder(folder: Path, dtype: torch.dtype) -> Networks:
    """The networks of a model folder as they are, on ``meta``: shapes without weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(
                UNet2DConditionModel.load_config(folder, subfolder="unet")
            )
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
            text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    finally:
        torch.set_default_dtype(before)
    return Networks(*(module.eval().requires_grad_(False) for module in (unet, vae, text)))


class _Words:
    """A tokenizer that knows no language: the same words give the same numbers."""

    model_max_length = TOKENS
    bos_token_id, eos_token_id, pad_token_id = 49406, 49407, 49407

    def __call__(self, texts: list[str], **_: Any) -> Any:
        from zlib import crc32

        rows = [[crc32(f"{k} {text}".encode()) % 49406 for k in range(TOKENS - 2)]
                for text in texts]  # fmt: skip
        return type("Tokens", (), {"input_ids": rows})()


def random_stable_diffusion(
    device: torch.device | str, dtype: torch.dtype = torch.float16
) -> StableDiffusion:
    """A model of the published sizes whose predictions mean nothing."""
    from diffusers import DDIMScheduler

    made = networks(device, dtype)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    return StableDiffusion(made.unet, made.vae, made.text_encoder, _Words(), scheduler)
