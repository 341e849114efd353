# SPDX-License-Identifier: Apache-2.0
"""A model of random weights and the settings of runs that take well under a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml


def save_model(path: Path) -> Path:
    """A pipeline folder as save_pretrained writes it: 16-pixel pictures, 8x8 latents."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(code) for code in range(33, 127)]
    vocab = {s: i for i, s in enumerate([*letters, *(f"{c}</w>" for c in letters)])}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    text = CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=26,
        bos_token_id=vocab["<|startoftext|>"], eos_token_id=vocab["<|endoftext|>"],
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    schedule = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), unet=unet, scheduler=schedule,
        tokenizer=CLIPTokenizer(vocab=vocab, merges=[], model_max_length=26),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(path)  # fmt: skip
    return path


def save_settings(path: Path, model: Path, **changed: Any) -> Path:
    """Six steps of splats, seen by the model in the folder ``model``."""
    tree = {
        "model": {"source": str(model), "dtype": "float32"},
        "device": "cpu",
        "steps": 6,
        "batch": 2,
        "resolution": 16,
        "guidance": {"cfg_scale": 2.0},
        "noise": {"kind": "ddim_inversion", "cfg_scale": 0.0, "steps": 2},
        "representation": {
            "count": 60,
            "max_count": 80,
            "densify": {"every": 2, "start": 0.0, "stop": 1.0},
        },
        "output": {
            "preview_every": 3,
            "checkpoint_every": 2,
            "turntable": {"frames": 4, "size": 16, "format": "gif"},
        },
    }
    path.write_text("# For tests.\n" + yaml.safe_dump({**tree, **changed}, sort_keys=False))
    return path


FIELD = {
    "kind": "instant_ngp",
    "radius": 1.0,
    "grid": {
        "levels": 3, "log2_size": 10, "base_resolution": 4, "max_resolution": 12,
        "start_levels": 2, "start_step": 2, "level_every": 1,
    },
    "density": {"hidden": 8, "blob_strength": 20.0},
    "march": {"samples": 48, "max_samples": 48, "resolution": 8, "update_every": 2, "warmup": 4},
    "material": {"albedo_steps": 3},
}  # fmt: skip

FIELD_TERMS = {"orientation": 0.01, "convexity": 0.1, "z_variance": 0.1}
