# SPDX-License-Identifier: Apache-2.0
"""What the UNet of mini sees: which picture, at what time, under which caption, how weighted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .corpus import Corpus

PLAIN_SHARE = 0.75  # of the half-formed pictures stand on white, as renderings mostly do
SILENT_SHARE = 0.95  # of the half-formed pictures have no caption


class HalfFormed(NamedTuple):
    """The pool of half-formed pictures."""

    latents: Tensor  # [P, 4, h, w]
    source: np.ndarray  # [P] index of the corpus image whose caption it keeps
    plain: np.ndarray  # indices of those that stand on white


class Batch(NamedTuple):
    latents: Tensor  # [B, 4, h, w] float32
    t: Tensor  # [B] int64 in 0..999
    half_formed: Tensor  # [B] bool
    captions: list[str]  # what the network is told; half-formed pictures mostly have none
    truth: list[str]  # the same before half-formed pictures lost theirs


def plain_borders(pool: np.ndarray) -> np.ndarray:
    """Indices of the pictures [P, 3, H, W] uint8 whose border is white to 4 % on average."""
    border = [pool[:, :, :2], pool[:, :, -2:]]
    sides = [pool[..., :2], pool[..., -2:]]
    dark = sum(255.0 - part.mean(axis=(1, 2, 3)) for part in (*border, *sides)) / 4
    return np.flatnonzero(dark < 0.04 * 255)


HALF_FORMED = 0.35
"""The largest chance that a sample is half-formed."""


def half_formed_share(t: Tensor, most: float = HALF_FORMED) -> Tensor:
    """Chance that a sample at time ``t`` is half-formed: ``most`` up to t = 500, none from 800."""
    return most * ((800.0 - t.float()) / 300.0).clamp(0.0, 1.0)


def loss_weight(alpha_bar: Tensor) -> Tensor:
    """Weight of the squared noise error at each time of the schedule, mean 1.

    The error that can be reached falls about as sqrt(alpha_bar): unweighted, t < 200 would own
    the gradient, and that is where captions say least. alpha_bar^-0.35 evens most of it out.
    """
    weight = alpha_bar.pow(-0.35).clamp(max=5.0)
    return weight / weight.mean()


def step_rng(seed: int, step: int) -> np.random.Generator:
    """A fresh generator per step, so that a resumed run draws what an unbroken one would."""
    return np.random.default_rng([seed, step])


def draw(
    corpus: Corpus, latents: Tensor, pool: HalfFormed, size: int, rng: np.random.Generator
) -> Batch:
    """One batch. Half-formed pictures mostly lose their caption: what the model believes without
    one is then broad, what it believes with one is sharp, and guidance leads from the first to
    the second."""
    t = torch.from_numpy(rng.integers(0, 1000, size=size))
    formed = torch.from_numpy(rng.random(size)) < half_formed_share(t)
    index = rng.integers(len(latents), size=size)
    pick = rng.integers(len(pool.latents), size=size)
    pick = np.where(rng.random(size) < PLAIN_SHARE, rng.choice(pool.plain, size=size), pick)
    index = np.where(formed.numpy(), pool.source[pick], index)
    z = torch.where(formed[:, None, None, None], pool.latents[pick], latents[index]).float()
    truth = corpus.captions(index, rng)
    silent = formed.numpy() & (rng.random(size) < SILENT_SHARE)
    captions = ["" if s else c for s, c in zip(silent, truth, strict=True)]
    return Batch(z, t, formed, captions, truth)


def batches(
    corpus: Corpus, latents: Tensor, pool: HalfFormed, size: int, seed: int, step: int
) -> Iterator[Batch]:
    """One batch per step from ``step`` on."""
    while True:
        yield draw(corpus, latents, pool, size, step_rng(seed, step))
        step += 1
