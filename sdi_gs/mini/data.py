# SPDX-License-Identifier: Apache-2.0
"""What the training of mini reads: corpus, half-formed pool and latents, built once and cached."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .corpus import COLORS, VIEWS, Corpus, build
from .halfformed import half_form

SIBLINGS = 7


@dataclass(frozen=True)
class DataSizes:
    """How much to build. The defaults made the published weights."""

    seed: int = 0
    casts_per_kind: int = 1200  # shapes x views, each painted in two colours
    half_formed: int = 24_000  # images in the pool
    processes: int = 2


def load_corpus(cache: Path, sizes: DataSizes) -> Corpus:
    path = cache / "corpus.npz"
    if not path.exists():
        build(sizes.seed, sizes.casts_per_kind, 2, sizes.processes).save(path)
    return Corpus.load(path)


def load_heldout(cache: Path, processes: int = 2) -> Corpus:
    """Shapes that no training image shows: another seed, each painted in every colour, so that the
    nearest image of a lookup is never the wrong colour for want of the right one."""
    path = cache / "heldout.npz"
    if not path.exists():
        build(1, 240, len(COLORS), processes).save(path)
    return Corpus.load(path)


def load_fresh(cache: Path, processes: int = 2) -> Corpus:
    """A few true pictures of a third seed: what a perfect model would draw."""
    path = cache / "fresh.npz"
    if not path.exists():
        build(2, 48, 1, processes).save(path)
    return Corpus.load(path)


def to_float(images: np.ndarray) -> Tensor:
    """uint8 [.., 3, H, W] -> float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).float().div_(255.0)


def _form_chunk(job: tuple[np.ndarray, np.ndarray, int]) -> np.ndarray:
    images, siblings, seed = job
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(seed)
    formed = half_form(to_float(images), to_float(siblings), rng)
    return (formed * 255 + 0.5).to(torch.uint8).numpy()


def load_half_formed(
    cache: Path, corpus: Corpus, sizes: DataSizes
) -> tuple[np.ndarray, np.ndarray]:
    """The pool: uint8 images [P, 3, H, W] and the corpus index [P] whose caption they keep."""
    path = cache / "half_formed.npz"
    if not path.exists():
        rng = np.random.default_rng([sizes.seed, 77])
        source = rng.integers(len(corpus), size=sizes.half_formed)
        group = (corpus.kind * 100 + corpus.color) * len(VIEWS) + corpus.view()
        order = np.argsort(group, kind="stable")
        begin = np.searchsorted(group[order], group[source])
        end = np.searchsorted(group[order], group[source], side="right")
        draw = rng.random((len(source), SIBLINGS))
        siblings = order[begin[:, None] + (draw * (end - begin)[:, None]).astype(np.int64)]
        jobs = [
            (corpus.images[source[i : i + 250]], corpus.images[siblings[i : i + 250]], 1000 + i)
            for i in range(0, len(source), 250)
        ]
        with multiprocessing.get_context("spawn").Pool(sizes.processes) as pool:
            formed = np.concatenate(pool.map(_form_chunk, jobs, chunksize=1))
        temporary = cache / "half_formed.part.npz"
        np.savez(temporary, images=formed, source=source)
        temporary.replace(path)
    with np.load(path) as data:
        return data["images"], data["source"]


@torch.no_grad()
def encode_all(vae: Any, images: np.ndarray, device: torch.device, batch: int = 32) -> Tensor:
    """Posterior means of all images, scaled to unit deviation, float16 on the CPU."""
    out = []
    for i in range(0, len(images), batch):
        x = to_float(images[i : i + batch]).to(device) * 2 - 1
        with torch.autocast(device.type, dtype=torch.bfloat16):
            mean = vae.encode(x).latent_dist.mean
        out.append((mean.float() * vae.config.scaling_factor).half().cpu())
    return torch.cat(out)
