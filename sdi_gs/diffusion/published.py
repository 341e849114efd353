# SPDX-License-Identifier: Apache-2.0
"""Models as published, without their weights.

Speed and memory do not depend on the values of weights, so a machine can be judged with random
ones, and FLOPs and bytes can be counted with none at all, on the device ``meta``. The sizes of
Stable Diffusion 2.1-base are those of its own config.json files
(stabilityai/stable-diffusion-2-1-base); those of SDXL and SD 3.5 medium were written down from
memory, and their numbers of parameters are the ones that are told everywhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn

from . import mv_adapter, mvdream
from .latents import Prior
from .multi_view import MultiView
from .mv_adapter import AdaptedStable, AdaptedXL
from .pixel import PixelDiffusion
from .schedule import scaled_linear_alpha_bar
from .source import INDEX, How, Opened
from .stable import StableDiffusion
from .stable_3 import StableDiffusion3
from .stable_xl import StableDiffusionXL
from .words import Reader

Settings = Mapping[str, Any]

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
CLIP_L: dict[str, Any] = {
    **TEXT, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
CLIP_G: dict[str, Any] = {
    **TEXT, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "projection_dim": 1280,
}  # fmt: skip
T5_XXL: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
    "num_heads": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
XL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
XL_VAE: dict[str, Any] = {
    **VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True
}  # fmt: skip
SD35_MEDIUM: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
}  # fmt: skip
SD3_VAE: dict[str, Any] = {
    **VAE, "sample_size": 1024, "latent_channels": 16, "scaling_factor": 1.5305,
    "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
TOKENS = 77
TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class Sizes(NamedTuple):
    """A model by the settings of its parts."""

    family: str  # the class that a model_index.json names
    parts: Mapping[str, Settings]
    views: int = 1  # rows of a call that are seen together
    adapted: bool = False  # with the layers of MV-Adapter beside it


SD21 = Sizes("StableDiffusionPipeline", {"unet": UNET, "vae": VAE, "text_encoder": TEXT})
KNOWN = {
    "stabilityai/stable-diffusion-xl-base-1.0": Sizes(
        "StableDiffusionXLPipeline",
        {"unet": XL_UNET, "vae": XL_VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
    ),
    "stabilityai/stable-diffusion-3.5-medium": Sizes(
        "StableDiffusion3Pipeline",
        {"transformer": SD35_MEDIUM, "vae": SD3_VAE, "text_encoder": CLIP_L,
         "text_encoder_2": CLIP_G, "text_encoder_3": T5_XXL},
    ),
}  # fmt: skip
"""By the id of the hub."""

CLASSES = {
    # of the parts, by the name of the part or, where families differ, with that of the family
    "unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL"),
    "transformer": ("diffusers", "SD3Transformer2DModel"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "text_encoder_3": ("transformers", "T5EncoderModel"),
    "StableDiffusion3Pipeline text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "IFPipeline text_encoder": ("transformers", "T5EncoderModel"),
}  # fmt: skip


def with_adapter(sizes: Sizes) -> Sizes:
    """The same model with MV-Adapter beside it. Sizes of a family that has none stay as they are;
    loading it is what says so."""
    if sizes.family not in mv_adapter.FAMILIES:
        return sizes
    return sizes._replace(views=mv_adapter.VIEWS, adapted=True)


def sizes_of(source: str) -> Sizes:
    """Of a local folder its own, of an id that is known here the published ones, and of anything
    else those of Stable Diffusion 2.1."""
    folder = Path(source).expanduser()
    if not (folder / INDEX).is_file():
        return KNOWN.get(source, SD21)
    found = Opened(source, folder, How())
    family, views = found.index.get("_class_name", ""), found.index.get("views_together", 1)
    names = [
        name for name in CLASSES if (found.part(name) / "config.json").is_file()
    ]  # those with a family before them are no folders
    parts = {name: found.config(name) for name in names}
    if family == "MVDreamPipeline":
        unet = mvdream.settings(parts["unet"], str(folder / "unet" / "config.json"))
        return Sizes(family, parts | {"unet": unet}, mvdream.VIEWS)
    return Sizes(family, parts, views if isinstance(views, int) else 1)


def shaped(
    sizes: Sizes, device: torch.device | str = "meta", dtype: torch.dtype = torch.float16
) -> Prior:
    """A model of these sizes with random weights; on ``meta``, with none."""
    made = {
        name: _made(sizes.family, name, settings, device, dtype)
        for name, settings in sizes.parts.items()
    }
    if sizes.adapted:
        _adapt(made["unet"], made["vae"], device, dtype)
    scheduler = SimpleNamespace(
        alphas_cumprod=scaled_linear_alpha_bar(),
        config=SimpleNamespace(prediction_type="epsilon"),
    )
    texts: dict[str, Any] = {
        name: Reader(_Words(sizes.parts[name].get("max_position_embeddings", TOKENS)), module)
        for name, module in made.items()
        if name.startswith("text_encoder")
    }
    match sizes.family:
        case "StableDiffusionXLPipeline":
            vae = made["vae"]
            if dtype == torch.float16 and sizes.parts["vae"].get("force_upcast", True):
                vae = vae.float()
            both = (texts["text_encoder"], texts["text_encoder_2"])
            xl = AdaptedXL if sizes.adapted else StableDiffusionXL
            return xl(made["unet"], vae, both, scheduler)
        case "StableDiffusion3Pipeline":
            one, two, three = (texts.get(name) for name in TEXTS)
            return StableDiffusion3(made["transformer"], made["vae"], (one, two, three))
        case "IFPipeline":
            return PixelDiffusion(made["unet"], texts["text_encoder"], scheduler)
        case "MultiViewStableDiffusionPipeline" | "MVDreamPipeline":
            words, text = texts["text_encoder"]
            return MultiView(made["unet"], made["vae"], text, words, scheduler, sizes.views)
        case _:
            words, text = texts["text_encoder"]
            stable = AdaptedStable if sizes.adapted else StableDiffusion
            return stable(made["unet"], made["vae"], text, words, scheduler)


def _made(
    family: str, name: str, settings: Settings, device: torch.device | str, dtype: torch.dtype
) -> Any:
    library, cls_name = CLASSES.get(f"{family} {name}", CLASSES[name])
    cls: Any = getattr(importlib.import_module(library), cls_name)
    plain = {key: value for key, value in settings.items() if not key.startswith("_")}
    with _default(dtype), torch.device(device):
        if library == "transformers":
            module: nn.Module = cls(cls.config_class(**plain))
        else:
            module = cls.from_config(plain)
    nn.Module.to(module, dtype)  # tables beside the parameters, too
    if dtype == torch.float16:
        for kept in getattr(cls, "_keep_in_fp32_modules", None) or ():
            for inner, part in module.named_modules():
                if inner.rpartition(".")[2] == kept:
                    part.float()
    return module.eval().requires_grad_(False)


def _adapt(unet: Any, vae: Any, device: torch.device | str, dtype: torch.dtype) -> None:
    """Layers of an adapter with random weights; on ``meta``, with none."""
    with _default(dtype), torch.device(device):
        mv_adapter.add(unet, vae)


@contextmanager
def _default(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Words:
    """A tokenizer that knows no language: the same words give the same numbers."""

    bos_token_id, eos_token_id, pad_token_id = 49406, 49407, 49407

    def __init__(self, longest: int) -> None:
        self.model_max_length = longest

    def __call__(self, texts: list[str], **_: Any) -> Any:
        from zlib import crc32

        room = range(self.model_max_length - 2)
        rows = [[crc32(f"{k} {text}".encode()) % 30000 for k in room] for text in texts]
        return type("Tokens", (), {"input_ids": rows})()


def random_stable_diffusion(
    device: torch.device | str, dtype: torch.dtype = torch.float16
) -> StableDiffusion:
    """Stable Diffusion 2.1-base whose predictions mean nothing; on ``meta``, its shapes."""
    model = shaped(SD21, device, dtype)
    assert isinstance(model, StableDiffusion)
    return model
