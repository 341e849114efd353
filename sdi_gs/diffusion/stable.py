# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion, and every model in the same folder layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import parts
from .base import Condition
from .family import OfLatents
from .folder import ModelError, naming
from .latents import Autoencoder, ask_unet, require_numbers, usable
from .lora import BesideClass, Place
from .plain_layers import join_all
from .source import Engine, How, Opened, opened
from .words import Reader, given_away, read_clip


class StableDiffusion(OfLatents):
    """A latent diffusion model behind the :class:`~sdi_gs.diffusion.base.Denoiser` protocol.

    The networks are frozen and work in their own precision; latents, noise and pictures are
    float32 on this side of the door. ``encode`` takes the mean of the VAE's posterior, so that
    a picture has one latent.
    """

    def __init__(
        self, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any
    ) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.latents = Autoencoder(vae)
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device: torch.device = next(unet.parameters()).device
        self.alpha_bar: Tensor = usable(scheduler.alphas_cumprod.float()).to(self.device)
        self.views_together = 1
        self.prediction: str = scheduler.config.prediction_type
        if self.prediction not in parts.PREDICTIONS:
            raise ModelError(
                f"the model predicts {self.prediction!r}; {' and '.join(parts.PREDICTIONS)} are "
                "supported"
            )
        self.image_size = int(unet.config.sample_size) * self.latents.stride  # pixels, square
        self.rows: int | None = None  # network samples asked at once; None: all of a call

    @staticmethod
    def load(
        source: str | Path,
        dtype: str = "float32",
        device: torch.device | str = "cpu",
        engine: Engine = "auto",
    ) -> StableDiffusion:
        """From a local folder in diffusers layout, or from a model id of the Hugging Face hub.

        ``engine``: "plain" is this package's own arithmetic, "diffusers" the published classes;
        "auto" takes the first where it knows all settings of a network.

        Raises:
            ModelError: nothing there, no network, not safetensors, a foreign layout, or settings
                that the plain networks do not know where they alone are asked for.
        """
        how = How(dtype=dtype, device=device, engine=engine)
        return StableDiffusion.of(opened(source, how))

    @staticmethod
    def of(found: Opened) -> StableDiffusion:
        """The model in a folder; see :meth:`load`."""
        with naming(f"the model {found.name}"):
            model = StableDiffusion(*networks(found))
            model.try_out()
        return model

    @property
    def network(self) -> Any:
        return self.unet

    @property
    def readers(self) -> tuple[Any, ...]:
        return () if self.text_encoder is None else (self.text_encoder,)

    @torch.no_grad()
    def try_out(self) -> None:
        """Every network once, on a picture as small as they take: settings that do not go together
        show here, before a run has begun. ModelError when what comes out is no numbers."""
        small = self.latents.stride * 2 ** (len(self.unet.config.block_out_channels) - 1)
        grey = torch.full((1, self.vae.config.in_channels, small, small), 0.5, device=self.device)
        z = self.latents.encode(grey)
        require_numbers("vae", self.decode(z), grey.shape)
        views = self.views_together
        words = self.embed(["a mug"] * views)
        require_numbers("text_encoder", words["hidden"], words["hidden"].shape)
        z = z.expand(views, *z.shape[1:])
        t = torch.full((views,), len(self.alpha_bar) // 2, device=self.device)
        require_numbers("unet", self.predict_noise(z, t, words), z.shape)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        """``hidden``: last states of the text encoder, [len(prompts), tokens, width] float32."""
        if self.text_encoder is None:
            raise given_away()
        hidden = read_clip(Reader(self.tokenizer, self.text_encoder), prompts, self.device)
        return Condition({"hidden": hidden})

    def forget_words(self) -> None:
        """Free the text encoder, a quarter of the weights: a run embeds its words once."""
        self.text_encoder = None

    def _noise(
        self,
        unet: Any,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        camera: Tensor | None = None,
    ) -> Tensor:
        told = self._beside(unet, x_t, condition, camera)
        out = ask_unet(unet, x_t, t, condition["hidden"], camera, told)
        return self._as_noise(out, self.prediction, x_t, t)

    place: Place = BesideClass()


def networks(found: Opened, unet: Any = None) -> tuple[Any, Any, Any, Any, Any]:
    """UNet (that given, if there is one), VAE, text encoder, tokenizer and scheduler of a folder,
    where they are to work. ModelError where they are none, or not of one model."""
    parts.check(found, ("unet", "vae", "text_encoder", "tokenizer", "scheduler"))
    scheduler = parts.schedule(found)
    parts.require_noise_alone(found, "unet")
    text, vae = (parts.network(part, found) for part in (parts.TEXT, parts.VAE))
    if unet is None:
        unet = parts.network(parts.UNET, found)
    tokenizer = parts.clip_tokenizer("tokenizer", found, text)
    told = ("unet", "cross_attention_dim", unet.config.cross_attention_dim)
    parts.agree(found, told, ("text_encoder", "hidden_size", text.config.hidden_size))
    parts.adapt(found, {"unet": unet, "text_encoder": text}, unet.config.layers_per_block)
    for module in (unet, vae, text):
        join_all(module.to(found.how.device))
    return unet, vae, text, tokenizer, scheduler
