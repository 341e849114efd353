# SPDX-License-Identifier: Apache-2.0
"""What the families of priors do alike, whatever their networks are told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from .base import Condition
from .latents import Autoencoder, in_rows, sized
from .lora import LoraLearner, Place, under
from .schedule import eps_of_v


class Networked(ABC):
    """A prior that asks one network a few rows at a time, and can be given a second one that
    learns."""

    place: Place  # where its network learns of a camera
    alpha_bar: Tensor
    views_together: int
    rows: int | None  # network samples asked at once; None: all of a call

    @property
    @abstractmethod
    def network(self) -> Any:
        """The module that predicts."""

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Condition: ...

    @abstractmethod
    def _noise(
        self,
        network: Any,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        camera: Tensor | None = None,
    ) -> Tensor:
        """epsilon [B, c, h, w] by ``network``: ours, or a copy of it that is told the camera."""

    def predict_noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return in_rows(partial(self._noise, self.network), self.rows, x_t, t, condition)

    def _beside(
        self, network: Any, x_t: Tensor, condition: Condition, camera: Tensor | None
    ) -> dict[str, Any]:
        """What ``network`` takes besides, by name, for the families that tell it more."""
        return {}

    def learner(self, prompt: str, rank: int, rate: float) -> LoraLearner:
        """A second network with low-rank weights of its own; see :class:`~.lora.LoraLearner`."""
        ask = under(self._noise, self.embed([prompt]))
        return LoraLearner(self.network, ask, self.place, self.alpha_bar, rank, rate)

    def _as_noise(self, out: Tensor, prediction: str, x_t: Tensor, t: Tensor) -> Tensor:
        """epsilon of what a network says, which is epsilon or v."""
        if prediction == "epsilon":
            return out
        return eps_of_v(out, x_t, self.alpha_bar[t.clamp(min=0)].to(x_t.dtype))


class OfLatents(Networked):
    """A prior whose pictures go through an autoencoder. Those of any size are resized (bilinear) to
    the model's own, as the paper does."""

    latents: Autoencoder
    image_size: int  # pixels, square

    @property
    def vae(self) -> Any:
        return self.latents.vae

    def encode(self, rgb: Tensor) -> Tensor:
        return self.latents.encode(sized(rgb, self.image_size))

    def encode_posterior(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's posterior, as latents."""
        return self.latents.encode_posterior(sized(rgb, self.image_size))

    def decode(self, latents: Tensor) -> Tensor:
        return self.latents.decode(latents)
