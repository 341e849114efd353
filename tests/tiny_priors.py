# SPDX-License-Identifier: Apache-2.0
"""Model folders of random weights, one for each family of priors, by the published classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

LETTERS = [chr(code) for code in range(33, 127)]


def clip_tokenizer(longest: int = 26, pad: str = "<|endoftext|>") -> Any:
    """A tokenizer whose words are letters."""
    from transformers import CLIPTokenizer

    vocab = {s: i for i, s in enumerate([*LETTERS, *(f"{c}</w>" for c in LETTERS)])}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=longest, pad_token=pad)


def t5_tokenizer() -> Any:
    """A tokenizer whose words are small letters, as DeepFloyd IF's prompts are written."""
    from transformers import T5TokenizerFast

    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(chr(code), -3.0) for code in (*range(97, 123), 44, 46)]
    return T5TokenizerFast(vocab=[*words, *letters], extra_ids=0)


def clip_config(width: int, projection: int, layers: int = 2, longest: int = 26) -> Any:
    from transformers import CLIPTextConfig

    count = 2 * len(LETTERS) + 2
    return CLIPTextConfig(
        vocab_size=count, hidden_size=width, intermediate_size=16, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=longest, projection_dim=projection,
        bos_token_id=count - 2, eos_token_id=count - 1,
    )  # fmt: skip


def t5_encoder(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=40, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config)


def vae(channels: int = 4, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=channels,
        **more,
    )  # fmt: skip


def unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    known: dict[str, Any] = {
        "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16,
        "attention_head_dim": 2,
    }  # fmt: skip
    return UNet2DConditionModel(**{**known, **more})


def ddim(**more: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        **more,
    )


def stable(path: Path, own: Any = None, **schedule: Any) -> Path:
    """``own``: another UNet than the tiny one."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=vae(), text_encoder=CLIPTextModel(clip_config(16, 16)), tokenizer=clip_tokenizer(),
        unet=own or unet(), scheduler=ddim(**schedule), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)  # fmt: skip
    return path


def multi_view(path: Path) -> Path:
    """Four views side by side: a pipeline of Stable Diffusion whose UNet is told of cameras."""
    import json

    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    told = unet(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    StableDiffusionPipeline(
        vae=vae(), text_encoder=CLIPTextModel(clip_config(16, 16)), tokenizer=clip_tokenizer(),
        unet=told, scheduler=ddim(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)  # fmt: skip
    index = json.loads((path / "model_index.json").read_text())
    index |= {"_class_name": "MultiViewStableDiffusionPipeline", "views_together": 4}
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def stable_v(path: Path) -> Path:
    """As Stable Diffusion 2.1 at 768, taught to the end of the noise."""
    return stable(path, prediction_type="v_prediction", rescale_betas_zero_snr=True)


def stable_xl(path: Path, **more: Any) -> Path:
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025), text_encoder=CLIPTextModel(clip_config(8, 8)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(16, 6)),
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(pad="!"), scheduler=ddim(),
        unet=unet(
            cross_attention_dim=24, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 + 6 * 4, use_linear_projection=True,
            **({"transformer_layers_per_block": (1, 2)} | more),
        ),
        force_zeros_for_empty_prompt=True,
    ).save_pretrained(path)  # fmt: skip
    return path


def stable_3(path: Path) -> Path:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=4,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=16,
        pooled_projection_dim=6 + 8, out_channels=16, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(
            16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModelWithProjection(clip_config(8, 6)), tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(16, 8)),
        tokenizer_2=clip_tokenizer(pad="!"), text_encoder_3=t5_encoder(32),
        tokenizer_3=t5_tokenizer(),
    ).save_pretrained(path)  # fmt: skip
    return path


def deepfloyd(path: Path) -> Path:
    from diffusers import DDPMScheduler, IFPipeline

    torch.manual_seed(0)
    IFPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5_encoder(32), safety_checker=None,
        feature_extractor=None, watermarker=None, requires_safety_checker=False,
        unet=unet(
            sample_size=16, in_channels=3, out_channels=6, encoder_hid_dim=32, act_fn="gelu",
            cross_attention_dim=32, resnet_skip_time_act=True, class_embed_type=None,
            addition_embed_type="text", addition_embed_type_num_heads=4, attention_head_dim=4,
            cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", encoder_hid_dim_type="text_proj",
            norm_num_groups=4, only_cross_attention=True,
        ),
        scheduler=DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", variance_type="learned_range",
            prediction_type="epsilon",
        ),
    ).save_pretrained(path)  # fmt: skip
    return path


ADAPTER = "mvadapter.safetensors"


def adapter_file(path: Path, own: Any, xl: bool) -> Path:
    """Random weights of MV-Adapter for a UNet, by the names of the published files: those of the
    attention processors of diffusers, and of its ``T2IAdapter``."""
    from diffusers import T2IAdapter
    from safetensors.torch import save_file

    torch.manual_seed(1)
    widths = list(own.config.block_out_channels)
    encoder = T2IAdapter(
        in_channels=6, channels=[*widths, widths[-1]] if xl else widths, num_res_blocks=2,
        downscale_factor=4 if xl else 2,
        adapter_type="full_adapter_xl" if xl else "full_adapter",
    )  # fmt: skip
    state = dict(encoder.state_dict())
    for name in own.attn_processors:
        if not name.endswith("attn1.processor"):
            continue
        block, _, rest = name.partition(".")
        level = {"mid_block": -1, "down_blocks": 0, "up_blocks": 0}[block]
        if block != "mid_block":
            level = int(rest.split(".")[0])
        width = (widths[::-1] if block == "up_blocks" else widths)[level]
        for each in ("to_q_mv", "to_k_mv", "to_v_mv", "to_out_mv.0"):
            state[f"{name}.{each}.weight"] = torch.randn(width, width) / width**0.5
        state[f"{name}.to_out_mv.0.bias"] = torch.randn(width)
    save_file({k: v.detach().contiguous() for k, v in state.items()}, path)
    return path


def adapted(path: Path) -> Path:
    """Three resolutions in the order of Stable Diffusion 2.1, and an adapter in the folder."""
    torch.manual_seed(0)
    own = unet(
        block_out_channels=(8, 16, 16), use_linear_projection=True, attention_head_dim=(2, 4, 4),
        down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip
    adapter_file(stable(path, own) / ADAPTER, own, xl=False)
    return path


def adapted_xl(path: Path) -> Path:
    """Three resolutions in the order of SDXL, and an adapter in the folder."""
    from diffusers import UNet2DConditionModel

    stable_xl(
        path, block_out_channels=(8, 16, 24), attention_head_dim=(1, 2, 3),
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        transformer_layers_per_block=(1, 1, 2),
    )  # fmt: skip
    own = UNet2DConditionModel.from_pretrained(path, subfolder="unet")
    adapter_file(path / ADAPTER, own, xl=True)
    return path


def how(folder: Path, **more: Any) -> Any:
    """How a family's folder is loaded: with the adapter that is in it, if there is one."""
    from sdi_gs.diffusion.source import How

    there = folder / ADAPTER
    return How(adapter=str(there) if there.is_file() else None, **more)


FAMILIES = {
    "sd15": stable, "sd21v": stable_v, "sdxl": stable_xl, "sd35": stable_3, "if": deepfloyd,
    "mv": multi_view,
}  # fmt: skip
"""By a short name: what saves a folder of that family."""
ADAPTED = {"mva": adapted, "mvaxl": adapted_xl}
"""The same, of those that have an adapter beside them."""
