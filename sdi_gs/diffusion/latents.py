# SPDX-License-Identifier: Apache-2.0
"""What priors share: the way from pictures to latents and back, networks asked a few rows at a
time, and the check that the parts of a model go together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Condition, Denoiser
from .folder import ModelError
from .lora import Place
from .schedule import require_signal, with_signal

LOG = logging.getLogger(__name__)


class Prior(Denoiser, Protocol):
    """A denoiser made of networks, as :mod:`~sdi_gs.diffusion.tuning` and the budget see it."""

    rows: int | None  # network samples asked at once; None: all of a call
    image_size: int  # pixels along a side, square
    place: Place  # where its network learns of a camera

    @property
    def network(self) -> Any:
        """The module that predicts."""
        ...

    @property
    def vae(self) -> Any:
        """The module that encodes pictures; None where latents are pixels."""
        ...

    @property
    def readers(self) -> tuple[Any, ...]:
        """The modules that read sentences; none after ``forget_words``."""
        ...

    def forget_words(self) -> None: ...

    def try_out(self) -> None:
        """Every network once, on something small. ModelError where that makes no numbers."""
        ...


def sized(rgb: Tensor, size: int) -> Tensor:
    """Pictures of any size, resized (bilinear) to ``size`` x ``size``, as the paper does."""
    if tuple(rgb.shape[-2:]) != (size, size):
        rgb = F.interpolate(rgb, size=(size, size), mode="bilinear", align_corners=False)
    return rgb


class Autoencoder:
    """A VAE between pictures [B, 3, H, W] in [0, 1] and scaled latents [B, c, h, w], float32.

    The mean of the posterior is the latent of a picture: a picture has one. The VAE works in the
    precision of its own weights.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.scaling = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.channels = int(vae.config.latent_channels)
        self.stride = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels of a latent

    def posterior(self, rgb: Tensor) -> Any:
        pixels = (rgb * 2.0 - 1.0).to(next(self.vae.parameters()).dtype)
        return self.vae.encode(pixels).latent_dist

    def encode(self, rgb: Tensor) -> Tensor:
        return self._latents(self.posterior(rgb).mean)

    def encode_posterior(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, as latents."""
        posterior = self.posterior(rgb)
        return self._latents(posterior.mean), posterior.std.float() * self.scaling

    def _latents(self, mean: Tensor) -> Tensor:
        return (mean.float() - self.shift) * self.scaling

    def decode(self, latents: Tensor) -> Tensor:
        z = (latents / self.scaling + self.shift).to(next(self.vae.parameters()).dtype)
        decoded: Tensor = self.vae.decode(z).sample
        return decoded.float() * 0.5 + 0.5


def usable(table: Tensor) -> Tensor:
    """The part of a schedule [T] that holds signal, with a warning where that is not all."""
    kept = require_signal(with_signal(table))
    if len(kept) < len(table):
        LOG.warning(
            "the schedule of this model ends in noise without signal: of its %d times the "
            "first %d are used", len(table), len(kept),
        )  # fmt: skip
    return kept


def ask_unet(
    unet: Any,
    x_t: Tensor,
    t: Tensor,
    hidden: Tensor,
    camera: Tensor | None,
    told: Mapping[str, Any] = MappingProxyType({}),
) -> Tensor:
    """What a UNet of diffusers, or the plain one, makes of x_t [B, c, h, w], like x_t.

    ``hidden`` [B, words, width]; ``camera`` [B, 16] for a copy that is told poses; ``told``: what
    else a UNet of diffusers takes, by name.
    """
    dtype = next(unet.parameters(), x_t).dtype
    more: dict[str, Any] = {} if camera is None else {"class_labels": camera}
    more |= told
    out: Tensor = unet(x_t.to(dtype), t, encoder_hidden_states=hidden.to(dtype), **more).sample
    return out.to(x_t.dtype)


def in_rows(
    ask: Callable[[Tensor, Tensor, Condition], Tensor],
    rows: int | None,
    x_t: Tensor,
    t: Tensor,
    condition: Condition,
) -> Tensor:
    """``ask(x_t, t, condition)``, at most ``rows`` samples at once; None: all."""
    most = len(x_t) if rows is None else rows
    parts = zip(x_t.split(most), t.split(most), condition.split(most), strict=True)
    return torch.cat([ask(*part) for part in parts])


def require_numbers(part: str, out: Tensor, wanted: torch.Size) -> None:
    """ModelError where what a part of a model has made is of another shape, or no numbers."""
    if out.shape != wanted or not bool(torch.isfinite(out).all()):
        raise ModelError(
            f"the {part} of the model makes {tuple(out.shape)} of {tuple(wanted)}, "
            "or no numbers: its files are damaged, or not of one model"
        )
