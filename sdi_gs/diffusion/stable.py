# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion, and every model in the same folder layout."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Condition
from .folder import ModelError, naming
from .load import PREDICTIONS, Engine, load_parts
from .lora import LoraLearner
from .plain_layers import join_all
from .schedule import eps_of_v, require_signal, with_signal

LOG = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class StableDiffusion:
    """A latent diffusion model behind the :class:`~sdi_gs.diffusion.base.Denoiser` protocol.

    The networks are frozen and work in their own precision; latents, noise and pictures are
    float32 on this side of the door. ``encode`` takes the mean of the VAE's posterior, so that
    a picture has one latent.
    """

    def __init__(
        self, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any
    ) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device: torch.device = next(unet.parameters()).device
        self.dtype: torch.dtype = next(unet.parameters()).dtype
        table = scheduler.alphas_cumprod.float()
        self.alpha_bar: Tensor = require_signal(with_signal(table)).to(self.device)
        if len(self.alpha_bar) < len(table):
            LOG.warning(
                "the schedule of this model ends in noise without signal: of its %d times the "
                "first %d are used", len(table), len(self.alpha_bar),
            )  # fmt: skip
        self.views_together = 1
        self.prediction: str = scheduler.config.prediction_type
        if self.prediction not in PREDICTIONS:
            raise ModelError(
                f"the model predicts {self.prediction!r}; {' and '.join(PREDICTIONS)} are supported"
            )
        self._scaling = float(vae.config.scaling_factor)
        self._shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        stride = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_size = int(unet.config.sample_size) * stride  # pixels, square
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
        if dtype not in DTYPES:
            raise ModelError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        parts = load_parts(str(source), DTYPES[dtype], engine)
        tokenizer, scheduler = parts.pop("tokenizer"), parts.pop("scheduler")
        modules = {name: module.to(device) for name, module in parts.items()}
        for module in modules.values():
            join_all(module)
        with naming(f"the model {source}"):
            model = StableDiffusion(tokenizer=tokenizer, scheduler=scheduler, **modules)
            model.try_out()
        return model

    @torch.no_grad()
    def try_out(self) -> None:
        """Every network once, on a picture as small as they take: settings that do not go together
        show here, before a run has begun. ModelError when what comes out is no numbers."""
        side = self.image_size // int(self.unet.config.sample_size)  # pixels of a latent's
        small = side * 2 ** (len(self.unet.config.block_out_channels) - 1)
        grey = torch.full((1, self.vae.config.in_channels, small, small), 0.5, device=self.device)
        z = self._latents(self._posterior_at(grey).mean)
        t = torch.full((1,), len(self.alpha_bar) // 2, device=self.device)
        seen = {"vae": self.decode(z), "text_encoder": self.embed(["a mug"])["hidden"]}
        seen["unet"] = self.predict_noise(z, t, Condition({"hidden": seen["text_encoder"]}))
        wanted = {"vae": grey.shape, "text_encoder": seen["text_encoder"].shape, "unet": z.shape}
        for part, out in seen.items():
            if out.shape != wanted[part] or not bool(torch.isfinite(out).all()):
                raise ModelError(
                    f"the {part} of the model makes {tuple(out.shape)} of {tuple(wanted[part])}, "
                    "or no numbers: its files are damaged, or not of one model"
                )

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        """``hidden``: last states of the text encoder, [len(prompts), tokens, width] float32."""
        if self.text_encoder is None:
            raise RuntimeError("the text encoder of this model was given away with forget_words()")
        ids = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        hidden: Tensor = self.text_encoder(ids.to(self.device)).last_hidden_state
        return Condition({"hidden": hidden.float()})

    def forget_words(self) -> None:
        """Free the text encoder, a quarter of the weights: a run embeds its words once."""
        self.text_encoder = None

    def encode(self, rgb: Tensor) -> Tensor:
        """Pictures of any size are resized (bilinear) to the model's own, as the paper does."""
        return self._latents(self._posterior(rgb).mean)

    def encode_posterior(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's posterior, as latents."""
        posterior = self._posterior(rgb)
        return self._latents(posterior.mean), posterior.std.float() * self._scaling

    def _latents(self, mean: Tensor) -> Tensor:
        return (mean.float() - self._shift) * self._scaling

    def _posterior(self, rgb: Tensor) -> Any:
        size = (self.image_size, self.image_size)
        if tuple(rgb.shape[-2:]) != size:
            rgb = F.interpolate(rgb, size=size, mode="bilinear", align_corners=False)
        return self._posterior_at(rgb)

    def _posterior_at(self, rgb: Tensor) -> Any:
        pixels = (rgb * 2.0 - 1.0).to(self.dtype)
        return self.vae.encode(pixels).latent_dist

    def decode(self, latents: Tensor) -> Tensor:
        z = (latents / self._scaling + self._shift).to(self.dtype)
        decoded: Tensor = self.vae.decode(z).sample
        return decoded.float() * 0.5 + 0.5

    def predict_noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        rows = len(x_t) if self.rows is None else self.rows
        parts = zip(x_t.split(rows), t.split(rows), condition.split(rows), strict=True)
        out = torch.cat([self._ask(*part) for part in parts]).to(x_t.dtype)
        if self.prediction == "epsilon":
            return out
        return eps_of_v(out, x_t, self.alpha_bar[t.clamp(min=0)].to(x_t.dtype))

    def _ask(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        words = condition["hidden"].to(self.dtype)
        out: Tensor = self.unet(x_t.to(self.dtype), t, encoder_hidden_states=words).sample
        return out

    def learner(self, prompt: str, rank: int, rate: float) -> LoraLearner:
        """A second UNet with low-rank weights of its own; see :class:`~.lora.LoraLearner`."""
        return LoraLearner(
            self.unet, self.embed([prompt])["hidden"], self.alpha_bar, self.prediction, rank, rate
        )
