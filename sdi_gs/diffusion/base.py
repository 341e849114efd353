# SPDX-License-Identifier: Apache-2.0
"""What guidance asks of a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Generator, Tensor

Condition = Any
"""One encoded prompt per sample, as the denoiser that made it wants it: [B, ...]."""


@runtime_checkable
class Denoiser(Protocol):
    """A frozen text-to-image diffusion model, seen through latents, integer times and noise.

    Whatever precision the network works in, everything that crosses this line is float32 (or
    the caller's float64), and parameters never require gradients.
    """

    alpha_bar: Tensor  # [T] cumulative product of the training schedule

    def embed(self, prompts: Sequence[str]) -> Condition:
        """Encode texts: [len(prompts), ...], detached."""
        ...

    def encode(self, rgb: Tensor) -> Tensor:
        """Latents [B, c, h, w] of pictures [B, 3, H, W] in [0, 1]; differentiable."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] of latents; not clamped; differentiable."""
        ...

    def predict_noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """epsilon(x_t, t, condition) [B, c, h, w], one network sample per row. ``t`` is [B]
        int64 in [0, T). Whatever the network predicts (epsilon, v), this is epsilon.
        Differentiable in ``x_t``: a caller that wants no graph says so."""
        ...


class Predicted(NamedTuple):
    """A guided noise prediction and what it cost."""

    eps: Tensor  # [B, c, h, w]
    evaluations: int  # network samples spent


class NoiseLearner(Protocol):
    """A second noise predictor, trained on the renderings of a run.

    A camera is a pose [B, 16], a 4 x 4 matrix row by row; all zeros, or None, say nothing of it.
    """

    def predict(self, x_t: Tensor, t: Tensor, camera: Tensor | None) -> Tensor:
        """epsilon [B, c, h, w] under the prompt, detached."""
        ...

    def learn(self, latents: Tensor, camera: Tensor, rng: Generator) -> Tensor:
        """One step of training on clean latents at random times; the loss before it,
        a scalar that stays on the device."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Adaptable(Protocol):
    """A denoiser that can be given a second, trainable one."""

    def learner(self, prompt: str, rank: int, rate: float) -> NoiseLearner:
        """A learner for ``prompt`` that starts as this denoiser."""
        ...


@runtime_checkable
class Forgetful(Protocol):
    """A denoiser that can free what only embeds words."""

    def forget_words(self) -> None: ...
