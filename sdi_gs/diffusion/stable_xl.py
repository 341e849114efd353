# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion XL (arXiv 2307.01952): two text encoders, the sentence as one vector besides,
and the sizes of the picture that the network is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import parts
from .base import Condition
from .family import OfLatents
from .folder import naming
from .latents import Autoencoder, ask_unet, require_numbers, usable
from .lora import BesideClass, Place
from .parts import Part
from .plain_layers import join_all
from .source import Opened
from .words import Reader, given_away, read_clip_before_last

TEXT = Part("text_encoder", "transformers", "CLIPTextModel")
TEXT_2 = Part("text_encoder_2", "transformers", "CLIPTextModelWithProjection")
FOLDERS = (
    "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler",
)  # fmt: skip


class StableDiffusionXL(OfLatents):
    """SDXL behind the :class:`~sdi_gs.diffusion.base.Denoiser` protocol.

    A condition has ``hidden`` (both encoders side by side), ``pooled`` (the second one's sentence)
    and ``time_ids``: original size, upper left corner and target size, which here are always those
    of a whole picture of the model's own size.
    """

    place: Place = BesideClass()

    def __init__(
        self,
        unet: Any,
        vae: Any,
        readers: tuple[Reader, Reader],
        scheduler: Any,
        zeros_for_empty: bool = True,
    ) -> None:
        """``zeros_for_empty``: no words at all are told as zeros, which is what
        ``force_zeros_for_empty_prompt`` of a model's index says."""
        self.unet = unet.eval().requires_grad_(False)
        self.latents = Autoencoder(vae)
        self._readers = tuple(reader.frozen() for reader in readers)
        self.zeros_for_empty = zeros_for_empty
        self.device: torch.device = next(unet.parameters()).device
        self.alpha_bar: Tensor = usable(scheduler.alphas_cumprod.float()).to(self.device)
        self.prediction: str = scheduler.config.prediction_type
        self.views_together = 1
        self.image_size = int(unet.config.sample_size) * self.latents.stride  # pixels, square
        self.rows: int | None = None  # network samples asked at once; None: all of a call

    @staticmethod
    def of(found: Opened) -> StableDiffusionXL:
        """The model in a folder. ModelError where its files are none."""
        with naming(f"the model {found.name}"):
            model = StableDiffusionXL(*networks(found))
            model.try_out()
        return model

    @property
    def network(self) -> Any:
        return self.unet

    @property
    def readers(self) -> tuple[Any, ...]:
        return tuple(reader.encoder for reader in self._readers)

    @torch.no_grad()
    def try_out(self) -> None:
        """Every network once, on a picture as small as they take. ModelError where that makes no
        numbers."""
        small = self.latents.stride * 2 ** (len(self.unet.config.block_out_channels) - 1)
        grey = torch.full((1, 3, small, small), 0.5, device=self.device)
        z = self.latents.encode(grey)
        require_numbers("vae", self.decode(z), grey.shape)
        views = self.views_together
        words = self.embed(["a mug"] * views)
        for part in ("hidden", "pooled"):
            require_numbers("text encoders", words[part], words[part].shape)
        z = z.expand(views, *z.shape[1:])
        t = torch.full((views,), len(self.alpha_bar) // 2, device=self.device)
        require_numbers("unet", self.predict_noise(z, t, words), z.shape)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        if not self._readers:
            raise given_away()
        read = [read_clip_before_last(one, prompts, self.device) for one in self._readers]
        hidden, pooled = torch.cat([one.hidden for one in read], dim=-1), read[-1].pooled
        if self.zeros_for_empty:
            said = torch.tensor([float(bool(text)) for text in prompts], device=self.device)
            hidden, pooled = hidden * said[:, None, None], pooled * said[:, None]
        side = self.image_size
        whole = torch.tensor([side, side, 0, 0, side, side], device=self.device)
        time_ids = whole.expand(len(prompts), 6)
        return Condition({"hidden": hidden, "pooled": pooled, "time_ids": time_ids})

    def forget_words(self) -> None:
        """Free the text encoders: a run embeds its words once."""
        self._readers = ()

    def _noise(
        self,
        unet: Any,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        camera: Tensor | None = None,
    ) -> Tensor:
        dtype = next(unet.parameters()).dtype
        added = {"text_embeds": condition["pooled"].to(dtype), "time_ids": condition["time_ids"]}
        told = {"added_cond_kwargs": added, **self._beside(unet, x_t, condition, camera)}
        out = ask_unet(unet, x_t, t, condition["hidden"], camera, told)
        return self._as_noise(out, self.prediction, x_t, t)


def networks(found: Opened) -> tuple[Any, Any, tuple[Reader, Reader], Any, bool]:
    """UNet, VAE, what reads words, scheduler, and whether no words are zeros, of a folder, where
    they are to work. ModelError where they are none, or not of one model."""
    parts.check(found, FOLDERS)
    scheduler = parts.schedule(found)
    texts = [parts.network(part, found) for part in (TEXT, TEXT_2)]
    words = [
        parts.clip_tokenizer(name, found, text)
        for name, text in zip(("tokenizer", "tokenizer_2"), texts, strict=True)
    ]
    parts.require_noise_alone(found, "unet")
    unet, vae = parts.network(parts.UNET, found), parts.network(parts.VAE, found)
    _agree(found, unet.config, texts[0].config, texts[1].config)
    networks = {"unet": unet, "text_encoder": texts[0], "text_encoder_2": texts[1]}
    parts.adapt(found, networks, unet.config.layers_per_block)
    if found.how.dtype == "float16" and found.config("vae").get("force_upcast", True):
        vae = vae.float()  # its activations go beyond what half precision holds
    for module in (unet, vae, *texts):
        join_all(module.to(found.how.device))
    one, two = (Reader(*pair) for pair in zip(words, texts, strict=True))
    zeros = bool(found.index.get("force_zeros_for_empty_prompt", True))
    return unet, vae, (one, two), scheduler, zeros


def _agree(found: Opened, unet: Any, one: Any, two: Any) -> None:
    """ModelError where the UNet was made for other text encoders."""
    told = one.hidden_size + two.hidden_size
    parts.agree(
        found,
        ("unet", "cross_attention_dim", unet.cross_attention_dim),
        ("text_encoder and text_encoder_2", "hidden_size together", told),
    )
    beside = two.projection_dim + 6 * unet.addition_time_embed_dim
    parts.agree(
        found,
        (
            "unet",
            "projection_class_embeddings_input_dim",
            unet.projection_class_embeddings_input_dim,
        ),
        ("text_encoder_2", "projection_dim with six sizes", beside),
    )
