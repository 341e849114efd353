# SPDX-License-Identifier: Apache-2.0
"""Diffusion of pixels: DeepFloyd IF, stage I. No autoencoder: latents are small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import parts
from .base import Condition
from .family import Networked
from .folder import naming
from .latents import ask_unet, require_numbers, usable
from .lora import BesideClass, Place
from .parts import Part
from .source import Opened
from .words import Reader, given_away, read_t5

TEXT = Part("text_encoder", "transformers", "T5EncoderModel")
UNET = Part("unet", "diffusers", "UNet2DConditionModel")
WORDS = 77  # that the model was taught with


class PixelDiffusion(Networked):
    """A pixel model behind the :class:`~sdi_gs.diffusion.base.Denoiser` protocol.

    ``encode`` makes the picture as small as the network's (64 x 64) by averaging, in [-1, 1]. A
    network that learned its variance says twice as many channels, of which the first half is the
    noise. Words are told in small letters, as the model was taught.
    """

    place: Place = BesideClass()
    vae = None

    def __init__(self, unet: Any, reader: Reader, scheduler: Any) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self._reader: Reader | None = reader.frozen()
        self.device: torch.device = next(unet.parameters()).device
        self.alpha_bar: Tensor = usable(scheduler.alphas_cumprod.float()).to(self.device)
        self.prediction: str = scheduler.config.prediction_type
        self.views_together = 1
        self.image_size = int(unet.config.sample_size)  # pixels, square
        self.rows: int | None = None  # network samples asked at once; None: all of a call

    @staticmethod
    def of(found: Opened) -> PixelDiffusion:
        """The model in a folder. ModelError where its files are none."""
        parts.check(found, ("unet", "text_encoder", "tokenizer", "scheduler"))
        scheduler = parts.schedule(found)
        text, unet = (parts.network(part, found).to(found.how.device) for part in (TEXT, UNET))
        told = ("unet", "encoder_hid_dim", unet.config.encoder_hid_dim)
        parts.agree(found, told, ("text_encoder", "d_model", text.config.d_model))
        parts.adapt(found, {"unet": unet, "text_encoder": text})
        reader = Reader(parts.t5_tokenizer("tokenizer", found, text), text)
        with naming(f"the model {found.name}"):
            model = PixelDiffusion(unet, reader, scheduler)
            model.try_out()
        return model

    @property
    def network(self) -> Any:
        return self.unet

    @property
    def readers(self) -> tuple[Any, ...]:
        return () if self._reader is None else (self._reader.encoder,)

    @torch.no_grad()
    def try_out(self) -> None:
        """Every network once. ModelError where that makes no numbers."""
        small = 2 ** (len(self.unet.config.block_out_channels) - 1)
        z = torch.zeros(1, 3, small, small, device=self.device)
        words = self.embed(["a mug"])
        require_numbers("text_encoder", words["hidden"], words["hidden"].shape)
        t = torch.full((1,), len(self.alpha_bar) // 2, device=self.device)
        require_numbers("unet", self.predict_noise(z, t, words), z.shape)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        """``hidden``: states of the text encoder, [len(prompts), words, width] float32."""
        if self._reader is None:
            raise given_away()
        texts = [text.lower().strip() for text in prompts]
        return Condition({"hidden": read_t5(self._reader, texts, self.device, WORDS, masked=True)})

    def forget_words(self) -> None:
        """Free the text encoder, most of the weights: a run embeds its words once."""
        self._reader = None

    def encode(self, rgb: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        if tuple(rgb.shape[-2:]) != size:
            rgb = F.interpolate(rgb, size, mode="bilinear", align_corners=False, antialias=True)
        return rgb * 2.0 - 1.0

    def decode(self, latents: Tensor) -> Tensor:
        return latents * 0.5 + 0.5

    def _noise(
        self,
        unet: Any,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        camera: Tensor | None = None,
    ) -> Tensor:
        out = ask_unet(unet, x_t, t, condition["hidden"], camera)[:, : x_t.shape[1]]
        return self._as_noise(out, self.prediction, x_t, t)
