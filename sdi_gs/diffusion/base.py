# SPDX-License-Identifier: Apache-2.0
"""What guidance asks of a diffusion model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Condition:
    """What a network is told about each sample beside its noise level.

    The parts are named by the denoiser that made them, and by nobody else: Stable Diffusion has
    "hidden"; SDXL has a pooled text and sizes as well; a multi-view model has the cameras. Guidance
    selects, blends, joins and splits conditions, and never looks inside.
    """

    parts: Mapping[str, Tensor]  # each [B, ...], the same B

    def __post_init__(self) -> None:
        lengths = {name: len(part) for name, part in self.parts.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the parts of a condition have one row per sample, got {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def __getitem__(self, name: str) -> Tensor:
        """One part, [B, ...]; for the denoiser that made it."""
        return self.parts[name]

    def rows(self, index: Tensor) -> Condition:
        """The samples ``index`` [n], int64 on any device; a sample may come more than once."""
        return Condition({k: _rows(part, index) for k, part in self.parts.items()})

    def blend(self, other: Condition, share: Tensor) -> Condition:
        """``share * self + (1 - share) * other``, sample by sample; ``share`` [B] in [0, 1].

        A part that is not of floating point (a size, an index) cannot be blended and must be the
        same in both. Raises ValueError where it is not, or where the parts have other names.
        """
        if self.parts.keys() != other.parts.keys():
            raise ValueError(f"conditions of {sorted(self.parts)} and of {sorted(other.parts)}")
        mixed = {}
        for name, first in self.parts.items():
            second = other.parts[name]
            if first.is_floating_point():
                s = share.to(first).reshape(-1, *[1] * (first.dim() - 1))
                mixed[name] = s * first + (1.0 - s) * second
            elif torch.equal(first, second):
                mixed[name] = first
            else:
                raise ValueError(f"the part {name!r} of a condition is not blendable")
        return Condition(mixed)

    @staticmethod
    def cat(items: Sequence[Condition]) -> Condition:
        """One condition after the other, as one batch; all have the same parts."""
        first, *others = items
        if any(item.parts.keys() != first.parts.keys() for item in others):
            raise ValueError("conditions with other parts cannot stand in one batch")
        return Condition({k: torch.cat([item.parts[k] for item in items]) for k in first.parts})

    def split(self, rows: int) -> Iterator[Condition]:
        """Pieces of at most ``rows`` samples, in order."""
        pieces = [part.split(rows) for part in self.parts.values()]
        for piece in zip(*pieces, strict=True):
            yield Condition(dict(zip(self.parts, piece, strict=True)))


def _rows(part: Tensor, index: Tensor) -> Tensor:
    """``part[index]``. An index on the CPU is not sent to a card, which would be waited for: it
    names the rows."""
    if index.device == part.device:
        return part[index]
    if index.device.type == "cpu" and len(index) > 0:
        return torch.stack([part[row] for row in index.tolist()])
    return part[index.to(part.device)]


@runtime_checkable
class Denoiser(Protocol):
    """A frozen text-to-image diffusion model, seen through latents, integer times and noise.

    Whatever precision the network works in, everything that crosses this line is float32 (or
    the caller's float64), and parameters never require gradients.

    The schedule is a table of ``alpha_bar``, whatever the model was trained with. A flow model is a
    denoiser too: with a = 1 - s, ``x_t / sqrt(a^2 + s^2)`` is a variance-preserving sample of
    ``alpha_bar = a^2 / (a^2 + s^2)``, and its velocity v means ``eps = z + (1 - s) v``. The table
    ends where the signal does: see :func:`~sdi_gs.diffusion.schedule.require_signal`.
    """

    alpha_bar: Tensor  # [T] cumulative product of the training schedule, falling, >= 1e-4
    views_together: int  # rows of a network call that must be views of one shape, side by side

    def embed(self, prompts: Sequence[str]) -> Condition:
        """Encode texts: one row per prompt, detached."""
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
class ToldOfCameras(Protocol):
    """A denoiser whose network knows where each picture was taken from."""

    def seen_from(self, condition: Condition, camera_to_world: Tensor) -> Condition:
        """``condition`` [B] for the pictures of those cameras [B, 4, 4], on the same device:
        columns right, up, backwards, position; the world of :mod:`representations.cameras`."""
        ...


@runtime_checkable
class HasPosterior(Protocol):
    """A denoiser whose encoder says how sure it is."""

    def encode_posterior(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, c, h, w] of the latents of pictures [B, 3, H, W] in
        [0, 1]; the mean is what ``encode`` returns; differentiable."""
        ...


@runtime_checkable
class Forgetful(Protocol):
    """A denoiser that can free what only embeds words."""

    def forget_words(self) -> None: ...
